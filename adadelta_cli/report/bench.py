"""What `bench` writes: rows, samples, the table, the picture."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from adadelta_cli.files import jsonable, write_csv, write_json, write_plot

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from matplotlib.figure import Figure
    from rich.table import Table

    from adadelta_cli.benchmark import Benchmark
    from adadelta_cli.comparison import Comparison

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


def bench_document(work: Benchmark, judged: Sequence[Comparison] = ()) -> dict[str, Any]:
    """Arrange rows, samples, doubts and the machine as bench.json and `--json` have them."""
    from adadelta_cli.report.comparison import comparison_document

    return {
        "rows": jsonable(work.rows),
        "by_process": jsonable([each.by_process for each in work.measurements]),
        "samples_s": [each.samples_s for each in work.measurements],
        "roofs_s": [result.roofs_s for result in work.results],
        "doubts": work.doubts,
        "comparisons": [comparison_document(each) for each in judged],
        "settings": jsonable(work.settings),
        "machine": jsonable(work.machine),
    }


def write_bench(out: Path, work: Benchmark) -> list[Path]:
    """Write bench.csv, bench.json and bench.png.

    Raises:
        OSError: one cannot be written.
    """
    return [
        write_csv(out / "bench.csv", work.rows),
        write_json(out / "bench.json", bench_document(work)),
        write_plot(out / "bench.png", bench_figure(work.rows, work.machine)),
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
