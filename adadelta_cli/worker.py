"""A process that takes steps and times them: `python -m adadelta_cli.worker`, led by `bench`.

Its leader writes one line of JSON and gets one back, again and again: first what to work on, then
for how long to take samples. It ends when its stdin does, so it never outlives its leader.
"""

from __future__ import annotations

import gc
import itertools
import json
import math
import os
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from adadelta_cli.backends import BACKENDS
from adadelta_cli.implementations import Implementation, implementation
from adadelta_cli.update import Hyperparameters, Parameter, update

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

SAMPLE_S = 2e-3  # a sample lasts at least this long: 40,000 times the clock's resolution
SETTLED = 0.97  # warm-up is over when a step takes no less than this share of the best so far
WARM_UP_S = 0.3
LEAST_ROUNDS = 5
UNTIMED_BELOW_S = 50e-3  # a step shorter than this is taken once, untimed, before each sample
ALIGNMENT_BYTES = 64  # a cache line
PAGE_BYTES = 4096
CHECKED_ELEMENTS = 4096  # of each tensor, spread over all of it
MEMORY, ARITHMETIC = "memory roof", "arithmetic roof"

HYPER = Hyperparameters()


# --- tensors --------------------------------------------------------------------------------------


def state_dtype(dtype: str) -> np.dtype[Any]:
    """Return the dtype of the states, and of the masters of float16 weights."""
    return np.dtype("float32" if dtype == "float16" else dtype)


@dataclass(frozen=True)
class Tensors:
    """The tensors of a workload, and the lines of memory that they are cut from.

    Attributes:
        line: all tensors laid end to end, each array of one dimension.
        parameters: views of `line`, each beginning at a cache line.
    """

    line: Parameter
    parameters: list[Parameter]

    @classmethod
    def allocate(cls, shapes: Sequence[Sequence[int]], dtype: str, seed: int) -> Tensors:
        """Make tensors whose values stay normal numbers however many steps are taken.

        The gradients stay as they are, normally distributed with nothing below 1e-3, so that
        acc_grad goes to their square and acc_delta grows slowly, never beyond it.
        """
        real = state_dtype(dtype)
        starts = _starts(shapes, np.dtype(dtype).itemsize)
        total = starts.pop()
        values = np.random.default_rng(seed).standard_normal(min(total, 1_000_003))
        values += np.copysign(1e-3, values)
        line = Parameter(
            weight=_line(0, np.sign(values), total, dtype),
            grad=_line(1, values, total, dtype),
            acc_grad=_line(2, values**2, total, real),
            acc_delta=_line(3, values**2 * 1e-3, total, real),
            master=_line(4, np.sign(values), total, real) if dtype == "float16" else None,
        )
        cuts = [(at, math.prod(shape), shape) for at, shape in zip(starts, shapes, strict=True)]
        parameters = [
            Parameter(*(array[at : at + size].reshape(shape) for array in line.arrays))
            for at, size, shape in cuts
        ]
        return cls(line, parameters)

    def on(self, backend: str) -> list[Parameter]:
        """Hand the same memory to arrays of a backend, so that all are placed alike."""
        wrap = _WRAPPED[backend]
        return [Parameter(*map(wrap, each.arrays)) for each in self.parameters]


def _starts(shapes: Sequence[Sequence[int]], itemsize: int) -> list[int]:
    """Say at which element each tensor begins, and where the last one's cache line ends."""
    step = ALIGNMENT_BYTES // itemsize
    sizes = [-(-math.prod(shape) // step) * step for shape in shapes]
    return [0, *np.cumsum(sizes).tolist()]


def _line(number: int, values: np.ndarray, total: int, dtype: Any) -> np.ndarray:
    """Repeat values over a line of memory.

    Each line begins a fifth of a page after the one before, modulo pages: a load whose address
    differs from a pending store's by whole pages waits for it in vain ("4K aliasing").
    """
    size = total * np.dtype(dtype).itemsize
    room = np.empty(size + 2 * PAGE_BYTES, dtype=np.uint8)
    offset = number * (PAGE_BYTES // 5 // ALIGNMENT_BYTES * ALIGNMENT_BYTES)
    start = -room.ctypes.data % PAGE_BYTES + offset
    line = room[start : start + size].view(dtype)
    for at in range(0, total, values.size):
        line[at : at + values.size] = values[: total - at]
    return line


def _mxnet_array(array: np.ndarray) -> Any:
    from adadelta_cli import engine

    # A view, because MXNet marks what it is given as read-only.
    return engine.load().nd.from_numpy(array.view(), zero_copy=True).as_np_ndarray()


_WRAPPED: dict[str, Callable[[np.ndarray], Any]] = {
    "numpy": lambda array: array,
    "mxnet": _mxnet_array,
}


# --- is it right? ---------------------------------------------------------------------------------


def fault_of(step: Callable[[], None], tensors: Tensors) -> str:
    """Take one step and compare it, bit for bit, with the array update; say what is wrong.

    Of each tensor some thousand elements are compared, spread over all of it.
    """
    spread = [slice(None, None, -(-p.weight.size // CHECKED_ELEMENTS)) for p in tensors.parameters]
    expected = [_copy(each, some) for each, some in zip(tensors.parameters, spread, strict=True)]
    for each in expected:
        update(np, each, HYPER.scalars(each.acc_grad.dtype), HYPER.learning_rate, HYPER.wd)
    try:
        step()
    except (TypeError, ValueError) as error:
        return f"cannot take this step: {type(error).__name__}: {error}"
    wrong = sum(
        _differing(now, then)
        for each, some, right in zip(tensors.parameters, spread, expected, strict=True)
        for now, then in zip(_copy(each, some).arrays, right.arrays, strict=True)
    )
    compared = sum(array.size for each in expected for array in each.arrays)
    return f"wrong: {wrong} of {compared} values differ from the array update" if wrong else ""


def _copy(parameter: Parameter, some: slice) -> Parameter:
    return Parameter(*(array.reshape(-1)[some].copy() for array in parameter.arrays))


def _differing(one: np.ndarray, other: np.ndarray) -> int:
    bits = f"u{one.itemsize}"
    return int(np.count_nonzero(one.view(bits) != other.view(bits)))


# --- timing ---------------------------------------------------------------------------------------


def _seconds(step: Callable[[], None], loops: int = 1) -> float:
    start = time.perf_counter_ns()
    for _ in range(loops):
        step()
    return (time.perf_counter_ns() - start) / loops * 1e-9


def _warmed_up(step: Callable[[], None]) -> float:
    """Take steps until they get no faster, twice in a row; return the seconds of the best."""
    start, best, settled = time.monotonic(), math.inf, 0
    while settled < 2 and time.monotonic() - start < WARM_UP_S:
        taken = _seconds(step)
        settled = settled + 1 if taken > SETTLED * best else 0
        best = min(best, taken)
    return best


class Entry:
    """Something that is timed, in samples of enough steps each.

    Args:
        step: what is called.
        steps: how many steps a call takes.

    Attributes:
        spent_s: how long its samples took so far.
    """

    def __init__(self, step: Callable[[], None], steps: int = 1) -> None:
        self._step, self._steps = step, steps
        cost = _warmed_up(step)
        self._loops = max(1, math.ceil(SAMPLE_S / cost))
        self._untimed = cost < UNTIMED_BELOW_S
        self.spent_s = 0.0

    def sample(self) -> float:
        """Return the seconds of one step, the mean of a sample."""
        start = time.monotonic()
        if self._untimed:
            self._step()  # brings back to the caches what others left there
        taken = _seconds(self._step, self._loops)
        self.spent_s += time.monotonic() - start
        return taken / self._steps


def rounds(entries: dict[str, Entry], seconds: float) -> Iterator[dict[str, float | None]]:
    """Take samples of all entries in turn until the time is up, `LEAST_ROUNDS` at least.

    In one round an entry is sampled once, or not at all (None) when it already had more than its
    share of the time: slow ones get fewer samples.
    """
    start = time.monotonic()
    for number in itertools.count(1):
        fair = sum(entry.spent_s for entry in entries.values()) / len(entries)
        yield {
            name: entry.sample() if entry.spent_s <= fair else None
            for name, entry in entries.items()
        }
        if number >= LEAST_ROUNDS and time.monotonic() - start >= seconds:
            return


def _columns(rows: Iterator[dict[str, float | None]]) -> dict[str, list[float | None]]:
    found = list(rows)
    return {name: [row[name] for row in found] for name in found[0]}


# --- tasks: the first reply, then the samples -----------------------------------------------------


class Timing:
    """Time steps of several implementations, and the two roofs, on the tensors of a workload."""

    def __init__(self, spec: dict[str, Any]) -> None:
        from adadelta_cli.kernels import roofline

        tensors = Tensors.allocate(spec["shapes"], spec["dtype"], spec["seed"])
        self.faults: dict[str, str] = {}
        self._entries: dict[str, Entry] = {}
        for name in spec["implementations"]:
            step = _bound(implementation(name), tensors)
            self.faults[name] = fault_of(step, tensors)
            if not self.faults[name]:
                self._entries[name] = Entry(step)
        small = [(roofline.cached_elements(tensors.line),)]
        cached = Tensors.allocate(small, spec["dtype"], spec["seed"])
        roofs = roofline.Roofs(tensors.line, cached.line, HYPER)
        self._entries |= {
            MEMORY: Entry(roofs.memory),
            ARITHMETIC: Entry(roofs.arithmetic, roofs.steps),
        }
        self._layer = roofline.threading_layer()

    def ready(self) -> dict[str, Any]:
        """Say what is wrong with each implementation; only the faultless ones are timed."""
        return {"faults": self.faults, "threading_layer": self._layer}

    def go_on(self, seconds: float) -> dict[str, Any]:
        """Return the samples of so many seconds, by entry and round."""
        return {"samples": _columns(rounds(self._entries, seconds))}


def _bound(chosen: Implementation, tensors: Tensors) -> Callable[[], None]:
    ones = [1.0] * len(tensors.parameters)
    return chosen.bind(tensors.on(chosen.backend), HYPER, ones, ones)


class Peak:
    """Measure how far a step raises the resident set above what it was before."""

    def __init__(self, spec: dict[str, Any]) -> None:
        self._implementation = implementation(spec["implementations"][0])
        self._peaks = [self._peak(shapes, spec) for shapes in spec["workloads"]]

    def _peak(self, shapes: Sequence[Sequence[int]], spec: dict[str, Any]) -> int | None:
        tensors = Tensors.allocate(shapes, spec["dtype"], spec["seed"])
        step = _bound(self._implementation, tensors)
        if fault_of(step, tensors):
            return None
        step()
        gc.collect()
        return peak_extra_bytes(step)

    def ready(self) -> dict[str, Any]:
        """Return the bytes for each workload; None where the system does not tell."""
        return {"peak_extra_bytes": self._peaks}

    def go_on(self, _seconds: float) -> dict[str, Any]:
        """Do nothing: there is one measurement."""
        return {"samples": {}}


def peak_extra_bytes(step: Callable[[], None]) -> int | None:
    """Take a step; return how far the resident set rose above where it was, in bytes.

    Linux only (None elsewhere): 5 in clear_refs sets the high-water mark back (proc(5)).
    """
    try:
        Path("/proc/self/clear_refs").write_text("5")
        before = _status_kilobytes("VmRSS")
        step()
        return max(0, _status_kilobytes("VmHWM") - before) * 1024
    except OSError:
        return None


def _status_kilobytes(key: str) -> int:
    text = Path("/proc/self/status").read_text()
    return int(text.split(f"{key}:")[1].split()[0])


class Training:
    """Time whole training steps of a network through `gluon.Trainer`, and their updates alone.

    The network is the MLP 784-500-300-10 on a batch of 100 random images, always the same.
    """

    BATCH = 100
    STEPS_TO_LOSS = 30

    def __init__(self, spec: dict[str, Any]) -> None:
        from adadelta_cli import engine

        self._mx = mx = engine.load()
        BACKENDS["mxnet"]()
        random = np.random.default_rng(spec["seed"])
        mx.np.random.seed(spec["seed"])
        self._net = self._network(random)
        self._images = mx.np.array(random.standard_normal((self.BATCH, 784)), dtype="float32")
        self._labels = mx.np.array(random.integers(0, 10, self.BATCH))
        self._loss_of = mx.gluon.loss.SoftmaxCrossEntropyLoss()
        optimizer = _training_optimizer(spec["implementations"][0])
        self._trainer = mx.gluon.Trainer(self._net.collect_params(), optimizer, kvstore=None)
        for _ in range(self.STEPS_TO_LOSS):
            self._step()
        self._loss = float(self._backward().mean().asnumpy())
        self._whole = Entry(self._step)

    def _network(self, random: np.random.Generator) -> Any:
        nn = self._mx.gluon.nn
        net = nn.HybridSequential()
        for units, activation in ((500, "relu"), (300, "relu"), (10, None)):
            net.add(nn.Dense(units, activation=activation))
        net.initialize()
        net.hybridize(static_alloc=True, static_shape=True)
        net(self._mx.np.zeros((self.BATCH, 784)))  # now the shapes are known
        for parameter in net.collect_params().values():
            values = random.standard_normal(parameter.shape) * 0.05
            parameter.set_data(self._mx.np.array(values, dtype="float32"))
        return net

    def _backward(self) -> Any:
        with self._mx.autograd.record():
            loss = self._loss_of(self._net(self._images), self._labels)
        loss.backward()
        return loss

    def _step(self) -> None:
        self._backward()
        self._trainer.step(self.BATCH)
        self._mx.nd.waitall()

    def _update_s(self) -> float:
        self._backward()
        self._mx.nd.waitall()
        start = time.perf_counter_ns()
        self._trainer.step(self.BATCH)
        self._mx.nd.waitall()
        return (time.perf_counter_ns() - start) * 1e-9

    def ready(self) -> dict[str, Any]:
        """Return the loss after a number of steps that is the same for every optimizer."""
        return {"loss": self._loss}

    def go_on(self, seconds: float) -> dict[str, Any]:
        """Return the seconds of whole steps, and of the update within as many others."""
        samples: dict[str, list[float]] = {"step": [], "update": []}
        start = time.monotonic()
        while time.monotonic() - start < seconds or not samples["step"]:
            samples["step"].append(self._whole.sample())
            samples["update"].append(self._update_s())
        return {"samples": samples}


def _training_optimizer(name: str) -> Any:
    from adadelta_cli import AdaDelta, engine

    make: dict[str, Callable[[], Any]] = {
        "mxnet-stock": engine.load().optimizer.adadelta.AdaDelta,
        "mxnet": lambda: AdaDelta(use_fused_step=False),
        "mxnet-fused": lambda: AdaDelta(use_fused_step=True),
    }
    return make[name]()


TASKS: dict[str, Any] = {"time": Timing, "peak": Peak, "train": Training}


def serve(orders: IO[str], replies: IO[str]) -> None:
    """Work on what the first line asks for, then answer each line until there is none."""
    spec = json.loads(orders.readline())
    task = TASKS[spec["task"]](spec)
    _reply(replies, task.ready())
    gc.disable()
    for line in orders:
        _reply(replies, task.go_on(json.loads(line)["seconds"]))


def _reply(replies: IO[str], answer: dict[str, Any]) -> None:
    replies.write(json.dumps(answer) + "\n")
    replies.flush()


def main() -> None:
    """Serve the leader on stdin and stdout; whatever else prints goes to stderr."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the leader, which ends this
    sys.modules["sklearn"] = None  # type: ignore[assignment] # half of MXNet's import, unused here
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    serve(sys.stdin, replies)


if __name__ == "__main__":
    main()
