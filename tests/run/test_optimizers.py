"""Runs with other optimizers than AdaDelta: reproducible, resumable, or refused."""

from __future__ import annotations

import json

import pytest
from conftest import assert_same_bits, slow_but
from short_runs import interrupt, make_run, no_pictures, short  # noqa: F401 - a fixture

from adadelta_cli.errors import UsageError
from adadelta_cli.implementations.array_backends import backend as array_library
from adadelta_cli.implementations.optimizers import RULES, STATES
from adadelta_cli.run import report
from adadelta_cli.run.optimizers import OPTIMIZERS
from adadelta_cli.run.training import runs
from adadelta_cli.verification.plan import Request


def using(name, *overrides, problem="logistic_regression"):
    """Shorten a config, with another optimizer."""
    return short(problem, f"optimizer={{name: {name}}}", *overrides)


def test_the_settings_are_those_of_the_rules():
    """Each optimizer that can be configured can be bound, and has a name on a plot."""
    assert set(OPTIMIZERS) == set(STATES) == set(report.TITLES)


@pytest.mark.parametrize("dtype", slow_but(["float32", "float64", "float16"], "float32"))
@pytest.mark.parametrize("name", RULES)
def test_a_run_trains_and_resumes_to_the_same_bytes(tmp_path, backend, name, dtype):
    """On each library, in each dtype: the loss falls, and a stop in the middle shows nowhere."""
    whole = make_run(tmp_path / "whole", using(name), backend, dtype=dtype)
    result = whole.execute()
    assert result.history[-1].loss < 0.99 * result.history[0].loss
    interrupt(make_run(tmp_path / "parts", using(name), backend, dtype=dtype), 24)
    rest = make_run(tmp_path / "parts", using(name), backend, dtype=dtype, resume=True)
    assert rest.trainer.step == 24
    rest.execute()
    files = [each.folder / "history.csv" for each in (whole, rest)]
    assert files[0].read_bytes() == files[1].read_bytes()
    assert_same_bits(whole.trainer.state().values(), rest.trainer.state().values())


@pytest.mark.parametrize("name", RULES)
def test_clipping_decay_and_scale_reach_the_step(tmp_path, name):
    """Each changes where the run leads."""
    changes = ("clip_gradient=1e-3", "wd=0.5", "rescale_grad=-1")
    overrides = [(), *((f"optimizer.{each}",) for each in changes)]
    losses = {
        make_run(tmp_path / str(k), using(name, *each)).execute().history[-1].loss
        for k, each in enumerate(overrides)
    }
    assert len(losses) == 4


def test_the_summary_names_the_optimizer(tmp_path):
    """And says that the step was not fused, which only AdaDelta's is."""
    make_run(tmp_path, using("adam")).execute()
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert (summary["optimizer"], summary["fused"]) == ("adam", False)
    assert "--no-fused" in (tmp_path / "config.yaml").read_text().splitlines()[0]


def test_another_optimizer_is_another_run(tmp_path):
    """Neither resumed nor replaced."""
    make_run(tmp_path, using("sgd")).execute()
    with pytest.raises(UsageError, match=r"optimizer\.momentum was None and is 0\.9"):
        make_run(tmp_path, using("momentum"))


def test_a_diverged_run_is_advised_on_what_it_has(tmp_path):
    """SGD has no epsilon."""
    result = make_run(tmp_path, using("sgd", problem="rosenbrock")).execute()
    (line, _files) = report.run_remarks([result], tmp_path)
    assert "Try a smaller optimizer.learning_rate, or set optimizer.clip_gradient" in line


def test_gradients_of_other_optimizers_are_not_recorded(tmp_path):
    """What reads them replays AdaDelta."""
    with pytest.raises(UsageError, match=r"--record-gradients .*optimizer\.name is adam: make it"):
        make_run(tmp_path, using("adam"), record_gradients=tmp_path / "g.npz")


def test_other_optimizers_are_not_verified(tmp_path):
    """A config that names one is refused before anything runs."""
    path = tmp_path / "my.yaml"
    path.write_text(using("adam").to_yaml())
    with pytest.raises(UsageError, match=r"my\.yaml has optimizer\.name adam; verify compares"):
        Request(configs=(str(path),)).plan  # noqa: B018 - it raises


def test_fused_is_for_adadelta_only(tmp_path):
    """Asked for by name, it is refused; by default it is used where there is one."""
    how = (["rosenbrock"], ["optimizer={name: adam}"], tmp_path, array_library("numpy"))
    with pytest.raises(UsageError, match=r"--fused: only adadelta .*of rosenbrock is adam"):
        runs(*how, fused=True)
    for fused in (None, False):
        (made,) = runs(*how, fused=fused)
        assert not made._facts["fused"]
    (made,) = runs(["rosenbrock"], [], *how[2:])
    assert made._facts["fused"]
