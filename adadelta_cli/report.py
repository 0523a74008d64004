"""Rows to CSV, JSON, tables and plots. Nothing is computed here; nothing is formatted elsewhere."""

from __future__ import annotations

import math
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from adadelta_cli.files import jsonable, write_bytes, write_csv, write_json, write_plot
from adadelta_cli.verification import Row, summaries

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from rich.table import Table

    from adadelta_cli import selftest
    from adadelta_cli.config import Config
    from adadelta_cli.training import Result
    from adadelta_cli.verification import Drift, Summary, Trace, Verification


# --- run: history, summary, loss plot -------------------------------------------------------------


def write_run(folder: Path, result: Result, config: Config, *, plot: bool = True) -> None:
    """Write history.csv, summary.json, config.yaml and loss.png of a run."""
    write_csv(folder / "history.csv", [row.cells for row in result.history])
    write_json(folder / "summary.json", run_summary(result))
    head = f"# adadelta run {folder / 'config.yaml'} {_run_options(result)}\n"
    write_bytes(folder / "config.yaml", (head + config.to_yaml()).encode())
    if plot:
        write_plot(folder / "loss.png", run_figure(result))


def _run_options(result: Result) -> str:
    fused = "--fused" if result.fused else "--no-fused"
    return f"--backend {result.backend} --dtype {result.dtype} {fused} --seed {result.seed}"


def run_summary(result: Result) -> dict[str, Any]:
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


def run_table(results: Sequence[Result]) -> Table:
    """Lay out what came of each run, one row a metric."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(title="adadelta run: does it train?", title_justify="left", box=SIMPLE_HEAD)
    numeric = {"steps", "time", "at the start", "at the end"}
    for name in RUN_COLUMNS:
        table.add_column(name, justify="right" if name in numeric else "left", no_wrap=True)
    for result in results:
        start, end = result.history[0].cells, result.history[-1].cells
        for i, metric in enumerate(result.labels):
            facts = (result.name, f"{result.steps:,}", f"{result.seconds:.1f} s")
            head = facts if i == 0 else ("", "", "")
            wanted, verdict = _expected(result, metric)
            cells = (*head, metric, f"{start[metric]:.4g}", f"{end[metric]:.4g}", wanted)
            if i == 0 and (result.outcome.value == "diverged" or not result.checks):
                verdict = VERDICTS[result.outcome.value]
            table.add_row(*cells, verdict, end_section=i == len(result.labels) - 1)
    return table


def _expected(result: Result, metric: str) -> tuple[str, str]:
    """Write what a config expects of a metric, and whether it held."""
    checks = [check for check in result.checks if check.metric == metric]
    sides = {"max": "at most", "min": "at least"}
    wanted = ", ".join(f"{sides[check.side]} {check.bound:.4g}" for check in checks)
    if not checks:
        return "", ""
    return wanted, VERDICTS["passed" if all(each.passed for each in checks) else "missed"]


def run_remarks(results: Sequence[Result], out: Path) -> list[str]:
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


SHARES = {"accuracy"}  # between 0 and 1, where a logarithm would hide the end that matters


def run_figure(result: Result) -> Figure:
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


def _plot_metric(panel: Axes, result: Result, metric: str) -> None:
    cells = [row.cells for row in result.history]
    values = [row[metric] for row in cells]
    panel.plot([row["step"] for row in cells], values, color="C0", linewidth=1.2)
    finite = [value for value in values if math.isfinite(value)]
    spread = finite and min(finite) > 0 and max(finite) > 10 * min(finite)
    if spread and metric not in SHARES:
        panel.set_yscale("log")
    if metric == "loss" and result.optimum:
        panel.axhline(result.optimum, color="C2", ls="--", label=f"optimum {result.optimum:.6g}")
    for check in result.checks:
        if check.metric == metric:
            side = "at most" if check.side == "max" else "at least"
            label = f"expected: {side} {check.bound:.4g}"
            panel.axhline(check.bound, color="C3", ls=":", label=label)


# --- verify ---------------------------------------------------------------------------------------

CHECKS = {
    "step": "synthetic steps",
    "training": "trainings",
    "gradient": "gradient kept",
    "replay": "recorded steps",
    "oracle": "single steps",
    "drift": "trajectories",
    "drawn": "drawn cases",
    "guard": "guard zones",
    "repeat": "run again",
    "saved": "saved states",
}
COUNTED = {"gradient", "guard", "repeat", "saved"}  # the checks that have no distances
DRAWN = {"step", "training", "replay"}  # the checks that the picture shows


def write_verification(folder: Path, verification: Verification, *, plot: bool = True) -> None:
    """Write verify.csv, verify.json and verify.png."""
    columns = [field.name for field in fields(Row)]
    write_csv(folder / "verify.csv", verification.rows, columns)
    write_json(folder / "verify.json", verification_document(verification, rows=True))
    if plot and any(row.passed is not None for row in verification.rows):
        write_plot(folder / "verify.png", verification_figure(verification))


def verification_document(verification: Verification, *, rows: bool = False) -> dict[str, Any]:
    """Arrange a verification for verify.json (with all rows) or `--json` (with the failures)."""
    chosen = verification.rows if rows else verification.failures
    plan = vars(verification.plan) | {"cases": [case.name for case in verification.plan.cases]}
    document = {
        "passed": not verification.failures,
        "plan": plan,
        "summaries": summaries(verification.rows),
        "rows" if rows else "failures": [vars(row) | {"replay": row.replay} for row in chosen],
    }
    return jsonable(document)


def verification_table(verification: Verification) -> Table:
    """Lay out the verdicts, one row for each check of each implementation."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(
        title="adadelta verify: do the bits agree?", title_justify="left",
        caption="cases: each in every dtype (n/a: not put there)   numbers: over all steps"
        "\nULP: largest error in units in the last place of the largest operand",
        caption_justify="left", box=SIMPLE_HEAD,
    )  # fmt: skip
    for name in ("implementation", "against", "over", "cases", "numbers", "differ", "ULP",
                 "verdict"):  # fmt: skip
        right = name in {"cases", "numbers", "differ", "ULP"}
        table.add_column(name, justify="right" if right else "left", no_wrap=True)
    before = ""
    for each in summaries(verification.rows):
        table.add_row(
            each.implementation if each.implementation != before else "",
            each.reference, CHECKS[each.check], _case_count(each), f"{each.elements:,}",
            f"{each.mismatches:,}", f"{each.scaled_ulp:.2g}" if each.check not in COUNTED else "",
            _verdict(each),
        )  # fmt: skip
        before = each.implementation
    return table


def _verdict(summary: Summary) -> str:
    if summary.failed:
        return f"[red]{summary.failed} FAILED[/]"
    if summary.skipped == summary.cases:
        return "skipped"
    return "[green]passed[/]" if summary.bounded else "reported"


def _case_count(summary: Summary) -> str:
    skipped = f" ({summary.skipped} n/a)" if summary.skipped else ""
    return f"{summary.cases - summary.skipped}{skipped}"


def verification_failures(verification: Verification, most: int) -> list[str]:
    """Describe each failure with the command that repeats it, the first `most` of them."""
    lines = [
        f"FAILED {row.check} {row.case} {row.dtype} {row.implementation} {row.tensor}: "
        + (f"{row.mismatches:,} of {row.elements:,} differ; " if row.mismatches else "")
        + f"{row.note}\n  repeat it: {row.replay}"
        for row in verification.failures
    ]
    more = len(lines) - most
    return lines[:most] + ([f"... and {more} more, in verify.csv"] if more > 0 else [])


def verification_figure(verification: Verification) -> Figure:
    """Draw the verdict on each case, errors and drift of what may have some, and the trainings."""
    from matplotlib.figure import Figure

    rows = [row for row in verification.rows if row.check in DRAWN and row.reference != "oracle"]
    cases = list(dict.fromkeys((row.check, row.case) for row in rows))
    lines = list(dict.fromkeys((row.implementation, row.dtype) for row in rows))
    panels: list[tuple[float, Callable[[Any], None]]] = []
    if rows:
        height = 2.2 + 0.24 * len(lines)
        panels.append((height, lambda part: _plot_verdicts(part.subplots(), rows, cases, lines)))
    bounded = [row for row in verification.rows if row.allowed_ulp and row.check != "drift"]
    errors = [row for row in bounded if row.scaled_ulp is not None]
    for name in dict.fromkeys(row.implementation for row in errors):
        own = [row for row in errors if row.implementation == name]
        panels.append((4.0, lambda part, own=own: _plot_errors(part.subplots(), own)))  # type: ignore[misc]
    drifts = _longest(verification.drifts)
    if drifts:
        panels.append((3.4, lambda part: _plot_drifts(part, drifts)))
    traces = _traces(verification)
    if traces:
        panels.append((3.4, lambda part: _plot_traces(part, traces)))
    heights = [height for height, _ in panels] or [2.2]
    width = max(9.0, 3.0 + 0.24 * max(len(cases), len({row.case for row in errors})))
    figure = Figure(figsize=(width, sum(heights)), layout="constrained")
    parts = figure.subfigures(len(heights), 1, squeeze=False, height_ratios=heights)[:, 0]
    for part, (_, draw) in zip(parts, panels, strict=False):
        draw(part)
    return figure


def _traces(verification: Verification) -> list[Trace]:
    """Choose one training of each problem, the longest."""
    traces = [trace for trace in verification.traces if trace.dtype == "float32"]
    longest = sorted(traces, key=lambda trace: len(trace.fused))
    return list({trace.problem: trace for trace in longest}.values())


def _longest(drifts: Sequence[Drift]) -> list[Drift]:
    """Choose the case of the most steps of each implementation and tensor, in its first dtype."""
    dtype = {d.implementation: d.dtype for d in reversed(drifts)}
    some = [d for d in drifts if d.dtype == dtype[d.implementation] and len(d.relative_l2) > 1]
    ordered = sorted(some, key=lambda d: len(d.relative_l2))
    return list({(d.implementation, d.tensor): d for d in ordered}.values())


TENSOR_COLORS = {"weight": "C0", "acc_grad": "C1", "acc_delta": "C2", "master": "C3"}
DTYPE_MARKS = {"float32": "o", "float64": "x", "float16": "^"}


def _plot_errors(panel: Axes, rows: Sequence[Row]) -> None:
    """Draw each tensor's largest error by case, and its bound."""
    cases = list(dict.fromkeys(row.case for row in rows))
    for k, (tensor, color) in enumerate(TENSOR_COLORS.items()):
        own = [row for row in rows if row.tensor == tensor]
        for dtype, mark in DTYPE_MARKS.items():
            points = [
                (cases.index(row.case) + k / 5, row.scaled_ulp) for row in own if row.dtype == dtype
            ]
            if points:
                label = f"{tensor} {dtype}"
                xs, ys = zip(*points, strict=True)
                panel.scatter(xs, ys, s=14, color=color, marker=mark, label=label, alpha=0.8)
        for bound in sorted({row.allowed_ulp or 0.0 for row in own}):
            panel.axhline(bound, color=color, linestyle=":", linewidth=1)
    panel.set_yscale("symlog", linthresh=1)
    panel.set_ylim(bottom=0)
    panel.set_xlim(-1, len(cases))
    panel.set_xticks(range(len(cases)), cases, rotation=90, fontsize=8)
    panel.set_ylabel("error in ULPs")
    panel.set_title(
        f"{rows[0].implementation}: largest error of one step against {rows[0].reference}, in ULPs "
        "of the largest operand\ndotted: the bound of each tensor", fontsize=10,
    )  # fmt: skip
    panel.grid(alpha=0.3)
    panel.legend(fontsize=7, loc="center left", bbox_to_anchor=(1.0, 0.5))


def _plot_drifts(part: Any, drifts: Sequence[Drift]) -> None:
    """Draw how the errors of all steps add up, a panel for each implementation."""
    names = list(dict.fromkeys(drift.implementation for drift in drifts))
    for panel, name in zip(part.subplots(1, len(names), squeeze=False)[0], names, strict=True):
        for drift in (each for each in drifts if each.implementation == name):
            steps = range(1, len(drift.relative_l2) + 1)
            color = TENSOR_COLORS[drift.tensor]
            panel.plot(steps, drift.relative_l2, color=color, label=drift.tensor)
        panel.set_title(f"drift of {name}: {drift.case}, {drift.dtype}", fontsize=10)
        panel.set_xlabel("step")
        panel.set_ylabel("relative 2-norm of the error")
        panel.set_ylim(bottom=0)
        panel.grid(alpha=0.3)
        panel.legend(fontsize=8)


def _plot_traces(part: Any, traces: Sequence[Trace]) -> None:
    panels = part.subplots(1, len(traces), squeeze=False)[0]
    for panel, trace in zip(panels, traces, strict=True):
        _plot_trace(panel, trace)


def _plot_verdicts(
    panel: Axes, rows: Sequence[Row], cases: list[tuple[str, str]], lines: list[tuple[str, str]]
) -> None:
    """Draw a square for each case and implementation: green, red with the largest ULP, or none."""
    from matplotlib.colors import ListedColormap

    verdicts = [[float("nan")] * len(cases) for _ in lines]
    for row in rows:
        if row.passed is None:
            continue
        y, x = lines.index((row.implementation, row.dtype)), cases.index((row.check, row.case))
        verdicts[y][x] = min(verdicts[y][x], float(row.passed)) if verdicts[y][x] == 0 else float(
            row.passed)  # fmt: skip
        if not row.passed:
            panel.text(x, y, "x", ha="center", va="center", color="white", fontsize=8)
    panel.imshow(verdicts, cmap=ListedColormap(["#c62828", "#66bb6a"]), vmin=0, vmax=1,
                 aspect="auto")  # fmt: skip
    panel.set_xticks(range(len(cases)), [case for _, case in cases], rotation=90, fontsize=8)
    panel.set_yticks(range(len(lines)), [f"{name}  {dtype}" for name, dtype in lines], fontsize=8)
    panel.set_xticks([x - 0.5 for x in range(1, len(cases))], minor=True)
    panel.set_yticks([y - 0.5 for y in range(1, len(lines))], minor=True)
    panel.grid(which="minor", color="white", linewidth=1)
    panel.tick_params(which="both", length=0)
    differing = sum(row.mismatches or 0 for row in rows)
    compared = sum(row.elements for row in rows)
    panel.set_title(
        f"{differing:,} of {compared:,} numbers differ from the reference in a bit\n"
        "green: all bits equal, or within the bounds of what is not ours   red: not so   "
        "white: not put there", fontsize=10,
    )  # fmt: skip


def _plot_trace(panel: Axes, trace: Trace) -> None:
    for losses, label, color, width in (
        (trace.unfused, "unfused step", "#ffcc99", 5.0),
        (trace.fused, "fused step", "C0", 1.2),
    ):
        panel.plot(*zip(*losses, strict=True), label=label, color=color, linewidth=width)
    panel.set_yscale("log")
    panel.set_title(f"{trace.problem} ({trace.backend}, {trace.dtype})", fontsize=10)
    panel.set_xlabel("step")
    panel.set_ylabel("training loss")
    panel.grid(alpha=0.3)
    panel.legend()


# --- verify --self-test ---------------------------------------------------------------------------

SELF_TEST_PAGE = """# Planted faults

`adadelta verify --self-test` plants each of these mistakes into the one source that it belongs to,
the array update or the scalar kernel, and sees to it that `verify` catches it. It wrote this page.

The case is the smallest of `verify`'s own that catches the fault; `adadelta verify --case` puts it
to any implementation. The last two columns say whether the test procedure of MXNet or of PyTorch,
as its repository has it, would have caught the same mistake, with the right update as reference:

* MXNet's: one step from zero accumulators on three small tensors, uniform in [0, 1); relative
  tolerance 1e-4, absolute 1e-5, over a grid of hyper-parameters, float32 and float16.
* PyTorch's: seven steps of two small linear layers in float64, a relative and absolute tolerance
  of 1e-7, over rates, decays and rho. It has neither rescaling nor clipping to go wrong.

{counts}

| fault | what it is | source | smallest case | MXNet's test | PyTorch's test |
|---|---|---|---|---|---|
{lines}
"""


def write_self_test(folder: Path, rows: Sequence[selftest.Row]) -> None:
    """Write selftest.csv and the page self-test.md."""
    if rows:
        write_csv(folder / "selftest.csv", rows)
        write_bytes(folder / "self-test.md", self_test_page(rows).encode())


def self_test_document(rows: Sequence[selftest.Row]) -> dict[str, Any]:
    """Arrange a self-test for `--json`."""
    return {"passed": all(row.passed for row in rows), "rows": jsonable(list(rows))}


def _planted(rows: Sequence[selftest.Row]) -> list[selftest.Row]:
    return [row for row in rows if row.fault != "unchanged"]


def _self_test_counts(rows: Sequence[selftest.Row]) -> str:
    faults = _planted(rows)
    caught, mxnet, pytorch = (
        sum(getattr(row, name) for row in faults)
        for name in ("caught", "mxnet_test", "pytorch_test")
    )
    return (
        f"Of {len(faults)} faults, `verify` catches {caught}, MXNet's test {mxnet}, "
        f"PyTorch's {pytorch}."
    )


def self_test_page(rows: Sequence[selftest.Row]) -> str:
    """Write the page of the documentation that lists the faults."""
    lines = [
        f"| `{row.fault}` | {row.about} | `{row.source}` | `{row.case}` {row.dtype} | "
        f"{_caught(row.mxnet_test)} | {_caught(row.pytorch_test)} |"
        for row in _planted(rows)
    ]
    return SELF_TEST_PAGE.format(counts=_self_test_counts(rows), lines="\n".join(lines))


def _caught(caught: bool) -> str:
    return "catches it" if caught else "lets it pass"


def self_test_table(rows: Sequence[selftest.Row]) -> Table:
    """Lay out what caught each fault."""
    from rich.table import Table

    table = Table(
        title="adadelta verify --self-test: is every planted fault caught?", title_justify="left",
        caption=_self_test_counts(rows).replace("`", ""), caption_justify="left",
    )  # fmt: skip
    for name in ("fault", "what it is", "smallest case that catches it", "shows in",
                 "MXNet's test", "PyTorch's test", "verdict"):  # fmt: skip
        table.add_column(name)
    for row in rows:
        verdict = {True: "caught", False: "SLIPPED THROUGH"}
        if row.fault == "unchanged":
            verdict = {True: "no false alarm", False: "FALSE ALARM"}
        table.add_row(
            row.fault, row.about, f"{row.case} {row.dtype}",
            row.tensor, _caught(row.mxnet_test), _caught(row.pytorch_test),
            f"[{'green' if row.passed else 'red'}]{verdict[row.passed]}[/]",
        )  # fmt: skip
    return table


# --- bench ----------------------------------------------------------------------------------------

UNITS = ((1.0, "s"), (1e-3, "ms"), (1e-6, "us"), (1e-9, "ns"))
IMPLEMENTATION_COLOURS = {
    "mxnet-fused": "#c1272d",
    "numpy-fused": "#e8a33d",
    "mxnet": "#0b5394",
    "mxnet-stock": "#6fa8dc",
    "numpy": "#6aa84f",
}
BENCH_HEADINGS = (
    "workload", "dtype", "threads", "implementation", "a step (interval)", "GB/s",
    "of the ceiling", "roof", "speed-up", "memory", "note",
)  # fmt: skip


def bench_cells(row: Any) -> tuple[str, ...]:
    """Write a row of bench.csv as a person reads it, a cell for each of `BENCH_HEADINGS`."""
    return (
        row.workload,
        row.dtype,
        str(row.threads),
        row.implementation,
        _duration(row.median_s, row.ci_low_s, row.ci_high_s),
        "" if row.gigabytes_per_s is None else f"{row.gigabytes_per_s:.3g}",
        _interval(row.ceiling_fraction, row.ceiling_fraction_low, row.ceiling_fraction_high, ".2f"),
        row.bound or "",
        _interval(row.speedup, row.speedup_low, row.speedup_high, ".3g", " x"),
        _memory(row.peak_extra_bytes),
        row.note,
    )


def _duration(seconds: float | None, low: float | None, high: float | None) -> str:
    if seconds is None or low is None or high is None:
        return ""
    unit, name = next((each for each in UNITS if seconds >= each[0]), UNITS[-1])
    return f"{seconds / unit:.3g} {name} ({low / unit:.3g}-{high / unit:.3g})"


def _interval(
    value: float | None, low: float | None, high: float | None, digits: str, unit: str = ""
) -> str:
    if value is None:
        return ""
    return f"{value:{digits}}{unit} ({low:{digits}}-{high:{digits}})"


def _memory(count: int | None) -> str:
    return "" if count is None else f"{count / 1e6:.2f} MB"


def bench_table(rows: Sequence[Any]) -> Table:
    """Lay out rows of bench.csv for a terminal, a rule between workloads, all but their notes.

    What all rows have in common stands in the title.
    """
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    common = {
        heading: {cells[k] for cells in map(bench_cells, rows)}
        for k, heading in enumerate(BENCH_HEADINGS)
        if heading in {"dtype", "threads"}
    }
    shared = {heading: cells.pop() for heading, cells in common.items() if len(cells) == 1}
    about = ", ".join(
        f"{value} threads" if k == "threads" else value for k, value in shared.items()
    )
    table = Table(box=SIMPLE_HEAD, title=f"adadelta bench: {about}", title_justify="left")
    shown = [k for k, name in enumerate(BENCH_HEADINGS) if name not in {*shared, "note"}]
    for k in shown:
        table.add_column(BENCH_HEADINGS[k], no_wrap=True)
    groups = [(row.workload, row.dtype, row.threads) for row in rows]
    for number, row in enumerate(rows):
        last = groups[number] not in groups[number + 1 :]
        cells = bench_cells(row)
        table.add_row(*(cells[k] for k in shown), end_section=last)
    return table


def bench_notes(rows: Sequence[Any]) -> list[str]:
    """Write what is to be known before believing a row."""
    return [f"{row.workload} {row.implementation}: {row.note}" for row in rows if row.note]


def bench_markdown(rows: Sequence[Any]) -> str:
    """Lay out rows of bench.csv as a Markdown table, to paste into a pull request."""
    lines = [BENCH_HEADINGS, ("---",) * len(BENCH_HEADINGS), *map(bench_cells, rows)]
    return "\n".join(f"| {' | '.join(cell.replace('|', '/') for cell in line)} |" for line in lines)


def bench_document(results: Sequence[Any], machine: dict[str, Any]) -> dict[str, Any]:
    """Arrange rows, samples, doubts and the machine as bench.json and `--json` have them."""
    return {
        "rows": [jsonable(each.row) for result in results for each in result.measurements],
        "samples_s": [each.samples_s for result in results for each in result.measurements],
        "roofs_s": [result.roofs_s for result in results],
        "doubts": [doubt for result in results for doubt in result.doubts],
        "machine": jsonable(machine),
    }


def write_bench(out: Path, results: Sequence[Any], machine: dict[str, Any]) -> list[Path]:
    """Write bench.csv, bench.json and bench.png.

    Raises:
        OSError: one cannot be written.
    """
    rows = [each.row for result in results for each in result.measurements]
    return [
        write_csv(out / "bench.csv", rows),
        write_json(out / "bench.json", bench_document(results, machine)),
        write_plot(out / "bench.png", bench_figure(rows, machine)),
    ]


def bench_figure(rows: Sequence[Any], machine: dict[str, Any]) -> Figure:
    """Draw throughput by size under the ceiling, and the speed-ups, for each dtype and threads."""
    from matplotlib.figure import Figure

    settings = sorted({(row.dtype, row.threads) for row in rows})
    bars = max(sum((row.dtype, row.threads) == each for row in rows) for each in settings)
    height = max(5.0, 1.2 + 0.24 * bars)
    figure = Figure(figsize=(15, height * len(settings)), layout="constrained")
    figure.suptitle(f"AdaDelta's step on {machine['processor']}")
    panels = figure.subplots(len(settings), 2, squeeze=False)
    for (dtype, threads), (left, right) in zip(settings, panels, strict=True):
        some = [row for row in rows if (row.dtype, row.threads) == (dtype, threads)]
        title = f"{dtype}, {threads} thread{'s' * (threads > 1)}"
        _throughput_panel(left, [row for row in some if row.ceiling_fraction], title)
        _cache_marks(left, machine["cache_bytes"], threads, some[0].dtype)
        _speedup_panel(
            right, [row for row in some if row.speedup and not _is_reference(row)], title
        )
    return figure


def _throughput_panel(axes: Any, rows: Sequence[Any], title: str) -> None:
    axes.set(
        title=f"Throughput, {title}: higher is better",
        xlabel="elements, all tensors of the step together",
        ylabel="GB/s of the traffic a step cannot avoid",
    )
    if not rows:
        axes.text(
            0.5, 0.5, "nothing timed against a ceiling", ha="center", transform=axes.transAxes
        )
        return
    axes.set(xscale="log", yscale="log")
    axes.grid(which="both", alpha=0.2)
    single = [row for row in rows if row.tensors == 1]
    ceiling = sorted({row.elements: row.ceiling_gigabytes_per_s for row in single}.items())
    axes.plot(*(zip(*ceiling, strict=True) if ceiling else ((), ())), "k-", lw=7, alpha=0.2)
    axes.plot([], [], "k-", lw=7, alpha=0.2, label="ceiling: the slower of the two roofs")
    for name in dict.fromkeys(row.implementation for row in rows):
        own = [row for row in rows if row.implementation == name]
        lone = sorted((row for row in own if row.tensors == 1), key=lambda row: row.elements)
        _points(axes, lone, "o-", name)
        _points(axes, [row for row in own if row.tensors > 1], "*", name)
    for row in {row.workload: row for row in rows if row.tensors > 1}.values():
        place = (row.elements, row.ceiling_gigabytes_per_s)
        axes.plot(*place, "k_", ms=24, mew=7, alpha=0.2)
        axes.annotate(row.workload, place, xytext=(0, 14), textcoords="offset points", ha="center")
    if any(row.tensors > 1 for row in rows):
        axes.plot([], [], "k*", ms=9, ls="none", label="all tensors of a network in one step")
    axes.margins(0.12)
    axes.legend(loc="best", framealpha=0.9, fontsize=8)


def _points(axes: Any, rows: Sequence[Any], style: str, name: str) -> None:
    axes.plot(
        [row.elements for row in rows],
        [row.gigabytes_per_s for row in rows],
        style,
        ms=10 if style == "*" else 5,
        label=name if style != "*" else None,
        color=IMPLEMENTATION_COLOURS.get(name),
    )


def _cache_marks(axes: Any, caches: dict[str, int], threads: int, dtype: str) -> None:
    """Mark the sizes at which the arrays of a step outgrow each cache level."""
    held = {"float64": 32}.get(dtype, 16)  # bytes an element
    low, high = axes.get_xlim()
    for level, size in caches.items():
        shared = 1 if level == "L3" else threads
        elements = size * shared / held
        if low < elements < high and axes.get_xscale() == "log":
            axes.axvline(elements, color="grey", ls=":", lw=1)
            axes.text(
                elements, 0.02, f" {level} full", rotation=90, color="grey", ha="right",
                transform=axes.get_xaxis_transform(),
            )  # fmt: skip


def _is_reference(row: Any) -> bool:
    """Tell whether the speed-up is that of a step over itself."""
    return bool(row.speedup_low == row.speedup == row.speedup_high == 1)


def _speedup_panel(axes: Any, rows: Sequence[Any], title: str) -> None:
    axes.set(
        title=f"Speed-up, {title}: against the unfused step of the same backend",
        xlabel="times as fast, with 95 % interval (training: against the stock optimizer)",
    )
    if not rows:
        axes.text(0.5, 0.5, "nothing to compare", ha="center", transform=axes.transAxes)
        return
    places = range(len(rows))
    axes.barh(
        places,
        [row.speedup for row in rows],
        xerr=[
            [row.speedup - row.speedup_low for row in rows],
            [row.speedup_high - row.speedup for row in rows],
        ],
        color=[IMPLEMENTATION_COLOURS.get(row.implementation, "grey") for row in rows],
        capsize=3,
    )
    for place, row in zip(places, rows, strict=True):
        axes.text(row.speedup_high, place, f"  {row.speedup:.3g}", va="center", fontsize=8)
    axes.set_yticks(places, [f"{row.workload}  {row.implementation}" for row in rows], fontsize=8)
    axes.axvline(1, color="black", lw=1)
    axes.margins(x=0.1)
    axes.invert_yaxis()
