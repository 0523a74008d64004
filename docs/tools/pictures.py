"""Draw the pictures of "How it works" from the package and from committed results: make pictures.

Each is computed from a fixed seed or read from a file, so it is the same whenever it is drawn. The
pages say where the numbers come from.
"""

from __future__ import annotations

import csv
import json
import re
import sys
from decimal import Decimal, localcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure

from adadelta_cli.bench.bootstrap import median_ci
from adadelta_cli.update import Hyperparameters, Parameter, update
from adadelta_cli.verification import oracle

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from matplotlib.axes import Axes

DOCS = Path(__file__).parents[1]
SAMPLE = DOCS.parent / "results" / "sample"
# Text stays text; neither a date nor a random name is in the file.
STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "adadelta",
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
}
BLUE, RED, GREY, ORANGE = "#0b5394", "#c1272d", "#8a8a8a", "#e8a33d"
HYPER = Hyperparameters(wd=0.01)
ELEMENTS = 100_000


class Arrays(NamedTuple):
    """A tensor of float32 numbers of many magnitudes and both signs."""

    weight: np.ndarray
    grad: np.ndarray
    acc_grad: np.ndarray
    acc_delta: np.ndarray

    @classmethod
    def drawn(cls, count: int) -> Arrays:
        """Draw them, from one seed."""
        rng = np.random.default_rng(0)
        signs = rng.choice([-1.0, 1.0], (2, count))
        low, high = np.array([[-3.0, -5.0, -9.0, -9.0], [1.0, 1.0, 1.0, -1.0]])
        drawn = (10.0 ** rng.uniform(low, high, (count, 4))).T
        drawn[:2] *= signs
        return cls(*drawn.astype(np.float32))


def stepped(start: Arrays) -> Arrays:
    """Take a step of the package on a copy."""
    after = Arrays(*(each.copy() for each in start))
    update(np, Parameter(*after), HYPER.scalars(np.float32), HYPER.learning_rate, HYPER.wd)
    return after


# Ways to write the same formula, each with other roundings: of acc_grad, and of the ratio.
def _left_to_right(rho: np.float32, rest: np.float32, a: np.ndarray, x: np.ndarray) -> Any:
    return rho * a + rest * x * x


def _single_rest(rho: np.float32, _: np.float32, a: np.ndarray, x: np.ndarray) -> Any:
    return rho * a + (np.float32(1) - rho) * (x * x)


def _contracted(rho: np.float32, rest: np.float32, a: np.ndarray, x: np.ndarray) -> Any:
    product = np.float64(rest) * (x * x).astype(np.float64)  # exact: two float32 fit into float64
    return (product + rho * a).astype(np.float32)


def _documented(rho: np.float32, rest: np.float32, a: np.ndarray, x: np.ndarray) -> Any:
    return rho * a + rest * (x * x)


def _reciprocal(over: np.ndarray, under: np.ndarray) -> Any:
    return np.sqrt(over) * (np.float32(1) / np.sqrt(under))


def _quotient(over: np.ndarray, under: np.ndarray) -> Any:
    return np.sqrt(over) / np.sqrt(under)


ORDERS: dict[str, tuple[Callable[..., Any], Callable[..., Any]]] = {
    "as documented": (_documented, _quotient),
    "times a reciprocal, no division": (_documented, _reciprocal),
    "fused multiply-add in acc_grad": (_contracted, _quotient),
    "(1 - rho) * g * g, left to right": (_left_to_right, _quotient),
    "1 - rho computed in float32": (_single_rest, _quotient),
}


def in_order(start: Arrays, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Take a step in one of these orders; return weight and acc_grad."""
    accumulate, ratio = ORDERS[name]
    h = HYPER.scalars(np.float32)
    x = start.grad + np.float32(HYPER.wd) * start.weight
    acc_grad = accumulate(h.rho, h.one_minus_rho, start.acc_grad, x)
    delta = ratio(start.acc_delta + h.epsilon, acc_grad + h.epsilon) * x
    return start.weight - np.float32(HYPER.learning_rate) * delta, acc_grad


def bits(figure: Figure) -> None:
    """Draw one number in two orders, and how many numbers each order changes."""
    start = Arrays.drawn(ELEMENTS)
    expected = stepped(start)
    above, below = figure.subplots(2, 1, height_ratios=[1, 2.2])
    _, other = in_order(start, "(1 - rho) * g * g, left to right")
    _draw_bits(above, expected.acc_grad, other)
    shares = {
        name: [
            100 * np.mean(got != want)
            for got, want in zip(in_order(start, name), expected[::2], strict=True)
        ]
        for name in ORDERS
    }
    for offset, color, label, column in ((-0.2, BLUE, "acc_grad", 1), (0.2, ORANGE, "weight", 0)):
        lengths = [each[column] for each in shares.values()]
        where = np.arange(len(shares)) + offset
        below.barh(where, lengths, 0.38, color=color, label=label)
        for y, length in zip(where, lengths, strict=True):
            below.text(length + 1, y, f"{length:.1f} %", va="center", fontsize=9)
    below.set(yticks=range(len(shares)), yticklabels=shares, xlim=(0, 105))
    below.set(xlabel="numbers that differ in a bit after one step (%)", title="All numbers")
    below.invert_yaxis()
    below.legend(frameon=False, loc="lower right")


def _draw_bits(axes: Axes, first: np.ndarray, second: np.ndarray) -> None:
    """Draw the 32 bits of the first number that differs, in both arrays."""
    index = int(np.flatnonzero(first != second)[0])
    rows = [
        format(int(each[index : index + 1].view(np.uint32)[0]), "032b") for each in (first, second)
    ]
    for y, row in enumerate(rows):
        for x, bit in enumerate(row):
            part = "#f3d9a5" if x == 0 else "#cfe2f3" if x <= 8 else "#ededed"
            differs = rows[0][x] != rows[1][x]
            axes.add_patch(_box(x, y, RED if differs else part))
            color = "white" if differs else "black"
            axes.text(x + 0.5, y + 0.5, bit, ha="center", va="center", color=color, fontsize=9)
    for x, name in ((0.5, "sign"), (5, "exponent"), (20.5, "fraction")):
        axes.text(x, -0.35, name, ha="center", va="center", fontsize=9)
    axes.set(xlim=(-0.1, 32.1), ylim=(2.1, -0.7), xticks=[], yticks=[0.5, 1.5])
    axes.set_yticklabels(
        [f"as documented: {first[index]:.9g}", f"left to right: {second[index]:.9g}"]
    )
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set_title("One acc_grad, in float32")


def _box(x: float, y: float, color: str) -> Any:
    from matplotlib.patches import Rectangle

    return Rectangle((x, y + 0.06), 0.94, 0.88, facecolor=color)


def the_oracle(figure: Figure) -> None:
    """Draw errors of one step on drawn numbers, and the worst of all cases under the bounds."""
    left, right = figure.subplots(1, 2, width_ratios=[1.1, 1])
    for (name, errors), color in zip(step_errors(3000).items(), (BLUE, GREY, ORANGE), strict=True):
        left.hist(errors, np.arange(0, 8.01, 0.2), histtype="step", color=color, lw=1.6, label=name)
    left.set(xlabel="error of one step (ULP of the largest operand)", ylabel="numbers of 3000")
    left.set_title("Distance from the exact result, float32")
    left.legend(frameon=False)
    table = measured()
    for y, (_, bound, worst) in enumerate(table):
        right.barh(y, bound, 0.6, color="#e4e4e4", label="proved bound" if not y else None)
        right.barh(y, worst, 0.6, color=BLUE, label="worst measured" if not y else None)
        right.text(bound + 0.4, y, f"{worst:.3g} of {bound:g}", va="center", fontsize=9)
    right.set(yticks=range(len(table)), yticklabels=[name for name, _, _ in table], xlim=(0, 36))
    right.set(xlabel="error of one step (ULP)", title="All cases of verify --full")
    right.invert_yaxis()
    right.legend(frameon=False, loc="lower right", bbox_to_anchor=(1.05, 0.02))


def step_errors(count: int) -> dict[str, np.ndarray]:
    """Return the errors of a step on `count` elements, by tensor, as `verify` measures them."""
    start = Arrays.drawn(count)
    after = stepped(start)
    constants = oracle.Constants.of(HYPER, HYPER.learning_rate, HYPER.wd, "float32")
    with localcontext(oracle.DECIMAL_CONTEXT):
        exact = [
            oracle.advance(oracle.State(w, a, d), g, constants)
            for w, g, a, d in (map(Decimal, map(float, row)) for row in zip(*start, strict=True))
        ]
    found = {}
    for name in ("acc_grad", "acc_delta", "weight"):
        results = [(getattr(e.state, name), getattr(e.scale, name), e.ordinary) for e in exact]
        errors = oracle.Exact.of(results)
        scale = errors.scale.astype(np.float32)
        found[name] = errors.errors_ulp(getattr(after, name), scale)[errors.ordinary]
    return found


def measured() -> list[tuple[str, float, float]]:
    """Read name, bound and worst error of each tensor from the table of the page."""
    page = (DOCS / "accuracy.md").read_text()
    rows = re.findall(r"^\| (float\d\d) \| (\w+) \| ([\d.]+) \| ([\d.]+) \| `", page, re.MULTILINE)
    return [
        (f"{dtype} {tensor}", float(bound), float(worst)) for dtype, tensor, bound, worst in rows
    ]


def statistics(figure: Figure) -> None:
    """Draw samples by process with the interval, and verdicts of repeated comparisons."""
    left, right = figure.subplots(1, 2)
    rows, samples = _sampled()
    index = next(
        k
        for k, r in enumerate(rows)
        if (r["implementation"], r["workload"]) == ("numpy-fused", "1e5")
    )
    processes = [1e6 * np.array(each) for each in samples[index]]
    for y, each in enumerate(processes):
        spread = np.random.default_rng(y).uniform(-0.28, 0.28, len(each))
        left.plot(each, y + spread, ".", color=BLUE, alpha=0.6, ms=5, mew=0)
        left.plot([np.median(each)] * 2, [y - 0.38, y + 0.38], color=RED, lw=2.5)
    interval = median_ci(processes)
    left.axvspan(interval.low, interval.high, color=ORANGE, alpha=0.35, lw=0)
    left.axvline(interval.median, color=ORANGE, lw=1.5)
    seen = np.percentile(np.concatenate(processes), [0, 95])
    left.set(xlim=seen, yticks=range(len(processes)))
    left.set(yticklabels=[f"process {k + 1}" for k in range(len(processes))])
    left.set(xlabel="one step on 1e5 elements (us)", title="Samples, medians, 95 % interval")
    left.invert_yaxis()
    _draw_verdicts(right)


def _sampled() -> tuple[list[dict[str, Any]], list[list[list[float]]]]:
    document = json.loads((SAMPLE / "bench" / "bench.json").read_text())
    return document["rows"], document["samples_s"]


def _draw_verdicts(axes: Axes) -> None:
    """Draw the intervals of 20 comparisons each of equal steps and of one made slower."""
    axes.axvspan(1 / 1.05, 1.05, color="#ededed", lw=0)
    axes.axvline(1, color=GREY, lw=1)
    sets = (("against-itself", "the same code", BLUE), ("against-slower", "7 % slower", RED))
    for number, (name, label, color) in enumerate(sets):
        rows = [each for each in _rows(f"experiments/{name}.csv") if each["workload"] == "1e6"]
        for y, row in enumerate(rows):
            low, ratio, high = (float(row[key]) for key in ("ratio_low", "ratio", "ratio_high"))
            where = y + number * (len(rows) + 2)
            axes.plot([low, high], [where, where], color=color, lw=1.2)
            axes.plot(ratio, where, "o", color=color, ms=3.5)
        verdicts = ", ".join(sorted({row["verdict"] for row in rows}))
        middle = number * (len(rows) + 2) + len(rows) / 2
        axes.text(
            1.13, middle, f"{label}:\n{len(rows)} times\n{verdicts}", color=color, va="center"
        )
    axes.set(xlim=(0.94, 1.2), yticks=[], xticks=[0.95, 1, 1.05, 1.1])
    axes.set(
        xlabel="new time / old time, with its 99 % interval", title="40 comparisons, threshold 5 %"
    )
    axes.spines["left"].set_visible(False)
    axes.invert_yaxis()


def _rows(name: str) -> Iterator[dict[str, str]]:
    with (SAMPLE / name).open() as file:
        yield from csv.DictReader(file)


def roofline(figure: Figure) -> None:
    """Draw time an element by size under both roofs, and the share of the ceiling."""
    left, right = figure.subplots(1, 2)
    document = json.loads((SAMPLE / "bench" / "bench.json").read_text())
    sizes, roofs = _roofs(document)
    for name, style in (("memory", "-"), ("arithmetic", "--")):
        left.plot(sizes, roofs[name], style, color="black", lw=1.5, label=f"roof: {name}")
    ceiling = np.maximum(roofs["memory"], roofs["arithmetic"])
    left.fill_between(sizes, ceiling, 0.01, color="#ededed", lw=0, label="faster than possible")
    looks = {"numpy-fused": (ORANGE, "s"), "mxnet-fused": (RED, "o"), "numpy": (BLUE, "D")}
    for name, (color, marker) in looks.items():
        rows = [r for r in document["rows"] if r["implementation"] == name and r["tensors"] == 1]
        times = [1e9 * r["median_s"] / r["elements"] for r in rows]
        left.plot(sizes, times, marker, color=color, ms=6, ls=":", lw=1, label=name)
    left.set(xscale="log", yscale="log", ylim=(0.1, 60), xlabel="elements of the tensor")
    left.set(ylabel="one step (ns per element)", title="Time, Intel Xeon, float32, 2 threads")
    left.legend(frameon=False, fontsize=9)
    for name in ("numpy-fused", "mxnet-fused"):
        color, marker = looks[name]
        rows = [r for r in _rows("experiments/warm.csv") if r["implementation"] == name]
        share, low, high = (
            np.array([float(r[f"ceiling_fraction{end}"]) for r in rows])
            for end in ("", "_low", "_high")
        )
        x = [float(r["elements"]) for r in rows]
        error = np.abs([share - low, high - share])
        right.errorbar(
            x, share, error, color=color, marker=marker, ms=5, lw=1, capsize=2, label=name
        )
    right.axhline(1, color="black", lw=1.5)
    right.set(xscale="log", ylim=(0, 1.1), xlabel="elements of the tensor")
    right.set(
        ylabel="share of the ceiling (1: the slower roof)", title="Share, with 95 % intervals"
    )
    right.legend(frameon=False, loc="lower right")


def _roofs(document: dict[str, Any]) -> tuple[list[int], dict[str, np.ndarray]]:
    """Return the sizes, and the median time an element of each roof, in ns."""
    sizes, found = [], {"memory": [], "arithmetic": []}
    seen = dict.fromkeys((r["workload"], r["elements"], r["tensors"]) for r in document["rows"])
    for (_, elements, tensors), roofs in zip(seen, document["roofs_s"], strict=True):
        if tensors == 1:
            sizes.append(elements)
            for name, times in found.items():
                medians = [np.median(each) for each in roofs[f"{name} roof"] if each]
                times.append(1e9 * float(np.median(medians)) / elements)
    return sizes, {name: np.array(times) for name, times in found.items()}


PICTURES: dict[str, tuple[Callable[[Figure], None], tuple[float, float]]] = {
    "bits": (bits, (9, 5)),
    "oracle": (the_oracle, (10, 4.2)),
    "statistics": (statistics, (10, 4.2)),
    "roofline": (roofline, (10, 4.2)),
}


def draw(folder: Path) -> None:
    """Write each picture into a folder, as SVG."""
    with rc_context(STYLE):
        for name, (picture, size) in PICTURES.items():
            figure = Figure(figsize=size, layout="constrained")
            picture(figure)
            figure.savefig(folder / f"{name}.svg", metadata={"Date": None}, facecolor="white")


if __name__ == "__main__":
    draw(Path(sys.argv[1]) if len(sys.argv) > 1 else DOCS / "pictures")
