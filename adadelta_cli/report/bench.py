"""What `bench` writes: rows, samples, the table; its pictures are those of bench_figure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from adadelta_cli.files import jsonable, write_csv, write_json, write_plot
from adadelta_cli.report.bench_figure import bench_figure, samples_figure, unit

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from rich.table import Table


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
    scale, name = unit(seconds)
    return f"{seconds / scale:.3g} {name} ({low / scale:.3g}-{high / scale:.3g})"


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
    """Write bench.csv, bench.json, bench.png and bench-samples.png.

    Raises:
        OSError: one cannot be written.
    """
    measurements = [each for result in results for each in result.measurements]
    rows = [each.row for each in measurements]
    return [
        write_csv(out / "bench.csv", rows),
        write_json(out / "bench.json", bench_document(results, machine)),
        write_plot(out / "bench.png", bench_figure(measurements, machine)),
        write_plot(out / "bench-samples.png", samples_figure(measurements, machine)),
    ]
