"""Fuzzed cases: the same from the same seed, named by what they are, shrunk."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
from conftest import HAS_MXNET, assert_same_bits, plan_of

from adadelta_cli import update
from adadelta_cli.errors import UsageError
from adadelta_cli.implementations import registry
from adadelta_cli.system.sandbox import InProcess
from adadelta_cli.verification import catalogue, fuzz, runner
from adadelta_cli.verification.plan import DTYPES


def fuzz_rows(*names, dtypes=("float32",), examples=60, **more):
    """Verify fuzzed cases in this process; return the rows."""
    plan = plan_of(names, (), dtypes=dtypes, fuzz_cases=examples, **more)
    work = runner.Verification(plan)
    work.execute(sandbox=InProcess())
    return work.rows


def test_a_name_is_the_case():
    """Parsing the name of a fuzzed case gives the same tensors, gradients and settings."""
    for case in (*fuzz.fuzzed_cases(5, 200), *fuzz.length_cases(10**4)[::20]):
        again = fuzz.parse_case(case.name)
        assert again == case
        assert_same_bits(again.start("float32", 3)[0], case.start("float32", 3)[0])
        assert " " not in case.name and "'" not in case.name  # it needs no quotes in a shell


def test_every_part_of_a_range_is_covered():
    """Each of so many equal parts of a hyper-parameter's range is met, and every rank."""
    found = list(fuzz.fuzzed_cases(3, 300))
    assert {len(shape) for case in found for shape in case.shapes} == set(range(fuzz.RANKS + 1))
    rho = np.array([case.hyper.rho for case in found])
    assert ((rho > 0.5) & (rho < 0.85)).sum() > 20 and (rho > 0.9999).sum() > 20
    clip = np.array([case.hyper.clip_gradient or 0 for case in found])
    assert ((clip > 1) & (clip < 1e20)).sum() > 40
    for name in ("learning_rate", "wd", "rescale_grad"):
        values = np.array([getattr(case.hyper, name) for case in found])
        assert (values < 0).sum() > 50 and (values == 0).any()


def test_every_length_is_followed_by_one_at_most_six_percent_longer():
    """So no window of lengths is missed; there are odd and even ones, and long ones."""
    cases = fuzz.length_cases(fuzz.MOST)
    found = sorted({case.elements for case in cases if len(case.shapes[0]) == 1})
    assert found[:17] == list(range(1, 18)) and max(found) > 2**20
    assert all(b <= a * fuzz.GROWTH + 2 for a, b in itertools.pairwise(found))
    assert 0.4 < np.mean([n % 2 for n in found]) < 0.6
    assert any(65_538 <= n <= 69_999 for n in found)
    assert {2**k for k in range(5, 21)} <= set(found)
    folded = [case.shapes[0] for case in cases if len(case.shapes[0]) > 1]
    assert {len(shape) for shape in folded} >= {2, 3, 4}
    assert max(map(np.prod, folded)) > 200_000 and any(min(shape) > 500 for shape in folded)


@pytest.mark.slow
def test_builtin_implementations_pass_fuzzed_cases():
    """Fused and unfused, on NumPy and on MXNet, in every dtype."""
    names = ("numpy-fused", "mxnet-fused") if HAS_MXNET else ("numpy-fused",)
    rows = fuzz_rows(*names, dtypes=DTYPES)
    assert len(rows) == 3 * len(names)
    assert all(row.passed and row.elements > 100 and "cases drawn" in row.note for row in rows)


def replace_step(monkeypatch, wrong):
    """Replace the fused update by a wrong one; `wrong` changes a parameter after it."""

    def bind(inputs):
        parameters, hyper = inputs.parameters, inputs.hyper
        rates, weight_decays = inputs.learning_rates, inputs.weight_decays

        def act():
            with np.errstate(all="ignore"):
                for p, rate, decay in zip(parameters, rates, weight_decays, strict=True):
                    update.update(np, p, hyper.scalars(p.acc_grad.dtype), rate, decay)
                    wrong(p, hyper)

        return act

    changed = replace(registry.IMPLEMENTATIONS["numpy-fused"], bind=bind)
    monkeypatch.setitem(registry.IMPLEMENTATIONS, "numpy-fused", changed)


def test_what_fails_is_shrunk_and_can_be_repeated(monkeypatch):
    """A mistake that needs 10 elements and weight decay leaves 10 elements and a round decay."""

    def wrong(p, hyper):
        if p.weight.size >= 10 and hyper.wd:
            p.acc_grad.reshape(-1)[9] += 1

    replace_step(monkeypatch, wrong)
    rows = fuzz_rows("numpy-fused", examples=300)
    (row,) = (row for row in rows if row.passed is False and row.tensor == "acc_grad")
    case = fuzz.parse_case(row.case)
    assert case.elements == 10 and case.steps == 1 and case.hyper.wd == round(case.hyper.wd)
    assert replace(case.hyper, wd=0.0) == update.Hyperparameters()
    assert "first at step 1, element 9" in row.note
    command = f"adadelta verify --case {row.case} --impl numpy-fused --dtype float32"
    assert row.replay == command
    work = runner.Verification(
        plan_of(("numpy-fused",), tuple(catalogue.select((row.case,))), dtypes=("float32",))
    )
    work.execute(sandbox=InProcess())
    assert "acc_grad" in {row.tensor for row in work.failures}
    assert (
        row.case == fuzz_rows("numpy-fused", examples=300)[0].case
    )  # the same seed, the same case


def test_what_raises_is_shrunk_too(monkeypatch):
    """To one tensor; the row says what was raised."""

    def wrong(p, _hyper):
        if p.weight.ndim == 2:
            raise RuntimeError("no matrices!")

    replace_step(monkeypatch, wrong)
    (row,) = fuzz_rows("numpy-fused", examples=200)
    assert row.passed is False and "no matrices!" in row.note
    assert fuzz.parse_case(row.case).shapes == ((0, 0),)


def test_seeds_give_other_cases():
    """And one seed the same ones, on every machine and with every version of every library."""

    def seen(seed):
        return [case.name for case in fuzz.fuzzed_cases(seed, 20)]

    assert seen(1) == seen(1) != seen(2)
    assert seen(1)[0] == (
        "drawn:shapes=1x0x2x2x0x1x3,steps=3,varied=1,learning_rate=278883.49,rho=0.0,"
        "epsilon=4.3200127e-28,wd=-6.26673e-06,rescale_grad=20733214.0,"
        "clip_gradient=1.354656e-20"
    )


@pytest.mark.parametrize(
    "name",
    [
        "drawn:",
        "drawn:rho=0.9",
        "drawn:shapes=-3",
        "drawn:shapes=3,rho=2",
        "drawn:shapes=3,size=3",
        "drawn:shapes=3,fill=odd",
        "drawn:shapes=3,steps=0",
    ],
)
def test_a_name_that_is_no_case_is_wrong_usage(name):
    """The message shows the form."""
    with pytest.raises(UsageError, match="expected drawn:shapes="):
        catalogue.select((name,))


def test_the_number_of_fuzzed_cases():
    """Some by default, many with --full or by name, none where something else is named."""
    assert fuzz.example_count((), full=False, alone=False) == fuzz.EXAMPLES
    assert fuzz.example_count((), full=True, alone=False) == fuzz.FULL_EXAMPLES
    assert fuzz.example_count(("drawn",), full=False, alone=True) == fuzz.FULL_EXAMPLES
    assert fuzz.example_count(("odd",), full=True, alone=True) == 0


def test_unsupported_hyperparameters_are_left_out(monkeypatch):
    """MXNet reads the bounds of its clip as float32, and refuses smaller ones: no wrong step."""
    stock = registry.IMPLEMENTATIONS["mxnet-stock"]
    for clip, fits in ((None, True), (0.0, True), (1e-30, True), (1e-250, False), (1e250, False)):
        assert bool(stock.unsupported_reason(update.Hyperparameters(clip_gradient=clip))) != fits

    assert stock.unsupported_reason(update.Hyperparameters(rescale_grad=5e-324))
    assert not stock.unsupported_reason(update.Hyperparameters(rescale_grad=1e-300, wd=0.0))

    def wrong(_p, _hyper):
        raise RuntimeError("asked for what it lacks")

    replace_step(monkeypatch, wrong)
    lazy = replace(registry.IMPLEMENTATIONS["numpy-fused"], unsupported_reason=lambda _hyper: "all")
    monkeypatch.setitem(registry.IMPLEMENTATIONS, "numpy-fused", lazy)
    (row,) = fuzz_rows("numpy-fused", examples=5)
    assert row.passed is None and row.note == "0 cases drawn"  # nothing compared is no pass
