"""A run is reproducible, resumes to the same bytes, and reports how it ended."""

from __future__ import annotations

import csv
import json

import pytest
from conftest import assert_same_bits
from short_runs import SETTINGS, interrupt, make_run, no_pictures, short  # noqa: F401 - a fixture

from adadelta_cli.errors import ExitCode, UsageError
from adadelta_cli.run import config
from adadelta_cli.run.result import RunOutcome, TrainingRow
from adadelta_cli.run.training import exit_code


@pytest.fixture
def run(tmp_path):
    """Make a run in a folder of the test's own."""
    return lambda settings, folder="a", backend=None, **how: make_run(
        tmp_path / folder, settings, backend, **how
    )


def history(run):
    """Return the bytes of a run's history.csv."""
    return (run.folder / "history.csv").read_bytes()


@pytest.mark.parametrize("name", SETTINGS)
def test_the_same_config_and_seed_give_the_same_bytes(run, backend, name):
    """Two runs write the same history.csv; there is no clock in it."""
    first, second = run(short(name), "a", backend), run(short(name), "b", backend)
    first.execute()
    second.execute()
    assert history(first) == history(second)


def test_another_seed_gives_another_history(run):
    """Start, split and order of the samples derive from the seed."""
    first, second = run(short("mlp"), "a", seed=1), run(short("mlp"), "b", seed=2)
    first.execute()
    second.execute()
    assert history(first) != history(second)


def test_the_history_has_the_start_every_nth_step_and_the_end(run):
    """record_every=7 in 50 steps: 0, 7, ..., 49, and 50."""
    made = run(short("rosenbrock"))
    made.execute()
    rows = list(csv.DictReader(history(made).decode().splitlines()))
    assert [int(row["step"]) for row in rows] == [*range(0, 50, 7), 50]
    assert list(rows[0]) == [*TrainingRow.model_fields, "distance"]


def test_a_row_an_epoch_by_default(run):
    """1438 samples in batches of 64 are 23 steps an epoch; each has a row at its end."""
    made = run(short("mlp", "training.record_every=null"))
    result = made.execute()
    assert [(row.step, row.epoch) for row in result.history] == [(0, 0), (23, 1), (46, 2)]


# --- resume ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("stop", [1, 7, 24, 45])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_a_resumed_run_gives_the_same_bytes(run, backend, dtype, stop):
    """Stopped within an epoch, at its end, at a recorded step: same bytes, same weights."""
    whole = run(short("mlp"), "whole", backend, dtype=dtype)
    whole.execute()
    interrupt(run(short("mlp"), "parts", backend, dtype=dtype), stop)
    rest = run(short("mlp"), "parts", backend, dtype=dtype, resume=True)
    assert rest.trainer.step == stop
    rest.execute()
    assert history(rest) == history(whole)
    assert_same_bits(rest.trainer.state().values(), whole.trainer.state().values())


@pytest.mark.parametrize("name", ["rosenbrock", "logistic_regression"])
def test_a_run_may_be_stopped_again_and_again(run, name):
    """Stopping three times changes nothing."""
    whole = run(short(name), "whole")
    whole.execute()
    for stop in (3, 11, 20):
        interrupt(run(short(name), "parts", resume=True), stop)
    rest = run(short(name), "parts", resume=True)
    rest.execute()
    assert history(rest) == history(whole)


def test_an_interrupted_run_leaves_the_rows_that_were_finished(run):
    """history.csv is the beginning of the whole one; summary.json says that it was interrupted."""
    whole, part = run(short("rosenbrock"), "whole"), run(short("rosenbrock"), "part")
    whole.execute()
    interrupt(part, 30)
    assert history(whole).startswith(history(part))
    assert len(history(part).splitlines()) == 1 + 5
    assert json.loads((part.folder / "summary.json").read_text())["outcome"] == "interrupted"


def test_files_of_an_earlier_run_do_not_outlive_the_next_ones_start(run):
    """After a new run was interrupted, no file of the old one is left."""
    made = run(short("rosenbrock"))
    made.execute()
    (made.folder / "loss.png").write_bytes(b"old")
    interrupt(run(short("rosenbrock", "optimizer.rho=0.5"), force=True), 30)
    assert not (made.folder / "loss.png").exists()


def test_what_breaks_within_a_step_leaves_the_last_whole_checkpoint(run, monkeypatch):
    """A torn step is not saved; going on from the checkpoint before it gives the same bytes."""
    whole = run(short("rosenbrock"), "whole")
    whole.execute()
    torn = run(short("rosenbrock", "training.checkpoint_every=10"), "torn")
    advance = torn.trainer.advance

    def tear():
        if torn.trainer.step == 25:
            torn.trainer.parameters["x"].states["acc_grad"][...] = 0
            raise MemoryError
        advance()

    monkeypatch.setattr(torn.trainer, "advance", tear)
    with pytest.raises(MemoryError):
        torn.execute()
    rest = run(short("rosenbrock"), "torn", resume=True)
    assert rest.trainer.step == 20
    rest.execute()
    assert history(rest) == history(whole)


def test_a_finished_run_may_grow(run):
    """More steps with --resume give the bytes of a run that was that long from the start."""
    run(short("rosenbrock", "training.steps=31"), "grown").execute()
    grown = run(short("rosenbrock"), "grown", resume=True)
    assert grown.trainer.step == 31
    grown.execute()
    whole = run(short("rosenbrock"), "whole")
    whole.execute()
    assert history(grown) == history(whole)


def test_resuming_a_finished_run_changes_nothing(run):
    """No step is left, and the files stay unchanged."""
    made = run(short("rosenbrock"))
    made.execute()
    before = history(made)
    run(short("rosenbrock"), resume=True).execute()
    assert history(made) == before


def test_resume_without_a_checkpoint_begins(run):
    """A job that is always started with --resume needs no special first time."""
    assert run(short("rosenbrock"), resume=True).execute().steps == 50


DIFFERENT = {
    "optimizer.rho was 0.99999 and is 0.5": {"overrides": ["optimizer.rho=0.5"]},
    "training.record_every was 7 and is 3": {"overrides": ["training.record_every=3"]},
    "problem.dimension was 2 and is 3": {"overrides": ["problem.dimension=3"]},
    "seed was 0 and is 1": {"seed": 1},
    "dtype was 'float32' and is 'float64'": {"dtype": "float64"},
    "fused was True and is False": {"fused": False},
    "is at step 20, but the run has 10": {"overrides": ["training.steps=10"]},
}


@pytest.mark.parametrize(("message", "change"), DIFFERENT.items())
def test_another_run_is_not_resumed(run, message, change):
    """The message says what differs; nothing is touched."""
    stopped = run(short("rosenbrock"))
    interrupt(stopped, 20)
    before = {path: path.read_bytes() for path in stopped.folder.iterdir()}
    how = dict(change)
    settings = short("rosenbrock", *how.pop("overrides", []))
    with pytest.raises(UsageError, match=message):
        run(settings, resume=True, **how)
    assert {path: path.read_bytes() for path in stopped.folder.iterdir()} == before


def test_other_expectations_are_no_other_run(run):
    """What counts as success, and how often a checkpoint is written, may change."""
    interrupt(run(short("rosenbrock")), 20)
    changed = short("rosenbrock", "expect.max_loss=1e9", "training.checkpoint_every=3")
    assert run(changed, resume=True).execute().outcome is RunOutcome.PASSED
    repeated = short("rosenbrock", "expect.max_loss=2e9", "training.checkpoint_every=4")
    assert run(repeated).execute().outcome is RunOutcome.PASSED


def test_changed_data_are_another_run(run, tmp_path):
    """A CSV file that was edited since is noticed."""
    table = tmp_path / "my.csv"
    table.write_text("a,label\n1,0\n2,1\n3,0\n4,1\n")
    settings = short("logistic_regression", f"problem.csv={table}")
    interrupt(run(settings), 10)
    table.write_text("a,label\n1,0\n2,1\n3,0\n5,1\n")
    with pytest.raises(UsageError, match="sha256 of the data was"):
        run(settings, resume=True)


def test_an_unfinished_run_is_not_lost_by_mistake(run):
    """Starting over needs --force; a finished run is simply repeated."""
    interrupt(run(short("rosenbrock")), 20)
    with pytest.raises(
        UsageError, match=r"unfinished run, at step 20 of 50; use --resume .*--force"
    ):
        run(short("rosenbrock"))
    run(short("rosenbrock"), force=True).execute()
    run(short("rosenbrock")).execute()


REPLACING = {
    "optimizer.rho was 0.99999 and is 0.5": {"overrides": ["optimizer.rho=0.5"]},
    "seed was 0 and is 1": {"seed": 1},
    "dtype was 'float32' and is 'float16'": {"dtype": "float16"},
    "fused was True and is False": {"fused": False},
    "steps was 50 and is 51": {"overrides": ["training.steps=51"]},
    "steps was 50 and is 3": {"overrides": ["training.steps=3"]},
}


@pytest.mark.parametrize(("message", "change"), REPLACING.items())
def test_a_finished_run_with_other_settings_is_not_replaced(run, message, change):
    """The message says what differs and advises --force, which replaces it."""
    made = run(short("rosenbrock"))
    made.execute()
    before = {path: path.read_bytes() for path in made.folder.iterdir()}
    how = dict(change)
    settings = short("rosenbrock", *how.pop("overrides", []))
    with pytest.raises(UsageError, match=rf"finished run .*{message}; .*--force"):
        run(settings, **how)
    assert {path: path.read_bytes() for path in made.folder.iterdir()} == before
    run(settings, force=True, **how).execute()
    assert run(settings, **how).execute().outcome is RunOutcome.FINISHED


# --- how it ends ----------------------------------------------------------------------------------


def test_a_missed_expectation_is_reported(run):
    """The check has the bound and the value, and the exit code is 1."""
    result = run(short("rosenbrock", "expect.max_loss=1e-9", "expect.max_distance=100")).execute()
    assert result.outcome is RunOutcome.MISSED
    assert [(each.metric, each.passed) for each in result.checks] == [
        ("loss", False),
        ("distance", True),
    ]
    assert result.checks[0].got == result.history[-1].loss
    assert exit_code([result]) is ExitCode.CHECK_FAILED


def test_a_run_that_expects_nothing_is_finished(run):
    """It passed no check, and its exit code is 0."""
    result = run(short("rosenbrock")).execute()
    assert result.outcome is RunOutcome.FINISHED
    assert exit_code([result]) is ExitCode.OK


def test_a_run_that_diverges_stops_and_says_so(run, backend):
    """A loss that is not finite ends the run at the next record; there is no checkpoint."""
    settings = short("rosenbrock", "optimizer.learning_rate=1e20")
    made = run(settings, backend=backend)
    result = made.execute()
    assert result.outcome is RunOutcome.DIVERGED
    assert result.steps == 7
    assert not (made.folder / "checkpoint.npz").exists()
    assert exit_code([result]) is ExitCode.CHECK_FAILED
    assert run(settings, backend=backend).execute().steps == 7


@pytest.mark.slow
@pytest.mark.parametrize("name", config.shipped())
def test_a_shipped_config_meets_its_expectations(run, name):
    """On NumPy, fused, in float32; other ways give nearly the same."""
    assert run(config.load_config(name)).execute().outcome is RunOutcome.PASSED
