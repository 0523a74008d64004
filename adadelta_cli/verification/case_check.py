"""Check implementations on one case: against their references, themselves and the oracle."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from adadelta_cli.implementations import array_backends
from adadelta_cli.system.sandbox import SandboxError
from adadelta_cli.verification import comparison, invariants, oracle
from adadelta_cli.verification.rows import Status
from adadelta_cli.verification.trajectories import Trajectories, sandbox_group

if TYPE_CHECKING:
    from adadelta_cli.implementations.base import Implementation
    from adadelta_cli.system.sandbox import InProcess, Sandbox
    from adadelta_cli.verification.cases import Case
    from adadelta_cli.verification.plan import VerifyPlan
    from adadelta_cli.verification.results import Results
    from adadelta_cli.verification.rows import ComparisonRow
    from adadelta_cli.verification.tolerance import States


class CaseCheck:
    """The checks of one case in one dtype; each implementation takes its steps once."""

    def __init__(
        self,
        plan: VerifyPlan,
        results: Results,
        case: Case,
        dtype: str,
        sandbox: Sandbox | InProcess,
    ) -> None:
        self.plan, self.results, self.case, self.dtype = plan, results, case, dtype
        self._sandbox = sandbox
        self._runs = Trajectories(plan, case, dtype, sandbox)
        self._gradients = case.elements * case.steps

    def run(self) -> None:
        """Check all implementations of the plan."""
        for chosen in self.plan.implementations:
            row, hung = self._row(self.case.check, chosen), self.results.hung.get(chosen.name)
            reason = skip_reason(chosen, self.case, self.dtype, named=self.plan.named)
            if reason or hung:
                self.results.skip(row, reason or f"it hung in case {hung}")
            else:
                with self.results.timed():
                    self.compare(chosen, row)
            if self.case.name in self.plan.invariant_cases and not reason:
                with self.results.timed():
                    self._check_invariants(chosen)
        for chosen in self.plan.oracle_checked:
            with self.results.timed():
                self._ask_oracle(chosen)

    def _row(self, check: str, chosen: Implementation) -> ComparisonRow:
        return self.plan.row(check, self.case.name, chosen, self.dtype, self.case.steps)

    def compare(self, chosen: Implementation, row: ComparisonRow) -> None:
        """Compare an implementation with its reference; `row` is what the rows share."""
        steps = self._compare_bits if chosen.is_built_in else self._compare_steps
        try:
            steps(chosen, row)
        except SandboxError as error:
            self.results.fail(row, error)

    def _compare_bits(self, chosen: Implementation, row: ComparisonRow) -> None:
        got, wanted = self._runs.own(chosen), self._runs.reference(chosen)
        self.results.rows += comparison.bitwise_rows(row, got, wanted)
        if chosen.keeps_grad and self._gradients:
            self._note_gradient(row, got.grad_changes)

    def _compare_steps(self, chosen: Implementation, row: ComparisonRow) -> None:
        """Compare third-party code: each step by itself, then the drift, both within bounds."""
        wanted, got = self._runs.reference(chosen), self._runs.restarted(chosen)
        own = self._runs.own(chosen) if self.case.steps > 1 else got
        unchanged = comparison.is_unchanged(got, wanted)
        verdicts = self._runs.verdicts(chosen)
        self.results.rows += comparison.step_rows(row, verdicts, unchanged=unchanged)
        self._note_gradient(row, got.grad_changes)
        if self.case.steps > 1:
            self.results.drifts += comparison.drift_traces(row, own, wanted)
            self.results.rows += comparison.drift_rows(row, self._runs.drifts(chosen))

    def _note_gradient(self, row: ComparisonRow, changes: int) -> None:
        found = invariants.InvariantResult("gradient", "grad", self._gradients, changes)
        self.results.rows += comparison.invariant_rows(row, [found])

    def _check_invariants(self, chosen: Implementation) -> None:
        """Check the invariants, unless the arrays are another library's or a run failed."""
        no_result = self.results.rows[-1].status is Status.NO_RESULT
        theirs = chosen.backend in array_backends.FRAMEWORKS or not chosen.keeps_grad
        theirs |= chosen.backend == "mxnet" and chosen.device.kind == "gpu"  # memory of MXNet's
        if chosen.name in self.results.hung or no_result or theirs:
            return
        row = replace(self._row("repeat", chosen), reference="itself")
        place = self._sandbox.of(sandbox_group(chosen, self.case))
        what = chosen, self.case, self.dtype, self.plan.seed
        try:
            found = place.call(invariants.check_determinism, *what)
            if chosen.optimizer:
                found += place.call(invariants.checkpoint_roundtrip, *what)
        except SandboxError as error:
            self.results.fail(row, error)
            return
        self.results.rows += comparison.invariant_rows(row, found)

    def _ask_oracle(self, chosen: Implementation) -> None:
        """Compare a trajectory with the exact results: step by step, and as a whole.

        The steps of third-party code start from the reference's states, so that the code's own
        results do not decide what is compared.
        """
        plan = self.plan
        skipped = skip_reason(chosen, self.case, self.dtype, named=plan.named)
        if chosen.name in self.results.hung or skipped or not self.case.elements:
            return
        sample = oracle.Sample(self.case, self.dtype, plan.seed, plan.oracle_budget)
        row = replace(self._row("oracle", chosen), reference="oracle")
        try:
            if chosen.tolerance:
                inputs, outputs = self._runs.reference(chosen).tensors, self._kept(chosen)
                found = oracle.one_step(sample, inputs, outputs, chosen.tolerance._asdict())
                self.results.rows += comparison.bound_rows(row, found)
                return
            tensors = self._runs.own(chosen).tensors
        except SandboxError:
            return  # which the rows of the steps report
        self.results.rows += comparison.bound_rows(row, oracle.one_step(sample, tensors))
        drifts = oracle.drift_verdicts(sample, tensors)
        self.results.rows += comparison.bound_rows(replace(row, check="drift"), drifts)

    def _kept(self, chosen: Implementation) -> States:
        """Return the results of single steps, the excused ones replaced by the reference's."""
        starts = self._runs.reference(chosen).tensors
        verdicts = self._runs.verdicts(chosen)
        return {each.tensor: [*starts[each.tensor][:1], *each.kept] for each in verdicts}


STRICT = {
    "numpy": "NumPy",
    "cupy": "the built-in kernel on CuPy's arrays",
}  # whatever a case asks for


def skip_reason(chosen: Implementation, case: Case, dtype: str, *, named: bool = False) -> str:
    """Say why an implementation cannot run a case; empty where it can."""
    name, own = chosen.name, chosen.cases
    masters = " with float32 masters" if dtype == "float16" else ""
    reasons = {
        f"{name} has no {dtype}{masters}": dtype not in chosen.dtypes,
        f"{name} has no mode that flushes subnormals when asked to": case.flush
        and not chosen.is_built_in,
        f"{STRICT.get(chosen.backend)} does not flush subnormals": case.flush
        and chosen.backend in STRICT,
        "the unfused step on MXNet is the reference while it flushes subnormals": case.flush
        and name == "mxnet",
        chosen.unsupported_reason(case.hyper): True,
        "compiling it takes seconds; --case NAME or --full runs it": not named
        and own
        and case.name not in own,
    }
    return next((reason for reason, holds in reasons.items() if reason and holds), "")
