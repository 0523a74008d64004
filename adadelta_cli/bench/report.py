"""What `bench` writes: rows, samples, the table, and the pictures of figures.py."""

from __future__ import annotations

import shlex
from itertools import compress
from typing import TYPE_CHECKING, Any

from adadelta_cli.bench.figures import bench_figure, samples_figure
from adadelta_cli.bench.regression_report import comparison_document
from adadelta_cli.bench.tables import terminal_table
from adadelta_cli.bench.timing_problem import Outcome, TimingProblem
from adadelta_cli.bench.units import unit
from adadelta_cli.errors import displayed
from adadelta_cli.files import jsonable, write_csv, write_json, write_plot
from adadelta_cli.implementations.registry import is_user_kernel
from adadelta_cli.markdown import markdown_table

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from rich.table import Table

    from adadelta_cli.bench.regression import Comparison
    from adadelta_cli.bench.results import BenchRow
    from adadelta_cli.bench.runner import Benchmark

SETTINGS = {"dtype": "", "on": "", "cache": "", "B/element": " B/element"}
# Columns that a narrow terminal drops, the highest first.
RANKS = {
    name: rank
    for rank, name in enumerate(
        ("speed-up", "of the ceiling", "GB/s", "B/element", "roof", "taken", "memory"), 1
    )
}


def bench_cells(row: BenchRow) -> dict[str, str]:
    """Write a row of bench.csv as a person reads it: its cells by heading."""
    scale, name = unit(row.median_s or 1.0)
    times = [value and value / scale for value in (row.median_s, row.ci_low_s, row.ci_high_s)]
    shares = (row.ceiling_fraction, row.ceiling_fraction_low, row.ceiling_fraction_high)
    speedups = (row.speedup, row.speedup_low, row.speedup_high)
    memory = row.peak_extra_bytes
    return {
        "workload": row.workload,
        "dtype": row.dtype,
        "on": row.place,
        "cache": row.cache,
        "B/element": str(row.bytes_per_element or ""),
        "implementation": displayed(row.implementation),
        "a step (interval)": _interval(times, ".3g", f" {name}"),
        "GB/s": "" if row.gigabytes_per_s is None else f"{row.gigabytes_per_s:.3g}",
        "of the ceiling": _interval(shares, ".2f", "" if row.share_holds else " ?"),
        "taken": row.variant,
        "roof": _roof(row),
        "speed-up": _interval(speedups, ".3g", " x"),
        "memory": "" if memory is None else f"{memory / 1e6:.2f} MB",
        "note": row.note,
    }


def _roof(row: BenchRow) -> str:
    """Write which roof is the ceiling, its speed, and how it was taken."""
    if row.bound is None:
        return ""
    taken = f", {row.ceiling_variant}" * bool(row.ceiling_variant)
    return f"{row.bound} ({row.ceiling_gigabytes_per_s:.3g} GB/s{taken})"


def _interval(values: Sequence[float | None], digits: str, unit: str = "") -> str:
    """Write a value with the ends of its interval, empty where there is none."""
    if None in values:
        return ""
    value, low, high = (f"{each:{digits}}" for each in values)
    return f"{value}{unit} ({low}-{high})"


def bench_table(rows: Sequence[BenchRow]) -> Table:
    """Lay out rows of bench.csv for a terminal, a rule between workloads, all but their notes."""
    skipped = TimingProblem(Outcome.SKIPPED, "")
    tried = [row for row in rows if not row.note.startswith(str(skipped))] or rows
    return terminal_table("adadelta bench: ", list(map(bench_cells, tried)), SETTINGS, RANKS)


def bench_checked(rows: Sequence[BenchRow]) -> list[str]:
    """Say what was checked of the user's kernels before they were timed."""
    names = dict.fromkeys(row.implementation for row in rows if is_user_kernel(row.implementation))
    return [
        f"{name}: one step with the default hyper-parameters was checked (no clip_gradient, wd 0, "
        f"rescale_grad 1); adadelta verify --impl {shlex.quote(name)} checks all others"
        for name in map(displayed, names)
    ]


def bench_notes(rows: Sequence[BenchRow]) -> list[str]:
    """Write the note of each row, after what distinguishes the row."""
    settings = [(row.dtype, row.place, row.cache) for row in rows]
    differing = [len(set(values)) > 1 for values in zip(*settings, strict=True)]
    return [
        " ".join((row.workload, *compress(setting, differing), f"{row.implementation}: {row.note}"))
        for row, setting in zip(rows, settings, strict=True)
        if row.note
    ]


def bench_markdown(rows: Sequence[BenchRow]) -> str:
    """Lay out rows of bench.csv as a Markdown table, with their notes."""
    return markdown_table(list(map(bench_cells, rows)))


def bench_document(work: Benchmark, judged: Sequence[Comparison] = ()) -> dict[str, Any]:
    """Arrange rows, samples, warnings and the machine as bench.json and `--json` have them."""
    pairs = [pair for result in work.results for pair in result.pairs]
    content = {
        "complete": work.is_complete,
        "rows": work.rows,
        "by_process": [each.by_process for each in work.measurements],
        "samples_s": [each.samples_s for each in work.measurements],
        "roofs_s": [result.roofs_s for result in work.results],
        "doubts": work.warnings,
        "pairs": [
            {name: getattr(pair, name) for name in ("row", "old_s", "new_s", "ratios")}
            | {"old_fault": str(pair.old_problem or "")}
            for pair in pairs
        ],
        "comparisons": [comparison_document(each) for each in judged],
        "settings": work.settings,
        "machine": work.machine,
    }
    return jsonable(content)


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
