"""Train a problem step by step, and measure it."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from adadelta_cli.errors import UsageError
from adadelta_cli.implementations import optimizers
from adadelta_cli.run import problems
from adadelta_cli.run.config import unknown_metrics, without_data
from adadelta_cli.run.problems.problem import gradient
from adadelta_cli.run.result import TrainingRow
from adadelta_cli.update import state_dtype

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from adadelta_cli.distributed.worker import SharedSteps, Worker
    from adadelta_cli.implementations.array_backends import NumpyBackend
    from adadelta_cli.implementations.base import Step
    from adadelta_cli.run.config import Config
    from adadelta_cli.run.problems.problem import Problem


class Batches:
    """Batches of `size` samples on a backend; an epoch takes each once, in an order of its own.

    The order derives from the seed and the epoch, so a checkpoint does not store it. `data` are
    `Problem.data`; a size of None is that of all samples.

    Attributes:
        size: of a batch; an epoch's last one may be smaller.
        per_epoch: batches, and so steps, of an epoch.
    """

    def __init__(
        self, data: Sequence[np.ndarray], size: int | None, backend: NumpyBackend, seed: int
    ) -> None:
        self._data, self._backend, self._seed = data, backend, seed
        self._samples = len(data[0]) if data else 1
        self.size = min(size or self._samples, self._samples)
        self.per_epoch = math.ceil(self._samples / self.size)
        self._epoch = -1
        self._batch = [backend.array(values) for values in data] if self.per_epoch == 1 else []

    def at(self, step: int) -> list[Any]:
        """Return the batch of a step, counted from 0."""
        if self.per_epoch == 1:
            return self._batch
        epoch, number = divmod(step, self.per_epoch)
        if epoch != self._epoch:
            self._order = np.random.default_rng([self._seed, epoch]).permutation(self._samples)
            self._epoch = epoch
        chosen = self._order[number * self.size :][: self.size]
        return [self._backend.array(values[chosen]) for values in self._data]


class Trainer:
    """A problem, its tensors on a backend, and one step of the optimizer after another.

    Args:
        config: the problem, the optimizer and the length of the training.
        backend: the array library.
        fused: take AdaDelta's step in one pass over memory; no other optimizer has one.
        dtype: float32, float64, or float16 with float32 masters and states.
        seed: of all random numbers.
        worker: shares each step with the other workers of a distributed training.

    Attributes:
        shared: the steps that are shared with other workers; None without any.
        step, total: steps taken, and to take.
        parameters: the tensors by name, on the backend.

    Raises:
        UsageError: the problem's data are invalid, or a batch cannot be shared by the workers.
    """

    def __init__(
        self,
        config: Config,
        backend: NumpyBackend,
        *,
        fused: bool = True,
        dtype: str = "float32",
        seed: int = 0,
        worker: Worker | None = None,
    ) -> None:
        self.problem = problems.problem(config.problem, seed)
        check_own(config, self.problem)
        self.backend = backend
        self.step = 0
        self._settings, self._fused = config.optimizer.model_dump(), fused
        self.parameters = {
            name: optimizers.tensor(backend, start, config.optimizer.name, dtype)
            for name, start in self.problem.start.items()
        }
        self._differentiate = gradient(self.problem, backend, [*self.parameters.values()])
        self._update = self._bound()
        data = [_rounded(values, state_dtype(dtype)) for values in self.problem.data]
        self._batches = Batches(data, config.training.batch_size, backend, seed)
        self.steps_per_epoch = self._batches.per_epoch
        epochs = config.training.epochs or 0
        self.total = config.training.steps or epochs * self.steps_per_epoch
        self.shared: SharedSteps | None = None
        if worker:
            check_shareable(self.problem, self._batches.size, worker.cluster.workers)
            self.shared = worker.share([*self.parameters.values()], self._optimizer)

    def _bound(self) -> Step:
        tensors = [*self.parameters.values()]
        how = self._settings
        return optimizers.bind(self.backend, tensors, how, fused=self._fused, done=self.step)

    def _optimizer(self) -> Any:
        return optimizers.mxnet_optimizer(self._settings, fused=self._fused)

    def advance(self) -> None:
        """Take one step: the next batch, its gradient, the update."""
        batch = self._batches.at(self.step)
        if self.shared:
            self.shared.advance(batch, self._differentiate, self._update)
        else:
            self._differentiate(batch)
            self._update()
        self.step += 1

    def advance_and_measure(self) -> TrainingRow:
        """Take one step, and measure it and the point that it leads to."""
        before = self.weights(exact=True)
        self.advance()
        after = self.weights(exact=True)
        grad_norm = None if self.shared and self.shared.on_servers else self._grad_norm()
        with np.errstate(all="ignore"):
            moved = [new - old for new, old in zip(after, before, strict=True)]
        return self.measure(grad_norm, norm(moved))

    def _grad_norm(self) -> float:
        return norm([self._numpy(p.grad) for p in self.parameters.values()])

    def measure(
        self, grad_norm: float | None = None, update_norm: float | None = None
    ) -> TrainingRow:
        """Measure the current point, in float64."""
        weights = self.weights()
        with np.errstate(all="ignore"):  # Run reports a diverged loss
            measured = self.problem.evaluate(weights)
        return TrainingRow(
            step=self.step,
            epoch=self.step // self.steps_per_epoch,
            loss=measured.pop("loss"),
            grad_norm=grad_norm,
            update_norm=update_norm,
            **measured,
        )

    def weights(self, *, exact: bool = False) -> list[np.ndarray]:
        """Return the weights as float64; `exact`: the float32 masters of float16 weights."""
        return [self._numpy(p.exact if exact else p.weight) for p in self.parameters.values()]

    def _numpy(self, array: Any) -> np.ndarray:
        return self.backend.numpy(array).astype(np.float64)

    def state(self) -> dict[str, np.ndarray]:
        """Return everything that the next steps depend on, as `Checkpoint.arrays`.

        Where servers take the steps, they keep the rest: the weights only.
        """
        on_servers = self.shared and self.shared.on_servers
        return {
            f"{part}/{name}": self.backend.numpy(array)
            for name, p in self.parameters.items()
            for part, array in p.arrays.items()
            if part == "weight" or not on_servers
        }

    def restore(self, step: int, state: Mapping[str, np.ndarray]) -> None:
        """Continue from a step and the `state` at it."""
        self.step = step
        for key, values in state.items():
            part, name = key.split("/", 1)
            self.backend.assign(self.parameters[name].arrays[part], values)
        self._update = self._bound()


def check_own(config: Config, problem: Problem) -> None:
    """Check what is known of a problem of the user's own once it is made.

    Raises:
        UsageError: the config expects a metric, or counts epochs, that the problem lacks.
    """
    wrong = [*unknown_metrics(config.expect, problem.name, problem.metrics)]
    wrong += [] if problem.data else without_data(config.training, problem.name)
    if wrong:
        raise UsageError(*(message for _, message in wrong))


def _rounded(values: np.ndarray, dtype: str) -> np.ndarray:
    """Round floats to a dtype; integers, such as labels, stay."""
    return values.astype(dtype, copy=False) if values.dtype.kind == "f" else values


def check_shareable(problem: Problem, size: int, workers: int) -> None:
    """Check that workers can share the batches of a problem.

    Raises:
        UsageError: it has no samples, or a batch has fewer of them than there are workers.
    """
    if not problem.data:
        raise UsageError(
            f"--kvstore: {problem.name} has no samples, so its gradient has no parts that workers "
            "could share; name a config with data, such as mlp"
        )
    if size < workers:
        raise UsageError(
            f"--kvstore: a batch of {size} samples cannot be shared by {workers} workers; set "
            f"training.batch_size to at least {workers}, or start fewer workers"
        )


def norm(arrays: Sequence[np.ndarray]) -> float:
    """Compute the 2-norm of all elements together; their squares neither overflow nor underflow."""
    largest = max(float(np.abs(each).max(initial=0.0)) for each in arrays)
    if not largest or not math.isfinite(largest):
        return largest
    return largest * math.sqrt(math.fsum(float(((each / largest) ** 2).sum()) for each in arrays))
