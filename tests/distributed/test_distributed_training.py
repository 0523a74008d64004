"""Trainings on several processes of this machine: their weights, and how they end."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import assert_same_bits, needs_mxnet

from adadelta_cli.distributed.launcher import LOOPBACK, free_ports

pytestmark = [pytest.mark.slow, needs_mxnet]

ADADELTA = [sys.executable, "-m", "adadelta_cli"]
LONGEST_S = 240  # of a command; it imports MXNet in four processes, on a busy machine
CONFIG = """
problem: {name: mlp, hidden: [12]}
training: {batch_size: 64, steps: 30, record_every: 10, checkpoint_every: 10}
"""  # 1437 samples: the 23rd batch has 29, so the halves differ, as do their factors
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1"}  # as the BLAS library's bits depend on it


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    """A small network, with an epoch's last batch of another size."""
    path = tmp_path_factory.mktemp("config") / "small.yaml"
    path.write_text(CONFIG)
    return path


def execute(command, **more):
    """Run a command to its end; return its result, with text."""
    return subprocess.run(
        [*map(str, command)],
        env=ENVIRONMENT | more,
        capture_output=True,
        text=True,
        timeout=LONGEST_S,
        check=False,
    )


def launched(config, out, *options, workers=2, servers=1):
    """Train with `launch`; return the folder of the files."""
    members = ["--workers", workers, "--servers", servers, "--wait", LONGEST_S / 2]
    result = execute([*ADADELTA, "launch", *members, "--", "run", config, "--out", out, *options])
    assert result.returncode == 0, result.stderr
    return out / "small"


def weights(folder):
    """Return the weights of a finished training."""
    with np.load(folder / "checkpoint.npz") as arrays:
        return [arrays[key] for key in sorted(arrays) if key.startswith("weight/")]


WAYS = {
    "workers": [],
    "workers, unfused": ["--no-fused"],
    "servers": ["--update-on", "servers"],
    "servers, unfused": ["--update-on", "servers", "--no-fused"],
    "two servers": ["--update-on", "servers"],
}


@pytest.fixture(scope="module")
def trained(config, tmp_path_factory):
    """Train with two workers in each way, in tensors that are split among servers."""
    base = tmp_path_factory.mktemp("trained")
    logs = [["--log", f"tensorboard:{base / str(k) / 'logs'}"] for k in range(len(WAYS))]
    return {
        way: launched(config, base / str(k), *options, *logs[k], servers=1 + (way == "two servers"))
        for k, (way, options) in enumerate(WAYS.items())
    }


@pytest.fixture(scope="module")
def alone(config, tmp_path_factory):
    """Train in one process, on whole batches and on halves."""
    out = tmp_path_factory.mktemp("alone")
    result = execute([sys.executable, Path(__file__).with_name("by_halves.py"), config, out])
    assert result.returncode == 0, result.stderr

    def of(name):
        with np.load(out / f"{name}.npz") as arrays:
            return [arrays[key] for key in sorted(arrays)]

    return of


@pytest.mark.parametrize("way", WAYS)
def test_two_workers_equal_one_process_that_adds_two_halves_in_every_bit(way, trained, alone):
    """So do fused and unfused steps, on workers and on servers."""
    assert_same_bits(weights(trained[way]), alone("halves-30"))


def test_two_workers_equal_one_process_on_whole_batches_up_to_one_sum(trained, alone):
    """Halves are added in another order: a few units in the last place after one step.

    Largest differences measured: 7.5e-9 after one step, 6.0e-8 after thirty, of weights up to 1.
    """
    for steps, bound in {1: 1e-7, 30: 1e-6}.items():
        pairs = zip(alone(f"halves-{steps}"), alone(f"whole-{steps}"), strict=True)
        assert max(float(np.abs(a - b).max()) for a, b in pairs) < bound
    assert any(
        (a != b).any() for a, b in zip(weights(trained["workers"]), alone("whole-30"), strict=True)
    )


def test_only_the_first_worker_logs(trained):
    """One run, with the numbers of its history.csv."""
    for folder in trained.values():
        (log,) = (folder.parent / "logs").iterdir()
        assert (log.name, len(list(log.iterdir()))) == ("small", 1)


def test_the_files_of_both_ways_agree(trained):
    """The gradient's norm is missing where only the servers have the gradient."""
    rows = {way: (folder / "history.csv").read_text() for way, folder in trained.items()}
    assert rows["workers"] == rows["workers, unfused"]
    assert rows["servers"] == rows["servers, unfused"]
    without = [line.split(",") for line in rows["workers"].splitlines()[1:]]
    for line, wanted in zip(rows["servers"].splitlines()[1:], without, strict=True):
        cells = line.split(",")
        assert cells.pop(3) == "" and wanted.pop(3) is not None  # grad_norm: on the servers only
        assert cells == wanted
    head = (trained["servers"] / "config.yaml").read_text().splitlines()[0]
    assert head.startswith("# adadelta launch --workers 2 -- run ")
    assert "--kvstore dist_sync --update-on servers" in head


@pytest.mark.parametrize("name", ["momentum", "adam"])
def test_other_optimizers_train_on_servers_as_on_workers(name, config, tmp_path):
    """MXNet's own; the request to stop does not move, whatever the optimizer."""
    options = ["--set", f"optimizer={{name: {name}}}"]
    folders = [
        launched(config, tmp_path / where, *options, "--update-on", where)
        for where in ("workers", "servers")
    ]
    assert_same_bits(*map(weights, folders))


def test_one_worker_equals_one_process_in_every_bit(config, tmp_path, alone):
    """Its share is the whole batch."""
    assert_same_bits(weights(launched(config, tmp_path, workers=1)), alone("whole-30"))


# --- ends -----------------------------------------------------------------------------------------


@contextlib.contextmanager
def started(command, **more):
    """Start a command; at the end, nothing of it is left."""
    process = subprocess.Popen(
        [*map(str, command)],
        env=ENVIRONMENT | more,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate(timeout=LONGEST_S)


def wait_for(condition):
    """Return what a function returns, once that is true."""
    until = time.monotonic() + LONGEST_S
    while not (found := condition()):
        assert time.monotonic() < until
        time.sleep(0.05)
    return found


def members(root):
    """Return the PIDs of a training by role; of those whose scheduler has this port."""
    found = {}
    for path in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):
            variables = path.read_bytes().decode(errors="replace").split("\0")
            values = dict(each.split("=", 1) for each in variables if "=" in each)
            is_member = values.get("ADADELTA_TEST") == root and "DMLC_ROLE" in values
            if is_member and "supervisor.py" not in (path.parent / "cmdline").read_text():
                found.setdefault(values["DMLC_ROLE"], []).append(int(path.parent.name))
    return found


def written_at(path):
    """Return when a file was written; None if it was not."""
    return path.stat().st_mtime_ns if path.exists() else None


@contextlib.contextmanager
def endless(config, out, *options):
    """Launch a training that does not end by itself; yield it once it has written a checkpoint."""
    steps = ["--set", "training.steps=1000000", *options]
    command = [*ADADELTA, "launch", "--wait", 100, "--", "run", config, "--out", out, *steps]
    checkpoint = out / "small/checkpoint.npz"
    before = written_at(checkpoint)
    with started(command, ADADELTA_TEST=str(out)) as process:
        wait_for(lambda: process.poll() is not None or written_at(checkpoint) != before)
        assert process.poll() is None
        yield process
    wait_for(lambda: not members(str(out)))  # nothing is left


@pytest.mark.parametrize("role", ["worker", "server", "scheduler"])
def test_a_process_that_is_killed_ends_all_with_code_4(role, config, tmp_path):
    """The message names it and the signal."""
    with endless(config, tmp_path) as process:
        os.kill(members(str(tmp_path))[role][-1], signal.SIGKILL)
        _, errors = process.communicate(timeout=LONGEST_S)
    assert process.returncode == 4
    last = errors.splitlines()[-1]
    assert last.startswith(f"Error: {role}") and "SIGKILL" in last, errors


def test_a_launch_that_is_killed_ends_all(config, tmp_path):
    """Its supervisors notice."""
    with endless(config, tmp_path) as process:
        process.kill()


def test_an_interrupted_training_is_resumed_to_the_same_bytes(config, tmp_path):
    """All workers stop after the same step, by Ctrl-C, and again by SIGTERM."""
    for number, code, *options in ((signal.SIGINT, 130), (signal.SIGTERM, 143, "--resume")):
        with endless(config, tmp_path / "a", *options) as process:
            process.send_signal(number)
            _, errors = process.communicate(timeout=LONGEST_S)
        assert process.returncode == code, errors
    with np.load(tmp_path / "a/small/checkpoint.npz") as found:
        step = int(str(found["document"]).partition('"step": ')[2].partition(",")[0])
    steps = ["--set", f"training.steps={step + 15}"]
    folders = [
        launched(config, tmp_path / "a", "--resume", *steps),
        launched(config, tmp_path / "b", *steps),
    ]
    assert len({(folder / "history.csv").read_bytes() for folder in folders}) == 1
    assert_same_bits(*map(weights, folders))


@contextlib.contextmanager
def cluster(commands, out, wait_s=100.0, **more):
    """Start each command in a process of its own, by hand; yield processes by (role, number)."""
    port = free_ports(1)[0]
    workers = sum(role == "worker" for role, _ in commands)
    root = {"DMLC_PS_ROOT_URI": LOOPBACK, "DMLC_PS_ROOT_PORT": str(port), **more}
    root |= {"DMLC_NUM_SERVER": "1", "DMLC_NUM_WORKER": str(workers), "DMLC_NODE_HOST": LOOPBACK}
    shared = ["--kvstore", "dist_sync", "--wait", wait_s, "--out", out]
    with contextlib.ExitStack() as stack:
        yield [
            stack.enter_context(started([*ADADELTA, "run", *rest, *shared], **root, DMLC_ROLE=role))
            for role, rest in commands
        ]


def test_without_launch_the_others_notice_a_lost_worker(config, tmp_path):
    """The scheduler notices by its heartbeats; the others notice the scheduler's end."""
    train = ["worker", [config, "--set", "training.steps=1000000"]]
    commands = [("scheduler", []), ("server", []), train, train]
    with cluster(commands, tmp_path, PS_HEARTBEAT_TIMEOUT="3") as processes:
        wait_for((tmp_path / "small/checkpoint.npz").exists)
        processes[3].kill()
        for process in processes[:3]:
            _, errors = process.communicate(timeout=LONGEST_S)
            assert process.returncode == 4
            assert "sent nothing for 3 s" in errors, errors


def test_workers_with_different_configs_stop_together(config, tmp_path):
    """The servers leave as after a training."""
    commands = [("scheduler", []), ("server", [])]
    commands += [("worker", [config]), ("worker", [config, "--seed", "1"])]
    with cluster(commands, tmp_path) as processes:
        ends = [process.communicate(timeout=LONGEST_S) for process in processes]
        codes = [process.returncode for process in processes]
    assert codes[:2] == [0, 0] and sorted(codes[2:]) == [2, 4], ends
    messages = "".join(errors for _, errors in ends)
    assert "differ from those of the first worker" in messages
    assert "another worker stopped, and says why" in messages
    assert not list(tmp_path.glob("small/history.csv"))


@pytest.mark.parametrize("role", ["worker", "server", "scheduler"])
def test_a_process_that_meets_nobody_ends_with_code_3(role, config, tmp_path):
    """So does one with the wrong port."""
    options = [*ADADELTA, "run", config, "--kvstore", "dist_sync", "--wait", 3, "--out", tmp_path]
    root = {"DMLC_PS_ROOT_URI": LOOPBACK, "DMLC_PS_ROOT_PORT": str(free_ports(1)[0])}
    root |= {"DMLC_NUM_SERVER": "1", "DMLC_NUM_WORKER": "2", "DMLC_NODE_HOST": LOOPBACK}
    result = execute(options, **root, DMLC_ROLE=role)
    assert result.returncode == 3, result.stderr
    assert "after 3 s, not all processes of the training are connected" in result.stderr
    assert not list(tmp_path.iterdir())


def test_a_wrong_config_is_an_error_of_the_whole_training(tmp_path):
    """All workers find it; the exit code is theirs."""
    options = ["run", "mlp", "--set", "training.batch_size=1", "--out", tmp_path]
    result = execute([*ADADELTA, "launch", "--", *options])
    assert result.returncode == 2
    assert "worker 0: Error: --kvstore: a batch of 1 samples" in result.stderr


# --- programs of the user's -----------------------------------------------------------------------

PROGRAM = """
import sys
from adadelta_cli import AdaDelta
import mxnet as mx

class Own(AdaDelta):
    pass

kind = Own if "own" in sys.argv else AdaDelta
store = mx.kv.create("dist_sync" if "dist" in sys.argv else "local")
net = mx.gluon.nn.Dense(3)
net.initialize(mx.init.One())
optimizer = kind(use_fused_step="fused" in sys.argv, aggregate_num=1)
trainer = mx.gluon.Trainer(
    net.collect_params(), optimizer, kvstore=store, update_on_kvstore=True
)
x = mx.np.arange(20).reshape(4, 5) / 7
for _ in range(5):
    with mx.autograd.record():
        loss = (net(x) ** 2).sum()
    loss.backward()
    trainer.step(8)
print(net.weight.data().asnumpy().tobytes().hex())
"""


@pytest.fixture
def program(tmp_path):
    """A training script of a user's, with Gluon."""
    path = tmp_path / "train.py"
    path.write_text(PROGRAM)
    return path


def test_a_gluon_program_takes_the_fused_step_on_the_servers(program):
    """MXNet's servers could not unpickle the optimizer, and stored the gradients as weights."""
    expected = execute([sys.executable, program]).stdout
    launch = [*ADADELTA, "launch", "--workers", 1, "--", sys.executable, program, "dist"]
    for fused in ([], ["fused"]):
        result = execute([*launch, *fused])
        assert (result.returncode, result.stdout) == (0, f"worker 0: {expected}"), result.stderr


def test_a_server_that_cannot_have_the_optimizer_ends_the_training(program):
    """Its class exists in the worker's script only."""
    launch = [*ADADELTA, "launch", "--workers", 1, "--", sys.executable, program, "dist", "own"]
    result = execute(launch)
    assert result.returncode == 4
    assert "server 0: Error: a server of the training failed" in result.stderr
