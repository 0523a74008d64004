"""`bench --train torch-mlp` and `torch-cnn`: the networks, and the check before they are timed."""

import json
import subprocess
import sys

import pytest
import torch

from adadelta_cli.bench.buffers import TensorSet
from adadelta_cli.bench.device import CpuDevice
from adadelta_cli.bench.trainers import ALLOWED_DISTANCE, NETWORKS, TorchTrainer
from adadelta_cli.bench.trainings import TRAININGS
from adadelta_cli.bench.worker import TrainingTask
from adadelta_cli.implementations import frameworks
from adadelta_cli.implementations.registry import PEERS
from adadelta_cli.kernels import cpu, pool, variants
from adadelta_cli.system import machine
from adadelta_cli.torch import Adadelta
from adadelta_cli.torch.fused import LAYOUT_OF


@pytest.fixture(autouse=True)
def one_thread():
    """Let PyTorch compute alone: its threads wait for each other, beside other tests for long."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


each_network = pytest.mark.parametrize("network", NETWORKS)


@each_network
def test_the_network_has_the_shapes_of_the_row(network):
    """In the order in which the optimizer gets them; and it classifies a batch."""
    build, batch = NETWORKS[network]
    net = build(torch.nn)
    assert tuple(tuple(p.shape) for p in net.parameters()) == TRAININGS[network].shapes
    assert net(torch.zeros(batch)).shape == (batch[0], 10)


@each_network
@pytest.mark.parametrize("seed", [0, 8])
def test_the_fused_step_trains_as_the_stock(network, seed):
    """Within the bound, also where the convolutional net is chaotic (seed 8); and weights move."""
    trainer = TorchTrainer.checked(network, "torch-fused", seed)
    assert 0 < trainer.distance <= ALLOWED_DISTANCE / 4
    assert (trainer.weights - trainer.start).norm() > 0.1


class TooFast(torch.optim.Adadelta):
    """The stock with a rate that is wrong by 1 %."""

    def __init__(self, parameters):
        super().__init__(parameters, lr=1.01)


def _raise(_parameters):
    raise OSError("no\nmemory")


@pytest.mark.parametrize(
    ("optimizer", "says"), [(TooFast, "wrong: "), (_raise, "failed: raised OSError")]
)
def test_what_trains_otherwise_is_not_timed(optimizer, says, monkeypatch):
    """A worker reports the problem in a line, and has no entries."""
    monkeypatch.setattr("adadelta_cli.torch.Adadelta", optimizer)
    spec = {"network": "torch-mlp", "implementations": ["torch-fused"], "seed": 0}
    answer = TrainingTask(spec).ready()
    assert answer["entries"] == [] and answer["faults"]["torch-fused"].startswith(says)
    assert "\n" not in answer["faults"]["torch-fused"]


def test_a_worker_samples_a_step_and_its_parts():
    """Seconds of the whole, the update and the rest, each with the seconds of the whole sample."""
    spec = {"network": "torch-cnn", "implementations": ["torch-fused"], "seed": 0}
    task = TrainingTask(spec)
    answer = task.ready()
    assert answer["entries"] == ["step", "update", "rest"]
    assert answer["variants"]["step"] and answer["distance"] <= ALLOWED_DISTANCE
    found = task.sample(["update", "step"])
    assert list(found) == ["update", "step"]
    assert 0 < found["update"][0] < found["update"][1]


@pytest.mark.slow
def test_threads_are_those_of_both_runtimes():
    """`--threads` sets PyTorch's threads and those of the pool."""
    code = (
        "import torch; from adadelta_cli.kernels import pool; "
        "print(torch.get_num_threads(), pool.threads())"
    )
    env = {**machine.os.environ, **machine.thread_environment(1)}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, check=True)
    assert done.stdout.split() == [b"1", b"1"]


@pytest.mark.slow
def test_the_trainings_end_to_end(tmp_path):
    """`bench --train` has a row for each optimizer, of the compiled one if there is a compiler."""
    options = (
        "--train torch-mlp --train torch-cnn --processes 1 --max-time 0.2 --busy 1 --threads 1"
    )
    command = [sys.executable, "-m", "adadelta_cli", "bench", "--json", *options.split()]
    line = [*command, "--out", tmp_path]
    done = subprocess.run(line, capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)["rows"]
    names = ["torch-foreach", "torch-compile", "torch-fused"]
    assert [row["implementation"] for row in rows] == names * 2
    skipped = frameworks.missing_requirement(PEERS["torch-compile"])
    timed = [name for name in names if not (skipped and name == "torch-compile")]
    assert [row["implementation"] for row in rows if row["median_s"]] == timed * 2
    assert all(row["busy"] == 1 for row in rows)
    assert {each.name for each in tmp_path.iterdir()} >= {"bench.csv", "bench.json", "bench.png"}


def test_how_the_step_is_taken_is_read_from_pytorchs_function():
    """Ours for PyTorch adds no decay of 0: it is another function, and learns for itself."""
    elements = 5000
    layout = LAYOUT_OF[torch.float32]
    (line,) = TensorSet.allocate([(elements,)], "float32", 0)
    optimizer = Adadelta([torch.zeros(elements)])
    optimizer.param_groups[0]["params"][0].grad = torch.ones(elements)
    rows = {
        backend: variants.learned_of(cpu.range_function(layout, decays=backend != "torch"))
        for backend in ("numpy", "torch")
    }
    row = rows["torch"][variants.size_class(elements)]
    before = row.copy()
    optimizer.step()
    assert row[variants.CALLS] == before[variants.CALLS] + 1
    row[variants.BEST] = 1  # one thread, blocks of 64
    found = {backend: CpuDevice().variant(line.line, backend) for backend in rows}
    row[:] = before
    best = int(rows["numpy"][variants.size_class(elements)][variants.BEST])
    parts, block = variants.meaning(best, pool.threads())
    assert found == {"numpy": f"{parts}:{block}", "torch": "1:64"}
