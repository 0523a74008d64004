"""The pictures of `bench` show all that was measured, and nothing hides anything else."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
from conftest import KERNEL_NAMES

from adadelta_cli.bench.figures import _throughput_errors, bench_figure, samples_figure, styles_of
from adadelta_cli.bench.results import BenchRow, Measurement
from adadelta_cli.files import write_plot
from adadelta_cli.implementations.registry import IMPLEMENTATIONS, YARDSTICKS

MACHINE = {
    "processor": "a processor",
    "cache_bytes": {"L1d": 32 << 10, "L2": 1 << 20, "L3": 64 << 20},
}
SIZES = {"1e4": 10**4, "1e6": 10**6, "1e8": 10**8}


def measured(name, workload="1e6", *, tensors=1, speedup=None, share=0.9, processes=3, **more):
    """Invent the row of a step whose share of a ceiling of 60 GB/s is known, and its samples."""
    elements = SIZES.get(workload, 3 * 10**7)
    median_s = elements * 28 / (60e9 * share)
    levels = median_s * np.linspace(0.99, 1.01, processes)
    samples_s = [list(level * np.linspace(0.98, 1.04, 20)) for level in levels]
    gains = dict(zip(("speedup", "speedup_low", "speedup_high"), _interval(speedup), strict=True))
    row = BenchRow(
        name,
        more.pop("backend", "numpy"),
        "cpu",
        more.pop("dtype", "float32"),
        workload,
        tensors,
        elements,
        more.pop("threads", 2),
        processes=processes,
        samples=20 * processes,
        median_s=median_s,
        ci_low_s=median_s * 0.99,
        ci_high_s=median_s * 1.01,
        gigabytes_per_s=60 * share,
        ceiling_gigabytes_per_s=60.0,
        ceiling_fraction=share,
        **gains,
        **more,
    )
    return Measurement(row, samples_s)


def _interval(value):
    if value is None or value == 1:
        return value, value, value
    return value, value * 0.95, value * 1.06


def untimed(name="kernel.py:step", note="wrong: weight differs"):
    """Invent the row of a step that is wrong."""
    return Measurement(BenchRow(name, "numpy", "cpu", "float32", "1e6", 1, 10**6, 2, note=note))


PAIR = [measured("numpy", share=0.05, speedup=1.0), measured("numpy-fused", speedup=14.0)]
TRAINED = [
    measured("mxnet-stock", "train:mlp", backend="mxnet", speedup=1.0),
    measured("mxnet-fused", "train:mlp", backend="mxnet", speedup=4.4),
]
for each in TRAINED:
    rates = ("gigabytes_per_s", "ceiling_gigabytes_per_s", "ceiling_fraction")
    TRAINED[TRAINED.index(each)] = replace(
        each, row=replace(each.row, **dict.fromkeys(rates), tensors=6)
    )
MANY = [
    measured(name, workload, tensors=tensors, share=share, speedup=speedup)
    for workload, tensors in (*((size, 1) for size in SIZES), ("resnet50", 161), ("gpt2", 148))
    for name, share, speedup in (
        ("numpy", 0.03, 1.0),
        ("numpy-fused", 0.95, 20.0),
        ("mxnet-stock", 0.02, 0.6),
        ("/home/me/kernels/kernel.py:step", 0.2, 3.0),
        ("torch-adam-fused", 0.93, 1.0),
        ("torch-compile", 0.94, 18.0),
    )
]


def panels(figure):
    """Return the panels by the beginning of their titles."""
    return {axes.get_title().split(":")[0]: axes for axes in figure.axes}


def lines(axes):
    """Return the lines with a label, by it."""
    return {line.get_label(): line for line in axes.get_lines() if line.get_label()[0] != "_"}


def texts(figure):
    """Return all that a figure says outside its axes' ticks and titles."""
    return [text.get_text() for text in figure.findobj(lambda each: hasattr(each, "get_text"))]


def test_each_implementation_has_a_look_of_its_own():
    """All that have a name, and three kernels of a user's, differ in colour and in marker."""
    names = [*IMPLEMENTATIONS, *YARDSTICKS, "a.py:step", "b.py:step", "c.py:step"]
    found = styles_of(measured(name).row for name in dict.fromkeys(names)).values()
    assert len({look.color for look in found}) == len({look.marker for look in found})
    assert len({look.color for look in found}) == len(found) >= 13


def test_the_looks_of_known_ones_do_not_depend_on_the_others():
    """So that two pictures can be laid side by side."""
    alone = styles_of([measured("optax").row])["optax"]
    assert styles_of(each.row for each in [*MANY, measured("optax")])["optax"] == alone


def test_a_kernel_is_named_without_its_folder_where_that_is_clear():
    """Two files of one name keep their folders."""
    names = ["/a/kernel.py:step", "/b/kernel.py:step", "/b/other.py:step"]
    labels = [look.label for look in styles_of(measured(name).row for name in names).values()]
    assert labels == ["/a/kernel.py:step", "/b/kernel.py:step", "other.py:step"]


def test_one_size_has_a_ceiling_that_shows():
    """The line of the ceiling is longer than a point."""
    ceiling = lines(panels(bench_figure(PAIR, MACHINE))["Throughput by size"])
    (line,) = [line for label, line in ceiling.items() if label.startswith("ceiling")]
    assert np.ptp(line.get_xdata()) > 10**5
    assert set(line.get_ydata()) == {60.0}


def test_the_axes_are_logarithmic_and_the_caches_marked():
    """At the sizes at which four arrays fill them: L2 of each thread, one L3."""
    axes = panels(bench_figure(MANY, MACHINE))["Throughput by size"]
    assert (axes.get_xscale(), axes.get_yscale()) == ("log", "log")
    marks = {text.get_text(): text.get_position()[0] for text in axes.texts}
    assert marks == {"L2": 2 * 2**20 / 16, "L3": 2**26 / 16}


def test_cold_rows_have_panels_of_their_own_and_no_caches():
    """What comes from memory whatever its size knows no cache."""
    cold = [replace(each, row=replace(each.row, cache="cold")) for each in MANY]
    figure = bench_figure([*MANY, *cold], MACHINE)
    throughput = [axes for axes in figure.axes if axes.get_title().startswith("Throughput")]
    assert [len(axes.texts) for axes in throughput] == [2, 0]
    titles = [part.get_suptitle() for part in figure.subfigs]
    assert titles == ["float32, 2 threads, warm caches", "float32, 2 threads, cold caches"]


def test_a_picture_says_what_computed_beside_it():
    """Else times beside busy processes would be read as those of a quiet machine."""
    busy = [replace(each, row=replace(each.row, busy=2)) for each in MANY]
    (part,) = bench_figure(busy, MACHINE).subfigs
    assert part.get_suptitle() == "float32, 2 threads beside 2 busy processes, warm caches"


def test_networks_stand_apart():
    """Their names are on an axis of their own, and no line joins them with the sizes."""
    found = panels(bench_figure(MANY, MACHINE))
    axes = found["All tensors of a network"]
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["resnet50", "gpt2"]
    assert axes.get_ylim() == found["Throughput by size"].get_ylim()
    assert all(
        len(line.get_xdata()) == 3
        for name, line in lines(found["Throughput by size"]).items()
        if name.endswith("fused")
    )


def test_a_speed_up_says_against_what():
    """A training's is against the stock optimizer, another's against its own unfused step."""
    unfused = measured("mxnet", backend="mxnet", speedup=1.0)
    stock = measured("mxnet-stock", backend="mxnet", speedup=0.6)
    axes = panels(bench_figure([*PAIR, unfused, stock, *TRAINED], MACHINE))["Speed-up"]
    assert [tick.get_text() for tick in axes.get_yticklabels()] == [
        "1e6  numpy-fused vs numpy",
        "1e6  mxnet-stock vs mxnet",
        "train:mlp  mxnet-fused vs mxnet-stock",
    ]


def test_bars_begin_at_once_as_fast_and_have_their_intervals():
    """A slower one goes to the left; each bar ends at its value, each whisker at its bound."""
    slower = measured("mxnet-stock", backend="mxnet", speedup=0.5)
    axes = panels(bench_figure([*PAIR, slower], MACHINE))["Speed-up"]
    bars = [sorted((bar.get_x(), bar.get_x() + bar.get_width())) for bar in axes.patches]
    assert bars == [[1.0, 14.0], [0.5, 1.0]]
    whiskers = [segment[:, 0] for segment in axes.collections[0].get_segments()]
    assert np.array(whiskers) == pytest.approx(np.array([[13.3, 14.84], [0.475, 0.53]]))
    assert [text.get_text() for text in axes.texts] == ["14", "0.5"]


def test_what_was_not_timed_is_named():
    """Otherwise the figure would look as if it had not been requested."""
    figure = bench_figure([*PAIR, untimed()], MACHINE)
    assert any("not timed: 1e6 kernel.py:step; " in text for text in texts(figure))
    shown = texts(bench_figure([untimed()], MACHINE))
    assert "nothing was timed" in shown
    assert any("not timed: 1e6 kernel.py:step" in text for text in shown)


@pytest.mark.parametrize("draw", [bench_figure, samples_figure])
def test_nothing_is_a_picture_too(draw):
    """Of no rows there is one sentence."""
    assert "nothing was measured" in texts(draw([], MACHINE))


@pytest.mark.parametrize(
    "measurements",
    [
        MANY,
        PAIR,
        PAIR[1:],
        TRAINED,
        [*PAIR, untimed()],
        [measured(name) for name in IMPLEMENTATIONS],
    ],
)
def test_nothing_lies_on_anything_else(measurements):
    """Panels with their titles and labels, the legend and the titles above keep apart."""
    figure = bench_figure(measurements, MACHINE)
    figure.draw_without_rendering()
    boxes = [axes.get_tightbbox() for axes in figure.axes]
    boxes += [legend.get_window_extent() for legend in figure.legends]
    boxes += [text.get_window_extent() for text in (figure._suptitle, figure.subfigs[0]._suptitle)]
    assert not [pair for pair in itertools.combinations(boxes, 2) if pair[0].overlaps(pair[1])]
    assert all(figure.bbox.padded(1).containsx(edge) for box in boxes for edge in (box.x0, box.x1))
    for axes in figure.axes:
        labels = [tick.get_window_extent() for tick in axes.get_yticklabels()]
        assert not any(one.overlaps(other) for one, other in itertools.pairwise(labels))
        marks = [text.get_window_extent() for text in axes.texts]
        assert not any(one.overlaps(axes.title.get_window_extent()) for one in marks)
        assert all(axes.bbox.x0 < one.x0 and one.x1 < axes.bbox.x1 for one in marks)


def dots(axes):
    """Return the places of the samples of each lane, from the top."""
    return [line.get_xydata() for line in axes.get_lines() if line.get_marker() == "."]


def test_every_sample_is_a_dot_in_the_lane_of_its_process():
    """In the order they were taken, relative to the row's median; no lane reaches into another."""
    row = PAIR[1]
    (axes,) = samples_figure([row], MACHINE).axes
    lanes = dots(axes)
    for lane, samples in zip(lanes, row.samples_s, strict=True):
        assert lane[:, 0] == pytest.approx(np.array(samples) / row.row.median_s)
        assert (np.diff(lane[:, 1]) > 0).all()
    assert all(one[-1, 1] < other[0, 1] for one, other in itertools.pairwise(lanes))


def test_samples_beyond_the_edge_are_counted():
    """Samples that would stretch the axis are given as numbers; all others are dots."""
    slow = replace(PAIR[1], samples_s=[[*PAIR[1].samples_s[0], 50 * PAIR[1].row.median_s]])
    (axes,) = samples_figure([*PAIR, slow], MACHINE).axes
    labels = [text.get_text() for text in axes.texts]
    assert ["21 samples\n1 beyond, to 50" in label for label in labels] == [False, False, True]
    assert sum(map(len, dots(axes))) == 60 + 60 + 20
    assert axes.get_xlim()[1] < 2


def test_a_row_without_samples_says_why():
    """Its place is kept, with its note."""
    (axes,) = samples_figure([*PAIR, untimed()], MACHINE).axes
    assert "not timed: wrong: weight differs" in [text.get_text() for text in axes.texts]
    assert [tick.get_text() for tick in axes.get_yticklabels()][-1] == "1e6  kernel.py:step"


def test_a_process_without_a_sample_has_no_lane():
    """A slow implementation may have had no turn in one."""
    (axes,) = samples_figure([replace(PAIR[1], samples_s=[[], [1e-3], [2e-3]])], MACHINE).axes
    assert len(dots(axes)) == 2


@pytest.mark.parametrize("measurements", [MANY, PAIR, [*PAIR, untimed()]])
def test_the_picture_of_samples_grows_with_its_rows(measurements):
    """No label lies on another, and the help not on the panel."""
    figure = samples_figure(measurements, MACHINE)
    figure.draw_without_rendering()
    (axes,) = figure.axes
    labels = [tick.get_window_extent() for tick in axes.get_yticklabels()]
    assert not any(one.overlaps(other) for one, other in itertools.pairwise(labels))
    (about,) = [text for text in figure.texts if text.get_text().startswith("a dot")]
    assert not about.get_window_extent().overlaps(axes.get_tightbbox())
    assert not about.get_window_extent().overlaps(axes.title.get_window_extent())


def test_a_picture_has_an_end():
    """However many rows there are, memory holds it."""
    rows = [replace(untimed(), row=replace(untimed().row, workload=str(k))) for k in range(400)]
    assert samples_figure(rows, MACHINE).get_size_inches()[1] == 150


def test_an_interval_of_one_sample_reaches_nowhere():
    """Rounded, its end may lie on the wrong side; the picture is drawn all the same."""
    for share in np.linspace(0.1, 0.9, 50):
        one = measured("numpy-fused", share=share, processes=1)
        row = replace(one.row, ci_low_s=one.row.median_s, ci_high_s=one.row.median_s)
        assert min(_throughput_errors(row)) >= 0
    bench_figure([replace(one, row=row)], MACHINE)


@pytest.mark.filterwarnings("ignore:constrained_layout not applied")  # of a very long name
@pytest.mark.parametrize("draw", [bench_figure, samples_figure])
@pytest.mark.parametrize("name", KERNEL_NAMES, ids=ascii)
def test_a_kernel_of_any_name_is_drawn(tmp_path, name, draw):
    """With a label in the legend; a `$` begins no formula."""
    drawn = [measured(name, speedup=2.0), measured("numpy", speedup=1), untimed(name, note=name)]
    figure = draw(drawn, MACHINE)
    write_plot(tmp_path / "bench.png", figure)
    assert (tmp_path / "bench.png").stat().st_size > 10_000
    if draw is bench_figure:
        labels = [text.get_text() for text in figure.legends[0].get_texts()]
        assert any(styles_of([drawn[0].row])[name].label == label for label in labels)
