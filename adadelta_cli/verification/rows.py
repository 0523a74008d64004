"""The rows of verify.csv, and their summaries."""

from __future__ import annotations

import contextlib
import shlex
from dataclasses import dataclass, fields, replace
from enum import Enum
from typing import TYPE_CHECKING, Any

from adadelta_cli.errors import UsageError
from adadelta_cli.verification import catalogue, fuzz, invariants

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from adadelta_cli.verification.ulp import Difference


class Status(Enum):
    """How the comparison behind a row ended."""

    PASSED = "passed"
    FAILED = "failed"
    NO_RESULT = "no result"  # the implementation raised, hung or crashed
    SKIPPED = "skipped"  # or nothing was left to compare


@dataclass(frozen=True)
class ComparisonRow:
    """A row of verify.csv: one tensor of one case, all steps together.

    The errors are those of `Difference`; None where there was nothing to compare.

    Attributes:
        check: `step` (synthetic inputs), `training` (at every recorded step), `replay` (recorded
            gradients), `gradient` (left unchanged), `oracle` (each step against the exact result),
            `drift` (whole trajectories), `drawn` (fuzzed cases, or the smallest that failed), or
            one of `invariants.CHECKS`.
        excused: elements outside the bound for a reason that `tolerance` counts.
        passed: None where the case was skipped.
        note: what differs first, or the reason.
        skip_reason: why the case was skipped; part of `note`, and no column.
        only_subnormals: as in `StepVerdict`; no column.
        options: further ones that `replay` needs; no column.
    """

    check: str
    case: str
    implementation: str
    reference: str
    backend: str
    ctx: str
    dtype: str
    tensor: str = ""
    elements: int = 0
    steps: int = 0
    mismatches: int | None = None
    max_abs: float | None = None
    max_rel: float | None = None
    relative_l2: float | None = None
    p999_ulp: float | None = None
    max_ulp: float | None = None
    scaled_ulp: float | None = None
    allowed_ulp: float | None = 0.0
    passed: bool | None = None
    note: str = ""
    seed: int = 0
    excused: int = 0
    subnormals: str = "strict"
    skip_reason: str = ""
    only_subnormals: bool = False
    options: tuple[str, ...] = ()

    def of(self, tensor: str, difference: Difference, **more: Any) -> ComparisonRow:
        """Return the row of one tensor, with its errors."""
        errors = {name: value for name, value in vars(difference).items() if name != "first"}
        return replace(self, tensor=tensor, **errors, **more)

    def skipped(self, reason: str) -> ComparisonRow:
        """Return the row of a case that was not run."""
        note = f"skipped: {reason}"
        return replace(self, allowed_ulp=None, note=note, skip_reason=reason)

    @property
    def key(self) -> tuple[str, ...]:
        """What the rows of all tensors of a check have in common."""
        return self.implementation, self.check, self.case, self.dtype

    @property
    def columns(self) -> dict[str, Any]:
        """The values by column of verify.csv."""
        return {name: getattr(self, name) for name in COLUMNS}

    @property
    def status(self) -> Status:
        """How the comparison ended."""
        if self.passed is None:
            return Status.SKIPPED
        if self.passed:
            return Status.PASSED
        return Status.NO_RESULT if self.mismatches is None else Status.FAILED

    @property
    def is_comparison(self) -> bool:
        """Whether results were compared with another's, or should have been."""
        with_itself = self.check in {"gradient", *invariants.CHECKS}
        return not with_itself and (self.elements > 0 or self.passed is False)

    @property
    def replay(self) -> str:
        """The command that repeats just this."""
        steps, own = ["--steps", str(self.steps)], _own_steps(self.case)
        if self.check == "training":
            what = [self.case]
        elif collective := fuzz.collective_name(self.case):
            what = ["--case", collective]
        elif own is None:  # the file of a recording
            what = ["--replay", self.case, *steps]
        else:
            what = ["--case", self.case, *(steps if self.steps not in (0, own) else [])]
        ctx = [] if self.ctx == "cpu" else ["--ctx", self.ctx]
        seed = ["--seed", str(self.seed)] if self.seed else []
        which = ["--impl", self.implementation, "--dtype", self.dtype]
        which += ["--subnormals", self.subnormals] if self.subnormals != "strict" else []
        return shlex.join(["adadelta", "verify", *what, *which, *ctx, *seed, *self.options])


NO_COLUMNS = {"skip_reason", "only_subnormals", "options"}
COLUMNS = tuple(f.name for f in fields(ComparisonRow) if f.name not in NO_COLUMNS)


def _own_steps(name: str) -> int | None:
    """Return the default number of steps of a case; None where no case has that name."""
    with contextlib.suppress(UsageError):
        return catalogue.select((name,))[0].steps
    return None


@dataclass(frozen=True)
class TrainingTrace:
    """The (step, loss) pairs of a training with the fused and with the unfused step."""

    problem: str
    backend: str
    dtype: str
    fused: list[tuple[int, float]]
    unfused: list[tuple[int, float]]


@dataclass(frozen=True)
class DriftTrace:
    """The relative 2-norm of a tensor's error after each step of a case."""

    implementation: str
    case: str
    dtype: str
    tensor: str
    relative_l2: list[float]


class CheckVerdict(Enum):
    """What the rows of one check say together."""

    FAILED = "FAILED"
    SKIPPED = "skipped"
    PASSED = "passed"
    REPORTED = "reported"  # errors have no bound


@dataclass(frozen=True)
class Summary:
    """The rows of one check of one implementation, summed up."""

    implementation: str
    reference: str
    check: str
    cases: int  # counted once per dtype, as `skipped` and `failed`
    skipped: int
    failed: int
    elements: int  # compared numbers
    mismatches: int  # how many of them differ in a bit
    allowed_ulp: tuple[float, ...]  # the bounds that its rows have, in order
    max_ulp: float  # the largest distance
    scaled_ulp: float  # the largest error in ULPs of the largest operand of the final addition
    bounded: bool = True  # a large error would have failed

    @property
    def verdict(self) -> CheckVerdict:
        """The worst outcome."""
        if self.failed:
            return CheckVerdict.FAILED
        if self.skipped == self.cases:
            return CheckVerdict.SKIPPED
        return CheckVerdict.PASSED if self.bounded else CheckVerdict.REPORTED


def summaries(rows: Sequence[ComparisonRow]) -> list[Summary]:
    """Sum rows up, a summary for each check of each implementation."""
    groups: dict[str, dict[str, list[ComparisonRow]]] = {}
    for row in rows:
        groups.setdefault(row.implementation, {}).setdefault(row.check, []).append(row)
    return [_summary(some) for checks in groups.values() for some in checks.values()]


def _summary(rows: Sequence[ComparisonRow]) -> Summary:
    def cases(chosen: Iterable[ComparisonRow]) -> int:
        return len({(row.case, row.dtype) for row in chosen})

    return Summary(
        rows[0].implementation,
        rows[0].reference,
        rows[0].check,
        cases=cases(rows),
        skipped=cases(row for row in rows if row.passed is None),
        failed=cases(row for row in rows if row.passed is False),
        elements=sum(row.elements for row in rows),
        mismatches=sum(row.mismatches or 0 for row in rows),
        allowed_ulp=_bounds(rows),
        max_ulp=max(row.max_ulp or 0.0 for row in rows),
        bounded=any(row.allowed_ulp is not None for row in rows) or not rows[0].max_ulp,
        scaled_ulp=max(row.scaled_ulp or 0.0 for row in rows),
    )


def _bounds(rows: Iterable[ComparisonRow]) -> tuple[float, ...]:
    measured = (row.allowed_ulp for row in rows if row.scaled_ulp is not None)
    return tuple(sorted({bound for bound in measured if bound is not None}))


def skip_reasons(rows: Sequence[ComparisonRow]) -> list[str]:
    """Say why nothing was compared."""
    notes = [row.skip_reason or row.note for row in rows if row.passed is None]
    return list(dict.fromkeys(filter(None, notes))) or ["there was no element to compare"]
