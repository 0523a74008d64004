"""The documentation shows commands that exist, and every command and option is documented."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import shutil
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
EXAMPLES = [
    code
    for name in ("README.md", "docs/mxnet.md", "docs/numpy.md")
    for code in re.findall(r"```python\n(.*?)```", (ROOT / name).read_text(), re.DOTALL)
]
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


# What newcomers see first: each command with its output, and what shortens it in a test.
SHORT = "--case odd --dtype float32"
BENCH = "adadelta bench --sizes 1e6 --impl numpy-fused --impl numpy --processes 3 --max-time 1"
SEEN = {
    "adadelta verify --impl numpy-fused": SHORT,
    "adadelta verify --impl my_kernel.py:step": SHORT,
    "adadelta verify --impl wrong.py:step --case odd": "",
    "adadelta run mlp": "",
    "adadelta run examples/own_problem.yaml": "",
    BENCH: "",
    "python examples/numpy_training.py": "",
}
WITH_OUTPUT = r"^    \$ ((?:adadelta|python) .*)\n((?:    .*\n)+)"
HEADS = ("implementation against", "config steps", "workload implementation")  # of tables
NEWCOMERS = ("five-minutes", "own-kernels", "own-problems", "benchmarks", "numpy")


def outputs():
    """Return the output of each command on the pages for newcomers."""
    pages = [(ROOT / "docs" / f"{name}.md").read_text() for name in NEWCOMERS]
    return dict(each for page in pages for each in re.findall(WITH_OUTPUT, page, re.MULTILINE))


def masked(line):
    """Leave out what varies: numbers, counts, widths."""
    words = re.sub(r"\([\d ]+n/a\)|-?\d[\d.,]*(e[+-]?\d+)?", "#", line)
    return re.sub(r"[#\s─]+", " ", words).strip()


def test_every_output_of_the_pages_for_newcomers_is_checked():
    """Each command that is shown with its output is one of those that run here."""
    assert outputs().keys() == SEEN.keys()


@pytest.mark.slow
@pytest.mark.parametrize("command", SEEN)
def test_newcomers_see_what_the_pages_show(command, tmp_path):
    """The lines of the output but for their numbers, and the exit code."""
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    kernel = (tmp_path / "examples" / "numpy_kernel.py").read_text()
    (tmp_path / "my_kernel.py").write_text(kernel)
    (tmp_path / "wrong.py").write_text(
        kernel.replace("+ (1 - rho) * grad**2", "+ (1 - rho) * grad")
    )
    args = [*shlex.split(f"{command} {SEEN[command]}")]
    args[:1] = [sys.executable] + ["-m", "adadelta_cli"] * (args[0] == "adadelta")
    wide = {**os.environ, "COLUMNS": "200"}
    done = subprocess.run(
        args, cwd=tmp_path, env=wide, capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == ("wrong" in command), done.stderr
    seen = {masked(line) for line in (done.stdout + done.stderr).splitlines()}
    (head,) = [line for line in seen if line.startswith(HEADS)] or [""]
    varies = bool(SEEN[command]) or command == BENCH
    for line in outputs()[command].splitlines():
        if masked(line).startswith(HEADS):  # the page shows the columns of a narrow terminal
            assert all(name in head for name in re.split(r"\s{2,}", line.strip())), line
        elif not (varies and line.startswith((" " * 5, "    Warning"))):
            assert masked(line) in {*seen, "..."}, line


@pytest.mark.parametrize("name", adadelta.commands)
def test_every_command_is_documented(name):
    """docs/cli.md has each command; tests/test_site.py checks the page of options."""
    assert f"adadelta {name}" in REFERENCE


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
    """The help of the command has each framework, network and config."""
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
    """Return the Python examples of the pages for users that have a word."""
    return [each for each in EXAMPLES if word in each]


@pytest.mark.parametrize("code", examples("FusedStep"))
def test_the_numpy_examples_run(code):
    """It updates the weight and both accumulators, and leaves the gradient."""
    names = ("weight", "grad", "acc_grad", "acc_delta")
    arrays = {name: np.full(3, 2, np.float32) for name in names}
    exec(code, dict(arrays))  # noqa: S102 - it is this project's
    changed = {name for name, array in arrays.items() if (array != 2).all()}
    assert changed == {"weight", "acc_grad", "acc_delta"}


@needs_mxnet
@pytest.mark.parametrize("code", examples("use_fused_step"))
def test_the_mxnet_examples_run(code):
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
