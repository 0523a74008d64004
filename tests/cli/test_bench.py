"""The command `bench`: its files, its output, its exit codes."""

import csv
import itertools
import json
import subprocess
import sys
import time
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace

import click
import pytest
from conftest import needs_mxnet
from invented import ALL_WRONG, GROUP, samples, write_kernels

from adadelta_cli.bench import regression, report, runner
from adadelta_cli.bench.device import ARITHMETIC, MEMORY
from adadelta_cli.bench.results import BenchRow, Timings, group_result
from adadelta_cli.bench.worker_pool import EntryKey
from adadelta_cli.cli import bench as bench_command
from adadelta_cli.cli.console import Terminal
from adadelta_cli.cli.main import adadelta
from adadelta_cli.report.findings import Level, findings
from adadelta_cli.report.read import read_folders
from adadelta_cli.system import machine

ROOT = Path(__file__).parents[2]


def command(options, *paths, out):
    """Return the command line, with options that make it quick."""
    quick = {"--processes": 2, "--max-time": 0.2}
    missing = " ".join(f"{name} {value}" for name, value in quick.items() if name not in options)
    words = f"-m adadelta_cli bench {missing} {options}".split()
    return [sys.executable, *words, *paths, "--out", str(out)]


def bench(options, *paths, out):
    """Run the command on arrays of NumPy."""
    line = command(f"--backend numpy {options}", *paths, out=out)
    return subprocess.run(line, capture_output=True, text=True, check=False, cwd=ROOT)


def test_a_baseline_is_not_overwritten(adadelta):
    """Else the next comparison would be with itself."""
    Path("old").mkdir()
    Path("old/bench.json").write_text('{"rows": [], "by_process": [], "machine": {}}')
    code, _, err = adadelta("bench", "--sizes", "1e4", "--baseline", "old", "--out", "old")
    assert (code, "would be overwritten" in err) == (2, True)


@pytest.mark.slow
def test_the_command_writes_its_files(tmp_path):
    """bench.csv and bench.json hold a row for each implementation and dtype; two are pictures.

    With --json, stdout is one JSON document.
    """
    done = bench("--sizes 2e4 --dtype float32 --dtype float16 --json", out=tmp_path)
    assert done.returncode == 0, done.stderr
    assert [row["workload"] for row in json.loads(done.stdout)["rows"]] == ["2e4"] * 4
    with (tmp_path / "bench.csv").open() as file:
        table = list(csv.DictReader(file))
    assert list(table[0]) == [each.name for each in fields(BenchRow)]
    wanted = list(itertools.product(("float32", "float16"), ("numpy", "numpy-fused")))
    assert [(row["dtype"], row["implementation"]) for row in table] == wanted
    document = json.loads((tmp_path / "bench.json").read_text())
    assert len(document["samples_s"]) == 4
    assert set(document["roofs_s"][0]) == {MEMORY, ARITHMETIC}
    assert document["machine"]["cores_available"] == machine.available_cores()
    for name in ("bench.png", "bench-samples.png"):
        assert (tmp_path / name).read_bytes()[1:4] == b"PNG"


def test_markdown(tmp_path, monkeypatch, capsys):
    """--format markdown prints a table for a pull request."""
    measured(monkeypatch, group_result(GROUP, Timings(samples()), {}))
    line = ["bench", "--format", "markdown", "--out", str(tmp_path)]
    assert adadelta.main(line, standalone_mode=False) == 0
    heading, rule, *body = capsys.readouterr().out.strip().splitlines()
    assert heading.startswith("| workload | dtype | on | cache | B/element | implementation |")
    assert set(rule) <= set("|- ")
    assert len(body) == 2


def test_interrupt_keeps_what_was_finished(tmp_path, monkeypatch):
    """Ctrl-C in the second process leaves whole files with what the first one found."""

    def interrupted(plan, number, _threads, found, _tick):
        if number:
            raise KeyboardInterrupt
        columns = {EntryKey("", name): each[0] for name, each in samples().items()}
        found[plan.groups[0]].add(columns, {}, {})

    monkeypatch.setattr(runner, "_pass", interrupted)
    monkeypatch.setattr(runner, "_peaks", lambda *_: {})
    line = ["bench", "--sizes", "1e6,1e7", "--backend", "numpy", "--out", str(tmp_path)]
    with pytest.raises((KeyboardInterrupt, click.Abort)):
        adadelta.main(line, standalone_mode=False)
    with (tmp_path / "bench.csv").open() as file:
        table = [(row["workload"], row["processes"]) for row in csv.DictReader(file)]
    assert table == [("1e6", "1"), ("1e6", "1")]
    assert (tmp_path / "bench.png").exists()
    document = json.loads((tmp_path / "bench.json").read_text())
    assert document["complete"] is False
    assert document["doubts"][0].startswith("not complete: ")
    (finding,) = findings(read_folders([tmp_path]))
    assert finding.level is Level.DOUBTFUL and "not complete" in finding.remarks[0]
    partial = regression.read_document(tmp_path)
    whole = partial.model_copy(update={"complete": True})
    (change,) = regression.judge(whole, partial, 0.05).changes
    assert (change.name, change.old) == ("result", "complete")
    assert change.new.startswith("not complete")


@pytest.mark.slow
def test_terminating_keeps_what_was_finished(tmp_path):
    """SIGTERM in the second process or later: whole files, and the exit code of the signal."""
    kernel = f"{write_kernels(tmp_path)}:step"
    options = "--sizes 1e4 --processes 50 --max-time 25 --impl"
    line = command(options, kernel, out=tmp_path / "out")
    process = subprocess.Popen(line, stderr=subprocess.PIPE, text=True, cwd=ROOT)
    imports = tmp_path / "imports"  # one by the check, one by the peak, one by each process
    while process.poll() is None and (not imports.exists() or imports.stat().st_size < 5):
        time.sleep(0.1)
    process.terminate()
    _, errors = process.communicate()
    assert process.returncode == 143, errors
    with (tmp_path / "out" / "bench.csv").open() as file:
        (row,) = csv.DictReader(file)
    assert 1 <= int(row["processes"]) < 50


def measured(monkeypatch, result):
    """Let the command find this result, and draw nothing: another test has its pictures."""
    monkeypatch.setattr(report, "write_plot", lambda path, _figure: path)
    for draw in ("bench_figure", "samples_figure"):
        monkeypatch.setattr(report, draw, lambda *_: None)
    monkeypatch.setattr(runner, "measure", lambda _plan, found, _tick: found.append(result))


def test_a_wrong_implementation_ends_with_1(tmp_path, monkeypatch):
    """The exit code tells CI that an implementation is wrong."""
    found = samples()
    del found["numpy-fused"]
    measured(monkeypatch, group_result(GROUP, Timings(found, {"numpy-fused": ALL_WRONG}), {}))
    assert adadelta.main(["bench", "--out", str(tmp_path)], standalone_mode=False) == 1


@pytest.mark.parametrize(("slower", "code"), [(1.0, 0), (1.2, 1)])
def test_a_baseline(slower, code, tmp_path, monkeypatch, capsys):
    """A step that takes more of the ceiling's time than it did ends with 1."""
    for name, times in (("old", 2.0), ("new", 2.0 * slower)):
        found = samples(fused=times)
        found = {key: [each[0] * (1 + k / 1000) for k in range(6)] for key, each in found.items()}
        measured(monkeypatch, group_result(GROUP, Timings(found), {}))
        line = ["bench", "--out", str(tmp_path / name)]
        line += ["--baseline", str(tmp_path / "old")] if name == "new" else []
        ended = adadelta.main(line, standalone_mode=False)
    assert ended == code
    assert ("1 SLOWER" in capsys.readouterr().out) == bool(code)


def test_a_comparison_below_a_markdown_table_is_no_row_of_it(monkeypatch, capsys):
    """A table ends at an empty line only."""
    row = BenchRow("k.py:f", "numpy", "cpu", "float32", "1e4", 1, 10_000, 1)
    work = SimpleNamespace(results=[GROUP], rows=[row], warnings=[])
    monkeypatch.setattr(report, "bench_document", lambda *_: {})
    judged = [regression.Comparison((), (), 0.05, "a test", "old", "new")]
    bench_command._show_bench(Terminal(), work, judged, "markdown")
    assert "|\n\n**adadelta compare**" in capsys.readouterr().out


@pytest.mark.slow
def test_against_this_very_environment(tmp_path):
    """The whole way, with a verdict in the output and in bench.json."""
    options = "--sizes 1e4 --impl numpy-fused --processes 3 --threshold 0.9 --json --against"
    done = bench(options, sys.executable, out=tmp_path)
    assert done.returncode == 0, done.stderr
    (found,) = json.loads(done.stdout)["comparisons"]
    written = json.loads((tmp_path / "bench.json").read_text())
    assert written["comparisons"] == [found]
    assert len(written["pairs"][0]["ratios"]) == 3
    assert found["old"].endswith("(the same installation)")
    assert [row["implementation"] for row in found["rows"]] == ["numpy-fused"]
    assert found["rows"][0]["ratio"] > 0


@pytest.mark.parametrize(
    ("options", "code", "says"),
    [
        ("--sizes many", 2, "--sizes has 'many'"),
        ("--sizes 1e12", 3, "available"),
        ("--threads 0", 2, "--threads is '0'"),
        ("--impl faster", 2, "--impl is 'faster'"),
        ("--model alexnet", 2, "--model is 'alexnet'"),
        ("--against no-such-python", 2, "No such file"),
        ("--against python --train mlp", 2, "leave out --train"),
        ("--baseline nowhere", 2, "cannot be read"),
        ("--threshold 5", 2, "--threshold is '5'"),
    ],
)
def test_wrong_usage(adadelta, options, code, says):
    """What cannot be timed ends with 2 or 3, one line of error, and no file."""
    got, _, err = adadelta("bench", "--backend", "numpy", *options.split())
    assert got == code
    assert says in err
    assert err.startswith("Error: ") and err.count("\n") == 1
    assert not list(Path().iterdir())


@pytest.mark.slow
@needs_mxnet
def test_the_training_alone(tmp_path):
    """`bench --train mlp`, as the help shows it, has three rows and no ceiling."""
    line = command("--train mlp --processes 1 --format markdown", out=tmp_path)
    done = subprocess.run(line, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("train:mlp") == 3
