"""The trajectories of implementations on a case, each computed once, in the right process."""

from __future__ import annotations

from typing import TYPE_CHECKING

from adadelta_cli.implementations.base import ANY_ORDER
from adadelta_cli.system.sandbox import SandboxError
from adadelta_cli.verification import tolerance
from adadelta_cli.verification.execute import step_through
from adadelta_cli.verification.plan import reference_of

if TYPE_CHECKING:
    import numpy as np

    from adadelta_cli.implementations.base import Implementation
    from adadelta_cli.system.sandbox import InProcess, Sandbox
    from adadelta_cli.verification.cases import Case
    from adadelta_cli.verification.execute import Trajectory
    from adadelta_cli.verification.plan import VerifyPlan
    from adadelta_cli.verification.tolerance import States
    from adadelta_cli.verification.ulp import BoundVerdict

# MXNet's OpenMP threads keep the subnormal mode that the engine's thread had when it first needed
# them, whatever is set later; so each mode has a process of its own, in which it is set first.
# Trainings leave MXNet's mode as it is, which is to flush.
FLUSHING = "mxnet, flushing"


def sandbox_group(chosen: Implementation, case: Case) -> str:
    """Name the group of libraries, and so the process, that runs a case."""
    flushing = case.flush and chosen.backend == "mxnet"
    return FLUSHING if flushing else chosen.sandbox


class Trajectories:
    """The trajectories of a case by implementation.

    Each method raises `SandboxError` where the implementation raised, hung or crashed.
    """

    def __init__(
        self, plan: VerifyPlan, case: Case, dtype: str, sandbox: Sandbox | InProcess
    ) -> None:
        self.plan, self.case, self.dtype, self._sandbox = plan, case, dtype, sandbox
        self._known: dict[tuple[str, bool], Trajectory | SandboxError] = {}

    def own(self, chosen: Implementation) -> Trajectory:
        """Return an implementation's own trajectory."""
        return self._run(chosen, None)

    def reference(self, chosen: Implementation) -> Trajectory:
        """Return the trajectory that an implementation is compared with."""
        return self.own(reference_of(chosen))

    def restarted(self, chosen: Implementation) -> Trajectory:
        """Return an implementation's steps, each from the reference's state before it."""
        if self.case.steps == 1:
            return self.own(chosen)
        return self._run(chosen, self.reference(chosen).tensors)

    def verdicts(self, chosen: Implementation) -> list[tolerance.StepVerdict]:
        """Compare single steps of third-party code with the reference's, within bounds."""
        allowed = chosen.tolerance
        if allowed is None:
            raise TypeError(f"{chosen.name} has no tolerance: it is compared bit for bit")
        states = self.reference(chosen).tensors, self.restarted(chosen).tensors
        flush = self.plan.flushes(chosen)
        return list(tolerance.check_steps(self.case, self._grads, *states, allowed, flush=flush))

    def drifts(self, chosen: Implementation) -> list[BoundVerdict]:
        """Compare whole trajectories of third-party code with the reference's, within bounds.

        Even operations that both share round differently where the operands do, so the bound of a
        step is that of any order, whatever holds for single steps from the same states.
        """
        states = self.reference(chosen).tensors, self.own(chosen).tensors
        flush = self.plan.flushes(chosen)
        return list(tolerance.drifts(self.case, self._grads, *states, ANY_ORDER, flush=flush))

    @property
    def _grads(self) -> list[np.ndarray]:
        return tolerance.gradients(self.case, self.dtype, self.plan.seed)

    def _run(self, chosen: Implementation, starts: States | None) -> Trajectory:
        key = chosen.name, starts is not None
        if key not in self._known:
            place = self._sandbox.of(sandbox_group(chosen, self.case))
            how = self.case, self.dtype, self.plan.seed, starts
            try:
                self._known[key] = place.call(step_through, chosen, *how)
            except SandboxError as error:
                self._known[key] = error
        found = self._known[key]
        if isinstance(found, SandboxError):
            raise found
        return found
