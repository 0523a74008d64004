"""Problems of the user's own train like built-in ones, and a wrong one is refused with its line."""

from __future__ import annotations

import json
import re
import textwrap

import pytest
from conftest import HERE, needs_mxnet
from short_runs import interrupt, make_run, no_pictures  # noqa: F401 - a fixture

from adadelta_cli.errors import UnavailableError, UsageError
from adadelta_cli.implementations.array_backends import backend as array_library
from adadelta_cli.run import config
from adadelta_cli.run.result import RunOutcome

EXAMPLES = HERE.parent / "examples"
BOWL = """
import numpy as np
from adadelta_cli import Problem


class Bowl(Problem):
    def __init__(self, width=1.0, *, seed=0):
        self.width = width
        self.start = {"x": np.full(3, 2.0 + seed), "y": np.ones((2, 2))}

    def loss(self, xp, weights):
        return sum((w**2).sum() for w in weights) / self.width

    def gradient(self, xp, weights):
        return [2 * w / self.width for w in weights]

    def measure(self, weights):
        return {"radius": np.abs(weights[0]).max()}
"""


@pytest.fixture
def load(tmp_path):
    """Write a file with a problem and a config that names it; load the config."""

    def load(source=BOWL, *overrides, name="Bowl", settings=""):
        (tmp_path / "own.py").write_text(textwrap.dedent(source))
        path = tmp_path / "own.yaml"
        path.write_text(
            f"problem: {{python: own.py:{name}{settings}}}\ntraining: {{steps: 20, "
            "record_every: 5}\n"
        )
        return config.load_config(str(path), overrides)

    return load


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16"])
def test_a_problem_of_the_users_own_trains(tmp_path, load, backend, dtype):
    """On each library; its metrics are columns, and may be expected."""
    settings = load(BOWL, "expect.max_radius=2", "expect.max_loss=31.9", settings=", width: 0.5")
    made = make_run(tmp_path / "out", settings, backend, dtype=dtype)
    result = made.execute()
    assert result.outcome is RunOutcome.PASSED
    assert result.problem == "Bowl"
    rows = (tmp_path / "out" / "history.csv").read_text().splitlines()
    assert rows[0] == "step,epoch,loss,grad_norm,update_norm,radius"
    assert rows[1] == "0,0,32.0,,,2.0"
    again = config.load_config(str(tmp_path / "out" / "config.yaml"))
    assert again == settings
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["problem"] == "Bowl"


def test_it_gets_the_seed(tmp_path, load):
    """Where its constructor takes one."""
    made = make_run(tmp_path / "out", load(), seed=3)
    assert made.trainer.problem.start["x"].tolist() == [5, 5, 5]


def test_a_stopped_run_goes_on_unless_the_file_changed(tmp_path, load):
    """The file's content is part of what identifies a run."""
    interrupt(make_run(tmp_path / "out", load()), 10)
    assert make_run(tmp_path / "out", load(), resume=True).trainer.step == 10
    with pytest.raises(UsageError, match="sha256 of the data was"):
        make_run(tmp_path / "out", load(BOWL + "\n# another\n"), resume=True)


def test_the_example_trains(tmp_path, backend):
    """As docs/own-problems.md shows it."""
    settings = config.load_config(str(EXAMPLES / "own_problem.yaml"))
    assert make_run(tmp_path, settings, backend).execute().outcome is RunOutcome.PASSED


@needs_mxnet
def test_mxnet_needs_no_gradient(tmp_path, load):
    """And takes the same steps as the formulas."""
    plain = BOWL.replace("def gradient", "def unused")
    ends = [
        make_run(tmp_path / name, load(source), array_library(name), dtype="float64").execute()
        for name, source in (("numpy", BOWL), ("mxnet", plain))
    ]
    losses = [result.history[-1].loss for result in ends]
    assert losses[0] == pytest.approx(losses[1], rel=1e-12)


INTEGERS = """
import numpy as np
from adadelta_cli import Problem


class Softmax(Problem):
    def __init__(self):
        rng = np.random.default_rng(0)
        self.data = (rng.normal(size=(30, 4)).astype(np.float32), np.arange(30) % 3)
        self.start = {"w": np.zeros((4, 3))}

    def gradient(self, xp, weights, x, labels):
        assert labels.dtype.kind == "i", labels.dtype
        assert x.dtype == weights[0].dtype, x.dtype
        p = np.exp(x @ weights[0])
        p /= p.sum(axis=1, keepdims=True)
        p[np.arange(len(labels)), labels] -= 1
        return [x.T @ p / len(x)]

    def loss(self, xp, weights, x, labels):
        z = x @ weights[0]
        return (np.log(np.exp(z).sum(axis=1)) - z[np.arange(len(labels)), labels]).mean()
"""


def test_integers_of_the_data_stay_integers(tmp_path, load):
    """Labels index; floats have the dtype of the weights."""
    settings = load(INTEGERS, "training.batch_size=7", name="Softmax")
    result = make_run(tmp_path / "out", settings, dtype="float64").execute()
    assert result.history[-1].loss < result.history[0].loss
    assert result.history[-1].epoch == 4


def bowl(old, new):
    """Change the source of the problem that is right."""
    assert old in BOWL
    return BOWL.replace(old, new)


RADIUS = 'return {"radius": np.abs(weights[0]).max()}'
START = 'self.start = {"x": np.full(3, 2.0 + seed), "y": np.ones((2, 2))}'
GRADIENT = "return [2 * w / self.width for w in weights]"
LOSS = "return sum((w**2).sum() for w in weights) / self.width"
WRONG = {  # the source, the line, what the message says
    "no loss": (bowl("def loss", "def lost"), 6, r"Bowl has no loss; define loss\(self, xp, wei"),
    "no gradient": (bowl("def gradient", "def grad"), 6, r"no gradient, .*MXNet.*define gradient"),
    "no subclass": (bowl("(Problem)", ""), 6, r"Bowl is no subclass of adadelta_cli\.Problem"),
    "another name": (bowl("class Bowl", "class Bow"), 1, r"no Bowl \(did you mean Bow\?\); its pr"),
    "a function": ("def Bowl(): pass", 1, r"Bowl is <function.*; it defines no problem"),
    "a syntax error": (bowl("def loss(self", "def loss(self,,"), 11, r"importing it raised Synta"),
    "an import that raises": (bowl("import numpy", "1 / 0\nimport numpy"), 2, r"ZeroDivisionError"),
    "an exit": (bowl("import numpy", "raise SystemExit(3)\nimport numpy"), 2, r"raised SystemExit"),
    "a constructor that raises": (bowl("= width\n", "= width / 0\n"), 8, r"__init__ raised ZeroDi"),
    "no start": (bowl(START, "pass"), 6, r"there is no start; set self\.start"),
    "an empty start": (bowl(START, "self.start = {}"), 6, r"start is \{\}; expected a dict"),
    "a list as start": (bowl(START, "self.start = [1]"), 6, r"start is \[1\]; expected a dict"),
    "a start of texts": (bowl("np.full(3, 2.0 + seed)", "'abc'"), 6, r"start\['x'\] is 'abc'; exp"),
    "a NaN in start": (bowl("2.0 + seed", "np.nan"), 6, r"start\['x'\] is .*; expected .* finite"),
    "ragged start": (
        bowl("np.full(3, 2.0 + seed)", "[[1], [1, 2]]"),
        6,
        r"start\['x'\] is \[\[1\]",
    ),
    "a loss that raises": (bowl(LOSS, "return weights[7]"), 12, r"loss raised IndexError: list in"),
    "a loss of vectors": (
        bowl(LOSS, "return weights[0]"),
        6,
        r"loss returned is an array of shape",
    ),
    "no number": (bowl(LOSS, "return None"), 6, r"what loss returned is None; expected one number"),
    "a text": (bowl(LOSS, "return '3'"), 6, r"what loss returned is '3'; expected one number"),
    "a NaN": (bowl(LOSS, "return np.nan"), 6, r"the loss at the start is nan; expected"),
    "few arguments": (
        bowl("def loss(self, xp, weights)", "def loss(self, xp)"),
        6,
        r"raised TypeE",
    ),
    "a loss that writes": (bowl(LOSS, "weights[0][0] = 1"), 12, r"ValueError: .*read-only"),
    "a metric that raises": (bowl(RADIUS, "return {'a': 1 / 0}"), 18, r"measure raised ZeroDivis"),
    "a metric of text": (
        bowl(RADIUS, "return {'a': 'b'}"),
        6,
        r"the metric a is 'b'; expected one",
    ),
    "a list of metrics": (
        bowl(RADIUS, "return [1]"),
        6,
        r"measure returned is \[1\]; expected a di",
    ),
    "a column of run": (bowl(RADIUS, "return {'step': 1}"), 6, r"a metric step, .*; rename it"),
    "a label too many": (
        bowl("class Bowl(Problem):\n", "class Bowl(Problem):\n    metrics = {'b': 'c'}\n"),
        6,
        r"metrics is \{'b': 'c'\}; expected .* loss, radius",
    ),
    "data of texts": (
        bowl(START, f"{START}; self.data = (['a'],)"),
        6,
        r"data is .*; expected a tup",
    ),
    "data of two lengths": (
        bowl(START, f"{START}; self.data = (np.ones(3), np.ones(4))"),
        6,
        r"3, 4 samples; expected",
    ),
    "no samples": (
        bowl(START, f"{START}; self.data = (np.ones(0),)"),
        6,
        r"have 0 samples; expect",
    ),
    "an array as data": (bowl(START, f"{START}; self.data = np.ones(3)"), 6, r"data is array"),
    "an optimum of text": (
        bowl(START, f"{START}; self.optimum = 'a'"),
        6,
        r"optimum is 'a'; expect",
    ),
}


@pytest.mark.parametrize("case", WRONG.values(), ids=WRONG)
def test_a_wrong_problem_is_refused_with_its_line(tmp_path, load, case):
    """Before anything is written."""
    source, line, message = case
    with pytest.raises(UsageError, match=message) as caught:
        make_run(tmp_path / "out", load(source)).execute()
    place = rf"{tmp_path}/own\.py(:Bowl)?, line {line}: "
    assert re.match(place, str(caught.value)), caught.value
    assert not (tmp_path / "out").exists()


LATE = {  # what goes wrong in a step only
    "an exception": (bowl(GRADIENT, "return [weights[9]]"), 15, r"gradient raised IndexError"),
    "another shape": (bowl(GRADIENT, "return [weights[0], weights[0]]"), 6, r"\(3,\)\]; expected"),
    "too few": (bowl(GRADIENT, "return [weights[0]]"), 6, r"has the shapes \[\(3,\)\]; expected"),
    "numbers": (bowl(GRADIENT, "return [1.0, 2.0]"), 6, r"has the shapes \[\(\), \(\)\]; exp"),
    "nothing": (bowl(GRADIENT, "pass"), 6, r"what gradient returned is None; expected a list"),
    "other metrics": (
        bowl(RADIUS, 'return {"radius" if weights[1][0, 0] == 1 else "r": 1.0}'),
        6,
        r"measure returned r, and before radius",
    ),
}


@pytest.mark.parametrize("case", LATE.values(), ids=LATE)
def test_what_goes_wrong_in_a_step_is_told_likewise(tmp_path, load, case):
    """The rows before it are written."""
    source, line, message = case
    with pytest.raises(UsageError, match=message) as caught:
        make_run(tmp_path / "out", load(source)).execute()
    assert str(caught.value).startswith(f"{tmp_path}/own.py, line {line}: ")
    assert len((tmp_path / "out" / "history.csv").read_text().splitlines()) == 2


@needs_mxnet
@pytest.mark.parametrize(
    ("loss", "message"),
    [
        ("return 3.0", r"what loss returned is 3\.0; expected an array with one number, computed"),
        ("return weights[0]", r"is an array of shape \[3\]; expected an array with one number"),
        ("return xp.array(3.0)", r"the gradient of loss raised"),
        ("return xp.nonesuch(weights[0])", r"line 12: loss raised AttributeError"),
    ],
)
def test_what_mxnet_cannot_differentiate_is_refused(tmp_path, load, loss, message):
    """The loss is to be computed from MXNet's arrays."""
    source = bowl(LOSS, f"if xp is not np:\n            {loss}\n        {LOSS}")
    message = message.replace("line 12", "line 13")
    with pytest.raises(UsageError, match=message):
        make_run(tmp_path / "out", load(source), array_library("mxnet")).execute()


SETTINGS = {
    "unknown": (", wide: 3", r"line 6: problem\.wide is unknown \(did you mean width\?\); Bowl ta"),
    "the seed": (", seed: 3", r"problem\.seed comes from the option --seed; leave it out"),
    "another problem's": (", dimension: 3", r"problem\.dimension is unknown; Bowl takes width"),
}


@pytest.mark.parametrize(("settings", "message"), SETTINGS.values(), ids=SETTINGS)
def test_a_setting_that_the_class_does_not_take_is_refused(tmp_path, load, settings, message):
    """The message lists those that it takes."""
    with pytest.raises(UsageError, match=message):
        make_run(tmp_path / "out", load(BOWL, settings=settings))


def test_a_setting_that_is_missing_is_named(tmp_path, load):
    """Where the class has no default."""
    with pytest.raises(UsageError, match=r"problem\.width is missing; Bowl needs it"):
        make_run(tmp_path / "out", load(bowl("width=1.0", "width")))


CONFIGS = {
    "no name": (["problem={python: own.py}"], r"python is '.*own\.py'; allowed: FILE\.py:NAME"),
    "no text": (["problem={python: 3}"], r"problem\.python is 3; allowed: FILE\.py:NAME"),
    "both": (["problem={python: own.py:Bowl, name: mlp}"], r"problem\.python is unknown"),
    "another name": (["problem.name=own"], r"name is 'own'; .* or problem\.python: FILE\.py:NAME"),
    "a bound of nothing": (["expect.max_x=3"], r"max_x is 3\.0, but Bowl reports loss, radius; re"),
    "a bound that is none": (
        ["expect.radius=3"],
        r"expect\.radius is unknown.*; allowed: max_loss",
    ),
    "a bound of text": (["expect.max_radius=small"], r"expect\.max_radius is 'small'"),
    "epochs without data": (
        ["training={epochs: 1}"],
        r"training\.epochs is 1, but Bowl has no data; use training\.ste",
    ),
}


@pytest.mark.parametrize(("overrides", "message"), CONFIGS.values(), ids=CONFIGS)
def test_a_config_that_does_not_suit_it_is_refused(tmp_path, load, overrides, message):
    """Some of it is known only once the problem is made."""
    with pytest.raises(UsageError, match=message):
        make_run(tmp_path / "out", load(BOWL, *overrides))


def test_a_file_that_is_missing_is_named(tmp_path, load):
    """With the place where it was looked for."""
    with pytest.raises(UsageError, match=rf"{tmp_path}/gone\.py:Bowl, .*cannot be read: No such"):
        make_run(tmp_path / "out", load(BOWL, f"problem.python={tmp_path}/gone.py:Bowl"))


def test_a_library_that_is_missing_is_no_wrong_config(tmp_path, load):
    """Its exit code is another one."""
    with pytest.raises(UnavailableError, match=r"own\.py, line 1: importing it raised ModuleNotF"):
        make_run(tmp_path / "out", load("import nonesuch" + BOWL))
