"""A checkpoint reads back as it was written, and a damaged one is refused."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from conftest import assert_same_bits
from short_runs import interrupt, make_run, no_pictures, short  # noqa: F401 - a fixture

from adadelta_cli.errors import UsageError
from adadelta_cli.run.checkpoint import Checkpoint

PATH = "checkpoint.npz"


@pytest.mark.parametrize("content", [b"", b"nonsense", b"PK\x03\x04"])
def test_a_file_that_is_no_checkpoint_is_refused(tmp_path, content):
    """The message names the file; --force discards it."""
    (tmp_path / PATH).write_bytes(content)
    with pytest.raises(UsageError, match=r"checkpoint\.npz is not a checkpoint .*--force"):
        make_run(tmp_path, short("rosenbrock"), resume=True)
    assert make_run(tmp_path, short("rosenbrock"), force=True).execute().steps == 50


def without(arrays, name):
    """Leave an array out."""
    return {key: array for key, array in arrays.items() if key != name}


def document(arrays, **changes):
    """Change the document of a checkpoint."""
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
    "integers": (lambda a: a | {"weight/x": np.ones(2, "i4")}, r"weight/x\.npy holds int32"),
    "the other byte order": (
        lambda a: a | {"weight/x": np.ones(2, ">f4")},
        r"weight/x is >f4\[2\]",
    ),
    "a master": (lambda a: a | {"master/x": a["weight/x"]}, r"master/x is .*no such tensor"),
    "no document": (lambda a: without(a, "document"), r"not a checkpoint .*'document'"),
    "no object": (lambda a: a | {"document": np.array("[]")}, r"not a checkpoint"),
    "nested deeply": (
        lambda a: a | {"document": np.array("[" * 100_000)},
        r"not a checkpoint .*Recursion",
    ),
    "a step that is a text": (lambda a: document(a, step="20"), r"not a checkpoint .*step"),
    "a step below zero": (lambda a: document(a, step=-1), r"not a checkpoint .*step"),
    "a step beyond the end": (lambda a: document(a, step=51), r"not a checkpoint .*is at 51 of 50"),
    "400 digits": (lambda a: document(a, step=10**400, total=10**400), r"not a checkpoint .*step"),
    "no history": (lambda a: document(a, history=[]), r"not a checkpoint .*rows"),
    "a row that is none": (lambda a: document(a, history=[3]), r"not a checkpoint .*history"),
    "no loss": (lambda a: rows(a, loss=None), r"not a checkpoint .*loss"),
    "a loss that is a text": (lambda a: rows(a, loss="x"), r"not a checkpoint .*loss"),
    "a metric missing": (
        lambda a: rows(a, distance=None),
        r"row 2 of its history has step, .*expected",
    ),
    "a metric of no such name": (lambda a: rows(a, gap=1.0), r"row 2 of its history has .*gap"),
    "rows out of order": (lambda a: rows(a, step=3), r"not a checkpoint .*order"),
    "endless seconds": (lambda a: document(a, seconds=math.inf), r"not a checkpoint .*seconds"),
    "something more": (lambda a: document(a, more=1), r"not a checkpoint .*more"),
}


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory):
    """Interrupt a run at step 20; return the arrays of its checkpoint."""
    folder = tmp_path_factory.mktemp("interrupted")
    interrupt(make_run(folder, short("rosenbrock")), 20)
    with np.load(folder / PATH) as file:
        return {name: file[name] for name in file}


def test_a_checkpoint_that_was_not_changed_is_taken(tmp_path, interrupted):
    """So each of the refusals below is due to its change."""
    np.savez(tmp_path / PATH, **interrupted)
    assert make_run(tmp_path, short("rosenbrock"), resume=True).trainer.step == 20


@pytest.mark.parametrize(("change", "message"), DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_checkpoint_is_refused(tmp_path, interrupted, change, message):
    """Whatever is missing, too much, or of another kind; the message advises --force."""
    np.savez(tmp_path / PATH, **change(interrupted))
    with pytest.raises(UsageError, match=message) as caught:
        make_run(tmp_path, short("rosenbrock"), resume=True)
    assert "--force" in str(caught.value)


def test_a_checkpoint_reads_back_as_it_was_written(tmp_path):
    """Every array keeps its bits, every number of the history too."""
    made = make_run(tmp_path, short("mlp"), dtype="float16")
    result = made.execute()
    found = Checkpoint.read(tmp_path / PATH)
    assert found.finished
    assert tuple(found.history) == result.history
    assert_same_bits(found.arrays.values(), made.trainer.state().values())
    assert Checkpoint.read(tmp_path / "none.npz") is None
