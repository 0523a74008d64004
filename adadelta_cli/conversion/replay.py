"""Take the same steps with both files, each in an optimizer of its own framework."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from adadelta_cli.system.progress import Tick, no_tick

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from adadelta_cli.conversion.states import States, TensorState
    from adadelta_cli.update import Hyperparameters

    Results = dict[int, list[np.ndarray]]  # weight and both states, by number

STEPS = 10


@dataclass(frozen=True, eq=False)
class Drawn:
    """Weights and gradients for a file, drawn from seeds.

    Attributes:
        weights: by the parameters' numbers in that file; of the states' dtype.
        halves: the numbers of those with a master, whose weights and gradients are float16.
        seeds: by number: the same for a parameter in both files.
        hyper: rescaling and clipping of the gradients.
        steps: how many are taken.
        tick: gets the steps that were taken before one, in all, and with which file.
        taken: steps of the other file before these.
    """

    weights: dict[int, np.ndarray]
    halves: set[int]
    seeds: dict[int, int]
    hyper: Hyperparameters
    steps: int = STEPS
    tick: Tick = no_tick
    taken: int = 0

    def numbered_steps(self) -> Iterator[int]:
        """Yield the number of each step to take."""
        for step in range(self.steps):
            self.tick(self.taken + step, 2 * self.steps, "steps with both files")
            yield step

    def stored_weight(self, number: int) -> np.ndarray:
        """Copy a weight, in the dtype of the training."""
        return self._stored(number, self.weights[number])

    def grad(self, step: int, number: int) -> np.ndarray:
        """Draw a gradient, in the dtype of the training."""
        return self._stored(number, _normal([self.seeds[number], 1 + step], self.weights[number]))

    def processed_grad(self, step: int, number: int) -> np.ndarray:
        """Draw it and do what PyTorch has no settings for: rescale and clip."""
        grad = self.grad(step, number).astype(self.weights[number].dtype)
        scalars = self.hyper.scalars(grad.dtype)
        clip = scalars.clip_gradient
        return np.asarray(np.clip(grad * scalars.rescale_grad, -clip, clip))

    def _stored(self, number: int, values: np.ndarray) -> np.ndarray:
        return values.astype(np.float16 if number in self.halves else values.dtype)


def _normal(seed: list[int], like: np.ndarray) -> np.ndarray:
    generator = np.random.default_rng(seed)
    return np.asarray(generator.standard_normal(like.shape, like.dtype))


def draw(target: States, tick: Tick = no_tick) -> tuple[Drawn, Drawn]:
    """Draw the same for the file that is converted and for the one that it becomes."""
    stepped = [each for each in target.tensors if each.arrays]
    before = _drawn(target, {int(each.source or 0): each for each in stepped})
    after = _drawn(target, {each.number: each for each in stepped})
    return replace(before, tick=tick), replace(after, tick=tick, taken=before.steps)


def _drawn(target: States, tensors: dict[int, TensorState]) -> Drawn:
    return Drawn(
        {number: _normal([each.number, 0], each.acc_grad) for number, each in tensors.items()},
        {number for number, each in tensors.items() if each.master is not None},
        {number: each.number for number, each in tensors.items()},
        target.hyper,
    )


class Comparison(NamedTuple):
    """How many numbers were compared, how many differ in a bit, and where the first is."""

    numbers: int
    differ: int
    first: str


def compare(target: States, before: Results, after: Results) -> Comparison:
    """Compare the results of both files.

    Where a weight is not finite, nothing is compared: MXNet adds a decay of 0 times infinity, and
    PyTorch adds none.
    """
    numbers = differ = 0
    first = ""
    for each in target.tensors:
        if not each.arrays:
            continue
        pairs = zip(before[int(each.source or 0)], after[each.number], strict=True)
        finite = np.isfinite(before[int(each.source or 0)][0])
        for name, (wanted, got) in zip(("weight", "acc_grad", "acc_delta"), pairs, strict=True):
            count = differing(got[finite], wanted[finite])
            numbers, differ = numbers + int(finite.sum()), differ + count
            first = first or (f"{name} of parameter {each.name}" if count else "")
    return Comparison(numbers, differ, first)


def differing(got: np.ndarray, wanted: np.ndarray) -> int:
    """Count the numbers that differ in a bit; all NaNs are one."""
    if got.dtype != wanted.dtype or got.shape != wanted.shape:
        return max(got.size, wanted.size)
    same = (got == wanted) & (np.signbit(got) == np.signbit(wanted))
    return int(np.count_nonzero(~(same | (np.isnan(got) & np.isnan(wanted)))))


def same_arrays(one: Iterable[TensorState], two: Iterable[TensorState]) -> bool:
    """Return whether tensors have the same names of arrays, bits and counts."""
    for a, b in zip(one, two, strict=True):
        if a.arrays.keys() != b.arrays.keys() or np.float32(a.updates) != np.float32(b.updates):
            return False
        if any(differing(a.arrays[name], b.arrays[name]) for name in a.arrays):
            return False
    return True
