"""Unknown keywords are refused by name, with the one that was probably meant."""

from __future__ import annotations

import functools
import inspect
from importlib import import_module

import pytest
from conftest import needs_mxnet

import adadelta_cli
from adadelta_cli import FusedStep, Parameter, assert_correct, keywords, verify

CALLS = {
    "FusedStep": functools.partial(FusedStep, []),
    "Parameter": functools.partial(Parameter, 1, 2, 3),
    "verify": functools.partial(verify, print),
    "assert_correct": functools.partial(assert_correct, print),
}


@pytest.mark.parametrize(
    ("function", "given", "meant"),
    [
        ("FusedStep", "lr", "learning_rate"),
        ("FusedStep", "eps", "epsilon"),
        ("FusedStep", "weight_decay", "wd"),
        ("FusedStep", "momentum", "rho"),
        ("FusedStep", "beta", "rho"),
        ("FusedStep", "rho1", "rho"),
        ("FusedStep", "EPSILON", "epsilon"),
        ("FusedStep", "max_grad_norm", "clip_gradient"),
        ("FusedStep", "learnin_rate", "learning_rate"),
        ("Parameter", "gradient", "grad"),
        ("Parameter", "master_weight", "master"),
        ("Parameter", "accdelta", "acc_delta"),
        ("verify", "dtype", "dtypes"),
        ("verify", "case", "cases"),
        ("verify", "device", "ctx"),
        ("verify", "subnormal", "subnormals"),
        ("assert_correct", "case", "cases"),
    ],
)
def test_an_unknown_keyword_suggests_the_right_one(function, given, meant):
    """By its spelling, or by what other libraries call it."""
    message = f"{function} has no keyword '{given}'; did you mean {meant}\\?"
    with pytest.raises(TypeError, match=message):
        CALLS[function](**{given: 1})


@pytest.mark.parametrize("function", list(CALLS))
def test_a_keyword_like_none_lists_those_allowed(function):
    """All of them."""
    with pytest.raises(TypeError, match=f"{function} has no keyword 'qqq'; allowed are ") as raised:
        CALLS[function](qqq=1)
    wrapped = verify if function == "assert_correct" else getattr(adadelta_cli, function)
    for name in keywords.of(wrapped):
        assert name in str(raised.value)


def test_signatures_are_kept():
    """For `help` and editors."""
    assert "learning_rate" in inspect.signature(FusedStep).parameters
    assert list(inspect.signature(Parameter).parameters)[:2] == ["weight", "grad"]


@needs_mxnet
def test_every_synonym_leads_to_a_keyword_of_a_public_function():
    """Else it could not be suggested."""
    optimizer = import_module("adadelta_cli.mxnet_bridge.optimizer")
    functions = [optimizer.AdaDelta.__init__, optimizer.mx.optimizer.Optimizer.__init__]
    functions += [FusedStep, Parameter, verify, optimizer.load_states]
    known = {name for function in functions for name in keywords.of(function)}
    assert set(keywords.SYNONYMS.values()) <= known
