"""`adadelta list`, `explain`, `init` and `completion` as a new user meets them."""

from __future__ import annotations

import json
import re
import sys

import pytest
from conftest import HAS_MXNET

from adadelta_cli.cli.guide import PROBLEMS, WHAT
from adadelta_cli.guide import listing
from adadelta_cli.guide.keys import all_keys, explain
from adadelta_cli.guide.starter import starter_config
from adadelta_cli.implementations import registry
from adadelta_cli.run import config
from adadelta_cli.run.optimizers import OPTIMIZERS
from adadelta_cli.verification import fuzz


@pytest.mark.parametrize("what", WHAT)
def test_lists_have_a_line_for_each_name(adadelta, what):
    """Each entry has a name and says what it is; JSON has the same."""
    code, out, _ = adadelta("list", what, "--json")
    entries = json.loads(out)[what]
    assert code == 0
    assert len({each["name"] for each in entries}) == len(entries) > 2
    assert all(each["about"] for each in entries)
    _, table, _ = adadelta("list", what)
    assert all(each["name"] in table for each in entries)


def test_lists_are_complete():
    """What is listed is what the commands take."""
    known = {*registry.IMPLEMENTATIONS, *registry.YARDSTICKS}
    assert {each.name for each in listing.implementations()} == known == set(listing.STEPS)
    assert set(listing.FUZZED) == set(fuzz.COLLECTIVE)
    assert set(PROBLEMS) <= set(config.shipped())
    about = {each.name: each.about for each in listing.configs()}
    assert list(about) == [*config.shipped(), *config.grouped()]
    assert about["sweep-rosenbrock"].endswith("; sweep over optimizer.rho, optimizer.epsilon")


def test_an_unknown_list_is_refused_with_the_nearest(adadelta):
    """As any wrong name is."""
    code, _, err = adadelta("list", "case")
    assert code == 2
    assert "did you mean cases" in err


def test_every_key_of_the_schema_is_explained():
    """Each has a meaning and allowed values; the text of the schema is their only source."""
    keys = all_keys()
    assert {"problem.hidden", "optimizer.rho", "training.steps", "expect.max_loss"} <= {
        each.key for each in keys
    }
    assert [each.key for each in keys if not (each.meaning and each.allowed)] == []


@pytest.mark.parametrize(
    ("asked", "key"),
    [
        ("optimizer.rho", "optimizer.rho"),
        ("rho", "optimizer.rho"),
        ("lr", "optimizer.learning_rate"),
        ("--lr", "optimizer.learning_rate"),
        ("batch-size", "training.batch_size"),
        ("training", "training.steps"),
    ],
)
def test_a_key_is_found_by_what_users_call_it(asked, key):
    """With its section, without it, by other frameworks' names; a section has all its keys."""
    assert key in {each.key for each in explain(asked)}


def test_explain_shows_meaning_default_and_range(adadelta):
    """On one screen."""
    code, out, _ = adadelta("explain", "optimizer.epsilon")
    assert code == 0
    assert "1e-06" in out and "more than 0" in out and "square roots" in out


def test_only_adadelta_has_a_rate_of_the_paper():
    """The learning rate of the others is a factor of the step; so says the schema."""
    meanings = {each.name: each.meaning for each in explain("optimizer.learning_rate")}
    assert meanings.pop("adadelta") == "Factor of the step; 1 in the paper."
    assert set(meanings) == set(OPTIMIZERS) - {"adadelta"}
    assert set(meanings.values()) == {"Factor of the step."}


def test_an_unknown_key_is_refused_with_the_nearest(adadelta):
    """And with what there is."""
    code, _, err = adadelta("explain", "optimizer.rhoo")
    assert code == 2
    assert "did you mean optimizer.rho" in err


@pytest.mark.parametrize("problem", PROBLEMS)
def test_the_starting_config_is_the_bundled_one(problem, tmp_path):
    """It loads to the same settings; so it does with every key at its default written out."""
    path = tmp_path / "mine.yaml"
    text = starter_config(problem)
    path.write_text(text)
    assert config.load_config(str(path)) == config.load_config(problem)
    assert max(map(len, text.splitlines())) <= 100
    assert "section" in text.partition("\n\n")[0], "how to use a key of a commented section"
    keys = "|".join({each.key.split(".")[1] for each in all_keys()})
    path.write_text(re.sub(rf"^( *)# (({keys}|sweep):( .*)?)$", r"\1\2", text, flags=re.MULTILINE))
    assert len(path.read_text()) < len(text), "nothing was commented out"
    assert config.load_config(str(path)) == config.load_config(problem)


def uncommented(text, number, value=""):
    """Uncomment a line, and that of its section, as the file says; perhaps with another value."""
    lines = text.splitlines()
    above = next(k for k in range(number, -1, -1) if re.match(r"(# )?\w+:$", lines[k]))
    for each in (number, above):
        lines[each] = lines[each].replace("# ", "", 1)
    key = lines[number].partition(":")[0]
    lines[number] = f"{key}: {value}" if value else lines[number]
    return "\n".join(lines), f"{lines[above]}{key.strip()}"


# A value that says something, for keys whose default is to say nothing.
SAYING = {
    **dict.fromkeys(("expect:max_loss", "expect:max_distance", "expect:max_gap"), "0.5"),
    **dict.fromkeys(("expect:max_test_error", "expect:min_accuracy"), "0.5"),
    **dict.fromkeys(("training:batch_size", "training:record_every", "sweep:sample"), "3"),
    "optimizer:clip_gradient": "1.5",
    "problem:initialization": "he",
    "problem:held_out": "0.3",
    "sweep:seeds": "2",
    "sweep:metric": "loss",
    "problem:csv": "data.csv",
}


@pytest.mark.parametrize("problem", PROBLEMS)
def test_each_line_of_the_starting_config_can_be_uncommented(problem, tmp_path):
    """One at a time, at its default and with a value: each key is one that the problem has."""
    path, text = tmp_path / "mine.yaml", starter_config(problem)
    commented = re.compile(r"  # \w+: \S+$|  # \w+: \[.*\]$")
    numbers = [k for k, line in enumerate(text.splitlines()) if commented.match(line)]
    assert len(numbers) > 8
    for number in numbers:
        changed, key = uncommented(text, number)
        says_nothing = changed.splitlines()[number].endswith(" null")
        has_other = key in {"training:steps", "training:epochs"}  # exactly one is set
        assert key in SAYING or has_other or not says_nothing, key
        for value in ("", SAYING.get(key, "")):
            path.write_text(uncommented(text, number, value)[0])
            config.load_config(str(path))


@pytest.mark.parametrize("problem", PROBLEMS)
def test_the_starting_config_has_no_key_that_its_problem_lacks(problem):
    """Nor metrics of other problems, nor passes over data where there are none."""
    text = starter_config(problem)
    bounds = re.findall(r"^  (?:# )?(?:max|min)_(\w+):", text, re.MULTILINE)
    assert {*bounds} == {*config.PROBLEMS[problem].metrics}
    assert ("batch_size" in text) == ("epochs:" in text) == (problem != "rosenbrock")


def test_init_writes_a_config_that_trains(adadelta, tmp_path):
    """The command that it names works; an existing file is kept without --force."""
    code, out, _ = adadelta("init", "first", "--problem", "rosenbrock")
    assert code == 0
    assert "adadelta run first.yaml" in out
    quick = ("--set", "training.steps=5", "--set", "expect={}", "--backend", "numpy")
    assert adadelta("run", "first.yaml", *quick)[0] == 0
    (tmp_path / "first.yaml").write_text("mine")
    code, _, err = adadelta("init", "first.yaml")
    assert code == 2 and "--force" in err
    assert (tmp_path / "first.yaml").read_text() == "mine"
    assert adadelta("init", "first.yaml", "--force")[0] == 0
    assert (tmp_path / "first.yaml").read_text() != "mine"
    assert adadelta("init", "no/such/folder/x.yaml")[0] == 0  # folders are created, as for --out


def test_init_names_the_page_of_problems_of_your_own(adadelta):
    """No config of one is bundled, and the refusal says where one is."""
    code, _, err = adadelta("init", "--problem", "python")
    assert code == 2 and "docs/own-problems.md" in err
    assert "docs" not in adadelta("init", "--problem", "rosenbrok")[2]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_prints_a_script(adadelta, shell):
    """It names the variable that the program answers to."""
    code, out, _ = adadelta("completion", shell)
    assert code == 0
    assert f"_ADADELTA_COMPLETE={shell}_complete" in out


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        ("adadelta ver", "verify"),
        ("adadelta explain optimizer.r", "optimizer.rho"),
        ("adadelta verify --se", "--self-test"),
        ("adadelta verify --case spec", "special-odd"),
        ("adadelta verify --impl torch-f", "torch-fused"),
        ("adadelta bench --model res", "resnet50"),
        ("adadelta bench --impl numpy-", "numpy-fused"),
        ("adadelta run ros", "rosenbrock"),
        ("adadelta verify ml", "mlp"),
        ("adadelta list opt", "optimizers"),
    ],
)
def test_a_shell_completes(adadelta, monkeypatch, words, wanted):
    """Commands, options, cases, implementations, models, configs and keys."""
    monkeypatch.setattr(sys.modules["__main__"], "__package__", None)  # not `python -m pytest`
    monkeypatch.setenv("_ADADELTA_COMPLETE", "bash_complete")
    monkeypatch.setenv("COMP_WORDS", words)
    monkeypatch.setenv("COMP_CWORD", str(len(words.split()) - 1))
    _, out, _ = adadelta()
    assert f"plain,{wanted}" in out.split()


@pytest.mark.parametrize("order", [("-v", "--version"), ("--version", "--verbose")])
def test_version_with_details_describes_libraries_and_machine(adadelta, order):
    """In lines to paste into an issue; without -v, one line."""
    code, out, _ = adadelta(*order)
    lines = dict(line.split(": ", 1) for line in out.splitlines()[1:])
    assert code == 0
    assert {"Python", "processor", "cores", "numpy", "numba"} <= set(lines)
    assert ("mxnet" in lines) == HAS_MXNET
    assert len(adadelta("--version")[1].splitlines()) == 1
