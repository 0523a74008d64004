"""One result of bench judged against another: `compare`, and `bench --baseline`.

Shares of the ceiling are compared first: step and ceiling were timed in the same rounds, so what
slows down the machine is in both, and they carry over between machines of one kind. Seconds are
compared only where the machine is the same. significance.py says whether a difference counts.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import numpy as np
from pydantic import BaseModel, Field, ValidationError, model_validator

from adadelta_cli import inputs
from adadelta_cli.bench import significance, worker
from adadelta_cli.bench.results import FAILURES
from adadelta_cli.bench.significance import LogRatio, Verdict
from adadelta_cli.errors import ExitCode, UsageError, shortened
from adadelta_cli.system import machine

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from adadelta_cli.bench import results
    from adadelta_cli.bench.runner import Benchmark

THRESHOLD = 0.05  # the smallest difference that counts, where no other is asked for
# Without these equal, it is another kind of machine: a share of one says nothing of the other.
KIND = ("processor", "architecture", "cores", "cores_available", "cache_bytes", "gpu")
HOST = "host"  # and without this one, seconds say nothing either
# What is never twice the same, and is no property of the machine.
VOLATILE = frozenset({"load_average", "memory_available_bytes", "swap_used_bytes"})
UNRECORDED = "not recorded"
WELCH = "Welch's t-test on the logarithms of what each process found"
STUDENT = "Student's t-test on the logarithms of the ratios of processes that took turns"
MEASURE_AGAIN = "measure both on one machine: adadelta bench --against"


# --- what bench.json holds ------------------------------------------------------------------------

# Beyond these no time in seconds is, and no share of a ceiling.
Positive = Annotated[float, Field(ge=1e-12, le=1e12)]
DEEPEST = 20  # of nested lists and objects; a bench.json has 4


class MeasurementKey(NamedTuple):
    """What makes two rows ones of the same measurement."""

    implementation: str
    backend: str
    ctx: str
    dtype: str
    workload: str
    threads: int
    cache: str


class RecordedTiming(BaseModel):
    """A row of bench.json: which measurement it is, and its note."""

    implementation: str
    backend: str
    ctx: str
    dtype: str
    workload: str
    threads: int
    cache: str
    ceiling_gigabytes_per_s: Positive | None = None
    note: str = ""

    @property
    def key(self) -> MeasurementKey:
        """What finds it in another document."""
        return MeasurementKey(*(getattr(self, name) for name in MeasurementKey._fields))

    @property
    def wrong(self) -> bool:
        """Its step computes something else, so that its time means nothing."""
        return self.note.startswith(FAILURES) or ", wrong: " in self.note


class Processes(BaseModel):
    """What each process found for a row; None is a process that took no sample of it."""

    median_s: list[Positive | None] = []
    ceiling_fraction: list[Positive | None] = []

    def known(self, measure: str) -> list[float]:
        """Return the numbers of `seconds` or `share`."""
        values = self.median_s if measure == SECONDS else self.ceiling_fraction
        return [value for value in values if value is not None]


SHARE, SECONDS = "share of the ceiling", "seconds"


class Document(BaseModel):
    """What is read of a bench.json."""

    rows: list[RecordedTiming]
    by_process: list[Processes]
    machine: dict[str, Any]
    settings: dict[str, Any] = {}
    source: str = ""

    @model_validator(mode="after")
    def _parallel(self) -> Document:
        if len(self.rows) != len(self.by_process):
            raise ValueError(
                f"there are {len(self.rows)} rows and {len(self.by_process)} entries in by_process"
            )
        counts = Counter(row.key for row in self.rows)
        key, count = max(counts.items(), key=lambda item: item[1], default=((), 0))
        if count > 1:
            raise ValueError(f"two rows are of one measurement: {' '.join(map(str, key))}")
        return self

    @property
    def by_key(self) -> dict[MeasurementKey, Found]:
        """The rows, with what each process found."""
        both = zip(self.rows, self.by_process, strict=True)
        return {row.key: Found(row, each) for row, each in both}


def read_document(path: Path) -> Document:
    """Read a result of bench: the file bench.json, or the folder that it is in.

    Raises:
        UsageError: it cannot be read, or is no result that can be compared.
    """
    file = path / "bench.json" if os.path.isdir(path) else path  # noqa: PTH112 - takes any path
    reason = inputs.unreadable_reason(file)
    if reason:
        raise UsageError(
            f"{shortened(file)} cannot be read ({reason}); name the bench.json that adadelta bench "
            "wrote to its --out, or that folder"
        )
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise UsageError(
            f"{file} is no JSON ({error}); name the bench.json that adadelta bench wrote"
        ) from error
    return parse_document(content, str(file))


def _check_depth(content: Any, source: str) -> None:
    """Refuse what is nested so deeply that walking through it would exhaust Python's stack."""
    level = [content]
    for _ in range(DEEPEST):
        level = [
            child
            for each in level
            if isinstance(each, (dict, list))
            for child in (each.values() if isinstance(each, dict) else each)
        ]
    if level:
        raise UsageError(
            f"{source} is no result of adadelta bench: it is nested too deeply; name one"
        )


def parse_document(content: Any, source: str) -> Document:
    """Check that what bench.json holds can be compared.

    Args:
        content: the JSON document.
        source: what to call it in messages: its path.

    Raises:
        UsageError: a part is missing or malformed.
    """
    if not isinstance(content, dict) or "rows" not in content:
        raise UsageError(f"{source} is no result of adadelta bench: it has no 'rows'; name one")
    if "by_process" not in content:
        raise UsageError(
            f"{source} has no 'by_process': it is of a version that did not keep what each process "
            "found, without which no difference can be tested; measure it again: adadelta bench"
        )
    _check_depth(content, source)
    try:
        return Document.model_validate(content | {"source": source})
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "as a whole"
        raise UsageError(
            f"{source} is malformed, {shortened(where)}: {shortened(first['msg'])}; take the file "
            "as adadelta bench wrote it, or measure again"
        ) from error


# --- what differs between the machines ------------------------------------------------------------


@dataclass(frozen=True)
class Change:
    """Something of machine or settings that is not the same in both.

    Attributes:
        name: where it stands in bench.json: `machine.versions.numpy`.
        old: what it was, or that it was not recorded.
        new: what it is now.
        consequence: what cannot be compared because of it; empty where it forbids nothing.
    """

    name: str
    old: str
    new: str
    consequence: str = ""


def changes(old: Document, new: Document) -> list[Change]:
    """List what differs between two machines and their settings, what matters first."""
    before, after = (
        _flat({"machine": each.machine, "settings": each.settings}) for each in (old, new)
    )
    found = [
        Change(name, _shown(before.get(name)), _shown(after.get(name)), _consequence(name))
        for name in {**before, **after}
        if before.get(name) != after.get(name) and name.split(".")[1] not in VOLATILE
    ]
    return sorted(found, key=lambda change: not change.consequence)


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        below = isinstance(value, dict)
        flat |= _flat(value, f"{prefix}{name}.") if below else {f"{prefix}{name}": value}
    return flat


def _shown(value: Any) -> str:
    return UNRECORDED if value is None else str(value)


def _consequence(name: str) -> str:
    part, key, *_ = name.split(".")
    if part == "machine" and key in KIND:
        return "nothing can be compared"
    return "seconds cannot be compared" if (part, key) == ("machine", HOST) else ""


# --- the comparison -------------------------------------------------------------------------------


@dataclass(frozen=True)
class RegressionRow:
    """One measurement in both results: a row of compare.csv.

    Attributes:
        compared: `share of the ceiling`, `seconds`, or empty where nothing could be.
        old: geometric mean over the processes of what was compared, a share or seconds.
        new: likewise, so that the ratio is the quotient of what stands here.
        ratio: new time over old time, above 1 is slower, with its 99 % interval.
        p_value: of this row by itself.
        processes_old: how many there were.
        note: why it is UNCLEAR and what to do, or what else is to be known.
    """

    implementation: str
    backend: str
    ctx: str
    dtype: str
    workload: str
    threads: int
    cache: str
    compared: str = ""
    old: float | None = None
    new: float | None = None
    ratio: float | None = None
    ratio_low: float | None = None
    ratio_high: float | None = None
    p_value: float | None = None
    processes_old: int = 0
    processes_new: int = 0
    verdict: Verdict = Verdict.UNCLEAR
    note: str = ""


COLUMNS = tuple(field.name for field in fields(RegressionRow))


@dataclass(frozen=True)
class Comparison:
    """What came of comparing two results.

    Attributes:
        rows: in the order of the new result, then those that are only in the old one.
        changes: what differs between machines and settings.
        threshold: the smallest difference that counts.
        test: the name of the test behind the verdicts.
        old: what the old result is called.
        new: what the new one is called.
    """

    rows: tuple[RegressionRow, ...]
    changes: tuple[Change, ...]
    threshold: float
    test: str
    old: str
    new: str

    @property
    def exit_code(self) -> ExitCode:
        """1 when a row is SLOWER, and only then."""
        slower = any(row.verdict is Verdict.SLOWER for row in self.rows)
        return ExitCode.CHECK_FAILED if slower else ExitCode.OK


class Found(NamedTuple):
    """A measurement in one of the results."""

    timing: RecordedTiming
    processes: Processes

    def known(self, measure: str) -> list[float]:
        """Return what each process found: `SHARE` or `SECONDS`; nothing where a step is wrong."""
        return [] if self.timing.wrong else self.processes.known(measure)


class Counterparts(NamedTuple):
    """A measurement in both results; None where it is in one only."""

    key: MeasurementKey
    old: Found | None
    new: Found | None


class Machines(NamedTuple):
    """What two machines have in common.

    Attributes:
        difference: the names of what differs, where they are not of one kind; else empty.
        same: they are one and the same.
    """

    difference: str
    same: bool


def judge(old: Document, new: Document, threshold: float = THRESHOLD) -> Comparison:
    """Judge a result against an older one, row by row.

    Raises:
        UsageError: they have no row in common.
    """
    before, after = old.by_key, new.by_key
    if not before.keys() & after.keys():
        raise UsageError(
            f"{old.source} and {new.source} have no measurement in common (implementation, backend,"
            " device, dtype, workload, threads, cache); measure both with the same options"
        )
    pairs = [Counterparts(key, before.get(key), after.get(key)) for key in {**after, **before}]
    found = changes(old, new)
    machines = _machines(found, known=HOST in new.machine)
    rows = conclude([_match(pair, machines) for pair in pairs], threshold)
    noted = [_with_ceiling(*each, threshold) for each in zip(rows, pairs, strict=True)]
    return Comparison(tuple(noted), tuple(found), threshold, WELCH, old.source, new.source)


def judge_in_turn(work: Benchmark, threshold: float = THRESHOLD) -> Comparison:
    """Judge this version against the one that was timed in the same rounds."""
    pairs = [pair for result in work.results for pair in result.pairs]
    rows = conclude([_in_turn(pair) for pair in pairs], threshold)
    about = work.other
    same = about["path"] == str(worker.__file__)
    theirs, ours = (
        _flat({"versions": versions})
        for versions in (about.get("versions", {}), machine.versions())
    )
    found = [
        Change(name, _shown(theirs.get(name)), _shown(ours.get(name)))
        for name in {**theirs, **ours}
        if theirs and theirs.get(name) != ours.get(name)
    ]
    old = f"{about['version']} in {about['path']}" + " (the same installation)" * same
    return Comparison(tuple(rows), tuple(found), threshold, STUDENT, old, "this version")


def _in_turn(pair: results.Pair) -> Matched:
    """Find the difference of a pair of versions, or why there is none."""
    row = RegressionRow(*(getattr(pair.row, name) for name in MeasurementKey._fields))
    if pair.row.note.startswith(FAILURES) and not pair.old_fault:
        note = f"{pair.row.note}; the old one is right"
        return replace(row, verdict=Verdict.SLOWER, note=note), None
    if not pair.ratios:
        return replace(row, note=pair.old_fault or pair.row.note or "no samples"), None
    means = [float(np.exp(np.log(side).mean())) for side in (pair.old_s, pair.new_s)]
    filled = replace(
        row,
        compared=SECONDS,
        old=means[0],
        new=means[1],
        processes_old=len(pair.old_s),
        processes_new=len(pair.new_s),
    )
    return filled, significance.paired(pair.ratios)


def _machines(found: Sequence[Change], *, known: bool) -> Machines:
    """Sum up what differs; where no host was recorded, none is known to be the same."""
    weighty = [change for change in found if change.consequence]
    difference = ", ".join(
        change.name.partition(".")[2] for change in weighty if change.name != f"machine.{HOST}"
    )
    return Machines(difference, known and not weighty)


Matched = tuple[RegressionRow, "LogRatio | None"]
"""A row without its verdict, and the difference to judge; None where the row has its verdict."""


def conclude(matched: Sequence[Matched], threshold: float) -> list[RegressionRow]:
    """Judge the differences of all rows together, and write the verdicts into the rows."""
    judgements = iter(significance.judge_all([each for _, each in matched if each], threshold))
    return [_judged(row, each, next(judgements)) if each else row for row, each in matched]


def _judged(row: RegressionRow, each: LogRatio, judgement: significance.Judgement) -> RegressionRow:
    known = each.processes >= significance.LEAST_PROCESSES
    return replace(
        row,
        ratio=each.ratio,
        ratio_low=each.low if known else None,
        ratio_high=each.high if known else None,
        p_value=each.p_value if known else None,
        verdict=judgement.verdict,
        note=judgement.reason,
    )


def _match(pair: Counterparts, machines: Machines) -> Matched:
    """Find what can be compared of a measurement, or why nothing can."""
    row, old, new = RegressionRow(*pair.key), pair.old, pair.new
    if old and new and new.timing.wrong and old.known(SECONDS):
        note = f"{new.timing.note}; the old one was right"
        return replace(row, verdict=Verdict.SLOWER, note=note), None
    obstacle = next(_obstacles(pair, machines), "")
    if obstacle or not (old and new):
        return replace(row, note=obstacle), None
    measure = SHARE if old.known(SHARE) and new.known(SHARE) else SECONDS
    return compared(row, measure, old.known(measure), new.known(measure))


def _obstacles(pair: Counterparts, machines: Machines) -> Iterator[str]:
    """Say what forbids to compare a measurement, the weightiest reason first."""
    for name, side in (("old", pair.old), ("new", pair.new)):
        if side is None:
            yield f"not in the {name} result; measure both with the same options"
        elif not side.known(SECONDS):
            yield f"the {name} result has no time: {side.timing.note or 'and does not say why'}"
    if machines.difference:
        yield f"another kind of machine ({machines.difference} changed); {MEASURE_AGAIN}"
    if not machines.same and not all(side and side.known(SHARE) for side in (pair.old, pair.new)):
        yield f"no share of a ceiling, and not known to be the same machine; {MEASURE_AGAIN}"


def compared(row: RegressionRow, measure: str, old: list[float], new: list[float]) -> Matched:
    """Compare a number for each process, shares or seconds; a larger share is a shorter time."""
    times = (old, new) if measure == SECONDS else (1 / np.array(old), 1 / np.array(new))
    means = [float(np.exp(np.log(side).mean())) for side in (old, new)]
    filled = replace(
        row,
        compared=measure,
        old=means[0],
        new=means[1],
        processes_old=len(old),
        processes_new=len(new),
    )
    return filled, significance.unpaired(*times)


def _with_ceiling(row: RegressionRow, pair: Counterparts, threshold: float) -> RegressionRow:
    """Note that the ceiling moved, where the verdict is on shares of it."""
    was, now = (
        (side and side.timing.ceiling_gigabytes_per_s) or 0.0 for side in (pair.old, pair.new)
    )
    moved = max(was, now) > min(was, now) * (1 + threshold)
    if row.compared != SHARE or not moved or not (was and now):
        return row
    note = f"the ceiling itself was {was:.3g} GB/s and is {now:.3g}"
    return replace(row, note="; ".join(filter(None, (row.note, note))))
