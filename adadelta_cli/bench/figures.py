"""The figures of `bench`: throughput under the ceiling, speed-ups, and every sample."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from functools import partial
from textwrap import shorten
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from adadelta_cli.bench.buffers import held_bytes
from adadelta_cli.bench.units import duration
from adadelta_cli.files import plottable

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
CEILING: dict[str, Any] = {"label": "ceiling: the slower roof", "color": "k", "alpha": 0.2, "lw": 7}
CACHE: dict[str, Any] = {"label": "arrays fill this cache", "color": "grey", "ls": ":", "lw": 1.2}
FEWEST_BARS = 5  # that a panel has room for: a single bar should not fill it
LEGEND_IN = 2.4  # width of a column of the legend, in inches
TITLE_PAD = 20  # points, above the names of the caches
LARGEST_IN = 150.0  # height of a figure, in inches: a higher one takes gigabytes of memory


class Style(NamedTuple):
    """How an implementation is drawn, in every panel."""

    label: str
    color: str
    marker: str


def styles_of(rows: Iterable[BenchRow]) -> dict[str, Style]:
    """Give each implementation a style; those of built-in ones and frameworks never change.

    User kernels get other styles in the order of the rows. Their labels omit the folder where the
    file name is unambiguous.
    """
    names = list(dict.fromkeys(row.implementation for row in rows))
    others = [name for name in names if name not in LOOKS]
    looks = LOOKS | dict(zip(others, itertools.cycle(OTHER_LOOKS), strict=False))
    short = {name: name.rpartition("/")[2] for name in names}
    count = Counter(short.values())
    labels = {name: short[name] if count[short[name]] == 1 else name for name in names}
    # A legend leaves out labels that begin with "_".
    return {
        name: Style(plottable(f"./{label}" if label.startswith("_") else label), *looks[name])
        for name, label in labels.items()
    }


def _by_setting(measurements: Iterable[Measurement]) -> dict[str, list[Measurement]]:
    found: dict[str, list[Measurement]] = {}
    for each in measurements:
        setting = f"{each.row.dtype}, {each.row.place}, {each.row.cache} caches"
        found.setdefault(setting, []).append(each)
    return found


def _untimed(rows: Sequence[BenchRow], styles: Mapping[str, Style]) -> str:
    """Name the rows that have no time, on a line of its own."""
    names = [
        f"{row.workload} {styles[row.implementation].label}" for row in rows if row.median_s is None
    ]
    listed = shorten(", ".join(names), 70, placeholder=" ...")
    return f"\nnot timed: {listed}; reasons in bench.csv" if names else ""


def _empty(title: str) -> Figure:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 2), layout="constrained")
    figure.suptitle(title)
    figure.text(0.5, 0.4, "nothing was measured", ha="center")
    return figure


def _label(axis: Any, formatter: Any = "{x:,.6g}", *, steps: Sequence[float] = (1, 2, 5)) -> None:
    """Label a logarithmic axis at these steps of each decade."""
    from matplotlib.ticker import LogLocator

    axis.set_major_locator(LogLocator(subs=steps, numticks=30))
    axis.set_major_formatter(formatter)
    axis.set_minor_formatter("")


def _scientific(value: float, _position: int | None = None) -> str:
    """Write a size as workloads are named: 2e6."""
    return f"{value:.0e}".replace("e+0", "e").replace("e+", "e")


def bench_figure(measurements: Sequence[Measurement], machine: Mapping[str, Any]) -> Figure:
    """Draw, for each setting, throughput by size and by network, and the speed-ups."""
    from matplotlib.figure import Figure

    machine = machine.get("gpu", machine)  # a GPU has the same facts
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
    """Draw one legend for all panels below them: ceiling and caches first."""
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
    """A panel: its size in inches, and the function that draws it."""

    width: float
    height: float
    draw: Callable[[Axes], None]


def _panels(
    rows: Sequence[BenchRow], caches: Mapping[str, int], styles: Mapping[str, Style]
) -> list[Panel]:
    """Return the panels of a setting that have rows."""
    fast = [row for row in rows if row.gigabytes_per_s and row.ceiling_gigabytes_per_s]
    sizes = [row for row in fast if row.tensors == 1]
    networks = [row for row in fast if row.tensors > 1]
    gains = [row for row in rows if row.speedup and not _is_reference(row)]
    names = {row.workload for row in networks}
    tall = 1.8 + 0.26 * max(len(gains), FEWEST_BARS)
    scale = partial(_scale_throughput, rows=fast)
    panels = []
    if sizes:
        panels += [Panel(6.5, 5, lambda axes: scale(_draw_sizes(axes, sizes, caches, styles)))]
    if networks:
        wide = 1.5 + len(names)
        panels += [Panel(wide, 5, lambda axes: scale(_draw_networks(axes, networks, styles)))]
    if gains:
        panels += [Panel(7.5, tall, lambda axes: _draw_gains(axes, gains, rows, styles))]
    return panels or [Panel(7.5, 1.5, _draw_nothing)]


def _draw_nothing(axes: Axes) -> None:
    axes.set_axis_off()
    axes.text(0.5, 0.5, "nothing was timed", ha="center", transform=axes.transAxes)


def _scale_throughput(axes: Axes, rows: Sequence[BenchRow]) -> None:
    """Scale the throughputs of sizes and networks alike, over a decade at least."""
    values = [row.gigabytes_per_s or math.nan for row in rows]
    top = max(values + [row.ceiling_gigabytes_per_s or 0.0 for row in rows]) * 1.5
    axes.set_yscale("log")
    axes.set_ylim(min(min(values) / 1.5, top / 15), top)
    _label(axes.yaxis)
    axes.grid(which="both", alpha=0.2)
    axes.set_ylabel("GB/s: bytes a step must move / its time")


def _draw_sizes(
    axes: Axes, rows: Sequence[BenchRow], caches: Mapping[str, int], styles: Mapping[str, Style]
) -> Axes:
    ceilings = {float(row.elements): row.ceiling_gigabytes_per_s or math.nan for row in rows}
    if len(ceilings) == 1:  # a line of one point is invisible
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
    if rows[0].cache == "warm":  # cold arrays come from memory, at any size
        _mark_caches(axes, caches, rows[0])
    axes.set_title("Throughput by size: higher is better", pad=TITLE_PAD)
    axes.set_xlabel("elements of one tensor")
    return axes


def _draw_points(
    axes: Axes, places: Sequence[float], rows: Sequence[BenchRow], look: Style, line: str
) -> None:
    values = [row.gigabytes_per_s or math.nan for row in rows]
    errors = list(zip(*map(_throughput_errors, rows), strict=True))
    how: dict[str, Any] = {"ms": 6, "capsize": 3, "elinewidth": 1, **look._asdict()}
    axes.errorbar(places, values, yerr=errors, linestyle=line, **how)


def _throughput_errors(row: BenchRow) -> tuple[float, float]:
    """Return the lower and upper error of a throughput, from the interval of the time."""
    if not (row.gigabytes_per_s and row.median_s and row.ci_low_s and row.ci_high_s):
        return math.nan, math.nan
    moved = row.gigabytes_per_s * row.median_s
    down, up = moved / row.ci_high_s, moved / row.ci_low_s
    # By rounding, an interval of a single sample may end on its wrong side.
    return max(0.0, row.gigabytes_per_s - down), max(0.0, up - row.gigabytes_per_s)


def _mark_caches(axes: Axes, caches: Mapping[str, int], row: BenchRow) -> None:
    """Mark the sizes at which the arrays of a step outgrow each cache.

    Caches before the last level belong to a core, so there is one for each thread.
    """
    low, high = axes.get_xlim()
    last = list(caches)[-1:]
    for level, size in caches.items():
        elements = size * (1 if [level] == last else row.threads) / held_bytes(row.dtype)
        if low < elements < high:
            axes.axvline(elements, **CACHE)
            place: dict[str, Any] = {"transform": axes.get_xaxis_transform(), "ha": "center"}
            axes.text(elements, 1.01, level, color="dimgrey", fontsize=9, **place)


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


def _is_reference(row: BenchRow) -> bool:
    """Tell whether a row is the baseline of speed-ups."""
    return bool(row.speedup_low == row.speedup == row.speedup_high == 1)


def _reference(row: BenchRow, rows: Sequence[BenchRow]) -> str:
    """Name the baseline of a speed-up: the row of the same workload and backend with 1."""
    same = [r for r in rows if (r.workload, r.backend) == (row.workload, row.backend)]
    return next((f" vs {other.implementation}" for other in same if _is_reference(other)), "")


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
    bars = axes.barh(places, values - 1, left=1, height=0.7, color=colors)
    reach = np.array([values - lows, highs - values])
    whiskers: dict[str, Any] = {"fmt": "none", "ecolor": "black", "capsize": 3, "linewidth": 1}
    bars.errorbar = axes.errorbar(values, places, xerr=reach, **whiskers)  # for the labels' places
    axes.bar_label(bars, [f"{value:.3g}" for value in values], padding=6, fontsize=8)
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
    _label(axes.xaxis, steps=(1, 2, 5) if wide else (1, 1.2, 1.5, 2, 3, 5, 8))
    axes.axvline(1, color="black", linewidth=1)
    axes.set_axisbelow(True)
    axes.grid(axis="x", alpha=0.2)
    axes.set_xlabel("times as fast, with 95 % interval")


def _separate(axes: Axes, workloads: Sequence[str]) -> None:
    """Draw a line between the rows of one workload and the next."""
    for place, (one, other) in enumerate(itertools.pairwise(workloads)):
        if one != other:
            axes.axhline(place + 0.5, color="lightgrey", linewidth=0.8, zorder=0)


SAMPLES_HELP = (
    "a dot: one sample   a lane of dots: one process, its samples in time order from the top, and "
    "a tick at its median\ngrey: 95 % interval of the row's median   beyond: samples to the "
    "right of the axis, and the slowest of them"
)
LEAST_ROW_IN = 0.55  # height of a row, in inches


def samples_figure(measurements: Sequence[Measurement], machine: Mapping[str, Any]) -> Figure:
    """Draw every sample of every process, relative to the median of its row, a panel a setting."""
    from matplotlib.figure import Figure

    title = f"AdaDelta's step on {machine['processor']}: every sample"
    if not measurements:
        return _empty(title)
    settings = _by_setting(measurements)
    styles = styles_of(each.row for each in measurements)
    lanes = max(len(each.samples_s) for each in measurements)
    row_in = max(LEAST_ROW_IN, 0.14 * lanes)
    heights = [0.9 + row_in * len(some) for some in settings.values()]
    size = (13, min(sum(heights) + 1.2, LARGEST_IN))
    figure = Figure(figsize=size, layout="constrained")
    figure.suptitle(f"{title}\n\n", fontsize=14)
    figure.text(0.5, 1 - 0.38 / size[1], SAMPLES_HELP, ha="center", va="top", fontsize=9)
    how: dict[str, Any] = {"squeeze": False, "sharex": True, "height_ratios": heights}
    panels = figure.subplots(len(settings), 1, **how)[:, 0]
    limits = _limits(measurements)
    for axes, (setting, some) in zip(panels, settings.items(), strict=True):
        axes.set_title(setting, fontsize=11)
        _draw_samples(axes, some, styles, limits)
    panels[-1].set_xlabel("time of one sample / median of its row (logarithmic)")
    return figure


def _relative(measurement: Measurement) -> list[np.ndarray]:
    median = measurement.row.median_s or math.nan
    return [np.array(samples) / median for samples in measurement.samples_s if samples]


def _limits(measurements: Sequence[Measurement]) -> tuple[float, float]:
    """Return the limits of the axis: all samples of each row but its slowest twentieth."""
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
    from matplotlib.ticker import MaxNLocator, NullLocator

    axes.set_xscale("log")
    axes.set_xlim(*limits)
    axes.set_ylim(len(measurements), 0)
    axes.axvline(1, color="black", linewidth=0.8, alpha=0.5)
    for place, each in enumerate(measurements):
        if each.row.median_s:
            _draw_row(axes, place, each, styles[each.row.implementation].color, limits)
        else:
            note = f"not timed: {plottable(shorten(each.row.note, 100, placeholder=' ...'))}"
            beside: dict[str, Any] = {"transform": axes.get_yaxis_transform(), "va": "center"}
            axes.text(0.02, place + 0.5, note, fontsize=9, **beside)
    rows = [each.row for each in measurements]
    labels = [f"{row.workload}  {styles[row.implementation].label}" for row in rows]
    axes.set_yticks([place + 0.5 for place in range(len(rows))], labels, fontsize=9)
    axes.tick_params(axis="y", length=0)
    for place in range(1, len(rows)):
        strong = rows[place].workload != rows[place - 1].workload
        axes.axhline(place, color="grey" if strong else "lightgrey", linewidth=0.8, zorder=0)
    axes.xaxis.set_major_locator(MaxNLocator(9, steps=[1, 2, 5, 10]))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_locator(NullLocator())
    axes.grid(axis="x", alpha=0.25)


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
        how: dict[str, Any] = {"color": color, "alpha": max(0.45, min(0.9, 60 / len(samples)))}
        axes.plot(samples[shown], heights[shown], ".", ms=size, mew=0, **how)
        axes.vlines(np.median(samples), top, top + lane, color="black", linewidth=1.4)
    label = _sample_label(median, np.concatenate(processes), limits[1])
    beside: dict[str, Any] = {"transform": axes.get_yaxis_transform(), "va": "center"}
    axes.text(1.008, place + 0.5, label, fontsize=7.5, **beside)


def _sample_label(median_s: float, samples: np.ndarray, limit: float) -> str:
    """Write the label of a row: its median, the count of samples, and those beyond the limit."""
    beyond = int((samples > limit).sum())
    lines = [f"median {duration(median_s)}", f"{len(samples):,} samples"]
    return "\n".join(lines + [f"{beyond} beyond, to {samples.max():.3g}"] * bool(beyond))
