"""A run is reproducible, stops and goes on without a trace, and says how it ended."""

from __future__ import annotations

import csv
import json
import math

import numpy as np
import pytest
from conftest import assert_same_bits, needs_mxnet

from adadelta_cli.errors import ExitCode, UsageError
from adadelta_cli.implementations.array_backends import backend as array_library
from adadelta_cli.implementations.base import StepInputs
from adadelta_cli.implementations.registry import builtin, parameter
from adadelta_cli.run import config, report, training
from adadelta_cli.run.checkpoint import Checkpoint
from adadelta_cli.run.result import TrainingRow
from adadelta_cli.update import Hyperparameters

SMALL = {
    "rosenbrock": ["training.steps=50", "training.record_every=7"],
    "logistic_regression": ["training.steps=30", "training.record_every=4"],
    "mlp": ["training.epochs=2", "problem.hidden=[6, 5]", "training.record_every=5"],
}
ANY = ["expect={}"]


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch):
    """Leave out loss.png, which takes longer to draw than these runs; test_run.py looks at it."""
    monkeypatch.setattr(report, "write_plot", lambda _path, _figure: None)
    monkeypatch.setattr(report, "run_figure", lambda _result: None)


def small(name, *overrides):
    """Shorten a shipped config, and let it expect nothing."""
    return config.load_config(name, [*SMALL[name], *ANY, *overrides])


@pytest.fixture
def run(tmp_path):
    """Make a run in a folder of the test's own; NumPy's arrays unless told otherwise."""

    def run(settings, folder="a", backend=None, **how):
        library = backend or array_library("numpy")
        return training.Run("it", settings, tmp_path / folder, library, **how)

    return run


def history(run):
    """Return the bytes of a run's history.csv."""
    return (run.folder / "history.csv").read_bytes()


def stop_at(step):
    """Make a tick that interrupts at a step."""

    def tick(done, _total, _what):
        if done == step:
            raise KeyboardInterrupt

    return tick


def interrupt(run, step):
    """Execute a run until it is interrupted."""
    with pytest.raises(KeyboardInterrupt):
        run.execute(stop_at(step))


@pytest.mark.parametrize("name", SMALL)
def test_the_same_config_and_seed_give_the_same_bytes(run, backend, name):
    """Two runs write the same history.csv; there is no clock in it."""
    first, second = run(small(name), "a", backend), run(small(name), "b", backend)
    first.execute()
    second.execute()
    assert history(first) == history(second)


def test_another_seed_gives_another_history(run):
    """Start, split and order of the samples derive from the seed."""
    first, second = run(small("mlp"), "a", seed=1), run(small("mlp"), "b", seed=2)
    first.execute()
    second.execute()
    assert history(first) != history(second)


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16"])
@pytest.mark.parametrize("name", SMALL)
def test_fused_and_unfused_give_the_same_bytes(run, backend, name, dtype):
    """Every recorded loss, norm and metric is the same, and so is every weight and state."""
    fused, unfused = (
        run(small(name), str(way), backend, dtype=dtype, fused=way) for way in (True, False)
    )
    fused.execute()
    unfused.execute()
    assert history(fused) == history(unfused)
    ours, theirs = fused.training.state(), unfused.training.state()
    assert_same_bits(ours.values(), theirs.values())


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16"])
def test_each_dtype_is_what_it_says(run, backend, dtype):
    """float16 stores weights in float16, with float32 masters and states; the others are pure."""
    made = run(small("mlp"), backend=backend, dtype=dtype)
    made.execute()
    state = "float32" if dtype == "float16" else dtype
    for key, values in made.training.state().items():
        assert values.dtype == (dtype if key.startswith("weight/") else state)
    assert any(key.startswith("master/") for key in made.training.state()) == (dtype == "float16")


def test_a_row_tells_of_the_step_before_it_and_of_the_point_after(run):
    """Row 0 is the start; row 1 has the gradient there, the way gone, and the loss at its end."""
    made = run(small("rosenbrock", "training.steps=1"), dtype="float64")
    zero, one = made.execute().history
    assert (zero.step, zero.grad_norm, zero.update_norm) == (0, None, None)
    assert zero.loss == pytest.approx(24.2)
    assert one.grad_norm == pytest.approx(math.hypot(215.6, 88))
    (x,) = made.training.weights()
    assert one.update_norm == pytest.approx(np.linalg.norm(x - [-1.2, 1]))
    assert one.loss == pytest.approx(100 * (x[1] - x[0] ** 2) ** 2 + (1 - x[0]) ** 2)


def test_the_history_has_the_start_every_nth_step_and_the_end(run):
    """record_every=7 in 50 steps: 0, 7, ..., 49, and 50."""
    made = run(small("rosenbrock"))
    made.execute()
    rows = list(csv.DictReader(history(made).decode().splitlines()))
    assert [int(row["step"]) for row in rows] == [*range(0, 50, 7), 50]
    assert list(rows[0]) == [*training.COLUMNS, "distance"]


def test_a_row_an_epoch_where_nothing_else_is_said(run):
    """1438 samples in batches of 64 are 23 steps an epoch; a row tells each epoch's end."""
    made = run(small("mlp", "training.record_every=null"))
    result = made.execute()
    assert [(row.step, row.epoch) for row in result.history] == [(0, 0), (23, 1), (46, 2)]


def test_an_epoch_takes_each_sample_once_in_an_order_of_its_own(run):
    """The batches of an epoch are a permutation of the data, and another in the next epoch."""
    made = run(small("mlp")).training
    labelled = made.problem.data[0] @ np.random.default_rng(0).standard_normal(64)
    made._data = [np.asarray(labelled)]
    epochs = []
    for _ in range(2):
        seen = []
        for _ in range(made.steps_per_epoch):
            made._next_batch()
            seen.append(made._batch[0])
            made.step += 1
        epochs.append(np.concatenate(seen))
    for seen in epochs:
        np.testing.assert_array_equal(np.sort(seen), np.sort(labelled))
    assert not np.array_equal(*epochs)


def test_a_long_vector_has_the_norm_of_its_elements():
    """Squares that over- or underflow do not spoil a norm; NaN and infinity stay visible."""
    assert training._norm([np.array([3e200]), np.array([4e200])]) == pytest.approx(5e200)
    assert training._norm([np.array([3e-200, 4e-200])]) == pytest.approx(5e-200)
    assert training._norm([np.zeros(3), np.zeros(0)]) == 0
    assert training._norm([np.array([1.0, np.inf])]) == math.inf
    assert math.isnan(training._norm([np.array([1.0]), np.array([np.nan])]))


# --- stop, and go on ------------------------------------------------------------------------------


@pytest.mark.parametrize("stop", [1, 7, 24, 45])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_a_stopped_run_goes_on_as_if_it_had_not(run, backend, dtype, stop):
    """Stopped within an epoch, at its end, at a recorded step: same bytes, same weights."""
    whole = run(small("mlp"), "whole", backend, dtype=dtype)
    whole.execute()
    interrupt(run(small("mlp"), "parts", backend, dtype=dtype), stop)
    rest = run(small("mlp"), "parts", backend, dtype=dtype, resume=True)
    assert rest.training.step == stop
    rest.execute()
    assert history(rest) == history(whole)
    assert_same_bits(rest.training.state().values(), whole.training.state().values())


@pytest.mark.parametrize("name", ["rosenbrock", "logistic_regression"])
def test_a_run_may_be_stopped_again_and_again(run, name):
    """Stopping three times changes nothing."""
    whole = run(small(name), "whole")
    whole.execute()
    for stop in (3, 11, 20):
        interrupt(run(small(name), "parts", resume=True), stop)
    rest = run(small(name), "parts", resume=True)
    rest.execute()
    assert history(rest) == history(whole)


def test_an_interrupted_run_leaves_the_rows_that_were_finished(run):
    """history.csv is the beginning of the whole one; summary.json says that it was interrupted."""
    whole, part = run(small("rosenbrock"), "whole"), run(small("rosenbrock"), "part")
    whole.execute()
    interrupt(part, 30)
    assert history(whole).startswith(history(part))
    assert len(history(part).splitlines()) == 1 + 5
    assert json.loads((part.folder / "summary.json").read_text())["outcome"] == "interrupted"


def test_files_of_an_earlier_run_do_not_outlive_the_next_ones_start(run):
    """After a new run was interrupted, no file of the old one is left to be taken for its own."""
    made = run(small("rosenbrock"))
    made.execute()
    (made.folder / "loss.png").write_bytes(b"old")
    interrupt(run(small("rosenbrock", "optimizer.rho=0.5")), 30)
    assert not (made.folder / "loss.png").exists()


def test_what_breaks_within_a_step_leaves_the_last_whole_checkpoint(run):
    """A torn step is not saved; going on from the checkpoint before it gives the same bytes."""
    whole = run(small("rosenbrock"), "whole")
    whole.execute()
    torn = run(small("rosenbrock", "training.checkpoint_every=10"), "torn")
    update = torn.training._update

    def tear():
        if torn.training.step == 25:
            torn.training.parameters["x"].acc_grad[...] = 0
            raise MemoryError
        update()

    torn.training._update = tear
    with pytest.raises(MemoryError):
        torn.execute()
    rest = run(small("rosenbrock"), "torn", resume=True)
    assert rest.training.step == 20
    rest.execute()
    assert history(rest) == history(whole)


def test_a_finished_run_may_grow(run):
    """More steps with --resume give the bytes of a run that was that long from the start."""
    run(small("rosenbrock", "training.steps=31"), "grown").execute()
    grown = run(small("rosenbrock"), "grown", resume=True)
    assert grown.training.step == 31
    grown.execute()
    whole = run(small("rosenbrock"), "whole")
    whole.execute()
    assert history(grown) == history(whole)


def test_resuming_a_finished_run_changes_nothing(run):
    """There is nothing left to do, and the files stay as they are."""
    made = run(small("rosenbrock"))
    made.execute()
    before = history(made)
    run(small("rosenbrock"), resume=True).execute()
    assert history(made) == before


def test_resume_without_a_checkpoint_begins(run):
    """A job that is always started with --resume needs no special first time."""
    assert run(small("rosenbrock"), resume=True).execute().steps == 50


DIFFERENT = {
    "optimizer.rho was 0.99999 and is 0.5": {"overrides": ["optimizer.rho=0.5"]},
    "training.record_every was 7 and is 3": {"overrides": ["training.record_every=3"]},
    "problem.dimension was 2 and is 3": {"overrides": ["problem.dimension=3"]},
    "seed was 0 and is 1": {"seed": 1},
    "dtype was 'float32' and is 'float64'": {"dtype": "float64"},
    "fused was True and is False": {"fused": False},
    "is at step 20, and 10 are asked for": {"overrides": ["training.steps=10"]},
}


@pytest.mark.parametrize(("message", "change"), DIFFERENT.items())
def test_another_run_is_not_resumed(run, message, change):
    """The message says what differs; nothing is touched."""
    interrupt(run(small("rosenbrock")), 20)
    how = dict(change)
    settings = small("rosenbrock", *how.pop("overrides", []))
    with pytest.raises(UsageError, match=message):
        run(settings, resume=True, **how)


def test_other_expectations_are_no_other_run(run):
    """What counts as success, and how often a checkpoint is written, may change."""
    interrupt(run(small("rosenbrock")), 20)
    changed = small("rosenbrock", "expect.max_loss=1e9", "training.checkpoint_every=3")
    assert run(changed, resume=True).execute().outcome is training.RunOutcome.PASSED


def test_changed_data_are_another_run(run, tmp_path):
    """A CSV file that was edited since is noticed."""
    table = tmp_path / "my.csv"
    table.write_text("a,label\n1,0\n2,1\n3,0\n4,1\n")
    settings = small("logistic_regression", f"problem.csv={table}")
    interrupt(run(settings), 10)
    table.write_text("a,label\n1,0\n2,1\n3,0\n5,1\n")
    with pytest.raises(UsageError, match="sha256 of the data was"):
        run(settings, resume=True)


def test_an_unfinished_run_is_not_lost_by_mistake(run):
    """Beginning anew needs --force; a finished run is simply written again."""
    interrupt(run(small("rosenbrock")), 20)
    with pytest.raises(
        UsageError, match=r"unfinished run, at step 20 of 50; use --resume .*--force"
    ):
        run(small("rosenbrock"))
    run(small("rosenbrock"), force=True).execute()
    run(small("rosenbrock")).execute()


@pytest.mark.parametrize("content", [b"", b"nonsense", b"PK\x03\x04"])
def test_a_file_that_is_no_checkpoint_is_refused(run, content):
    """The message names the file, and --force gets rid of it."""
    made = run(small("rosenbrock"))
    made.folder.mkdir()
    (made.folder / "checkpoint.npz").write_bytes(content)
    with pytest.raises(UsageError, match=r"checkpoint\.npz is no checkpoint .*--force"):
        run(small("rosenbrock"), resume=True)
    assert run(small("rosenbrock"), force=True).execute().steps == 50


def without(arrays, name):
    """Leave an array out."""
    return {key: array for key, array in arrays.items() if key != name}


def document(arrays, **changes):
    """Change what a checkpoint holds beside its tensors."""
    content = json.loads(str(arrays["document"])) | changes
    return arrays | {"document": np.array(json.dumps(content))}


def rows(arrays, **changes):
    """Change the last row of a checkpoint's history; None leaves a cell out."""
    *before, last = json.loads(str(arrays["document"]))["history"]
    last = {key: value for key, value in (last | changes).items() if value is not None}
    return document(arrays, history=[*before, last])


DAMAGED = {
    "a tensor missing": (
        lambda a: without(a, "acc_grad/x"),
        r"acc_grad/x is missing; expected float32\[2\]",
    ),
    "an unknown tensor": (
        lambda a: a | {"weight/y": a["weight/x"]},
        r"weight/y is float32\[2\]; .*no such",
    ),
    "an unknown part": (
        lambda a: a | {"gradient/x": a["weight/x"]},
        r"gradient/x is .*no such tensor",
    ),
    "no part": (lambda a: a | {"y": a["weight/x"]}, r"the tensor y is .*no such tensor"),
    "another shape": (
        lambda a: a | {"weight/x": np.ones(3, "f4")},
        r"weight/x is float32\[3\]; expected float32\[2\]",
    ),
    "no dimension": (
        lambda a: a | {"weight/x": np.float32(3)},
        r"weight/x is float32\[\]; expected",
    ),
    "another dtype": (
        lambda a: a | {"weight/x": np.ones(2)},
        r"weight/x is float64\[2\]; expected float32",
    ),
    "whole numbers": (lambda a: a | {"weight/x": np.ones(2, "i4")}, r"weight/x\.npy holds int32"),
    "the other byte order": (
        lambda a: a | {"weight/x": np.ones(2, ">f4")},
        r"weight/x is >f4\[2\]",
    ),
    "a master": (lambda a: a | {"master/x": a["weight/x"]}, r"master/x is .*no such tensor"),
    "no document": (lambda a: without(a, "document"), r"no checkpoint .*'document'"),
    "no object": (lambda a: a | {"document": np.array("[]")}, r"no checkpoint"),
    "nested deeply": (
        lambda a: a | {"document": np.array("[" * 100_000)},
        r"no checkpoint .*Recursion",
    ),
    "a step that is a text": (lambda a: document(a, step="20"), r"no checkpoint .*step"),
    "a step below zero": (lambda a: document(a, step=-1), r"no checkpoint .*step"),
    "a step beyond the end": (lambda a: document(a, step=51), r"no checkpoint .*is at 51 of 50"),
    "400 digits": (lambda a: document(a, step=10**400, total=10**400), r"no checkpoint .*step"),
    "no history": (lambda a: document(a, history=[]), r"no checkpoint .*rows"),
    "a row that is none": (lambda a: document(a, history=[3]), r"no checkpoint .*history"),
    "no loss": (lambda a: rows(a, loss=None), r"no checkpoint .*loss"),
    "a loss that is a text": (lambda a: rows(a, loss="x"), r"no checkpoint .*loss"),
    "a metric missing": (
        lambda a: rows(a, distance=None),
        r"row 2 of its history has step, .*expected",
    ),
    "a metric of no such name": (lambda a: rows(a, gap=1.0), r"row 2 of its history has .*gap"),
    "rows out of order": (lambda a: rows(a, step=3), r"no checkpoint .*order"),
    "endless seconds": (lambda a: document(a, seconds=math.inf), r"no checkpoint .*seconds"),
    "something more": (lambda a: document(a, more=1), r"no checkpoint .*more"),
}


@pytest.mark.parametrize(("change", "message"), DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_checkpoint_is_refused(run, change, message):
    """Whatever is missing, too much, or of another kind; --force gets rid of it."""
    interrupt(run(small("rosenbrock")), 20)
    path = run(small("rosenbrock"), resume=True).folder / "checkpoint.npz"
    with np.load(path) as file:
        arrays = {name: file[name] for name in file}
    np.savez(path, **change(arrays))
    with pytest.raises(UsageError, match=message) as caught:
        run(small("rosenbrock"), resume=True)
    assert "--force" in str(caught.value)
    assert run(small("rosenbrock"), force=True).execute().steps == 50


def test_a_checkpoint_reads_back_as_it_was_written(run, tmp_path):
    """Every array keeps its bits, every number of the history too."""
    made = run(small("mlp"), dtype="float16")
    result = made.execute()
    found = Checkpoint.read(made.folder / "checkpoint.npz")
    assert found.finished
    assert found.history == [row.cells for row in result.history]
    assert_same_bits(found.arrays.values(), made.training.state().values())
    assert Checkpoint.read(tmp_path / "none.npz") is None


# --- how it ends ----------------------------------------------------------------------------------


def test_a_missed_expectation_is_told(run):
    """The check has what was wanted and got, and the exit code is 1."""
    result = run(small("rosenbrock", "expect.max_loss=1e-9", "expect.max_distance=100")).execute()
    assert result.outcome is training.RunOutcome.MISSED
    assert [(each.metric, each.passed) for each in result.checks] == [
        ("loss", False),
        ("distance", True),
    ]
    assert result.checks[0].got == result.history[-1].loss
    assert training.exit_code([result]) is ExitCode.CHECK_FAILED


def test_a_run_that_diverges_stops_and_says_so(run, backend):
    """A loss that is no finite number ends the run at the next record; there is no checkpoint."""
    settings = small("rosenbrock", "optimizer.learning_rate=1e20")
    made = run(settings, backend=backend)
    result = made.execute()
    assert result.outcome is training.RunOutcome.DIVERGED
    assert result.steps == 7
    assert not (made.folder / "checkpoint.npz").exists()
    assert training.exit_code([result]) is ExitCode.CHECK_FAILED
    assert run(settings, backend=backend).execute().steps == 7


def test_a_loss_of_any_size_is_drawn(tmp_path, monkeypatch):
    """The largest, infinite and subnormal ones too."""
    monkeypatch.undo()
    settings = config.load_config("rosenbrock", ["training.steps=3", "expect.max_loss=1e150"])
    run = training.Run("it", settings, tmp_path, array_library("numpy"))
    for losses in (
        [1.7e308, 1.0],
        [1e-320, 1e249],
        [-1e249, 1e249],
        [1e-249, 1e249],
        [1.7e308],
        [math.inf, 1e305],
    ):
        run._history = [
            TrainingRow(k, 0, loss, None, None, {"distance": loss}) for k, loss in enumerate(losses)
        ]
        report.write_plot(
            tmp_path / "loss.png", report.run_figure(run._result(training.RunOutcome.PASSED))
        )
        assert (tmp_path / "loss.png").exists()


@pytest.mark.slow
@pytest.mark.parametrize("name", config.shipped())
def test_a_shipped_config_meets_its_expectations(run, name):
    """What ships holds on NumPy, fused, in float32; other ways give the same or nearly."""
    assert run(config.load_config(name)).execute().outcome is training.RunOutcome.PASSED


@needs_mxnet
def test_the_libraries_train_alike(run):
    """In double, MXNet's autograd and NumPy's formulas lead to the same loss for 30 steps."""
    settings = small("logistic_regression")
    ours, theirs = (
        run(settings, name, array_library(name), dtype="float64").execute()
        for name in ("numpy", "mxnet")
    )
    for one, other in zip(ours.history, theirs.history, strict=True):
        assert one.loss == pytest.approx(other.loss, rel=1e-10)


# --- --record-gradients ---------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_recorded_gradients_replay_to_the_same_weights(run, backend, tmp_path, dtype):
    """Weights at the start, gradients of each step and hyper-parameters give the last weights."""
    path = tmp_path / "gradients.npz"
    made = run(small("mlp"), backend=backend, dtype=dtype, record_gradients=path)
    made.execute()
    with np.load(path) as file:
        recorded = dict(file)
    assert str(recorded["dtype"]) == dtype
    hyper = Hyperparameters(**json.loads(str(recorded["hyperparameters"])))
    library = array_library("numpy")
    for name in made.training.parameters:
        weight, grads = recorded[f"weight/{name}"], recorded[f"grad/{name}"]
        assert grads.shape == (46, *weight.shape)
        assert grads.dtype == weight.dtype == dtype
        replayed = parameter(library, made.training.problem.start[name], grads[0], dtype=dtype)
        step = builtin(library, fused=False).bind(StepInputs([replayed], hyper, [1.0], [1.0]))
        for grad in grads:
            replayed.grad[...] = grad
            step()
        assert_same_bits([replayed.weight], [made.training.state()[f"weight/{name}"]])


def test_gradients_that_are_not_all_there_or_too_many_are_refused(run, tmp_path):
    """With --resume the first steps would be missing; a billion steps would not fit."""
    path = tmp_path / "gradients.npz"
    with pytest.raises(UsageError, match="--record-gradients needs every step"):
        run(small("rosenbrock"), resume=True, record_gradients=path)
    with pytest.raises(UsageError, match=r"would hold 7\.5 GiB .*allowed are 2 GiB"):
        run(small("rosenbrock", "training.steps=1000000000"), record_gradients=path)
