"""What `bench` writes: rows, samples, the table; its pictures are those of bench_figure."""

from __future__ import annotations

from itertools import compress
from typing import TYPE_CHECKING, Any

from adadelta_cli.bench.figures import bench_figure, samples_figure
from adadelta_cli.bench.units import unit
from adadelta_cli.files import jsonable, write_csv, write_json, write_plot

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from rich.table import Table

    from adadelta_cli.bench.regression import Comparison
    from adadelta_cli.bench.runner import Benchmark

BENCH_HEADINGS = (
    "workload",
    "dtype",
    "on",
    "cache",
    "B/element",
    "implementation",
    "a step (interval)",
    "GB/s",
    "of the ceiling",
    "roof",
    "speed-up",
    "memory",
    "note",
)
# Columns that a narrow terminal drops, the highest first.
BENCH_RANKS = {
    "memory": 6,
    "roof": 5,
    "B/element": 4,
    "GB/s": 3,
    "of the ceiling": 2,
    "speed-up": 1,
}


def bench_cells(row: Any) -> tuple[str, ...]:
    """Write a row of bench.csv as a person reads it, a cell for each of `BENCH_HEADINGS`."""
    return (
        row.workload,
        row.dtype,
        row.place,
        row.cache,
        str(row.bytes_per_element or ""),
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
    from rich.markup import escape

    from adadelta_cli.tables import FittingTable

    common = {
        heading: {cells[k] for cells in map(bench_cells, rows)}
        for k, heading in enumerate(BENCH_HEADINGS)
        if heading in {"dtype", "on", "cache", "B/element"}
    }
    shared = {heading: cells.pop() for heading, cells in common.items() if len(cells) == 1}
    about = ", ".join(f"{value} {k}" if k == "B/element" else value for k, value in shared.items())
    table = FittingTable(title=f"adadelta bench: {about}")
    shown = [k for k, name in enumerate(BENCH_HEADINGS) if name not in {*shared, "note"}]
    for k in shown:
        table.add_column(BENCH_HEADINGS[k], rank=BENCH_RANKS.get(BENCH_HEADINGS[k], 0))
    groups = [(row.workload, row.dtype, row.place, row.cache) for row in rows]
    for number, row in enumerate(rows):
        last = groups[number] not in groups[number + 1 :]
        cells = bench_cells(row)
        table.add_row(*(escape(cells[k]) for k in shown), end_section=last)
    return table


def bench_notes(rows: Sequence[Any]) -> list[str]:
    """Write what is to be known before believing a row."""
    settings = [(row.dtype, row.place, row.cache) for row in rows]
    differing = [len(set(values)) > 1 for values in zip(*settings, strict=True)]
    return [
        " ".join((row.workload, *compress(setting, differing), f"{row.implementation}: {row.note}"))
        for row, setting in zip(rows, settings, strict=True)
        if row.note
    ]


def bench_markdown(rows: Sequence[Any]) -> str:
    """Lay out rows of bench.csv as a Markdown table, to paste into a pull request."""
    lines = [BENCH_HEADINGS, ("---",) * len(BENCH_HEADINGS), *map(bench_cells, rows)]
    return "\n".join(f"| {' | '.join(cell.replace('|', '/') for cell in line)} |" for line in lines)


def bench_document(work: Benchmark, judged: Sequence[Comparison] = ()) -> dict[str, Any]:
    """Arrange rows, samples, doubts and the machine as bench.json and `--json` have them."""
    from adadelta_cli.bench.regression_report import comparison_document

    return {
        "rows": jsonable(work.rows),
        "by_process": jsonable([each.by_process for each in work.measurements]),
        "samples_s": [each.samples_s for each in work.measurements],
        "roofs_s": [result.roofs_s for result in work.results],
        "doubts": work.doubts,
        "pairs": [jsonable(pair) for result in work.results for pair in result.pairs],
        "comparisons": [comparison_document(each) for each in judged],
        "settings": jsonable(work.settings),
        "machine": jsonable(work.machine),
    }


FILES = ("bench.csv", "bench.json", "bench.png", "bench-samples.png")


def write_bench(out: Path, work: Benchmark, judged: Sequence[Comparison] = ()) -> list[Path]:
    """Write bench.csv, bench.json, bench.png and bench-samples.png.

    Raises:
        BrokenError: one cannot be written.
    """
    return [
        write_csv(out / "bench.csv", work.rows),
        write_json(out / "bench.json", bench_document(work, judged)),
        write_plot(out / "bench.png", bench_figure(work.measurements, work.machine)),
        write_plot(out / "bench-samples.png", samples_figure(work.measurements, work.machine)),
    ]
