"""Recorded gradients are replayed: the same steps through every implementation."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from conftest import NUMPY, plan_of

from adadelta_cli.errors import UsageError
from adadelta_cli.implementations import array_backends
from adadelta_cli.run import config, training
from adadelta_cli.verification import execute
from adadelta_cli.verification.recording import Recording
from adadelta_cli.verification.runner import Verification

SETTINGS = [
    "training.epochs=1",
    "problem.hidden=[16, 8]",
    "optimizer.rho=0.95",
    "optimizer.clip_gradient=0.5",
]


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """Record a short training on NumPy; return the file and the finished run."""
    folder = tmp_path_factory.mktemp("recorded")
    path = folder / "grads.npz"
    settings = config.load_config("mlp", SETTINGS)
    numpy = array_backends.backend("numpy")
    run = training.Run("mlp", settings, folder, numpy, record_gradients=path)
    run.execute()
    return path, run


def rewritten(path, folder, **changes):
    """Write a copy of a recording with other entries; None leaves one out."""
    with np.load(path) as file:
        content = {key: file[key] for key in file} | changes
    other = folder / "other.npz"
    np.savez(other, **{key: value for key, value in content.items() if value is not None})
    return other


def test_a_replay_ends_where_the_training_ended(recorded):
    """The unfused step on the recorded gradients makes the training's own weights and states."""
    path, run = recorded
    recording = Recording.read(path)
    assert recording.steps == run.trainer.total and recording.hyper.rho == 0.95
    end = execute.step_through(NUMPY, recording, "float32", 0).tensors
    for part in ("weight", "acc_grad", "acc_delta"):
        arrays = [p.arrays[part].ravel() for p in run.trainer.parameters.values()]
        assert end[part][-1].tobytes() == np.concatenate(arrays).tobytes()


def test_implementations_are_compared_on_the_recording(recorded):
    """Rows of check `replay`, all steps, with a command that repeats them."""
    path, _ = recorded
    recording = Recording.read(path)
    work = Verification(plan_of(("numpy-fused",), (recording,), dtypes=("float32", "float16")))
    work.execute()
    assert work.failures == []
    rows = [row for row in work.rows if row.check == "replay"]
    assert {row.tensor for row in rows} == {"weight", "acc_grad", "acc_delta", "master"}
    assert {row.steps for row in rows} == {recording.steps}
    assert rows[0].elements == recording.steps * recording.elements
    steps = f"--steps {recording.steps}"
    asked = f"adadelta verify --replay {path} {steps} --impl numpy-fused --dtype float32"
    assert rows[0].replay == asked


def test_a_change_of_one_recorded_gradient_changes_the_replay(recorded, tmp_path):
    """So the gradients of every step are what is replayed."""
    path, _ = recorded
    with np.load(path) as file:
        name = next(key for key in file if key.startswith("grad/"))
        grads = file[name].copy()
    grads[-1].reshape(-1)[0] += 1
    other = Recording.read(rewritten(path, tmp_path, **{name: grads}))
    ends = [
        execute.step_through(NUMPY, each, "float32", 0).tensors["acc_grad"][-1]
        for each in (Recording.read(path), other)
    ]
    assert np.flatnonzero(ends[0] != ends[1]).size == 1


def test_the_first_steps_alone(recorded):
    """`--steps` shortens a recording, and cannot lengthen it."""
    path, run = recorded
    assert Recording.read(path, 3).steps == 3
    with pytest.raises(UsageError, match=f"{run.trainer.total} steps"):
        Recording.read(path, run.trainer.total + 1)


def test_wrong_files_are_usage_errors(recorded, tmp_path):
    """Missing, of another kind, cut, without a part, with parts that do not fit."""
    path, _ = recorded
    text, cut = tmp_path / "text.npz", tmp_path / "cut.npz"
    text.write_text("no recording")
    cut.write_bytes(path.read_bytes()[:-200])
    with np.load(path) as file:
        name = next(key for key in file if key.startswith("grad/"))
        short = file[name][:-1]
    wrong = [
        tmp_path / "nonesuch.npz",
        tmp_path,
        text,
        cut,
        rewritten(path, tmp_path, hyperparameters=np.array("{")),
    ]
    for each in wrong:
        with pytest.raises(UsageError, match="--record-gradients FILE"):
            Recording.read(each)
    for changes in (
        {"dtype": None},
        {name: short},
        {name: None},
        {name: short[..., None]},
        {"hyperparameters": np.array('{"rho": 7}')},
    ):
        with pytest.raises(UsageError, match=r"is no recording: .*"):
            Recording.read(rewritten(path, tmp_path, **changes))


def test_a_recording_beyond_memory_is_refused(recorded, monkeypatch):
    """With how many of its steps would do."""
    monkeypatch.setattr("adadelta_cli.verification.recording.LARGEST_TRAJECTORY", 5000)
    with pytest.raises(UsageError, match="3 steps"):
        Recording.read(recorded[0])


def test_the_command_replays(adadelta, recorded, tmp_path):
    """In the dtype of the recording, and nothing else than the recording."""
    path, _ = recorded
    how = ("--backend", "numpy", "--out", tmp_path, "--json", "--steps", "5")
    code, out, err = adadelta("verify", "--replay", path, *how)
    assert code == 0, err
    assert json.loads(out)["plan"]["cases"] == [str(path)]
    with (tmp_path / "verify.csv").open() as file:
        rows = list(csv.DictReader(file))
    checks = ["replay"] * 3 + ["gradient"] + ["oracle"] * 3 + ["drift"] * 3
    assert [row["check"] for row in rows] == checks
    assert {(row["dtype"], row["steps"], row["passed"]) for row in rows} == {
        ("float32", "5", "true")
    }


@pytest.mark.parametrize("args", [["mlp"], ["--case", "odd"], ["--full"], ["--sizes", "10"]])
def test_a_replay_goes_with_nothing_else(adadelta, recorded, args):
    """A usage error, and nothing written."""
    code, _, err = adadelta("verify", "--replay", recorded[0], *args, "--out", "out")
    assert code == 2 and "--replay" in err
    assert not Path("out").exists()
