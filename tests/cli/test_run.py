"""`adadelta run` and `adadelta schema` as users and their scripts see them."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from adadelta_cli.errors import displayed
from adadelta_cli.run import config, training

REPOSITORY = Path(__file__).parents[2]
QUICK = shlex.split(
    "--backend numpy --set expect={} --set training.epochs=null --set training.steps=20 "
    "--set training.record_every=5"
)
COMPARISON = {"comparison.png", "comparison.csv"}
FILES = {"history.csv", "summary.json", "config.yaml", "loss.png", "checkpoint.npz"}


def test_all_shipped_configs_run_when_none_is_named(adadelta, tmp_path):
    """Each gets its folder under results/run, with all its files and no others."""
    code, out, _err = adadelta("run", *QUICK)
    assert code == 0
    out_folder = tmp_path / "results" / "run"
    folders = {path.name: path for path in out_folder.iterdir() if path.is_dir()}
    assert {path.name for path in out_folder.iterdir()} - {*folders} == COMPARISON
    assert set(folders) == set(config.shipped())
    for name, folder in folders.items():
        assert {path.name for path in folder.iterdir()} == FILES
        assert name in out


def test_the_table_explains_itself(adadelta):
    """It shows the config, each metric at start and end, what was expected, and the verdict."""
    code, out, err = adadelta("run", "rosenbrock", *QUICK, "--set", "expect.max_distance=1e-9")
    assert code == 1
    for word in ("config", "start", "end", "expected", "at most 1e-09", "missed"):
        assert word in out
    assert re.search(r"rosenbrock missed max_distance: wanted 1e-09, got 2\.0\d+", err)
    assert "results/run/rosenbrock/history.csv" in err


def test_several_runs_are_one_markdown_table(adadelta, tmp_path):
    """A name marks nothing up; messages stay on stderr."""
    name = "a|b <script>"
    (tmp_path / f"{name}.yaml").write_text("problem: {name: rosenbrock}\n")
    vary = ("--vary", "optimizer.rho=0.9,0.95")
    code, out, err = adadelta("run", f"{name}.yaml", *QUICK, *vary, "--format", "markdown")
    assert code == 0, err
    names, rule, *rows = out.splitlines()
    assert names == "| config | steps | time | metric | start | end | expected | verdict |"
    assert set(rule) == {*"| -"}
    assert [row.split(" | ")[0] for row in rows if not row.startswith("|  |")] == [
        rf"| a\|b &lt;script>\_rho={rho}" for rho in (0.9, 0.95)
    ]
    assert {row.replace(r"\|", "").count("|") for row in rows} == {9}
    assert "**finished** |" in rows[0] and "Files:" in err


def test_a_check_of_gradients_as_markdown(adadelta):
    """It has the same format."""
    code, out, _err = adadelta(
        "run", "rosenbrock", "--backend", "numpy", "--check-gradient", "--format", "markdown"
    )
    assert code == 0
    assert out.startswith("| config | tensor |") and out.endswith("| **passed** |\n")


def test_one_that_misses_does_not_keep_the_others_from_running(adadelta, tmp_path):
    """The exit code is the worst; all files are there."""
    path = tmp_path / "hard.yaml"
    path.write_text("problem: {name: rosenbrock}\ntraining: {steps: 3}\nexpect: {max_loss: 0}\n")
    code, out, _err = adadelta("run", path, "rosenbrock", "--backend", "numpy", "--out", "o")
    assert code == 1
    assert {each.name for each in (tmp_path / "o").iterdir()} == {"hard", "rosenbrock", *COMPARISON}
    assert "missed" in out
    assert "passed" in out


def test_a_diverged_run_ends_in_1_with_advice(adadelta, tmp_path):
    """The message says between which steps, and what to try; summary.json stays valid JSON."""
    code, out, err = adadelta("run", "rosenbrock", *QUICK, "--set", "optimizer.learning_rate=1e30")
    assert code == 1
    assert "diverged" in out
    assert "rosenbrock diverged between the steps 0 and 5" in err
    assert "smaller optimizer.learning_rate" in err
    text = (tmp_path / "results/run/rosenbrock/summary.json").read_text()
    assert json.loads(text)["outcome"] == "diverged"


def test_json_is_one_document_and_nothing_else(adadelta):
    """Stdout parses as JSON, and has the ends of the history and the checks."""
    code, out, _err = adadelta("run", "mlp", *QUICK, "--set", "expect.min_accuracy=0", "--json")
    assert code == 0
    (result,) = json.loads(out)["results"]
    assert (result["name"], result["outcome"], result["steps"]) == ("mlp", "passed", 20)
    assert result["start"]["step"] == 0
    assert result["end"]["step"] == 20
    assert result["checks"][0]["metric"] == "accuracy"


def test_the_history_is_as_documented(adadelta, tmp_path):
    """The columns come in order, floats read back to the same bits, the start has no step."""
    adadelta("run", "logistic_regression", *QUICK)
    text = (tmp_path / "results/run/logistic_regression/history.csv").read_text()
    rows = list(csv.DictReader(text.splitlines()))
    assert list(rows[0]) == ["step", "epoch", "loss", "grad_norm", "update_norm", "gap", "accuracy"]
    assert [row["step"] for row in rows] == ["0", "5", "10", "15", "20"]
    assert (rows[0]["grad_norm"], rows[0]["update_norm"]) == ("", "")
    assert all(repr(float(row["loss"])) == row["loss"] for row in rows)


def test_the_resolved_config_runs_to_the_same_history(adadelta, tmp_path):
    """config.yaml holds every value, and begins with the command that repeats the run."""
    adadelta("run", "mlp", *QUICK, "--seed", "3", "--no-fused", "--dtype", "float64")
    folder = tmp_path / "results/run/mlp"
    first = (folder / "config.yaml").read_text().splitlines()[0]
    command = first.removeprefix("# adadelta ").split()
    assert command[2:] == ["--backend", "numpy", "--dtype", "float64", "--no-fused", "--seed", "3"]
    assert adadelta(*command, "--out", "again")[0] == 0
    again = tmp_path / "again/config/history.csv"
    assert again.read_bytes() == (folder / "history.csv").read_bytes()


NAMES = [
    os.fsdecode(b"caf\xe9"),
    "größe",
    "exp[lr=0.1]",
    "[red]",
    ":smile:",
    "cost_$5_vs_$10",
    "$",
    r"$\frac{$",
    "two\nlines",
    "\x1b[31mred",
    "日本語",
    "{0} %s",
    "-q",
    'it\'s a "name"',
    ".",
    "a" * 250,
]


@pytest.mark.parametrize(
    ("name", "encoding"),
    [(name, "utf-8") for name in NAMES] + [(name, "ascii") for name in NAMES if not name.isascii()],
    ids=ascii,
)
def test_no_work_is_lost_for_a_name(adadelta, tmp_path, monkeypatch, name, encoding):
    """Every file is written; the name is shown as it is, escaped where the stream lacks it."""
    screen = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    monkeypatch.setattr(sys, "stdout", screen)
    (tmp_path / f"{name}.yaml").write_text(
        "problem: {name: rosenbrock}\ntraining: {steps: 3}\nexpect: {max_loss: 100}\n"
    )
    code, _out, err = adadelta("run", "--backend", "numpy", "--out", "o", f"./{name}.yaml")
    assert code == 0, err
    (folder,) = (tmp_path / "o").iterdir()
    assert {path.name for path in folder.iterdir()} == FILES
    screen.flush()
    shown = screen.buffer.getvalue().decode(encoding)
    assert displayed(name).encode(encoding, "backslashreplace").decode(encoding)[:40] in shown
    summary = json.loads((folder / "summary.json").read_text("utf-8"))
    assert summary["name"].encode() == displayed(folder.name).encode()
    first = (folder / "config.yaml").read_text("utf-8").splitlines()[0]
    quoted = first.removeprefix("# adadelta run ")
    found = subprocess.run(
        ["bash", "-c", f"printf %s {quoted.split(' --backend')[0]}"],  # noqa: S607 - any bash
        capture_output=True,
        check=True,
    )
    assert os.fsdecode(found.stdout) == f"o/{folder.name}/config.yaml"
    assert config.load_config(str(folder / "config.yaml")).training.steps == 3


def test_a_run_that_expects_nothing_does_not_say_passed(adadelta, tmp_path):
    """The table and the document say that it finished."""
    code, out, _err = adadelta("run", "rosenbrock", *QUICK)
    assert (code, "passed" in out) == (0, False)
    assert re.search(r"24\.2 .* nothing +finished", out)
    summary = json.loads((tmp_path / "results/run/rosenbrock/summary.json").read_text())
    assert summary["outcome"] == "finished"


def test_a_finished_run_is_not_replaced_by_another(adadelta, tmp_path):
    """Other settings need --force or another --out; the same ones may be repeated."""
    other = (*QUICK, "--set", "optimizer.rho=0.5")
    assert adadelta("run", "rosenbrock", *QUICK)[0] == 0
    history = tmp_path / "results/run/rosenbrock/history.csv"
    before = history.read_bytes()
    code, out, err = adadelta("run", "rosenbrock", *other)
    assert (code, out, history.read_bytes()) == (2, "", before)
    assert re.search(r"^Error: .*finished run .*optimizer\.rho was .* is 0\.5.*--force", err)
    assert adadelta("run", "rosenbrock", *QUICK)[0] == 0
    assert adadelta("run", "rosenbrock", *other, "--force")[0] == 0
    assert history.read_bytes() != before


def test_the_picture_is_a_png_of_readable_size(adadelta, tmp_path):
    """loss.png has the PNG signature and at least 600 x 400 pixels."""
    adadelta("run", "rosenbrock", *QUICK)
    content = (tmp_path / "results/run/rosenbrock/loss.png").read_bytes()
    assert content.startswith(b"\x89PNG\r\n\x1a\n")
    assert int.from_bytes(content[16:20], "big") >= 600
    assert int.from_bytes(content[20:24], "big") >= 400


WRONG = {
    "no config": ("nope", r"config 'nope'"),
    "override": ("mlp --set optimizer.rho=2", r"--set optimizer\.rho=2: optimizer\.rho is 2"),
    "second config": ("mlp --set problem.hidden=[3] rosenbrock", r"hidden is unknown"),
    "same name": ("mlp mlp", r"two configs are named mlp"),
    "one file for two": ("mlp rosenbrock --record-gradients g.npz", r"--record.* 2 configs"),
    "option": ("--sett a=1", r"--sett"),
    "dtype": ("mlp --dtype int8", r"'int8' is not one of"),
    "device": ("mlp --ctx tpu", r"--ctx is 'tpu'"),
    "place": ("mlp --ctx gpu --backend numpy", r"--ctx gpu --backend numpy"),
    "folder of configs": ("zeiler2012", r"zeiler2012 is a folder of configs; name one of"),
    "check and resume": ("mlp --check-gradient --resume", r"--check-gradient and --resume contra"),
    "check and dtype": ("mlp --check-gradient --dtype float32", r"computes in float64"),
    "vary": ("mlp --vary optimizer.rho=0.9,2", r"--vary optimizer\.rho=2: optimizer\.rho is 2"),
    "vary and record": ("mlp --vary training.epochs=1,2 --record-gradients g.npz", r"2 configs"),
    "optimizer": ("mlp --set optimizer.name=adan", r"'adan' \(did you mean adam\?\)"),
}


@pytest.mark.parametrize(("arguments", "message"), WRONG.values(), ids=WRONG)
def test_what_is_wrong_is_said_before_anything_is_written(adadelta, tmp_path, arguments, message):
    """One message that begins with `Error: `, exit code 2, and no file."""
    got, out, err = adadelta("run", *arguments.split())
    assert got == 2
    assert re.search(f"^Error: .*{message}", err, re.MULTILINE), err
    assert "Traceback" not in err
    assert not out
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_written_is_no_verdict(adadelta, tmp_path):
    """A file in the way of the output folder ends in 4, not in 1."""
    (tmp_path / "o").mkdir()
    (tmp_path / "o" / "rosenbrock").write_text("in the way")
    code, _out, err = adadelta("run", "rosenbrock", *QUICK, "--out", "o")
    assert code == 4
    assert err.startswith("Error: ")


def test_gradients_are_recorded_where_one_says(adadelta, tmp_path):
    """--record-gradients writes its file in addition to the usual ones."""
    assert adadelta("run", "rosenbrock", *QUICK, "--record-gradients", "g/g.npz")[0] == 0
    assert (tmp_path / "g" / "g.npz").stat().st_size > 0


def test_data_that_are_not_there_are_named_with_the_command_that_fetches_them(
    adadelta, tmp_path, monkeypatch
):
    """Exit code 3; the folder is that of --data, which goes before the variable."""
    monkeypatch.setenv("ADADELTA_DATA", "elsewhere")
    code, out, err = adadelta("run", "zeiler2012/table2", "--data", "here", "--backend", "numpy")
    assert (code, out) == (3, "")
    assert err.startswith("Error: problem.data is mnist, and its files are not here: ")
    assert f"curl -f --create-dirs --output-dir {tmp_path}/here/mnist -O 'https://" in err
    assert not list(tmp_path.iterdir())


def test_a_gradient_is_checked_without_training(adadelta, tmp_path):
    """A row for each tensor; nothing is written."""
    code, out, err = adadelta("run", "mlp", "--check-gradient", "--backend", "numpy")
    assert (code, err) == (0, "")
    assert out.count("passed") == 6
    assert not list(tmp_path.iterdir())
    code, out, _err = adadelta("run", "rosenbrock", "--check-gradient", "--json")
    (row,) = json.loads(out)["results"]
    assert (row["tensor"], row["compared"], row["passed"]) == ("x", 2, True)


WRONG_GRADIENT = """
from adadelta_cli import Problem


class Own(Problem):
    start = {"a": [1.0, 2.0]}

    def loss(self, xp, weights):
        return (weights[0] ** 2).sum()

    def gradient(self, xp, weights):
        return [3 * weights[0]]
"""


def test_a_wrong_gradient_is_exit_code_1(adadelta, tmp_path):
    """With its element, both numbers and the fix."""
    (tmp_path / "own.py").write_text(WRONG_GRADIENT)
    (tmp_path / "own.yaml").write_text("problem: {python: own.py:Own}\ntraining: {steps: 3}\n")
    code, out, err = adadelta("run", "own.yaml", "--check-gradient", "--backend", "numpy")
    assert code == 1
    assert "FAILED" in out
    assert re.search(r"own: the gradient of a at \[\d\] is .*; the loss rises by .*Correct", err)


def test_a_problem_that_raises_is_told_with_its_line(adadelta, tmp_path):
    """Exit code 2, one message, and nothing is written."""
    (tmp_path / "own.py").write_text(WRONG_GRADIENT.replace("** 2", "/ 'a'"))
    (tmp_path / "own.yaml").write_text("problem: {python: own.py:Own}\ntraining: {steps: 3}\n")
    code, out, err = adadelta("run", "own.yaml", "--backend", "numpy")
    assert (code, out) == (2, "")
    assert re.match(rf"Error: {tmp_path}/own\.py, line 9: loss raised .*; fix it there\n$", err)
    assert {path.name for path in tmp_path.iterdir()} <= {"own.py", "own.yaml", "__pycache__"}


def test_values_are_compared(adadelta, tmp_path):
    """A folder for each value, a plot of all curves, a table; names of files say where."""
    vary = ("--vary", "optimizer.name=adadelta,sgd,adam")
    code, out, err = adadelta("run", "mlp", *vary, *QUICK, "--out", "o")
    assert code == 0, err
    names = {f"mlp_name={name}" for name in ("adadelta", "sgd", "adam")}
    assert {path.name for path in (tmp_path / "o").iterdir()} == names | COMPARISON
    content = (tmp_path / "o" / "comparison.png").read_bytes()
    assert content.startswith(b"\x89PNG\r\n\x1a\n")
    assert all(name in out for name in names)
    assert "o/comparison.png, comparison.csv" in err


def test_schema_prints_the_schema(adadelta):
    """`adadelta schema` prints what lies beside the configs, byte for byte."""
    code, out, _err = adadelta("schema")
    assert code == 0
    assert out == (REPOSITORY / "configs" / "schema.json").read_text()


@pytest.mark.parametrize("command", ["run", "schema"])
def test_help_has_an_example(adadelta, command):
    """-h shows a line that can be typed as it stands."""
    code, out, _err = adadelta(command, "-h")
    assert code == 0
    assert re.search(rf"^  adadelta {command}", out, re.MULTILINE)


def test_an_interrupted_comparison_is_not_complete(adadelta, monkeypatch):
    """Also between two runs, where no summary.json says so: in the JSON, and on stderr."""
    execute, ran = training.Run.execute, []

    def execute_or_raise(run, tick):
        if ran:
            raise KeyboardInterrupt
        ran.append(run)
        return execute(run, tick)

    monkeypatch.setattr(training.Run, "execute", execute_or_raise)
    vary = ("--vary", "optimizer.rho=0.9,0.95", "--set", "training.steps=5")
    code, out, err = adadelta("run", "rosenbrock", "--backend", "numpy", *vary, "--json")
    document = json.loads(out)
    assert (code, document["complete"], len(document["results"])) == (130, False, 1)
    assert "1 of 2 runs ended; the others are not complete" in err


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_leaves_a_checkpoint_to_go_on_from(adadelta, tmp_path, number, code):
    """Ctrl-C ends in 130, SIGTERM in 143; --resume then gives the bytes of a run left alone."""
    settings = shlex.split(
        "rosenbrock --backend numpy --set training.steps=60000 "
        "--set training.checkpoint_every=20 --set training.record_every=500"
    )
    command = [sys.executable, "-m", "adadelta_cli", "run", *settings, "--out", "stopped"]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    checkpoint = tmp_path / "stopped" / "rosenbrock" / "checkpoint.npz"
    with subprocess.Popen(
        command, cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True
    ) as process:
        while not checkpoint.exists():
            assert process.poll() is None
        process.send_signal(number)
        _out, err = process.communicate()
    assert process.returncode == code, err
    assert re.search(r"^Error: .*on disk", err, re.MULTILINE)
    summary = json.loads((checkpoint.parent / "summary.json").read_text())
    assert summary["outcome"] == "interrupted"
    assert 0 < summary["steps"] < 60000
    refused, _out, err = adadelta("run", *settings, "--out", "stopped")
    assert (refused, "--resume" in err) == (2, True)
    shorter = ("--set", f"training.steps={summary['steps'] + 1500}")
    adadelta("run", *settings, *shorter, "--out", "stopped", "--resume")
    adadelta("run", *settings, *shorter, "--out", "whole")
    histories = [tmp_path / out / "rosenbrock" / "history.csv" for out in ("stopped", "whole")]
    assert histories[0].read_bytes() == histories[1].read_bytes()
