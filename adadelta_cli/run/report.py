"""Write the files of `run`: history, summary, config, plot."""

from __future__ import annotations

import math
import os
import shlex
from typing import TYPE_CHECKING, Any

from adadelta_cli.errors import shortened
from adadelta_cli.files import (
    jsonable,
    plottable,
    to_utf8,
    write_bytes,
    write_csv,
    write_json,
    write_plot,
)
from adadelta_cli.implementations.optimizers import ADADELTA
from adadelta_cli.markdown import markdown_table
from adadelta_cli.run.result import RunOutcome

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from rich.table import Table

    from adadelta_cli.run.config import Config
    from adadelta_cli.run.gradient_check import GradientRow
    from adadelta_cli.run.result import Expectation, RunResult

FILES = ("history.csv", "summary.json", "config.yaml", "loss.png")
COMPARISON = ("comparison.png", "comparison.csv")  # of several runs
MOST_LISTED = 4  # names of runs in a remark


def write_run(
    folder: Path, result: RunResult, config: Config, *, plot: bool = True, named: Path | None = None
) -> None:
    """Write history.csv, summary.json, config.yaml and loss.png of a run.

    Args:
        folder: gets the files.
        result: of the run.
        config: what was trained.
        plot: draw loss.png.
        named: the config's path in the command that repeats the run, if it will be moved.
    """
    write_csv(folder / "history.csv", [row.cells for row in result.history])
    write_json(folder / "summary.json", run_summary(result))
    launch = f"launch --workers {result.workers} -- " if result.update_on else ""
    path = _quoted(named or folder / "config.yaml")
    head = f"# adadelta {launch}run {path} {_run_options(result)}\n"
    write_bytes(folder / "config.yaml", to_utf8(head + config.to_yaml()))
    if plot:
        write_plot(folder / "loss.png", run_figure(result))


def _quoted(path: Path) -> str:
    """Quote a path for a shell; in bash's $'...' if a character is not printable."""
    text = str(path)
    if text.isprintable():
        return shlex.quote(text)
    return "$'" + "".join(f"\\x{byte:02x}" for byte in os.fsencode(text)) + "'"


def _run_options(result: RunResult) -> str:
    fused = "--fused" if result.fused else "--no-fused"
    ctx = "" if result.ctx == "cpu" else f"--ctx {result.ctx} "
    shared = f"--kvstore dist_sync --update-on {result.update_on} " if result.update_on else ""
    how = f"--dtype {result.dtype} {fused} --seed {result.seed}"
    return f"{ctx}{shared}--backend {result.backend} {how}"


def run_summary(result: RunResult) -> dict[str, Any]:
    """Return the document of summary.json and `--json`: of the history, the first and last row."""
    summary = {
        key: value for key, value in jsonable(result).items() if key not in {"history", "labels"}
    }
    summary["checks"] = [jsonable(each) | {"passed": each.passed} for each in result.checks]
    ends = {"start": result.history[0], "end": result.history[-1]}
    return summary | {key: jsonable(row.cells) for key, row in ends.items()}


COLORS = {
    RunOutcome.PASSED: "green",
    RunOutcome.FINISHED: "default",
    RunOutcome.MISSED: "red",
    RunOutcome.DIVERGED: "red",
    RunOutcome.INTERRUPTED: "yellow",
}
NUMERIC = {"steps", "time", "start", "end"}
RANKS = {"time": 3, "start": 2, "steps": 1}  # a narrow terminal drops these, the highest first
RUN_COLUMNS = ("config", "steps", "time", "metric", "start", "end", "expected", "verdict")


def run_cells(result: RunResult) -> list[dict[str, str]]:
    """Write a result as a person reads it: a row for each metric, its cells by heading."""
    start, end = result.history[0].cells, result.history[-1].cells
    head = result.name, f"{result.steps:,}", f"{result.seconds:.1f} s"
    rows = []
    for k, metric in enumerate(result.labels):
        checks = [check for check in result.checks if check.metric == metric]
        nothing = "nothing" if k == 0 and not result.checks else ""
        expected = nothing or ", ".join(check.words for check in checks)
        values = (metric, f"{start[metric]:.4g}", f"{end[metric]:.4g}", expected)
        cells = (*(("", "", "") if k else head), *values, _verdict(result, checks, first=k == 0))
        rows.append(dict(zip(RUN_COLUMNS, cells, strict=True)))
    return rows


def run_table(results: Sequence[RunResult]) -> Table:
    """Lay out the results for a terminal, one row a metric."""
    from adadelta_cli.tables import fitting_table

    return fitting_table(
        "adadelta run: does it train?",
        RUN_COLUMNS,
        map(run_cells, results),
        right=NUMERIC,
        ranks=RANKS,
        styles={outcome.value: color for outcome, color in COLORS.items()},
    )


def run_markdown(results: Sequence[RunResult]) -> str:
    """Lay out the results as one Markdown table."""
    return markdown_table([row for result in results for row in run_cells(result)], {"verdict"})


GRADIENT_COLUMNS = (
    *("config", "tensor", "elements", "compared", "worst", "gradient", "difference", "error"),
    *("allowed", "verdict"),
)
GRADIENT_RANKS = {"elements": 4, "compared": 3, "worst": 2, "allowed": 1}


def gradient_cells(row: GradientRow) -> dict[str, str]:
    """Write a tensor's row as a person reads it: its cells by heading."""
    numbers = (row.gradient, row.difference, row.error, row.allowed)
    verdict = "passed" if row.passed else "FAILED"
    cells = (
        row.name,
        row.tensor,
        f"{row.elements:,}",
        f"{row.compared}",
        ", ".join(map(str, row.index)),
        *("" if each is None else f"{each:.4g}" for each in numbers),
        verdict if row.compared else "nothing to compare",
    )
    return dict(zip(GRADIENT_COLUMNS, cells, strict=True))


def gradient_table(rows: Sequence[GradientRow]) -> Table:
    """Lay out a check of gradients for a terminal, one row a tensor."""
    from adadelta_cli.tables import fitting_table

    return fitting_table(
        "adadelta run --check-gradient: is it the slope of the loss?",
        GRADIENT_COLUMNS,
        [map(gradient_cells, rows)],
        right={*GRADIENT_COLUMNS} - {"config", "tensor", "worst", "verdict"},
        ranks=GRADIENT_RANKS,
        styles={"passed": "green", "FAILED": "red", "nothing to compare": "red"},
    )


def gradient_markdown(rows: Sequence[GradientRow]) -> str:
    """Lay out a check of gradients as a Markdown table."""
    return markdown_table(list(map(gradient_cells, rows)), {"verdict"})


def gradient_remarks(rows: Sequence[GradientRow]) -> list[str]:
    """Explain each failure of a check of gradients."""
    remarks = []
    for row in rows:
        where = f"{row.name}: the gradient of {row.tensor}"
        if row.kinks:
            remarks.append(
                f"{where} was not compared at {row.kinks} elements, where the loss is not smooth"
            )
        if row.compared and not row.passed:
            remarks.append(
                f"{where} at {list(row.index)} is {row.gradient:.10g}; the loss rises by "
                f"{row.difference:.10g}. Correct the formulas of gradient, or the loss"
            )
    return remarks


def _verdict(result: RunResult, checks: Sequence[Expectation], *, first: bool) -> str:
    """Return the verdict on a metric; the first row has that of the run where no check has one."""
    if first and (result.outcome is RunOutcome.DIVERGED or not result.checks):
        outcome = result.outcome
    elif checks:
        passed = all(check.passed for check in checks)
        outcome = RunOutcome.PASSED if passed else RunOutcome.MISSED
    else:
        return ""
    return outcome.value


def run_remarks(results: Sequence[RunResult], out: Path) -> list[str]:
    """Explain each failure, and say where the files are."""
    remarks = [line for result in results for line in _failures(result)]
    names = [result.name for result in results]
    if len(names) == 1:
        return [*remarks, f"Files: {out / names[0]}/{', '.join(FILES)}"]
    listed = f"{{{','.join(names)}}}" if len(names) <= MOST_LISTED else "*"
    every = f"{out}/{listed}/{', '.join(FILES)}"
    return [*remarks, f"Files: {every}; {out}/{', '.join(COMPARISON)}"]


def _failures(result: RunResult) -> list[str]:
    end = result.history[-1]
    if result.outcome is RunOutcome.DIVERGED:
        steps = f"{result.history[-2:][0].step} and {end.step}"
        smaller = "learning_rate or epsilon" if result.optimizer == ADADELTA else "learning_rate"
        remedy = f"a smaller optimizer.{smaller}, or set optimizer.clip_gradient"
        what = f"{result.name} diverged between the steps {steps}: its loss is {end.loss}"
        return [f"{what}, which is not finite. Try {remedy}"]
    return [
        f"{result.name} missed {check.side.value}_{check.metric}: wanted {check.bound:.6g}, got "
        f"{check.got:.6g}"
        for check in result.checks
        if not check.passed
    ]


LARGEST_DRAWN = 1e150  # Matplotlib cannot lay out an axis up to the largest float64
SHARES = {"accuracy"}  # drawn on a linear axis: a logarithm would hide what happens near 1


def run_figure(result: RunResult) -> Figure:
    """Plot the loss and the problem's metrics over the steps, with optimum and expectations."""
    from matplotlib.figure import Figure

    labels = result.labels
    figure = Figure(figsize=(8, 2.6 * len(labels) + 0.6), layout="constrained")
    panels = figure.subplots(len(labels), sharex=True, squeeze=False)[:, 0]
    for panel, (metric, label) in zip(panels, labels.items(), strict=True):
        _plot_metric(panel, result, metric)
        panel.set_ylabel(label.replace(" (", "\n("))
        panel.grid(alpha=0.3)
        panel.margins(x=0.01)
        if panel.get_legend_handles_labels()[0]:
            panel.legend(loc="best", framealpha=0.9)
    panels[-1].set_xlabel("step")
    how = f"{_optimizer(result)}, {result.backend}, {result.dtype}"
    title = f"{shortened(result.name, 60)}: {how}"
    figure.suptitle(plottable(title))
    return figure


TITLES = {
    ADADELTA: "AdaDelta",
    "sgd": "SGD",
    "momentum": "SGD with momentum",
    "nesterov": "Nesterov's momentum",
    "adagrad": "AdaGrad",
    "rmsprop": "RMSProp",
    "adam": "Adam",
}


def _optimizer(result: RunResult) -> str:
    """Name the optimizer; of AdaDelta, also the step."""
    step = f", {'fused' if result.fused else 'unfused'} step"
    return TITLES[result.optimizer] + (step if result.optimizer == ADADELTA else "")


def _plot_metric(panel: Axes, result: RunResult, metric: str) -> None:
    cells = [row.cells for row in result.history]
    values = [row[metric] if abs(row[metric]) < LARGEST_DRAWN else math.nan for row in cells]
    panel.plot([row["step"] for row in cells], values, color="C0", linewidth=1.2)
    finite = [value for value in values if math.isfinite(value)]
    spread = finite and min(finite) > 1 / LARGEST_DRAWN and max(finite) > 10 * min(finite)
    if spread and metric not in SHARES:
        panel.set_yscale("log")
    if metric == "loss" and result.optimum:
        panel.axhline(result.optimum, color="C2", ls="--", label=f"optimum {result.optimum:.6g}")
    for check in result.checks:
        if check.metric == metric:
            panel.axhline(check.bound, color="C3", ls=":", label=f"expected: {check.words}")
