"""Train what configs describe: record the history, write the files, resume from a checkpoint."""

from __future__ import annotations

import hashlib
import json
import math
import time
from functools import partial
from importlib import metadata
from typing import TYPE_CHECKING, Any

from adadelta_cli import files, inputs
from adadelta_cli.errors import ExitCode, UsageError, displayed
from adadelta_cli.implementations.optimizers import ADADELTA
from adadelta_cli.run import config as configs
from adadelta_cli.run import report, signals
from adadelta_cli.run.checkpoint import Checkpoint
from adadelta_cli.run.comparison import PLAIN, Variant, variants
from adadelta_cli.run.logs.base import RunFacts
from adadelta_cli.run.logs.targets import RunLogs
from adadelta_cli.run.recorder import Recorder
from adadelta_cli.run.result import Expectation, RunOutcome, RunResult
from adadelta_cli.run.trainer import Trainer
from adadelta_cli.system.progress import Tick, no_tick

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from adadelta_cli.distributed.worker import Worker
    from adadelta_cli.implementations.array_backends import NumpyBackend
    from adadelta_cli.run.config import Config
    from adadelta_cli.run.logs.base import Target

CHECKPOINT = "checkpoint.npz"
FILES = (CHECKPOINT, *report.FILES)


class Training:
    """A config's training in memory: one step after another, and the rows of its history.

    Args:
        name: the config's name.
        config: what to train.
        backend, fused, dtype, seed, worker: as in `Trainer`.

    Raises:
        UsageError: the problem's data are invalid.
    """

    def __init__(
        self,
        name: str,
        config: Config,
        backend: NumpyBackend,
        *,
        fused: bool = True,
        dtype: str = "float32",
        seed: int = 0,
        worker: Worker | None = None,
    ) -> None:
        self.name, self.config = displayed(name), config
        self._worker = worker
        self.trainer = Trainer(config, backend, fused=fused, dtype=dtype, seed=seed, worker=worker)
        self._facts: dict[str, Any] = {"backend": backend.name, "ctx": str(backend.device)}
        fused = fused and config.optimizer.name == ADADELTA  # no other has a fused step
        self._facts |= {"dtype": dtype, "fused": fused, "seed": seed}
        self._facts |= worker.facts if worker else {}
        self._every = config.training.record_every or self.trainer.steps_per_epoch
        self._seconds = 0.0
        self._history = [self.trainer.measure()]

    def complete(self) -> RunResult:
        """Train to the end, or until the loss is not finite."""
        while self._goes_on():
            self._advance()
        return self._result()

    def _goes_on(self) -> bool:
        return self.trainer.step < self.trainer.total and self._is_finite()

    def _is_due(self, step: int) -> bool:
        return step % self._every == 0 or step == self.trainer.total

    def _is_finite(self) -> bool:
        return math.isfinite(self._history[-1].loss)

    def _advance(self) -> None:
        """Take a step, and record it where a row is due."""
        began = time.perf_counter()
        if self._is_due(self.trainer.step + 1):
            self._history.append(self.trainer.advance_and_measure())
        else:
            self.trainer.advance()
        self._seconds += time.perf_counter() - began

    def _outcome(self, checks: Sequence[Expectation]) -> RunOutcome:
        if not self._is_finite():
            return RunOutcome.DIVERGED
        if not checks:
            return RunOutcome.FINISHED
        return RunOutcome.PASSED if all(each.passed for each in checks) else RunOutcome.MISSED

    def _result(self, outcome: RunOutcome | None = None) -> RunResult:
        cells, bounds = self._history[-1].cells, self.config.expect.bounds()
        checks = tuple(
            Expectation(metric, side, most, cells[metric]) for side, metric, most in bounds
        )
        return RunResult(
            name=self.name,
            problem=self.trainer.problem.name,
            optimizer=self.config.optimizer.name,
            **self._facts,
            outcome=outcome or self._outcome(checks),
            checks=checks,
            steps=self.trainer.step,
            seconds=self._seconds,
            optimum=self.trainer.problem.optimum,
            labels=self.trainer.problem.metrics,
            history=tuple(self._history),
        )


class Run(Training):
    """One config's run and its files in `folder`; the constructor checks all it can.

    Args:
        name, config, backend: as in `Training`.
        folder: the folder of the files.
        resume: continue from the folder's checkpoint, if there is one.
        force: discard an unfinished run, or a finished one with other settings.
        record_gradients: the file for the gradient of each step.
        logs: where else each row of the history goes.
        variant: the values of `--vary`, which the config has.
        how: the other arguments of `Training`; of several workers, only rank 0 has files.

    Raises:
        UsageError: the data are invalid, the checkpoint is of another run, an unfinished run or
            one with other settings would be lost, or an output path is not a regular file.
    """

    def __init__(
        self,
        name: str,
        config: Config,
        folder: Path,
        backend: NumpyBackend,
        *,
        resume: bool = False,
        force: bool = False,
        record_gradients: Path | None = None,
        logs: Sequence[Target] = (),
        variant: Variant = PLAIN,
        **how: Any,
    ) -> None:
        self.variant, self.folder = variant, folder
        self.logs = RunLogs(logs)
        for each in FILES:
            files.check_writable(folder / each)
        if record_gradients:
            files.check_writable(record_gradients, "--record-gradients")
        inputs.check_possible(folder / CHECKPOINT, "--out with the config's name")
        super().__init__(name, config, backend, **how)
        self.result: RunResult | None = None  # set before the files are written
        self._resumed = False
        self._checkpoint_path = folder / CHECKPOINT
        if not force and self._has_files:
            self._read_checkpoint(resume=resume)
        if record_gradients and resume:
            raise UsageError(
                "--record-gradients needs every step, and --resume skips the earlier ones; use "
                "--force instead of --resume"
            )
        self._recorder = None
        if record_gradients and self._has_files:
            self._recorder = Recorder(record_gradients, self.trainer, config, self._facts["dtype"])

    @property
    def _has_files(self) -> bool:
        return self._worker is None or self._worker.rank == 0

    @property
    def described(self) -> str:
        """What is trained, where, and for how long, in a line."""
        trainer = self.trainer
        return (
            f"{self.name}: {trainer.problem.name} on {self._facts['backend']}, steps "
            f"{trainer.step} to {trainer.total}, in {self.folder}"
        )

    def _identity(self) -> dict[str, Any]:
        """Collect everything that decides the trajectory and its recording, except its length."""
        facts = {key: value for key, value in self._facts.items() if key != "ctx"}
        if self.trainer.backend.device.kind == "gpu":
            facts["device"] = "gpu"
        sections = self.config.model_dump(mode="json", exclude={"expect", "sweep"})
        for key in ("steps", "epochs", "checkpoint_every"):
            del sections["training"][key]
        settings = {f"{s}.{key}": v for s, keys in sections.items() for key, v in keys.items()}
        return {**facts, **settings, "sha256 of the data": self.trainer.problem.digest}

    def _read_checkpoint(self, *, resume: bool) -> None:
        found = Checkpoint.read(self._checkpoint_path)
        if found and resume:
            found.check_resumable(self._checkpoint_path, self._checkpoint())
            self.trainer.restore(found.step, found.arrays)
            self._seconds = found.seconds
            # The last row of a shorter run may be one that this run does not record.
            self._history = [row for row in found.history if self._is_due(row.step)]
            self._resumed = True
        elif found and not found.finished:
            raise UsageError(
                f"{self._checkpoint_path} holds an unfinished run, at step {found.step} of "
                f"{found.total}; use --resume to finish it, or --force to start over"
            )
        elif found:
            found.check_repeated(self._checkpoint_path, self._checkpoint())

    def execute(self, tick: Tick = no_tick) -> RunResult:
        """Train to the end, writing a checkpoint every so often, and all files at the end.

        A signal takes effect between two steps: the run writes a checkpoint and the history so
        far, then the signal is raised again.

        Args:
            tick: gets the steps done, the steps in total, and the loss.
        """
        if self._has_files and not self._resumed:
            for name in FILES:  # an earlier run's are not this run's
                files.remove(self.folder / name)
        with signals.defer_signals() as deferred:
            release = self._start_shared(deferred) if self._worker else deferred
            try:
                self._start_logs()
                return self._train(release, tick)
            finally:  # the files are written by now
                self.logs.close(self.result.outcome if self.result else None)

    def _train(self, release: Callable[[], None], tick: Tick) -> RunResult:
        while self._goes_on():
            try:
                self._advance()
            except BaseException:  # a lost GPU, no memory, a full disk: the step may be torn
                self._write_partial()
                raise
            try:
                release()
                failed = "; a log failed" if self.logs.failed else ""
                what = f"steps, loss {self._history[-1].loss:.4g}{failed}"
                tick(self.trainer.step, self.trainer.total, what)
            except BaseException:
                try:
                    self._write_checkpoint()
                finally:
                    self._write_partial()
                raise
        return self._finish()

    def _start_logs(self) -> None:
        """Start the logs, with the rows that there are: a resumed run has those before, too."""
        if self.logs.targets:
            self.logs.start(RunFacts.of(self.folder.name, self.config, self._facts))
        for row in self._history:
            self.logs.add(row)

    def _start_shared(self, deferred: signals.Release) -> Callable[[], None]:
        """Start together with the other workers; return what to call between two steps."""
        worker, shared = self._worker, self.trainer.shared
        assert worker  # noqa: S101 - for the type checker
        assert shared  # noqa: S101
        facts = [metadata.version("adadelta"), self._identity(), self.trainer.total, self._every]
        identity = hashlib.sha256(json.dumps(facts).encode()).digest()
        step = shared.start(identity, self.trainer.step)
        if step:  # the first worker resumes from its checkpoint
            state = self.trainer.state()
            self.trainer.restore(step, {key: worker.broadcast(state[key]) for key in state})
        shared.wants_to_stop = lambda: deferred.pending
        return partial(worker.release, deferred)

    def _advance(self) -> None:
        recorded = len(self._history)
        super()._advance()
        for row in self._history[recorded:]:
            self.logs.add(row)
        if self._recorder:
            began = time.perf_counter()
            self._recorder.add()
            self._seconds += time.perf_counter() - began
        if self.trainer.step % self.config.training.checkpoint_every == 0:
            self._write_checkpoint()

    def _write_checkpoint(self) -> None:
        if self._has_files:
            self._checkpoint().write(self._checkpoint_path)

    def _checkpoint(self) -> Checkpoint:
        return Checkpoint(
            arrays=self.trainer.state(),
            step=self.trainer.step,
            total=self.trainer.total,
            seconds=self._seconds,
            history=self._history,
            identity=self._identity(),
        )

    def _write_partial(self) -> None:
        """Write the history so far; it is valid even if the tensors are not."""
        self.result = self._result(RunOutcome.INTERRUPTED)
        self._write_files(self.result, plot=False)

    def _finish(self) -> RunResult:
        self.result = result = self._result()
        if result.outcome is not RunOutcome.DIVERGED:
            self._write_checkpoint()
        elif self._has_files:
            files.remove(self._checkpoint_path)  # a resumed run would only diverge again
        self._write_files(result)
        return result

    def _write_files(self, result: RunResult, *, plot: bool = True) -> None:
        if not self._has_files:
            return
        report.write_run(self.folder, result, self.config, plot=plot)
        if self._recorder:
            self._recorder.write()


def runs(
    references: Sequence[str],
    overrides: Sequence[str],
    out: Path,
    backend: NumpyBackend,
    *,
    record_gradients: Path | None = None,
    fused: bool | None = None,
    vary: Sequence[str] = (),
    **how: Any,
) -> list[Run]:
    """Prepare the run of each config, so that errors appear before any of them starts.

    Args:
        references: as `config.load_config` takes them; none means all bundled configs.
        overrides: as `config.load_config` takes them, for each config.
        out: the folder that gets a folder for each config.
        backend: the array library.
        record_gradients: as `Run` takes it; for a single config only.
        fused: use the fused step or the unfused one; None: the fused one where there is one.
        vary: `KEY=V1,V2` each, as `comparison.variants` takes them.
        how: the other arguments of `Run`.

    Raises:
        UsageError: a config or its data are invalid, or two would write the same files.
    """
    references = references or configs.shipped()
    varied = variants(vary, len(references))
    pairs = [(reference, each) for reference in references for each in varied]
    names = [_name(configs.locate(reference), each.label) for reference, each in pairs]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise UsageError(
            f"two configs are named {displayed(twice[0])}: both would write to "
            f"{displayed(str(out / twice[0]))}; rename one"
        )
    if record_gradients and len(names) > 1:
        raise UsageError(
            f"--record-gradients writes one file, but there are {len(names)} configs; name one"
        )
    loaded = [configs.load_config(each, overrides, variant.overrides) for each, variant in pairs]
    if fused:
        for name, config in zip(names, loaded, strict=True):
            _check_fused(name, config)
    how |= {"fused": fused is not False, "record_gradients": record_gradients}
    return [
        Run(name, config, out / name, backend, variant=variant, **how)
        for name, config, (_, variant) in zip(names, loaded, pairs, strict=True)
    ]


def _check_fused(name: str, config: Config) -> None:
    """Check that a config's optimizer has a fused step.

    Raises:
        UsageError: it has none.
    """
    optimizer = config.optimizer.name
    if optimizer != ADADELTA:
        raise UsageError(
            f"--fused: only {ADADELTA} has a fused step, and optimizer.name of {displayed(name)} "
            f"is {optimizer}; leave --fused out"
        )


def _name(path: Path, label: str) -> str:
    """Return a run's name: its file's, without the ending unless only dots are left, and values."""
    name = path.stem if path.stem.strip(".") else path.name
    return f"{name}_{label}" if label else name


def exit_code(results: Sequence[RunResult]) -> ExitCode:
    """Return the exit code of a command with these results."""
    good = {RunOutcome.PASSED, RunOutcome.FINISHED}
    passed = all(result.outcome in good for result in results)
    return ExitCode.OK if passed else ExitCode.CHECK_FAILED
