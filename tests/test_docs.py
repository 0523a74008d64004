"""The documentation shows commands that exist, and every command and option is documented."""

from __future__ import annotations

import contextlib
import re
import shlex
import subprocess
import sys

import click
import numpy as np
import pytest
from conftest import HERE, needs_mxnet

import adadelta_cli
from adadelta_cli.bench import workloads
from adadelta_cli.cli.main import adadelta
from adadelta_cli.implementations.registry import PEERS, YARDSTICKS
from adadelta_cli.run import config
from adadelta_cli.system import machine

ROOT = HERE.parent
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
REFERENCE = (ROOT / "docs" / "cli.md").read_text()
EXAMPLES = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
GROUP = click.Context(adadelta, **adadelta.context_settings)
HELP = [each.get_help(click.Context(each, parent=GROUP)) for each in adadelta.commands.values()]


def shown():
    """List every command line that a page, a help text, a config or CI has."""
    texts = [page.read_text() for page in PAGES] + HELP
    texts += [path.read_text() for path in (ROOT / "configs").glob("*.yaml")]
    ci = (ROOT / ".ci" / "run", *(ROOT / ".github" / "workflows").glob("*.yml"))
    texts += [re.sub(r'wheel/bin/adadelta|"\$adadelta"', "adadelta", p.read_text()) for p in ci]
    joined = "\n".join(texts).replace("\\\n", "")  # a command may go on in the next line
    lines = re.findall(r"^(?:\s{2,}|\$ |# |)(?:\$ )?(adadelta [^\n`]*)", joined, re.MULTILINE)
    lines = [re.sub(r"\s{8,}--", " --", line) for line in lines]
    commands = {re.split(r"\s{3,}|\s#|\s>", line)[0].strip() for line in lines}
    syntax = r"\[|:$|: |does|NAME|FILE|WHAT|SHELL|STATES$|,\s"
    return sorted(each for each in commands if not re.search(syntax, each))


def test_there_are_commands_to_check():
    """The pattern that finds them finds those that must be there."""
    found = {"adadelta verify", "adadelta run mlp", "adadelta compare results/ci results/ci"}
    assert found <= set(shown())


@pytest.mark.parametrize("command", shown())
def test_shown_commands_parse(command, monkeypatch):
    """Every command shown is one that the program takes: its name, its options, their values."""
    monkeypatch.setattr(machine, "limit_threads", lambda _count: None)
    args = shlex.split(command)[1:]
    with contextlib.suppress(click.exceptions.Exit):  # --version and --help end there
        with adadelta.make_context("adadelta", list(args)) as group:
            _, sub, rest = adadelta.resolve_command(group, args)
        assert sub is not None
        sub.make_context(sub.name, rest, parent=group).close()


QUICK = [
    "adadelta --version",
    "adadelta --help",
    "adadelta schema",
    "adadelta doctor",
    "adadelta run rosenbrock --backend numpy",
    "adadelta verify --impl numpy-fused --dtype float32 --case special",
]


@pytest.mark.slow
@pytest.mark.parametrize("command", QUICK)
def test_quick_commands_run(command, tmp_path):
    """They end with 0, from any directory."""
    args = [sys.executable, "-m", "adadelta_cli", *shlex.split(command)[1:]]
    done = subprocess.run(args, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout


@pytest.mark.parametrize("name", adadelta.commands)
def test_every_option_is_documented(name):
    """docs/cli.md has each command and each of its options."""
    assert f"adadelta {name}" in REFERENCE
    for parameter in adadelta.commands[name].params:
        for option in (*parameter.opts, *parameter.secondary_opts):
            if option.startswith("-"):
                assert option in REFERENCE, f"{name} {option}"


@pytest.mark.parametrize("name", adadelta.commands)
def test_every_help_text_has_an_example(name):
    """A newcomer can copy a line that works."""
    command = adadelta.commands[name]
    assert f"adadelta {name}" in (command.help or "")


def test_no_summary_is_cut_in_a_terminal_of_80_columns():
    """`adadelta --help` shows the first sentence of each command whole."""
    context = click.Context(adadelta, terminal_width=78, **adadelta.context_settings)  # a margin
    assert "..." not in adadelta.get_help(context).replace("[ARGS]...", "")


NAMES = {
    "bench": [*PEERS, *YARDSTICKS, *workloads.MODELS],
    "run": config.shipped(),
    "verify": config.shipped(),
}


@pytest.mark.parametrize(
    ("command", "name"), [(command, name) for command, names in NAMES.items() for name in names]
)
def test_every_name_is_documented(command, name):
    """The help of the command and docs/cli.md have each framework, network and config."""
    assert f"`{name}`" in REFERENCE
    texts = [adadelta.commands[command].help] + [
        getattr(each, "help", None) or "" for each in adadelta.commands[command].params
    ]
    assert re.search(rf"[\s,]{name}[,.;]", " ".join(texts))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    """A relative link names a file that exists."""
    for target in re.findall(r"\]\(([^)#]+)", page.read_text()):
        if "://" not in target:
            assert (page.parent / target).exists(), target


def examples(word):
    """Return the Python examples of the README that have a word."""
    return [each for each in EXAMPLES if word in each]


def test_the_numpy_example_of_the_readme_runs():
    """It updates the weight and both accumulators, and leaves the gradient."""
    names = ("weight", "grad", "acc_grad", "acc_delta")
    arrays = {name: np.full(3, 2, np.float32) for name in names}
    (code,) = examples("FusedStep")
    exec(code, dict(arrays))  # noqa: S102 - it is this project's
    changed = {name for name, array in arrays.items() if (array != 2).all()}
    assert changed == {"weight", "acc_grad", "acc_delta"}


@needs_mxnet
@pytest.mark.parametrize("code", examples("use_fused_step"))
def test_the_mxnet_examples_of_the_readme_run(code):
    """Each makes a trainer whose optimizer is this package's, with the fused step."""
    expected = adadelta_cli.AdaDelta  # before mxnet, as there
    import mxnet as mx

    net = mx.gluon.nn.Dense(2, in_units=3)
    net.initialize()
    scope = {"net": net}
    exec(code, scope)  # noqa: S102 - it is this project's
    optimizer = scope["trainer"].optimizer
    assert type(optimizer) is expected
    assert optimizer.use_fused_step


def test_links_to_sections_lead_somewhere():
    """A link to a section of a page names a heading there."""
    for page in PAGES:
        for name, section in re.findall(r"\]\(([^):#]*)#([^)]+)\)", page.read_text()):
            target = page.parent / name if name else page
            headings = re.findall(r"^#+ (.*)", target.read_text(), re.MULTILINE)
            slugs = {re.sub(r"[^\w -]", "", each.lower()).replace(" ", "-") for each in headings}
            assert section in slugs, f"{page.name}: {name}#{section}"
