"""What `run` writes: history, summary, the plot of the loss."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from adadelta_cli.files import jsonable, write_bytes, write_csv, write_json, write_plot

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from rich.table import Table

    from adadelta_cli.run.config import Config
    from adadelta_cli.run.result import RunResult


FILES = ("history.csv", "summary.json", "config.yaml", "loss.png")


def write_run(folder: Path, result: RunResult, config: Config, *, plot: bool = True) -> None:
    """Write history.csv, summary.json, config.yaml and loss.png of a run."""
    write_csv(folder / "history.csv", [row.cells for row in result.history])
    write_json(folder / "summary.json", run_summary(result))
    head = f"# adadelta run {folder / 'config.yaml'} {_run_options(result)}\n"
    write_bytes(folder / "config.yaml", (head + config.to_yaml()).encode())
    if plot:
        write_plot(folder / "loss.png", run_figure(result))


def _run_options(result: RunResult) -> str:
    fused = "--fused" if result.fused else "--no-fused"
    ctx = "" if result.ctx == "cpu" else f"--ctx {result.ctx} "
    return f"{ctx}--backend {result.backend} --dtype {result.dtype} {fused} --seed {result.seed}"


def run_summary(result: RunResult) -> dict[str, Any]:
    """Arrange a result for summary.json and `--json`: all but the history, of which the ends."""
    summary = {
        key: value for key, value in jsonable(result).items() if key not in {"history", "labels"}
    }
    summary["checks"] = [jsonable(each) | {"passed": each.passed} for each in result.checks]
    ends = {"start": result.history[0], "end": result.history[-1]}
    return summary | {key: jsonable(row.cells) for key, row in ends.items()}


VERDICTS = {
    "passed": "[green]passed[/]",
    "missed": "[red]missed[/]",
    "diverged": "[red]diverged[/]",
    "interrupted": "[yellow]interrupted[/]",
}


RUN_COLUMNS = (
    "config",
    "steps",
    "time",
    "metric",
    "at the start",
    "at the end",
    "expected",
    "verdict",
)


def run_table(results: Sequence[RunResult]) -> Table:
    """Lay out what came of each run, one row a metric."""
    from rich.box import SIMPLE_HEAD
    from rich.markup import escape
    from rich.table import Table

    table = Table(title="adadelta run: does it train?", title_justify="left", box=SIMPLE_HEAD)
    numeric = {"steps", "time", "at the start", "at the end"}
    for name in RUN_COLUMNS:
        table.add_column(name, justify="right" if name in numeric else "left", no_wrap=True)
    for result in results:
        start, end = result.history[0].cells, result.history[-1].cells
        for i, metric in enumerate(result.labels):
            facts = (escape(result.name), f"{result.steps:,}", f"{result.seconds:.1f} s")
            head = facts if i == 0 else ("", "", "")
            wanted, verdict = _expected(result, metric)
            cells = (*head, metric, f"{start[metric]:.4g}", f"{end[metric]:.4g}", wanted)
            if i == 0 and (result.outcome.value == "diverged" or not result.checks):
                verdict = VERDICTS[result.outcome.value]
            table.add_row(*cells, verdict, end_section=i == len(result.labels) - 1)
    return table


def _expected(result: RunResult, metric: str) -> tuple[str, str]:
    """Write what a config expects of a metric, and whether it held."""
    checks = [check for check in result.checks if check.metric == metric]
    sides = {"max": "at most", "min": "at least"}
    wanted = ", ".join(f"{sides[check.side]} {check.bound:.4g}" for check in checks)
    if not checks:
        return "", ""
    return wanted, VERDICTS["passed" if all(each.passed for each in checks) else "missed"]


def run_remarks(results: Sequence[RunResult], out: Path) -> list[str]:
    """Say in sentences what went wrong, and where the files are."""
    remarks = []
    for result in results:
        end = result.history[-1]
        if result.outcome.value == "diverged":
            before = result.history[-2:][0].step
            remarks.append(
                f"{result.name} diverged between the steps {before} and {end.step}: its loss is "
                f"{end.loss}, which is no finite number. Try a smaller optimizer.learning_rate or "
                "epsilon, or set optimizer.clip_gradient"
            )
            continue
        remarks += [
            f"{result.name} missed {check.side}_{check.metric}: wanted {check.bound:.6g}, got "
            f"{check.got:.6g}"
            for check in result.checks
            if not check.passed
        ]
    names = ",".join(result.name for result in results)
    folder = out / (f"{{{names}}}" if len(results) > 1 else names)
    return [*remarks, f"Files: {folder}/history.csv, summary.json, config.yaml, loss.png"]


LARGEST_DRAWN = 1e150  # Matplotlib cannot lay out an axis that reaches the largest numbers
SHARES = {"accuracy"}  # between 0 and 1, where a logarithm would hide the end that matters


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
    step = "fused" if result.fused else "unfused"
    figure.suptitle(f"{result.name}: AdaDelta, {step} step, {result.backend}, {result.dtype}")
    return figure


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
            side = "at most" if check.side == "max" else "at least"
            label = f"expected: {side} {check.bound:.4g}"
            panel.axhline(check.bound, color="C3", ls=":", label=label)
