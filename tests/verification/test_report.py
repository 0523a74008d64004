"""What verify writes is readable: JSON types, decimals, hyper-parameters, ticks."""

from __future__ import annotations

import io
import json
import re
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import KERNEL_NAMES, plan_of
from matplotlib.figure import Figure
from rich.console import Console

from adadelta_cli.files import jsonable, plottable, write_plot
from adadelta_cli.verification import catalogue, report, runner, ulp
from adadelta_cli.verification.rows import ComparisonRow, DriftTrace, TrainingTrace


def test_the_document_holds_no_notation_of_python():
    """No set, no class: JSON types only, of each part of the plan."""
    work = runner.Verification(plan_of(["numpy-fused"], tuple(catalogue.select(("odd",)))))
    text = json.dumps(report.verification_document(work, rows=True))
    assert not re.search(r"frozenset|set\(|\w\(|<|object at", text), text
    assert json.loads(text)["plan"]["cases"] == ["odd"]


def test_a_set_becomes_a_sorted_list_and_a_number_of_numpy_a_number():
    """Of both, JSON knows nothing."""
    assert jsonable({"a": frozenset("cab"), "b": np.float32(0.5), "c": np.int64(3)}) == {
        "a": ["a", "b", "c"],
        "b": 0.5,
        "c": 3,
    }


def failing(**more):
    """Return a row of a case that failed."""
    row = ComparisonRow(
        "oracle", "odd", "k.py:f", "oracle", "numpy", "cpu", "float32", "weight", 7, 5, mismatches=1
    )
    usual = {"passed": False, "note": "worst at step 1", "allowed_ulp": 1.0}
    return replace(row, **usual | more)


def test_a_failure_names_the_hyper_parameters_of_its_case():
    """As decimals, beside the command that repeats it."""
    work = SimpleNamespace(failures=[failing()])
    (line,) = report.verification_failures(work, 10)
    for part in ("learning_rate", "rho 0.9", "epsilon", "wd", "rescale_grad", "clip_gradient"):
        assert part in line, line


def test_the_most_telling_failures_come_first():
    """The shrunk case, then a line for each case, of a step if one failed, then the rest."""
    drawn = "drawn:shapes=scalar,draw=27,clip_gradient=0.0"
    rows = [
        failing(check=check, case=case, dtype=dtype, tensor=tensor)
        for dtype in ("float32", "float64")
        for case in ("odd", "special")
        for check in ("oracle", "drift", "step")
        for tensor in ("weight", "acc_grad")
    ]
    rows += [failing(check="oracle", case="length-7")]
    rows += [failing(check="drawn", case=drawn, tensor=name) for name in ("weight", "acc_grad")]
    lines = report.verification_failures(SimpleNamespace(failures=rows), 5)
    assert [line.split(" k.py")[0] for line in lines] == [
        f"FAILED drawn {drawn} float32",
        "FAILED step odd float32",
        "FAILED step special float32",
        "FAILED oracle length-7 float32",
        "FAILED oracle odd float32",
        f"... and {len(rows) - 5} more, in verify.csv",
    ]
    ordered = report.most_telling(rows)
    assert sorted(map(id, ordered)) == sorted(map(id, rows))
    assert ordered[0].tensor == ordered[1].tensor == "weight"


def test_a_number_is_written_exactly_and_as_a_decimal():
    """Hexadecimal to repeat it, decimal to read it."""
    assert ulp.written(np.float32(0.1)) == "0x1.99999a0000000p-4 (0.100000001)"


@pytest.mark.parametrize("worst", [0.0, 0.5, 3.0, 1e6, 1e24, 1e300])
def test_the_ticks_of_errors_do_not_overlap(worst):
    """At most ten, and the largest error lies among them."""
    figure = Figure(figsize=(9, 4))
    report._plot_errors([failing(scaled_ulp=worst)], figure)
    ticks = figure.axes[0].get_yticks()
    assert 2 <= len(ticks) <= 11 and len(figure.axes[0].get_yticks(minor=True)) == 0


@pytest.mark.filterwarnings("ignore:constrained_layout not applied")  # of a very long name
@pytest.mark.parametrize("name", KERNEL_NAMES, ids=ascii)
def test_a_kernel_of_any_name_is_drawn(tmp_path, name):
    """In all panels; a `$` begins no formula."""
    rows = [
        failing(implementation=name, scaled_ulp=3.0),
        failing(implementation=name, check="step"),
    ]
    rows += [failing(implementation=name, check="step", passed=None, note=name, case=name)]
    drift = DriftTrace("odd", name, "float32", "weight", (0.1, 0.2))
    trace = TrainingTrace(name, "numpy", "float32", [(0, 1.0)], [(0, 1.0)])
    work = SimpleNamespace(rows=rows, drifts=[drift], traces=[trace], unfinished="")
    figure = report.verification_figure(work)
    write_plot(tmp_path / "verify.png", figure)
    assert (tmp_path / "verify.png").stat().st_size > 10_000
    titles = " ".join(axes.get_title() for axes in figure.axes)
    assert plottable(name) in titles and "\x1b" not in titles


def test_a_failure_has_its_error_its_bound_and_its_values():
    """Of a kernel that is off by far: each check with a bound names error, bound, got, expected."""
    work = SimpleNamespace(failures=[failing(scaled_ulp=1234.0, allowed_ulp=60.0)])
    (line,) = report.verification_failures(work, 10)
    assert "1234 ULPs, allowed 60" in line
    work.failures = [failing(allowed_ulp=0.0, scaled_ulp=3.0), failing(scaled_ulp=0.5)]
    assert "allowed" not in "".join(report.verification_failures(work, 10))


def test_a_narrow_table_drops_the_numbers_first():
    """Last of all what they were compared with; the bounds are a range."""
    rows = [failing(case=name, scaled_ulp=7.0, max_ulp=7.0) for name in ("odd", "long")]
    rows += [failing(tensor="acc_grad", allowed_ulp=16.0, scaled_ulp=2.0)]
    lost = []
    for width in range(120, 20, -1):
        console = Console(width=width, file=io.StringIO())
        console.print(report.verification_table(SimpleNamespace(rows=rows, unfinished="")))
        text = console.file.getvalue()
        lost += re.findall(r"not shown in .*: (.*)", text)
        assert "bitwise" not in text and (lost or "1-16" in text)
    assert lost[0] == "numbers" and all("numbers" in each for each in lost)
    assert all("against" not in each or "bound" in each for each in lost)


def test_the_errors_against_each_reference_have_a_panel():
    """With the bounds in its legend; the drift shown is the largest, or a zero that says so."""
    rows = [failing(scaled_ulp=3.0), failing(check="step", reference="numpy", scaled_ulp=2.0)]
    steps = {"odd": [0.1, 0.2], "long": [0.0] * 9}
    drifts = [DriftTrace("k.py:f", name, "float32", "weight", each) for name, each in steps.items()]
    work = SimpleNamespace(rows=rows, drifts=drifts, traces=[], unfinished="1 of 9 checks ran")
    axes = report.verification_figure(work).axes
    titles = [each.get_title() for each in axes]
    assert sum("against numpy" in title for title in titles) == 1
    assert sum("against oracle" in title for title in titles) == 1
    assert any("drift of k.py:f: odd" in title for title in titles)
    assert "weight: allowed 1" in axes[1].get_legend_handles_labels()[1]
    work.rows = [*rows, failing(dtype="float16", scaled_ulp=0.5, allowed_ulp=9.0)]
    labels = report.verification_figure(work).axes[1].get_legend_handles_labels()[1]
    assert {"weight float32: allowed 1", "weight float16: allowed 9"} <= {*labels}
    work.drifts = drifts[1:]
    texts = [
        text.get_text() for each in report.verification_figure(work).axes for text in each.texts
    ]
    assert any(text.startswith("0: ") for text in texts)
