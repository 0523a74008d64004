"""`adadelta convert` without PyTorch: arrays, MXNet's files, and what is refused."""

from __future__ import annotations

import io
import json
import sys

import numpy as np
import pytest
from conftest import needs_mxnet

from adadelta_cli.conversion import convert, npz_states, replay
from adadelta_cli.errors import UnavailableError, UsageError

PLAIN = {
    "acc_grad/a": np.full((2, 3), 0.25, "f4"),
    "acc_delta/a": np.full((2, 3), 0.5, "f4"),
    "updates/a": np.float64(7),
    "rho": np.float64(0.8),
}


def plain(path, **changed):
    """Write an archive of states; None leaves an array out."""
    arrays = PLAIN | {name.replace("__", "/"): value for name, value in changed.items()}
    np.savez(path, **{name: value for name, value in arrays.items() if value is not None})
    return path


@needs_mxnet
def test_arrays_become_a_trainers_states_and_come_back(tmp_path):
    """Arrays, counts, settings and names are the same; float64, masters, and any shape."""
    first, between, last = (tmp_path / name for name in ("a.npz", "b.states", "c.npz"))
    rng = np.random.default_rng(0)
    arrays = {"rho": np.float64(0.7), "epsilon": np.float64(1e-8), "clip_gradient": np.float64(0.5)}
    arrays |= {"rescale_grad": np.float64(0.125), "learning_rate/w": np.float64(0.3)}
    shapes = {"w": ((4, 5), "f4"), "scalar": ((), "f4"), "none": ((3, 0), "f4"), "d": ((7,), "f8")}
    for name, (shape, dtype) in (shapes | {"half": ((6,), "f4")}).items():
        for kind in ("acc_grad", "acc_delta", *(["master"] if name == "half" else [])):
            arrays[f"{kind}/{name}"] = np.asarray(rng.random(shape)).astype(dtype)
        arrays[f"updates/{name}"] = np.float64(len(arrays))
    arrays["acc_grad/w"][0, :3] = 1e-40, 0, 3e38  # a subnormal, which no side may flush
    np.savez(first, **arrays)
    done = convert.convert(first, between, "npz", "mxnet")
    assert done.passed and done.comparison.numbers == 3 * (20 + 1 + 7 + 6)
    assert any("lr_mult" in line for line in done.remarks)
    assert convert.convert(between, last, "mxnet", "npz").passed
    found = dict(np.load(last))
    # With rates of their own, the parameters' multiply a rate of 1.
    assert {found.pop(f"learning_rate/{name}").item() for name in ("w",)} == {0.3}
    assert found.keys() >= arrays.keys() - {"learning_rate/w"}
    for name, array in arrays.items():
        if name != "learning_rate/w":
            assert found[name].dtype == array.dtype and found[name].shape == array.shape
            assert found[name].tobytes() == array.tobytes(), name


@needs_mxnet
@pytest.mark.parametrize("kind", ["stock", "fused"])
def test_a_trainer_goes_on_with_converted_states(tmp_path, kind):
    """MXNet's own load_states takes the file, and this package's."""
    from adadelta_cli import AdaDelta, load_states

    mx = convert._format("--to", "mxnet").mx
    mx.npx.set_np()
    converted = tmp_path / "a.states"
    assert convert.convert(plain(tmp_path / "a.npz"), converted, "npz", "mxnet").passed
    parameter = mx.gluon.Parameter("a", shape=(2, 3))
    parameter.initialize(mx.init.One())
    stock = mx.optimizer.adadelta.AdaDelta
    optimizer = stock() if kind == "stock" else AdaDelta(use_fused_step=True)
    trainer = mx.gluon.Trainer({"a": parameter}, optimizer)
    (trainer.load_states if kind == "stock" else lambda p: load_states(trainer, p))(str(converted))
    with mx.autograd.record():
        loss = parameter.data().sum()
    loss.backward()
    trainer.step(1)
    acc_grad = trainer._updaters[0].states[0][0].asnumpy()
    rho = np.float32(0.8)
    assert acc_grad.tobytes() == (PLAIN["acc_grad/a"] * rho + np.float32(1 - 0.8)).tobytes()
    assert trainer.optimizer.num_update == 8


@needs_mxnet
def test_a_checkpoint_of_run_is_a_source(adadelta, tmp_path):
    """Its arrays by name, its hyper-parameters, and its steps as the counts."""
    quick = ("--backend", "numpy", "--set", "expect={}", "--set", "training.steps=20")
    code, *_ = adadelta("run", "rosenbrock", *quick, "--set", "optimizer.rho=0.85")
    assert code == 0
    path = tmp_path / "results" / "run" / "rosenbrock" / "checkpoint.npz"
    code, out, _err = adadelta("convert", path, "--from", "npz", "--to", "mxnet", "--json")
    assert code == 0
    document = json.loads(out)
    assert document["hyperparameters"]["rho"] == 0.85
    assert {each["updates"] for each in document["parameters"]} == {20}
    assert document["replay"]["differ"] == 0 < document["replay"]["numbers"]
    assert document["out"].endswith("checkpoint.states")


WRONG = {
    "another array": ({"momentum__a": np.zeros(3)}, r"holds momentum/a"),
    "another setting": ({"beta1": np.float64(0.9)}, r"holds beta1"),
    "one state only": ({"acc_delta__a": None}, "lacks one of its two states"),
    "other shapes": ({"acc_delta__a": np.zeros(3, "f4")}, "of one shape"),
    "other dtypes": ({"acc_delta__a": np.zeros((2, 3))}, "throughout"),
    "float16": (
        {"acc_grad__a": np.zeros(3, "f2"), "acc_delta__a": np.zeros(3, "f2")},
        "expected float32 or float64",
    ),
    "NaN": ({"acc_grad__a": np.full((2, 3), np.nan, "f4")}, "acc_grad that is negative"),
    "negative": ({"acc_delta__a": np.full((2, 3), -1, "f4")}, "acc_delta that is negative"),
    "infinite": ({"acc_grad__a": np.full((2, 3), np.inf, "f4")}, "diverged"),
    "half a step": ({"updates__a": np.float64(0.5)}, "no whole number"),
    "a negative count": ({"updates__a": np.float64(-1)}, "expected a count"),
    "a count of NaN": ({"updates__a": np.float64("nan")}, "expected one number"),
    "rho": ({"rho": np.float64(1)}, "rho is 1.0; allowed"),
    "several rates": ({"learning_rate": np.ones(2)}, "expected one number"),
    "no states": ({"acc_grad__a": None, "acc_delta__a": None}, "has no states"),
    "a text": ({"acc_grad__a": np.array("text")}, r"holds acc_grad/a"),
    "a document": ({"document": np.array("{}")}, "is no checkpoint"),
    "a run of another optimizer": (
        {"document": np.array('{"identity": {"optimizer.name": "rmsprop"}, "step": 3}')},
        "a run of rmsprop",
    ),
    "a document that is a list": ({"document": np.array("[1]")}, "is no checkpoint"),
    "settings that are none": (
        {"document": np.array('{"identity": [], "step": 3}')},
        "is no checkpoint",
    ),
    "a document of numbers": ({"document": np.zeros(2)}, "is no checkpoint"),
}


@pytest.mark.parametrize(("changed", "message"), WRONG.values(), ids=WRONG)
def test_damaged_archives_are_refused(tmp_path, changed, message):
    """Exit code 2, and no file."""
    path = plain(tmp_path / "a.npz", **changed)
    with pytest.raises(UsageError, match=message):
        convert.check(path, npz_states.read(path))


@needs_mxnet
def test_a_file_that_is_no_archive(adadelta, tmp_path):
    """One message, exit code 2."""
    for content in (b"", b"PK\3\4", b"\x80\x02}."):
        (tmp_path / "a.npz").write_bytes(content)
        code, out, err = adadelta("convert", "a.npz", "--from", "npz", "--to", "mxnet")
        assert (code, out) == (2, "") and err.count("Error: ") == 1 and "bug" not in err
    for name in ("missing.npz", tmp_path, "/dev/zero"):
        code, _out, err = adadelta("convert", name, "--from", "npz", "--to", "mxnet", "--out", "b")
        assert code == 2 and "cannot be read" in err


def test_wrong_usage(adadelta, tmp_path):
    """Contradictions, an output that exists, an order that is none: refused before any work."""
    plain(tmp_path / "a.npz")
    (tmp_path / "b.states").write_text("kept")
    for more, message in {
        ("--to", "npz"): "are both npz",
        ("--to", "keras"): "is not one of mxnet, npz, torch",
        ("--to", "mxnet", "--out", "b.states"): "exists; use --force",
        ("--to", "mxnet", "--out", "a.npz"): "is the file to convert",
        ("--to", "mxnet", "--out", "."): "is a folder",
        ("--to", "mxnet", "--order", "0,x"): "expected numbers with commas",
        ("--to", "mxnet", "--order", "0,,1"): "expected numbers with commas",
        ("--to", "mxnet", "--order", ""): "is empty",
        (): "--to",
    }.items():
        code, out, err = adadelta("convert", "a.npz", "--from", "npz", *more)
        assert (code, out) == (2, ""), more
        assert message in err
    assert (tmp_path / "b.states").read_text() == "kept"


@needs_mxnet
def test_orders(adadelta, tmp_path):
    """An order renumbers; one that leaves out, repeats or invents a parameter is refused."""
    plain(tmp_path / "a.npz", acc_grad__b=np.ones(2, "f4"), acc_delta__b=np.ones(2, "f4"))
    order = ("convert", "a.npz", "--from", "npz", "--to", "mxnet", "--force", "--json", "--order")
    for text, message in {
        "0": "leaves out parameters: 1",
        "0,1,2": "does not have: 2",
        "0,1,1": "names parameters twice: 1",
        "0,1," + "9" * 5000: "does not have",
    }.items():
        code, _out, err = adadelta(*order, text)
        assert code == 2 and message in err and len(err) < 1000
    code, out, _err = adadelta(*order, "1,-,0")
    assert code == 0
    found = json.loads(out)["parameters"]
    assert [(each["source"], each["name"]) for each in found] == [(1, "b"), (None, "1"), (0, "a")]
    read = convert._format("--from", "mxnet").read(tmp_path / "a.states")
    assert {each.number: each.acc_grad.shape for each in read.tensors} == {0: (2,), 2: (2, 3)}


@needs_mxnet
def test_force_replaces_and_quiet_is_one_line(adadelta, tmp_path):
    """The table is left out; what was there is replaced."""
    plain(tmp_path / "a.npz")
    (tmp_path / "a.states").write_text("old")
    quiet = ("convert", "a.npz", "--from", "npz", "--to", "mxnet", "--force", "-q")
    code, out, err = adadelta(*quiet)
    assert (code, err) == (0, "")
    assert out == "a.states: the states of 1 parameters; 0 of 18 numbers differ after 10 steps\n"
    assert (tmp_path / "a.states").read_bytes()[:1] == b"\x80"


def swapped(content):
    """Swap the two states of an archive."""
    arrays = dict(np.load(io.BytesIO(content)))
    a, b = arrays["acc_grad/a"], arrays["acc_delta/a"]
    return arrays | {"acc_grad/a": b, "acc_delta/a": a}


MISTAKES = {
    "swapped states": swapped,
    "a lost rho": lambda c: dict(np.load(io.BytesIO(c))) | {"rho": np.float64(0.9)},
    "a lost decay": lambda c: dict(np.load(io.BytesIO(c))) | {"wd": np.float64(0)},
    "a lost count": lambda c: dict(np.load(io.BytesIO(c))) | {"updates/a": np.float64(0)},
    "a lost rescaling": lambda c: dict(np.load(io.BytesIO(c))) | {"rescale_grad": np.float64(1)},
    "one bit": lambda c: {
        name: np.nextafter(array, 1) if name == "acc_delta/a" else array
        for name, array in np.load(io.BytesIO(c)).items()
    },
}


@needs_mxnet
@pytest.mark.parametrize("mistake", MISTAKES.values(), ids=MISTAKES)
def test_a_file_that_steps_otherwise_is_not_written(adadelta, tmp_path, monkeypatch, mistake):
    """Exit code 1; the table and the message say where, and what was there is kept."""
    plain(tmp_path / "a.npz", wd=np.float64(0.1), rescale_grad=np.float64(0.5))
    base = ("--from", "npz", "--to", "mxnet", "-q")
    assert adadelta("convert", "a.npz", *base)[0] == 0
    right = npz_states.content

    def wrong(states):
        stream = io.BytesIO()
        np.savez(stream, **mistake(right(states)))
        return stream.getvalue()

    (tmp_path / "b.npz").write_text("kept")
    monkeypatch.setattr(npz_states, "content", wrong)
    command = ("a.states", "--from", "mxnet", "--to", "npz", "--out", "b.npz", "--force")
    code, out, _err = adadelta("convert", *command)
    assert code == 1 and "was not written" in out
    assert (tmp_path / "b.npz").read_text() == "kept"
    document = json.loads(adadelta("convert", *command, "--json")[1])
    assert document["passed"] is False and document["out"] is None


def test_the_comparison_sees_every_bit():
    """Zeros of both signs differ; NaNs do not; other shapes and dtypes do."""
    one = np.array([0.0, np.nan, 1.0], "f4")
    assert replay.differing(one, one.copy()) == 0
    assert replay.differing(-one, one) == 2
    assert replay.differing(one[:2], one) == 3
    assert replay.differing(one.astype("f8"), one) == 3


@pytest.mark.parametrize("option", ["--from", "--to"])
def test_without_pytorch_it_says_what_to_install(adadelta, tmp_path, monkeypatch, option):
    """Exit code 3, wherever PyTorch is needed."""
    plain(tmp_path / "a.npz")
    monkeypatch.setitem(sys.modules, "torch", None)
    for name in [n for n in sys.modules if n.startswith("adadelta_cli.torch")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delitem(sys.modules, "adadelta_cli.conversion.torch_states", raising=False)
    other = "--to" if option == "--from" else "--from"
    code, _out, err = adadelta("convert", "a.npz", option, "torch", other, "npz", "--out", "b")
    assert code == 3
    assert f"{option} torch: " in err and "pip install 'adadelta[torch]'" in err


def test_without_pytorch_all_else_imports(monkeypatch):
    """The import of the module says what to install, as an ImportError."""
    import adadelta_cli

    monkeypatch.setitem(sys.modules, "torch", None)
    for name in [n for n in sys.modules if n.startswith("adadelta_cli.torch")]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(ImportError, match=r"python -m pip install 'adadelta\[torch\]'") as raised:
        from adadelta_cli.torch import Adadelta  # noqa: F401
    assert isinstance(raised.value, UnavailableError)
    assert adadelta_cli.FusedStep


def test_without_mxnet_it_says_what_to_install(adadelta, tmp_path, monkeypatch):
    """Exit code 3."""
    from adadelta_cli.mxnet_bridge import runtime

    plain(tmp_path / "a.npz")
    monkeypatch.setattr(runtime, "is_installed", lambda: False)
    runtime.load_mxnet.cache_clear()
    for name in ("conversion.mxnet_states", "mxnet_bridge.optimizer"):
        monkeypatch.delitem(sys.modules, f"adadelta_cli.{name}", raising=False)
    try:
        code, _out, err = adadelta("convert", "a.npz", "--from", "npz", "--to", "mxnet")
    finally:
        runtime.load_mxnet.cache_clear()
    assert code == 3
    assert "--to mxnet: MXNet is not installed" in err
