"""`run`: train a problem, record its history, stop and go on without a trace."""

from __future__ import annotations

import hashlib
import io
import json
import math
import time
from typing import TYPE_CHECKING, Any

import numpy as np

from adadelta_cli import files, inputs
from adadelta_cli.errors import ExitCode, UsageError
from adadelta_cli.implementations import registry
from adadelta_cli.implementations.base import StepInputs
from adadelta_cli.progress import Tick, no_tick
from adadelta_cli.run import config as configs
from adadelta_cli.run import problems, report, signals
from adadelta_cli.run.checkpoint import Checkpoint
from adadelta_cli.run.problems.problem import gradient
from adadelta_cli.run.result import COLUMNS, Expectation, RunOutcome, RunResult, TrainingRow
from adadelta_cli.update import state_dtype

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from adadelta_cli.implementations.array_backends import NumpyBackend
    from adadelta_cli.run.config import Config

LARGEST_RECORD_BYTES = 2 << 30  # of --record-gradients, which is held in memory


class Training:
    """A problem, its tensors on a backend, and one AdaDelta step after another.

    Args:
        config: what to train, and how.
        backend: the array library.
        fused: take the step in one pass over memory.
        dtype: float32, float64, or float16 with float32 masters and states.
        seed: everything random derives from it.

    Attributes:
        step: how many steps were taken.
        total: how many there are to take.
        parameters: the tensors by name, on the backend.

    Raises:
        UsageError: the problem's data are no good.
    """

    def __init__(
        self,
        config: Config,
        backend: NumpyBackend,
        *,
        fused: bool = True,
        dtype: str = "float32",
        seed: int = 0,
    ) -> None:
        self.problem = problems.problem(config.problem, seed)
        self.backend = backend
        self.step = 0
        self._seed = seed
        self._compute_dtype = state_dtype(dtype)
        self.parameters = {
            name: registry.parameter(backend, start, np.zeros_like(start), dtype=dtype)
            for name, start in self.problem.start.items()
        }
        parameters = list(self.parameters.values())
        self._differentiate = gradient(self.problem, backend, parameters)
        ones = [1.0] * len(parameters)
        implementation = registry.builtin(backend, fused=fused)
        hyper = config.optimizer.hyperparameters()
        self._update = implementation.bind(StepInputs(parameters, hyper, ones, ones))
        samples = len(self.problem.data[0]) if self.problem.data else 1
        self._batch_size = min(config.training.batch_size or samples, samples)
        self._samples = samples
        self.steps_per_epoch = math.ceil(samples / self._batch_size)
        epochs = config.training.epochs
        self.total = config.training.steps or (epochs or 0) * self.steps_per_epoch
        self._epoch = -1
        self._data = [values.astype(self._compute_dtype) for values in self.problem.data]
        self._batch = [backend.array(values) for values in self._data]

    def advance(self) -> None:
        """Take one step: the next batch, its gradient, the update."""
        if self.steps_per_epoch > 1:
            self._next_batch()
        self._differentiate(self._batch)
        self._update()
        self.step += 1

    def _next_batch(self) -> None:
        epoch, number = divmod(self.step, self.steps_per_epoch)
        if epoch != self._epoch:  # the order derives from seed and epoch alone: nothing to save
            self._order = np.random.default_rng([self._seed, epoch]).permutation(self._samples)
            self._epoch = epoch
        chosen = self._order[number * self._batch_size :][: self._batch_size]
        self._batch = [self.backend.array(values[chosen]) for values in self._data]

    def advance_and_measure(self) -> TrainingRow:
        """Take one step, and measure it and the point that it leads to."""
        before = self.weights(exact=True)
        self.advance()
        after = self.weights(exact=True)
        grads = [self._numpy(p.grad) for p in self.parameters.values()]
        with np.errstate(all="ignore"):
            moved = [new - old for new, old in zip(after, before, strict=True)]
        return self.measure(_norm(grads), _norm(moved))

    def measure(
        self, grad_norm: float | None = None, update_norm: float | None = None
    ) -> TrainingRow:
        """Measure the present point, in double."""
        weights = self.weights()
        with np.errstate(all="ignore"):  # a run that diverges is reported, with words
            loss = float(self.problem.loss(np, weights, *self.problem.data))
            metrics = self.problem.measure(weights)
        epoch = self.step // self.steps_per_epoch
        return TrainingRow(self.step, epoch, loss, grad_norm, update_norm, metrics)

    def weights(self, *, exact: bool = False) -> list[np.ndarray]:
        """Return the weights as float64; `exact`: the float32 masters of float16 ones."""
        return [
            self._numpy(p.master if exact and p.master is not None else p.weight)
            for p in self.parameters.values()
        ]

    def _numpy(self, array: Any) -> np.ndarray:
        return self.backend.numpy(array).astype(np.float64)

    def state(self) -> dict[str, np.ndarray]:
        """Return all that the next steps depend on, as `Checkpoint.arrays`."""
        return {
            f"{part}/{name}": self.backend.numpy(getattr(p, part))
            for name, p in self.parameters.items()
            for part in ("weight", "acc_grad", "acc_delta", "master")
            if getattr(p, part) is not None
        }

    def restore(self, step: int, state: Any) -> None:
        """Go to a step that `state` was taken at."""
        self.step = step
        for key, values in state.items():
            part, name = key.split("/", 1)
            self.backend.assign(getattr(self.parameters[name], part), values)


def _norm(arrays: Sequence[np.ndarray]) -> float:
    """Compute the 2-norm of all elements together, rightly where squares over- or underflow."""
    largest = max(float(np.abs(each).max(initial=0.0)) for each in arrays)
    if not largest or not math.isfinite(largest):
        return largest
    return largest * math.sqrt(math.fsum(float(((each / largest) ** 2).sum()) for each in arrays))


class Recorder:
    """The gradient of each step, for `verify --replay`.

    The file is an npz archive of

    - `weight/<tensor>`: the weights before the first step, in the run's dtype (for float16, the
      float16 weights, which are also the first masters);
    - `grad/<tensor>`: shape (steps, *shape of the tensor), the same dtype, as each step got it:
      before rescaling, clipping and weight decay;
    - `hyperparameters`: a text, JSON, the arguments of `update.Hyperparameters`;
    - `dtype`: a text, the run's `--dtype`.

    Raises:
        UsageError: the gradients would not fit into memory.
    """

    def __init__(self, path: Path, training: Training, config: Config, dtype: str) -> None:
        self.path = path
        self._training = training
        self._texts = {"hyperparameters": json.dumps(config.optimizer.model_dump()), "dtype": dtype}
        state = training.state()
        self._weights = {key: value for key, value in state.items() if key.startswith("weight/")}
        size = training.total * sum(value.nbytes for value in self._weights.values())
        if size > LARGEST_RECORD_BYTES:
            raise UsageError(
                f"--record-gradients would hold {size / 2**30:.1f} GiB of gradients; allowed are "
                f"{LARGEST_RECORD_BYTES / 2**30:.0f} GiB: take fewer steps"
            )
        self._grads: dict[str, list[np.ndarray]] = {name: [] for name in training.parameters}

    def add(self) -> None:
        """Keep the gradient of the step that was just taken."""
        for name, p in self._training.parameters.items():
            self._grads[name].append(self._training.backend.numpy(p.grad))

    def write(self) -> None:
        """Write what was kept."""
        grads = {f"grad/{name}": np.array(each) for name, each in self._grads.items()}
        texts = {name: np.array(text) for name, text in self._texts.items()}
        content = io.BytesIO()
        np.savez(content, **self._weights, **grads, **texts)
        files.write_bytes(self.path, content.getvalue())


FILES = ("checkpoint.npz", *report.FILES)


class Run:
    """One config's run and its files in `folder`; making it checks all that can be checked before.

    Args:
        name: the config's, for tables.
        config: what to run.
        folder: where the files go.
        backend, fused, dtype, seed: as in `Training`.
        resume: go on from the folder's checkpoint, where there is one.
        force: give up an unfinished run's checkpoint.
        record_gradients: the file for the gradient of each step.

    Attributes:
        result: what came of it, before the files are written; None before that.

    Raises:
        UsageError: the data are no good, the checkpoint is of another run, an unfinished run
            would be lost, or a file would replace what is no file.
    """

    def __init__(
        self,
        name: str,
        config: Config,
        folder: Path,
        backend: NumpyBackend,
        *,
        fused: bool = True,
        dtype: str = "float32",
        seed: int = 0,
        resume: bool = False,
        force: bool = False,
        record_gradients: Path | None = None,
    ) -> None:
        for each in FILES:
            files.check_writable(folder / each)
        if record_gradients:
            files.check_writable(record_gradients, "--record-gradients")
        self.name = name
        self.config = config
        self.folder = folder
        self.result: RunResult | None = None
        self.training = Training(config, backend, fused=fused, dtype=dtype, seed=seed)
        self._facts: dict[str, Any] = {
            "name": name,
            "problem": config.problem.name,
            "backend": backend.name,
            "ctx": str(backend.device),
            "dtype": dtype,
            "fused": fused,
            "seed": seed,
        }
        self._every = config.training.record_every or self.training.steps_per_epoch
        self._seconds = 0.0
        self._history: list[TrainingRow] = []
        self._checkpoint_path = folder / "checkpoint.npz"
        self._prepare(resume=resume, force=force)
        self._recorder = None
        if record_gradients and resume:
            raise UsageError(
                "--record-gradients needs every step, and --resume leaves out those taken before; "
                "use --force instead of --resume"
            )
        if record_gradients:
            self._recorder = Recorder(record_gradients, self.training, config, dtype)

    def _identity(self) -> dict[str, Any]:
        """Gather all that decides the trajectory and its recording, but not its length."""
        facts = {key: self._facts[key] for key in ("backend", "dtype", "fused", "seed")}
        if self.training.backend.device.kind == "gpu":
            facts["device"] = "gpu"
        digest = hashlib.sha256()
        for values in self.training.problem.data:
            digest.update(np.ascontiguousarray(values).tobytes())
        sections = self.config.model_dump(mode="json", exclude={"expect"})
        for key in ("steps", "epochs", "checkpoint_every"):
            del sections["training"][key]
        settings = {f"{s}.{key}": v for s, keys in sections.items() for key, v in keys.items()}
        return {**facts, **settings, "sha256 of the data": digest.hexdigest()}

    def _prepare(self, *, resume: bool, force: bool) -> None:
        inputs.check_possible(self._checkpoint_path, "--out with the config's name")
        if force:
            return
        found = Checkpoint.read(self._checkpoint_path)
        if found is None:
            return
        if resume:
            found.check_resumable(
                self._checkpoint_path,
                self._identity(),
                self.training.total,
                self.training.state(),
                (*COLUMNS, *self.training.problem.metrics),
            )
            self._restore(found)
        elif not found.finished:
            raise UsageError(
                f"{self._checkpoint_path} holds an unfinished run, at step {found.step} of "
                f"{found.total}; use --resume to finish it, or --force to begin anew"
            )

    def _restore(self, found: Checkpoint) -> None:
        self.training.restore(found.step, found.arrays)
        self._seconds = found.seconds
        # The last row of a run that has grown since is one that the longer run does not have.
        rows = map(TrainingRow.from_cells, found.history)
        self._history = [row for row in rows if self._is_due(row.step)]

    def _is_due(self, step: int) -> bool:
        return step % self._every == 0 or step == self.training.total

    def execute(self, tick: Tick = no_tick) -> RunResult:
        """Train to the end, writing a checkpoint now and then, and all files at the end.

        An interrupt takes effect between two steps; a checkpoint and the history so far are
        written, then it goes on its way.

        Args:
            tick: told how many steps are done, of how many, and the loss.
        """
        if not self._history:
            self._clear()
            self._history.append(self.training.measure())
        with signals.defer_signals() as release:
            while self.training.step < self.training.total and self._is_finite():
                began = time.perf_counter()
                try:
                    self._advance()
                    self._seconds += time.perf_counter() - began
                    if self.training.step % self.config.training.checkpoint_every == 0:
                        self._write_checkpoint()
                except BaseException:  # a GPU that was lost, memory that ran out, a full disk
                    self._keep()
                    raise
                try:
                    release()
                    what = f"steps, loss {self._history[-1].loss:.4g}"
                    tick(self.training.step, self.training.total, what)
                except BaseException:
                    self._stop()
                    raise
            return self._finish()

    def _clear(self) -> None:
        """Remove an earlier run's files, so that none is taken for this one's."""
        for name in FILES:
            files.remove(self.folder / name)

    def _is_finite(self) -> bool:
        return math.isfinite(self._history[-1].loss)

    def _advance(self) -> None:
        if self._is_due(self.training.step + 1):
            self._history.append(self.training.advance_and_measure())
        else:
            self.training.advance()
        if self._recorder:
            self._recorder.add()

    def _write_checkpoint(self) -> None:
        Checkpoint(
            arrays=self.training.state(),
            step=self.training.step,
            total=self.training.total,
            seconds=self._seconds,
            history=[row.cells for row in self._history],
            identity=self._identity(),
        ).write(self._checkpoint_path)

    def _stop(self) -> None:
        """Keep what an interrupted run has done."""
        try:
            self._write_checkpoint()
        finally:
            self._keep()

    def _keep(self) -> None:
        """Keep the history, which lies in this memory, whatever became of the tensors."""
        self.result = self._result(RunOutcome.INTERRUPTED)
        report.write_run(self.folder, self.result, self.config, plot=False)
        if self._recorder:
            self._recorder.write()

    def _finish(self) -> RunResult:
        self.result = result = self._result(self._outcome())
        if result.outcome is RunOutcome.DIVERGED:
            files.remove(self._checkpoint_path)  # going on would only diverge again
        else:
            self._write_checkpoint()
        report.write_run(self.folder, result, self.config)
        if self._recorder:
            self._recorder.write()
        return result

    def _checks(self) -> tuple[Expectation, ...]:
        cells = self._history[-1].cells
        return tuple(
            Expectation(metric, side, bound, cells[metric])
            for side, metric, bound in self.config.expect.bounds()
        )

    def _outcome(self) -> RunOutcome:
        if not self._is_finite():
            return RunOutcome.DIVERGED
        return (
            RunOutcome.PASSED if all(each.passed for each in self._checks()) else RunOutcome.MISSED
        )

    def _result(self, outcome: RunOutcome) -> RunResult:
        return RunResult(
            **self._facts,
            outcome=outcome,
            checks=self._checks(),
            steps=self.training.step,
            seconds=self._seconds,
            optimum=self.training.problem.optimum,
            labels=self.training.problem.metrics,
            history=tuple(self._history),
        )


def runs(
    references: Sequence[str],
    overrides: Sequence[str],
    out: Path,
    backend: NumpyBackend,
    *,
    record_gradients: Path | None = None,
    **how: Any,
) -> list[Run]:
    """Prepare the run of each config, so that whatever is wrong is found before any starts.

    Args:
        references: as `config.load` takes them; none means all that ship.
        overrides: likewise.
        out: the folder that gets a folder for each config.
        backend: the array library.
        record_gradients: as `Run` takes it; for one config only.
        how: the other arguments of `Run`.

    Raises:
        UsageError: a config or its data are no good, or two would write the same files.
    """
    references = references or configs.shipped()
    names = [configs.locate(reference).stem for reference in references]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise UsageError(f"two configs are named {twice[0]}: both would write to {out / twice[0]}")
    if record_gradients and len(names) > 1:
        raise UsageError(
            f"--record-gradients writes one file, and {len(names)} configs are to run; name one"
        )
    loaded = [configs.load_config(reference, overrides) for reference in references]
    return [
        Run(name, config, out / name, backend, record_gradients=record_gradients, **how)
        for name, config in zip(names, loaded, strict=True)
    ]


def exit_code(results: Sequence[RunResult]) -> ExitCode:
    """Return the exit code that a command with these results ends with."""
    passed = all(result.outcome is RunOutcome.PASSED for result in results)
    return ExitCode.OK if passed else ExitCode.CHECK_FAILED
