"""`verify`: put cases to implementations, and compare them with a reference, bit for bit."""

from __future__ import annotations

import contextlib
import math
import shlex
import time
import warnings
from collections import defaultdict
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from adadelta_cli.errors import ExitCode, UsageError
from adadelta_cli.implementations import array_backends as backends
from adadelta_cli.implementations import registry as implementations
from adadelta_cli.implementations import user_kernel as candidate
from adadelta_cli.progress import Tick, no_tick
from adadelta_cli.system.sandbox import HungError, InProcess, Sandbox, SandboxError
from adadelta_cli.verification import cases, catalogue, oracle
from adadelta_cli.verification import fuzz as draw
from adadelta_cli.verification import invariants as conduct
from adadelta_cli.verification import tolerance as parity
from adadelta_cli.verification.execute import Trajectory, make_ready, step_through, train
from adadelta_cli.verification.ulp import Difference

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from adadelta_cli.implementations.base import Bounds, Implementation
    from adadelta_cli.verification.cases import Case

# What each is compared with: fused with unfused on the same arrays, and the array update on MXNet
# with that on NumPy, so that by two steps everything is compared with the NumPy one.
REFERENCES = {
    "numpy": "numpy-fused",
    "numpy-fused": "numpy",
    "mxnet": "numpy",
    "mxnet-fused": "mxnet",
    "mxnet-stock": "mxnet",
    "cupy": "numpy",
    "cupy-fused": "cupy",
}
DTYPES = ("float32", "float64", "float16")
SUBNORMALS = ("strict", "flush")
# Of a training on MXNet in the default set, for its small operators take a millisecond a step; on
# NumPy, and with `--full` on both, a training goes to its end.
TRAINING_STEPS = 50
ORACLE_BUDGET = 150  # see `Plan.oracle_budget`; with --full, 500


@dataclass(frozen=True)
class Row:
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
        with_itself = self.check in {"gradient", *conduct.CHECKS}
        return not with_itself and (self.elements > 0 or self.passed is False)

    @property
    def replay(self) -> str:
        """The command that repeats just this."""
        steps = ["--steps", str(self.steps)]
        whats = {"training": [self.case], "replay": ["--replay", self.case, *steps]}
        other = self.steps not in (0, _own_steps(self.case))  # than the case's own number
        other &= self.case not in draw.COLLECTIVE
        what = whats.get(self.check, ["--case", self.case, *(steps if other else [])])
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
class Trace:
    """The losses of one training with the fused and with the unfused step, for the picture."""

    problem: str
    backend: str
    dtype: str
    fused: list[tuple[int, float]]
    unfused: list[tuple[int, float]]


@dataclass(frozen=True)
class Drift:
    """How far a tensor of a case is from the reference's after each step, for the picture."""

    implementation: str
    case: str
    dtype: str
    tensor: str
    relative_l2: list[float]


# --- comparing ------------------------------------------------------------------------------------


def compare(subject: dict[str, Any], got: Trajectory, wanted: Trajectory) -> Iterator[Row]:
    """Compare two trajectories, a row for each tensor; `subject` is what the rows share."""
    for tensor, states in wanted.tensors.items():
        reference, result = np.concatenate(states[1:]), np.concatenate(got.tensors[tensor][1:])
        difference = Difference.between(result, reference, _scale(tensor, states))
        passed = difference.mismatches == 0
        note = "" if passed else _first(difference.first or 0, result, reference, states[0].size)
        yield Row(**subject, tensor=tensor, **_errors(difference), passed=passed, note=note)


def _errors(difference: Difference) -> dict[str, Any]:
    """Return the fields that a row shares with a difference."""
    return {name: value for name, value in vars(difference).items() if name != "first"}


def _judgement(subject: dict[str, Any], verdict: oracle.Verdict) -> Row:
    """Make a row of the oracle's verdict on one tensor."""
    notes = [verdict.worst] if verdict.passed is False else []
    if verdict.left_out:
        notes.append(f"{verdict.left_out} left out: beyond the theory of rounding")
    return Row(
        **subject, tensor=verdict.tensor, **_errors(verdict.difference),
        allowed_ulp=verdict.allowed_ulp, passed=verdict.passed, note="; ".join(notes),
    )  # fmt: skip


def _bounded(subject: dict[str, Any], verdict: parity.Verdict, *, unchanged: bool) -> Row:
    note = "changed nothing and returned nothing: update in place, or return the new arrays; "
    return Row(
        **subject, tensor=verdict.tensor, **_errors(verdict.difference),
        allowed_ulp=verdict.allowed_ulp, passed=verdict.passed, excused=verdict.excused,
        note=note * (unchanged and verdict.passed is False) + verdict.note,
    )  # fmt: skip


def _drifted(subject: dict[str, Any], drift: parity.Drift) -> Row:
    """Make a row of how far one tensor of a trajectory is from the reference's."""
    notes = [drift.worst] if drift.passed is False else []
    if drift.left_out:
        notes.append(f"{drift.left_out} left out: beyond the theory of rounding")
    return Row(
        **subject | {"check": "drift"}, tensor=drift.tensor, **_errors(drift.difference),
        allowed_ulp=drift.allowed_ulp, passed=drift.passed, excused=drift.left_out,
        note="; ".join(notes),
    )  # fmt: skip


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


def _drifts(subject: dict[str, Any], got: Trajectory, wanted: Trajectory) -> Iterator[Drift]:
    who = (subject["implementation"], subject["case"], subject["dtype"])
    for tensor, states in wanted.tensors.items():
        pairs = zip(got.tensors[tensor][1:], states[1:], strict=True)
        errors = [Difference.between(a, b, np.abs(b)).relative_l2 for a, b in pairs]
        yield Drift(*who, tensor, errors)


def _first(index: int, got: np.ndarray, wanted: np.ndarray, size: int) -> str:
    values = f"got {float(got[index]).hex()}, expected {float(wanted[index]).hex()}"
    return f"first at step {index // size + 1}, element {index % size}: {values}"


# --- the whole ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Plan:
    """What one `verify` does.

    Attributes:
        implementations: the names to check.
        cases: the synthetic cases.
        configs: the problems to train, as `config.load` takes them.
        dtypes: each case is put in each of these.
        training_dtypes: each problem is trained in each of these.
        training_steps: a training on MXNet is stopped after so many steps; None: it goes to its
            end, as those on NumPy always do.
        seed: everything random derives from it.
        timeout: seconds that one case of one implementation may take.
        overrides: `key=value` settings for the configs.
        judged: the names to put before the oracle; what differs from one of them in no bit needs
            no judgement of its own.
        oracle_budget: steps of an element that the oracle computes of each case; it takes some 20
            microseconds for one.
        absent: implementations that were asked for where they are, and are not here: name, reason.
        named: the cases were asked for, so each is put to all implementations that can take it.
        drawn: how many cases to draw from the seed for each implementation that is compared to the
            bit, of those that are not fused only when `named`; for a kernel of the user's own,
            `draw.OF_USERS` times as many.
        lengths: put tensors of every length to a kernel of the user's own, up to this one; see
            `draw.lengths`.
        steady: take one step of such a kernel hundreds of times over.
        watched: the names of the cases that are put again to see how an implementation behaves.
        ctx: the device, for what computes there.
        flush: third-party code may flush subnormals to zero.
        seconds: how long cases are drawn for one kernel and dtype, at most.
    """

    implementations: tuple[str, ...]
    cases: tuple[Case, ...]
    configs: tuple[str, ...] = ()
    dtypes: tuple[str, ...] = DTYPES
    training_dtypes: tuple[str, ...] = ("float32",)
    training_steps: int | None = TRAINING_STEPS
    seed: int = 0
    timeout: float | None = 120.0
    overrides: tuple[str, ...] = ()
    judged: tuple[str, ...] = ()
    oracle_budget: int = ORACLE_BUDGET
    absent: tuple[tuple[str, str], ...] = ()
    named: bool = False
    drawn: int = 0
    lengths: int = 0
    steady: bool = False
    watched: frozenset[str] = conduct.CASES
    ctx: str = "cpu"
    flush: bool = False
    seconds: float = draw.SECONDS

    def implementation(self, name: str) -> Implementation:
        """Look up an implementation, as it is on the device."""
        return implementations.implementation(name, self.ctx)

    @property
    def only_trains(self) -> bool:
        """Whether nothing but trainings was asked for."""
        return not (self.cases or self.drawn or self.lengths or self.steady)

    def bounds(self, name: str) -> Bounds:
        """Say how far third-party code may be from the reference."""
        bounds = self.implementation(name).allowed
        if bounds is None:
            raise TypeError(f"{name} has no bounds: it is compared bit for bit")
        return bounds

    def flushes(self, name: str) -> bool:
        """Say whether an implementation may flush subnormals to zero."""
        return self.flush or self.implementation(name).flushes


@dataclass(frozen=True)
class Summary:
    """What all rows of one implementation say together.

    Attributes:
        implementation, reference: who was compared with whom.
        check: as in `Row`.
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


def summaries(rows: Sequence[Row]) -> list[Summary]:
    """Sum rows up, a summary for each check of each implementation."""
    groups: dict[tuple[str, str], list[Row]] = defaultdict(list)
    for row in rows:
        groups[row.implementation, row.check].append(row)
    order = list(dict.fromkeys(row.implementation for row in rows))
    return sorted(map(_summary, groups.values()), key=lambda each: order.index(each.implementation))


def _summary(rows: Sequence[Row]) -> Summary:
    def cases(chosen: Iterable[Row]) -> int:
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


class Verification:
    """Run a plan, row by row.

    Attributes:
        rows: all rows so far.
        traces: the losses of the trainings so far.
        drifts: how far what is not ours drifted in each case so far.
    """

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.rows: list[Row] = []
        self.traces: list[Trace] = []
        self.drifts: list[Drift] = []
        self._hung: dict[str, str] = {}  # implementation: the case that it hung in

    @property
    def failures(self) -> list[Row]:
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
        for name, lack in plan.absent:
            self._skip(self._subject("step", "", name, "", 0), lack)
        with sandbox or Sandbox(plan.timeout) as place:
            if any(plan.implementation(name).backend == "mxnet" for name in plan.implementations):
                # a second that passes beside the first cases
                place.of(FLUSHING).begin(make_ready, "mxnet", plan.ctx)
            for done, (what, check) in enumerate(jobs):
                tick(done, len(jobs), what)
                check(place)
        tick(len(jobs), len(jobs), "")

    def _check_case(self, case: Case, dtype: str, sandbox: Sandbox | InProcess) -> None:
        runs = _Runs(self.plan, case, dtype, sandbox)
        for name in self.plan.implementations:
            chosen = self.plan.implementation(name)
            subject = self._subject(case.check, case.name, name, dtype, case.steps)
            reason = _skipped(chosen, case, dtype, named=self.plan.named)
            if reason or name in self._hung:
                self._skip(subject, reason or f"it hung in case {self._hung[name]}")
            elif chosen.allowed:
                self._compare_steps(subject, runs)
            else:
                self._compare(subject, runs.own, case.elements * case.steps)
            if case.name in self.plan.watched and not reason:
                self._watch(case, chosen, dtype, sandbox.of(_group(chosen, case)))
        for name in self.plan.judged:
            self._judge(case, name, dtype, runs)

    def _check_drawn(self, dtype: str, sandbox: Sandbox | InProcess) -> None:
        for name in self.plan.implementations:
            chosen = self.plan.implementation(name)
            wanted = chosen.fused or self.plan.named
            if dtype not in chosen.dtypes or name in self._hung or chosen.backend in backends.PEERS:
                continue
            if self.plan.lengths and chosen.allowed:
                lengths = draw.lengths(self.plan.lengths)
                self._put(self._subject("drawn", draw.LENGTHS, name, dtype, 1), lengths, sandbox)
            if self.plan.steady and chosen.allowed:
                self._repeat(name, dtype, sandbox)
            if self.plan.drawn and (wanted or chosen.allowed) and name not in self._hung:
                self._draw(self._subject("drawn", draw.ALL, name, dtype, 0), sandbox)

    def _draw(self, subject: dict[str, Any], sandbox: Sandbox | InProcess) -> None:
        """Draw cases until an implementation is wrong in one, and shrink that."""
        plan, chosen = self.plan, self.plan.implementation(subject["implementation"])
        trial = _Trial(plan, subject, sandbox, plan.seconds if chosen.allowed else math.inf)
        drawn = (
            draw.draws(plan.seed, plan.drawn * draw.OF_USERS)
            if chosen.allowed
            else draw.draws(plan.seed, plan.drawn, draw.OWN_RANKS)
        )
        case = next(filter(trial.wrong, drawn), None)
        if case and not trial.crashed:  # each crash takes a new process
            case = draw.shrunk(case, trial.wrong)
        self._conclude(trial, case, f"the smallest of {trial.cases} cases drawn and shrunk; ")

    def _put(
        self, subject: dict[str, Any], some: Iterable[draw.Drawn], sandbox: Sandbox | InProcess
    ) -> None:
        """Put cases to an implementation, until it is wrong in one."""
        trial = _Trial(self.plan, subject, sandbox, 2 * self.plan.seconds)
        self._conclude(trial, next(filter(trial.wrong, some), None), "")

    def _conclude(self, trial: _Trial, case: draw.Drawn | None, note: str) -> None:
        subject, plan = trial.subject, self.plan
        if case is None:
            compared = True if trial.cases else None
            row = Row(**subject, tensor="", elements=trial.elements, mismatches=trial.mismatches,
                      allowed_ulp=trial.allowed_ulp, scaled_ulp=trial.scaled_ulp,
                      excused=trial.excused, passed=compared)  # fmt: skip
            what = "lengths" if subject["case"] == draw.LENGTHS else "cases drawn"
            late = "; then time was up" if trial.is_late else ""
            self.rows.append(replace(row, note=f"{trial.cases} {what}{late}"))
            return
        before = len(self.rows)
        subject = subject | {"case": case.name, "steps": case.steps}
        runs = _Runs(plan, case, subject["dtype"], trial.sandbox)
        if plan.implementation(subject["implementation"]).allowed:
            self._compare_steps(subject, runs)
        else:
            self._compare(subject, runs.own, case.elements * case.steps)
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
        theirs = chosen.backend in backends.PEERS or not chosen.keeps_grad
        theirs |= chosen.backend == "mxnet" and chosen.device.kind == "gpu"  # memory of MXNet's
        if chosen.name in self._hung or crashed or theirs:
            return
        subject = self._subject("repeat", case.name, chosen.name, dtype, case.steps)
        subject["reference"] = "itself"
        how = dtype, self.plan.seed, self.plan.ctx
        try:
            found = place.call(conduct.behaviour, chosen.name, case, *how)
            if chosen.optimizer:
                found += place.call(conduct.saved, chosen.name, case, *how)
        except SandboxError as error:
            self._fail(subject, error)
            return
        self._note_findings(subject, found)

    def _note_findings(self, subject: dict[str, Any], found: Sequence[conduct.Finding]) -> None:
        self.rows += [
            Row(**subject | vars(each), passed=not each.mismatches, allowed_ulp=None)
            for each in found
        ]

    def _repeat(self, name: str, dtype: str, sandbox: Sandbox | InProcess) -> None:
        """Take a step hundreds of times over, to meet a race; and compare it once."""
        chosen = self.plan.implementation(name)
        for elements, _ in conduct.REPEATED:
            case = replace(cases.single(elements), steps=1)
            runs = _Runs(self.plan, case, dtype, sandbox)
            self._compare_steps(self._subject(case.check, case.name, name, dtype, 1), runs)
        subject = self._subject("repeat", draw.STEADY, name, dtype, 1) | {"reference": "itself"}
        place = sandbox.of(chosen.sandbox)
        try:
            found = place.call(conduct.steady, name, dtype, self.plan.seed, self.plan.ctx)
        except SandboxError as error:
            self._fail(subject, error)
            return
        self._note_findings(subject, found)

    def _judge(self, case: Case, name: str, dtype: str, runs: _Runs) -> None:
        """Put an implementation's trajectory before the oracle: step by step, and as a whole.

        The steps of third-party code begin at the reference's states, so that nothing that it
        computes decides what is judged.
        """
        chosen = self.plan.implementation(name)
        skipped = name in self._hung or _skipped(chosen, case, dtype, named=self.plan.named)
        if skipped or not case.elements:
            return
        sample = oracle.Sample(case, dtype, self.plan.seed, self.plan.oracle_budget)
        subject = self._subject("oracle", case.name, name, dtype, case.steps)
        subject["reference"] = "oracle"
        try:
            if chosen.allowed:
                inputs, outputs = runs.reference(name).tensors, self._kept(case, name, dtype, runs)
                found = oracle.one_step(sample, inputs, outputs, chosen.allowed._asdict())
                self.rows += [_judgement(subject, verdict) for verdict in found]
                return
            tensors = runs.own(name).tensors
        except SandboxError:
            return  # which the rows of the steps report
        self.rows += [_judgement(subject, each) for each in oracle.one_step(sample, tensors)]
        subject["check"] = "drift"
        self.rows += [_judgement(subject, each) for each in oracle.drift(sample, tensors)]

    def _verdicts(self, case: Case, name: str, dtype: str, runs: _Runs) -> list[parity.Verdict]:
        return list(parity.verdicts(
            case, dtype, self.plan.seed, runs.reference(name).tensors, runs.restarted(name).tensors,
            self.plan.bounds(name), flush=self.plan.flushes(name),
        ))  # fmt: skip

    def _kept(self, case: Case, name: str, dtype: str, runs: _Runs) -> dict[str, list[np.ndarray]]:
        """Return the results of single steps, the excused ones replaced by the reference's."""
        starts = {tensor: states[:1] for tensor, states in runs.reference(name).tensors.items()}
        verdicts = self._verdicts(case, name, dtype, runs)
        return {each.tensor: starts[each.tensor] + list(each.kept) for each in verdicts}

    def _compare_steps(self, subject: dict[str, Any], runs: _Runs) -> None:
        """Compare third-party code: each step by itself, then the drift, both within bounds."""
        name, dtype, seed, case = subject["implementation"], runs.dtype, self.plan.seed, runs.case
        try:
            wanted, got = runs.reference(name), runs.restarted(name)
            own = runs.own(name) if case.steps > 1 else got
        except SandboxError as error:
            self._fail(subject, error)
            return
        unchanged = _unchanged(got, wanted)
        for verdict in self._verdicts(case, name, dtype, runs):
            self.rows.append(_bounded(subject, verdict, unchanged=unchanged))
        self._note_gradient(subject, got, case.elements * case.steps)
        if case.steps > 1:
            self.drifts += _drifts(subject, own, wanted)
            drifts = parity.drifts(
                case, parity.gradients(case, dtype, seed), wanted.tensors, own.tensors,
                self.plan.bounds(name), flush=self.plan.flushes(name),
            )  # fmt: skip
            self.rows += [_drifted(subject, each) for each in drifts]

    def _compare(self, subject: dict[str, Any], trajectory: Any, grads: int = 0) -> None:
        name = subject["implementation"]
        try:
            got, wanted = trajectory(name), trajectory(subject["reference"])
        except SandboxError as error:
            self._fail(subject, error)
            return
        self.rows += compare(subject, got, wanted)
        if grads and self.plan.implementation(name).keeps_grad:
            self._note_gradient(subject, got, grads)

    def _fail(self, subject: dict[str, Any], error: SandboxError) -> None:
        self.rows.append(Row(**subject, tensor="", elements=0, passed=False, note=str(error)))
        if isinstance(error, HungError):
            self._hung[subject["implementation"]] = subject["case"]

    def _note_gradient(self, subject: dict[str, Any], got: Trajectory, grads: int) -> None:
        subject = {**subject, "check": "gradient", "reference": "itself"}
        self.rows.append(
            Row(
                **subject, tensor="grad", elements=grads, mismatches=got.grad_changes,
                allowed_ulp=None, passed=not got.grad_changes,
            )
        )  # fmt: skip

    def _check_training(self, config: str, dtype: str, sandbox: Sandbox | InProcess) -> None:
        chosen = [self.plan.implementation(name) for name in self.plan.implementations]
        for each in chosen if self.plan.only_trains else ():
            subject = self._subject("training", config, each.name, dtype, 0)
            if not each.fused:
                self._skip(subject, f"a training compares fused steps, and {each.name} is none")
        for fused in (each for each in chosen if each.fused):
            found: dict[str, Trajectory] = {}

            def trajectory(
                name: str, found: dict[str, Trajectory] = found, fused: Implementation = fused
            ) -> Trajectory:
                plan = self.plan
                limit = plan.training_steps if fused.backend == "mxnet" else None
                arguments = (config, plan.overrides, name, dtype, plan.seed, limit, plan.ctx)
                place = sandbox.of(FLUSHING if fused.backend == "mxnet" else "")
                found[name] = place.call(train, *arguments)
                return found[name]

            subject = self._subject("training", config, fused.name, dtype, 0)
            subject["reference"] = fused.unfused
            before = len(self.rows)
            self._compare(subject, trajectory)
            if len(found) == 2:
                self._note_training(config, dtype, fused, found, before)

    def _note_training(
        self, config: str, dtype: str, fused: Implementation, found: dict[str, Trajectory],
        before: int,
    ) -> None:  # fmt: skip
        traced, plain = found[fused.name].losses, found[fused.unfused].losses
        self.traces.append(Trace(config, fused.backend, dtype, traced, plain))
        steps = traced[-1][0]
        self.rows[before:] = [Row(**{**vars(row), "steps": steps}) for row in self.rows[before:]]

    def _subject(self, check: str, case: str, name: str, dtype: str, steps: int) -> dict[str, Any]:
        chosen = self.plan.implementation(name)
        return {
            "check": check, "case": case, "implementation": name,
            "reference": REFERENCES.get(name, "numpy"),
            "backend": chosen.backend, "ctx": str(chosen.device), "dtype": dtype, "steps": steps,
            "seed": self.plan.seed, "subnormals": SUBNORMALS[self.plan.flushes(name)],
        }  # fmt: skip

    def _skip(self, subject: dict[str, Any], reason: str) -> None:
        note = f"skipped: {reason}"
        self.rows.append(Row(**subject, tensor="", elements=0, allowed_ulp=None, note=note))


class _Runs:
    """What implementations make of a case, each run once."""

    def __init__(self, plan: Plan, case: Case, dtype: str, sandbox: Sandbox | InProcess) -> None:
        self.plan, self.case, self.dtype, self._sandbox = plan, case, dtype, sandbox
        self._known: dict[tuple[str, bool], Trajectory | SandboxError] = {}

    def own(self, name: str) -> Trajectory:
        """Return the trajectory of an implementation.

        Raises:
            SandboxError: it raised, hung or crashed.
        """
        return self._run(name, None)

    def reference(self, name: str) -> Trajectory:
        """Return the trajectory that an implementation is compared with."""
        return self.own(REFERENCES.get(name, "numpy"))

    def restarted(self, name: str) -> Trajectory:
        """Return the steps of an implementation, each from the reference's state before it."""
        if self.case.steps == 1:
            return self.own(name)
        return self._run(name, self.reference(name).tensors)

    def _run(self, name: str, starts: dict[str, list[np.ndarray]] | None) -> Trajectory:
        key = name, starts is not None
        if key not in self._known:
            place = self._sandbox.of(_group(self.plan.implementation(name), self.case))
            how = self.case, self.dtype, self.plan.seed, starts, self.plan.ctx
            try:
                self._known[key] = place.call(step_through, name, *how)
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
        self, plan: Plan, subject: dict[str, Any], sandbox: Sandbox | InProcess, seconds: float
    ) -> None:
        self.plan, self.subject, self.sandbox = plan, subject, sandbox
        self._until = time.monotonic() + seconds
        self.cases = self.elements = self.mismatches = self.excused = 0
        self.scaled_ulp = 0.0
        self.chosen = plan.implementation(subject["implementation"])
        self.crashed = False
        self.allowed_ulp = max(self.chosen.allowed) if self.chosen.allowed else 0.0

    @property
    def is_late(self) -> bool:
        """Whether there is no time for another case."""
        return time.monotonic() > self._until

    def wrong(self, case: draw.Drawn) -> bool:
        """Tell whether an implementation is wrong in a case: differs, raises, hangs or crashes."""
        if self.is_late or self.chosen.lacks(case.hyper):
            return False
        runs = _Runs(self.plan, case, self.subject["dtype"], self.sandbox)
        name = self.subject["implementation"]
        wanted = runs.reference(name)
        self.cases += 1
        self.elements += case.elements * case.steps * len(wanted.tensors)
        try:
            return self._differs(runs, name)
        except SandboxError as error:
            self.crashed = not str(error).startswith("raised")
            return True

    def _differs(self, runs: _Runs, name: str) -> bool:
        got = runs.restarted(name) if self.chosen.allowed else runs.own(name)
        if got.grad_changes and self.chosen.keeps_grad:
            return True
        if self.chosen.allowed is None:
            return any(not row.passed for row in compare(self.subject, got, runs.reference(name)))
        found = list(parity.verdicts(
            runs.case, runs.dtype, self.plan.seed, runs.reference(name).tensors, got.tensors,
            self.chosen.allowed, flush=self.plan.flushes(name),
        ))  # fmt: skip
        self.mismatches += sum(each.difference.mismatches for each in found)
        self.excused += sum(each.excused for each in found)
        largest = max(each.difference.scaled_ulp for each in found)
        self.scaled_ulp = max(self.scaled_ulp, largest)
        return any(each.passed is False for each in found)


# MXNet's OpenMP threads keep the subnormal mode that the engine's thread had when it first needed
# them, whatever is set later; so each mode has a process of its own, in which it is set first.
# Trainings leave MXNet's mode as it is, which is to flush.
FLUSHING = "mxnet, flushing"


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
        and implementation.allowed,
        f"{STRICT.get(implementation.backend)} does not flush subnormals": case.flush
        and implementation.backend in STRICT,
        "the unfused step on MXNet is the reference while it flushes subnormals": case.flush
        and name == "mxnet",
        implementation.lacks(case.hyper): True,
        "compiling it takes seconds; --case NAME or --full puts it": not named
        and own
        and case.name not in own,
    }
    return next((reason for reason, holds in reasons.items() if reason and holds), "")


def verify(
    step: Callable[..., Any],
    *,
    dtypes: Sequence[str] = ("float32", "float64"),
    cases: Sequence[str] = (),
    seed: int = 0,
    steps: int | None = None,
    full: bool = False,
    ctx: str = "cpu",
    subnormals: str = "strict",
) -> list[Row]:
    """Check a kernel of your own, in this process: for your own test suite.

    The kernel is called as `adadelta verify --impl FILE.py:FUNCTION` calls it, and what it does
    wrong is told in the rows; only what would take the process down or never end is not contained.

    Args:
        step: the kernel: updates weight, acc_grad and acc_delta in place and returns None, or
            returns the new (weight, acc_grad, acc_delta); leaves grad as it is.
        dtypes: of float32 and float64.
        cases: names of cases, and no others; the default set, drawn cases and tensors of every
            length where there is none.
        seed: everything random derives from it.
        steps: take so many steps in each case, in place of its own number.
        full: the whole catalogue of cases: minutes.
        ctx: the device: on `gpu` or `gpu:N` the kernel gets CuPy arrays.
        subnormals: `strict`, or `flush` where the kernel may flush subnormals to zero.

    Returns:
        Rows as in verify.csv; `row.passed` is False where something is wrong, and `row.note` says
        what.

    Raises:
        UsageError: there is no such case, dtype or kind of device, or the kernel is no function.
        UnavailableError: there is no such device here.
        BrokenError: the device failed, by no fault of the kernel.

    Examples:
        >>> from adadelta_cli import verify
        >>> from examples.numpy_kernel import step
        >>> [row for row in verify(step, cases=["odd"]) if row.passed is False]
        []
    """
    wrong = [dtype for dtype in dtypes if dtype not in {"float32", "float64"}]
    if wrong:
        raise UsageError(f"dtypes has {wrong[0]!r}; allowed are float32 and float64")
    if not callable(step):
        raise UsageError(f"step is {step!r}; expected a function {candidate.SIGNATURE}")
    if subnormals not in SUBNORMALS:
        allowed = " and ".join(SUBNORMALS)
        raise UsageError(f"subnormals is {subnormals!r}; allowed are {allowed}")
    chosen = tuple(catalogue.select(tuple(cases), full=full, steps=steps))
    with implementations.known(step) as name, warnings.catch_warnings():
        plan = Plan(
            (name,), chosen, dtypes=tuple(dtypes), seed=seed, ctx=ctx,
            watched=frozenset(cases or (conduct.FULL if full else conduct.CASES)),
            drawn=draw.count((), full=full, alone=bool(cases)),
            lengths=0 if cases else draw.longest(full=full), steady=not cases,
            flush=subnormals == "flush", seconds=draw.seconds(full=full),
        )  # fmt: skip
        plan.implementation(name).arrays()
        work = Verification(plan)
        work.execute(sandbox=InProcess())
    return work.rows


def assert_correct(step: Callable[..., Any], **how: Any) -> None:
    """Assert that a kernel is right, for your own test suite.

    Args:
        step: the kernel, as in `verify`.
        how: the other arguments of `verify`.

    Raises:
        AssertionError: rows failed, which the message lists; or nothing was compared.
        UsageError: as in `verify`.
        UnavailableError: as in `verify`.
        BrokenError: as in `verify`.

    Examples:
        >>> from adadelta_cli import assert_correct
        >>> from examples.numpy_kernel import step
        >>> assert_correct(step, cases=["odd"])
    """
    rows = verify(step, **how)
    failed = [row for row in rows if row.passed is False]
    if failed:
        lines = [f"{row.check} {row.case} {row.dtype} {row.tensor}: {row.note}" for row in failed]
        raise AssertionError(f"{len(failed)} of {len(rows)} rows failed:\n" + "\n".join(lines))
    if not any(row.passed is not None and row.is_comparison for row in rows):
        raise AssertionError(f"nothing was compared: {'; '.join(reasons(rows))}")


def reasons(rows: Sequence[Row]) -> list[str]:
    """Say why nothing was compared."""
    notes = [row.note.removeprefix("skipped: ") for row in rows if row.passed is None]
    return list(dict.fromkeys(filter(None, notes))) or ["there was no element to compare"]
