"""What was found by each command: a sentence and a level, which the page shows as a colour."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

from adadelta_cli.bench.significance import Verdict
from adadelta_cli.report.found import finite, is_wrong
from adadelta_cli.run.result import RunOutcome
from adadelta_cli.sweep.rows import RESULTS, Status
from adadelta_cli.verification.rows import Status as CheckStatus

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from adadelta_cli.bench.results import BenchRow
    from adadelta_cli.report.found import (
        Found,
        FoundBench,
        FoundComparison,
        FoundRun,
        FoundSweep,
        FoundVerification,
    )


class Level(Enum):
    """How good a finding is; the page shows the word beside the colour."""

    GOOD = "good"
    DOUBTFUL = "doubtful"
    BAD = "bad"

    @property
    def word(self) -> str:
        """The word for it."""
        return {"good": "OK", "bad": "failed"}.get(self.value, self.value)


@dataclass(frozen=True)
class Finding:
    """What one result says.

    Attributes:
        command: what found it.
        place: the folder of its files.
        sentence: what was found.
        remarks: what else should be known.
        anchor: the id of the section that shows it.
    """

    command: str
    place: str
    level: Level
    sentence: str
    anchor: str
    remarks: tuple[str, ...] = ()


def findings(found: Found) -> list[Finding]:
    """Return a finding for each result, the runs together."""
    both = [
        *(_verification(each, k) for k, each in enumerate(found.verifications, 1)),
        *([_runs(found.runs)] if found.runs else []),
        *(_sweep(each, k) for k, each in enumerate(found.sweeps, 1)),
        *(_bench(each, k) for k, each in enumerate(found.benches, 1)),
        *(_comparison(each, k) for k, each in enumerate(found.comparisons, 1)),
    ]
    return [each for each in both if each]


def _counted(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'s' * (number != 1)}"


def _verification(each: FoundVerification, number: int) -> Finding:
    rows = each.rows
    failed = [row for row in rows if row.passed is False]
    judged = [row for row in rows if row.passed is not None]
    names = len({row.implementation for row in judged})
    exact = [row for row in judged if row.is_comparison and row.allowed_ulp == 0]
    differ, numbers = (
        sum(getattr(row, n) or 0 for row in exact) for n in ("mismatches", "elements")
    )
    bits = f"; {differ:,} of {numbers:,} numbers that must be equal differ in a bit"
    what = f"{_counted(len(judged), 'comparison')} of {_counted(names, 'implementation')}"
    if failed:
        level, sentence = Level.BAD, f"{len(failed):,} of {what} failed"
    elif each.unfinished:
        level, sentence = Level.DOUBTFUL, f"{what} passed"
    elif judged:
        level, sentence = Level.GOOD, f"All {what} passed"
    else:
        level, sentence = Level.DOUBTFUL, "Nothing was compared: all cases were skipped"
    sentence = "; ".join(filter(None, (each.unfinished, sentence)))
    broken = sum(row.status is CheckStatus.NO_RESULT for row in failed)
    remarks = (f"{_counted(broken, 'comparison')} had no result: it raised, hung or crashed",)
    return Finding(
        *("verify", each.place, level, sentence + bits * bool(exact) + ".", f"verify-{number}"),
        remarks * bool(broken),
    )


LEVELS = {
    RunOutcome.MISSED: Level.BAD,
    RunOutcome.DIVERGED: Level.BAD,
    RunOutcome.INTERRUPTED: Level.DOUBTFUL,
}
WORDS = {
    RunOutcome.PASSED: "met all that their configs expect",
    RunOutcome.FINISHED: "finished, with nothing to expect",
    RunOutcome.MISSED: "missed what their configs expect",
    RunOutcome.DIVERGED: "diverged",
    RunOutcome.INTERRUPTED: "stopped before the end",
}
MOST_REMARKS = 5


def _runs(runs: Sequence[FoundRun]) -> Finding:
    counts = Counter(run.summary.outcome for run in runs)
    levels = {LEVELS.get(outcome, Level.GOOD) for outcome in counts}
    level = next(each for each in (Level.BAD, Level.DOUBTFUL, Level.GOOD) if each in levels)
    words = [f"{counts[each]:,} {WORDS[each]}" for each in RunOutcome if counts[each]]
    missed = [
        f"{run.summary.name}: {check.metric} is {check.got:.4g}, expected {check.words}"
        for run in runs
        for check in run.summary.checks
        if not check.passed
    ]
    more = [f"... and {len(missed) - MOST_REMARKS:,} more"] * (len(missed) > MOST_REMARKS)
    place = runs[0].place if len(runs) == 1 else _counted(len(runs), "folder")
    sentence = f"Of {_counted(len(runs), 'run')}, {', '.join(words)}."
    return Finding("run", place, level, sentence, "runs", (*missed[:MOST_REMARKS], *more))


def _sweep(each: FoundSweep, number: int) -> Finding:
    """Say what is best, and what befell the others; the level is that of the command's exit code.

    Runs that diverged are a result, but for what `expect:` says of them.
    """
    document = each.document
    found = Counter(str(run.get("status")) for run in document.runs)
    missed = sum(setting.get("passed") is False for setting in document.settings)
    notes = [f"{_counted(found[s.value], 'run')} {s.verb}" for s in OTHERS if found[s.value]]
    notes += [f"{_counted(missed, 'setting')} missed what the config expects"] * bool(missed)
    remarks = ("not complete: the same command computes the other runs",) * (not document.complete)
    passed = document.passed
    if passed is None or not document.complete:
        passed = not missed and not any(found[s.value] for s in OTHERS if s not in RESULTS)
    best = finite(_best(document.best, f"{document.metric}_median"))
    doubtful = notes or remarks or best is None
    level = Level.BAD if not passed else Level.DOUBTFUL if doubtful else Level.GOOD
    what = f"{_counted(len(document.settings), 'setting')} of {document.config}"
    sentence = f"Of {what}, none has a finite {document.metric}"
    if best is not None:
        keys = ", ".join(f"{key}={_best(document.best, key)}" for key in document.keys)
        sentence = f"Of {what}, the best is {keys or 'all seeds'}: {document.metric} {best:.4g}"
    sentence = "; ".join([sentence, *notes]) + "."
    return Finding("sweep", each.place, level, sentence, f"sweep-{number}", remarks)


OTHERS = [each for each in Status if each is not Status.FINISHED]


def _best(best: dict[str, object] | None, name: str) -> object:
    setting = (best or {}).get("setting")
    return setting.get(name) if isinstance(setting, dict) else None


def _bench(each: FoundBench, number: int) -> Finding:
    rows = [row for row in each.rows if row.median_s is not None]
    wrong = [row for row in each.rows if is_wrong(row)]
    parts = [f"{_counted(len(rows), 'row')} timed"]
    parts += [f"{_counted(len(wrong), 'step')} incorrect"] * bool(wrong)
    parts += list(_largest(rows))
    doubtful = each.warnings or not rows or not each.complete
    level = Level.BAD if wrong else Level.DOUBTFUL if doubtful else Level.GOOD
    sentence = "; ".join(parts) + "."
    remarks = (*(f"{_where(row)}: {row.note}" for row in wrong), *each.warnings)
    return Finding("bench", each.place, level, sentence, f"bench-{number}", remarks)


def _where(row: BenchRow) -> str:
    return f"{row.implementation} at {row.workload}, {row.dtype}, {row.place}, {row.cache}"


def _largest(rows: Sequence[BenchRow]) -> Iterator[str]:
    """Yield the largest share of a ceiling and the largest speed-up, with their intervals.

    Shares that mean nothing do not count.
    """
    shares = [row for row in rows if row.share_holds]
    if shares:
        row = max(shares, key=lambda each: each.ceiling_fraction or 0.0)
        ends = f"{row.ceiling_fraction_low or 0:.2f} to {row.ceiling_fraction_high or 0:.2f}"
        yield f"largest share of the ceiling {row.ceiling_fraction:.2f} ({ends}), {_where(row)}"
    faster = [row for row in rows if row.speedup is not None and row.speedup > 1]
    if faster:
        row = max(faster, key=lambda each: each.speedup or 0.0)
        ends = f"{row.speedup_low or 0:.3g} to {row.speedup_high or 0:.3g}"
        yield f"largest speed-up {row.speedup:.3g} ({ends}) over the unfused step, {_where(row)}"


def _comparison(each: FoundComparison, number: int) -> Finding:
    counts = Counter(row.verdict for row in each.rows)
    words = ", ".join(
        f"{counts[verdict]:,} {verdict.value}" for verdict in Verdict if counts[verdict]
    )
    level = Level.GOOD
    if counts[Verdict.UNCLEAR]:
        level = Level.DOUBTFUL
    if counts[Verdict.SLOWER]:
        level = Level.BAD
    sentence = f"Of {_counted(len(each.rows), 'row')}: {words}."
    return Finding("compare", each.place, level, sentence, f"compare-{number}")
