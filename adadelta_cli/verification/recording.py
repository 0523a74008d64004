"""Gradients that `adadelta run --record-gradients` wrote, as a case."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from adadelta_cli.errors import UsageError, in_one_line
from adadelta_cli.run import npz
from adadelta_cli.update import Hyperparameters, state_dtype
from adadelta_cli.verification.cases import Case, Values

if TYPE_CHECKING:
    from collections.abc import Mapping

LARGEST_TRAJECTORY = 100_000_000  # elements of all steps together: 1.2 GB of float32 states
NO_RECORDING = "is no recording"
DTYPES = ("float32", "float64", "float16")
EXPECTED = "expected a file that adadelta run CONFIG --record-gradients FILE wrote"


@dataclass(frozen=True)
class Recording(Case):
    """A recorded training: its start, its hyper-parameters, and the gradient of each step.

    The states start at zero, as in a training. In another dtype than the training's, weights and
    gradients are rounded.
    """

    recorded: str = "float32"  # the dtype of the training
    check: ClassVar[str] = "replay"

    @classmethod
    def read(cls, path: Path, steps: int | None = None) -> Recording:
        """Read a recording, all of it or its first steps.

        Raises:
            UsageError: it is no recording, has fewer steps, or is too large.
        """
        content = _checked(path)
        weights, grads = content["weight"], content["grad"]
        found = len(next(iter(grads.values())))
        if steps and steps > found:
            raise UsageError(f"steps is {steps}; expected at most the {found} steps of {path}")
        recording = cls(
            name=str(path),
            about="recorded gradients",
            shapes=tuple(weight.shape for weight in weights.values()),
            hyper=Hyperparameters(**content["hyperparameters"]),
            steps=steps or found,
            recorded=content["dtype"],
        )
        size = recording.elements * recording.steps
        if size > LARGEST_TRAJECTORY:
            raise UsageError(
                f"{path} has {recording.elements} elements and {recording.steps} steps; expected "
                f"at most {LARGEST_TRAJECTORY} elements of all steps together; replay "
                f"{max(1, LARGEST_TRAJECTORY // recording.elements)} steps"
            )
        return recording

    def start(self, dtype: str, _seed: int) -> list[Values]:  # type: ignore[override] # not cached
        """Return the tensors before the first step, in the dtype of the states."""
        state = state_dtype(dtype)
        weights = [each.astype(dtype).astype(state) for each in _content(self.name)[0]]
        return [Values(each, np.zeros_like(each), np.zeros_like(each)) for each in weights]

    def grads(self, dtype: str, _seed: int, step: int) -> list[np.ndarray]:  # type: ignore[override]
        """Return the gradients of a step, counted from 1, in `dtype`."""
        with np.errstate(over="ignore"):
            return [np.asarray(each[step - 1]).astype(dtype) for each in _content(self.name)[1]]


@lru_cache(maxsize=1)
def _content(path: str) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Read weights and gradients, once in each process."""
    content = _checked(Path(path))
    return list(content["weight"].values()), list(content["grad"].values())


def _checked(path: Path) -> dict[str, Any]:
    """Read a recording, and check that its parts are complete and consistent."""
    file = npz.load_arrays(path, NO_RECORDING, EXPECTED)
    try:
        return _parts(file)
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise UsageError(f"{path} {NO_RECORDING}: {in_one_line(error)}; {EXPECTED}") from error


def _parts(file: Mapping[str, np.ndarray]) -> dict[str, Any]:
    weights, grads = (
        {key.removeprefix(part): array for key, array in file.items() if key.startswith(part)}
        for part in ("weight/", "grad/")
    )
    content = {
        "weight": weights,
        "grad": grads,
        "hyperparameters": json.loads(str(file["hyperparameters"])),
        "dtype": str(file["dtype"]),
    }
    Hyperparameters(**content["hyperparameters"])
    dtypes = {each.dtype for each in (*weights.values(), *grads.values())}
    if content["dtype"] not in DTYPES or dtypes - {np.dtype(content["dtype"])}:
        listed = ", ".join(sorted(map(str, dtypes)))
        raise ValueError(f"its dtype is {content['dtype']!r}, and its arrays are {listed}")
    steps = {each.shape[:1] for each in grads.values()}
    if not weights or list(weights) != list(grads) or len(steps) != 1 or steps & {(), (0,)}:
        raise ValueError("expected one gradient of each tensor for each step")
    for name, weight in weights.items():
        if grads[name].shape[1:] != weight.shape:
            raise ValueError(f"the gradients of {name} differ in shape from its weights")
    return content
