"""`verify --self-test`: put each mutant to `verify`, which must catch it.

A mutant is a small change of the text of one source, which is loaded as a module of its own. So a
change of the formula reaches every mutant, and a mutant with a text that is gone is an error. The
module takes the steps of verify's own cases, the smallest first, until verify's own comparison
fails. The unchanged sources, loaded in the same way, must pass all of them.

Each mutant also runs in the test procedures of MXNet and of PyTorch, with the array update as their
reference, to show what these would let through.
"""

from __future__ import annotations

import contextlib
import itertools
import sys
import tempfile
import warnings
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from enum import Enum
from functools import lru_cache, partial
from pathlib import Path
from queue import SimpleQueue
from types import ModuleType
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from adadelta_cli.errors import BrokenError, ExitCode
from adadelta_cli.implementations import registry, user_kernel
from adadelta_cli.implementations.base import Bind, Implementation, Step, StepInputs
from adadelta_cli.system import machine
from adadelta_cli.system.progress import Tick, no_tick
from adadelta_cli.system.sandbox import InProcess, Sandbox, SandboxError
from adadelta_cli.update import Hyperparameters, Parameter
from adadelta_cli.verification import cases, comparison, execute, fuzz, runner, tolerance
from adadelta_cli.verification.mutants import MUTANTS, SOURCES, Mutant
from adadelta_cli.verification.plan import VerifyPlan
from adadelta_cli.verification.rows import ComparisonRow

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from adadelta_cli.verification.cases import Case
    from adadelta_cli.verification.execute import Trajectory

ARRAY_UPDATE = registry.IMPLEMENTATIONS["numpy"]
DTYPES = ("float32", "float64", "float16")
TIMEOUT_S = 600.0  # of one mutant: some seconds, more on a busy machine


class MutantVerdict(Enum):
    """How the self-test of one source ended."""

    CAUGHT = "caught"
    MISSED = "SLIPPED THROUGH"
    NO_ALARM = "no false alarm"
    FALSE_ALARM = "FALSE ALARM"


@dataclass(frozen=True)
class MutantRow:
    """A row of selftest.csv: a mutant, or an unchanged source."""

    fault: str  # the mutant's name, or `UNCHANGED`
    source: str  # the changed file
    about: str  # the mistake, in a few words
    case: str  # the smallest case that catches it; empty where none does
    dtype: str
    tensor: str  # the first that differs: weight, acc_grad, acc_delta, master or grad
    mismatches: int  # how many of its numbers differ
    caught: bool  # by verify's comparison
    mxnet_test: bool  # MXNet's own test procedure would have failed
    pytorch_test: bool  # PyTorch's would
    passed: bool  # a mutant was caught, an unchanged source was not

    @property
    def is_mutant(self) -> bool:
        """Whether the source was changed."""
        return self.fault != UNCHANGED

    @property
    def verdict(self) -> MutantVerdict:
        """How the self-test of this source ended."""
        if self.is_mutant:
            return MutantVerdict.CAUGHT if self.passed else MutantVerdict.MISSED
        return MutantVerdict.NO_ALARM if self.passed else MutantVerdict.FALSE_ALARM


@lru_cache
def source(part: str) -> str:
    """Read a source; `part` is a key of `SOURCES`."""
    return (Path(__file__).parents[1] / SOURCES[part]).read_text(encoding="utf-8")


def mutated_text(mutant: Mutant) -> str:
    """Return the changed source.

    Raises:
        BrokenError: the source does not have the text to change exactly once.
    """
    text = source(mutant.part)
    count = text.count(mutant.old)
    if mutant.old and count != 1:
        raise BrokenError(
            f"the mutant {mutant.name!r} changes a text that occurs {count} times in "
            f"adadelta_cli/{SOURCES[mutant.part]}; expected 1: {mutant.old!r}; bring the mutant up "
            "to date with the source"
        )
    return text.replace(mutant.old, mutant.new) if mutant.old else text


@contextlib.contextmanager
def load_mutant(mutant: Mutant) -> Iterator[ModuleType]:
    """Load the changed source as a module of its own.

    Raises:
        BrokenError: as `mutated_text`.
    """
    with contextlib.ExitStack() as stack:
        module = stack.enter_context(_load(mutant.name, mutated_text(mutant)))
        if mutant.part == "pool":  # yield a kernel on this pool
            own = f"import cache, variants\nimport {module.__name__} as pool"
            text = source("kernel").replace("import cache, pool, variants", own)
            module = stack.enter_context(_load(f"{mutant.name}-kernel", text))
        yield module


@contextlib.contextmanager
def _load(title: str, text: str) -> Iterator[ModuleType]:
    # Numba's cache would find the unchanged kernel.
    text = text.replace("cache=True", "cache=False")
    name = f"adadelta_cli._mutant_{title.replace('-', '_')}"
    sys.modules[name] = module = ModuleType(name)  # dataclasses look their module up
    try:
        exec(compile(text, name, "exec", dont_inherit=True), vars(module))  # noqa: S102 - our text
        yield module
    finally:
        del sys.modules[name]


def _bind_update(module: Any) -> Bind:
    def bind(inputs: StepInputs) -> Step:
        own = module.Hyperparameters(**vars(inputs.hyper))
        tensors = inputs.parameters, inputs.learning_rates, inputs.weight_decays

        def step() -> None:
            with np.errstate(all="ignore"):
                for p, rate, decay in zip(*tensors, strict=True):
                    module.update(np, p, own.scalars(p.acc_grad.dtype), rate, decay)

        return step

    return bind


def _bind_kernel(module: Any) -> Bind:
    def bind(inputs: StepInputs) -> Step:
        parameters = inputs.parameters
        # As many parts as for three threads, on any machine.
        elements = sum(p.weight.size for p in parameters)
        fixed = "1:64" if elements < module.SERIAL_ELEMENTS else "3:64"
        refs = module.tensor_refs(parameters, inputs.learning_rates, inputs.weight_decays)
        # The pieces are taken in order, so a mutant gives the same bits each time.
        with module.pool.no_threads():
            return module.prepared(refs, inputs.hyper.doubles, fixed=fixed, owners=parameters)

    return bind


BINDERS: dict[str, Callable[[Any], Bind]] = {
    "update": _bind_update,
    "kernel": _bind_kernel,
    "pool": _bind_kernel,
    "user": lambda module: user_kernel.from_function(module.step).bind,
}


@contextlib.contextmanager
def as_implementation(mutant: Mutant, bind: Bind) -> Iterator[Implementation]:
    """Make a mutant an implementation; a user kernel by its file, as `--impl` names it."""
    if mutant.part == "user":
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "kernel.py")
            path.write_text(mutated_text(mutant), encoding="utf-8")
            yield registry.implementation(f"{path}:step")
    else:
        yield Implementation("mutant", "numpy", False, bind, "numpy")


def candidates() -> list[Case]:
    """List the cases to try, the smallest first: the default ones, and a large one of `--full`."""
    able = [case for case in (*cases.DEFAULT, cases.CASES["million"]) if not case.flush]
    return sorted(able, key=lambda case: (case.elements * case.steps, case.name))


@lru_cache(maxsize=128)  # the small ones, which every mutant runs
def _wanted_small(case: Case, dtype: str, seed: int) -> Trajectory:
    return execute.step_through(ARRAY_UPDATE, case, dtype, seed)


def _wanted(case: Case, dtype: str, seed: int) -> Trajectory:
    if case.elements * case.steps > 100_000:
        return execute.step_through(ARRAY_UPDATE, case, dtype, seed)
    return _wanted_small(case, dtype, seed)


class Catch(NamedTuple):
    """The case that catches a mutant, and the first tensor that differs; empty where none does."""

    case: str = ""
    dtype: str = ""
    tensor: str = ""
    mismatches: int = 0


def run_case(chosen: Implementation, case: Case, dtype: str, seed: int) -> Catch:
    """Run a case, and compare it as verify does."""
    wanted = _wanted(case, dtype, seed)
    starts = None if chosen.is_built_in else wanted.tensors
    got = execute.step_through(chosen, case, dtype, seed, starts)
    row = ComparisonRow("step", case.name, chosen.name, "numpy", "numpy", "cpu", dtype)
    if chosen.tolerance:
        grads = tolerance.gradients(case, dtype, seed)
        states = wanted.tensors, got.tensors
        verdicts = tolerance.check_steps(case, grads, *states, chosen.tolerance)
        rows = comparison.step_rows(row, verdicts, unchanged=False)
    else:
        rows = comparison.bitwise_rows(row, got, wanted)
    failed = next((each for each in rows if each.passed is False), None)
    if failed:
        return Catch(case.name, dtype, failed.tensor, failed.mismatches or 0)
    if got.grad_changes and chosen.is_built_in:
        return Catch(case.name, dtype, "grad", got.grad_changes)
    return Catch()


def check_fuzzed(chosen: Implementation, dtypes: Sequence[str], seed: int) -> Catch:
    """Check a user kernel on fuzzed cases; the case is `drawn`, `drawn:lengths` or `steady`."""
    plan = VerifyPlan(
        (chosen,),
        (),
        dtypes=tuple(dtypes),
        seed=seed,
        fuzz_cases=fuzz.EXAMPLES,
        longest=fuzz.longest_length(full=False),
        steady=True,
    )
    work = runner.Verification(plan)
    work.execute(sandbox=InProcess())
    for row in work.failures:
        listed = f"fill={fuzz.LENGTH_FILL}" in row.case
        repeats = fuzz.collective_name(row.case) or row.case
        case = fuzz.LENGTHS if listed else fuzz.ALL if row.check == "drawn" else repeats
        return Catch(case, row.dtype, row.tensor, row.mismatches or 0)
    return Catch()


def smallest_case(chosen: Implementation, dtypes: Sequence[str], seed: int) -> Catch:
    """Find the smallest case that catches an implementation."""
    pairs = itertools.product(candidates(), dtypes)
    found = (run_case(chosen, case, dtype, seed) for case, dtype in pairs)
    return next((each for each in found if each.case), Catch())


def run_mutant(mutant: Mutant, seed: int) -> MutantRow:
    """Find out what catches a mutant."""
    warnings.simplefilter("ignore")  # those of wrong arithmetic
    unchanged = not mutant.old
    with load_mutant(mutant) as module:
        bind = BINDERS[mutant.part](module)
        with as_implementation(mutant, bind) as chosen:
            able = chosen.dtypes
            dtypes = [each for each in DTYPES if each in able] if unchanged else [mutant.dtype]
            found = smallest_case(chosen, dtypes, seed)
            if mutant.part == "user" and not found.case:
                found = check_fuzzed(chosen, dtypes, seed)
        halves = ("float32", "float16") if "float16" in able else ("float32",)
        by_mxnet, by_pytorch = mxnet_test(bind, seed, halves), pytorch_test(bind, seed)
    caught = bool(found.case)
    return MutantRow(
        fault=mutant.name,
        source=SOURCES[mutant.part],
        about=mutant.about,
        **found._asdict(),
        caught=caught,
        mxnet_test=by_mxnet,
        pytorch_test=by_pytorch,
        passed=not (caught or by_mxnet or by_pytorch) if unchanged else caught,
    )


def _differs(take: Callable[[Bind], list[Parameter]], bind: Bind, rtol: float, atol: float) -> bool:
    """Tell whether results differ from the array update's; `take` takes the steps of a binding."""
    arrays = [
        (getattr(a, name), getattr(b, name))
        for a, b in zip(take(bind), take(ARRAY_UPDATE.bind), strict=True)
        for name in ("weight", "acc_grad", "acc_delta", "master")
        if getattr(a, name) is not None
    ]
    return not all(np.allclose(a, b, rtol, atol) for a, b in arrays)


def mxnet_test(bind: Bind, seed: int, dtypes: Sequence[str] = ("float32", "float16")) -> bool:
    """Tell whether MXNet's test would catch an implementation, in these dtypes.

    tests/python/unittest/test_optimizer.py, test_adadelta: one step from zero accumulators on three
    tensors of uniform numbers in [0, 1), one at a time and all together; relative tolerance 1e-4,
    absolute 1e-5.
    """
    grid = itertools.product(
        dtypes, (1e-6, 1e-8), (None, 0.4, 0.5), (1.0, 0.14, 0.8), (0.0, 0.03, 0.05, 0.07), (1, 3)
    )
    for dtype, epsilon, clip, rescale, wd, together in grid:
        hyper = Hyperparameters(1.0, 0.9, epsilon, wd, rescale, clip)
        take = partial(_mxnet_stepped, hyper, dtype, together, seed)
        if _differs(take, bind, rtol=1e-4, atol=1e-5):
            return True
    return False


def _mxnet_stepped(
    hyper: Hyperparameters, dtype: str, together: int, seed: int, bind: Bind
) -> list[Parameter]:
    backend, rng = ARRAY_UPDATE.arrays(), np.random.default_rng(seed)
    parameters = [
        registry.parameter(backend, rng.random(shape), rng.random(shape), dtype=dtype)
        for shape in ((3, 4, 5), (10, 4), (7,))
    ]
    ones = [1.0] * together
    for first in range(0, len(parameters), together):
        bind(StepInputs(parameters[first : first + together], hyper, ones, ones))()
    return parameters


def pytorch_test(bind: Bind, seed: int) -> bool:
    """Tell whether PyTorch's test would catch an implementation.

    test/test_optim.py, the comparison of foreach with the loop: two small linear layers with
    sigmoids, 7 steps in float64, no gradient at step 2, the second layer frozen at steps 3 and 4;
    relative and absolute tolerance 1e-7.
    """
    for rate, wd, rho in itertools.product((1.0, 0.01), (0.0, 0.1, 0.9), (0.9, 0.95)):
        hyper = Hyperparameters(rate, rho, 1e-6, wd)
        if _differs(partial(_pytorch_trained, hyper, seed), bind, rtol=1e-7, atol=1e-7):
            return True
    return False


def _pytorch_trained(hyper: Hyperparameters, seed: int, bind: Bind) -> list[Parameter]:
    rng = np.random.default_rng(seed)
    shapes = ((3, 2), (3,), (1, 3), (1,))
    layers = [
        Parameter(rng.uniform(-0.5, 0.5, shape), *(np.zeros(shape) for _ in range(3)))
        for shape in shapes
    ]
    frozen = {2: 0, 3: 2, 4: 2}  # how many of the four take part in a step
    for step in range(7):
        _backward(layers)
        active = layers[: frozen.get(step, 4)]
        ones = [1.0] * len(active)
        if active:
            bind(StepInputs(active, hyper, ones, ones))()
    return layers


def _backward(layers: Sequence[Parameter]) -> None:
    """Write the gradients of the sum of the network's outputs."""
    x = np.linspace(0.1, 0.6, 6).reshape(3, 2)
    first, bias, second, last = (p.weight for p in layers)
    hidden = 1 / (1 + np.exp(-(x @ first.T + bias)))
    output = 1 / (1 + np.exp(-(hidden @ second.T + last)))
    output_error = output * (1 - output)
    hidden_error = output_error @ second * hidden * (1 - hidden)
    errors = ((hidden_error, x), (output_error, hidden))
    for k, (error, inputs) in enumerate(errors):
        layers[2 * k].grad[...] = error.T @ inputs
        layers[2 * k + 1].grad[...] = error.sum(axis=0)


UNCHANGED = "unchanged"
CONTROLS = tuple(
    Mutant(UNCHANGED, part, f"{SOURCES[part]} as it is", "", "", "") for part in SOURCES
)


class SelfTest:
    """Run the unchanged sources and every mutant."""

    def __init__(self, mutants: Sequence[Mutant] = MUTANTS, seed: int = 0) -> None:
        self.mutants, self.seed = (*CONTROLS, *mutants), seed
        self._rows: dict[int, MutantRow] = {}

    @property
    def rows(self) -> list[MutantRow]:
        """The rows so far, in the order of the mutants."""
        return [self._rows[k] for k in sorted(self._rows)]

    @property
    def unfinished(self) -> str:
        """How many of the sources ran, where some did not; else empty."""
        ran, planned = len(self._rows), len(self.mutants)
        return "" if ran == planned else f"not complete: {ran} of {planned} sources were checked"

    @property
    def exit_code(self) -> ExitCode:
        """1 where a mutant slipped through, an unchanged source failed, or one was not checked."""
        passed = not self.unfinished and all(row.passed for row in self.rows)
        return ExitCode.OK if passed else ExitCode.CHECK_FAILED

    def execute(self, tick: Tick = no_tick) -> None:
        """Run all of them, in two processes where there are two cores.

        Raises:
            BrokenError: a mutant does not apply to its source, or gave no result.
        """
        for mutant in self.mutants:
            mutated_text(mutant)
        # Compiling a kernel takes longest, so kernels come first.
        order = sorted(range(len(self.mutants)), key=lambda k: self.mutants[k].part != "kernel")
        workers = min(2, machine.available_cores())
        places: SimpleQueue[Sandbox] = SimpleQueue()
        sandboxes = [Sandbox(TIMEOUT_S) for _ in range(workers)]
        for sandbox in sandboxes:
            places.put(sandbox)
        pool = ThreadPoolExecutor(workers)
        try:
            jobs = {pool.submit(self._run, self.mutants[k], places): k for k in order}
            for done, job in enumerate(as_completed(jobs), 1):
                self._rows[jobs[job]] = job.result()
                tick(done, len(jobs), job.result().fault)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
            for sandbox in sandboxes:
                sandbox.close()

    def _run(self, mutant: Mutant, places: SimpleQueue[Sandbox]) -> MutantRow:
        sandbox = places.get()
        try:
            return sandbox.call(run_mutant, mutant, self.seed)
        except SandboxError as error:
            raise BrokenError(
                f"the mutant {mutant.name!r} gave no verdict: it {error}; a mutant must compute "
                "wrong results: fix it in mutants.py"
            ) from error
        finally:
            places.put(sandbox)
