"""Several runs side by side: one plot with all curves, and one table."""

from __future__ import annotations

import itertools
import json
import math
from typing import TYPE_CHECKING, Any, NamedTuple

from adadelta_cli.errors import UsageError, shortened
from adadelta_cli.files import plottable, write_csv, write_plot
from adadelta_cli.run import key_values
from adadelta_cli.run.report import COMPARISON, LARGEST_DRAWN, SHARES

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from adadelta_cli.run.result import RunResult

MOST_RUNS = 100  # of a command: a curve each
COLORS = 10  # of Matplotlib's cycle; then the next style of lines
STYLES = ("-", "--", ":", "-.")
LONGEST_LABEL = 60


class Variant(NamedTuple):
    """One combination of the values of `--vary`.

    Attributes:
        label: the values, for the name of the run; empty without any.
        values: by dotted key.
    """

    label: str
    values: dict[str, Any]

    @property
    def overrides(self) -> list[str]:
        """The values as `config.load_config` takes them; JSON is YAML."""
        return [f"{key}={json.dumps(value)}" for key, value in self.values.items()]


PLAIN = Variant("", {})


def variants(options: Sequence[str], runs: int = 1) -> list[Variant]:
    """Return all combinations of some `KEY=V1,V2`, the last one changing fastest.

    Args:
        options: as `--vary` takes them; the values are in YAML.
        runs: how many configs each of them is for.

    Raises:
        UsageError: one has another form or no value, a key or a value occurs twice, or there are
            too many runs.
    """
    axes: dict[str, list[Any]] = {}
    for option in options:
        key, values = _axis(option)
        if key in axes:
            raise UsageError(f"--vary {key} is given twice; list all values in one: {key}=V1,V2")
        axes[key] = values
    number = runs * math.prod(map(len, axes.values()))
    if number > MOST_RUNS:
        raise UsageError(
            f"--vary makes {number:,} runs; at most {MOST_RUNS} are compared in one plot: leave "
            "out values"
        )
    short = [key.rpartition(".")[2] for key in axes]
    names = short if len({*short}) == len(short) else [*axes]
    combined = itertools.product(*axes.values())
    return [
        Variant(
            "_".join(f"{name}={_text(each)}" for name, each in zip(names, values, strict=True)),
            dict(zip(axes, values, strict=True)),
        )
        for values in combined
    ]


def _axis(option: str) -> tuple[str, list[Any]]:
    where = f"--vary {shortened(option)}"
    key, text = key_values.split_key(where, option)
    values = key_values.listed(where, text)
    key_values.check_distinct(where, key, values)
    return key, values


def _text(value: Any) -> str:
    """Write a value for a name, which is that of a folder, too."""
    text = value if isinstance(value, str) else json.dumps(value)
    return text.replace("/", "_").replace(" ", "")


def write(folder: Path, results: Sequence[RunResult], variants: Sequence[Variant]) -> None:
    """Write comparison.png and comparison.csv of several runs.

    Args:
        folder: where they go.
        results: the runs.
        variants: of each run the values that vary.
    """
    metrics = list(dict.fromkeys(name for result in results for name in result.labels))
    keys = list(dict.fromkeys(key for each in variants for key in each.values))
    rows = [
        _row(result, each, keys, metrics) for result, each in zip(results, variants, strict=True)
    ]
    write_csv(folder / COMPARISON[1], rows)
    write_plot(folder / COMPARISON[0], comparison_figure(results))


def _row(
    result: RunResult, variant: Variant, keys: Sequence[str], metrics: Sequence[str]
) -> dict[str, Any]:
    end = result.history[-1].cells
    return {
        "config": result.name,
        "problem": result.problem,
        "optimizer": result.optimizer,
        **{key: _text(variant.values[key]) if key in variant.values else None for key in keys},
        "outcome": result.outcome.value,
        "steps": result.steps,
        **{name: end.get(name) for name in metrics},
        "seconds": result.seconds,
    }


def comparison_figure(results: Sequence[RunResult]) -> Figure:
    """Plot each metric over the steps, with a curve for each run that has it."""
    from matplotlib.figure import Figure

    labels = _labels(results)
    entries = math.ceil(len(results) / 2)
    size = (9, 2.6 * len(labels) + 0.6 + 0.24 * entries)
    figure = Figure(figsize=size, layout="constrained")
    panels = figure.subplots(len(labels), squeeze=False)[:, 0]
    for panel, (metric, label) in zip(panels, labels.items(), strict=True):
        _draw(panel, results, metric)
        panel.set_ylabel(label.replace(" (", "\n("))
        panel.grid(alpha=0.3)
        panel.margins(x=0.01)
        panel.set_xlabel("step" if metric == [*labels][-1] else "")
    names = [plottable(shortened(result.name, LONGEST_LABEL)) for result in results]
    handles = [panels[0].plot([], [], label=name, **_style(k))[0] for k, name in enumerate(names)]
    figure.legend(handles=handles, loc="outside lower center", ncols=2, frameon=False)
    figure.suptitle(f"adadelta run: {len(results)} runs")
    return figure


def _labels(results: Sequence[RunResult]) -> dict[str, str]:
    """Return the label of each metric: what is in brackets is left out where problems differ."""
    found: dict[str, list[str]] = {}
    for result in results:
        for name, text in result.labels.items():
            found.setdefault(name, []).append(text)
    return {
        name: texts[0] if len({*texts}) == 1 else texts[0].partition(" (")[0]
        for name, texts in found.items()
    }


def _style(number: int) -> dict[str, Any]:
    style = STYLES[number // COLORS % len(STYLES)]
    return {"color": f"C{number % COLORS}", "linestyle": style}


def _draw(panel: Axes, results: Sequence[RunResult], metric: str) -> None:
    drawn = []
    for number, result in enumerate(results):
        if metric not in result.labels:
            continue
        cells = [row.cells for row in result.history]
        values = [row[metric] if abs(row[metric]) < LARGEST_DRAWN else math.nan for row in cells]
        panel.plot([row["step"] for row in cells], values, linewidth=1.2, **_style(number))
        drawn += [value for value in values if math.isfinite(value)]
    spread = drawn and min(drawn) > 1 / LARGEST_DRAWN and max(drawn) > 10 * min(drawn)
    if spread and metric not in SHARES:
        panel.set_yscale("log")
