"""One result of bench judged against another: `compare`, and `bench --baseline`.

Shares of the ceiling are compared first: step and ceiling were timed in the same rounds, so a
slower machine slows both, and shares carry over between machines of one kind. Seconds are compared
only where the machine is the same. significance.py decides whether a difference counts.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import numpy as np
from pydantic import BaseModel, Field, ValidationError, model_validator
from pydantic.dataclasses import dataclass as validated

from adadelta_cli import inputs
from adadelta_cli.bench import significance, worker
from adadelta_cli.bench.ceiling import share_problem
from adadelta_cli.bench.significance import LogRatio, Verdict
from adadelta_cli.bench.timing_problem import Outcome, TimingProblem
from adadelta_cli.errors import ExitCode, UsageError, shortened
from adadelta_cli.system import machine

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from numpy.typing import ArrayLike

    from adadelta_cli.bench import results
    from adadelta_cli.bench.runner import Benchmark

# Where one of these differs, it is another kind of machine: their shares cannot be compared.
KIND = {"processor", "architecture", "cores", "cores_available", "cache_bytes", "gpu"}
HOST = "host"  # where this differs, seconds cannot be compared
# These differ at each run, and are no property of the machine.
VOLATILE = frozenset({"load_average", "memory_available_bytes", "swap_used_bytes"})
UNRECORDED = "not recorded"
WELCH = "Welch's t-test on the logarithms of the medians of each process"
STUDENT = "Student's t-test on the logarithms of the ratios of processes that took turns"
MEASURE_AGAIN = "measure both on one machine: adadelta bench --against"


# Bounds of any plausible time in seconds, and of any share of a ceiling.
Positive = Annotated[float, Field(ge=1e-12, le=1e12)]
DEEPEST = 20  # of nested lists and objects; a bench.json has 4


@dataclass(frozen=True)
class MeasurementKey:
    """What identifies a measurement: rows with equal keys are compared."""

    implementation: str
    backend: str
    ctx: str
    dtype: str
    workload: str
    threads: int
    cache: str
    busy: int = 0


KEY = tuple(field.name for field in fields(MeasurementKey))


@validated(frozen=True)
class RecordedTiming(MeasurementKey):
    """A row of bench.json: which measurement it is, its share of the ceiling, and its note."""

    ceiling_fraction: Positive | None = None
    ceiling_gigabytes_per_s: Positive | None = None
    note: str = ""

    @property
    def key(self) -> MeasurementKey:
        """What identifies it in another document."""
        return MeasurementKey(*(getattr(self, name) for name in KEY))

    @property
    def wrong(self) -> bool:
        """Whether its step is incorrect, so that its time means nothing: read from the note."""
        problem = TimingProblem.parse(self.note)
        trained_wrong = f", {Outcome.WRONG.value}: " in self.note
        return trained_wrong or bool(problem and problem.is_failure)


class Processes(BaseModel):
    """The medians of each process for a row; None is a process without a sample of it."""

    median_s: list[Positive | None] = []
    ceiling_fraction: list[Positive | None] = []


SHARE, SECONDS = "share of the ceiling", "seconds"


class Document(BaseModel):
    """The parts of a bench.json that are compared."""

    rows: list[RecordedTiming]
    by_process: list[Processes]
    machine: dict[str, Any]
    settings: dict[str, Any] = {}
    complete: bool = True  # older versions did not say
    source: str = ""

    @model_validator(mode="after")
    def _parallel(self) -> Document:
        if len(self.rows) != len(self.by_process):
            raise ValueError(
                f"there are {len(self.rows)} rows and {len(self.by_process)} entries in by_process"
            )
        counts = Counter(row.key for row in self.rows)
        key, count = max(counts.items(), key=lambda item: item[1], default=(None, 0))
        if key and count > 1:
            raise ValueError(
                f"two rows have the same key: {' '.join(map(str, vars(key).values()))}"
            )
        return self

    @property
    def described(self) -> str:
        """Say in a line where it comes from."""
        host, versions = self.machine.get("host"), self.machine.get("versions")
        version = versions.get("adadelta") if isinstance(versions, dict) else None
        return (
            f"{self.source}: {len(self.rows)} rows, measured on {host or 'an unknown host'} by "
            f"adadelta {version or 'of an unknown version'}"
        )

    @property
    def by_key(self) -> dict[MeasurementKey, Found]:
        """The rows, with the medians of each process."""
        both = zip(self.rows, self.by_process, strict=True)
        return {row.key: Found(row, each) for row, each in both}


def read_document(path: Path) -> Document:
    """Read a result of bench: the file bench.json, or the folder that it is in.

    Raises:
        UsageError: it cannot be read, or is no valid result.
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
    except OSError as error:
        raise UsageError(f"{shortened(file)} cannot be read ({error.strerror})") from error
    except (ValueError, RecursionError) as error:
        raise UsageError(
            f"{file} is not JSON ({error}); name the bench.json that adadelta bench wrote"
        ) from error
    return parse_document(content, str(file))


def _is_deeper(content: Any, levels: int) -> bool:
    """Tell whether content is nested so deeply that recursion would exhaust Python's stack."""
    children = content.values() if isinstance(content, dict) else content
    nested = isinstance(content, (dict, list))
    return nested and (levels == 0 or any(_is_deeper(child, levels - 1) for child in children))


def parse_document(content: Any, source: str) -> Document:
    """Check that the content of bench.json can be compared; messages name its `source`.

    Raises:
        UsageError: a part is missing or malformed.
    """
    if not isinstance(content, dict) or "rows" not in content:
        raise UsageError(
            f"{source} is no result of adadelta bench: it has no 'rows'; name a bench.json"
        )
    if "by_process" not in content:
        raise UsageError(
            f"{source} has no 'by_process': its version did not write the medians of each process, "
            "which the test needs; measure again: adadelta bench"
        )
    if _is_deeper(content, DEEPEST):
        raise UsageError(
            f"{source} is no result of adadelta bench: it is nested too deeply; name a bench.json"
        )
    try:
        return Document.model_validate(content | {"source": source})
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "as a whole"
        raise UsageError(
            f"{source} is malformed, {shortened(where)}: {shortened(first['msg'])}; take the file "
            "as adadelta bench wrote it, or measure again"
        ) from error


@dataclass(frozen=True)
class Change:
    """A property of the machine or a setting that differs between the results.

    Attributes:
        name: its path in bench.json: `machine.versions.numpy`.
        old, new: its values, or `UNRECORDED`.
        consequence: what cannot be compared because of it; empty for none.
    """

    name: str
    old: str
    new: str
    consequence: str = ""


WHOLE, PARTIAL = "complete", "not complete (rows are missing, or have few processes)"


def _changes(old: Document, new: Document) -> list[Change]:
    """List what differs between machines and settings, changes with consequences first."""
    both = ({"machine": each.machine, "settings": each.settings} for each in (old, new))
    found = _differences(*both)
    if not (old.complete and new.complete):
        before, after = (WHOLE if each.complete else PARTIAL for each in (old, new))
        found.append(Change("result", before, after))
    return sorted(found, key=lambda change: not change.consequence)


def _differences(old: dict[str, Any], new: dict[str, Any]) -> list[Change]:
    before, after = _flat(old), _flat(new)
    return [
        Change(name, _shown(before.get(name)), _shown(after.get(name)), _consequence(name))
        for name in {**before, **after}
        if before.get(name) != after.get(name) and name.split(".")[1] not in VOLATILE
    ]


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


@dataclass(frozen=True)
class RegressionRow(MeasurementKey):
    """One measurement in both results: a row of compare.csv.

    Attributes:
        compared: `share of the ceiling`, `seconds`, or empty where nothing could be.
        old, new: geometric means over the processes of what was compared, shares or seconds.
        ratio: new time over old time, above 1 is slower, with its 99 % interval.
        p_value: of this row by itself.
        note: why it is UNCLEAR and what to do, or another remark.
    """

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
    """The comparison of two results.

    Attributes:
        rows: in the order of the new result, then those that are only in the old one.
        changes: what differs between machines and settings.
        threshold: the smallest difference that counts, as a share.
        test: the name of the test behind the verdicts.
        old, new: the names of the results.
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
        """Return the medians of `SHARE` or `SECONDS`; none where the step is wrong."""
        medians = self.processes
        values = medians.median_s if measure == SECONDS else medians.ceiling_fraction
        return [value for value in values if value is not None and not self.timing.wrong]


def judge(old: Document, new: Document, threshold: float) -> Comparison:
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
    pairs = {key: (before.get(key), after.get(key)) for key in {**after, **before}}
    found = _changes(old, new)
    weighty = [each.name.removeprefix("machine.") for each in found if each.consequence]
    kind = ", ".join(name for name in weighty if name != HOST)
    same = not weighty and HOST in new.machine  # else it is not known to be
    rows = _conclude([_match(key, *pair, kind, same) for key, pair in pairs.items()], threshold)
    both = zip(rows, pairs.values(), strict=True)
    noted = [_with_ceiling(row, *pair, threshold) for row, pair in both]
    return Comparison(tuple(noted), tuple(found), threshold, WELCH, old.source, new.source)


def judge_in_turn(work: Benchmark, threshold: float) -> Comparison:
    """Judge this version against the one that was timed in the same rounds."""
    pairs = [pair for result in work.results for pair in result.pairs]
    rows = _conclude([_in_turn(pair) for pair in pairs], threshold)
    about = work.other
    same = about["path"] == str(worker.__file__)
    theirs = about.get("versions")
    own = machine.versions() if theirs else {}
    found = _differences({"versions": theirs or {}}, {"versions": own})
    old = f"{about['version']} in {about['path']}" + " (the same installation)" * same
    return Comparison(tuple(rows), tuple(found), threshold, STUDENT, old, "this version")


def _in_turn(pair: results.Pair) -> Matched:
    """Return the difference of a pair of versions, or why there is none."""
    row = RegressionRow(*(getattr(pair.row, name) for name in KEY))
    if pair.problem and pair.problem.is_failure and not pair.old_problem:
        note = f"{pair.problem}; the old one is correct"
        return replace(row, verdict=Verdict.SLOWER, note=note), None
    if not pair.ratios:
        theirs = pair.old_problem and f"the old one: {pair.old_problem}"
        return replace(row, note=theirs or str(pair.problem or "no samples")), None
    return _fill(row, SECONDS, pair.old_s, pair.new_s), significance.paired(pair.ratios)


Matched = tuple[RegressionRow, "LogRatio | None"]
"""A row without its verdict, and the difference to judge; None where the row has its verdict."""


def _conclude(matched: Sequence[Matched], threshold: float) -> list[RegressionRow]:
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


def _match(
    key: MeasurementKey, old: Found | None, new: Found | None, kind: str, same: bool
) -> Matched:
    """Return what can be compared of a measurement, or why nothing can.

    `kind` names what makes the machines differ in kind; `same`: they are known to be one.
    """
    row = RegressionRow(**vars(key))
    if old and new and new.timing.wrong and old.known(SECONDS):
        note = f"{new.timing.note}; the old one was correct"
        return replace(row, verdict=Verdict.SLOWER, note=note), None
    obstacle = next(_obstacles(old, new, kind, same), "")
    if obstacle or not (old and new):
        return replace(row, note=obstacle), None
    measure = SHARE if old.known(SHARE) and new.known(SHARE) else SECONDS
    before, after = (np.array(side.known(measure)) for side in (old, new))
    # A larger share is a shorter time.
    times = (before, after) if measure == SECONDS else (1 / before, 1 / after)
    return _fill(row, measure, before, after), significance.unpaired(*times)


def _obstacles(old: Found | None, new: Found | None, kind: str, same: bool) -> Iterator[str]:
    """Yield the reasons why a measurement cannot be compared, the most important one first."""
    for name, side in (("old", old), ("new", new)):
        if side is None:
            yield f"not in the {name} result; measure both with the same options"
        elif not side.known(SECONDS):
            yield f"the {name} result has no time: {side.timing.note or 'no reason given'}"
    if kind:
        yield f"another kind of machine ({kind} changed); {MEASURE_AGAIN}"
    for name, side in (("old", old), ("new", new)):
        problem = side and share_problem(side.timing.ceiling_fraction)
        if problem:
            yield f"{problem} in the {name} result; {MEASURE_AGAIN}"
    if not same and not all(side and side.known(SHARE) for side in (old, new)):
        yield f"no share of a ceiling, and not known to be the same machine; {MEASURE_AGAIN}"


def _fill(row: RegressionRow, measure: str, old: ArrayLike, new: ArrayLike) -> RegressionRow:
    before, after = (float(np.exp(np.log(side).mean())) for side in (old, new))
    row = replace(row, compared=measure, old=before, new=after)
    return replace(row, processes_old=np.size(old), processes_new=np.size(new))


def _with_ceiling(
    row: RegressionRow, old: Found | None, new: Found | None, threshold: float
) -> RegressionRow:
    """Note that the ceiling moved, where the verdict is on shares of it."""
    was, now = ((side and side.timing.ceiling_gigabytes_per_s) or 0.0 for side in (old, new))
    moved = max(was, now) > min(was, now) * (1 + threshold)
    if row.compared != SHARE or not moved or not (was and now):
        return row
    note = f"the ceiling itself was {was:.3g} GB/s and is {now:.3g}"
    return replace(row, note="; ".join(filter(None, (row.note, note))))
