"""What `verify` found, as rows, and what rows say together."""

from __future__ import annotations

import contextlib
import shlex
from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING

from adadelta_cli.errors import UsageError
from adadelta_cli.verification import catalogue, fuzz, invariants

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence


@dataclass(frozen=True)
class ComparisonRow:
    """A row of verify.csv: one tensor of one case, all steps together.

    `check` is `step` (synthetic inputs), `training` (a whole training, at every recorded step),
    `gradient` (it was left alone), `replay` (recorded gradients), `oracle` (each step against the
    exact result, given the same inputs), `drift` (all steps, against the exact trajectory, or that
    of the array update for one that is not ours), or how it behaves, compared with itself: `guard`,
    `repeat`, `saved` (`conduct`); or `drawn`, of all cases that `draw` drew from the seed, or of
    the smallest that failed. The errors are those of `Difference`; None where there was nothing to
    compare. `excused` counts elements outside the bound for a reason that counts (`parity`).
    `passed` is None where the case was skipped; `note` says why.
    """

    check: str
    case: str
    implementation: str
    reference: str
    backend: str
    ctx: str
    dtype: str
    tensor: str
    elements: int
    steps: int
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

    @property
    def is_comparison(self) -> bool:
        """Whether results were compared with those of another, or there was none to compare."""
        with_itself = self.check in {"gradient", *invariants.CHECKS}
        return not with_itself and (self.elements > 0 or self.passed is False)

    @property
    def replay(self) -> str:
        """The command that repeats just this."""
        steps, own = ["--steps", str(self.steps)], _own_steps(self.case)
        if self.check == "training":
            what = [self.case]
        elif self.case in fuzz.COLLECTIVE:
            what = ["--case", self.case]
        elif own is None:  # a recording
            what = ["--replay", self.case, *steps]
        else:
            what = ["--case", self.case, *(steps if self.steps not in (0, own) else [])]
        ctx = [] if self.ctx == "cpu" else ["--ctx", self.ctx]
        seed = ["--seed", str(self.seed)] if self.seed else []
        which = ["--impl", self.implementation, "--dtype", self.dtype]
        which += ["--subnormals", self.subnormals] if self.subnormals != "strict" else []
        return shlex.join(["adadelta", "verify", *what, *which, *ctx, *seed])


def _own_steps(name: str) -> int | None:
    """Say how many steps a case takes where no number is asked for; None for what is no case."""
    with contextlib.suppress(UsageError):
        return catalogue.select((name,))[0].steps
    return None


@dataclass(frozen=True)
class TrainingTrace:
    """The losses of one training with the fused and with the unfused step, for the picture."""

    problem: str
    backend: str
    dtype: str
    fused: list[tuple[int, float]]
    unfused: list[tuple[int, float]]


@dataclass(frozen=True)
class DriftTrace:
    """How far a tensor of a case is from the reference's after each step, for the picture."""

    implementation: str
    case: str
    dtype: str
    tensor: str
    relative_l2: list[float]


@dataclass(frozen=True)
class Summary:
    """What all rows of one implementation say together.

    Attributes:
        implementation, reference: who was compared with whom.
        check: as in `ComparisonRow`.
        cases: how many cases, each in its dtypes.
        skipped: how many of them could not be put to it.
        failed: how many did not pass.
        elements: how many numbers were compared.
        mismatches: how many of them differ in a bit.
        max_ulp: the largest distance.
        scaled_ulp: the largest error in ULPs of the largest operand of the final addition.
        bounded: an error of some size would have failed.
    """

    implementation: str
    reference: str
    check: str
    cases: int
    skipped: int
    failed: int
    elements: int
    mismatches: int
    max_ulp: float
    scaled_ulp: float
    bounded: bool = True


def summaries(rows: Sequence[ComparisonRow]) -> list[Summary]:
    """Sum rows up, a summary for each check of each implementation."""
    groups: dict[tuple[str, str], list[ComparisonRow]] = defaultdict(list)
    for row in rows:
        groups[row.implementation, row.check].append(row)
    order = list(dict.fromkeys(row.implementation for row in rows))
    return sorted(map(_summary, groups.values()), key=lambda each: order.index(each.implementation))


def _summary(rows: Sequence[ComparisonRow]) -> Summary:
    def cases(chosen: Iterable[ComparisonRow]) -> int:
        return len({(row.case, row.dtype) for row in chosen})

    return Summary(
        implementation=rows[0].implementation,
        reference=rows[0].reference,
        check=rows[0].check,
        cases=cases(rows),
        skipped=cases(row for row in rows if row.passed is None),
        failed=cases(row for row in rows if row.passed is False),
        elements=sum(row.elements for row in rows),
        mismatches=sum(row.mismatches or 0 for row in rows),
        max_ulp=max(row.max_ulp or 0.0 for row in rows),
        bounded=any(row.allowed_ulp is not None for row in rows) or not rows[0].max_ulp,
        scaled_ulp=max(row.scaled_ulp or 0.0 for row in rows),
    )


def reasons(rows: Sequence[ComparisonRow]) -> list[str]:
    """Say why nothing was compared."""
    notes = [row.note.removeprefix("skipped: ") for row in rows if row.passed is None]
    return list(dict.fromkeys(filter(None, notes))) or ["there was no element to compare"]
