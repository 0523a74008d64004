"""The trainings that `bench --train` times: what they need, and what is left out without it."""

from dataclasses import replace

import numpy as np
import pytest
from invented import PLAN

from adadelta_cli.bench import plan, runner, trainers, trainings
from adadelta_cli.bench.results import Trained
from adadelta_cli.bench.timing_problem import Outcome, TimingProblem
from adadelta_cli.bench.trainings import TRAININGS
from adadelta_cli.bench.worker_pool import EntryKey
from adadelta_cli.errors import UnavailableError
from adadelta_cli.implementations import array_backends, frameworks

ON_TORCH = ["torch-mlp", "torch-cnn"]


@pytest.mark.parametrize(
    ("name", "tensors", "elements"),
    [("mlp", 6, 545_810), ("torch-mlp", 6, 669_706), ("torch-cnn", 8, 113_738)],
)
def test_the_parameters_of_a_training(name, tensors, elements):
    """A row of bench.csv counts those that the optimizer updates."""
    workload = TRAININGS[name].workload
    assert (workload.name, workload.tensors, workload.elements) == (
        f"train:{name}",
        tensors,
        elements,
    )


@pytest.mark.parametrize("training", TRAININGS.values(), ids=list(TRAININGS))
def test_the_optimizers_compute_on_the_library(training):
    """The stock optimizer is the reference of the others."""
    assert {each.backend for each in training.implementations} == {training.library}
    assert not training.implementations[0].fused and training.implementations[-1].fused


@pytest.fixture
def lacks(monkeypatch):
    """Pretend that PyTorch is not installed, or that there is no compiler."""

    def pretend(torch=False, compiler=False):
        missing = "torch not installed; python -m pip install 'adadelta[torch]'" if torch else ""
        monkeypatch.setattr(array_backends, "missing_library", lambda _library: missing)
        monkeypatch.setattr(frameworks.machine, "compiler", lambda: None if compiler else "g++")

    return pretend


@pytest.mark.parametrize("name", ON_TORCH)
def test_without_pytorch(lacks, name):
    """The message says what to install."""
    lacks(torch=True)
    with pytest.raises(
        UnavailableError, match=rf"--train {name}: torch not installed; .*\[torch\]"
    ):
        TRAININGS[name].check_available()


def test_without_a_compiler_the_compiled_stock_is_left_out(lacks):
    """The others are timed, and `-v` gives the reason."""
    lacks(compiler=True)
    training = TRAININGS["torch-mlp"]
    training.check_available()
    assert (
        list(training.absent()) == ["torch-compile"] and "g++" in training.absent()["torch-compile"]
    )
    lines = plan.described(replace(PLAN, workloads=(), trainings=(training,)))
    assert len(lines) == 2 and "torch-foreach, torch-fused, a" in lines[0]
    assert lines[1].startswith("not timed: torch-compile: torch.compile needs a C++ compiler")


def test_with_all_of_it_nothing_is_left_out(lacks):
    """And a plan with steps and trainings describes both."""
    lacks()
    assert TRAININGS["torch-cnn"].absent() == {}
    lines = plan.described(replace(PLAN, trainings=(TRAININGS["torch-cnn"],)))
    assert lines[0].startswith("timed: numpy, numpy-fused on 1e6")
    assert "training steps of torch-cnn with torch-foreach, torch-compile, torch-fused" in lines[1]


def test_rows_of_trainings(lacks, monkeypatch):
    """One for each optimizer and number of threads, with the busy processes and what is absent."""
    lacks(compiler=True)

    def once(training, _plan, group, _number, passes, trained):
        for name in set(training.optimizers) - set(training.absent()):
            columns = {
                EntryKey(name, part): np.full(30, 1e-3) for part in ("step", "update", "rest")
            }
            passes.add(columns, {}, {})
            trained[name].append(Trained(0.5, 0.0))
        assert group.busy == 2

    monkeypatch.setattr(runner, "_train_once", once)
    asked = replace(PLAN, workloads=(), trainings=(TRAININGS["torch-mlp"],), threads=(1, 2), busy=2)
    work = runner.Benchmark(asked, {})
    work.execute()
    assert [row.threads for row in work.rows] == [1, 1, 1, 2, 2, 2]
    assert {row.busy for row in work.rows} == {2} and work.exit_code == 0
    stock, compiled, fused = work.rows[:3]
    assert stock.speedup == fused.speedup == 1 and compiled.median_s is None
    assert compiled.note.startswith("skipped: torch.compile needs")


@pytest.mark.parametrize(
    ("distance", "wrong"), [(0.0, False), (6e-7, False), (1e-4, True), (np.nan, True)]
)
def test_weights_far_from_the_stocks_are_wrong(distance, wrong):
    """NaN is far, too; the message has the distance and what is allowed."""
    problem = trainers.check_distance("torch-foreach", distance)
    assert (problem is not None) == wrong
    if problem:
        assert isinstance(problem, TimingProblem) and problem.outcome is Outcome.WRONG
        assert f"{distance:.1e}" in problem.reason and "2e-06" in problem.reason


def test_the_help_lists_every_training():
    """The choices of `--train` are written out there, since importing these takes long."""
    from adadelta_cli.cli.bench import bench

    (option,) = (each for each in bench.params if "--train" in each.opts)
    assert list(option.type.choices) == list(trainings.TRAININGS)
