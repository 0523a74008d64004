"""Unknown keyword arguments: refuse them by name, with the one that was probably meant."""

from __future__ import annotations

import functools
import inspect
from typing import TYPE_CHECKING, ParamSpec, TypeVar

from adadelta_cli.errors import nearest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    P = ParamSpec("P")
    R = TypeVar("R")

# What other libraries, or people, call a keyword.
SYNONYMS = {
    synonym: name
    for name, synonyms in {
        "acc_delta": "delta",
        "clip_gradient": "clip clip_grad clip_norm clip_value grad_clip max_grad_norm max_norm",
        "ctx": "context device",
        "epsilon": "eps",
        "learning_rate": "eta lr lrate rate step_size",
        "lr_scheduler": "schedule scheduler",
        "master": "master_weight weight32",
        "multi_precision": "mp",
        "parameters": "params",
        "path": "f file filename fname fp",
        "rescale_grad": "grad_scale scale",
        "rho": "alpha beta beta1 beta2 betas decay decay_rate gamma momentum",
        "step": "func function fn impl kernel optimizer",
        "use_fused_step": "fused",
        "wd": "l2 lambda lambda_ weight_decay weightdecay",
        "weight": "param w",
    }.items()
    for synonym in synonyms.split()
}


def of(function: Callable[..., object]) -> list[str]:
    """List the names of a function's parameters, those with a star and `self` apart."""
    starred = inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD
    found = inspect.signature(function).parameters.values()
    return [each.name for each in found if each.kind not in starred and each.name != "self"]


def check(function: str, given: Iterable[str], known: Iterable[str]) -> None:
    """Raise TypeError for an unknown keyword; name it and the one that was probably meant."""
    allowed = list(known)
    for name in given:
        if name not in allowed:
            plain = name[:80].lower()
            meant = SYNONYMS.get(plain)
            near = [meant] if meant in allowed else nearest(plain, allowed, most=1)
            advice = f"did you mean {near[0]}?" if near else f"allowed are {', '.join(allowed)}"
            raise TypeError(f"{function} has no keyword {name[:80]!r}; {advice}")


def checked(function: Callable[P, R]) -> Callable[P, R]:
    """Let a function check its keywords with `check`."""
    known, name = of(function), function.__qualname__.removesuffix(".__init__")

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        check(name, kwargs, known)
        return function(*args, **kwargs)

    return call
