"""Check implementations on fuzzed cases, and shrink what fails."""

from __future__ import annotations

import math
import time
from dataclasses import replace
from typing import TYPE_CHECKING

from adadelta_cli.implementations import array_backends
from adadelta_cli.system.sandbox import CrashedError, HungError, SandboxError
from adadelta_cli.verification import cases, comparison, fuzz, invariants
from adadelta_cli.verification.case_check import CaseCheck
from adadelta_cli.verification.shrink import shrink
from adadelta_cli.verification.trajectories import Trajectories

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from adadelta_cli.implementations.base import Implementation
    from adadelta_cli.system.sandbox import InProcess, Sandbox
    from adadelta_cli.verification.plan import VerifyPlan
    from adadelta_cli.verification.results import Results
    from adadelta_cli.verification.rows import ComparisonRow


class FuzzCheck:
    """The fuzzed cases of a plan in one dtype."""

    def __init__(
        self, plan: VerifyPlan, results: Results, dtype: str, sandbox: Sandbox | InProcess
    ) -> None:
        self.plan, self.results, self.dtype, self._sandbox = plan, results, dtype, sandbox

    def run(self) -> None:
        """Check all implementations of the plan, user kernels at every length too."""
        plan, hung = self.plan, self.results.hung
        for chosen in plan.implementations:
            framework = chosen.backend in array_backends.FRAMEWORKS
            if self.dtype not in chosen.dtypes or chosen.name in hung or framework:
                continue
            for search in self._searches(chosen):
                if chosen.name not in hung:
                    with self.results.timed():
                        search(chosen)

    def _searches(self, chosen: Implementation) -> Iterator[Callable[[Implementation], None]]:
        plan = self.plan
        if plan.longest and not chosen.is_built_in:
            yield self._search_lengths
        if plan.steady and not chosen.is_built_in:
            yield self._repeat
        if plan.fuzz_cases and (chosen.fused or plan.named or not chosen.is_built_in):
            yield self._search_cases

    def _search_cases(self, chosen: Implementation) -> None:
        """Run fuzzed cases until one fails, and shrink that."""
        plan = self.plan
        search = self._search(chosen, fuzz.ALL, 0, math.inf if chosen.is_built_in else plan.fuzz_s)
        some = (
            fuzz.fuzzed_cases(plan.seed, plan.fuzz_cases, fuzz.BUILTIN_RANKS)
            if chosen.is_built_in
            else fuzz.fuzzed_cases(plan.seed, plan.fuzz_cases * fuzz.USER_FACTOR)
        )
        case = search.first_failure(some)
        if case and not search.crashed:  # each crash takes a new process
            case = shrink(case, search.fails)
        self._report(search, case, f"the smallest of {search.cases} cases drawn and shrunk; ")

    def _search_lengths(self, chosen: Implementation) -> None:
        search = self._search(chosen, fuzz.LENGTHS, 1, 2 * self.plan.fuzz_s)
        case = search.first_failure(fuzz.length_cases(self.plan.longest))
        self._report(search, case, "")

    def _search(self, chosen: Implementation, name: str, steps: int, seconds: float) -> _Search:
        row = self.plan.row("drawn", name, chosen, self.dtype, steps)
        return _Search(self.plan, chosen, row, self._sandbox, seconds)

    def _report(self, search: _Search, case: fuzz.FuzzedCase | None, note: str) -> None:
        if case is None:
            self.results.rows.append(search.passed_row())
            return
        rows, before = self.results.rows, len(self.results.rows)
        row = replace(search.row, case=case.name, steps=case.steps)
        check = CaseCheck(self.plan, self.results, case, self.dtype, self._sandbox)
        check.compare(search.chosen, row)
        rows[before:] = [replace(each, note=note + each.note) for each in rows[before:]]
        if all(each.passed is not False for each in rows[before:]):
            changes = "it was wrong once and right when it was repeated: it is not deterministic"
            self.results.fail(row, SandboxError(changes))

    def _repeat(self, chosen: Implementation) -> None:
        """Repeat one step hundreds of times, to meet a race; and compare it once."""
        place = self._sandbox.of(chosen.sandbox)
        for elements, times in invariants.REPEATED:
            case, name = replace(cases.single(elements), steps=1), fuzz.steady_name(elements)
            row = self.plan.row(case.check, name, chosen, self.dtype, 1)
            CaseCheck(self.plan, self.results, case, self.dtype, self._sandbox).compare(chosen, row)
            row = replace(row, check="repeat", reference="itself")
            how = elements, times, self.dtype, self.plan.seed
            try:
                found = place.call(invariants.check_repeated, chosen, *how)
            except SandboxError as error:
                self.results.fail(row, error)
                return
            self.results.rows += comparison.invariant_rows(row, found)


class _Search:
    """Runs fuzzed cases, and counts what was compared.

    Attributes:
        chosen: the implementation.
        row: what its rows share.
        cases: how many cases it ran, those of the shrinking included.
        crashed: whether the last failure took the process down, or hung.
    """

    def __init__(
        self,
        plan: VerifyPlan,
        chosen: Implementation,
        row: ComparisonRow,
        sandbox: Sandbox | InProcess,
        seconds: float,
    ) -> None:
        self.plan, self.chosen, self.row, self._sandbox = plan, chosen, row, sandbox
        self._until = time.monotonic() + seconds
        self.cases = 0
        self.crashed = False
        self._elements = self._mismatches = self._excused = 0
        self._scaled_ulp = 0.0

    @property
    def _is_late(self) -> bool:
        return time.monotonic() > self._until

    def first_failure(self, some: Iterable[fuzz.FuzzedCase]) -> fuzz.FuzzedCase | None:
        """Run cases until one fails."""
        return next(filter(self.fails, some), None)

    def fails(self, case: fuzz.FuzzedCase) -> bool:
        """Tell whether the implementation differs, raises, hangs or crashes in a case."""
        if self._is_late or self.chosen.unsupported_reason(case.hyper):
            return False
        runs = Trajectories(self.plan, case, self.row.dtype, self._sandbox)
        self.cases += 1
        try:
            tensors = runs.reference(self.chosen).tensors
            self._elements += case.elements * case.steps * len(tensors)
            return self._differs(runs)
        except SandboxError as error:
            self.crashed = isinstance(error, (HungError, CrashedError))
            return True

    def _differs(self, runs: Trajectories) -> bool:
        chosen = self.chosen
        got = runs.own(chosen) if chosen.is_built_in else runs.restarted(chosen)
        if got.grad_changes and chosen.keeps_grad:
            return True
        if chosen.is_built_in:
            rows = comparison.bitwise_rows(self.row, got, runs.reference(chosen))
            return any(not row.passed for row in rows)
        found = runs.verdicts(chosen)
        self._mismatches += sum(each.difference.mismatches for each in found)
        self._excused += sum(each.excused for each in found)
        largest = max(each.difference.scaled_ulp for each in found)
        self._scaled_ulp = max(self._scaled_ulp, largest)
        return any(each.passed is False for each in found)

    def passed_row(self) -> ComparisonRow:
        """Return the one row of a search in which no case failed."""
        what = "lengths" if self.row.case == fuzz.LENGTHS else "cases drawn"
        late = "; then time was up" if self._is_late else ""
        return replace(
            self.row,
            elements=self._elements,
            mismatches=self._mismatches,
            allowed_ulp=max(self.chosen.tolerance or (0.0,)),
            scaled_ulp=self._scaled_ulp,
            excused=self._excused,
            passed=True if self.cases else None,
            note=f"{self.cases} {what}{late}",
        )
