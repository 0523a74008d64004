"""Train what configs describe: record the history, write the files, resume from a checkpoint."""

from __future__ import annotations

import hashlib
import math
import time
from typing import TYPE_CHECKING, Any

import numpy as np

from adadelta_cli import files, inputs
from adadelta_cli.errors import ExitCode, UsageError, displayed
from adadelta_cli.progress import Tick, no_tick
from adadelta_cli.run import config as configs
from adadelta_cli.run import report, signals
from adadelta_cli.run.checkpoint import Checkpoint
from adadelta_cli.run.recorder import Recorder
from adadelta_cli.run.result import Expectation, RunOutcome, RunResult
from adadelta_cli.run.trainer import Trainer

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from adadelta_cli.implementations.array_backends import NumpyBackend
    from adadelta_cli.run.config import Config

CHECKPOINT = "checkpoint.npz"
FILES = (CHECKPOINT, *report.FILES)


class Run:
    """One config's run and its files in `folder`; the constructor checks all it can.

    Args:
        name: the config's name.
        config: what to train.
        folder: the folder of the files.
        backend, fused, dtype, seed: as in `Trainer`.
        resume: continue from the folder's checkpoint, if there is one.
        force: discard an unfinished run, or a finished one with other settings.
        record_gradients: the file for the gradient of each step.

    Attributes:
        result: the result, set before the files are written; None until then.

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
        fused: bool = True,
        dtype: str = "float32",
        seed: int = 0,
        resume: bool = False,
        force: bool = False,
        record_gradients: Path | None = None,
    ) -> None:
        self.config, self.folder = config, folder
        self._check_files(record_gradients)
        self.trainer = Trainer(config, backend, fused=fused, dtype=dtype, seed=seed)
        self.result: RunResult | None = None
        self.name = displayed(name)
        self._facts: dict[str, Any] = {"backend": backend.name, "ctx": str(backend.device)}
        self._facts |= {"dtype": dtype, "fused": fused, "seed": seed}
        self._every = config.training.record_every or self.trainer.steps_per_epoch
        self._seconds = 0.0
        self._history = [self.trainer.measure()]
        self._resumed = False
        self._checkpoint_path = folder / CHECKPOINT
        if not force:
            self._read_checkpoint(resume=resume)
        self._recorder = None
        if record_gradients and resume:
            raise UsageError(
                "--record-gradients needs every step, and --resume skips the earlier ones; use "
                "--force instead of --resume"
            )
        if record_gradients:
            self._recorder = Recorder(record_gradients, self.trainer, config, dtype)

    def _check_files(self, record_gradients: Path | None) -> None:
        for each in FILES:
            files.check_writable(self.folder / each)
        if record_gradients:
            files.check_writable(record_gradients, "--record-gradients")
        inputs.check_possible(self.folder / CHECKPOINT, "--out with the config's name")

    def _identity(self) -> dict[str, Any]:
        """Collect everything that decides the trajectory and its recording, except its length."""
        facts = {key: value for key, value in self._facts.items() if key != "ctx"}
        if self.trainer.backend.device.kind == "gpu":
            facts["device"] = "gpu"
        digest = hashlib.sha256()
        for values in self.trainer.problem.data:
            digest.update(np.ascontiguousarray(values).tobytes())
        sections = self.config.model_dump(mode="json", exclude={"expect"})
        for key in ("steps", "epochs", "checkpoint_every"):
            del sections["training"][key]
        settings = {f"{s}.{key}": v for s, keys in sections.items() for key, v in keys.items()}
        return {**facts, **settings, "sha256 of the data": digest.hexdigest()}

    def _read_checkpoint(self, *, resume: bool) -> None:
        found = Checkpoint.read(self._checkpoint_path)
        if found and resume:
            found.check_resumable(self._checkpoint_path, self._checkpoint())
            self._restore(found)
        elif found and not found.finished:
            raise UsageError(
                f"{self._checkpoint_path} holds an unfinished run, at step {found.step} of "
                f"{found.total}; use --resume to finish it, or --force to start over"
            )
        elif found:
            found.check_repeated(self._checkpoint_path, self._checkpoint())

    def _restore(self, found: Checkpoint) -> None:
        self.trainer.restore(found.step, found.arrays)
        self._seconds = found.seconds
        # The last row of a shorter run may be one that this run does not record.
        self._history = [row for row in found.history if self._is_due(row.step)]
        self._resumed = True

    def _is_due(self, step: int) -> bool:
        return step % self._every == 0 or step == self.trainer.total

    def execute(self, tick: Tick = no_tick) -> RunResult:
        """Train to the end, writing a checkpoint every so often, and all files at the end.

        A signal takes effect between two steps: the run writes a checkpoint and the history so
        far, then the signal is raised again.

        Args:
            tick: gets the steps done, the steps in total, and the loss.
        """
        if not self._resumed:
            self._remove_files()
        with signals.defer_signals() as release:
            while self.trainer.step < self.trainer.total and self._is_finite():
                try:
                    self._advance()
                except BaseException:  # a lost GPU, no memory, a full disk: the step may be torn
                    self._write_partial()
                    raise
                try:
                    release()
                    what = f"steps, loss {self._history[-1].loss:.4g}"
                    tick(self.trainer.step, self.trainer.total, what)
                except BaseException:
                    try:
                        self._checkpoint().write(self._checkpoint_path)
                    finally:
                        self._write_partial()
                    raise
            return self._finish()

    def _remove_files(self) -> None:
        """Remove an earlier run's files, so that they are not mistaken for this run's."""
        for name in FILES:
            files.remove(self.folder / name)

    def _is_finite(self) -> bool:
        return math.isfinite(self._history[-1].loss)

    def _advance(self) -> None:
        began = time.perf_counter()
        if self._is_due(self.trainer.step + 1):
            self._history.append(self.trainer.advance_and_measure())
        else:
            self.trainer.advance()
        if self._recorder:
            self._recorder.add()
        self._seconds += time.perf_counter() - began
        if self.trainer.step % self.config.training.checkpoint_every == 0:
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
        self.result = result = self._result(self._outcome())
        if result.outcome is RunOutcome.DIVERGED:
            files.remove(self._checkpoint_path)  # a resumed run would only diverge again
        else:
            self._checkpoint().write(self._checkpoint_path)
        self._write_files(result)
        return result

    def _write_files(self, result: RunResult, *, plot: bool = True) -> None:
        report.write_run(self.folder, result, self.config, plot=plot)
        if self._recorder:
            self._recorder.write()

    def _checks(self) -> tuple[Expectation, ...]:
        cells = self._history[-1].cells
        return tuple(
            Expectation(metric, side, bound, cells[metric])
            for side, metric, bound in self.config.expect.bounds()
        )

    def _outcome(self) -> RunOutcome:
        if not self._is_finite():
            return RunOutcome.DIVERGED
        if not self._checks():
            return RunOutcome.FINISHED
        passed = all(each.passed for each in self._checks())
        return RunOutcome.PASSED if passed else RunOutcome.MISSED

    def _result(self, outcome: RunOutcome) -> RunResult:
        return RunResult(
            name=self.name,
            problem=self.config.problem.name,
            **self._facts,
            outcome=outcome,
            checks=self._checks(),
            steps=self.trainer.step,
            seconds=self._seconds,
            optimum=self.trainer.problem.optimum,
            labels=self.trainer.problem.metrics,
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
    """Prepare the run of each config, so that errors appear before any of them starts.

    Args:
        references: as `config.load_config` takes them; none means all bundled configs.
        overrides: as `config.load_config` takes them, for each config.
        out: the folder that gets a folder for each config.
        backend: the array library.
        record_gradients: as `Run` takes it; for a single config only.
        how: the other arguments of `Run`.

    Raises:
        UsageError: a config or its data are invalid, or two would write the same files.
    """
    references = references or configs.shipped()
    names = [_name(configs.locate(reference)) for reference in references]
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
    loaded = [configs.load_config(reference, overrides) for reference in references]
    return [
        Run(name, config, out / name, backend, record_gradients=record_gradients, **how)
        for name, config in zip(names, loaded, strict=True)
    ]


def _name(path: Path) -> str:
    """Return a config's name: its file's without the ending, unless only dots were left."""
    return path.stem if path.stem.strip(".") else path.name


def exit_code(results: Sequence[RunResult]) -> ExitCode:
    """Return the exit code of a command with these results."""
    good = {RunOutcome.PASSED, RunOutcome.FINISHED}
    passed = all(result.outcome in good for result in results)
    return ExitCode.OK if passed else ExitCode.CHECK_FAILED
