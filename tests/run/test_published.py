"""The bundled configs of a paper can be run, and its numbers stand beside a sweep's."""

from __future__ import annotations

import csv
import itertools
import json
import re

import numpy as np
import pytest
from conftest import HERE
from short_runs import make_run, no_pictures  # noqa: F401 - a fixture

from adadelta_cli.errors import UsageError
from adadelta_cli.run import config, published
from adadelta_cli.run.problems import images
from adadelta_cli.run.problems.images import Images

PAPER = json.loads((HERE.parent / "configs" / "zeiler2012" / "published.json").read_text())
NAMES = [name for name in config.grouped() if name.startswith("zeiler2012/")]


@pytest.fixture
def pictures(monkeypatch):
    """Put a few small pictures in the place of MNIST."""
    rng = np.random.default_rng(0)
    pixels, labels = rng.random((300, 784), dtype=np.float32), np.arange(300) % 10
    found = Images(pixels, labels, pixels[:50], labels[:50], "small")
    monkeypatch.setattr(images, "load", lambda _data: found)


def test_the_configs_are_found_by_folder_and_name():
    """Neither a command without a config nor a folder alone takes them."""
    assert [f"zeiler2012/{each}" for each in ("figure1", "table1", "table2", "tanh")] == NAMES
    assert not {*config.shipped()} & {*NAMES}
    with pytest.raises(UsageError, match=r"zeiler2012 is a folder of configs; name one of zeiler2"):
        config.load_config("zeiler2012")
    with pytest.raises(UsageError, match=r"did you mean zeiler2012/table2"):
        config.load_config("zeiler2012/tabel2")


@pytest.mark.usefixtures("pictures")
@pytest.mark.parametrize("name", NAMES)
def test_a_config_is_the_papers_network(name, tmp_path):
    """784-500-300-10, mini-batches of 100; one run of the base settings trains."""
    settings = config.load_config(name, ["training.epochs=1"])
    made = make_run(tmp_path, settings)
    assert [*made.trainer.problem.start["weight2"].shape] == [500, 300]
    assert settings.training.batch_size == 100
    result = made.execute()
    assert result.steps == 3
    rows = list(csv.DictReader((tmp_path / "history.csv").read_text().splitlines()))
    assert [row["epoch"] for row in rows] == ["0", "1"]
    assert all(0 <= float(row["test_error"]) <= 100 for row in rows)


@pytest.mark.parametrize("name", NAMES)
def test_every_setting_of_a_sweep_is_valid(name):
    """Each combination of the grid makes a config; the metric is the test error."""
    sweep = config.load_config(name).sweep
    assert sweep.metric == "test_error"
    keys = [*sweep.grid]
    for values in itertools.product(*sweep.grid.values()):
        pairs = zip(keys, map(json.dumps, values), strict=True)
        loaded = config.load_config(name, [f"{key}={value}" for key, value in pairs])
        assert loaded.training.epochs in {6, 50}


@pytest.mark.parametrize("name", NAMES)
def test_a_config_says_what_it_is(name):
    """The command that sweeps it, the schema, the paper."""
    lines = (config.folder() / f"{name}.yaml").read_text().splitlines()
    assert lines[:2] == [
        "# adadelta sweep zeiler2012",
        "# yaml-language-server: $schema=../schema.json",
    ]
    assert "arXiv:1212.5701" in "\n".join(lines)


@pytest.mark.parametrize("name", PAPER["tables"])
def test_each_cell_is_a_setting_of_the_sweep(name):
    """The published tables have the grid of the config, no more and no less."""
    table = published.table_of(f"zeiler2012/{name}")
    grid = config.load_config(f"zeiler2012/{name}").sweep.grid
    assert [*grid] == [*table.keys]
    assert {each[:-1] for each in table.cells} == {*itertools.product(*grid.values())}


def summary(table, shift):
    """Make the summary of a sweep, whose medians are the published values and a shift."""
    return [
        {
            **dict(zip(table.keys, each, strict=False)),
            "runs": 3,
            "test_error_median": each[-1] + shift,
            "test_error_low": each[-1] + shift - 0.1,
            "test_error_high": each[-1] + shift + 0.1,
        }
        for each in table.cells
    ]


def test_results_are_put_beside_the_papers(tmp_path):
    """Cell by cell, with the difference; a row that the sweep lacks is left empty."""
    table = published.table_of("zeiler2012/table2")
    rows = published.beside(table, summary(table, 0.3)[:-1])
    assert [round(row.difference, 2) for row in rows[:-1]] == [0.3] * 11
    assert rows[-1].median is None and not rows[-1].reproduces(0.4)
    assert "11 of 12 within 0.4" in published.remark(table, rows)
    assert "from memory" in published.remark(table, rows)
    published.write(tmp_path, table, rows)
    written = list(csv.DictReader((tmp_path / "published.csv").read_text().splitlines()))
    assert written[0] | {"median": "", "low": "", "high": "", "difference": ""} == {
        "optimizer.rho": "0.9", "optimizer.epsilon": "0.01", "published": "2.59", "median": "",
        "low": "", "high": "", "runs": "3", "difference": "", "reproduced": "true",
    }  # fmt: skip
    page = (tmp_path / "published.md").read_text()
    assert "| 0.9 | 0.01 | 2.59 | 2.89 | 2.79 to 2.99 | 3 | +0.30 | yes |" in page
    assert "| 0.99 | 1e-08 | 2.00 | none |  | 0 |  | no |" in page


def test_what_is_far_off_or_diverged_is_not_reproduced():
    """An infinite median is no number."""
    table = published.table_of("zeiler2012/tanh")
    (far,) = published.beside(table, summary(table, 0.5))
    assert not far.reproduces(table.tolerance)
    (lost,) = published.beside(table, summary(table, np.inf))
    assert lost.median is None
    assert published.terminal_table(table, [far, lost]).row_count == 2


@pytest.mark.parametrize("name", ["mlp", "zeiler2012/figure1"])
def test_other_configs_have_no_published_table(name):
    """Nothing is printed beside their results."""
    assert published.table_of(name) is None


def test_the_page_says_that_the_numbers_were_not_checked():
    """As the data file does."""
    page = (HERE.parent / "docs" / "paper.md").read_text()
    assert PAPER["checked"] is False
    assert re.search(r"not (been )?compared with\s+the paper's text", page)
