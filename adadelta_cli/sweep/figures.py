"""The figure of `sweep`: the metric by setting, and the curves over the steps."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from adadelta_cli.errors import shortened
from adadelta_cli.files import plottable
from adadelta_cli.run.key_values import value_text
from adadelta_cli.run.report import LARGEST_DRAWN
from adadelta_cli.sweep.rows import Status, ranked

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from adadelta_cli.sweep.rows import SettingRow, Spread
    from adadelta_cli.sweep.runner import Sweep
    from adadelta_cli.sweep.store import Store

Draw = Callable[[Any], None]
MOST_CURVES = 8  # of the best settings
MOST_ANNOTATED = 15  # rows or columns of a heat map whose cells have numbers
DARK = 1.5  # sum of red, green and blue, each up to 1, below which text is white
MOST_TICKS = 25  # labels of an axis
MOST_PANELS = 6  # keys that get a panel of their own
WIDE = 10  # times as large: a logarithmic scale
CONTRAST = 1000  # times the least value: colours go no further, or an outlier would take them all
WIDTH_IN = 7.5
HEIGHT_IN = 5.2


def sweep_figure(sweep: Sweep, settings: Sequence[SettingRow], store: Store) -> Figure:
    """Draw a heat map for two axes, else the metric over each key; and the curves.

    Args:
        sweep: whose metric is drawn.
        settings: in the order of the plan.
        store: has the histories.
    """
    from matplotlib.figure import Figure

    curves = partial(_draw_curves, sweep=sweep, settings=settings, store=store)
    panels: list[Draw] = [*_overview(sweep, settings), curves]
    columns = min(len(panels), 2 if len(panels) == 4 else 3)
    lines = math.ceil(len(panels) / columns)
    figure = Figure(figsize=(WIDTH_IN * columns, HEIGHT_IN * lines + 0.5), layout="constrained")
    figure.suptitle(plottable(shortened(sweep.title, 100)))
    every = figure.subplots(lines, columns, squeeze=False).ravel()
    for axes, draw in zip(every, panels, strict=False):
        draw(axes)
    for axes in every[len(panels) :]:
        axes.axis("off")
    return figure


def _overview(sweep: Sweep, settings: Sequence[SettingRow]) -> list[Draw]:
    """Return what draws the metric by setting; empty if only the seed varies."""
    keys, ranges = sweep.plan.keys, any(each.kind for each in sweep.plan.axes)
    if len(keys) == 2 and not ranges and sweep.plan.request.sample is None:
        return [partial(_draw_heat_map, sweep=sweep, settings=settings)]
    drawn = keys[:MOST_PANELS]
    return [partial(_draw_key, sweep=sweep, settings=settings, key=key) for key in drawn]


def _label(sweep: Sweep) -> str:
    return plottable(sweep.labels.get(sweep.metric, sweep.metric))


def _finite(values: Iterable[float]) -> list[float]:
    return [each for each in values if math.isfinite(each) and abs(each) < LARGEST_DRAWN]


def _is_wide(values: Iterable[float]) -> bool:
    """Return whether values need a logarithmic scale."""
    found = _finite(values)
    return bool(found) and min(found) > 1 / LARGEST_DRAWN and max(found) > WIDE * min(found)


# --- heat map -------------------------------------------------------------------------------------


def _draw_heat_map(axes: Axes, sweep: Sweep, settings: Sequence[SettingRow]) -> None:
    """Draw the median of each combination; the first key runs down, the second to the right."""
    down, right = (_texts(settings, key) for key in sweep.plan.keys)
    grid = np.full((max(1, len(down)), max(1, len(right))), np.nan)
    notes: dict[tuple[int, int], str] = {}
    for row in settings:
        place = _place(sweep, row, down, right)
        grid[place] = _drawable(_median(sweep, row))
        notes[place] = f"{grid[place]:.3g}" if math.isfinite(grid[place]) else _reason(row)
    axes.set_facecolor("0.85")  # of cells without a number
    colours = "viridis" if sweep.higher else "viridis_r"
    norm, extend = _scale(_finite(grid.ravel()) or [0.0, 1.0])
    image = axes.imshow(grid, cmap=colours, norm=norm, aspect="auto")
    figure: Any = axes.figure
    figure.colorbar(image, ax=axes, label=_label(sweep), extend=extend)
    _write_cells(axes, grid, notes, image)
    _tick(axes.yaxis, down)
    _tick(axes.xaxis, right)
    axes.set_ylabel(plottable(sweep.plan.keys[0]))
    axes.set_xlabel(plottable(sweep.plan.keys[1]))
    for best in ranked(settings, sweep.metric, higher=sweep.higher)[:1]:
        _mark(axes, _place(sweep, best, down, right))


def _texts(settings: Sequence[SettingRow], key: str) -> list[str]:
    """Return the values of a key, in the order of the settings."""
    return list(dict.fromkeys(value_text(row.values[key]) for row in settings))


def _place(
    sweep: Sweep, row: SettingRow, down: Sequence[str], right: Sequence[str]
) -> tuple[int, int]:
    first, second = (value_text(row.values[key]) for key in sweep.plan.keys)
    return down.index(first), right.index(second)


def _median(sweep: Sweep, row: SettingRow) -> float:
    known = sweep.metric in row.spreads and not row.diverges
    return row.spreads[sweep.metric].median if known else math.nan


def _reason(row: SettingRow) -> str:
    """Say why a setting has no value: it diverges, or its most frequent status."""
    if row.diverges:
        return Status.DIVERGED.value
    return max(row.counts, key=lambda status: row.counts[status]).value


def _scale(values: Sequence[float]) -> tuple[Any, str]:
    """Return the scale of the colours, and whether values lie beyond its end."""
    from matplotlib.colors import LogNorm, Normalize

    least, most = min(values), max(values)
    if not _is_wide(values):
        return Normalize(least, most), "neither"
    top = min(most, CONTRAST * least)
    return LogNorm(least, top), "max" if top < most else "neither"


def _write_cells(
    axes: Axes, grid: np.ndarray, notes: dict[tuple[int, int], str], image: Any
) -> None:
    if max(grid.shape) > MOST_ANNOTATED:
        return
    for (row, column), text in notes.items():
        value = grid[row, column]
        dark = math.isfinite(value) and sum(image.to_rgba(value)[:3]) < DARK
        size = 9 if grid.shape[1] <= 8 else 7
        color = "white" if dark else "black"
        axes.text(column, row, text, ha="center", va="center", fontsize=size, color=color)


def _mark(axes: Axes, place: tuple[int, int]) -> None:
    """Draw a frame around the best cell."""
    from matplotlib.patches import Rectangle

    corner = place[1] - 0.5, place[0] - 0.5
    axes.add_patch(Rectangle(corner, 1, 1, fill=False, edgecolor="red", linewidth=2))
    axes.set_title("red: the best", fontsize=10)


def _tick(axis: Any, texts: Sequence[str]) -> None:
    every = math.ceil(len(texts) / MOST_TICKS)
    chosen = range(0, len(texts), every)
    shown = [[shortened(line, 26) for line in texts[k].split(" (", 1)] for k in chosen]
    axis.set_ticks(list(chosen), [plottable("\n(".join(lines)) for lines in shown])


# --- one key --------------------------------------------------------------------------------------


def _draw_key(axes: Axes, sweep: Sweep, settings: Sequence[SettingRow], key: str) -> None:
    """Draw the metric over one key: a line with a band if nothing else varies, else points."""
    found = [row for row in settings if _finite([_median(sweep, row)])]
    values = [row.values[key] for row in found]
    numbers = all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in values)
    texts = _texts(found, key)
    places = values if numbers else [texts.index(value_text(each)) for each in values]
    order = sorted(range(len(found)), key=lambda k: places[k])
    spreads = [found[k].spreads[sweep.metric] for k in order]
    line = numbers and len(sweep.plan.keys) == 1
    _draw_band(axes, [places[k] for k in order], spreads, line=line)
    if numbers and _is_wide(values):
        axes.set_xscale("log")
    if not numbers:
        _tick(axes.xaxis, texts)
    if _is_wide([each for spread in spreads for each in spread]):
        axes.set_yscale("log")
    axes.set_xlabel(plottable(key))
    axes.set_ylabel(_label(sweep))
    axes.grid(alpha=0.3)
    lost = len(settings) - len(found)
    if lost:
        axes.set_title(
            f"{lost} of {len(settings)} settings have no finite median, or diverged", fontsize=10
        )


def _draw_band(axes: Axes, x: Sequence[float], spreads: Sequence[Spread], *, line: bool) -> None:
    middle = [each.median for each in spreads]
    low, high = (
        [_drawable(each.low) for each in spreads],
        [_drawable(each.high) for each in spreads],
    )
    axes.plot(x, middle, "o-" if line else "o", color="C0", markersize=5)
    if line:
        axes.fill_between(x, low, high, alpha=0.25, color="C0", linewidth=0)
    else:
        axes.vlines(x, low, high, color="C0", alpha=0.4)


def _drawable(value: float) -> float:
    return value if _finite([value]) else math.nan


# --- curves ---------------------------------------------------------------------------------------


def _draw_curves(axes: Axes, sweep: Sweep, settings: Sequence[SettingRow], store: Store) -> None:
    """Draw the metric over the steps, of the best settings; a band from least to largest."""
    best = ranked(settings, sweep.metric, higher=sweep.higher)[:MOST_CURVES]
    everything: list[float] = []
    for number, row in enumerate(best):
        steps, middle, low, high = _curve(sweep, row, store)
        text = ", ".join(f"{_short(key)}={value_text(v)}" for key, v in row.values.items())
        label = plottable(shortened(text or "all seeds", 60))
        axes.plot(steps, middle, color=f"C{number}", label=label, linewidth=1.3)
        axes.fill_between(steps, low, high, color=f"C{number}", alpha=0.15, linewidth=0)
        everything += middle
    if _is_wide(everything):
        axes.set_yscale("log")
    axes.set_xlabel("step")
    axes.set_ylabel(_label(sweep))
    axes.grid(alpha=0.3)
    axes.margins(x=0.01)
    if best:
        what = f"the best {len(best)} of {len(settings)}" if len(best) < len(settings) else "all"
        bands = "; bands: least to largest over the seeds" if len(sweep.plan.seeds) > 1 else ""
        axes.set_title(f"{what} settings{bands}", fontsize=10)
        axes.legend(fontsize=8, framealpha=0.9)
    else:
        axes.text(0.5, 0.5, "no run has a finite result", ha="center", transform=axes.transAxes)


def _short(key: str) -> str:
    return key.rpartition(".")[2]


def _curve(
    sweep: Sweep, row: SettingRow, store: Store
) -> tuple[list[float], list[float], list[float], list[float]]:
    """Return steps, medians, least and largest values over the seeds."""
    at: dict[float, list[float]] = defaultdict(list)
    for each in sweep.rows:
        if each.setting == row.setting and each.metrics:
            for line in store.history(each.run):
                at[line["step"]].append(_drawable(line.get(sweep.metric, math.nan)))
    steps = sorted(step for step in at if any(map(math.isfinite, at[step])))
    columns = [_finite(at[step]) for step in steps]
    return steps, [float(np.median(c)) for c in columns], [*map(min, columns)], [*map(max, columns)]
