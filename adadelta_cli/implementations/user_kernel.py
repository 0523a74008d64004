"""User kernels: import them by name, call them as documented, and check what they write.

The kernel gets copies in separate buffers with a guard zone before and after each. They are aligned
to an element and not to a vector, as a view of a larger array may be.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import operator
import sys
import warnings
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from adadelta_cli import user_code
from adadelta_cli.errors import (
    KERNEL_FAULTS,
    AdadeltaError,
    UnavailableError,
    UsageError,
    in_one_line,
    shown,
    status,
    suggestion,
)
from adadelta_cli.implementations.base import ANY_ORDER, Implementation
from adadelta_cli.implementations.guard import Guarded, address, library, poison
from adadelta_cli.inputs import unreadable_reason
from adadelta_cli.system.sandbox import (
    FatalReportedError,
    ReportedError,
    Sandbox,
    SandboxError,
    describe_error,
    message_of,
)
from adadelta_cli.update import RESULTS

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from types import ModuleType

    from adadelta_cli.implementations.base import Bind, Step, StepInputs
    from adadelta_cli.update import Parameter

FORMS = "FILE.py:FUNCTION or PACKAGE.MODULE:FUNCTION"
SIGNATURE = (
    "step(weight, grad, acc_grad, acc_delta, *, learning_rate, rho, epsilon, wd, rescale_grad, "
    "clip_gradient)"
)
IMPORT_S = 120.0  # timeout of a kernel's import


# --- finding it -----------------------------------------------------------------------------------


def from_name(name: str) -> Implementation:
    """Return the implementation of a kernel's name; its file is imported when it is bound."""
    return _implementation(name, partial(_bind_named, name), partial(_time_named, name))


def from_function(kernel: Callable[..., Any]) -> Implementation:
    """Return the implementation of a function of this process; it cannot be pickled."""
    name = f"{getattr(kernel, '__qualname__', type(kernel).__qualname__)} (in Python)"
    return _implementation(name, partial(_bind, kernel), partial(_time, kernel))


def _implementation(name: str, bind: Bind, timed: Bind) -> Implementation:
    return Implementation(
        name,
        "numpy",
        fused=False,
        bind=bind,
        unfused="numpy",
        dtypes=("float32", "float64"),
        sandbox=name,
        tolerance=ANY_ORDER,
        timed=timed,
        timed_on="boxed",
        on_gpu="cupy",
    )


def check_kernel(name: str, timeout: float | None = IMPORT_S) -> None:
    """Check in a child process that a kernel can be imported.

    Args:
        name: as `--impl` takes it.
        timeout: of the import, in seconds.

    Raises:
        UsageError: there is no such file, module or function, or its import fails.
        UnavailableError: it imports a library that is not installed.
    """
    with Sandbox(timeout) as sandbox:
        try:
            wrong = sandbox.call(_problem, name)
        except SandboxError as error:
            raise UsageError(f"--impl {name}: importing it {error}") from None
    if wrong:
        raise wrong


def _problem(name: str) -> AdadeltaError | None:
    """Import a kernel, in a sandbox; return the error, or None."""
    try:
        load_kernel(name)
    except AdadeltaError as error:
        return error
    return None


@cache
def load_kernel(name: str) -> Callable[..., Any]:
    """Import a kernel.

    Raises:
        UsageError: there is no such file, module or function, or its import fails.
        UnavailableError: it imports a library that is not installed.
    """
    place, path = _parts(name)
    module = _imported(name, place)
    try:
        found = operator.attrgetter(path)(module)
    except AttributeError:
        own = [key for key, each in vars(module).items() if inspect.isroutine(each)]
        raise UsageError(
            f"--impl {name}: there is no {path} in {place}{suggestion(path, own)}; its functions "
            f"are {', '.join(own) or 'none'}"
        ) from None
    if not callable(found):
        raise UsageError(f"--impl {name}: {path} is {found!r}; expected a function {SIGNATURE}")
    return found


def check_form(name: str) -> None:
    """Check that a name has its two parts; import nothing.

    Raises:
        UsageError: a part is missing.
    """
    _parts(name)


def is_module(name: str) -> bool:
    """Tell whether a name is that of an installed module's function, not of a file's."""
    return not _parts(name)[0].endswith(".py")


def module_here(name: str) -> Path | None:
    """Return what a module is imported from, if that is in the current folder."""
    top = _parts(name)[0].partition(".")[0]
    here = (Path.cwd() / top, Path.cwd() / f"{top}.py")
    return next((path for path in here if path.exists()), None)


def _parts(name: str) -> tuple[str, str]:
    """Split a name into the file or module, and the function."""
    place, _, path = name.rpartition(":") if ":" in name else (name, "", "")
    if place and path:
        return place, path
    if not place:
        raise UsageError(f"--impl is {name!r}; a kernel of your own is named {FORMS}")
    raise UsageError(
        f"--impl is {name!r}: FUNCTION is missing; a kernel of your own is named {FORMS}; "
        f"{_offer(place)}"
    )


def _offer(place: str) -> str:
    """Suggest a function that a file defines, without importing it."""
    path = Path(place)
    reason = unreadable_reason(path)
    if reason:
        return (
            f"and there is no file {path.absolute()} ({reason})"
            if path.suffix == ".py"
            else "add it"
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # invalid escapes and the like: its import reports them
            body = ast.parse(path.read_bytes()).body
    except (OSError, SyntaxError, ValueError, RecursionError, MemoryError) as error:
        return f"and {place} cannot be read as Python: {in_one_line(error)}"
    names = [each.name for each in body if isinstance(each, ast.FunctionDef)]
    best = "step" if "step" in names else next(iter(names), "")
    if not best:
        return f"and {place} defines no function"
    return f"the functions of {place} are {', '.join(names)}: try --impl {place}:{best}"


def _imported(name: str, place: str) -> ModuleType:
    try:
        return (_import_file if place.endswith(".py") else _import_module)(place)
    except AdadeltaError:
        raise
    except ModuleNotFoundError as error:
        if error.name and f"{place}.".startswith(f"{error.name}."):
            raise UsageError(
                f"--impl {name}: there is no module {error.name}, looked for in "
                f"{Path.cwd()} and on Python's path; expected {FORMS}"
            ) from None
        raise UnavailableError(
            f"--impl {name}: it cannot be imported here: {message_of(error)}"
        ) from error
    except ImportError as error:
        raise UnavailableError(
            f"--impl {name}: it cannot be imported here: {message_of(error)}"
        ) from error
    except (Exception, SystemExit, GeneratorExit) as error:
        raise UsageError(
            f"--impl {name}: importing {place} raised {type(error).__name__}: {message_of(error)}; "
            "expected a file that can be imported; fix it and try again"
        ) from error


def _import_file(place: str) -> ModuleType:
    path = Path(place).absolute()
    reason = unreadable_reason(path)
    if reason:
        raise UsageError(f"--impl: there is no file {path} ({reason}); expected {FORMS}")
    return user_code.import_file(path.resolve())


def _import_module(place: str) -> ModuleType:
    sys.path.insert(0, str(Path.cwd()))  # as `python -m MODULE` would
    return importlib.import_module(place)


# --- calling it -----------------------------------------------------------------------------------


def _bind_named(name: str, inputs: StepInputs) -> Step:
    return _bind(load_kernel(name), inputs)


def _time_named(name: str, inputs: StepInputs) -> Step:
    return _time(load_kernel(name), inputs)


def _keywords(inputs: StepInputs) -> list[dict[str, Any]]:
    """Return the keyword arguments for each tensor."""
    return [
        vars(inputs.hyper) | {"learning_rate": learning_rate, "wd": wd}
        for learning_rate, wd in zip(inputs.learning_rates, inputs.weight_decays, strict=True)
    ]


def _bind(kernel: Callable[..., Any], inputs: StepInputs) -> Step:
    pairs = list(zip(inputs.parameters, _keywords(inputs), strict=True))
    _check_signature(kernel, vars(inputs.hyper))

    def step() -> None:
        for number, (p, keywords) in enumerate(pairs):
            _call(kernel, p, keywords, number)

    return step


def _time(kernel: Callable[..., Any], inputs: StepInputs) -> Step:
    """Bind a kernel to arrays in boxes: returned arrays replace those in the boxes."""
    pairs = list(zip(inputs.parameters, _keywords(inputs), strict=True))
    _check_signature(kernel, vars(inputs.hyper))

    def step() -> None:
        for p, keywords in pairs:
            returned = kernel(*(box.value for box in p.arrays), **keywords)
            if returned is not None:
                p.weight.value, p.acc_grad.value, p.acc_delta.value = map(_finished, returned)

    return step


def _finished(array: Any) -> Any:
    """Wait for an array of a library that computes asynchronously, as JAX."""
    wait = getattr(array, "block_until_ready", None)
    return array if wait is None else wait()


def _check_signature(kernel: Callable[..., Any], keywords: dict[str, Any]) -> None:
    _check_runs(kernel)
    try:
        signature = inspect.signature(kernel)
    except (TypeError, ValueError):
        return  # some functions written in C have none
    try:
        signature.bind(*range(4), **keywords)
    except TypeError as error:
        raise ReportedError(
            f"wrong signature: it is {signature}, which cannot be called as {SIGNATURE}: {error}"
        ) from None


def _check_runs(kernel: Callable[..., Any]) -> None:
    """Check that a call runs the kernel's body; of a generator or a coroutine it runs nothing."""
    while isinstance(kernel, partial):
        kernel = kernel.func
    function = kernel if inspect.isroutine(kernel) else type(kernel).__call__
    for test in (
        inspect.isgeneratorfunction,
        inspect.iscoroutinefunction,
        inspect.isasyncgenfunction,
    ):
        if test(function):
            raise ReportedError(
                "is a generator or an async function, of which a call runs nothing; expected a "
                "plain function"
            )


def _call(kernel: Callable[..., Any], p: Parameter, keywords: dict[str, Any], number: int) -> None:
    # The copied array's offset plus another for each array, as views of different arrays have.
    names = ("weight", "grad", "acc_grad", "acc_delta")
    guarded = {
        name: Guarded(array, shift=(number + k) % 4 + address(array) % 16 // array.itemsize)
        for k, (name, array) in enumerate(zip(names, p.arrays, strict=True))
    }
    poison(4, p.weight.nbytes, library(p.weight))
    returned = _returned(kernel, [each.array for each in guarded.values()], keywords)
    for name, each in guarded.items():
        if (each.array.dtype, each.array.shape) != (p.weight.dtype, p.weight.shape):
            raise ReportedError(
                f"changed dtype or shape of {name} to {each.array.dtype}{list(each.array.shape)}; "
                "expected changes of its values only"
            )
        outside = each.written_outside()
        if outside:
            raise ReportedError(f"wrote outside {name} of shape {list(p.weight.shape)}: {outside}")
    results = {name: each.array for name, each in guarded.items()}
    if returned is not None:
        new = dict(zip(RESULTS, _checked(returned, p), strict=True))
        _check_inputs(p, results, new)
        results |= new
    for name, values in results.items():
        getattr(p, name)[...] = values


def _returned(kernel: Callable[..., Any], arrays: Sequence[Any], keywords: dict[str, Any]) -> Any:
    """Call a kernel and wait for its launches, so that their errors are reported as its own."""
    try:
        returned = kernel(*arrays, **keywords)
        if library(arrays[0]) is not np:
            library(arrays[0]).cuda.Device().synchronize()
    except Exception as error:
        if status(error) in KERNEL_FAULTS:
            raise FatalReportedError(describe_error(error)) from error
        raise
    return returned


def _check_inputs(p: Parameter, after: dict[str, Any], new: dict[str, Any]) -> None:
    """Check that a kernel that returns new arrays wrote nothing else into its inputs."""
    for name, array in new.items():
        kept = after[name].tobytes() in {getattr(p, name).tobytes(), array.tobytes()}
        if not kept:
            raise ReportedError(f"returned new arrays and wrote something else into {name}")


def _checked(returned: Any, p: Parameter) -> list[Any]:
    """Check and convert what a functional kernel returned."""
    if not isinstance(returned, (tuple, list)) or len(returned) != len(RESULTS):
        what = f"{len(returned)} values" if isinstance(returned, (tuple, list)) else shown(returned)
        raise ReportedError(
            f"returned {what}; allowed are None, after an update in place, or the new "
            "(weight, acc_grad, acc_delta)"
        )
    arrays = [library(p.weight).asarray(each) for each in returned]
    for name, array in zip(RESULTS, arrays, strict=True):
        if (array.shape, array.dtype) != (p.weight.shape, p.weight.dtype):
            raise ReportedError(
                f"returned {name} as {array.dtype}{list(array.shape)}; expected "
                f"{p.weight.dtype}{list(p.weight.shape)}"
            )
    return arrays
