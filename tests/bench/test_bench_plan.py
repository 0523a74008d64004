"""What is timed: the choice of implementations, and what is refused before anything runs."""

from dataclasses import replace

import pytest
from invented import GROUP, PLAN

from adadelta_cli.bench import plan, workloads
from adadelta_cli.errors import UnavailableError, UsageError
from adadelta_cli.implementations import array_backends
from adadelta_cli.implementations.array_backends import CPU, Device
from adadelta_cli.implementations.registry import timeable
from adadelta_cli.system import machine
from adadelta_cli.system.sandbox import InProcess


def test_too_large_a_workload_is_refused_before_anything_is_allocated(monkeypatch):
    """The message has both numbers, what is needed and what is available."""
    monkeypatch.setattr(machine, "available_bytes", lambda: 3_000_000)
    fused = replace(PLAN, implementations=(timeable("numpy-fused"),))
    with pytest.raises(UnavailableError, match=r"16000000 bytes.*3000000 bytes.*--sizes"):
        plan.check_memory(fused)


def test_unfused_steps_need_more_memory():
    """Their temporary arrays count, too: 7 of them at most."""
    fused = replace(PLAN, implementations=(timeable("numpy-fused"),))
    less = plan.needed_bytes(fused, fused.groups[0])
    assert plan.needed_bytes(PLAN, GROUP) == less + 7 * 4 * 10**6


def test_an_implementation_of_another_backend():
    """--backend numpy and an implementation on MXNet contradict each other."""
    with pytest.raises(UsageError, match=r"mxnet-fused.*--backend is numpy"):
        plan.choose_implementations(["mxnet-fused"], "numpy", CPU)


def test_no_gpu(monkeypatch):
    """Without one, the error names what is missing, before anything is timed."""
    monkeypatch.setattr(array_backends, "Sandbox", InProcess)  # a process would import MXNet again
    with pytest.raises(UnavailableError, match="CuPy"):
        plan.choose_implementations([], "auto", Device("gpu"))


def test_contradicting_options_are_rejected_before_a_device_is_tried():
    """Otherwise users would install a library first, and see the mistake afterwards."""
    with pytest.raises(UsageError, match=r"cupy-fused.*--backend is mxnet"):
        plan.choose_implementations(["cupy-fused"], "mxnet", Device("gpu"))


def test_default_implementations_are_those_of_the_backend():
    """With --backend numpy, MXNet is neither timed nor loaded."""
    assert plan.choose_implementations([], "numpy", CPU) == PLAN.implementations


def test_what_is_named_twice_is_timed_once():
    """Else its samples would count as those of more processes."""
    twice = replace(PLAN, workloads=tuple(workloads.sizes("2e3,2000")), threads=(1, 1))
    assert len(twice.groups) == 1


def against(*names):
    """Plan a comparison with another environment."""
    return replace(PLAN, implementations=tuple(map(timeable, names)), against="old/bin/python")


def test_each_environment_has_its_version_of_a_module():
    """Of a file and of a framework there is one, which is timed once."""
    names = ("numpy-fused", "package.kernels:step", "kernels.py:step", "torch")
    timed = [spec for spec in against(*names).workers if spec.side == plan.OLD]
    assert [each.name for spec in timed for each in spec.implementations] == [*names[:2]]
    assert {spec.python for spec in timed} == {"old/bin/python"}


@pytest.mark.parametrize("names", [["kernels.py:step"], ["torch"]])
def test_a_comparison_of_nothing_is_refused(names):
    """Else its exit code 0 would say that nothing is slower."""
    with pytest.raises(UsageError, match=r"--against .*PACKAGE\.MODULE:FUNCTION .*docs/ci\.md"):
        plan.check_against(against(*names))
    plan.check_against(replace(against(*names), against=None))


@pytest.mark.parametrize("made", ["kernels.py", "kernels/x.py"])
def test_a_module_in_the_current_folder_is_refused(made, tmp_path, monkeypatch):
    """Both environments would import that one, and it would be compared with itself."""
    monkeypatch.chdir(tmp_path)
    for name in ("kernels:step", "kernels.x:step"):
        plan.check_against(against(name))
        (tmp_path / made).parent.mkdir(exist_ok=True)
        (tmp_path / made).touch()
        with pytest.raises(UsageError, match=r"both environments would import .*another folder"):
            plan.check_against(against(name))
        (tmp_path / made).unlink()
        if made == "kernels/x.py":
            (tmp_path / "kernels").rmdir()
