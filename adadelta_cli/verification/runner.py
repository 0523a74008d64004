"""`verify`: put cases to implementations, and compare them with a reference, bit for bit."""

from __future__ import annotations

import math
import time
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from adadelta_cli.errors import ExitCode
from adadelta_cli.implementations import array_backends, registry
from adadelta_cli.progress import Tick, no_tick
from adadelta_cli.system.sandbox import HungError, InProcess, Sandbox, SandboxError
from adadelta_cli.verification import cases, fuzz, invariants, oracle, tolerance
from adadelta_cli.verification.execute import Trajectory, make_ready, step_through, train
from adadelta_cli.verification.plan import SUBNORMALS, VerifyPlan, reference_of
from adadelta_cli.verification.rows import ComparisonRow, DriftTrace, TrainingTrace
from adadelta_cli.verification.ulp import Difference, written

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from adadelta_cli.implementations.base import Implementation, ToleranceULP
    from adadelta_cli.verification.cases import Case


# --- comparing ------------------------------------------------------------------------------------


def compare(
    subject: dict[str, Any], got: Trajectory, wanted: Trajectory
) -> Iterator[ComparisonRow]:
    """Compare two trajectories, a row for each tensor; `subject` is what the rows share."""
    for tensor, states in wanted.tensors.items():
        reference, result = np.concatenate(states[1:]), np.concatenate(got.tensors[tensor][1:])
        difference = Difference.between(result, reference, _scale(tensor, states))
        passed = difference.mismatches == 0
        note = "" if passed else _first(difference.first or 0, result, reference, states[0].size)
        yield ComparisonRow(
            **subject, tensor=tensor, **_errors(difference), passed=passed, note=note
        )


def _errors(difference: Difference) -> dict[str, Any]:
    """Return the fields that a row shares with a difference."""
    return {name: value for name, value in vars(difference).items() if name != "first"}


def _judgement(subject: dict[str, Any], verdict: oracle.OracleVerdict) -> ComparisonRow:
    """Make a row of the oracle's verdict on one tensor."""
    notes = [verdict.worst] if verdict.passed is False else []
    if verdict.left_out:
        notes.append(f"{verdict.left_out} left out: beyond the theory of rounding")
    return ComparisonRow(
        **subject,
        tensor=verdict.tensor,
        **_errors(verdict.difference),
        allowed_ulp=verdict.allowed_ulp,
        passed=verdict.passed,
        note="; ".join(notes),
    )


def _bounded(
    subject: dict[str, Any], verdict: tolerance.StepVerdict, *, unchanged: bool
) -> ComparisonRow:
    note = "changed nothing and returned nothing: update in place, or return the new arrays; "
    return ComparisonRow(
        **subject,
        tensor=verdict.tensor,
        **_errors(verdict.difference),
        allowed_ulp=verdict.allowed_ulp,
        passed=verdict.passed,
        excused=verdict.excused,
        note=note * (unchanged and verdict.passed is False) + verdict.note,
    )


def _drifted(subject: dict[str, Any], drift: tolerance.Drift) -> ComparisonRow:
    """Make a row of how far one tensor of a trajectory is from the reference's."""
    notes = [drift.worst] if drift.passed is False else []
    if drift.left_out:
        notes.append(f"{drift.left_out} left out: beyond the theory of rounding")
    return ComparisonRow(
        **subject | {"check": "drift"},
        tensor=drift.tensor,
        **_errors(drift.difference),
        allowed_ulp=drift.allowed_ulp,
        passed=drift.passed,
        excused=drift.left_out,
        note="; ".join(notes),
    )


def _unchanged(got: Trajectory, wanted: Trajectory) -> bool:
    """Tell whether every step left all as it was."""
    return all(
        after.tobytes() == before.tobytes()
        for name, states in got.tensors.items()
        for after, before in zip(states[1:], wanted.tensors[name], strict=False)
    )


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


def _drifts(subject: dict[str, Any], got: Trajectory, wanted: Trajectory) -> Iterator[DriftTrace]:
    who = (subject["implementation"], subject["case"], subject["dtype"])
    for tensor, states in wanted.tensors.items():
        pairs = zip(got.tensors[tensor][1:], states[1:], strict=True)
        errors = [Difference.between(a, b, np.abs(b)).relative_l2 for a, b in pairs]
        yield DriftTrace(*who, tensor, errors)


def _first(index: int, got: np.ndarray, wanted: np.ndarray, size: int) -> str:
    values = f"got {written(got[index])}, expected {written(wanted[index])}"
    return f"first at step {index // size + 1}, element {index % size}: {values}"


# --- the whole ------------------------------------------------------------------------------------


class Verification:
    """Run a plan, row by row.

    Attributes:
        rows: all rows so far.
        traces: the losses of the trainings so far.
        drifts: how far what is not ours drifted in each case so far.
    """

    def __init__(self, plan: VerifyPlan) -> None:
        self.plan = plan
        self.rows: list[ComparisonRow] = []
        self.traces: list[TrainingTrace] = []
        self.drifts: list[DriftTrace] = []
        self._hung: dict[str, str] = {}  # implementation: the case that it hung in

    @property
    def failures(self) -> list[ComparisonRow]:
        """The rows that did not pass."""
        return [row for row in self.rows if row.passed is False]

    @property
    def exit_code(self) -> ExitCode:
        """Say with what the command ends: 1 when any row did not pass, or nothing was compared."""
        return ExitCode.CHECK_FAILED if self.failures or self.is_empty else ExitCode.OK

    @property
    def is_empty(self) -> bool:
        """Whether no result was compared: no row, or all skipped, or without an element."""
        return not any(row.passed is not None and row.is_comparison for row in self.rows)

    def execute(self, tick: Tick = no_tick, sandbox: Sandbox | InProcess | None = None) -> None:
        """Do all of it; `rows` has what was finished, should it be interrupted.

        Args:
            tick: told how many cases and trainings are done, of how many, and which is next.
            sandbox: where to run them, in place of a process of its own.
        """
        plan = self.plan
        jobs: list[tuple[str, Callable[[Sandbox | InProcess], None]]] = [
            (f"{case.name} {dtype}", partial(self._check_case, case, dtype))
            for dtype in plan.dtypes
            for case in plan.cases
        ]
        jobs += [
            (f"drawn {dtype}", partial(self._check_drawn, dtype))
            for dtype in plan.dtypes
            if plan.drawn or plan.lengths or plan.steady
        ]
        jobs += [
            (f"training {config} {dtype}", partial(self._check_training, config, dtype))
            for config in plan.configs
            for dtype in plan.training_dtypes
        ]
        for missing, reason in plan.absent:
            self._skip(self._subject("step", "", missing, "", 0), reason)
        with sandbox or Sandbox(plan.timeout) as place:
            for each in plan.implementations:
                if each.backend == "mxnet":  # a second that passes beside the first cases
                    place.of(FLUSHING).begin(make_ready, "mxnet", each.device)
                    break
            for done, (what, check) in enumerate(jobs):
                tick(done, len(jobs), what)
                check(place)
        tick(len(jobs), len(jobs), "")

    def _check_case(self, case: Case, dtype: str, sandbox: Sandbox | InProcess) -> None:
        runs = _Runs(self.plan, case, dtype, sandbox)
        for chosen in self.plan.implementations:
            subject = self._subject(case.check, case.name, chosen, dtype, case.steps)
            reason = _skipped(chosen, case, dtype, named=self.plan.named)
            if reason or chosen.name in self._hung:
                self._skip(subject, reason or f"it hung in case {self._hung[chosen.name]}")
            else:
                self._compare_with_reference(chosen, subject, runs)
            if case.name in self.plan.watched and not reason:
                self._watch(case, chosen, dtype, sandbox.of(_group(chosen, case)))
        for chosen in self.plan.judged:
            self._judge(case, chosen, dtype, runs)

    def _check_drawn(self, dtype: str, sandbox: Sandbox | InProcess) -> None:
        for chosen in self.plan.implementations:
            wanted = chosen.fused or self.plan.named
            if (
                dtype not in chosen.dtypes
                or chosen.name in self._hung
                or chosen.backend in array_backends.FRAMEWORKS
            ):
                continue
            if self.plan.lengths and chosen.tolerance:
                lengths = fuzz.length_cases(self.plan.lengths)
                subject = self._subject("drawn", fuzz.LENGTHS, chosen, dtype, 1)
                self._put(chosen, subject, lengths, sandbox)
            if self.plan.steady and chosen.tolerance:
                self._repeat(chosen, dtype, sandbox)
            if self.plan.drawn and (wanted or chosen.tolerance) and chosen.name not in self._hung:
                self._draw(chosen, self._subject("drawn", fuzz.ALL, chosen, dtype, 0), sandbox)

    def _draw(
        self, chosen: Implementation, subject: dict[str, Any], sandbox: Sandbox | InProcess
    ) -> None:
        """Draw cases until an implementation is wrong in one, and shrink that."""
        plan, seconds = self.plan, self.plan.seconds if chosen.tolerance else math.inf
        trial = _Trial(plan, chosen, subject, sandbox, seconds)
        drawn = (
            fuzz.fuzzed_cases(plan.seed, plan.drawn * fuzz.OF_USERS)
            if chosen.tolerance
            else fuzz.fuzzed_cases(plan.seed, plan.drawn, fuzz.OWN_RANKS)
        )
        case = next(filter(trial.wrong, drawn), None)
        if case and not trial.crashed:  # each crash takes a new process
            case = fuzz.shrink(case, trial.wrong)
        self._conclude(trial, case, f"the smallest of {trial.cases} cases drawn and shrunk; ")

    def _put(
        self,
        chosen: Implementation,
        subject: dict[str, Any],
        some: Iterable[fuzz.FuzzedCase],
        sandbox: Sandbox | InProcess,
    ) -> None:
        """Put cases to an implementation, until it is wrong in one."""
        trial = _Trial(self.plan, chosen, subject, sandbox, 2 * self.plan.seconds)
        self._conclude(trial, next(filter(trial.wrong, some), None), "")

    def _conclude(self, trial: _Trial, case: fuzz.FuzzedCase | None, note: str) -> None:
        subject, plan = trial.subject, self.plan
        if case is None:
            compared = True if trial.cases else None
            row = ComparisonRow(
                **subject,
                tensor="",
                elements=trial.elements,
                mismatches=trial.mismatches,
                allowed_ulp=trial.allowed_ulp,
                scaled_ulp=trial.scaled_ulp,
                excused=trial.excused,
                passed=compared,
            )
            what = "lengths" if subject["case"] == fuzz.LENGTHS else "cases drawn"
            late = "; then time was up" if trial.is_late else ""
            self.rows.append(replace(row, note=f"{trial.cases} {what}{late}"))
            return
        before = len(self.rows)
        subject = subject | {"case": case.name, "steps": case.steps}
        runs = _Runs(plan, case, subject["dtype"], trial.sandbox)
        self._compare_with_reference(trial.chosen, subject, runs)
        self.rows[before:] = [replace(r, note=note + r.note) for r in self.rows[before:]]
        if all(row.passed is not False for row in self.rows[before:]):
            changes = "it was wrong once and right when it was repeated: it is not deterministic"
            self._fail(subject, SandboxError(changes))

    def _watch(
        self, case: Case, chosen: Implementation, dtype: str, place: Sandbox | InProcess
    ) -> None:
        """See how one behaves on our arrays, if it is ours or a user's; not after a failed run."""
        last = self.rows[-1]
        crashed = last.passed is False and not last.elements
        theirs = chosen.backend in array_backends.FRAMEWORKS or not chosen.keeps_grad
        theirs |= chosen.backend == "mxnet" and chosen.device.kind == "gpu"  # memory of MXNet's
        if chosen.name in self._hung or crashed or theirs:
            return
        subject = self._subject("repeat", case.name, chosen, dtype, case.steps)
        subject["reference"] = "itself"
        what = chosen, case, dtype, self.plan.seed
        try:
            found = place.call(invariants.check_determinism, *what)
            if chosen.optimizer:
                found += place.call(invariants.checkpoint_roundtrip, *what)
        except SandboxError as error:
            self._fail(subject, error)
            return
        self._note_findings(subject, found)

    def _note_findings(
        self, subject: dict[str, Any], found: Sequence[invariants.InvariantResult]
    ) -> None:
        self.rows += [
            ComparisonRow(**subject | vars(each), passed=not each.mismatches, allowed_ulp=None)
            for each in found
        ]

    def _repeat(self, chosen: Implementation, dtype: str, sandbox: Sandbox | InProcess) -> None:
        """Take a step hundreds of times over, to meet a race; and compare it once."""
        for elements, _ in invariants.REPEATED:
            case = replace(cases.single(elements), steps=1)
            runs = _Runs(self.plan, case, dtype, sandbox)
            subject = self._subject(case.check, case.name, chosen, dtype, 1)
            self._compare_steps(chosen, subject, runs)
        subject = self._subject("repeat", fuzz.STEADY, chosen, dtype, 1) | {"reference": "itself"}
        place = sandbox.of(chosen.sandbox)
        try:
            found = place.call(invariants.check_repeated, chosen, dtype, self.plan.seed)
        except SandboxError as error:
            self._fail(subject, error)
            return
        self._note_findings(subject, found)

    def _judge(self, case: Case, chosen: Implementation, dtype: str, runs: _Runs) -> None:
        """Put an implementation's trajectory before the oracle: step by step, and as a whole.

        The steps of third-party code begin at the reference's states, so that nothing that it
        computes decides what is judged.
        """
        skipped = chosen.name in self._hung or _skipped(chosen, case, dtype, named=self.plan.named)
        if skipped or not case.elements:
            return
        sample = oracle.Sample(case, dtype, self.plan.seed, self.plan.oracle_budget)
        subject = self._subject("oracle", case.name, chosen, dtype, case.steps)
        subject["reference"] = "oracle"
        try:
            if chosen.tolerance:
                inputs, outputs = runs.reference(chosen).tensors, self._kept(chosen, runs)
                found = oracle.one_step(sample, inputs, outputs, chosen.tolerance._asdict())
                self.rows += [_judgement(subject, verdict) for verdict in found]
                return
            tensors = runs.own(chosen).tensors
        except SandboxError:
            return  # which the rows of the steps report
        self.rows += [_judgement(subject, each) for each in oracle.one_step(sample, tensors)]
        subject["check"] = "drift"
        self.rows += [_judgement(subject, each) for each in oracle.drift_verdicts(sample, tensors)]

    def _kept(self, chosen: Implementation, runs: _Runs) -> dict[str, list[np.ndarray]]:
        """Return the results of single steps, the excused ones replaced by the reference's."""
        starts = {tensor: states[:1] for tensor, states in runs.reference(chosen).tensors.items()}
        verdicts = runs.verdicts(chosen)
        return {each.tensor: starts[each.tensor] + list(each.kept) for each in verdicts}

    def _compare_with_reference(
        self, chosen: Implementation, subject: dict[str, Any], runs: _Runs
    ) -> None:
        if chosen.tolerance:
            self._compare_steps(chosen, subject, runs)
        else:
            self._compare(chosen, subject, runs.own, runs.case.elements * runs.case.steps)

    def _compare_steps(self, chosen: Implementation, subject: dict[str, Any], runs: _Runs) -> None:
        """Compare third-party code: each step by itself, then the drift, both within bounds."""
        dtype, seed, case = runs.dtype, self.plan.seed, runs.case
        try:
            wanted, got = runs.reference(chosen), runs.restarted(chosen)
            own = runs.own(chosen) if case.steps > 1 else got
        except SandboxError as error:
            self._fail(subject, error)
            return
        unchanged = _unchanged(got, wanted)
        for verdict in runs.verdicts(chosen):
            self.rows.append(_bounded(subject, verdict, unchanged=unchanged))
        self._note_gradient(subject, got, case.elements * case.steps)
        if case.steps > 1:
            self.drifts += _drifts(subject, own, wanted)
            drifts = tolerance.drifts(
                case,
                tolerance.gradients(case, dtype, seed),
                wanted.tensors,
                own.tensors,
                _bounds(chosen),
                flush=self.plan.flushes(chosen),
            )
            self.rows += [_drifted(subject, each) for each in drifts]

    def _compare(
        self,
        chosen: Implementation,
        subject: dict[str, Any],
        trajectory: Callable[[Implementation], Trajectory],
        grads: int = 0,
    ) -> None:
        reference = registry.IMPLEMENTATIONS[subject["reference"]].on(chosen.device)
        try:
            got, wanted = trajectory(chosen), trajectory(reference)
        except SandboxError as error:
            self._fail(subject, error)
            return
        self.rows += compare(subject, got, wanted)
        if grads and chosen.keeps_grad:
            self._note_gradient(subject, got, grads)

    def _fail(self, subject: dict[str, Any], error: SandboxError) -> None:
        self.rows.append(
            ComparisonRow(**subject, tensor="", elements=0, passed=False, note=str(error))
        )
        if isinstance(error, HungError):
            self._hung[subject["implementation"]] = subject["case"]

    def _note_gradient(self, subject: dict[str, Any], got: Trajectory, grads: int) -> None:
        subject = {**subject, "check": "gradient", "reference": "itself"}
        self.rows.append(
            ComparisonRow(
                **subject,
                tensor="grad",
                elements=grads,
                mismatches=got.grad_changes,
                allowed_ulp=None,
                passed=not got.grad_changes,
            )
        )

    def _check_training(self, config: str, dtype: str, sandbox: Sandbox | InProcess) -> None:
        chosen = self.plan.implementations
        for each in chosen if self.plan.only_trains else ():
            subject = self._subject("training", config, each, dtype, 0)
            if not each.fused:
                self._skip(subject, f"a training compares fused steps, and {each.name} is none")
        for fused in (each for each in chosen if each.fused):
            found: dict[str, Trajectory] = {}

            def trajectory(
                each: Implementation,
                found: dict[str, Trajectory] = found,
                fused: Implementation = fused,
            ) -> Trajectory:
                plan = self.plan
                limit = plan.training_steps if fused.backend == "mxnet" else None
                arguments = (config, plan.overrides, each, dtype, plan.seed, limit)
                place = sandbox.of(FLUSHING if fused.backend == "mxnet" else "")
                found[each.name] = place.call(train, *arguments)
                return found[each.name]

            subject = self._subject("training", config, fused, dtype, 0)
            subject["reference"] = fused.unfused
            before = len(self.rows)
            self._compare(fused, subject, trajectory)
            if len(found) == 2:
                self._note_training(config, dtype, fused, found, before)

    def _note_training(
        self,
        config: str,
        dtype: str,
        fused: Implementation,
        found: dict[str, Trajectory],
        before: int,
    ) -> None:
        traced, plain = found[fused.name].losses, found[fused.unfused].losses
        self.traces.append(TrainingTrace(config, fused.backend, dtype, traced, plain))
        steps = traced[-1][0]
        self.rows[before:] = [
            ComparisonRow(**{**vars(row), "steps": steps}) for row in self.rows[before:]
        ]

    def _subject(
        self, check: str, case: str, chosen: Implementation, dtype: str, steps: int
    ) -> dict[str, Any]:
        return {
            "check": check,
            "case": case,
            "implementation": chosen.name,
            "reference": reference_of(chosen).name,
            "backend": chosen.backend,
            "ctx": str(chosen.device),
            "dtype": dtype,
            "steps": steps,
            "seed": self.plan.seed,
            "subnormals": SUBNORMALS[self.plan.flushes(chosen)],
        }

    def _skip(self, subject: dict[str, Any], reason: str) -> None:
        note = f"skipped: {reason}"
        self.rows.append(
            ComparisonRow(**subject, tensor="", elements=0, allowed_ulp=None, note=note)
        )


class _Runs:
    """What implementations make of a case, each run once."""

    def __init__(
        self, plan: VerifyPlan, case: Case, dtype: str, sandbox: Sandbox | InProcess
    ) -> None:
        self.plan, self.case, self.dtype, self._sandbox = plan, case, dtype, sandbox
        self._known: dict[tuple[str, bool], Trajectory | SandboxError] = {}

    def own(self, chosen: Implementation) -> Trajectory:
        """Return the trajectory of an implementation.

        Raises:
            SandboxError: it raised, hung or crashed.
        """
        return self._run(chosen, None)

    def reference(self, chosen: Implementation) -> Trajectory:
        """Return the trajectory that an implementation is compared with."""
        return self.own(reference_of(chosen))

    def restarted(self, chosen: Implementation) -> Trajectory:
        """Return the steps of an implementation, each from the reference's state before it."""
        if self.case.steps == 1:
            return self.own(chosen)
        return self._run(chosen, self.reference(chosen).tensors)

    def verdicts(self, chosen: Implementation) -> list[tolerance.StepVerdict]:
        """Compare the single steps of third-party code with the reference's."""
        return list(
            tolerance.verdicts(
                self.case,
                self.dtype,
                self.plan.seed,
                self.reference(chosen).tensors,
                self.restarted(chosen).tensors,
                _bounds(chosen),
                flush=self.plan.flushes(chosen),
            )
        )

    def _run(
        self, chosen: Implementation, starts: dict[str, list[np.ndarray]] | None
    ) -> Trajectory:
        key = chosen.name, starts is not None
        if key not in self._known:
            place = self._sandbox.of(_group(chosen, self.case))
            how = self.case, self.dtype, self.plan.seed, starts
            try:
                self._known[key] = place.call(step_through, chosen, *how)
            except SandboxError as error:
                self._known[key] = error
        found = self._known[key]
        if isinstance(found, SandboxError):
            raise found
        return found


class _Trial:
    """Puts drawn cases to an implementation, and counts what was compared.

    Attributes:
        subject: what the rows share.
        sandbox: where the steps are taken.
        cases: how many cases were put, those of the shrinking included.
        elements: how many numbers were compared.
        crashed: whether the last one took its process down, or hung.
    """

    def __init__(
        self,
        plan: VerifyPlan,
        chosen: Implementation,
        subject: dict[str, Any],
        sandbox: Sandbox | InProcess,
        seconds: float,
    ) -> None:
        self.plan, self.chosen, self.subject, self.sandbox = plan, chosen, subject, sandbox
        self._until = time.monotonic() + seconds
        self.cases = self.elements = self.mismatches = self.excused = 0
        self.scaled_ulp = 0.0
        self.crashed = False
        self.allowed_ulp = max(self.chosen.tolerance) if self.chosen.tolerance else 0.0

    @property
    def is_late(self) -> bool:
        """Whether there is no time for another case."""
        return time.monotonic() > self._until

    def wrong(self, case: fuzz.FuzzedCase) -> bool:
        """Tell whether an implementation is wrong in a case: differs, raises, hangs or crashes."""
        if self.is_late or self.chosen.unsupported_reason(case.hyper):
            return False
        runs = _Runs(self.plan, case, self.subject["dtype"], self.sandbox)
        self.cases += 1
        try:
            tensors = runs.reference(self.chosen).tensors
            self.elements += case.elements * case.steps * len(tensors)
            return self._differs(runs)
        except SandboxError as error:
            self.crashed = not str(error).startswith("raised")
            return True

    def _differs(self, runs: _Runs) -> bool:
        chosen = self.chosen
        got = runs.restarted(chosen) if chosen.tolerance else runs.own(chosen)
        if got.grad_changes and chosen.keeps_grad:
            return True
        if chosen.tolerance is None:
            rows = compare(self.subject, got, runs.reference(chosen))
            return any(not row.passed for row in rows)
        found = runs.verdicts(chosen)
        self.mismatches += sum(each.difference.mismatches for each in found)
        self.excused += sum(each.excused for each in found)
        largest = max(each.difference.scaled_ulp for each in found)
        self.scaled_ulp = max(self.scaled_ulp, largest)
        return any(each.passed is False for each in found)


# MXNet's OpenMP threads keep the subnormal mode that the engine's thread had when it first needed
# them, whatever is set later; so each mode has a process of its own, in which it is set first.
# Trainings leave MXNet's mode as it is, which is to flush.
FLUSHING = "mxnet, flushing"


def _bounds(chosen: Implementation) -> ToleranceULP:
    """Return how far third-party code may be from the reference."""
    if chosen.tolerance is None:
        raise TypeError(f"{chosen.name} has no bounds: it is compared bit for bit")
    return chosen.tolerance


def _group(implementation: Implementation, case: Case) -> str:
    """Name the sandbox that a case is put in."""
    flushing = case.flush and implementation.backend == "mxnet"
    return FLUSHING if flushing else implementation.sandbox


STRICT = {"numpy": "NumPy", "cupy": "our kernel on CuPy's arrays"}  # whatever a case asks for


def _skipped(implementation: Implementation, case: Case, dtype: str, *, named: bool = False) -> str:
    """Say why a case cannot be put to an implementation; empty when it can."""
    name, own = implementation.name, implementation.cases
    masters = " with float32 masters" if dtype == "float16" else ""
    reasons = {
        f"{name} has no {dtype}{masters}": dtype not in implementation.dtypes,
        f"{name} has no mode that flushes subnormals when asked to": case.flush
        and implementation.tolerance,
        f"{STRICT.get(implementation.backend)} does not flush subnormals": case.flush
        and implementation.backend in STRICT,
        "the unfused step on MXNet is the reference while it flushes subnormals": case.flush
        and name == "mxnet",
        implementation.unsupported_reason(case.hyper): True,
        "compiling it takes seconds; --case NAME or --full puts it": not named
        and own
        and case.name not in own,
    }
    return next((reason for reason, holds in reasons.items() if reason and holds), "")
