"""The picture of a sweep: what it shows for one, two and more keys."""

from __future__ import annotations

import dataclasses
import math
from types import SimpleNamespace

import pytest
from small_sweeps import GRID, Failure, executed

from adadelta_cli.sweep import figures
from adadelta_cli.sweep.report import Report
from adadelta_cli.sweep.rows import SettingRow, Spread, Status
from adadelta_cli.sweep.store import Store


def drawn(tmp_path, *args, **request):
    """Draw the figure of a sweep; return its panels."""
    found, _ = executed(tmp_path, *args, **request)
    settings = Report(found).settings
    figure = figures.sweep_figure(found, settings, Store(tmp_path / "out" / "runs"))
    figure.canvas.draw()
    return [axes for axes in figure.axes if axes.get_label() != "<colorbar>"]


def test_two_keys_are_a_heat_map(tmp_path):
    """The first key runs down, the second to the right; each cell has its median."""
    heat, curves = drawn(tmp_path, seeds=3)
    assert (heat.get_ylabel(), heat.get_xlabel()) == ("optimizer.rho", "optimizer.epsilon")
    assert heat.images[0].get_array().shape == (2, 3)
    assert [each.get_text() for each in heat.get_xticklabels()] == ["1e-06", "0.0001", "0.01"]
    assert len(heat.texts) == 6
    assert curves.get_xlabel() == "step" and len(curves.lines) == 6
    assert len(curves.collections) == 6, "bands"


def test_a_cell_without_a_number_says_why(tmp_path):
    """Diverged, crashed and so on; the others keep their colours."""
    grid = ["optimizer.learning_rate=1,1e300", "optimizer.rho=0.9,0.99"]
    heat, curves = drawn(tmp_path, grid)
    assert [each.get_text() for each in heat.texts].count("diverged") == 2
    assert len(curves.lines) == 2


def test_a_setting_that_diverges_has_no_value(tmp_path):
    """Its accuracy may be finite; of two runs, one is half."""
    counts = {Status.FINISHED: 1, Status.DIVERGED: 1}
    row = SettingRow(0, {"a": 1}, 2, counts, 0.5, {"accuracy": Spread(0.9, 0.8, 1.0)}, ())
    assert math.isnan(figures._median(SimpleNamespace(metric="accuracy"), row))
    assert figures._reason(row) == "diverged"
    row = dataclasses.replace(row, counts={Status.FINISHED: 2, Status.DIVERGED: 1})
    assert figures._median(SimpleNamespace(metric="accuracy"), row) == 0.9
    axes, _ = drawn(tmp_path, ["optimizer.learning_rate=1,1e300"])
    assert axes.get_title() == "1 of 2 settings have no finite median, or diverged"


def test_an_outlier_leaves_colours_to_the_others():
    """The scale ends at a thousand times the least value."""
    norm, extend = figures._scale([0.1, 0.2, 1e12])
    assert (norm.vmin, norm.vmax, extend) == (0.1, 100.0, "max")
    norm, extend = figures._scale([-1.0, 1e12])
    assert (norm.vmin, norm.vmax, extend) == (-1.0, 1e12, "neither")


def test_one_key_is_a_line_with_a_band(tmp_path):
    """Over a logarithmic axis where its values are wide."""
    line, _curves = drawn(tmp_path, ["optimizer.epsilon=1e-2,1e-6,1e-4"], seeds=2)
    assert line.get_xscale() == "log" and line.get_xlabel() == "optimizer.epsilon"
    assert list(line.lines[0].get_xdata()) == [1e-6, 1e-4, 1e-2]
    assert len(line.collections) == 1


def test_texts_and_lists_have_places_of_their_own(tmp_path):
    """They are named on the axis."""
    text = "problem: {name: mlp, hidden: [3]}\ntraining: {steps: 2}\n"
    axes, _curves = drawn(tmp_path, ["problem.hidden=[4],[3,2]"], text=text)
    assert [each.get_text() for each in axes.get_xticklabels()] == ["[4]", "[3, 2]"]


@pytest.mark.parametrize("request_", [{"sample": 4}, {}])
def test_more_keys_have_a_panel_each(tmp_path, request_):
    """And so has a drawn setting."""
    grid = GRID if request_ else [*GRID, "problem.dimension=2,3"]
    panels = drawn(tmp_path, grid, **request_)
    keys = [axes.get_xlabel() for axes in panels if axes.get_xlabel()]
    assert keys == [*(each.partition("=")[0] for each in grid), "step"]


def test_seeds_alone_are_curves(tmp_path):
    """There is nothing to compare."""
    (curves,) = drawn(tmp_path, (), seeds=3)
    assert [each.get_text() for each in curves.get_legend().get_texts()] == ["all seeds"]


@pytest.mark.parametrize("grid", [GRID, GRID[:1], ()])
def test_nothing_finite_is_drawn_as_such(tmp_path, grid):
    """No panel fails."""
    panels = drawn(tmp_path, grid, failures={0: Failure.CRASHED, 1: Failure.CRASHED}, seeds=2)
    assert "no run has a finite result" in [text.get_text() for text in panels[-1].texts]
