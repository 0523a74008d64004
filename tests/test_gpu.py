"""`--ctx gpu`: steps on a device, what is missing told with what fixes it, a device that fails.

Most of it runs on a simulated GPU (tests/simulated_gpu): the real CUDA sources and the real
commands, on the host. What it finds says that they are right, and nothing about the speed of a GPU.
Tests marked `gpu` need a real one: `make test-gpu`.
"""

from __future__ import annotations

import csv
import importlib.util
import json
import os
import re
import subprocess
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import host_cuda
import numpy as np
import pytest
from conftest import AWKWARD, HERE, SIMULATED, assert_same_bits, random_arrays, slow_but

import adadelta_cli
from adadelta_cli import errors
from adadelta_cli.bench import device as processor
from adadelta_cli.bench import plan as planning
from adadelta_cli.bench import workloads
from adadelta_cli.bench.buffers import TensorSet
from adadelta_cli.doctor import checks
from adadelta_cli.errors import UnavailableError
from adadelta_cli.implementations import array_backends, optimizers, registry
from adadelta_cli.implementations.array_backends import Device
from adadelta_cli.implementations.base import StepInputs
from adadelta_cli.kernels import cuda
from adadelta_cli.mxnet_bridge import probe
from adadelta_cli.run.optimizers import OPTIMIZERS
from adadelta_cli.system import gpu
from adadelta_cli.update import Hyperparameters, Parameter, update

ROOT = HERE.parent
HAS_CUPY = importlib.util.find_spec("cupy") is not None
needs_compiler = pytest.mark.skipif(
    host_cuda.COMPILER is None, reason="the simulation compiles CUDA sources with a C++ compiler"
)
needs_mxnet = pytest.mark.skipif(
    importlib.util.find_spec("mxnet") is None, reason="MXNet is not installed"
)
SHAPES = ((5000, "float32"), (37, "float16"))
CASES = ("odd", "special", "subnormal", "subnormal-odd", "clip_gradient=0.0", "length-0")


def process(*args, path=(SIMULATED, HERE), **environment):
    """Run a command on a simulated GPU, or with another Python path, in a process of its own."""
    command = [sys.executable, "-m", "adadelta_cli", *map(str, args)]
    environment["PYTHONPATH"] = os.pathsep.join(map(str, (*path, ROOT)))
    return subprocess.run(
        command, capture_output=True, text=True, check=False, env=os.environ | environment
    )


def rows(folder):
    """Read verify.csv."""
    with (folder / "verify.csv").open() as file:
        return list(csv.DictReader(file))


@pytest.mark.slow
@needs_compiler
def test_fused_and_unfused_give_the_bits_of_the_cpu(tmp_path):
    """No bit differs: array update on a CPU, unfused, fused; in every dtype; drawn cases too."""
    chosen = [part for case in (*CASES, "drawn") for part in ("--case", case)]
    done = process("verify", "--ctx", "gpu", "--backend", "cupy", *chosen, "--out", tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    found = [row for row in rows(tmp_path) if row["reference"] != "oracle"]
    assert {row["implementation"] for row in found} == {"cupy", "cupy-fused"}
    assert {(row["backend"], row["ctx"]) for row in found} == {("cupy", "gpu")}
    assert {row["dtype"] for row in found} == {"float16", "float32", "float64"}
    assert {row["check"] for row in found} >= {"step", "gradient", "guard", "repeat", "drawn"}
    assert sum(int(row["mismatches"] or 0) for row in found) == 0
    assert all(row["passed"] == "true" for row in found)


@needs_compiler
def test_cupys_own_operators_would_flush_subnormals(simulated):
    """So the unfused step has operators of its own: with CuPy's, bits differ."""
    arrays = random_arrays(2000, low=-40, high=-18)
    hyper = Hyperparameters(**AWKWARD)
    scalars = hyper.scalars("float32")
    wanted = Parameter(*map(np.copy, arrays))
    update(np, wanted, scalars, 1.0, 0.0)
    with_cupy = Parameter(*map(simulated.array, arrays))
    update(simulated, with_cupy, scalars, 1.0, 0.0)
    assert np.any(simulated.asnumpy(with_cupy.acc_grad) != wanted.acc_grad)
    ours = Parameter(*map(simulated.array, arrays))
    ones = [1.0]
    plain = Hyperparameters(**{**AWKWARD, "learning_rate": 1.0, "wd": 0.0})
    registry.IMPLEMENTATIONS["cupy"].bind(StepInputs([ours], plain, ones, ones))()
    assert_same_bits(map(simulated.asnumpy, ours.arrays), wanted.arrays)


@needs_compiler
def test_a_wrong_operation_is_found(monkeypatch, simulated):
    """The verifier goes red when one operation of the source is another."""
    assert simulated
    source = cuda.source()
    wrong = source.replace(
        "OPERATION(divide_##NAME, NUMBER, Real<NUMBER>, a / b)",
        "OPERATION(divide_##NAME, NUMBER, Real<NUMBER>, b / a)",
    )
    assert wrong != source
    monkeypatch.setattr(cuda, "source", lambda: wrong)
    from adadelta_cli.system.sandbox import InProcess
    from adadelta_cli.verification.plan import Request
    from adadelta_cli.verification.runner import Verification

    work = Verification(Request(names=("cupy",), case_names=("odd",), device=Device("gpu")).plan)
    work.execute(sandbox=InProcess())
    assert {row.tensor for row in work.failures} >= {"weight", "acc_delta"}
    (told,) = {row.replay for row in work.failures if row.dtype == "float32"}
    assert told.endswith("--case odd --impl cupy --dtype float32 --ctx gpu")


@needs_compiler
@needs_mxnet
def test_the_optimizers_fused_step_reaches_arrays_over_dlpack(monkeypatch, simulated):
    """Where the arrays are no CPU's, the CUDA kernel steps on MXNet's own memory: the same bits."""
    from adadelta_cli.mxnet_bridge import fused, runtime
    from adadelta_cli.mxnet_bridge.optimizer import AdaDelta

    assert simulated
    mx = runtime.load_mxnet()
    found = []
    for step in (fused.FusedMxnetStep, None):
        if step is None:  # as it is of arrays on a GPU
            monkeypatch.setattr(fused.FusedMxnetStep, "_inspect", lambda _: np.full(2, -1))
        optimizer = AdaDelta(**AWKWARD, multi_precision=True, use_fused_step=True)
        weights = [mx.np.array(random_arrays(n)[0].astype(t)) for n, t in SHAPES]
        grads = [mx.np.array(random_arrays(n, seed=1)[1].astype(t)) for n, t in SHAPES]
        states = [optimizer.create_state_multi_precision(k, w) for k, w in enumerate(weights)]
        for _ in range(3):
            optimizer.update_multi_precision([0, 1], weights, grads, states)
        flat = [*weights, *states[0], states[1][0], *states[1][1]]
        found.append([array.asnumpy() for array in flat])
    assert_same_bits(found[1], found[0])
    step = optimizer._bound[0].step
    assert isinstance(step, fused.FusedMxnetGpuStep)
    where = []  # the arrays' own device is the current one when the work is waited for, only then
    stream = SimpleNamespace(synchronize=lambda: where.append(simulated.cuda.Device().id))
    monkeypatch.setattr(simulated.cuda, "get_current_stream", lambda: stream)
    monkeypatch.setenv("SIMULATED_GPU_DEVICES", "2")
    step._number = 1
    optimizer.update_multi_precision([0, 1], weights, grads, states)
    assert where == [1] and simulated.cuda.Device().id == 0


@pytest.mark.slow
@needs_compiler
def test_the_cupy_example_passes(tmp_path):
    """A user's function gets CuPy arrays, and is compared within the bounds of any order."""
    kernel = f"{ROOT / 'examples' / 'cupy_kernel.py'}:step"
    chosen = ("--case", "odd", "--case", "special", "--case", "length-4097")
    done = process("verify", "--impl", kernel, "--ctx", "gpu", *chosen, "--out", tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    found = [row for row in rows(tmp_path) if row["passed"]]
    assert {(row["backend"], row["ctx"]) for row in found} == {("cupy", "gpu")}


KERNEL = """
import ctypes, time, cupy
from adadelta_cli.kernels import cupy_ieee
from adadelta_cli.update import Hyperparameters, Parameter, update
def step(*arrays, **settings):
    rate, wd = settings["learning_rate"], settings["wd"]
    scalars = Hyperparameters(**settings).scalars(arrays[0].dtype)
    update(cupy_ieee, Parameter(*map(cupy_ieee.IeeeArray, arrays)), scalars, rate, wd)
    {}
"""


@pytest.mark.slow
@needs_compiler
@pytest.mark.parametrize(
    ("line", "told", "then"),
    [
        (
            "ctypes.memset(arrays[2].data.ptr + arrays[2].nbytes, 0, 4)",
            "wrote outside acc_grad",
            "false",
        ),
        # The device is of no use from then on, to this process.
        (
            "if arrays[0].size == 17: cupy.cuda._fails = lambda *_: 700; cupy.cuda._launch()",
            "raised CUDARuntimeError: cudaErrorIllegalAddress",
            "true",
        ),
        ("if arrays[0].size == 17: time.sleep(60)", "hung: no result within 8 s", ""),
    ],
    ids=["guard", "fault", "hang"],
)
def test_faults_of_a_kernel_are_told_and_the_rest_goes_on(tmp_path, line, told, then):
    """Guard zones, faults of the device and hangs are rows that failed; exit code 1."""
    (tmp_path / "kernel.py").write_text(KERNEL.format(line))
    done = process(
        "verify",
        "--impl",
        f"{tmp_path}/kernel.py:step",
        "--ctx",
        "gpu",
        "--case",
        "length-17",
        "--case",
        "length-1",
        "--dtype",
        "float32",
        "--timeout",
        "8",
        "--out",
        tmp_path / "out",
    )
    assert done.returncode == 1, done.stdout + done.stderr
    failed = [row for row in rows(tmp_path / "out") if row["passed"] == "false"]
    assert failed and told in failed[0]["note"]
    after = [row for row in rows(tmp_path / "out") if row["case"] == "length-1"]
    assert after[0]["passed"] == then, after


@needs_compiler
def test_verify_takes_a_device_in_python(simulated):
    """`adadelta_cli.verify(step, ctx="gpu")` gives the function CuPy arrays."""
    seen = []

    def step(weight, *_arrays, **_settings):
        seen.append(type(weight))

    found = adadelta_cli.verify(step, cases=["length-17"], dtypes=["float32"], ctx="gpu")
    assert set(seen) == {simulated.ndarray}
    assert {row.ctx for row in found} == {"gpu"}
    assert any(row.passed is False for row in found)


SHORT = {
    "rosenbrock": ("--set", "training.steps=300", "--set", "training.record_every=50"),
    "logistic_regression": ("--set", "training.steps=20"),
    "mlp": ("--set", "training.epochs=2"),
}


@pytest.mark.slow
@needs_compiler
@pytest.mark.parametrize("problem", SHORT)
def test_run_trains_on_the_device(tmp_path, problem):
    """Fused, unfused, and stopped midway: the same history; the summary says where it ran."""
    where = (problem, *SHORT[problem], "--ctx", "gpu", "--backend", "cupy", "--dtype", "float16")
    whole, plain = (tmp_path / name for name in ("whole", "plain"))
    process("run", *where, "--out", whole)
    process("run", *where, "--no-fused", "--out", plain)
    history = (whole / problem / "history.csv").read_bytes()
    assert history == (plain / problem / "history.csv").read_bytes()
    summary = json.loads((whole / problem / "summary.json").read_text())
    assert (summary["backend"], summary["ctx"]) == ("cupy", "gpu")
    assert summary["end"]["loss"] < summary["start"]["loss"]


@needs_compiler
@pytest.mark.usefixtures("simulated")
@pytest.mark.parametrize("dtype", ["float32", "float64", "float16"])
@pytest.mark.parametrize("name", optimizers.RULES)
def test_other_optimizers_take_the_steps_of_the_cpu(name, dtype):
    """The same formula, in the same bits: no number here is subnormal."""
    settings = OPTIMIZERS[name](name=name, clip_gradient=0.5, wd=0.01).model_dump()
    ends = []
    for library, device in (("numpy", "cpu"), ("cupy", "gpu")):
        backend = array_backends.backend(library, Device.parse(device))
        start = np.linspace(-1, 1, 12).reshape(3, 4)
        tensor = optimizers.tensor(backend, start, name, dtype)
        step = optimizers.bind(backend, [tensor], settings)
        for k in range(5):
            backend.assign(tensor.grad, (np.cos(k + start) - 0.3).astype(dtype))
            step()
        ends.append([backend.numpy(each) for each in tensor.arrays.values()])
    assert_same_bits(*ends)
    assert not np.array_equal(ends[0][0], start)


@pytest.mark.slow
@needs_compiler
def test_a_run_goes_on_where_it_stopped(tmp_path):
    """A checkpoint of the device, resumed, ends with the bytes of a run that never stopped."""
    where = ("rosenbrock", "--ctx", "gpu", "--backend", "cupy", "--set", "training.record_every=50")
    for steps, *how in (("150", "stopped"), ("300", "stopped", "--resume"), ("300", "whole")):
        folder, *resume = how
        length = ("--set", f"training.steps={steps}")
        process("run", *where, *length, *resume, "--out", tmp_path / folder)
    first, second = (tmp_path / name / "rosenbrock/history.csv" for name in ("stopped", "whole"))
    assert first.read_bytes() == second.read_bytes() and len(first.read_text().splitlines()) == 8


QUICK = ("--processes", 1, "--max-time", 0.5)


@pytest.mark.slow
@needs_compiler
def test_bench_times_both_steps_against_a_kernel_of_the_same_traffic(tmp_path):
    """On tensors that are in no cache; the rows say where, the document what the GPU is."""
    dtypes = ("--dtype", "float32", "--dtype", "float16")
    done = process("bench", "--ctx", "gpu", "--sizes", 2000, *dtypes, *QUICK, "--out", tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    document = json.loads((tmp_path / "bench.json").read_text())
    found = {(row["implementation"], row["dtype"]): row for row in document["rows"]}
    assert set(found) == {(n, t) for n in ("cupy", "cupy-fused") for t in ("float32", "float16")}
    for row in found.values():
        assert (row["ctx"], row["backend"], row["cache"]) == ("gpu", "cupy", "cold")
        assert row["bound"] == "memory" and row["ceiling_fraction"] > 0
        assert "of a device copy's bandwidth" in row["note"]
    assert found["cupy", "float32"]["peak_extra_bytes"] >= 2000 * 4
    assert found["cupy-fused", "float32"]["peak_extra_bytes"] == 0
    assert found["cupy-fused", "float32"]["speedup"] > 1
    assert set(document["roofs_s"][0]) == {"memory roof", "device copy"}
    assert document["machine"]["gpu"]["processor"] == "simulated GPU 0"
    assert document["machine"]["gpu"]["cache_bytes"] == {"L2": 2**18}


def test_a_time_on_a_gpu_is_the_devices_own(monkeypatch, simulated):
    """Between an event before all steps and one behind, which is waited for; in milliseconds."""
    seen = []
    event = SimpleNamespace(
        record=partial(seen.append, "recorded"), synchronize=partial(seen.append, "waited for")
    )
    monkeypatch.setattr(simulated.cuda, "Event", lambda: event)
    monkeypatch.setattr(simulated.cuda, "get_elapsed_time", lambda *_: 8.0)
    seconds = processor.GpuDevice(Device("gpu")).seconds(
        [partial(seen.append, k) for k in range(4)]
    )
    assert seconds == 2e-3
    assert seen == ["recorded", 0, 1, 2, 3, "recorded", "waited for"]


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16"])
def test_the_ceiling_and_the_copy_change_no_tensor(simulated, dtype):
    """Else the steps that are timed beside them would step on something else."""
    assert simulated
    place = processor.GpuDevice(Device("gpu"))
    (tensors,) = TensorSet.allocate([(3000,), (7, 5)], dtype, 0, region=place.region)
    before = [place.numpy(array) for array in tensors.line.arrays]
    for roof in place.roofs([tensors], dtype, 0, Hyperparameters()):
        for step in roof.steps:
            step()
    assert_same_bits([place.numpy(array) for array in tensors.line.arrays], before)


def test_a_device_copy_moves_the_bytes_that_are_counted(monkeypatch, simulated):
    """A whole array of states to another place, for every copy of the tensors: 8 of 28 bytes."""
    place, moved = processor.GpuDevice(Device("gpu")), []
    two = TensorSet.allocate([(3000,)], "float32", 0, copies=2, region=place.region)
    monkeypatch.setattr(
        simulated.cuda.MemoryPointer,
        "copy_from_device_async",
        lambda target, source, nbytes: moved.append((target.ptr, source.ptr, nbytes)),
    )
    memory, copy = place.roofs(two, "float32", 0, Hyperparameters())
    for step in copy.steps:
        step()
    states = [each.line.acc_grad for each in two]
    assert [(source, nbytes) for _, source, nbytes in moved] == [
        (state.data.ptr, 4 * state.size) for state in states
    ]
    assert len({pointer for each in moved for pointer in each[:2]}) == 4
    assert copy.steps_per_call == 8 / 28
    lines = [each.owners[0].data.ptr for each in memory.steps]
    assert lines == [each.line.weight.data.ptr for each in two]


def test_what_is_evicted_by_is_passed_over(simulated):
    """Each byte is read and written."""
    place = processor.GpuDevice(Device("gpu"))
    evict = place.evictor(1000)
    evict()
    assert simulated.asnumpy(evict.keywords["out"]).sum() == 1000


def test_memory_that_nobody_counted_is_left_empty(simulated):
    """Of what the allocators of other libraries take, nothing is known."""
    place = processor.GpuDevice(Device("gpu"))
    counted = {name for name in ("cupy", "torch", "jax", "mxnet") if place.counts(name)}
    assert simulated and counted == {"cupy", "torch"}


def test_what_bench_needs_is_free_memory_of_that_gpu(monkeypatch, simulated):
    """Its L2 cache says how many copies are cold; theirs and the copy's targets are counted."""
    found = processor.GpuDevice(Device("gpu")).survey()
    assert (found.cache_bytes, found.available_bytes) == (2**18, 2**30 - 2**20)
    monkeypatch.setattr(planning, "survey", lambda _: found)
    there = Device("gpu")
    chosen = (registry.implementation("cupy-fused", there),)
    plan = planning.BenchPlan(tuple(workloads.sizes("1e4")), chosen, caches=("cold",), device=there)
    (group,) = plan.groups
    copies = -(-2 * 2**18 // 160_000) + 1
    assert simulated and planning.needed_bytes(plan, group) == copies * (160_000 + 40_000)


def test_no_grid_is_larger_than_a_gpu_takes():
    """CUDA C++ Programming Guide, table "Technical Specifications": 2^31 - 1 blocks in x."""
    assert cuda.MOST_BLOCKS <= 2**31 - 1


@pytest.mark.slow
def test_a_gpu_of_another_number_is_the_one_that_computes(tmp_path):
    """Its own processes make it the current one, and look at its memory."""
    where = ("--sizes", 100, *QUICK, "--impl", "cupy-fused", "--out", tmp_path)
    done = process("bench", "--ctx", "gpu:1", *where, SIMULATED_GPU_DEVICES="2")
    assert done.returncode == 0, done.stdout + done.stderr
    document = json.loads((tmp_path / "bench.json").read_text())
    assert document["machine"]["gpu"]["processor"] == "simulated GPU 1"
    assert [row["ctx"] for row in document["rows"]] == ["gpu:1"]


@pytest.mark.slow
@needs_compiler
def test_a_wrong_kernel_on_a_gpu_gets_no_time(tmp_path):
    """It is checked before it is timed, on the arrays that it is timed on."""
    kernel = tmp_path / "kernel.py"
    kernel.write_text(
        "def step(weight, grad, acc_grad, acc_delta, **hyper):\n"
        "    assert type(weight).__module__ == 'cupy'\n    weight *= 2\n"
    )
    arguments = ("--impl", f"{kernel}:step", "--sizes", 100, *QUICK, "--out", tmp_path)
    done = process("bench", "--ctx", "gpu", *arguments)
    assert done.returncode == 1, done.stdout + done.stderr
    (row,) = json.loads((tmp_path / "bench.json").read_text())["rows"]
    assert row["median_s"] is None and "acc_delta is off by" in row["note"]


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        (
            ("--sizes", "1e9"),
            3,
            r"needs .* GB \(\d+ bytes\) and 1\.1 GB \(1072693248 bytes\).*cupy-fused",
        ),
        (("--train", "mlp"), 2, "leave out --train, or --ctx"),
        (("--impl", "numpy-fused"), 2, "numpy-fused computes on a CPU"),
        (("--backend", "numpy"), 2, "numpy has no arrays there"),
        pytest.param(
            ("--impl", "mxnet-fused"),
            3,
            "MXNet's CUDA: (not built in|MXNet is not installed)",
            marks=pytest.mark.slow,  # a process imports MXNet
        ),
    ],
)
@pytest.mark.usefixtures("simulated")
def test_what_bench_refuses_on_a_gpu(adadelta, arguments, code, told):
    """Before anything is timed; nothing is written."""
    got, _, err = adadelta("bench", "--ctx", "gpu", *arguments, "--out", "out")
    assert got == code and re.search(told, err), err
    assert not Path("out").exists()


def test_bench_on_a_cpu_takes_no_step_of_a_gpu(adadelta):
    """And says which device it wants."""
    code, _, err = adadelta("bench", "--impl", "cupy-fused")
    assert code == 2 and "computes on a GPU; add --ctx gpu" in err


@pytest.mark.slow
@needs_compiler
def test_a_gpu_that_is_lost_is_no_verdict_on_a_step(tmp_path):
    """Exit code 4, not 1: what was computed was not found to be wrong."""
    where = ("--sizes", 100, *QUICK, "--out", tmp_path)
    for fault in ({"FAULT": "719@2"}, {"FAULT": "719@9"}, {"FAULT": "214@500"}, {"MEMORY": "@9"}):
        environment = {f"SIMULATED_GPU_{name}": value for name, value in fault.items()}
        done = process("bench", "--ctx", "gpu", *where, **environment)
        assert done.returncode == 4, done.stdout + done.stderr
        told = "the GPU ran out of memory" if "MEMORY" in fault else "the GPU failed during the"
        assert re.search(f"^Error: {told}", done.stderr, re.MULTILINE), done.stderr
        assert "Traceback" not in done.stderr


@pytest.mark.slow
@needs_compiler
def test_memory_that_runs_out_is_no_fault_of_a_kernel(tmp_path):
    """Of a user's own neither; what it does wrong itself, as an illegal address, is."""
    kernel = tmp_path / "kernel.py"
    kernel.write_text(
        "import cupy\n"
        "def step(weight, grad, acc_grad, acc_delta, **hyper):\n"
        "    raise cupy.cuda.CUDARuntimeError(STATUS)\n"
    )
    for status, code in ((2, 4), (46, 4), (700, 1)):
        named = kernel.with_name(f"kernel{status}.py")
        named.write_text(kernel.read_text().replace("STATUS", str(status)))
        where = ("--impl", f"{named}:step", "--sizes", 100, *QUICK, "--out", tmp_path)
        done = process("bench", "--ctx", "gpu", *where)
        assert done.returncode == code, done.stdout + done.stderr


MISSING = {
    "driver": ({"SIMULATED_GPU_DRIVER": "0"}, "driver: none", "install NVIDIA's driver"),
    "old driver": (
        {"SIMULATED_GPU_DRIVER": "11040"},
        "for CUDA 11.4, and CuPy is built for",
        "install NVIDIA's driver, 525",
    ),
    "device": ({"SIMULATED_GPU_DEVICES": "0"}, "cudaErrorNoDevice", "nvidia-smi"),
    "hidden": (
        {"SIMULATED_GPU_DEVICES": "0", "CUDA_VISIBLE_DEVICES": ""},
        "CUDA_VISIBLE_DEVICES is ''",
        "unset CUDA_VISIBLE_DEVICES",
    ),
    "compiler": (
        {"SIMULATED_GPU_NVRTC": "missing"},
        "libnvrtc.so.12",
        "pip install 'adadelta[gpu]'",
    ),
    "busy": ({"SIMULATED_GPU_FAULT": "46@1"}, "cudaErrorDevicesUnavailable", "compute-mode"),
    "full": ({"SIMULATED_GPU_MEMORY": "@1"}, "OutOfMemoryError", "free memory of the GPU"),
}


@pytest.mark.slow
@needs_compiler
@pytest.mark.parametrize(("environment", "seen", "fix"), MISSING.values(), ids=MISSING)
def test_what_is_missing_is_told_with_what_mends_it(tmp_path, environment, seen, fix):
    """Exit code 3, one message, no file: what was looked for, what was found, what to do."""
    out = tmp_path / "out"
    done = process("run", "rosenbrock", "--ctx", "gpu", "--out", out, **environment)
    assert done.returncode == 3, done.stderr
    told = done.stderr.splitlines()[-1]
    assert told.startswith("Error: gpu:0 cannot be used. Looked for CuPy: ")
    assert seen in told and fix in told.partition("To do: ")[2] and "MXNet's CUDA: " in told
    assert "Traceback" not in done.stderr and not out.exists()


def test_a_device_beyond_the_last_is_told_how_many_there_are(simulated, monkeypatch):
    """`gpu:N` is 3, and names those that can be had."""
    assert simulated
    monkeypatch.setenv("SIMULATED_GPU_DEVICES", "2")
    with pytest.raises(UnavailableError, match=r"devices: 2 \(.*To do: use gpu:0 to gpu:1"):
        array_backends.backend("cupy", Device("gpu", 2))


@pytest.mark.slow
@pytest.mark.skipif(HAS_CUPY, reason="CuPy is installed here")
def test_no_cupy_at_all_is_told(tmp_path):
    """With the command that installs it; the driver is looked for without it."""
    done = process("verify", "--ctx", "gpu", "--out", tmp_path / "out", path=())
    assert done.returncode == 3, done.stderr
    assert "CuPy: not installed; driver: " in done.stderr
    assert "pip install 'adadelta[gpu]'" in done.stderr and not (tmp_path / "out").exists()


def test_several_cupys_are_told(simulated, monkeypatch):
    """Two wheels share one folder, and spoil each other."""
    assert simulated
    names = ("cupy-cuda11x", "numpy", "cupy-cuda12x")
    found = [SimpleNamespace(metadata={"Name": name}) for name in names]
    monkeypatch.setattr(gpu.metadata, "distributions", lambda: found)
    (told,) = gpu.probe()
    assert told.observed == "installed 2 times: cupy-cuda11x, cupy-cuda12x"
    assert told.fix.startswith("python -m pip uninstall cupy-cuda11x cupy-cuda12x, then ")


@pytest.mark.parametrize(("fix", "name"), [("", "mxnet"), ("use the cupy backend", "cupy")])
def test_auto_takes_mxnet_where_a_small_launch_works(monkeypatch, fix, name):
    """And CuPy elsewhere; no list of GPUs is asked."""
    monkeypatch.setattr(probe, "launches", lambda _number: gpu.GpuCheck(probe.MXNET, "", fix))
    assert array_backends.resolve("auto", Device("gpu", 1)) == name


def test_mxnet_without_cuda_is_told(simulated):
    """The wheels of MXNet 2.0.0b1 have none."""
    assert simulated
    with pytest.raises(UnavailableError, match=r"MXNet on gpu: MXNet's CUDA: .*the cupy backend"):
        array_backends.backend("mxnet", Device("gpu"))


BREAKS = {
    "lost": ({"SIMULATED_GPU_FAULT": "214@2500"}, "the GPU failed .*ECCUncorrectable"),
    "failed": ({"SIMULATED_GPU_FAULT": "719@2500"}, "the GPU failed .*LaunchFailure"),
    "memory": ({"SIMULATED_GPU_MEMORY": "@2500"}, "GPU ran out of memory"),
}


@needs_compiler
@pytest.mark.parametrize("fault", slow_but(BREAKS, "lost"))
def test_a_device_that_fails_in_verify_ends_it(tmp_path, fault):
    """Exit code 4, one message; finished rows are on disk, and none is a verdict on the failure."""
    environment, told = BREAKS[fault]
    chosen = ("--case", "odd", "--case", "long", "--backend", "cupy")
    done = process("verify", "--ctx", "gpu", *chosen, "--out", tmp_path, **environment)
    assert done.returncode == 4, done.stdout + done.stderr
    message = done.stderr.splitlines()[-1]
    assert message.startswith("Error: ") and "Traceback" not in done.stderr
    assert re.search(told, message), message
    finished = rows(tmp_path)
    assert finished and all(row["passed"] == "true" for row in finished)


@needs_compiler
@pytest.mark.parametrize("fault", slow_but(BREAKS, "memory"))
def test_a_device_that_fails_in_run_leaves_the_history(tmp_path, fault):
    """Exit code 4, one message; the rows so far are on disk, in whole files."""
    environment, told = BREAKS[fault]
    where = ("rosenbrock", "--ctx", "gpu", "--backend", "cupy", "--no-fused")
    record = ("--set", "training.record_every=5")
    done = process("run", *where, *record, "--out", tmp_path, **environment)
    assert done.returncode == 4, done.stdout + done.stderr
    assert done.stderr.splitlines()[-1].startswith("Error: ")
    assert re.search(told, done.stderr), done.stderr
    with (tmp_path / "rosenbrock" / "history.csv").open() as file:
        assert len(list(csv.DictReader(file))) > 2
    summary = json.loads((tmp_path / "rosenbrock" / "summary.json").read_text())
    assert summary["outcome"] == "interrupted"


def test_other_errors_are_not_the_devices():
    """Only what CuPy raises for CUDA ends the work; the rest is told as it was."""
    assert errors.of_device(ValueError("no")) is None
    assert errors.of_device(MemoryError()) is None


def test_doctor_tries_the_gpu(simulated):
    """Driver, devices, compiler, MXNet's CUDA, and the step, compared to the last bit."""
    assert simulated
    told = checks._try_gpu()
    assert "cupy-fused equals numpy in every bit" in told and "NVRTC: 12.9" in told
    assert "compute capability 0.0, 1.0 GiB" in told and "MXNet's CUDA: " in told


def test_doctor_tells_what_mends_the_gpu(simulated, monkeypatch):
    """An optional piece: it is named as missing, with the command."""
    assert simulated
    monkeypatch.setenv("SIMULATED_GPU_NVRTC", "missing")
    (piece,) = (each for each in checks.REQUIREMENTS if each.name == "GPU")

    class Place:
        def of(self, _group):
            return self

        def call(self, function):
            from adadelta_cli.system.sandbox import InProcess

            return InProcess().call(function)

    found = checks.run_check(piece, Place())
    assert found.outcome is checks.CheckOutcome.BROKEN and not found.required
    assert "libnvrtc.so.12" in found.observed and found.fix == gpu.INSTALL


@pytest.fixture
def device():
    """A real GPU; the test is skipped where none can be used, with the reason."""
    found = gpu.probe()
    if found[-1].fix:
        pytest.skip(f"no GPU can be used here: {gpu.format_checks(found)}")
    return found


@pytest.mark.gpu
def test_verify_passes_on_a_gpu(device, tmp_path):
    """The default set, every bit, on the first GPU."""
    done = process("verify", "--ctx", "gpu", "--backend", "cupy", "--out", tmp_path, path=())
    assert done.returncode == 0, f"{device}\n{done.stdout}{done.stderr}"
    assert {row["ctx"] for row in rows(tmp_path)} == {"gpu", "cpu"}


@pytest.mark.gpu
def test_bench_on_a_gpu(device, tmp_path):
    """Every step is right, and has a time and a share of the ceiling."""
    assert device
    where = ("--sizes", "1e6,1e7", "--backend", "cupy", "--processes", 3, "--out", tmp_path)
    done = process("bench", "--ctx", "gpu", *where, path=())
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((tmp_path / "bench.json").read_text())["rows"]
    assert all(row["ceiling_fraction"] for row in found)


@pytest.mark.gpu
@pytest.mark.parametrize("problem", SHORT)
def test_run_gives_the_same_history_fused_and_unfused_on_a_gpu(device, tmp_path, problem):
    """Byte for byte, and training goes down."""
    assert device
    where = (problem, *SHORT[problem], "--ctx", "gpu", "--backend", "cupy")
    for folder, *how in (("fused",), ("plain", "--no-fused")):
        process("run", *where, *how, "--out", tmp_path / folder, path=())
    first, second = (tmp_path / name / problem / "history.csv" for name in ("fused", "plain"))
    assert first.read_bytes() == second.read_bytes()


@pytest.mark.gpu
def test_the_cupy_example_passes_on_a_gpu(device, tmp_path):
    """With CuPy's own options: subnormals are flushed, multiplications and additions contracted."""
    assert device
    kernel = f"{ROOT / 'examples' / 'cupy_kernel.py'}:step"
    done = process("verify", "--impl", kernel, "--ctx", "gpu", "--out", tmp_path, path=())
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.gpu
def test_memory_that_runs_out_on_a_gpu_is_told(device):
    """CuPy's error is known for what it is."""
    assert device
    import cupy

    with pytest.raises(cupy.cuda.memory.OutOfMemoryError) as raised:
        cupy.empty(2**50, np.uint8)
    told = errors.of_device(raised.value)
    assert told and "GPU ran out of memory" in str(told)
