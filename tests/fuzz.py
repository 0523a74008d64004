"""Give every reader damaged and absurd input, which must not end in a bug.

    python tests/fuzz.py 500                  # the inputs 0 to 499 of each reader
    python tests/fuzz.py 500..1000 config csv # the next 500 of two of them

A reader may take an input, and a small piece of its work is done, or raise a UsageError. Anything
else is printed with the seed that repeats it.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import io
import json
import math
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import numpy as np

import adadelta_cli
from adadelta_cli import __main__
from adadelta_cli.bench import regression, regression_report
from adadelta_cli.cli.main import adadelta
from adadelta_cli.errors import UsageError
from adadelta_cli.guide.keys import all_keys
from adadelta_cli.implementations.array_backends import backend
from adadelta_cli.mxnet_bridge import runtime
from adadelta_cli.run import config, training, yaml12
from adadelta_cli.verification.recording import Recording

if TYPE_CHECKING:
    from collections.abc import Callable

SLOW_S = 20  # an input that takes longer is a finding, too
BYTES = [b"", b"\0", b"\xff", b"\n", b" ", b"\t", b"\xed\xa0\x80", b"\xf0\x9f\x98\x80"]
WORDS = rb"""
: - [ { } ] , " ' # &a *a !!int !!str | > % @ << ~ = x null true .inf nan NaN Infinity -Infinity
-1 0 1e300 1.7e308 5e-324 -1e300 1e999 0.9999999999999999 1_000 2001-01-01 18446744073709551616
\ud800 /dev/zero [/red] problem name rows label
""".split()
SETTINGS = [b"optimizer: ", b"training: ", b"steps: 1", b"hidden: [1]"]
LONG = [b"9" * 400, b"9" * 5000, b"0x" + b"f" * 5000, b"[" * 2000, b'{"a":' * 2000, b"a" * 5000]
TOKENS = [*BYTES, *WORDS, *SETTINGS, *LONG]

NUMBERS = [0, -1, 1, 2**31, 2**63, 10**400, 0.0, -0.0, 1e-320, 1e300, -1e300, 1.7e308]
EXTREMES = [math.inf, -math.inf, math.nan, "", "x", "[/red]", "\ud800", "a" * 5000]
VALUES = [*NUMBERS, *EXTREMES, None, True, False, [], {}, [[]], {"a": {}}, [1, "x", None]]
Random = np.random.Generator


def pick(random: Random, choices: Any) -> Any:
    """Choose one of a list."""
    return choices[random.integers(len(choices))]


def mutated(content: bytes, random: Random) -> bytes:
    """Change bytes: some of them, a run of them, or all after a place."""
    data = bytearray(content)
    for _ in range(1 + random.geometric(0.5)):
        at = int(random.integers(len(data) + 1))
        to = min(len(data), at + int(random.geometric(0.1)))
        kind = random.integers(6)
        if kind == 0:
            data[at:to] = random.bytes(to - at)
        elif kind == 1:
            data[at:to] = pick(random, TOKENS)
        elif kind == 2:
            data[at:at] = pick(random, TOKENS)
        elif kind == 3:
            del data[at:to]
        elif kind == 4 and data:
            other = int(random.integers(len(data)))
            data[at:to] = data[other : other + to - at]
        elif random.integers(4) == 0:
            del data[at:]
    return bytes(data)


def flipped(content: bytes, random: Random) -> bytes:
    """Change one to three bytes; now and then cut the end off, or insert some bytes."""
    data = bytearray(content)
    for _ in range(random.integers(1, 4)):
        data[random.integers(len(data))] ^= random.integers(1, 256)
    kind = random.integers(10)
    at = int(random.integers(len(data)))
    if kind == 0:
        del data[at:]
    elif kind == 1:
        data[at:at] = random.bytes(int(random.integers(1, 9)))
    return bytes(data)


def places(tree: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """List the paths of everything in a tree of lists and dicts."""
    if not isinstance(tree, (dict, list)):
        return [path]
    pairs = tree.items() if isinstance(tree, dict) else enumerate(tree)
    return [path, *(place for key, value in pairs for place in places(value, (*path, key)))]


def replanted(tree: Any, random: Random) -> Any:
    """Change values of a tree: another value, another key, or nothing left."""
    tree = json.loads(json.dumps(tree))
    for _ in range(random.geometric(0.6)):
        *parents, last = pick(random, places(tree)[1:] or [("x",)])
        parent = tree
        for key in parents:
            parent = parent[key]
        kind = random.integers(4)
        if kind == 0:
            parent.pop(last) if last != "x" else None
        elif kind == 1 and isinstance(parent, dict):
            parent[pick(random, ["x", "\ud800", "[/red]", ""])] = parent.pop(last, None)
        else:
            parent[last] = copy.deepcopy(pick(random, VALUES))
    return tree


def rearranged(arrays: dict[str, np.ndarray], random: Random) -> dict[str, np.ndarray]:
    """Change arrays: dtype, shape, number, name, or the JSON in a text."""
    arrays = dict(arrays)
    for _ in range(random.geometric(0.7)):
        name = pick(random, sorted(arrays)) if arrays else "x"
        array = arrays.pop(name, np.zeros(1))
        kind = random.integers(7)
        if kind == 0:
            continue
        if kind == 1:
            name = pick(random, ["x", "weight/x", "grad/x", "weight/", "document", "dtype"])
        if kind == 2 and array.dtype.kind == "f":
            array = array.astype(pick(random, ["f2", "f8", ">f4", "c8", "i4", "?", "g", "U9"]))
        if kind == 3:
            array = array.reshape(
                pick(random, [array.shape, (*array.shape, 1), (1, *array.shape), -1])
            )
        if kind == 4:
            array = array.ravel()[: int(random.integers(3))]
        if kind == 5 and array.dtype.kind == "U" and str(array).startswith("{"):
            array = np.array(json.dumps(replanted(json.loads(str(array)), random)))
        if kind == 6 and array.dtype.kind == "U":
            array = np.array(
                pick(random, ["", "x", "[" * 3000, "{}", "[]", "1", "9" * 5000, "float16"])
            )
        arrays[name] = array
    return arrays


def archive(arrays: dict[str, np.ndarray], random: Random) -> bytes:
    """Write changed arrays, or arrays and then changed bytes."""
    content = io.BytesIO()
    by_bytes = random.integers(2)
    np.savez(content, **(arrays if by_bytes else rearranged(arrays, random)))
    return mutated(content.getvalue(), random) if by_bytes else content.getvalue()


# --- the readers ----------------------------------------------------------------------------------

SHORT = ["training.epochs=null", "training.steps=3", "training.record_every=1"]


class Readers:
    """The readers, each a function that takes a generator and reads a changed file in `folder`."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.numpy = folder, backend("numpy")
        self.configs = [(config.folder() / f"{n}.yaml").read_bytes() for n in config.shipped()]
        mlp = config.load_config("mlp", [*SHORT, "problem.hidden=[3]"])
        self.mlp, grads = mlp, folder / "grads.npz"
        self._run(mlp, "whole", record_gradients=grads)
        self.checkpoint = self._arrays(folder / "whole" / "checkpoint.npz")
        self.recording = self._arrays(grads)
        self.bench = bench_json()

    @functools.cached_property
    def trainer_and_saved(self) -> tuple[Any, list[bytes]]:
        """Only the reader of states needs MXNet."""
        return trainer_and_states(self.folder)

    def _run(self, settings: Any, name: str, **how: Any) -> None:
        run = training.Run("it", settings, self.folder / name, self.numpy, **how)
        run.execute()

    def _arrays(self, path: Path) -> dict[str, np.ndarray]:
        with np.load(path) as file:
            return {name: file[name] for name in file.files}

    def _short_run(self, path: Path | str, overrides: list[str]) -> None:
        settings = config.load_config(str(path), overrides)
        if sum(getattr(settings.problem, "hidden", ())) < 5000:
            self._run(config.load_config(str(path), [*overrides, *SHORT]), "run", force=True)

    def config(self, random: Random) -> None:
        """A config in YAML."""
        path = self.folder / "my.yaml"
        path.write_bytes(mutated(pick(random, self.configs), random))
        self._short_run(path, [])

    def config_values(self, random: Random) -> None:
        """A config with other values, keys and types."""
        path = self.folder / "my.yaml"
        tree = yaml12.parse(pick(random, self.configs).decode(), str)[0]
        path.write_text(json.dumps(replanted(tree, random)), encoding="ascii")
        self._short_run(path, [])

    def options(self, random: Random) -> None:
        """Options and arguments of every command, as far as they are parsed."""
        command = pick(random, [*adadelta.commands.values()])
        words = ["--", "-", *(each for option in command.params for each in option.opts)]
        for _ in range(random.integers(1, 6)):
            words.insert(0, pick(random, words))
            words.insert(0, pick(random, TOKENS).decode(errors="surrogateescape"))
        words = [pick(random, words) for _ in range(random.integers(1, 8))]
        with contextlib.suppress(click.exceptions.Exit, click.ClickException):
            command.make_context("adadelta", words, ignore_unknown_options=False)

    def states(self, random: Random) -> None:
        """Optimizer states: changed bytes, or other values in the pickle."""
        path = self.folder / "my.states"
        trainer, saved = self.trainer_and_saved
        chosen = pick(random, saved)
        path.write_bytes((flipped if random.integers(4) else mutated)(chosen, random))
        with contextlib.suppress(TypeError):  # of another optimizer
            adadelta_cli.load_states(trainer, path)
        take_step(trainer)

    def set(self, random: Random) -> None:
        """The values of --set."""
        sections = [tuple(each.key.split(".")) for each in all_keys()]
        overrides = []
        for _ in range(random.geometric(0.6)):
            section, key = pick(random, sections)
            value = pick(random, TOKENS).decode(errors="surrogateescape")
            if random.integers(4) == 0:
                value = mutated(
                    f"{section}.{key}={value}".encode(errors="surrogateescape"), random
                ).decode(errors="surrogateescape")
                overrides.append(value)
            else:
                overrides.append(f"{section}.{key}={value}")
        self._short_run(pick(random, config.shipped()), overrides)

    def checkpoint_npz(self, random: Random) -> None:
        """A checkpoint, to go on from."""
        shutil.rmtree(self.folder / "resumed", ignore_errors=True)
        (self.folder / "resumed").mkdir()
        path = self.folder / "resumed" / "checkpoint.npz"
        path.write_bytes(archive(self.checkpoint, random))
        longer = config.load_config("mlp", [*SHORT, "problem.hidden=[3]", "training.steps=5"])
        self._run(longer, "resumed", resume=True)

    def _resume(self, content: bytes) -> None:
        shutil.rmtree(self.folder / "resumed", ignore_errors=True)
        (self.folder / "resumed").mkdir()
        (self.folder / "resumed" / "checkpoint.npz").write_bytes(content)
        longer = config.load_config("mlp", [*SHORT, "problem.hidden=[3]", "training.steps=5"])
        training.Run("it", longer, self.folder / "resumed", self.numpy, resume=True)

    def checkpoint_bytes(self, random: Random) -> None:
        """A checkpoint with one to three changed bytes."""
        self._resume(flipped((self.folder / "whole" / "checkpoint.npz").read_bytes(), random))

    def recording_bytes(self, random: Random) -> None:
        """A recording with one to three changed bytes."""
        path = self.folder / "recording.npz"
        path.write_bytes(flipped((self.folder / "grads.npz").read_bytes(), random))
        recording = Recording.read(path)
        recording.grads("float32", 0, recording.steps)

    def recording_npz(self, random: Random) -> None:
        """A recording, to replay."""
        path = self.folder / "recording.npz"
        path.write_bytes(archive(self.recording, random))
        recording = Recording.read(path)
        for dtype in ("float16", "float64"):
            recording.start(dtype, 0)
            recording.grads(dtype, 0, recording.steps)

    def bench_result(self, random: Random) -> None:
        """A bench.json, to compare."""
        path = self.folder / "bench.json"
        text = json.dumps(self.bench if random.integers(2) else replanted(self.bench, random))
        path.write_bytes(mutated(text.encode(), random) if random.integers(2) else text.encode())
        whole = regression.parse_document(self.bench, "old")
        found = regression.judge(
            *pick(
                random,
                [(whole, regression.read_document(path)), (regression.read_document(path), whole)],
            ),
            threshold=0.05,
        )
        screen = io.TextIOWrapper(io.BytesIO(), encoding="utf-8", errors="backslashreplace")
        from rich.console import Console

        Console(file=screen, width=200).print(regression_report.comparison_table(found))
        screen.write("\n".join(regression_report.comparison_remarks(found)))
        screen.write(regression_report.comparison_markdown(found))
        json.dumps(regression_report.comparison_document(found), allow_nan=False)

    def csv(self, random: Random) -> None:
        """A CSV file with features and classes."""
        rows = [b"a,b,label"] + [b"%d,%.3f,%d" % (k, random.normal(), k % 2) for k in range(20)]
        path = self.folder / "my.csv"
        path.write_bytes(mutated(b"\n".join(rows), random))
        settings = config.load_config("logistic_regression", [*SHORT, f"problem.csv={path}"])
        self._run(settings, "csv", force=True)


def trainer_and_states(folder: Path) -> tuple[Any, list[bytes]]:
    """Make a trainer with AdaDelta, and the files of states of three optimizers."""
    mx, own = runtime.load_mxnet(), adadelta_cli.AdaDelta
    schedule = mx.lr_scheduler.FactorScheduler(5, 0.9, base_lr=0.5)
    stock = mx.optimizer.adadelta.AdaDelta
    saved = []
    for optimizer in (stock(), stock(learning_rate=None, lr_scheduler=schedule), own(wd=0.1)):
        trainer = new_trainer(optimizer)
        take_step(trainer)
        trainer.save_states(str(folder / "states"))
        saved.append((folder / "states").read_bytes())
    return new_trainer(own(use_fused_step=True)), saved


def new_trainer(optimizer: Any) -> Any:
    """Make a trainer of two weights."""
    mx, shapes = runtime.load_mxnet(), {"a": (2, 3), "b": (4,)}
    parameters = {name: mx.gluon.Parameter(name, shape=shape) for name, shape in shapes.items()}
    for parameter in parameters.values():
        parameter.initialize(mx.init.One())
    return mx.gluon.Trainer(parameters, optimizer)


def take_step(trainer: Any) -> None:
    """Take a step of a trainer."""
    mx = runtime.load_mxnet()
    with mx.autograd.record():
        losses = [(parameter.data() * 0.5).sum() for parameter in trainer._params]
    mx.autograd.backward(losses)
    trainer.step(1)


READERS = [name for name, each in vars(Readers).items() if callable(each) and name[0] != "_"]


def bench_json() -> dict[str, Any]:
    """Make what `adadelta bench` writes of two rows."""
    row = {
        "implementation": "numpy-fused",
        "backend": "numpy",
        "ctx": "cpu",
        "dtype": "float32",
        "workload": "1e6",
        "threads": 2,
        "cache": "warm",
        "ceiling_gigabytes_per_s": 50.0,
        "note": "",
    }
    times = {"median_s": [1e-3, 1.1e-3, 1.2e-3], "ceiling_fraction": [0.9, 0.91, 0.92]}
    return {
        "rows": [row, row | {"workload": "1e7"}],
        "by_process": [times, times],
        "machine": {"host": "one", "cache_bytes": {"L2": 1}, "versions": {"numpy": "1"}},
        "settings": {"precision": 0.02, "threads": [2]},
    }


TAKEN, READ = [0], [0]  # how many inputs were read to the end, and how many there were


def finding(read: Callable[[Random], None], seed: int) -> str:
    """Describe the failure of reading an input; empty without one."""
    began = time.monotonic()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            read(np.random.default_rng(seed))
    except UsageError as error:
        if len(str(error)) > 6000:
            return f"a message of {len(str(error))} characters"
    except Exception as error:  # noqa: BLE001 - which is a finding
        code, message = __main__.outcome(error)
        return (
            f"exit code {code}: {message[:300]}\n{''.join(traceback.format_exception(error)[-4:])}"
        )
    else:
        TAKEN[0] += 1
    took = time.monotonic() - began
    return f"it took {took:.0f} s" if took > SLOW_S else ""


def fuzz(name: str, count: int, limit_s: float, first: int = 0) -> list[str]:
    """Give a reader so many inputs, or fewer in the time; return the findings."""
    found, ends = [], time.monotonic() + limit_s
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stderr(io.StringIO()):
        read = getattr(Readers(Path(folder)), name)
        for seed in range(first, first + count):
            if time.monotonic() > ends:
                break
            READ[0] += 1
            wrong = finding(read, seed)
            if wrong:
                found.append(f"{name}, seed {seed}: {wrong}")
    return found


def main() -> None:
    """Fuzz the readers that the command line names."""
    first, last = (int(each or 0) for each in sys.argv[1].rpartition("..")[::2])
    names = sys.argv[2:] or READERS
    for name in names:
        began, TAKEN[0], READ[0] = time.monotonic(), 0, 0
        found = fuzz(name, last - first, 280.0, first)
        took = time.monotonic() - began
        read = f"{len(found)} findings of {READ[0]} inputs, {TAKEN[0]} were taken"
        print(f"{name}: {read}, {took:.0f} s")
        print("\n".join(found[:8]))


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)
    main()
