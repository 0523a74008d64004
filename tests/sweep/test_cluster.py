"""A sweep on a Dask cluster of this machine: the same bytes, also when a worker dies."""

from __future__ import annotations

import contextlib
import csv
import json
import signal
import socket
import subprocess
import sys
import time

import psutil
import pytest

pytest.importorskip("distributed")
pytestmark = pytest.mark.slow

COMMAND = [sys.executable, "-m", "adadelta_cli", "sweep", "it.yaml", "--backend", "numpy"]
TEXT = """\
problem: {name: rosenbrock}
training: {steps: 6000, record_every: 1000}
sweep:
  grid: {optimizer.rho: [0.9, 0.99, 0.999], optimizer.epsilon: [1e-6, 1e-4]}
  seeds: 2
"""


def free_port():
    """Return a port that nothing uses."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


class Cluster:
    """A scheduler and workers as processes."""

    def __init__(self, folder, stack):
        self.folder, self.stack = folder, stack
        self.address = f"tcp://127.0.0.1:{free_port()}"
        self.log = folder / "scheduler.log"
        port = self.address.rpartition(":")[2]
        self.scheduler = self._start(
            self.log, "distributed.cli.dask_scheduler", "--host", "127.0.0.1", "--port", port
        )
        self.workers = []

    def _start(self, log, module, *args):
        command = [sys.executable, "-m", module, "--no-dashboard", *args]
        file = self.stack.enter_context(log.open("w"))
        process = subprocess.Popen(command, cwd=self.folder, stdout=file, stderr=file)
        self.stack.enter_context(process)
        self.stack.callback(process.kill)
        return process

    def add_worker(self):
        """Start a worker with one thread, without a nanny that would replace it."""
        number = len(self.workers)
        self.workers.append(
            self._start(
                self.folder / f"worker{number}.log",
                "distributed.cli.dask_worker",
                self.address,
                *("--nthreads", "1", "--no-nanny", "--name", f"w{number}"),
                *("--local-directory", str(self.folder / f"w{number}")),
            )
        )

    def wait_for_workers(self, number):
        """Wait until the scheduler knows this many."""
        from distributed import Client

        with Client(self.address, timeout=60, set_as_default=False) as client:
            client.wait_for_workers(number, timeout=120)


@pytest.fixture
def cluster(tmp_path):
    """Start a scheduler; all that was started ends afterwards."""
    with contextlib.ExitStack() as stack:
        yield Cluster(tmp_path, stack)


def sweep(folder, *args):
    """Start a sweep."""
    (folder / "it.yaml").write_text(TEXT)
    return subprocess.Popen(
        [*COMMAND, *args], cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def finished(folder):
    """Count the runs that are done."""
    return len(list((folder / "cluster" / "runs").glob("[!.]*")))


def wait_for(condition, process):
    """Wait until a condition holds; fail if the process ends before."""
    until = time.monotonic() + 120
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < until
        time.sleep(0.01)


def computing(worker):
    """List the processes that a worker of the cluster started."""
    return psutil.Process(worker.pid).children(recursive=True)


def rows(path):
    """Read a CSV file without its clock."""
    with path.open(newline="") as file:
        return [{k: v for k, v in row.items() if k != "seconds"} for row in csv.DictReader(file)]


def test_a_cluster_gives_the_bytes_of_this_machine_though_a_worker_is_killed(cluster, tmp_path):
    """Its run is repeated elsewhere; rows, medians and picture are equal."""
    for _ in range(3):
        cluster.add_worker()
    cluster.wait_for_workers(3)
    process = sweep(tmp_path, "--scheduler", cluster.address, "--out", "cluster")
    wait_for(lambda: finished(tmp_path) >= 1 and computing(cluster.workers[0]), process)
    children = computing(cluster.workers[0])
    cluster.workers[0].kill()
    assert finished(tmp_path) < 12, "it was killed in the middle"
    _gone, alive = psutil.wait_procs(children, timeout=30)
    assert not alive, "what a dead worker computed ends"
    _out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    local = sweep(tmp_path, "--out", "local")
    _out, err = local.communicate(timeout=300)
    assert local.returncode == 0, err
    one, two = tmp_path / "cluster", tmp_path / "local"
    assert rows(one / "sweep.csv") == rows(two / "sweep.csv")
    assert all(row["status"] == "finished" for row in rows(one / "sweep.csv"))
    for name in ("summary.csv", "sweep.png"):
        assert (one / name).read_bytes() == (two / name).read_bytes()
    for run in (one / "runs").glob("[!.]*"):
        for name in ("history.csv", "config.yaml"):
            assert (run / name).read_bytes() == (two / "runs" / run.name / name).read_bytes()
    documents = [json.loads((each / "sweep.json").read_text()) for each in (one, two)]
    assert documents[0]["settings"] == documents[1]["settings"]
    for worker in cluster.workers[1:]:
        assert not computing(worker), "the processes of the sweep ended with it"


def test_an_interrupted_sweep_leaves_nothing_behind_on_the_cluster(cluster, tmp_path):
    """What it computed there ends, and the cluster serves the next one."""
    cluster.add_worker()
    cluster.wait_for_workers(1)
    args = ("--scheduler", cluster.address, "--out", "cluster")
    process = sweep(tmp_path, *args)
    wait_for(lambda: finished(tmp_path) >= 1, process)
    process.send_signal(signal.SIGINT)
    _out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "runs are done; the same command" in err and "Traceback" not in err
    psutil.wait_procs(computing(cluster.workers[0]), timeout=30)
    assert not computing(cluster.workers[0])
    again = sweep(tmp_path, *args)
    _out, err = again.communicate(timeout=300)
    assert again.returncode == 0, err


def test_a_lost_scheduler_ends_the_sweep(cluster, tmp_path):
    """Exit code 4, after a bounded time; finished runs are on disk."""
    cluster.add_worker()
    cluster.wait_for_workers(1)
    process = sweep(tmp_path, "--scheduler", cluster.address, "--out", "cluster")
    wait_for(lambda: finished(tmp_path) >= 1, process)
    cluster.scheduler.kill()
    _out, err = process.communicate(timeout=120)
    assert process.returncode == 4, err
    assert "scheduler was lost" in err and "Traceback" not in err
    assert len(rows(tmp_path / "cluster" / "sweep.csv")) == finished(tmp_path) >= 1


def test_a_cluster_without_workers_is_waited_for(cluster, tmp_path):
    """The message says so; a worker that comes later does the work."""
    process = sweep(tmp_path, "--scheduler", cluster.address, "--out", "cluster")
    line = process.stderr.readline()
    assert "has no workers yet" in line
    cluster.add_worker()
    _out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
