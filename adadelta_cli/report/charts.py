"""The charts of the page, as Plotly takes them; the page adds the colours of its theme."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

from adadelta_cli.errors import shortened
from adadelta_cli.report.found import finite
from adadelta_cli.report.tables import plain, run_names

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from adadelta_cli.bench.results import BenchRow
    from adadelta_cli.report.found import FoundBench, FoundRun, FoundSweep

# M. Okabe and K. Ito, "Color Universal Design" (2008), without black and yellow, which disappear
# on a dark and on a light page.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
DASHES = ("solid", "dash", "dot", "dashdot", "longdash")
MARKS = ("circle", "square", "diamond", "triangle-up", "x", "star")
CEILING = "#808080"  # 4:1 on white and on black


class Chart(NamedTuple):
    """A chart.

    Attributes:
        title: what it shows; with the table beside it, its text alternative.
        name: what a reader may choose it by, among those of one kind; empty for all.
    """

    title: str
    data: list[dict[str, Any]]
    layout: dict[str, Any]
    name: str = ""

    @property
    def document(self) -> dict[str, Any]:
        """The chart as JSON."""
        return {"data": self.data, "layout": self.layout, "title": self.title}


def _title(text: str) -> dict[str, str]:
    return {"text": plotly_text(text)}


def plotly_text(text: str) -> str:
    """Write a user's text for Plotly, which takes some HTML; long ones are shortened.

    >>> plotly_text("<b>a & b</b>")
    '&lt;b&gt;a &amp; b&lt;/b&gt;'
    """
    short = shortened(text, 60)
    return short.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


# --- runs -----------------------------------------------------------------------------------------

MOST_NUMBERS = 200_000  # in the curves of all runs: some 2 MB
MOST_POINTS = 600  # of a curve
LEAST_POINTS = 12


def curves(runs: Sequence[FoundRun]) -> list[dict[str, Any]]:
    """Return the curves of each run; long ones are thinned so that the page stays small."""
    columns = sum(len(run.history) for run in runs) or 1
    most = max(LEAST_POINTS, min(MOST_POINTS, MOST_NUMBERS // columns))
    return [
        {"name": name, "label": plotly_text(name), "rows": _rows(run), **_thinned(run, most)}
        for name, run in zip(run_names(runs), runs, strict=True)
    ]


def _rows(run: FoundRun) -> int:
    return len(run.history.get("step", ()))


def _thinned(run: FoundRun, most: int) -> dict[str, Any]:
    kept = kept_rows(run.history.get("loss") or run.history.get("step", []), most)
    series = {
        name: [plain(values[k]) for k in kept]
        for name, values in run.history.items()
        if any(value is not None for value in values)
    }
    return {"steps": series.pop("step", []), "series": series}


def kept_rows(values: Sequence[float | None], most: int) -> list[int]:
    """Choose at most `most` rows: the ends, and of each stretch the least and the largest value."""
    if len(values) <= most:
        return list(range(len(values)))
    stretches = (most - 2) // 2
    bounds = [1 + k * (len(values) - 2) // stretches for k in range(stretches + 1)]
    kept = {0, len(values) - 1}
    for first, end in pairwise(bounds):
        numbers = [k for k in range(first, end) if values[k] is not None]
        if numbers:
            kept |= {min(numbers, key=lambda k: values[k]), max(numbers, key=lambda k: values[k])}  # type: ignore[arg-type, return-value]
    return sorted(kept)


# --- bench ----------------------------------------------------------------------------------------

MOST_SAMPLES = 60  # of a row in the picture


class BenchCharts(NamedTuple):
    """The charts of the rows with one dtype, place and cache state."""

    name: str
    charts: list[Chart]


def bench_charts(each: FoundBench) -> list[BenchCharts]:
    """Return the charts of a bench, a group for each dtype, place and cache state."""
    groups: dict[str, list[int]] = {}
    for number, row in enumerate(each.rows):
        if row.median_s:
            groups.setdefault(f"{row.dtype}, {row.place}, {row.cache}", []).append(number)
    looks = {name: k for k, name in enumerate(dict.fromkeys(r.implementation for r in each.rows))}
    return [BenchCharts(name, _group(each, numbers, looks)) for name, numbers in groups.items()]


def _group(each: FoundBench, numbers: Sequence[int], looks: dict[str, int]) -> list[Chart]:
    rows = [each.rows[number] for number in numbers]
    samples = [each.samples_s[number] for number in numbers] if each.samples_s else []
    holding = [row for row in rows if row.share_holds]
    charts = [
        _throughput([row for row in rows if row.tensors == 1], looks),
        _dots(holding, "ceiling_fraction", "Share of the ceiling, with 95 % intervals", looks),
        _dots(rows, "speedup", "Speed-up over the unfused step, with 95 % intervals", looks),
        _samples(rows, samples, looks) if samples else None,
    ]
    return [chart for chart in charts if chart]


def _colour(k: int) -> str:
    return COLOURS[k % len(COLOURS)]


def _throughput(rows: Sequence[BenchRow], looks: dict[str, int]) -> Chart | None:
    """Plot the throughput by size, and the ceiling, where there are several sizes."""
    if len({row.elements for row in rows}) < 2:
        return None
    data = []
    for name in dict.fromkeys(row.implementation for row in rows):
        own = sorted((r for r in rows if r.implementation == name), key=lambda r: r.elements)
        data.append(_line(name, own, looks[name]))
    ceiling = {row.elements: row.ceiling_gigabytes_per_s for row in rows}
    xs = [x for x in sorted(ceiling) if ceiling[x]]
    data.append(
        {
            "name": "ceiling",
            "x": xs,
            "y": [plain(ceiling[x]) for x in xs],
            "mode": "lines",
            "line": {"color": CEILING, "dash": "dash", "width": 2},
        }
    )
    layout = {
        "xaxis": {"type": "log", "title": _title("elements of the tensor"), "dtick": 1},
        "yaxis": {"type": "log", "title": _title("GB/s")},
    }
    return Chart("Throughput by size, under the ceiling, with 95 % intervals", data, layout)


def _line(name: str, rows: Sequence[BenchRow], look: int) -> dict[str, Any]:
    speeds = [row.gigabytes_per_s or 0.0 for row in rows]
    return {
        "name": plotly_text(name),
        "x": [row.elements for row in rows],
        "mode": "lines+markers",
        "y": [plain(speed) for speed in speeds],
        "error_y": _errors(speeds, *zip(*map(_speeds, rows), strict=True)),
        "marker": _marker(look),
        "line": {"dash": DASHES[look // len(COLOURS) % len(DASHES)], "color": _colour(look)},
    }


def _speeds(row: BenchRow) -> tuple[float, float]:
    """Return the ends of the interval of a row's GB/s: a longer time is a lower speed."""
    speed, median = row.gigabytes_per_s or 0.0, row.median_s or 1.0
    low, high = row.ci_low_s or median, row.ci_high_s or median
    return speed * median / high, speed * median / low


def _lanes(rows: Sequence[BenchRow]) -> dict[str, Any]:
    """Return the axis that names a lane for each row, the first at the top."""
    names = [plotly_text(f"{row.workload}  {row.implementation}") for row in rows]
    return {
        "tickvals": list(range(len(rows))),
        "ticktext": names,
        "automargin": True,
        "range": [len(rows) - 0.5, -0.5],
        "showgrid": False,
        "zeroline": False,
    }


def _dots(rows: Sequence[BenchRow], name: str, title: str, looks: dict[str, int]) -> Chart | None:
    """Plot a ratio of each row with its interval, and the line at 1."""
    own = [row for row in rows if finite(getattr(row, name)) and _is_news(row, name)]
    if not own:
        return None
    values = [getattr(row, name) for row in own]
    data = [
        _dots_of([(lane, row) for lane, row in enumerate(own) if row.implementation == each], name)
        | {"name": plotly_text(each), "marker": _marker(looks[each])}
        for each in dict.fromkeys(row.implementation for row in own)
    ]
    line = {"type": "line", "x0": 1, "x1": 1, "yref": "paper", "y0": 0, "y1": 1}
    layout = {
        "yaxis": _lanes(own),
        "height": 110 + 22 * len(own),
        "showlegend": False,
        "xaxis": {"type": "log" if max(values) > 5 * min(values) else "linear"},
        "shapes": [line | {"line": {"color": CEILING, "dash": "dash", "width": 1.5}}],
    }
    return Chart(title, data, layout)


def _dots_of(lanes: Sequence[tuple[int, BenchRow]], name: str) -> dict[str, Any]:
    """Return the dots of an implementation, in their lanes."""
    values, lows, highs = (
        [getattr(row, name + end) or getattr(row, name) for _, row in lanes]
        for end in ("", "_low", "_high")
    )
    return {
        "x": [plain(x) for x in values],
        "y": [lane for lane, _ in lanes],
        "mode": "markers",
        "error_x": _errors(values, lows, highs),
    }


def _errors(
    values: Sequence[float], lows: Sequence[float], highs: Sequence[float]
) -> dict[str, Any]:
    """Return the error bars from values and the ends of their intervals."""
    return {
        "type": "data",
        "symmetric": False,
        "thickness": 1.3,
        "width": 4,
        "array": [plain(high - value) for value, high in zip(values, highs, strict=True)],
        "arrayminus": [plain(value - low) for value, low in zip(values, lows, strict=True)],
    }


def _marker(look: int) -> dict[str, Any]:
    return {"symbol": MARKS[look % len(MARKS)], "size": 8, "color": _colour(look)}


def _is_news(row: BenchRow, name: str) -> bool:
    """Leave out the speed-up of the unfused step over itself."""
    return name != "speedup" or (row.speedup, row.speedup_low, row.speedup_high) != (1, 1, 1)


def _samples(
    rows: Sequence[BenchRow], samples: Sequence[list[list[float]]], looks: dict[str, int]
) -> Chart | None:
    """Plot samples relative to the median of their row; a lane has its processes in their order."""
    xs: list[float | None] = []
    ys: list[float] = []
    colours: list[str] = []
    for lane, (row, processes) in enumerate(zip(rows, samples, strict=True)):
        values = [value for process in processes for value in process]
        every = max(1, math.ceil(len(values) / MOST_SAMPLES))
        kept = values[::every]
        xs += [plain(value / row.median_s) for value in kept if row.median_s]
        ys += [plain(lane - 0.35 + 0.7 * k / max(1, len(kept) - 1)) for k in range(len(kept))]
        colours += [_colour(looks[row.implementation])] * len(kept)
    if not xs:
        return None
    data = {
        "x": xs,
        "y": ys,
        "mode": "markers",
        "hoverinfo": "x",
        "marker": {"size": 4, "color": colours, "opacity": 0.7},
    }
    layout = {
        "yaxis": _lanes(rows),
        "height": 110 + 26 * len(rows),
        "showlegend": False,
        "xaxis": {"type": "log", "title": _title("time over the row's median")},
    }
    title = "Samples, relative to the median of their row; from top to bottom in their order"
    return Chart(title, [data], layout)


# --- sweep ----------------------------------------------------------------------------------------


def sweep_charts(each: FoundSweep) -> list[Chart]:
    """Plot the metric over each key that has numbers, with the intervals over the seeds."""
    document = each.document
    charts = []
    for key in document.keys:
        rows = [row for row in document.settings if _point(row, key, document.metric)]
        if len({row[key] for row in rows}) > 2:
            charts.append(_sweep_chart(rows, key, document.metric))
    return charts


def _point(row: dict[str, Any], key: str, metric: str) -> bool:
    """Tell whether a setting has a number for this key, and a finite median."""
    return finite(row.get(key)) is not None and finite(row.get(f"{metric}_median")) is not None


def _sweep_chart(rows: Iterable[dict[str, Any]], key: str, metric: str) -> Chart:
    points = sorted(
        (float(row[key]), *(_end(row, metric, each) for each in ("_median", "_low", "_high")))
        for row in rows
    )
    xs, medians, lows, highs = map(list, zip(*points, strict=True))
    dots = {
        "x": [plain(x) for x in xs],
        "y": [plain(y) for y in medians],
        "mode": "markers",
        "error_y": _errors(medians, lows, highs),
        "marker": {"size": 8, "color": COLOURS[0]},
    }
    layout = {
        "showlegend": False,
        "xaxis": {**_axis(xs), "title": _title(key)},
        "yaxis": {**_axis(medians), "title": _title(f"median {metric}")},
    }
    return Chart(f"{metric} over {key}, with intervals over the seeds", [dots], layout)


def _end(row: dict[str, Any], metric: str, end: str) -> float:
    value = finite(row.get(metric + end))
    return float(row[f"{metric}_median"]) if value is None else value


def _axis(values: Sequence[float]) -> dict[str, Any]:
    """Return a logarithmic axis for values that span more than a decade."""
    spread = min(values) > 0 and max(values) > 10 * min(values)
    return {"type": "log", "dtick": 1} if spread else {"type": "linear"}
