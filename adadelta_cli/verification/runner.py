"""`verify`: run implementations on cases and compare them with references and the oracle."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from adadelta_cli.system.progress import Tick, no_tick
from adadelta_cli.system.sandbox import Sandbox
from adadelta_cli.verification.case_check import CaseCheck
from adadelta_cli.verification.execute import make_ready
from adadelta_cli.verification.fuzz_check import FuzzCheck
from adadelta_cli.verification.results import Results
from adadelta_cli.verification.training_check import check_training
from adadelta_cli.verification.trajectories import FLUSHING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from adadelta_cli.system.sandbox import InProcess
    from adadelta_cli.verification.cases import Case
    from adadelta_cli.verification.plan import VerifyPlan


class Verification(Results):
    """Run a plan, row by row."""

    def __init__(self, plan: VerifyPlan) -> None:
        self.plan = plan
        self._jobs = list(self._planned())
        super().__init__(len(self._jobs))

    def execute(self, tick: Tick = no_tick, sandbox: Sandbox | InProcess | None = None) -> None:
        """Run all checks; `rows` has those that are finished, even after an interrupt.

        `tick` gets how many jobs are done, of how many, and the name of the next. `sandbox` runs
        the implementations, in place of processes of their own.
        """
        for missing, reason in self.plan.absent:
            self.skip(self.plan.row("step", "", missing, "", 0), reason)
        with sandbox or Sandbox(self.plan.timeout) as place:
            self._import_mxnet(place)
            for what, check in self._jobs:
                tick(self.ran, self.planned, what)
                check(place)
                self.ran += 1
        tick(self.ran, self.planned, "")

    def _planned(self) -> Iterator[tuple[str, Callable[[Sandbox | InProcess], None]]]:
        plan = self.plan
        for dtype in plan.dtypes:
            for case in plan.cases:
                yield f"{case.name} {dtype}", partial(self._check_case, case, dtype)
        for dtype in plan.dtypes if plan.is_fuzzed else ():
            yield f"drawn {dtype}", partial(self._fuzz, dtype)
        for config in plan.configs:
            for dtype in plan.training_dtypes:
                check = partial(check_training, plan, self, config, dtype)
                yield f"training {config} {dtype}", check

    def _check_case(self, case: Case, dtype: str, place: Sandbox | InProcess) -> None:
        CaseCheck(self.plan, self, case, dtype, place).run()  # which keeps all trajectories

    def _fuzz(self, dtype: str, place: Sandbox | InProcess) -> None:
        FuzzCheck(self.plan, self, dtype, place).run()

    def _import_mxnet(self, place: Sandbox | InProcess) -> None:
        """Start to import MXNet, which takes a second, beside the first cases."""
        for each in self.plan.implementations:
            if each.backend == "mxnet":
                place.of(FLUSHING).begin(make_ready, "mxnet", each.device)
                return
