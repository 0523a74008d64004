"""Several runs are compared in one plot and one table."""

from __future__ import annotations

import csv

import pytest
from short_runs import SETTINGS

from adadelta_cli.errors import UsageError
from adadelta_cli.implementations.array_backends import backend as array_library
from adadelta_cli.run import comparison
from adadelta_cli.run.comparison import variants
from adadelta_cli.run.training import runs


def test_variants_are_all_combinations():
    """The last key changes fastest; a label has the last part of each key."""
    found = variants(["optimizer.rho=0.9,0.95", "optimizer.epsilon=1e-6"])
    assert [each.label for each in found] == ["rho=0.9_epsilon=1e-06", "rho=0.95_epsilon=1e-06"]
    assert found[1].values == {"optimizer.rho": 0.95, "optimizer.epsilon": 1e-6}
    assert found[1].overrides == ["optimizer.rho=0.95", "optimizer.epsilon=1e-06"]


def test_values_are_yaml():
    """Texts, lists, mappings and null."""
    (text, lists, mapping, null) = variants(["a.b=relu,[8, 4],{name: adam},null"])
    assert [text.label, lists.label, null.label] == ["b=relu", "b=[8,4]", "b=null"]
    assert mapping.values == {"a.b": {"name": "adam"}}


def test_keys_with_one_end_are_told_apart():
    """By the whole key; a slash in a value makes no folder."""
    (found,) = variants(["a.name=x/y", "b.name=2"])
    assert found.label == "a.name=x_y_b.name=2"


def test_without_options_there_is_one_plain_run():
    """Whose name is that of its config."""
    assert variants([]) == [comparison.PLAIN]


WRONG = {
    "no value": (["optimizer.rho"], r"--vary optimizer\.rho: expected KEY=V1,V2"),
    "no key": (["=3"], r"expected KEY=V1,V2"),
    "half a key": (["optimizer.=3"], r"expected KEY=V1,V2"),
    "empty": (["optimizer.rho="], r"a value is missing"),
    "a comma at the end": (["optimizer.rho=0.9,"], r"a value is missing"),
    "no YAML": (["optimizer.rho=[0.9"], r"--vary optimizer\.rho=\[0\.9: invalid YAML"),
    "a value twice": (["optimizer.rho=0.9,0.90"], r"has 0\.9 twice; give each value once"),
    "a key twice": (["a.b=1", "a.b=2"], r"--vary a\.b is given twice; list all values in one"),
    "too many": (["a.b=" + ",".join(map(str, range(101)))], r"makes 101 runs; at most 100"),
}


@pytest.mark.parametrize(("options", "message"), WRONG.values(), ids=WRONG)
def test_a_wrong_option_is_refused(options, message):
    """By its own words."""
    with pytest.raises(UsageError, match=message):
        variants(options)


def made(tmp_path, references, vary):
    """Execute some short runs, and write their comparison."""
    overrides = [*SETTINGS["rosenbrock"], "expect={}"]
    found = runs(references, overrides, tmp_path, array_library("numpy"), vary=vary)
    results = [each.execute() for each in found]
    comparison.write(tmp_path, results, [each.variant for each in found])
    return results


def test_the_table_has_a_row_for_each_run(tmp_path):
    """With the values that vary and the metrics at the end."""
    vary = ["optimizer.rho=0.9,0.99", "training.steps=10,20"]
    results = made(tmp_path, ["rosenbrock"], vary)
    rows = list(csv.DictReader((tmp_path / "comparison.csv").read_text().splitlines()))
    assert [*rows[0]] == [
        *("config", "problem", "optimizer", "optimizer.rho", "training.steps", "outcome", "steps"),
        *("loss", "distance", "seconds"),
    ]
    assert rows[1]["config"] == "rosenbrock_rho=0.9_steps=20" == results[1].name
    assert [row["steps"] for row in rows] == ["10", "20", "10", "20"]
    assert float(rows[3]["loss"]) == results[3].history[-1].loss
    assert (tmp_path / rows[3]["config"] / "history.csv").exists()


def test_the_plot_has_a_curve_for_each_run(tmp_path):
    """In a panel for each metric, and one legend."""
    results = made(tmp_path, ["rosenbrock"], ["optimizer.name=adadelta,adam"])
    figure = comparison.comparison_figure(results)
    loss, distance = figure.axes
    assert len([line for line in loss.lines if len(line.get_xdata())]) == 2
    assert [text.get_text() for text in figure.legends[0].texts] == [
        "rosenbrock_name=adadelta",
        "rosenbrock_name=adam",
    ]
    assert distance.get_ylabel() == "distance to the minimum"


def test_a_wrong_value_is_refused_by_the_option(tmp_path):
    """Before anything runs."""
    with pytest.raises(UsageError, match=r"^--vary optimizer\.rho=2: optimizer\.rho is 2; allowed"):
        made(tmp_path, ["rosenbrock"], ["optimizer.rho=0.9,2"])
    assert not [*tmp_path.iterdir()]
