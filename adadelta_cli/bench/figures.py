"""The pictures of `bench`: throughput under the ceiling, speed-ups, and every sample."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from textwrap import shorten
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from adadelta_cli.bench.buffers import held_bytes
from adadelta_cli.bench.units import duration

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from adadelta_cli.bench.results import BenchRow, Measurement

LOOKS = {
    "mxnet-fused": ("#c1272d", "o"),
    "numpy-fused": ("#e8a33d", "s"),
    "mxnet": ("#0b5394", "^"),
    "mxnet-stock": ("#6fa8dc", "v"),
    "numpy": ("#6aa84f", "D"),
    "torch": ("#4a148c", "P"),
    "torch-foreach": ("#a678de", "X"),
    "torch-compile": ("#d6409f", "p"),
    "torch-adam-fused": ("#8c6d46", "h"),
    "optax": ("#0f9d94", "*"),
    "cupy-fused": ("#b45f06", "8"),
    "cupy": ("#38761d", "<"),
}
OTHER_LOOKS = (("#222222", "d"), ("#a8a800", ">"), ("#17becf", "H"), ("#7a3b1d", "x"))
CEILING: dict[str, Any] = {
    "label": "ceiling: the slower of the two roofs",
    "color": "black",
    "alpha": 0.2,
    "linewidth": 7,
}
CACHE: dict[str, Any] = {
    "label": "the arrays of a step fill this cache",
    "color": "grey",
    "linestyle": ":",
    "linewidth": 1.2,
}
FEWEST_BARS = 5  # that a panel has room for: one bar is not to fill it
LEGEND_IN = 2.4  # of width for a column of the legend, in inches
TITLE_PAD = 20  # points, above the names of the caches
LARGEST_IN = 150.0  # of a figure's height, in inches: beyond, a picture takes gigabytes of memory


# --- what a picture is made of --------------------------------------------------------------------


class PanelGroup(NamedTuple):
    """What the rows of one line of panels have in common."""

    dtype: str
    place: str
    cache: str

    @classmethod
    def of(cls, row: BenchRow) -> PanelGroup:
        """Return a row's."""
        return cls(row.dtype, row.place, row.cache)

    def __str__(self) -> str:
        return f"{self.dtype}, {self.place}, {self.cache} caches"


@dataclass(frozen=True)
class Style:
    """How an implementation is drawn, in every panel."""

    label: str
    color: str
    marker: str


def styles_of(rows: Iterable[BenchRow]) -> dict[str, Style]:
    """Give each implementation a look of its own: ours and the peers' never change.

    Those of users take turns, in the order of the rows, and are named without their folder where
    that is clear.
    """
    names = list(dict.fromkeys(row.implementation for row in rows))
    others = [name for name in names if name not in LOOKS]
    turns = {name: OTHER_LOOKS[k % len(OTHER_LOOKS)] for k, name in enumerate(others)}
    short = {name: name.rpartition("/")[2] for name in names}
    count = Counter(short.values())
    return {
        name: Style(short[name] if count[short[name]] == 1 else name, *{**LOOKS, **turns}[name])
        for name in names
    }


def _by_setting(measurements: Iterable[Measurement]) -> dict[PanelGroup, list[Measurement]]:
    found: dict[PanelGroup, list[Measurement]] = {}
    for each in measurements:
        found.setdefault(PanelGroup.of(each.row), []).append(each)
    return found


def _untimed(rows: Sequence[BenchRow], styles: Mapping[str, Style]) -> str:
    """Name the rows that have no time, on a line of its own."""
    names = [
        f"{row.workload} {styles[row.implementation].label}" for row in rows if row.median_s is None
    ]
    told = shorten(", ".join(names), 70, placeholder=" ...")
    return f"\nnot timed: {told}; bench.csv says why" if names else ""


def _empty(title: str) -> Figure:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 2), layout="constrained")
    figure.suptitle(title)
    figure.text(0.5, 0.4, "nothing was measured", ha="center")
    return figure


def _label(axis: Any, write: Callable[[float], str], *, steps: Sequence[float] = (1, 2, 5)) -> None:
    """Label a logarithmic axis at these steps of each decade."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axis.set_major_locator(LogLocator(subs=steps, numticks=30))
    axis.set_major_formatter(FuncFormatter(lambda value, _: write(value)))
    axis.set_minor_formatter(NullFormatter())


def _plain(value: float) -> str:
    return f"{value:,.6g}"


def _scientific(value: float) -> str:
    """Write a size as workloads are named: 2e6."""
    return f"{value:.0e}".replace("e+0", "e").replace("e+", "e")


# --- bench.png ------------------------------------------------------------------------------------


def bench_figure(measurements: Sequence[Measurement], machine: Mapping[str, Any]) -> Figure:
    """Draw, for each setting, throughput by size and by network, and the speed-ups."""
    from matplotlib.figure import Figure

    machine = machine.get("gpu", machine)  # which has the same of its own
    title = f"AdaDelta's step on {machine['processor']}"
    if not measurements:
        return _empty(title)
    settings = {
        setting: [each.row for each in some] for setting, some in _by_setting(measurements).items()
    }
    styles = styles_of(each.row for each in measurements)
    lines = [_panels(rows, machine["cache_bytes"], styles) for rows in settings.values()]
    heights = [max(each.height for each in panels) for panels in lines]
    width = max(9.0, *(1 + sum(each.width for each in panels) for panels in lines))
    size = (width, min(sum(heights) + 1, LARGEST_IN))
    figure = Figure(figsize=size, layout="constrained")
    figure.suptitle(title, fontsize=14)
    parts = figure.subfigures(len(settings), 1, squeeze=False, height_ratios=heights)[:, 0]
    for part, panels, (setting, rows) in zip(parts, lines, settings.items(), strict=True):
        part.suptitle(f"{setting}{_untimed(rows, styles)}", fontsize=11)
        widths = [each.width for each in panels]
        every = part.subplots(1, len(panels), squeeze=False, width_ratios=widths)[0]
        for axes, panel in zip(every, panels, strict=True):
            panel.draw(axes)
    _draw_legend(figure)
    return figure


def _draw_legend(figure: Figure) -> None:
    """Put one legend for all panels below them: what is no implementation first."""
    handles: dict[str, Any] = {}
    for axes in figure.axes:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    labels = sorted(handles, key=lambda label: label not in {CEILING["label"], CACHE["label"]})
    if labels:
        columns = int(figure.get_size_inches()[0] / LEGEND_IN)
        chosen = [handles[label] for label in labels]
        figure.legend(chosen, labels, loc="outside lower center", ncols=columns, fontsize=9)


class Panel(NamedTuple):
    """A panel to be drawn, and its size in inches."""

    width: float
    height: float
    draw: Callable[[Axes], None]


def _panels(
    rows: Sequence[BenchRow], caches: Mapping[str, int], styles: Mapping[str, Style]
) -> list[Panel]:
    """Return the panels of a setting that there is something for."""
    fast = [row for row in rows if row.gigabytes_per_s and row.ceiling_gigabytes_per_s]
    sizes = [row for row in fast if row.tensors == 1]
    networks = [row for row in fast if row.tensors > 1]
    gains = [row for row in rows if _has_gain(row)]
    names = {row.workload for row in networks}
    tall = 1.8 + 0.26 * max(len(gains), FEWEST_BARS)
    scale = partial(_scale_throughput, rows=fast)
    panels = {
        Panel(6.5, 5, lambda axes: scale(_draw_sizes(axes, sizes, caches, styles))): sizes,
        Panel(
            1.5 + len(names), 5, lambda axes: scale(_draw_networks(axes, networks, styles))
        ): names,
        Panel(7.5, tall, lambda axes: _draw_gains(axes, gains, rows, styles)): gains,
    }
    return [panel for panel, some in panels.items() if some] or [Panel(7.5, 1.5, _draw_nothing)]


def _draw_nothing(axes: Axes) -> None:
    axes.set_axis_off()
    axes.text(0.5, 0.5, "nothing was timed", ha="center", transform=axes.transAxes)


def _scale_throughput(axes: Axes, rows: Sequence[BenchRow]) -> None:
    """Give the throughputs of sizes and networks one scale, of a decade at least."""
    values = [row.gigabytes_per_s or math.nan for row in rows]
    top = max(values + [row.ceiling_gigabytes_per_s or 0.0 for row in rows]) * 1.5
    axes.set_yscale("log")
    axes.set_ylim(min(min(values) / 1.5, top / 15), top)
    _label(axes.yaxis, _plain)
    axes.grid(which="both", alpha=0.2)
    axes.set_ylabel("GB/s: bytes a step has to move / its time")


def _draw_sizes(
    axes: Axes, rows: Sequence[BenchRow], caches: Mapping[str, int], styles: Mapping[str, Style]
) -> Axes:
    ceilings = {float(row.elements): row.ceiling_gigabytes_per_s or math.nan for row in rows}
    if len(ceilings) == 1:  # a line of one point is none
        ((elements, value),) = ceilings.items()
        ceilings = {elements / 1.6: value, elements * 1.6: value}
    axes.plot(*zip(*sorted(ceilings.items()), strict=True), **CEILING)
    for name in dict.fromkeys(row.implementation for row in rows):
        own = sorted((r for r in rows if r.implementation == name), key=lambda r: r.elements)
        _draw_points(axes, [r.elements for r in own], own, styles[name], line="-")
    axes.set_xscale("log")
    low, high = min(row.elements for row in rows), max(row.elements for row in rows)
    margin = max(1.6, (30 * low / high) ** 0.5)
    axes.set_xlim(low / margin, high * margin)
    _label(axes.xaxis, _scientific, steps=(1, 2, 5) if high / low < 10 else (1,))
    if rows[0].cache == "warm":  # cold arrays come from memory, whatever their size
        _mark_caches(axes, caches, rows[0])
    axes.set_title("Throughput by size: higher is better", pad=TITLE_PAD)
    axes.set_xlabel("elements of one tensor")
    return axes


def _draw_points(
    axes: Axes, places: Sequence[float], rows: Sequence[BenchRow], look: Style, line: str
) -> None:
    values = [row.gigabytes_per_s or math.nan for row in rows]
    axes.errorbar(
        places,
        values,
        yerr=list(zip(*map(_reach, rows), strict=True)),
        marker=look.marker,
        linestyle=line,
        ms=6,
        label=look.label,
        color=look.color,
        capsize=3,
        elinewidth=1,
    )


def _reach(row: BenchRow) -> tuple[float, float]:
    """Return how far the interval of a throughput reaches down and up: that of the time, turned."""
    if not (row.gigabytes_per_s and row.median_s and row.ci_low_s and row.ci_high_s):
        return math.nan, math.nan
    moved = row.gigabytes_per_s * row.median_s
    down, up = moved / row.ci_high_s, moved / row.ci_low_s
    # Rounded, an interval of a single sample may end on the wrong side of it.
    return max(0.0, row.gigabytes_per_s - down), max(0.0, up - row.gigabytes_per_s)


def _mark_caches(axes: Axes, caches: Mapping[str, int], row: BenchRow) -> None:
    """Mark the sizes at which the arrays of a step outgrow each cache.

    What is not the last level belongs to a core, and is there once a thread.
    """
    low, high = axes.get_xlim()
    last = list(caches)[-1:]
    for level, size in caches.items():
        elements = size * (1 if [level] == last else row.threads) / held_bytes(row.dtype)
        if low < elements < high:
            axes.axvline(elements, **CACHE)
            axes.annotate(
                level,
                (elements, 1),
                xycoords=axes.get_xaxis_transform(),
                xytext=(0, 4),
                textcoords="offset points",
                ha="center",
                color="dimgrey",
                fontsize=9,
            )


def _draw_networks(axes: Axes, rows: Sequence[BenchRow], styles: Mapping[str, Style]) -> Axes:
    names = list(dict.fromkeys(row.workload for row in rows))
    ceilings = {row.workload: row.ceiling_gigabytes_per_s or math.nan for row in rows}
    for place, name in enumerate(names):
        axes.plot([place - 0.38, place + 0.38], [ceilings[name]] * 2, **CEILING)
    shown = list(dict.fromkeys(row.implementation for row in rows))
    for k, name in enumerate(shown):
        own = [row for row in rows if row.implementation == name]
        shift = 0.6 * ((k + 0.5) / len(shown) - 0.5)  # side by side: the fast ones are close
        places = [names.index(row.workload) + shift for row in own]
        _draw_points(axes, places, own, styles[name], line="none")
    axes.set_xticks(range(len(names)), names, rotation=25 if len(names) > 1 else 0)
    axes.set_xlim(-0.7, len(names) - 0.3)
    axes.set_title("All tensors of a network", pad=TITLE_PAD)
    return axes


def _has_gain(row: BenchRow) -> bool:
    return bool(row.speedup) and not _is_reference(row)


def _is_reference(row: BenchRow) -> bool:
    """Tell whether the speed-up is that of a step over itself."""
    return bool(row.speedup_low == row.speedup == row.speedup_high == 1)


def _reference(row: BenchRow, rows: Sequence[BenchRow]) -> str:
    """Name what a speed-up is against: the step of the same workload and backend with 1."""
    return next(
        (
            f" vs {other.implementation}"
            for other in rows
            if _is_reference(other)
            and (other.workload, other.backend) == (row.workload, row.backend)
        ),
        "",
    )


def _draw_gains(
    axes: Axes, gains: Sequence[BenchRow], rows: Sequence[BenchRow], styles: Mapping[str, Style]
) -> None:
    """Draw bars that begin at 1: to the right is faster, to the left slower."""
    axes.set_title("Speed-up: further right is better", pad=TITLE_PAD)
    values, lows, highs = (
        np.array([getattr(row, name) for row in gains], dtype=float)
        for name in ("speedup", "speedup_low", "speedup_high")
    )
    places = range(len(gains))
    colors = [styles[row.implementation].color for row in gains]
    axes.barh(places, values - 1, left=1, height=0.7, color=colors)
    axes.errorbar(
        values,
        places,
        xerr=np.array([values - lows, highs - values]),
        fmt="none",
        ecolor="black",
        capsize=3,
        linewidth=1,
    )
    for place, value, low, high in zip(places, values, lows, highs, strict=True):
        end, side, way = (high, "left", 6) if value >= 1 else (low, "right", -6)
        axes.annotate(
            f"{value:.3g}",
            (end, place),
            xytext=(way, 0),
            textcoords="offset points",
            ha=side,
            va="center",
            fontsize=8,
        )
    labels = [
        f"{row.workload}  {styles[row.implementation].label}{_reference(row, rows)}"
        for row in gains
    ]
    axes.set_yticks(places, labels, fontsize=8)
    axes.set_ylim(max(len(gains), FEWEST_BARS) - 0.4, -0.6)
    _separate(axes, [row.workload for row in gains])
    axes.set_xscale("log")
    axes.set_xlim(min(0.8, lows.min() / 2), max(1.6, highs.max() * 1.6))
    wide = float(np.ptp(np.log10(axes.get_xlim()))) > 0.8
    _label(axes.xaxis, _plain, steps=(1, 2, 5) if wide else (1, 1.2, 1.5, 2, 3, 5, 8))
    axes.axvline(1, color="black", linewidth=1)
    axes.set_axisbelow(True)
    axes.grid(axis="x", alpha=0.2)
    axes.set_xlabel("times as fast, with 95 % interval")


def _separate(axes: Axes, workloads: Sequence[str]) -> None:
    """Draw a line between the rows of one workload and the next."""
    for place, (one, other) in enumerate(pairwise(workloads)):
        if one != other:
            axes.axhline(place + 0.5, color="lightgrey", linewidth=0.8, zorder=0)


# --- bench-samples.png ----------------------------------------------------------------------------

SAMPLES_HELP = (
    "a dot: one sample   a lane of dots: one process, its samples from top to bottom as they were "
    "taken, and a tick at its median\ngrey: 95 % interval of the row's median   beyond: samples "
    "to the right of what is shown, and the slowest of them"
)
# The numbers on the axis, those first that are to have room before the others.
TIMES = (1, 2, 0.5, 10, 0.1, 5, 0.2, 0.05, 0.02, 1.5, 1.2, 0.8, 1.1, 0.9, 3, 0.7, 1.05, 0.95)
NARROW_IN = 0.55  # least height of a row, in inches


def samples_figure(measurements: Sequence[Measurement], machine: Mapping[str, Any]) -> Figure:
    """Draw every sample of every process, relative to the median of its row, a panel a setting."""
    from matplotlib.figure import Figure

    title = f"AdaDelta's step on {machine['processor']}: every sample"
    if not measurements:
        return _empty(title)
    settings = _by_setting(measurements)
    styles = styles_of(each.row for each in measurements)
    lanes = max(len(each.samples_s) for each in measurements)
    row_in = max(NARROW_IN, 0.14 * lanes)
    heights = [0.9 + row_in * len(some) for some in settings.values()]
    size = (13, min(sum(heights) + 1.2, LARGEST_IN))
    figure = Figure(figsize=size, layout="constrained")
    figure.suptitle(f"{title}\n\n", fontsize=14)
    figure.text(0.5, 1 - 0.38 / size[1], SAMPLES_HELP, ha="center", va="top", fontsize=9)
    panels = figure.subplots(len(settings), 1, squeeze=False, sharex=True, height_ratios=heights)[
        :, 0
    ]
    limits = _limits(measurements)
    for axes, (setting, some) in zip(panels, settings.items(), strict=True):
        axes.set_title(str(setting), fontsize=11)
        _draw_samples(axes, some, styles, limits)
    panels[-1].set_xlabel("time of one sample / median of its row (logarithmic)")
    return figure


def _relative(measurement: Measurement) -> list[np.ndarray]:
    median = measurement.row.median_s or math.nan
    return [np.array(samples) / median for samples in measurement.samples_s if samples]


def _limits(measurements: Sequence[Measurement]) -> tuple[float, float]:
    """Choose what the axis shows: of each row all samples but its slowest twentieth."""
    timed = [np.concatenate(_relative(each)) for each in measurements if each.row.median_s]
    low = min((float(each.min()) for each in timed), default=1.0)
    high = max((float(np.percentile(each, 95)) for each in timed), default=1.0)
    return min(0.93, low / 1.02), min(10.0, max(1.1, high * 1.05))


def _draw_samples(
    axes: Axes,
    measurements: Sequence[Measurement],
    styles: Mapping[str, Style],
    limits: tuple[float, float],
) -> None:
    axes.set_xscale("log")
    axes.set_xlim(*limits)
    axes.set_ylim(len(measurements), 0)
    axes.axvline(1, color="black", linewidth=0.8, alpha=0.5)
    for place, each in enumerate(measurements):
        if each.row.median_s:
            _draw_row(axes, place, each, styles[each.row.implementation].color, limits)
        else:
            told = f"not timed: {shorten(each.row.note, 100, placeholder=' ...')}"
            axes.text(
                0.02,
                place + 0.5,
                told,
                transform=axes.get_yaxis_transform(),
                va="center",
                fontsize=9,
            )
    rows = [each.row for each in measurements]
    labels = [f"{row.workload}  {styles[row.implementation].label}" for row in rows]
    axes.set_yticks([place + 0.5 for place in range(len(rows))], labels, fontsize=9)
    axes.tick_params(axis="y", length=0)
    for place in range(1, len(rows)):
        strong = rows[place].workload != rows[place - 1].workload
        axes.axhline(place, color="grey" if strong else "lightgrey", linewidth=0.8, zorder=0)
    _mark_times(axes, limits)


def _draw_row(
    axes: Axes, place: float, measurement: Measurement, color: str, limits: tuple[float, float]
) -> None:
    row, processes = measurement.row, _relative(measurement)
    median = row.median_s or math.nan
    low, high = ((bound or median) / median for bound in (row.ci_low_s, row.ci_high_s))
    axes.fill_betweenx([place, place + 1], low, high, color="black", alpha=0.13, linewidth=0)
    lane = 0.9 / len(processes)
    for k, samples in enumerate(processes):
        top = place + 0.05 + k * lane
        heights = top + lane * (0.2 + 0.6 * (np.arange(len(samples)) + 0.5) / len(samples))
        shown = samples <= limits[1]
        size = 3.5 if len(samples) > 30 else 6
        axes.plot(
            samples[shown],
            heights[shown],
            ".",
            ms=size,
            mew=0,
            color=color,
            alpha=max(0.45, min(0.9, 60 / len(samples))),
        )
        axes.vlines(np.median(samples), top, top + lane, color="black", linewidth=1.4)
    axes.annotate(
        _sample_label(median, np.concatenate(processes), limits[1]),
        (1, place + 0.5),
        xytext=(6, 0),
        xycoords=axes.get_yaxis_transform(),
        textcoords="offset points",
        va="center",
        fontsize=7.5,
    )


def _sample_label(median_s: float, samples: np.ndarray, limit: float) -> str:
    """Write what stands beside a row: its median, how many samples, and those that are not seen."""
    beyond = int((samples > limit).sum())
    lines = [f"median {duration(median_s)}", f"{len(samples):,} samples"]
    return "\n".join(lines + [f"{beyond} beyond, to {samples.max():.3g}"] * bool(beyond))


def _mark_times(axes: Axes, limits: tuple[float, float]) -> None:
    """Label the axis with round numbers that leave each other room."""
    from matplotlib.ticker import NullLocator

    room = math.log(limits[1] / limits[0]) / 14
    ticks: list[float] = []
    for value in TIMES:
        free = all(abs(math.log(value / other)) > room for other in ticks)
        if free and limits[0] <= value <= limits[1]:
            ticks.append(value)
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.grid(axis="x", alpha=0.25)
