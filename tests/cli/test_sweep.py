"""`adadelta sweep` as users and their scripts see it."""

from __future__ import annotations

import contextlib
import csv
import importlib.util
import json
import os
import random
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from adadelta_cli import __main__
from adadelta_cli.sweep import engines

COMMAND = [sys.executable, "-m", "adadelta_cli"]
TEXT = """\
problem: {name: rosenbrock}
training: {steps: 400, record_every: 100}
sweep:
  grid: {optimizer.rho: [0.9, 0.99], optimizer.epsilon: [1e-6, 1e-4, 1e-2]}
  seeds: 2
"""
FAST = ["--backend", "numpy", "--no-fused"]
FILES = {"sweep.csv", "summary.csv", "sweep.json", "sweep.png", "runs"}


@pytest.fixture
def adadelta(adadelta, tmp_path):
    """Run the program in a folder with a config."""
    (tmp_path / "it.yaml").write_text(TEXT)
    return adadelta


REFUSED = {
    "an unknown config": (["sweep", "mpl", "--seeds", "2"], 2, "did you mean mlp"),
    "nothing varies": (["sweep", "mlp"], 2, "nothing varies"),
    "an unknown key": (["sweep", "it.yaml", "--grid", "optimizer.rhoo=1"], 2, "did you mean rho"),
    "an empty grid": (["sweep", "it.yaml", "--grid", "optimizer.rho="], 2, "a value is missing"),
    "an empty option": (["sweep", "it.yaml", "--grid", ""], 2, "--grid is empty"),
    "a million runs": (
        ["sweep", "it.yaml", "--seeds", "1000000"],
        2,
        "6,000,000 runs; at most 10,000",
    ),
    "one run too many": (["sweep", "it.yaml", "--max-runs", "11"], 2, "12 runs; at most 11"),
    "no workers": (["sweep", "it.yaml", "--workers", "0"], 2, "--workers"),
    "a timeout of nothing": (["sweep", "it.yaml", "--timeout", "0"], 2, "--timeout"),
    "two engines": (
        ["sweep", "it.yaml", "--workers", "2", "--scheduler", "tcp://a:1"],
        2,
        "contradict",
    ),
    "two ways to begin": (["sweep", "it.yaml", "--resume", "--force"], 2, "contradict"),
    "no address": (["sweep", "it.yaml", "--scheduler", "here"], 2, "tcp://127.0.0.1:8786"),
}


@pytest.mark.parametrize(("args", "code", "message"), REFUSED.values(), ids=REFUSED)
def test_what_is_wrong_is_refused_before_anything_runs(adadelta, tmp_path, args, code, message):
    """One message, a documented exit code, and no file."""
    got, out, err = adadelta(*args)
    assert got == code
    assert message in err and err.startswith("Error: ") and "bug" not in err
    assert not out
    assert {path.name for path in tmp_path.iterdir()} == {"it.yaml"}


def test_a_folder_that_cannot_be_made_is_refused_before_anything_runs(adadelta, tmp_path):
    """`runs` is a file: nothing is written beside it."""
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "runs").touch()
    code, out, err = adadelta("sweep", "it.yaml", *FAST, "--out", "out")
    assert code == 4 and not out
    assert err.startswith("Error: --out: out/runs cannot be made") and "another folder" in err
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["runs"]


@pytest.mark.parametrize("lacking", ["dask", "distributed"])
def test_without_dask_the_message_says_what_to_install(adadelta, monkeypatch, lacking):
    """Exit code 3."""
    find = importlib.util.find_spec
    monkeypatch.setattr(
        engines.importlib.util, "find_spec", lambda name: None if name == lacking else find(name)
    )
    code, _out, err = adadelta("sweep", "it.yaml", "--scheduler", "tcp://127.0.0.1:1")
    assert code == 3
    assert f"needs {lacking}" in err and "pip install 'adadelta[cluster]'" in err


@pytest.mark.slow
def test_a_folder_that_cannot_be_made(adadelta):
    """Exit code 4, as in every command, before anything runs."""
    code, _out, err = adadelta("sweep", "it.yaml", *FAST, "--out", "/dev/null/a")
    assert code == 4 and "--out: /dev/null/a/runs cannot be made" in err


@pytest.mark.slow
def test_no_scheduler_at_the_address(adadelta, monkeypatch):
    """Exit code 3, after a bounded time."""
    pytest.importorskip("distributed")
    monkeypatch.setattr(engines, "CONNECT_S", 1.0)
    began = time.monotonic()
    code, _out, err = adadelta("sweep", "it.yaml", "--scheduler", "tcp://127.0.0.1:9")
    assert code == 3 and "no Dask scheduler answers" in err and "dask scheduler" in err
    assert time.monotonic() - began < 60


def cells(path):
    """Read a CSV file without its clock."""
    with path.open(newline="") as file:
        return [{k: v for k, v in row.items() if k != "seconds"} for row in csv.DictReader(file)]


def bytes_of(out):
    """Return all that must be equal: the files without the columns of clocks."""
    document = json.loads((out / "sweep.json").read_text())
    for run in [*document["runs"], document["best"]["run"]]:
        del run["seconds"]
    names = ("history.csv", "config.yaml")
    files = [p for name in names for p in sorted((out / "runs").glob(f"*/{name}"))]
    plain = [out / "summary.csv", out / "sweep.png", *files]
    return cells(out / "sweep.csv"), document, [(p.name, p.read_bytes()) for p in plain]


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """Execute the sweep once; return its folder, stdout and stderr."""
    folder = tmp_path_factory.mktemp("reference")
    (folder / "it.yaml").write_text(TEXT)
    args = [*COMMAND, "sweep", "it.yaml", *FAST, "--out", "out", "--workers", "2"]
    done = subprocess.run(
        args, cwd=folder, capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return folder, done.stdout, done.stderr


@pytest.mark.slow
def test_a_sweep_ends_with_its_best_setting(reference):
    """The table, the best setting, and the files, with nothing left behind."""
    folder, out, err = reference
    assert {path.name for path in (folder / "out").iterdir()} == FILES
    assert len(list((folder / "out" / "runs").glob("[!.]*"))) == 12
    assert "Best: optimizer.rho=" in out and "Repeat its best run: adadelta run it.yaml" in out
    assert "Files: out/sweep.csv" in err
    assert len(cells(folder / "out" / "sweep.csv")) == 12


@pytest.mark.slow
def test_the_command_repeats_the_best_run(reference):
    """The same history, to the byte, beside an earlier run of the config."""
    folder, out, _err = reference
    (line,) = [each for each in out.splitlines() if each.startswith("Repeat")]
    command = shlex.split(line.partition(": ")[2])
    for each in (["run", "it.yaml", "--backend", "numpy"], command[1:]):
        args = [*COMMAND, *each]
        subprocess.run(args, cwd=folder, check=True, capture_output=True, timeout=120)
    best = json.loads((folder / "out" / "sweep.json").read_text())["best"]
    stored = folder / "out" / "runs" / best["run"]["run"] / "history.csv"
    repeated = folder / command[command.index("--out") + 1] / "it" / "history.csv"
    assert repeated.read_bytes() == stored.read_bytes()


@pytest.mark.slow
def test_json_is_one_document_and_nothing_runs_twice(reference, tmp_path):
    """With the workers of the first sweep's files; stdout has nothing else."""
    folder, _out, _err = reference
    before = {p: p.stat().st_mtime_ns for p in (folder / "out" / "runs").glob("*/*")}
    args = [*COMMAND, "sweep", "it.yaml", *FAST, "--out", "out", "--json", "-q"]
    done = subprocess.run(args, cwd=folder, capture_output=True, check=True, timeout=120)
    document = json.loads(done.stdout)
    assert document["sweeps"][0] == json.loads((folder / "out" / "sweep.json").read_text())
    assert {p: p.stat().st_mtime_ns for p in (folder / "out" / "runs").glob("*/*")} == before
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_the_number_of_workers_changes_no_byte(reference, tmp_path):
    """One worker or three."""
    folder, _out, _err = reference
    args = [*COMMAND, "sweep", str(folder / "it.yaml"), *FAST, "--threads", "1", "--workers"]
    for workers in ("1", "3"):
        out = tmp_path / workers
        run = [*args, workers, "--out", str(out), "-q"]
        subprocess.run(run, cwd=folder, check=True, capture_output=True, timeout=300)
        same = bytes_of(out), bytes_of(folder / "out")
        for one, two in zip(*same, strict=True):
            assert _unnamed(one) == _unnamed(two)


def _unnamed(value):
    """Leave out the command, which names the config as the user did."""
    if isinstance(value, dict):
        return {**value, "best": {**value["best"], "command": ""}}
    return value


def start(folder, *more):
    """Start the sweep in a process group of its own."""
    args = [*COMMAND, "sweep", "it.yaml", *FAST, "--out", "out", "--workers", "2", *more]
    return subprocess.Popen(
        args, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def stored(folder):
    """List the runs that are done."""
    return sorted(path.name for path in (folder / "out" / "runs").glob("[!.]*"))


def wait_for(condition, process, seconds=120):
    """Wait until a condition holds, or the process has ended."""
    until = time.monotonic() + seconds
    while not condition() and process.poll() is None and time.monotonic() < until:
        time.sleep(0.005)


def descendants(process):
    """List the processes that a process started."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return psutil.Process(process.pid).children(recursive=True)
    return []


@pytest.mark.slow
def test_a_sweep_that_is_killed_ten_times_goes_on(reference, tmp_path):
    """Each run is done once, its workers end at once; the bytes are those of an unkilled sweep."""
    folder, _out, _err = reference
    (tmp_path / "it.yaml").write_text(TEXT)
    chosen = random.Random(0)  # noqa: S311
    done: dict[str, int] = {}
    for _ in range(10):
        process = start(tmp_path)
        before = len(stored(tmp_path))
        more = chosen.randrange(2)
        wait_for(lambda: len(stored(tmp_path)) >= before + more, process)  # noqa: B023
        time.sleep(chosen.random() * 0.3)
        children = descendants(process)
        process.kill()
        process.communicate(timeout=60)
        _gone, alive = psutil.wait_procs(children, timeout=30)
        assert not alive
        for run in stored(tmp_path):
            stamp = (tmp_path / "out" / "runs" / run / "summary.json").stat().st_mtime_ns
            assert done.setdefault(run, stamp) == stamp, "done once"
    last = start(tmp_path)
    _out, err = last.communicate(timeout=300)
    assert last.returncode == 0, err
    assert bytes_of(tmp_path / "out") == bytes_of(folder / "out")
    names = {path.name for path in (tmp_path / "out" / "runs").iterdir()}
    assert names == {*stored(tmp_path), ".lock"} and len(names) == 13
    for run, stamp in done.items():
        path = tmp_path / "out" / "runs" / run / "summary.json"
        assert path.stat().st_mtime_ns == stamp


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_sweep_keeps_what_is_finished(tmp_path, number, code):
    """The message says how to go on; the tables have the finished rows."""
    (tmp_path / "it.yaml").write_text(TEXT.replace("seeds: 2", "seeds: 200"))
    process = start(tmp_path)
    wait_for(lambda: len(stored(tmp_path)) >= 3, process)
    children = descendants(process)
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == code, err
    assert not psutil.wait_procs(children, timeout=30)[1]
    assert "of 1200 runs are done; the same command" in err
    assert "Best: " in out
    rows = cells(tmp_path / "out" / "sweep.csv")
    assert 3 <= len(rows) < 1200
    assert not json.loads((tmp_path / "out" / "sweep.json").read_text())["complete"]


@pytest.mark.slow
def test_two_sweeps_share_a_folder(reference, tmp_path):
    """Each run is computed once, by one of them; both end with all rows."""
    folder, _out, _err = reference
    (tmp_path / "it.yaml").write_text(TEXT)
    two = [start(tmp_path, "-v"), start(tmp_path, "-v")]
    for process in two:
        _, err = process.communicate(timeout=300)
        assert process.returncode == 0, err
        assert bytes_of(tmp_path / "out") == bytes_of(folder / "out")


@pytest.mark.slow
def test_a_run_that_takes_too_long_is_a_row(tmp_path):
    """Its worker is replaced; the others go on; exit code 1."""
    text = TEXT.replace("optimizer.epsilon: [1e-6, 1e-4, 1e-2]", "training.steps: [5, 1000000000]")
    (tmp_path / "it.yaml").write_text(text)
    process = start(tmp_path, "--timeout", "1.5")
    _out, err = process.communicate(timeout=300)
    assert process.returncode == 1, err
    rows = cells(tmp_path / "out" / "sweep.csv")
    assert [row["status"] for row in rows] == ["finished"] * 2 + ["timeout"] * 2 + (
        ["finished"] * 2 + ["timeout"] * 2
    )
    assert "4 of 8 runs took too long" in err and "within 1.5 s (--timeout)" in err


@pytest.mark.slow
def test_a_run_whose_process_is_killed_is_a_row(tmp_path):
    """Status crashed; the next sweep tries it again."""
    (tmp_path / "it.yaml").write_text(TEXT.replace("steps: 400", "steps: 5000"))
    process = start(tmp_path)
    wait_for(lambda: len(stored(tmp_path)) >= 1, process)
    computing = [p for p in descendants(process) if not p.children()]
    os.kill(computing[0].pid, signal.SIGKILL)
    _out, err = process.communicate(timeout=300)
    assert process.returncode == 1, err
    statuses = [row["status"] for row in cells(tmp_path / "out" / "sweep.csv")]
    assert sorted(set(statuses)) == ["crashed", "finished"] and statuses.count("crashed") == 1
    again = start(tmp_path)
    _out, err = again.communicate(timeout=300)
    assert again.returncode == 0, err


@pytest.mark.slow
def test_a_folder_of_configs_is_swept_each_into_a_folder(tmp_path):
    """Both are validated before the first runs."""
    (tmp_path / "all").mkdir()
    for name in ("one", "two"):
        text = TEXT.replace("seeds: 2", "seeds: 1").replace("steps: 400", "steps: 20")
        (tmp_path / "all" / f"{name}.yaml").write_text(text)
    args = [*COMMAND, "sweep", "all", *FAST, "--out", "out", "--json"]
    done = subprocess.run(args, cwd=tmp_path, capture_output=True, check=True, timeout=120)
    document = json.loads(done.stdout)
    assert [each["config"] for each in document["sweeps"]] == ["one", "two"]
    for name in ("one", "two"):
        assert {path.name for path in (tmp_path / "out" / name).iterdir()} == FILES
    (tmp_path / "all" / "two.yaml").write_text("problem: {name: rosenbrok}\n")
    args[-2] = "other"
    done = subprocess.run(args, cwd=tmp_path, capture_output=True, check=False, timeout=120)
    assert done.returncode == 2 and not (tmp_path / "other").exists()


def test_paths_of_the_package_are_those_of_this_clone():
    """The processes that these tests start run what is tested."""
    assert Path(__main__.__file__).parents[1] == Path(__file__).parents[2]
