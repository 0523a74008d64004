"""What a sweep runs, and what is refused before anything runs."""

from __future__ import annotations

import json
import re

import pytest
from small_sweeps import GRID, HOW, TEXT, plan

from adadelta_cli.errors import UsageError
from adadelta_cli.implementations.array_backends import CPU, Device
from adadelta_cli.run import config
from adadelta_cli.sweep import plan as plans
from adadelta_cli.sweep.plan import Plan, Request


def texts(found):
    """Return the settings of a plan, in order."""
    return [each.text for each in found.settings]


def test_all_combinations_run_with_all_seeds(tmp_path):
    """The last key changes fastest, then the seed."""
    found = plan(tmp_path, seeds=2, seed=5)
    assert found.keys == ("optimizer.rho", "optimizer.epsilon")
    assert texts(found)[:4] == [
        "optimizer.rho=0.9, optimizer.epsilon=1e-06",
        "optimizer.rho=0.9, optimizer.epsilon=0.0001",
        "optimizer.rho=0.9, optimizer.epsilon=0.01",
        "optimizer.rho=0.99, optimizer.epsilon=1e-06",
    ]
    jobs = found.jobs("numpy", CPU)
    assert [(job.config.optimizer.rho, job.seed) for job in jobs[:3]] == [
        (0.9, 5),
        (0.9, 6),
        (0.9, 5),
    ]
    assert len(jobs) == 12


def test_the_section_says_the_same_as_the_options(tmp_path):
    """An option replaces the section's values of its key, and its numbers."""
    grid = "optimizer.rho: [0.9, 0.99], optimizer.wd: [0, 0.1]"
    section = f"sweep: {{grid: {{{grid}}}, seeds: 3, metric: distance}}\n"
    found = plan(tmp_path, (), TEXT + section)
    assert len(found.settings) == 4 and found.seeds == (0, 1, 2) and found.metric == "distance"
    other = plan(tmp_path, ["optimizer.rho=0.5"], TEXT + section, seeds=1, metric="loss")
    assert texts(other) == [
        "optimizer.rho=0.5, optimizer.wd=0.0",
        "optimizer.rho=0.5, optimizer.wd=0.1",
    ]
    assert other.seeds == (0,) and other.metric == "loss"


def test_a_whole_section_may_vary(tmp_path):
    """Its values are what was given; the same with a default written out is the same setting."""
    each = "{name: adadelta, rho: 0.95}", "{name: sgd, learning_rate: 1}"
    section = "sweep: {{grid: {{optimizer: [{}]}}}}\n"
    found = plan(tmp_path, (), TEXT + section.format(", ".join(each)))
    assert [setting.values["optimizer"] for setting in found.settings] == [
        {"name": "adadelta", "rho": 0.95},
        {"name": "sgd", "learning_rate": 1.0},
    ]
    assert [setting.config.optimizer.name for setting in found.settings] == ["adadelta", "sgd"]
    same = "{name: adadelta, rho: 0.95}", "{name: adadelta, rho: 0.95, wd: 0}"
    with pytest.raises(UsageError, match="two settings are optimizer="):
        plan(tmp_path, (), TEXT + section.format(", ".join(same)))


def test_a_section_may_hold_what_the_config_lacks(tmp_path):
    """A config may be valid with the values of its axes only."""
    text = "problem: {name: rosenbrock}\ntraining: {}\nsweep: {grid: {training.steps: [3, 4]}}\n"
    assert texts(plan(tmp_path, (), text)) == ["training.steps=3", "training.steps=4"]


def test_a_range_is_drawn_from(tmp_path):
    """With a list beside it: a value of each."""
    grid = ["optimizer.epsilon=log:1e-8:1e-2", "optimizer.rho=0.9,0.99"]
    found = plan(tmp_path, grid, sample=10)
    assert len(found.settings) == 10
    assert {each.values["optimizer.rho"] for each in found.settings} == {0.9, 0.99}
    own = "optimizer.epsilon: 'log:1e-8:1e-2', optimizer.rho: [0.9, 0.99]"
    section = f"sweep: {{grid: {{{own}}}, sample: 10}}\n"
    assert texts(plan(tmp_path, (), TEXT + section)) == texts(found)


def test_a_sample_of_a_grid_is_a_part_of_it(tmp_path):
    """A sample of all is the grid, in its order."""
    everything = texts(plan(tmp_path))
    assert set(texts(plan(tmp_path, sample=4))) < set(everything)
    assert texts(plan(tmp_path, sample=6)) == texts(plan(tmp_path, sample=99)) == everything


def test_seeds_alone_are_a_sweep(tmp_path):
    """How much does the seed matter?"""
    found = plan(tmp_path, (), seeds=3)
    assert texts(found) == [""] and found.seeds == (0, 1, 2)


def test_the_metric_and_the_expectations_are_no_part_of_a_run(tmp_path):
    """They are about medians; a run with others is the same run."""
    one = plan(tmp_path, text=TEXT + "expect: {max_loss: 1}\nsweep: {metric: distance}\n")
    other = plan(tmp_path)
    names = [[job.identity({}) for job in each.jobs("numpy", CPU)] for each in (one, other)]
    assert names[0] == names[1]
    assert one.expect.max_loss == 1


REFUSED = {
    "an unknown key": (
        ["optimizer.rhoo=0.9"],
        {},
        r"--grid optimizer.rhoo=0.9: optimizer.rhoo is unknown \(did you mean rho\?\)",
    ),
    "a key of another framework": (["optimizer.momentum=0.9"], {}, "did you mean"),
    "an unknown section": (
        ["optimiser.rho=0.9"],
        {},
        r"optimiser is unknown \(did you mean optimizer\?\)",
    ),
    "a key below a value": (["training.steps.x=1"], {}, "training.steps has no keys"),
    "one invalid value of several": (
        ["optimizer.rho=0.9,1.5,2", "optimizer.wd=1,2"],
        {},
        r"rho is 1\.5.*\n.*rho is 2",
    ),
    "a combination": (
        ["training.epochs=null,3"],
        {},
        "training.epochs is 3, but rosenbrock has no data|exactly one",
    ),
    "an empty grid": (["optimizer.rho="], {}, "a value is missing"),
    "nothing that varies": ([], {}, "nothing varies.*--grid"),
    "a million runs": (
        ["optimizer.rho=lin:0:0.9"],
        {"sample": 1_000_000},
        "1,000,000 runs; at most 10,000.*--max-runs",
    ),
    "a million seeds": ([], {"seeds": 1_000_000_000}, "1,000,000,000 runs"),
    "seeds beyond the last": ([], {"seeds": 2, "seed": 2**32 - 1}, "smaller --seed"),
    "a range without a number": (["optimizer.rho=lin:0:0.9"], {}, "--sample 20"),
    "a sample of nothing": ([], {"sample": 3}, "nothing to draw from"),
    "a key twice": (["optimizer.rho=0.9", "optimizer.rho=0.95"], {}, "has a --grid already"),
    "a key that is set": (
        ["optimizer.rho=0.9"],
        {"overrides": ("optimizer.rho=0.1",)},
        "--set sets it",
    ),
    "an expectation": (["expect.max_loss=1,2"], {}, "no setting of a run"),
    "the sweep itself": (["sweep.seeds=1,2"], {}, "no setting of a run"),
    "the same value twice": (["optimizer.wd=1,1.0"], {}, "two settings are optimizer.wd=1.0"),
    "an option of the command": (["seed=1,2"], {}, "did you mean the option --seed"),
    "a text for a number": (["optimizer.rho=log:a:b"], {}, "expected a list, or log:LOW:HIGH"),
}


@pytest.mark.parametrize(("grid", "request_", "message"), REFUSED.values(), ids=REFUSED)
def test_what_is_invalid_is_refused(tmp_path, grid, request_, message):
    """Before anything runs, with the option or the line, and the fix."""
    with pytest.raises(UsageError) as error:
        plan(tmp_path, grid, **request_)
    assert re.search(message, str(error.value), re.DOTALL), error.value


SECTIONS = {
    "grid: {optimizer.rho: []}": "sweep.grid.optimizer.rho is .*allowed: a list of 1",
    "grid: {optimizer.rho: 0.9}": "sweep.grid.optimizer.rho is 0.9; allowed: a list",
    "grid: {optimizer.rho: relu}": "optimizer.rho is 'relu'; expected a list, or log:LOW:HIGH",
    "grid: {optimizer.rhoo: [1]}": r"optimizer.rhoo is unknown \(did you mean rho",
    "grid: {optimizer.rho: [2]}": r"optimizer.rho is 2; allowed",
    "grid: [1]": "sweep.grid is .*allowed: a mapping",
    "grids: {}": r"sweep.grids is unknown \(did you mean grid",
    "seeds: 0": "sweep.seeds is 0; allowed: an integer, at least 1",
}


@pytest.mark.parametrize(("section", "message"), SECTIONS.items())
def test_what_is_invalid_in_the_section_is_refused(tmp_path, section, message):
    """With file and line."""
    with pytest.raises(UsageError, match=rf"it.yaml, line 4: {message}"):
        plan(tmp_path, (), f"{TEXT}sweep: {{{section}}}\n")


def test_a_long_list_of_errors_is_cut(tmp_path):
    """A message is to be read."""
    grid = [f"optimizer.rho={','.join(str(k) for k in range(1, 60))}"]
    with pytest.raises(UsageError, match="and 49 more"):
        plan(tmp_path, grid)


@pytest.fixture
def job(tmp_path):
    """Return the first job of a sweep."""
    return plan(tmp_path).jobs("numpy", CPU)[0]


def test_the_identity_is_that_of_all_that_decides_the_result(tmp_path, job):
    """Config, seed, backend, device, dtype, step, versions; not the name of the config."""
    same = plan(tmp_path).jobs("numpy", CPU)[0]
    assert same.identity({"numpy": "1"}) == job.identity({"numpy": "1"})
    others = [
        *plan(tmp_path).jobs("numpy", CPU)[1:],
        *plan(tmp_path, seeds=2).jobs("numpy", CPU)[1:2],
        plan(tmp_path).jobs("mxnet", CPU)[0],
        plan(tmp_path).jobs("numpy", Device("gpu"))[0],
        plan(tmp_path, how={**HOW, "dtype": "float32"}).jobs("numpy", CPU)[0],
        plan(tmp_path, how={**HOW, "fused": True}).jobs("numpy", CPU)[0],
        plan(tmp_path, overrides=("training.steps=7",)).jobs("numpy", CPU)[0],
    ]
    names = [each.identity({"numpy": "1"}) for each in (job, *others)] + [
        job.identity({"numpy": "2"})
    ]
    assert len(set(names)) == len(names)
    assert all(re.fullmatch("[0-9a-f]{16}", name) for name in names)


def test_the_identity_has_the_content_of_files(tmp_path):
    """The same data elsewhere are the same run; changed data are another one."""
    text = "problem: {name: logistic_regression, csv: a.csv}\ntraining: {steps: 3}\n"
    names = []
    for folder, content in (
        ("a", "x,label\n1,0\n"),
        ("b", "x,label\n1,0\n"),
        ("c", "x,label\n2,0\n"),
    ):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "a.csv").write_text(content)
        found = plan(tmp_path / folder, (), text, seeds=2)
        names.append(found.jobs("numpy", CPU)[0].identity({}))
    assert names[0] == names[1] != names[2]


def test_a_path_of_the_section_starts_at_the_config(tmp_path, monkeypatch):
    """And one of an option at the current folder, as after --set."""
    (tmp_path / "configs").mkdir()
    monkeypatch.chdir(tmp_path)
    text = "problem: {name: logistic_regression}\ntraining: {steps: 3}\n"
    own = plan(
        tmp_path / "configs", (), f"{text}sweep: {{grid: {{problem.csv: [a.csv, b.csv]}}}}\n"
    )
    assert own.settings[0].config.problem.csv == str(tmp_path / "configs" / "a.csv")
    given = plan(tmp_path / "configs", ["problem.csv=a.csv,b.csv"], text)
    assert given.settings[0].values == {"problem.csv": str(tmp_path / "a.csv")}


def test_a_folder_is_all_its_configs(tmp_path, monkeypatch):
    """In the order of their names; one without configs is refused."""
    for name in ("b", "a"):
        (tmp_path / f"{name}.yaml").write_text(TEXT)
    found = plans.plans(str(tmp_path), Request(seeds=2, how=HOW))
    assert [each.name for each in found] == ["a", "b"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="a folder without configs"):
        plans.plans(str(tmp_path / "empty"), Request(seeds=2))
    monkeypatch.setattr(config, "folder", lambda: tmp_path.parent)
    bundled = plans.plans(tmp_path.name, Request(seeds=2, how=HOW))
    assert [each.reference for each in bundled] == [f"{tmp_path.name}/a", f"{tmp_path.name}/b"]


def test_an_unknown_config_is_refused():
    """With the nearest name."""
    with pytest.raises(UsageError, match="sweep-rosenbrock"):
        Plan.of("sweep-rosenbrok", Request(grid=GRID))


@pytest.mark.parametrize(
    "name",
    [
        each
        for each in (*config.grouped(),)
        if "sweep" in (config.folder() / f"{each}.yaml").read_text()
    ],
)
def test_bundled_sweeps_are_valid(name):
    """Each is a sweep as it is, and a run."""
    found = Plan.of(name, Request(how=HOW))
    assert len(found.settings) * len(found.seeds) > 1
    json.dumps(config.load_config(name).model_dump(mode="json"))
