"""Make rows of what was compared.

Each function takes the row that its results share, and fills in tensor, errors and verdict.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from adadelta_cli.verification.rows import DriftTrace
from adadelta_cli.verification.ulp import Difference, describe_first

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from adadelta_cli.verification.execute import Trajectory
    from adadelta_cli.verification.invariants import InvariantResult
    from adadelta_cli.verification.rows import ComparisonRow
    from adadelta_cli.verification.tolerance import StepVerdict
    from adadelta_cli.verification.ulp import BoundVerdict


def bitwise_rows(
    row: ComparisonRow, got: Trajectory, wanted: Trajectory
) -> Iterator[ComparisonRow]:
    """Compare all steps of two trajectories bit for bit."""
    for tensor, states in wanted.tensors.items():
        reference, result = np.concatenate(states[1:]), np.concatenate(got.tensors[tensor][1:])
        difference = Difference.between(result, reference, _scale(tensor, states))
        note = describe_first(difference, result, reference, states[0].size)
        yield row.of(tensor, difference, passed=not difference.mismatches, note=note)


def _scale(tensor: str, states: list[np.ndarray]) -> np.ndarray:
    """Return the magnitude of the largest operand of the addition that made each element.

    The weight is a difference of the last weight and the step, which may cancel; an accumulator is
    a sum of two terms that are not negative, so neither is larger than the sum.
    """
    after = np.concatenate(states[1:])
    if tensor not in {"weight", "master"}:
        return np.abs(after)
    before = np.concatenate(states[:-1])
    with np.errstate(all="ignore"):
        return np.maximum(np.abs(before), np.abs(after - before))


def bound_rows(row: ComparisonRow, verdicts: Iterable[BoundVerdict]) -> Iterator[ComparisonRow]:
    """Report errors against bounds."""
    for each in verdicts:
        notes = [each.worst] if each.passed is False else []
        if each.left_out:
            notes.append(f"{each.left_out} left out: beyond the theory of rounding")
        more = {"passed": each.passed, "allowed_ulp": each.allowed_ulp, "note": "; ".join(notes)}
        yield row.of(each.tensor, each.difference, **more)


def drift_rows(row: ComparisonRow, drifts: Iterable[BoundVerdict]) -> Iterator[ComparisonRow]:
    """Report how far a trajectory of third-party code is from the reference's."""
    for each in drifts:
        yield from bound_rows(replace(row, check="drift", excused=each.left_out), [each])


def step_rows(
    row: ComparisonRow, verdicts: Iterable[StepVerdict], *, unchanged: bool
) -> Iterator[ComparisonRow]:
    """Report single steps of third-party code; `unchanged`: none of them changed anything."""
    hint = "changed nothing and returned nothing: update in place, or return the new arrays; "
    for each in verdicts:
        yield row.of(
            each.tensor,
            each.difference,
            allowed_ulp=each.allowed_ulp,
            passed=each.passed,
            excused=each.excused,
            note=hint * (unchanged and each.passed is False) + each.note,
            only_subnormals=each.only_subnormals,
        )


def is_unchanged(got: Trajectory, wanted: Trajectory) -> bool:
    """Tell whether every step, taken from the reference's states, left them as they were."""
    return all(
        after.tobytes() == before.tobytes()
        for name, states in got.tensors.items()
        for after, before in zip(states[1:], wanted.tensors[name], strict=False)
    )


def drift_traces(row: ComparisonRow, got: Trajectory, wanted: Trajectory) -> Iterator[DriftTrace]:
    """Measure the error of each tensor after each step."""
    for tensor, states in wanted.tensors.items():
        pairs = zip(got.tensors[tensor][1:], states[1:], strict=True)
        errors = [Difference.between(a, b, b).relative_l2 for a, b in pairs]
        yield DriftTrace(row.implementation, row.case, row.dtype, tensor, errors)


def invariant_rows(
    row: ComparisonRow, results: Iterable[InvariantResult]
) -> Iterator[ComparisonRow]:
    """Report what was found of an implementation's invariants."""
    row = replace(row, allowed_ulp=None, reference="itself")
    for each in results:
        yield replace(row, **vars(each), passed=not each.mismatches)
