"""The folder of the runs: whole results, and claims that end with their process."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys

import pytest
from small_sweeps import sweep

from adadelta_cli.run.config import Expect, load_config
from adadelta_cli.run.sweep_section import SweepSettings
from adadelta_cli.sweep import worker
from adadelta_cli.sweep.store import Store

RUN = "0123456789abcdef"
CLAIM = f"""
import sys
from pathlib import Path
from adadelta_cli.sweep.store import Store
with Store(Path(sys.argv[1])) as store:
    print(store.claim("{RUN}"), flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def store(tmp_path):
    """Open a store."""
    with Store(tmp_path / "runs") as opened:
        yield opened


@pytest.fixture
def result(tmp_path):
    """Return the files of a run."""
    (job, *_) = sweep(tmp_path).jobs.values()
    return worker.train(job)


@pytest.fixture
def other(store):
    """Start another process that claims the run; end it afterwards."""
    command = [sys.executable, "-c", CLAIM, str(store.folder)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        yield process
        process.kill()


def test_a_result_is_read_back(store, result):
    """The rows of a sweep are made of what is on the disk."""
    assert store.read(RUN) is None
    store.write(RUN, result)
    found = store.read(RUN)
    assert (found.diverged, found.steps) == (False, 6)
    assert set(found.metrics) == {"loss", "distance"}
    assert found.metrics["loss"] == json.loads(result["summary.json"])["end"]["loss"]
    assert found.seconds > 0
    assert [row["step"] for row in store.history(RUN)] == [0, 3, 6]
    assert math.isnan(store.history(RUN)[0]["grad_norm"])
    files = {path.name for path in (store.folder / RUN).iterdir()}
    assert files == {"history.csv", "summary.json", "config.yaml"}
    assert (store.folder / RUN / "config.yaml").read_text().startswith("# adadelta run config.yaml")


def test_a_result_is_replaced(store, result):
    """With --force; nothing else is left."""
    store.write(RUN, result)
    store.write(RUN, result)
    assert {path.name for path in store.folder.iterdir()} == {RUN, ".lock"}


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b'{"end": {}}', b'{"end": {"loss": "x"}}', b"\xff"]
)
def test_a_damaged_result_is_none(store, result, content):
    """The run is computed again."""
    store.write(RUN, result)
    (store.folder / RUN / "summary.json").write_bytes(content)
    assert store.read(RUN) is None
    store.write(RUN, result)
    assert store.read(RUN)


@pytest.mark.parametrize("content", [None, b"", b"step,loss\n1,x\n", b"step,loss\n\xff"])
def test_a_damaged_history_is_none_too(store, result, content):
    """The figure needs it."""
    store.write(RUN, result)
    path = store.folder / RUN / "history.csv"
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    assert store.read(RUN) is None


def test_a_claim_excludes_other_processes(store, other):
    """Until it is released, or its process ends, even by SIGKILL."""
    assert other.stdout.readline() == b"True\n"
    assert not store.claim(RUN)
    assert store.claim("f" * 16), "other runs are free"
    os.kill(other.pid, signal.SIGKILL)
    other.wait(30)
    assert store.claim(RUN)


def test_a_claimed_run_is_refused_to_others(store, other):
    """The other process sees the claim of this one."""
    assert other.stdout.readline() == b"True\n"
    other.communicate(timeout=30)
    assert store.claim(RUN)
    command = [sys.executable, "-c", CLAIM, str(store.folder)]
    answers = []
    for _ in range(2):
        done = subprocess.run(command, input=b"", capture_output=True, check=True, timeout=60)
        answers.append(done.stdout)
        store.release(RUN)
    assert answers == [b"False\n", b"True\n"]


def test_a_claim_removes_what_a_killed_process_left(store):
    """Half-written folders of that run, and no others."""
    for name in (f".{RUN}.123.tmp", f".{RUN}.9.old.tmp", f".{'f' * 16}.123.tmp"):
        (store.folder / name).mkdir()
    store.claim(RUN)
    assert {path.name for path in store.folder.iterdir()} == {".lock", f".{'f' * 16}.123.tmp"}


def test_a_file_system_without_locks_does(store, monkeypatch):
    """Two sweeps may then compute the same run, which harms nothing."""
    import fcntl

    def fail(*_):
        raise OSError(37, "No locks available")

    monkeypatch.setattr(fcntl, "lockf", fail)
    half = store.folder / f".{RUN}.123.tmp"
    half.mkdir()
    assert store.claim(RUN)
    assert half.exists(), "the other one may be writing it"
    store.release(RUN)


def test_processes_of_two_machines_with_one_number_write_side_by_side(store, result):
    """As in two containers, where there are no locks."""
    (store.folder / f".{RUN}.{os.getpid()}.tmp").mkdir()
    store.write(RUN, result)
    assert store.read(RUN)


def test_a_result_that_another_process_wrote_meanwhile_serves(store, result, monkeypatch):
    """The folder is there between the two renames."""
    store.write(RUN, result)
    monkeypatch.setattr(
        "pathlib.Path.rename", lambda *_: (_ for _ in ()).throw(OSError(39, "not empty"))
    )
    store.write(RUN, result)
    assert store.read(RUN)


def test_the_config_of_a_run_loads(store, result):
    """It has no section sweep, and no expectations."""
    store.write(RUN, result)
    config = load_config(str(store.folder / RUN / "config.yaml"))
    assert config.training.steps == 6
    assert config.expect == Expect() and config.sweep == SweepSettings()
