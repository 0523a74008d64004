"""From samples to rows: times, shares of the ceiling, speed-ups, notes and pairs of versions."""

from dataclasses import fields, replace

import numpy as np
import pytest
from invented import ALL_WRONG, GROUP, samples

from adadelta_cli.bench import results
from adadelta_cli.bench.measurement_warnings import format_warnings
from adadelta_cli.bench.regression import RecordedTiming
from adadelta_cli.bench.report import bench_cells
from adadelta_cli.bench.results import BenchRow, Timings, group_result
from adadelta_cli.bench.timing_problem import Outcome, TimingProblem
from adadelta_cli.implementations.registry import timeable

COLUMNS = """
    implementation backend ctx dtype workload tensors elements threads cache processes samples
    median_s ci_low_s ci_high_s q1_s q3_s elements_per_s gigabytes_per_s ceiling_gigabytes_per_s
    ceiling_fraction ceiling_fraction_low ceiling_fraction_high bound speedup speedup_low
    speedup_high peak_extra_bytes bytes_per_element busy variant ceiling_variant note
""".split()  # noqa: SIM905 - as the contract lists them


def rows(found, peaks=(8_000_000, 0)):
    """Turn samples into the rows of numpy and numpy-fused."""
    by_name = dict(zip(("numpy", "numpy-fused"), peaks, strict=True))
    return [each.row for each in group_result(GROUP, Timings(found), by_name).measurements]


def test_the_columns_are_those_of_the_contract():
    """Scripts read bench.csv by its columns."""
    assert [each.name for each in fields(BenchRow)] == COLUMNS


def test_a_row_from_known_samples():
    """1e6 float32 elements move 28 MB: in 2 ms that is 14 GB/s, 0.95 of a roof of 1.9 ms."""
    row = rows(samples())[1]
    assert row.median_s == pytest.approx(2e-3)
    assert row.gigabytes_per_s == pytest.approx(14)
    assert row.elements_per_s == pytest.approx(5e8)
    assert row.ceiling_gigabytes_per_s == pytest.approx(28 / 1.9)
    assert row.ceiling_fraction == pytest.approx(0.95)
    assert (row.bound, row.processes, row.samples) == ("memory", 2, 60)
    assert row.speedup == pytest.approx(10)
    assert row.peak_extra_bytes == 0
    assert row.bytes_per_element == 28


def test_the_slower_roof_is_the_ceiling():
    """Where arithmetic takes longer than memory, it bounds the step, and the row says so."""
    row = rows(samples(arithmetic=1.99))[1]
    assert row.bound == "arithmetic"
    assert row.ceiling_fraction == pytest.approx(0.995)


def test_a_share_above_the_ceiling_is_not_to_be_believed():
    """Where the roofs were disturbed, the row says that the share means nothing."""
    doubtful, good = rows(samples(memory=6.0))[1], rows(samples(memory=2.1))[1]
    assert "the share means nothing" in doubtful.note and not doubtful.share_holds
    assert "the share means nothing" not in good.note and good.share_holds
    assert bench_cells(doubtful)["of the ceiling"] == "3.00 ? (3.00-3.00)"
    assert bench_cells(good)["of the ceiling"] == "1.05 (1.05-1.05)"


def test_a_training_has_no_shares_to_look_at():
    """Its processes disagree, and the warning says nothing of a ceiling."""
    found = training(4e-3)
    found.samples["step"][1] = 2 * found.samples["step"][0]
    group = replace(GROUP, implementations=(timeable("mxnet-stock"),))
    trained = {"mxnet-stock": [results.Trained(0.5)] * 2}
    result = results.training_result(group, {"mxnet-stock": found}, trained)
    (sentence,) = format_warnings(result.warnings)
    assert "processes disagree" in sentence and "shares" not in sentence


@pytest.mark.parametrize(
    ("name", "outcome", "failed"),
    [
        ("numpy-fused", Outcome.WRONG, True),
        ("numpy-fused", Outcome.FAILED, True),
        ("numpy-fused", Outcome.SKIPPED, False),
        ("kernel.py:step", Outcome.WRONG, True),
        ("torch", Outcome.WRONG, False),
    ],
)
def test_what_is_wrong_has_no_time(name, outcome, failed):
    """The row has the reason; a framework's failure is not for the user to fix."""
    found, problem = samples(), TimingProblem(outcome, "3 of 9 values")
    found.pop(name, None)
    group = replace(GROUP, implementations=(timeable("numpy"), timeable(name)))
    right, wrong = group_result(group, Timings(found, {name: problem}), {}).measurements
    assert (wrong.check_failed, wrong.problem) == (failed, problem)
    assert (wrong.row.median_s, wrong.row.note) == (None, f"{outcome.value}: 3 of 9 values")
    assert right.problem is None and not right.check_failed and right.row.median_s


def test_the_unfused_step_is_once_as_fast_as_itself():
    """A speed-up is against the unfused step of the same backend."""
    assert rows(samples())[0].speedup == pytest.approx(1)


def test_a_row_says_when_time_was_up():
    """Where the interval stays wider than was wanted, the note has its width."""
    found = samples()
    found["numpy-fused"] = [np.full(30, 2e-3), np.full(30, 3e-3)]
    row = rows(found)[1]
    assert "--max-time with +-20.0% (target 2.0%)" in row.note
    assert "processes disagree by 50%" in row.note


def training(step, update=1e-3):
    """Two processes that measured these seconds in every round."""
    parts = {"step": step, "update": update, "rest": step - update}
    return results.Timings({name: [np.full(30, each)] * 2 for name, each in parts.items()})


LOSSES = {"mxnet-stock": [0.5, 0.5], "mxnet-fused": [0.5, 0.5]}


@pytest.mark.parametrize("loss", [0.5, 0.25])
def test_a_training_is_compared_with_its_reference(loss):
    """By the loss, to the last digit; another one is wrong, though it has a time."""
    group = replace(GROUP, implementations=tuple(map(timeable, LOSSES)))
    found = {"mxnet-stock": training(4e-3), "mxnet-fused": training(2e-3)}
    losses = LOSSES | {"mxnet-fused": [0.5, loss]}
    trained = {name: list(map(results.Trained, each)) for name, each in losses.items()}
    stock, fused = results.training_result(group, found, trained).measurements
    assert (stock.row.speedup, fused.row.speedup) == (1.0, 2.0)
    assert fused.row.note.startswith(f"the update is 50% of it; loss {loss}, ")
    assert (fused.problem is None, fused.check_failed) == (loss == 0.5, loss != 0.5)
    assert ("wrong: " in fused.row.note) == fused.check_failed and not stock.check_failed
    recorded = RecordedTiming(**vars(fused.row))
    assert recorded.wrong == fused.check_failed


ON_TORCH = ("torch-foreach", "torch-compile", "torch-fused")


def trainings(**found):
    """Make the rows of trainings on PyTorch by optimizer, from what was found of each."""
    group = replace(GROUP, implementations=tuple(map(timeable, ON_TORCH)))
    each = {name.replace("_", "-"): timings for name, timings in found.items()}
    trained = {name: [results.Trained(0.5, 2.5e-7)] * 2 for name in ON_TORCH}
    made = results.training_result(group, each, trained).measurements
    return {measurement.row.implementation: measurement for measurement in made}


def test_a_training_on_pytorch_has_a_distance_and_the_rest():
    """The note has the weights' distance from the stock's, and what the step does to the rest."""
    rows = trainings(
        torch_foreach=training(4e-3), torch_compile=training(2e-3), torch_fused=training(1.6e-3)
    )
    assert rows["torch-fused"].row.speedup == 2.5
    note = rows["torch-fused"].row.note
    assert "the update is 62% of it" in note and "2.5e-07" in note and "torch-foreach" in note
    assert "forward and backward take 0.2 (0.2-0.2) times as long" in note
    assert "forward and backward" not in rows["torch-foreach"].row.note
    assert rows["torch-fused"].by_process["update_s"] == [1e-3, 1e-3]


@pytest.mark.parametrize("name", ON_TORCH)
def test_a_wrong_training_has_no_time(name):
    """Only this package's own makes the command fail; without the reference, no speed-up."""
    found = {each.replace("-", "_"): training(2e-3) for each in ON_TORCH}
    found[name.replace("-", "_")] = results.Timings({}, {name: ALL_WRONG})
    rows = trainings(**found)
    assert rows[name].row.median_s is None and rows[name].row.note == str(ALL_WRONG)
    assert [n for n in ON_TORCH if rows[n].check_failed] == ["torch-fused"] * (
        name == "torch-fused"
    )
    sped_up = {n for n in ON_TORCH if rows[n].row.speedup}
    assert sped_up == (set() if name == "torch-foreach" else {*ON_TORCH} - {name})


@pytest.mark.parametrize(("name", "fails"), [("torch-fused", True), ("torch-foreach", False)])
def test_a_wrong_step_of_this_package_fails_on_any_library(name, fails):
    """A user cannot fix a framework; this package's step on its tensors is another matter."""
    group = replace(GROUP, implementations=(timeable(name),))
    timings = results.Timings(samples(), {name: ALL_WRONG})
    (measurement,) = results.group_result(group, timings, {}).measurements
    assert measurement.check_failed == fails
