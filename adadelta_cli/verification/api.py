"""`verify` and `assert_correct`: check a kernel from a test suite of one's own."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

from adadelta_cli.errors import UsageError
from adadelta_cli.implementations import user_kernel
from adadelta_cli.implementations.array_backends import Device
from adadelta_cli.system.sandbox import InProcess
from adadelta_cli.verification import catalogue, fuzz, invariants
from adadelta_cli.verification.plan import SUBNORMALS, VerifyPlan
from adadelta_cli.verification.rows import ComparisonRow, reasons
from adadelta_cli.verification.runner import Verification

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


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
) -> list[ComparisonRow]:
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
        raise UsageError(f"step is {step!r}; expected a function {user_kernel.SIGNATURE}")
    if subnormals not in SUBNORMALS:
        allowed = " and ".join(SUBNORMALS)
        raise UsageError(f"subnormals is {subnormals!r}; allowed are {allowed}")
    if isinstance(cases, str) or seed < 0 or (steps is not None and steps < 1):
        raise UsageError(
            f"cases is {cases!r}, seed {seed!r} and steps {steps!r}; expected a list of names, a "
            "number from 0 on, and None or a number from 1 on"
        )
    fixed = tuple(name for name in cases if name not in fuzz.COLLECTIVE)
    chosen = tuple(catalogue.select(fixed, full=full, steps=steps)) if fixed or not cases else ()
    kernel = user_kernel.from_function(step).on(Device.parse(ctx))
    with warnings.catch_warnings():
        kernel.arrays()
        plan = VerifyPlan(
            (kernel,),
            chosen,
            dtypes=tuple(dtypes),
            seed=seed,
            device=kernel.device,
            watched=frozenset(cases or (invariants.FULL if full else invariants.CASES)),
            drawn=fuzz.example_count(tuple(cases), full=full, alone=bool(cases)),
            lengths=fuzz.longest_length(full=full) * (not cases or fuzz.LENGTHS in cases),
            steady=not cases or fuzz.STEADY in cases,
            flush=subnormals == "flush",
            seconds=fuzz.time_limit_s(full=full),
        )
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
