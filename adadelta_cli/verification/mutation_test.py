"""`verify --self-test`: plant mistakes that people make, one by one, and see each one caught.

A fault is a small change of the text of the one source, the array update or the scalar kernel,
which is loaded as a module of its own. So a change of the formula reaches every fault, and a fault
whose text is no longer there is an error. The faulty module takes the steps of verify's own cases,
the smallest first, until verify's own comparison sees it; the unchanged sources, loaded in the same
way, must pass all of them.

Each fault is also put to the test procedures of MXNet and of PyTorch, with the right array update
as their reference, to see what these would have let through.
"""

from __future__ import annotations

import contextlib
import itertools
import sys
import tempfile
import warnings
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from functools import lru_cache
from importlib import util
from importlib.abc import InspectLoader
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

import numpy as np

from adadelta_cli.errors import BrokenError, ExitCode
from adadelta_cli.implementations import registry, user_kernel
from adadelta_cli.implementations.base import Bind, Implementation, Step, StepInputs
from adadelta_cli.progress import Tick, no_tick
from adadelta_cli.system import machine
from adadelta_cli.system.sandbox import InProcess, Sandbox, SandboxError
from adadelta_cli.update import Hyperparameters, Parameter
from adadelta_cli.verification import cases, execute, fuzz, runner, tolerance
from adadelta_cli.verification.mutants import MUTANTS, SOURCES, Mutant
from adadelta_cli.verification.plan import VerifyPlan

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from types import ModuleType

    from adadelta_cli.verification.cases import Case
    from adadelta_cli.verification.execute import Trajectory

ARRAY_UPDATE = registry.IMPLEMENTATIONS["numpy"]
DTYPES = ("float32", "float64", "float16")
TIMEOUT_S = 600.0  # of one fault: some seconds, more on a busy machine


@dataclass(frozen=True)
class MutantRow:
    """A row of selftest.csv: a planted fault, or a source left as it is.

    Attributes:
        fault: its name, or `unchanged`.
        source: the file that it is planted in.
        about: the mistake, in a few words.
        case: the smallest case that catches it; empty where none does.
        dtype: in which that case is put.
        tensor: where it shows: weight, acc_grad, acc_delta, master, or grad that was changed.
        mismatches: how many numbers of that tensor differ.
        caught: the comparison saw it.
        mxnet_test: MXNet's own test procedure would have caught it.
        pytorch_test: PyTorch's would.
        passed: a fault was caught, an unchanged source was not.
    """

    fault: str
    source: str
    about: str
    case: str
    dtype: str
    tensor: str
    mismatches: int
    caught: bool
    mxnet_test: bool
    pytorch_test: bool
    passed: bool


# --- planting -------------------------------------------------------------------------------------


class _Text(InspectLoader):
    """Loads a module from a text."""

    def __init__(self, text: str) -> None:
        self.text = text

    def get_source(self, fullname: str) -> str:  # noqa: ARG002 - there is one text
        return self.text


@lru_cache
def source(part: str) -> str:
    """Read the source that faults are planted in; `part` is a key of `SOURCES`."""
    return (Path(__file__).parents[1] / SOURCES[part]).read_text(encoding="utf-8")


def mutated_text(fault: Mutant) -> str:
    """Change the source.

    Raises:
        BrokenError: the text to change is not there exactly once.
    """
    text = source(fault.part)
    count = text.count(fault.old)
    if fault.old and count != 1:
        raise BrokenError(
            f"the fault {fault.name!r} changes a text that stands {count} times in "
            f"adadelta_cli/{SOURCES[fault.part]}, and must stand there once: {fault.old!r}; bring "
            "the fault up to date with the source"
        )
    return text.replace(fault.old, fault.new) if fault.old else text


@contextlib.contextmanager
def load_mutant(fault: Mutant) -> Iterator[ModuleType]:
    """Load the changed source as a module of its own.

    Raises:
        BrokenError: as `planted_text`.
    """
    # Numba's cache would look for the text's file, and find the right kernel in it. Without threads
    # the parts of a step come one after another: the same fault gives the same bits each time.
    text = mutated_text(fault).replace("cache=True", "cache=False").replace(", parallel=True", "")
    name = f"adadelta_cli._planted_{fault.name.replace('-', '_')}"
    spec = util.spec_from_loader(name, _Text(text))
    if spec is None or spec.loader is None:
        raise BrokenError(f"no module could be made of the fault {fault.name!r}")
    module = util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    try:
        spec.loader.exec_module(module)
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
        # Cut as it would be for three threads, on whatever machine.
        elements = sum(p.weight.size for p in parameters)
        parts = 1 if elements < module.SERIAL_ELEMENTS else 3
        refs = module.tensor_refs(parameters, inputs.learning_rates, inputs.weight_decays)
        return module.prepared(refs, inputs.hyper.doubles, chunks=parts, owners=parameters)

    return bind


def _bind_user(module: Any) -> Bind:
    """Bind a kernel through the same door as a user's own."""
    return user_kernel.from_function(module.step).bind


BINDERS = {"update": _bind_update, "kernel": _bind_kernel, "user": _bind_user}


@contextlib.contextmanager
def as_implementation(fault: Mutant, bind: Bind) -> Iterator[Implementation]:
    """Make a mutant an implementation; a user's kernel by its file, as `--impl` names it."""
    if fault.part == "user":
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "kernel.py")
            path.write_text(mutated_text(fault), encoding="utf-8")
            yield registry.implementation(f"{path}:step")
    else:
        yield Implementation("planted", "numpy", False, bind, "numpy")


# --- catching -------------------------------------------------------------------------------------


def candidates() -> list[Case]:
    """List the cases to try, the smallest first: the default ones, and one larger, of `--full`."""
    able = [case for case in (*cases.DEFAULT, cases.CASES["million"]) if not case.flush]
    return sorted(able, key=lambda case: (case.elements * case.steps, case.name))


@lru_cache(maxsize=128)  # the small ones, which every fault is put to
def _wanted_small(case: Case, dtype: str, seed: int) -> Trajectory:
    return execute.step_through(ARRAY_UPDATE, case, dtype, seed)


def _wanted(case: Case, dtype: str, seed: int) -> Trajectory:
    if case.elements * case.steps > 100_000:
        return execute.step_through(ARRAY_UPDATE, case, dtype, seed)
    return _wanted_small(case, dtype, seed)


def run_case(chosen: Implementation, case: Case, dtype: str, seed: int) -> tuple[str, int] | None:
    """Put a case to an implementation, and compare it as verify does.

    Returns:
        The tensor where it shows first and how many numbers of it differ; None where none does.
    """
    wanted = _wanted(case, dtype, seed)
    if chosen.tolerance:
        got = execute.step_through(chosen, case, dtype, seed, wanted.tensors)
        found = tolerance.verdicts(case, dtype, seed, wanted.tensors, got.tensors, chosen.tolerance)
        failed = next((each for each in found if each.passed is False), None)
        return (failed.tensor, failed.difference.mismatches) if failed else None
    got = execute.step_through(chosen, case, dtype, seed)
    subject = {
        "check": "step",
        "case": case.name,
        "implementation": chosen.name,
        "reference": "numpy",
        "backend": "numpy",
        "ctx": "cpu",
        "dtype": dtype,
        "steps": case.steps,
    }
    for row in runner.compare(subject, got, wanted):
        if not row.passed:
            return row.tensor, row.mismatches or 0
    return ("grad", got.grad_changes) if got.grad_changes else None


def check_fuzzed(
    chosen: Implementation, dtypes: Sequence[str], seed: int
) -> tuple[str, str, str, int]:
    """Check a kernel of the user's own by what is drawn, not listed.

    Returns:
        As `smallest`; the case is `drawn`, `drawn:lengths` or `steady`.
    """
    lengths, examples = fuzz.longest_length(full=False), fuzz.EXAMPLES
    plan = VerifyPlan(
        (chosen,),
        (),
        dtypes=tuple(dtypes),
        seed=seed,
        drawn=examples,
        lengths=lengths,
        steady=True,
        timeout=None,
    )
    work = runner.Verification(plan)
    work.execute(sandbox=InProcess())
    for row in work.failures:
        listed = "fill=tiled" in row.case
        case = fuzz.LENGTHS if listed else fuzz.ALL if row.check == "drawn" else row.case
        return case, row.dtype, row.tensor, row.mismatches or 0
    return "", "", "", 0


def smallest_case(
    chosen: Implementation, dtypes: Sequence[str], seed: int
) -> tuple[str, str, str, int]:
    """Find the smallest case that catches an implementation.

    Returns:
        Case, dtype, tensor, and how many numbers differ; empty and 0 where nothing catches it.
    """
    for case, dtype in itertools.product(candidates(), dtypes):
        found = run_case(chosen, case, dtype, seed)
        if found:
            return case.name, dtype, *found
    return "", "", "", 0


def run_mutant(fault: Mutant, seed: int) -> MutantRow:
    """Plant a fault, and see what catches it."""
    warnings.simplefilter("ignore")  # those of faulty arithmetic
    unchanged = not fault.old
    with load_mutant(fault) as module:
        bind = BINDERS[fault.part](module)
        with as_implementation(fault, bind) as chosen:
            able = chosen.dtypes
            dtypes = [each for each in DTYPES if each in able] if unchanged else [fault.dtype]
            found = smallest_case(chosen, dtypes, seed)
            if fault.part == "user" and not found[0]:
                found = check_fuzzed(chosen, dtypes, seed)
        case, dtype, tensor, mismatches = found
        halves = ("float32", "float16") if "float16" in able else ("float32",)
        by_mxnet, by_pytorch = mxnet_test(bind, seed, halves), pytorch_test(bind, seed)
    caught = bool(case)
    return MutantRow(
        fault=fault.name,
        source=SOURCES[fault.part],
        about=fault.about,
        case=case,
        dtype=dtype,
        tensor=tensor,
        mismatches=mismatches,
        caught=caught,
        mxnet_test=by_mxnet,
        pytorch_test=by_pytorch,
        passed=not (caught or by_mxnet or by_pytorch) if unchanged else caught,
    )


# --- how others test ------------------------------------------------------------------------------


def _agree(
    got: Sequence[Parameter], wanted: Sequence[Parameter], *, rtol: float, atol: float
) -> bool:
    pairs = zip(got, wanted, strict=True)
    arrays = [
        (getattr(a, name), getattr(b, name))
        for a, b in pairs
        for name in ("weight", "acc_grad", "acc_delta", "master")
        if getattr(a, name) is not None
    ]
    return all(np.allclose(a, b, rtol, atol) for a, b in arrays)


def mxnet_test(bind: Bind, seed: int, dtypes: Sequence[str] = ("float32", "float16")) -> bool:
    """Tell whether MXNet's test would catch an implementation, in those of its dtypes.

    tests/python/unittest/test_optimizer.py, test_adadelta: one step from zero accumulators on three
    tensors of uniform numbers in [0, 1), one at a time and all together; relative tolerance 1e-4,
    absolute 1e-5.
    """
    grid = itertools.product(
        dtypes, (1e-6, 1e-8), (None, 0.4, 0.5), (1.0, 0.14, 0.8), (0.0, 0.03, 0.05, 0.07), (1, 3)
    )
    for dtype, epsilon, clip, rescale, wd, together in grid:
        hyper = Hyperparameters(1.0, 0.9, epsilon, wd, rescale, clip)
        got, wanted = (
            _mxnet_stepped(take, hyper, dtype, together, seed) for take in (bind, ARRAY_UPDATE.bind)
        )
        if not _agree(got, wanted, rtol=1e-4, atol=1e-5):
            return True
    return False


def _mxnet_stepped(
    bind: Bind, hyper: Hyperparameters, dtype: str, together: int, seed: int
) -> list[Parameter]:
    parameters = _mxnet_parameters(dtype, seed)
    ones = [1.0] * together
    for first in range(0, len(parameters), together):
        bind(StepInputs(parameters[first : first + together], hyper, ones, ones))()
    return parameters


def _mxnet_parameters(dtype: str, seed: int) -> list[Parameter]:
    from adadelta_cli.implementations.array_backends import NumpyBackend

    rng = np.random.default_rng(seed)
    return [
        registry.parameter(NumpyBackend(), rng.random(shape), rng.random(shape), dtype=dtype)
        for shape in ((3, 4, 5), (10, 4), (7,))
    ]


def pytorch_test(bind: Bind, seed: int) -> bool:
    """Tell whether PyTorch's test would catch an implementation.

    test/test_optim.py, the comparison of foreach with the loop: two small linear layers with
    sigmoids, 7 steps in float64, no gradient at step 2, the second layer frozen at steps 3 and 4;
    relative and absolute tolerance 1e-7.
    """
    for rate, wd, rho in itertools.product((1.0, 0.01), (0.0, 0.1, 0.9), (0.9, 0.95)):
        hyper = Hyperparameters(rate, rho, 1e-6, wd)
        got, wanted = (_pytorch_trained(take, hyper, seed) for take in (bind, ARRAY_UPDATE.bind))
        if not _agree(got, wanted, rtol=1e-7, atol=1e-7):
            return True
    return False


def _pytorch_trained(bind: Bind, hyper: Hyperparameters, seed: int) -> list[Parameter]:
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


# --- the whole ------------------------------------------------------------------------------------

UNCHANGED = tuple(
    Mutant("unchanged", part, f"{SOURCES[part]} as it is", "", "", "") for part in SOURCES
)


class SelfTest:
    """Plant every fault, and the unchanged sources beside them.

    Attributes:
        rows: those finished so far, in the order of `FAULTS`.
    """

    def __init__(self, faults: Sequence[Mutant] = MUTANTS, seed: int = 0) -> None:
        self.faults, self.seed = (*UNCHANGED, *faults), seed
        self._rows: dict[int, MutantRow] = {}

    @property
    def rows(self) -> list[MutantRow]:
        """The rows so far."""
        return [self._rows[k] for k in sorted(self._rows)]

    @property
    def exit_code(self) -> ExitCode:
        """1 where a fault slipped through or an unchanged source was suspected."""
        return ExitCode.OK if all(row.passed for row in self.rows) else ExitCode.CHECK_FAILED

    def execute(self, tick: Tick = no_tick) -> None:
        """Do all of it, in two processes at a time where there are two cores.

        Raises:
            BrokenError: a fault's text is no longer in the source.
        """
        for fault in self.faults:
            mutated_text(fault)
        # What takes longest comes first: compiling a kernel.
        order = sorted(range(len(self.faults)), key=lambda k: self.faults[k].part != "kernel")
        workers = min(2, machine.available_cores())
        places: SimpleQueue[Sandbox] = SimpleQueue()
        sandboxes = [Sandbox(TIMEOUT_S) for _ in range(workers)]
        for sandbox in sandboxes:
            places.put(sandbox)
        pool = ThreadPoolExecutor(workers)
        try:
            jobs = {pool.submit(self._examine, self.faults[k], places): k for k in order}
            self._collect(jobs, tick)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
            for sandbox in sandboxes:
                sandbox.close()

    def _collect(self, jobs: dict[Future[MutantRow], int], tick: Tick) -> None:
        for done, job in enumerate(as_completed(jobs)):
            self._rows[jobs[job]] = job.result()
            tick(done + 1, len(jobs), job.result().fault)

    def _examine(self, fault: Mutant, places: SimpleQueue[Sandbox]) -> MutantRow:
        sandbox = places.get()
        try:
            return sandbox.call(run_mutant, fault, self.seed)
        except SandboxError as error:
            raise BrokenError(
                f"the fault {fault.name!r} gave no verdict, it {error}; a fault has to compute, "
                "wrongly: fix it in mutants.py"
            ) from error
        finally:
            places.put(sandbox)
