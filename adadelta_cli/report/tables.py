"""The tables of the page: columns and rows of plain values, which the page sorts and filters."""

from __future__ import annotations

import math
from collections import Counter
from typing import TYPE_CHECKING, Any, NamedTuple

from adadelta_cli.bench.units import duration
from adadelta_cli.verification.report import CHECKS
from adadelta_cli.verification.rows import Status, summaries

if TYPE_CHECKING:
    from collections.abc import Sequence

    from adadelta_cli.bench.results import BenchRow
    from adadelta_cli.report.found import (
        FoundBench,
        FoundComparison,
        FoundRun,
        FoundSweep,
        FoundVerification,
    )


class Column(NamedTuple):
    """A column.

    Attributes:
        kind: `text`, `number`, `seconds`, `verdict`, `command`, or `setting`, which is marked.
        facet: whether the page offers a choice of its values.
    """

    name: str
    kind: str = "text"
    facet: bool = False


class PageTable(NamedTuple):
    """A table; each row has a value for each column."""

    caption: str
    columns: list[Column]
    rows: list[list[Any]]

    @property
    def document(self) -> dict[str, Any]:
        """The table as JSON, without numbers that JSON lacks."""
        columns = [each._asdict() for each in self.columns]
        return {"columns": columns, "rows": [[plain(cell) for cell in row] for row in self.rows]}


def plain(value: Any) -> Any:
    """Return a value as JSON has it: no NaN, no infinity, floats in 6 digits, lists as texts."""
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else str(value)
    return value if isinstance(value, (bool, int, str, type(None))) else str(value)


# --- verify ---------------------------------------------------------------------------------------


def summary_table(each: FoundVerification) -> PageTable:
    """Sum a verification up, a row for each check of each implementation, as the terminal does."""
    columns = [
        *(Column("implementation"), Column("against"), Column("over")),
        *(Column("cases", "number"), Column("not applicable", "number")),
        *(Column("numbers", "number"), Column("differ", "number")),
        *(Column("largest ULP", "number"), Column("bound", "number"), Column("verdict", "verdict")),
    ]
    rows = [
        [
            *(one.implementation, one.reference, CHECKS.get(one.check, one.check)),
            *(one.cases - one.skipped, one.skipped, one.elements, one.mismatches, one.scaled_ulp),
            max(one.allowed_ulp, default=None),
            one.verdict.value,
        ]
        for one in summaries(each.rows)
    ]
    return PageTable("Verdicts by implementation and check", columns, rows)


STATUSES = {
    Status.PASSED: "passed",
    Status.FAILED: "FAILED",
    Status.NO_RESULT: "no result",
    Status.SKIPPED: "skipped",
}


def verify_table(each: FoundVerification) -> PageTable:
    """Return all rows of a verification."""
    columns = [
        *(Column("check", facet=True), Column("case"), Column("implementation", facet=True)),
        *(Column("against"), Column("dtype", facet=True), Column("tensor", facet=True)),
        *(Column("numbers", "number"), Column("steps", "number"), Column("differ", "number")),
        *(Column("largest ULP", "number"), Column("bound", "number")),
        Column("verdict", "verdict", facet=True),
        *(Column("note"), Column("repeat it", "command")),
    ]
    rows = [
        [
            *(CHECKS.get(row.check, row.check), row.case, row.implementation, row.reference),
            *(row.dtype, row.tensor, row.elements, row.steps, row.mismatches),
            *(row.scaled_ulp, row.allowed_ulp, STATUSES[row.status], row.note, command),
        ]
        for row, command in zip(each.rows, each.commands, strict=True)
    ]
    return PageTable("All comparisons", columns, rows)


# --- run ------------------------------------------------------------------------------------------

MOST_SETTINGS = 12  # columns of settings that differ


class Settings(NamedTuple):
    """The settings of several runs.

    Attributes:
        differ: the keys that are not the same in all runs, those that most runs have first.
        shared: the others, with their value.
    """

    differ: list[str]
    shared: dict[str, str]


def compared_settings(runs: Sequence[FoundRun]) -> Settings:
    """Tell the settings that differ between runs from those that all share."""
    having = Counter(key for run in runs for key in run.settings)
    values = {key: {run.settings.get(key) for run in runs} for key in having}
    order = sorted(having, key=lambda key: -having[key])
    differ = [key for key in order if len(values[key]) > 1]
    shared = {key: str(next(iter(values[key]))) for key in having if len(values[key]) == 1}
    return Settings(differ, shared)


def run_names(runs: Sequence[FoundRun]) -> list[str]:
    """Name each run by its config; by its folder where another has that name."""
    counts = Counter(run.summary.name for run in runs)
    return [r.summary.name if counts[r.summary.name] == 1 else r.place for r in runs]


def run_table(runs: Sequence[FoundRun], settings: Settings) -> PageTable:
    """Lay runs out side by side: outcome, metrics at the end, the settings that differ."""
    metrics = list(dict.fromkeys(name for run in runs for name in run.summary.end))
    metrics = [name for name in metrics if name not in {"step", "epoch"}]
    shown = settings.differ[:MOST_SETTINGS]
    columns = [
        Column("run"),
        Column("outcome", "verdict", facet=True),
        *(Column(name, "number") for name in metrics),
        *(Column(key, "setting", facet=True) for key in shown),
        *(
            Column("steps", "number"),
            Column("time", "seconds"),
            Column("loss at the start", "number"),
        ),
        *(Column("folder"), Column("repeat it", "command")),
    ]
    rows = [
        [
            *(name, run.summary.outcome.value),
            *(run.summary.end.get(metric) for metric in metrics),
            *(_as_number(run.settings.get(key, "")) for key in shown),
            *(run.summary.steps, run.summary.seconds, run.summary.start.get("loss")),
            *(run.place, run.command),
        ]
        for name, run in zip(run_names(runs), runs, strict=True)
    ]
    return PageTable("Runs side by side", columns, rows)


def _as_number(text: str) -> float | str:
    """Return a setting as a number where it is one, so that it sorts as one."""
    try:
        number = float(text)
    except ValueError:
        return text
    return number if math.isfinite(number) else text


def shared_table(settings: Settings) -> PageTable:
    """Return the settings that all runs share."""
    columns = [Column("setting"), Column("value")]
    return PageTable("Settings of all runs", columns, [[*pair] for pair in settings.shared.items()])


# --- sweep ----------------------------------------------------------------------------------------


def sweep_table(each: FoundSweep) -> PageTable:
    """Return the settings of a sweep, with the medians of the metrics and their intervals."""
    document = each.document
    names = list(dict.fromkeys(name for row in document.settings for name in row))
    columns = [
        Column(name, "setting" if name in document.keys else _kind(name), facet=name == "passed")
        for name in names
        if name != "checks"
    ]
    rows = [[row.get(column.name) for column in columns] for row in document.settings]
    return PageTable("Settings of the sweep", columns, rows)


def _kind(name: str) -> str:
    return "verdict" if name == "passed" else "number"


# --- bench and compare ----------------------------------------------------------------------------


def bench_table(each: FoundBench) -> PageTable:
    """Return the rows of a bench."""
    columns = [
        *(Column("workload", facet=True), Column("implementation", facet=True)),
        *(Column("dtype", facet=True), Column("on", facet=True), Column("cache", facet=True)),
        *(Column("a step", "seconds"), Column("95 % interval")),
        *(Column("GB/s", "number"), Column("ceiling GB/s", "number"), Column("roof")),
        *(Column("of the ceiling", "number"), Column("its interval")),
        *(Column("speed-up", "number"), Column("speed-up's interval")),
        *(Column("processes", "number"), Column("samples", "number"), Column("note")),
    ]
    rows = [
        [
            *(row.workload, row.implementation, row.dtype, row.place, row.cache, row.median_s),
            *(_times(row.ci_low_s, row.ci_high_s), row.gigabytes_per_s),
            *(row.ceiling_gigabytes_per_s, row.bound or ""),
            *(row.ceiling_fraction, _share_ends(row)),
            *(row.speedup, _ends(row.speedup_low, row.speedup_high)),
            *(row.processes, row.samples, row.note),
        ]
        for row in each.rows
    ]
    return PageTable("All timings", columns, rows)


def _ends(low: float | None, high: float | None) -> str:
    return "" if low is None or high is None else f"{low:.3g} to {high:.3g}"


def _share_ends(row: BenchRow) -> str:
    """Return the ends of a share, with a mark where the share means nothing."""
    ends = _ends(row.ceiling_fraction_low, row.ceiling_fraction_high)
    return ends if row.share_holds or not ends else f"{ends} ?"


def _times(low: float | None, high: float | None) -> str:
    return "" if low is None or high is None else f"{duration(low)} to {duration(high)}"


def comparison_table(each: FoundComparison) -> PageTable:
    """Return the rows of a comparison."""
    columns = [
        *(Column("workload", facet=True), Column("implementation", facet=True)),
        *(Column("dtype"), Column("threads", "number"), Column("cache"), Column("compared")),
        *(Column("old", "number"), Column("new", "number"), Column("time, new / old", "number")),
        *(Column("99 % interval"), Column("p", "number")),
        *(Column("verdict", "verdict", facet=True), Column("note")),
    ]
    rows = [
        [
            *(row.workload, row.implementation, row.dtype, row.threads, row.cache, row.compared),
            *(row.old, row.new, row.ratio, _ends(row.ratio_low, row.ratio_high), row.p_value),
            *(row.verdict.value, row.note),
        ]
        for row in each.rows
    ]
    return PageTable("Verdicts: above 1 is slower than before", columns, rows)


def machine_table(facts: dict[str, Any]) -> PageTable:
    """Return facts about a machine, or settings, by dotted name."""
    columns = [Column("name"), Column("value")]
    return PageTable("Machine, versions and settings", columns, list(_flat(facts)))


def _flat(tree: dict[str, Any], prefix: str = "") -> list[list[Any]]:
    rows: list[list[Any]] = []
    for name, value in tree.items():
        if isinstance(value, dict):
            rows += _flat(value, f"{prefix}{name}.")
        else:
            text = ", ".join(map(str, value)) if isinstance(value, list) else value
            rows.append([f"{prefix}{name}", "" if text is None else str(text)])
    return rows
