"""The page: findings first, all text escaped, nothing from outside, small enough."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from made_results import (
    FAILED,
    HOSTILE,
    bench_row,
    make_all,
    make_bench,
    make_comparison,
    make_run,
    make_sweep,
    make_verification,
    verify_row,
)

from adadelta_cli.report import charts, tables
from adadelta_cli.report.findings import Level, findings
from adadelta_cli.report.grid import heat_maps, verify_grid
from adadelta_cli.report.page import page
from adadelta_cli.report.read import read_folders


class Elements(HTMLParser):
    """The elements of a page, and the text of each script."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.scripts, self._in_script = [], [], False
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self._in_script = tag == "script"
        if self._in_script:
            self.scripts.append("")

    def handle_endtag(self, _tag):
        self._in_script = False

    def handle_data(self, data):
        if self._in_script:
            self.scripts[-1] += data

    @property
    def data(self):
        return json.loads(self.scripts[0])


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """A result of each command, with a hostile name."""
    folder = tmp_path_factory.mktemp("results")
    make_all(folder, HOSTILE)
    return read_folders([folder])


@pytest.fixture(scope="module")
def text(found):
    """The page."""
    return page(found)


def test_the_only_scripts_are_its_own(text):
    """A name of a user makes no element: neither in the page nor in the data."""
    elements = Elements(text)
    assert len(elements.scripts) == 3  # data, Plotly, page.js
    assert HOSTILE in elements.data["tables"]["runs"]["rows"][0]
    assert HOSTILE not in text
    assert elements.data["runs"][0]["label"] == HOSTILE.replace("<", "&lt;").replace(">", "&gt;")


def test_it_requests_nothing(text):
    """No element has an address outside, and the policy forbids all requests."""
    elements = Elements(text)
    for _tag, attributes in elements.tags:
        for name in ("src", "href", "action", "srcset", "data"):
            assert not re.match(r"(\w+:)?//", attributes.get(name) or "")
    (policy,) = (a["content"] for t, a in elements.tags if a.get("http-equiv"))
    assert "default-src 'none'" in policy
    assert "unsafe-inline" not in policy.partition("script-src")[2].partition(";")[0]


def test_what_was_found_comes_first(text):
    """A sentence for each command, before all else."""
    main = text[text.index("<main") :]
    assert (
        main.index("What was found")
        < main.index("1 of 31 comparisons")
        < main.index("<section id=")
    )
    order = ["verify-1", "runs", "sweep-1", "bench-1", "compare-1", "machine"]
    assert sorted(order, key=lambda name: text.index(f'<section id="{name}"')) == order


def test_every_link_leads_to_an_element(text):
    """Links are inside the page."""
    tags = Elements(text).tags
    ids = [attributes["id"] for _, attributes in tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    links = [a["href"] for tag, a in tags if tag == "a"]
    assert links and {link.removeprefix("#") for link in links} <= {*ids}
    labels = [a["aria-labelledby"] for _, a in tags if "aria-labelledby" in a]
    assert {*labels} <= {*ids}


def test_every_chart_has_a_text_and_a_table(text):
    """Beside the picture: a caption, and a link to the numbers."""
    figures = re.findall(r"<figure.*?</figure>", text, re.DOTALL)
    assert len(figures) > 5
    assert all("<figcaption" in each and '<a href="#' in each for each in figures)


LEVELS = {
    "a failed comparison": (
        lambda folder: make_verification(folder, [verify_row(), verify_row(1, **FAILED)]),
        (Level.BAD, "1 of 2 comparisons of 1 implementation failed; 3 of 2,000 numbers"),
    ),
    "all skipped": (
        lambda folder: make_verification(folder, [verify_row(passed=None, elements=0)]),
        (Level.DOUBTFUL, "Nothing was compared"),
    ),
    "all passed": (
        lambda folder: make_verification(folder, [verify_row()]),
        (Level.GOOD, "All 1 comparison of 1 implementation passed; 0 of 1,000 numbers"),
    ),
    "a run that diverged": (
        lambda folder: make_run(folder, outcome="diverged"),
        (Level.BAD, "Of 1 run, 1 diverged."),
    ),
    "an interrupted run": (
        lambda folder: make_run(folder, outcome="interrupted"),
        (Level.DOUBTFUL, "Of 1 run, 1 stopped before the end."),
    ),
    "a slower row": (make_comparison, (Level.BAD, "Of 2 rows: 1 SLOWER, 1 SAME.")),
    "an unclear row": (
        lambda folder: make_comparison(folder, ["UNCLEAR", "FASTER"]),
        (Level.DOUBTFUL, "Of 2 rows: 1 FASTER, 1 UNCLEAR."),
    ),
    "a sweep": (
        make_sweep,
        (Level.GOOD, "the best is optimizer.learning_rate=0.01, optimizer.rho=0.9: loss 0.009."),
    ),
    "a sweep with failed runs": (
        lambda folder: make_sweep(folder, 2),
        (Level.BAD, "optimizer.rho=0.9: loss 0.009; 2 runs failed."),
    ),
    "a bench": (
        lambda folder: make_bench(folder, [bench_row(1)]),
        (Level.GOOD, "1 row timed; largest share of the ceiling 0.90 (0.80 to 1.00), numpy-fused"),
    ),
    "a bench without a share that holds": (
        lambda folder: make_bench(folder, [bench_row(1, ceiling_fraction=7.61)]),
        (Level.GOOD, "1 row timed; largest speed-up"),
    ),
    "a wrong step": (
        lambda folder: make_bench(folder, [bench_row(), bench_row(1, note="wrong: 3 of 9")]),
        (Level.BAD, "1 step incorrect"),
    ),
}


@pytest.mark.parametrize(("make", "wanted"), LEVELS.values(), ids=LEVELS)
def test_findings(tmp_path, make, wanted):
    """Each has the level and the sentence of what happened."""
    make(tmp_path)
    (finding,) = findings(read_folders([tmp_path]))
    level, sentence = wanted
    assert finding.level is level
    assert sentence in finding.sentence


def test_settings_that_differ_are_told_apart(found):
    """The rate differs between the runs, rho does not."""
    settings = tables.compared_settings(found.runs)
    assert settings.differ == ["optimizer.learning_rate"]
    assert settings.shared["optimizer.rho"] == "0.9"
    table = tables.run_table(found.runs, settings)
    column = [each.name for each in table.columns].index("optimizer.learning_rate")
    assert table.columns[column].kind == "setting"
    assert [row[column] for row in table.rows] == [1.0, 0.5]


def test_runs_with_one_name_are_named_by_their_folders(tmp_path):
    """So that each can be told from the others."""
    make_run(tmp_path / "a")
    make_run(tmp_path / "b")
    runs = read_folders([tmp_path]).runs
    assert tables.run_names(runs) == [str(tmp_path / "a"), str(tmp_path / "b")]


def test_a_square_is_the_worst_of_its_tensors(tmp_path):
    """A failed tensor makes the square fail."""
    rows = [verify_row(0), verify_row(1, **FAILED), verify_row(2), verify_row(9, passed=None)]
    make_verification(tmp_path, rows)
    (each,) = read_folders([tmp_path]).verifications
    grid = verify_grid(each)
    assert grid.cases == ["case-0", "case-1"]
    ((name, squares),) = grid.lines
    assert name == ("numpy-fused", "synthetic steps", "float32")
    assert [(square.row, square.status) for square in squares] == [(1, "failed"), (3, "skipped")]


def test_a_heat_map_has_the_median_of_each_pair(found):
    """Keys in numeric order; the text can be read on its colour."""
    (heat,) = heat_maps(found.sweeps[0])
    assert heat.columns == ["0.9", "0.95"]
    assert [name for name, _ in heat.rows] == ["0.01", "0.1", "1.0"]
    cells = [cell for _, row in heat.rows for cell in row]
    assert cells[0].text == "0.009" and cells[0].color == "#fff"
    assert cells[-1].text == "0.95" and cells[-1].color == "#000"


def test_a_heat_map_takes_the_best_of_what_the_config_expects_at_least(tmp_path):
    """Of the seeds of a third key: the largest where a check has a least value, else the least."""
    make_sweep(tmp_path)
    path = tmp_path / "sweep.json"
    document = json.loads(path.read_text())
    document["keys"].append("third")
    settings = document["settings"]
    better = [row | {"third": 2, "loss_median": row["loss_median"] + 1} for row in settings]
    document["settings"] = [row | {"third": 1} for row in settings] + better
    path.write_text(json.dumps(document))
    assert heat_maps(read_folders([tmp_path]).sweeps[0])[0].rows[0][1][0].text == "0.009"
    settings[0]["checks"].append({"metric": "loss", "side": "min", "bound": 1, "got": 2})
    document["settings"][0] = settings[0] | {"third": 1}
    path.write_text(json.dumps(document))
    assert heat_maps(read_folders([tmp_path]).sweeps[0])[0].rows[0][1][0].text == "1.009"


def test_thinned_curves_keep_their_peaks():
    """The ends, the least and the largest value of each stretch."""
    values = [1.0] * 1000
    values[333], values[700] = 50.0, -50.0
    kept = charts.kept_rows(values, 20)
    assert len(kept) <= 20
    assert {0, 333, 700, 999} <= {*kept}
    assert charts.kept_rows([1.0, None, 2.0], 20) == [0, 1, 2]
    assert charts.kept_rows([None] * 100, 20) == [0, 99]


def test_the_bars_of_a_throughput_are_those_of_its_times(found):
    """The longest time is the lowest speed: 28 GB/s at the median, 28 / 1.2 at the upper end."""
    group = charts.bench_charts(found.benches[0])[0]
    assert group.name == "float32, 1 thread, warm"
    line = group.charts[0].data[0]
    assert line["y"][0] == 28.0
    assert line["error_y"]["arrayminus"][0] == pytest.approx(28 - 28 / 1.2, rel=1e-4)
    assert line["error_y"]["array"][0] == pytest.approx(28 / 0.9 - 28, rel=1e-4)


def test_numbers_that_json_lacks_are_texts_in_a_table():
    """A table has no NaN, which would make the data unreadable."""
    assert tables.plain(float("nan")) == "nan"
    assert tables.plain([1, 2]) == "[1, 2]"
    assert tables.plain(1 / 3) == 0.333333


def test_the_vendored_library_has_its_licence():
    """MIT: the notice goes with each copy; the page has it in the library's first lines."""
    static = Path(charts.__file__).with_name("static")
    assert "MIT" in (static / "plotly-LICENSE.txt").read_text()
    assert "Licensed under the MIT" in (static / "plotly-basic.min.js").read_text()[:300]
