"""`verify` and `assert_correct`: check a kernel from your own test suite."""

from __future__ import annotations

from collections.abc import Iterable
from numbers import Integral
from typing import TYPE_CHECKING, Any

import numpy as np

from adadelta_cli import keywords
from adadelta_cli.errors import UsageError, shown
from adadelta_cli.implementations import user_kernel
from adadelta_cli.implementations.array_backends import Device
from adadelta_cli.system import process_state
from adadelta_cli.system.sandbox import InProcess
from adadelta_cli.verification.plan import DTYPES, SUBNORMALS, Request
from adadelta_cli.verification.rows import ComparisonRow, skip_reasons
from adadelta_cli.verification.runner import Verification

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


@keywords.checked
def verify(
    step: Callable[..., Any],
    *,
    dtypes: Iterable[str] = ("float32", "float64"),
    cases: Iterable[str] = (),
    seed: int = 0,
    steps: int | None = None,
    full: bool = False,
    ctx: str = "cpu",
    subnormals: str = "strict",
) -> list[ComparisonRow]:
    """Check a kernel in this process, for your own test suite.

    The kernel is called as `adadelta verify --impl FILE.py:FUNCTION` calls it. The rows report what
    it does wrong, exceptions included; only crashes and endless loops are not contained.

    Args:
        step: the kernel: updates weight, acc_grad and acc_delta in place and returns None, or
            returns the new (weight, acc_grad, acc_delta); leaves grad unchanged.
        dtypes: of float32 and float64.
        cases: names of the only cases; none for the default set, fuzzed cases and tensors of every
            length.
        seed: of all random numbers.
        steps: steps of each case, in place of its own number.
        full: the whole catalogue of cases: minutes.
        ctx: the device: on `gpu` or `gpu:N` the kernel gets CuPy arrays.
        subnormals: `strict`, or `flush` where the kernel may flush subnormals to zero.

    Returns:
        Rows as in verify.csv; `row.passed` is False where something is wrong, and `row.note` says
        what.

    Raises:
        UsageError: an argument has a wrong type or value, or the kernel is no function.
        UnavailableError: the device is not available, or the memory that the cases need.
        BrokenError: the device failed for a reason other than the kernel.

    Examples:
        >>> from adadelta_cli import verify
        >>> from examples.numpy_kernel import step
        >>> [row for row in verify(step, cases=["odd"]) if row.passed is False]
        []
    """
    if not callable(step):
        raise UsageError(f"step is {shown(step)}; expected a function {user_kernel.SIGNATURE}")
    case_names, dtype_names = _names("cases", cases), _names("dtypes", dtypes)
    _check("dtypes", dtype_names, DTYPES[:2])
    _check("subnormals", [subnormals], SUBNORMALS)
    _check_integer("seed", seed, 0)
    if steps is not None:
        _check_integer("steps", steps, 1, "None, or ")
    if not isinstance(full, (bool, np.bool_)):
        raise UsageError(f"full is {shown(full)}; allowed is True or False")
    if not isinstance(ctx, str):
        raise UsageError(f"ctx is {shown(ctx)}; expected cpu, gpu or gpu:N")
    device = Device.parse(ctx)
    kernel = user_kernel.from_function(step).on(device)
    with process_state.own():
        kernel.arrays()
        request = Request(
            kernel=kernel,
            case_names=case_names,
            full=bool(full),
            steps=None if steps is None else int(steps),
            dtypes=dtype_names,
            device=kernel.device,
            seed=int(seed),
            subnormals=subnormals,
        )
        work = Verification(request.plan)
        work.execute(sandbox=InProcess())
    return work.rows


def _names(argument: str, given: Any) -> tuple[str, ...]:
    """List the names in an argument; each once."""
    listed = isinstance(given, Iterable) and not isinstance(given, (str, bytes, bytearray))
    names = [*given] if listed else []
    if not listed or not all(isinstance(name, str) for name in names):
        raise UsageError(f"{argument} is {shown(given)}; expected a list of texts")
    return tuple(dict.fromkeys(map(str, names)))


def _check(name: str, values: Sequence[Any], allowed: Sequence[str]) -> None:
    wrong = [value for value in values if value not in allowed]
    if wrong or not values:
        found = shown(wrong[0]) if wrong else "nothing"
        raise UsageError(f"{name} has {found}; allowed are {' and '.join(allowed)}")


def _check_integer(name: str, given: Any, least: int, other: str = "") -> None:
    integer = isinstance(given, Integral) and not isinstance(given, (bool, np.timedelta64))
    if not integer or given < least:
        raise UsageError(f"{name} is {shown(given)}; allowed is {other}an integer >= {least}")


def assert_correct(step: Callable[..., Any], **options: Any) -> None:
    """Assert that a kernel is correct, for your own test suite.

    Args:
        step: the kernel, as in `verify`.
        options: the other arguments of `verify`.

    Raises:
        AssertionError: rows failed, listed in the message; or nothing was compared.
        UsageError, UnavailableError, BrokenError: as in `verify`.

    Examples:
        >>> from adadelta_cli import assert_correct
        >>> from examples.numpy_kernel import step
        >>> assert_correct(step, cases=["odd"])
    """
    keywords.check("assert_correct", options, keywords.of(verify))
    rows = verify(step, **options)
    failed = [row for row in rows if row.passed is False]
    if failed:
        lines = [f"{row.check} {row.case} {row.dtype} {row.tensor}: {row.note}" for row in failed]
        raise AssertionError(f"{len(failed)} of {len(rows)} rows failed:\n" + "\n".join(lines))
    if not any(row.passed is not None and row.is_comparison for row in rows):
        raise AssertionError(f"nothing was compared: {'; '.join(skip_reasons(rows))}")
