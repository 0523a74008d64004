"""The arguments of `AdaDelta`: what MXNet's `Optimizer` takes, with a better error for the rest."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from numbers import Real
from typing import Any

import numpy as np

from adadelta_cli import keywords
from adadelta_cli.update import Hyperparameters, Scalars, checked

FINITE = "a finite number"


def check_keywords(given: Mapping[str, Any], classes: tuple[type, ...]) -> None:
    """Check that a class takes each keyword; name an unknown one and the one probably meant.

    Args:
        given: the keywords.
        classes: those that get them in turn, MXNet's and a subclass's mixins among them.

    Raises:
        TypeError: no class takes a keyword.
    """
    known = {name for each in classes for name in keywords.of(each.__init__)}  # type: ignore[misc]
    keywords.check("AdaDelta", given, sorted(known))


def check_kinds(given: Mapping[str, Any]) -> None:
    """Check the arguments that are no hyper-parameters; MXNet finds most mistakes at a later step.

    Raises:
        TypeError: a flag is no bool, a table is no mapping, or `sym` is no symbol.
        ValueError: `begin_num_update` is no finite number.
    """
    for name in ("use_fused_step", "multi_precision"):
        _check_flag(name, given.get(name))
    for name, kind in (("param_idx2name", dict), ("param_dict", Mapping)):
        table = given.get(name)
        absent = table is None or (name == "param_dict" and not table)
        if not absent and not isinstance(table, kind):
            raise TypeError(f"{name} is {table!r}; expected a dict from indices, or None")
    symbol = given.get("sym")
    if symbol is not None and not hasattr(symbol, "attr_dict"):
        raise TypeError(f"sym is {symbol!r}; expected a Symbol of MXNet, or None")
    checked("begin_num_update", as_number(given.get("begin_num_update", 0)), FINITE)


def _check_flag(name: str, value: Any) -> None:
    """Refuse what MXNet takes as true because it is not empty, such as the text "no"."""
    flags = (bool, np.bool_, int, np.integer)
    if value is not None and not (isinstance(value, flags) and value in (0, 1)):
        raise TypeError(f"{name} is {value!r}; allowed is True or False")


def as_number(value: Any) -> Any:
    """Return a bool as 0 or 1, as MXNet takes it."""
    return int(value) if isinstance(value, (bool, np.bool_)) else value


def aggregate_num(given: float | None, *, fused: bool) -> float:
    """Return how many parameters `Updater` passes in one call; 1 or less is one at a time.

    `Updater` compares with `numpy.inf` by identity.
    """
    if given is None:
        return np.inf if fused else 1
    if isinstance(given, Real) and abs(given) == math.inf:
        return np.inf if given == math.inf else 1
    allowed = "a whole number (1 or less: one at a time), or numpy.inf for all"
    return int(checked("aggregate_num", as_number(given), allowed, _is_count))


def _is_count(number: float) -> bool:
    return math.isfinite(number) and (number <= 1 or number.is_integer())


def overwrite_base_rate(scheduler: Any, learning_rate: float | None) -> None:
    """Overwrite a scheduler's base rate as MXNet does; warn instead of printing to stdout.

    Raises:
        TypeError: the scheduler cannot be called, or has no base rate to overwrite.
    """
    if scheduler is None:
        return
    if not callable(scheduler) or isinstance(scheduler, type):
        raise TypeError(
            f"lr_scheduler is {scheduler!r}; expected an LRScheduler, or with learning_rate=None "
            "any function of the number of updates"
        )
    if learning_rate is None:
        return
    if not hasattr(scheduler, "base_lr"):
        raise TypeError(
            f"lr_scheduler is {scheduler!r}, without a base_lr that learning_rate={learning_rate} "
            "could overwrite; pass learning_rate=None to use the scheduler's rates"
        )
    if scheduler.base_lr != learning_rate:
        warnings.warn(
            f"the scheduler's base rate {scheduler.base_lr} is overwritten by learning_rate="
            f"{learning_rate}; pass learning_rate=None to keep the scheduler's",
            stacklevel=3,
        )
        scheduler.base_lr = learning_rate


def multipliers(name: str, given: Any) -> dict[Any, Any]:
    """Return the multipliers of `set_lr_mult` or `set_wd_mult` as a dict.

    Raises:
        TypeError: they are no dict.
        ValueError: a multiplier is no finite number.
    """
    try:
        found = dict(given)
    except (TypeError, ValueError) as error:
        raise TypeError(
            f"{name} is {given!r}; expected a dict from indices or names to multipliers"
        ) from error
    for key, mult in found.items():
        checked(f"{name} of {key!r}", as_number(mult), FINITE)
    return found


def scalars(rho: Any, epsilon: Any, wd: Any, rescale_grad: Any, clip_gradient: Any) -> Scalars:
    """Check the hyper-parameters of all tensors; an infinite `clip_gradient` clips nothing."""
    clip = None if clip_gradient == math.inf else as_number(clip_gradient)
    rho, epsilon, wd, rescale_grad = map(as_number, (rho, epsilon, wd, rescale_grad))
    return Hyperparameters(1.0, rho, epsilon, wd, rescale_grad, clip).doubles
