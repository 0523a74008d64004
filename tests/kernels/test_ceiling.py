"""The memory roof and the step beside C programs that do the same, compiled on the spot.

`python tests/kernels/test_ceiling.py` prints their times, and STREAM's triad, for
docs/benchmarks.md. No test
asserts them: speed is for a quiet machine.
"""

from __future__ import annotations

import ctypes
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from adadelta_cli.bench.buffers import TensorSet, traffic_bytes
from adadelta_cli.bench.target import HYPER
from adadelta_cli.kernels import roofline, variants
from adadelta_cli.kernels.step import FusedStep

SOURCE = r"""
#include <pthread.h>
#include <stdatomic.h>
typedef struct { float *w, *g, *a, *d; long low, high; atomic_long *go, *done; int triad; } Part;

static void move(Part *p) {
    float *restrict w = p->w, *restrict g = p->g, *restrict a = p->a, *restrict d = p->d;
    if (p->triad)
        for (long k = p->low; k < p->high; k++) a[k] = w[k] + 3.0f * g[k];
    else
        for (long k = p->low; k < p->high; k++) {
            float c = g[k] * 1e-19f;
            w[k] += c; a[k] += c; d[k] += c;
        }
}
static void *serve(void *given) {
    Part *p = given;
    for (long seen = 0;; seen++) {
        long now;
        while ((now = atomic_load(p->go)) == seen) __builtin_ia32_pause();
        if (now < 0) return 0;
        move(p);
        atomic_fetch_add(p->done, 1);
    }
}
#include <time.h>
#include <math.h>
static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + 1e-9 * t.tv_nsec;
}
double step(float *restrict w, float *restrict g, float *restrict a, float *restrict d, long n,
            int times) {
    double start = now();
    for (int t = 0; t < times; t++)
        for (long k = 0; k < n; k++) {
            float x = g[k] * 1.0f;
            x = x < -3e38f ? -3e38f : x;
            x = x > 3e38f ? 3e38f : x;
            x = x + 0.0f * w[k];
            float acc = a[k] * 0.9f + 0.1f * (x * x);
            float delta = sqrtf(d[k] + 1e-6f) / sqrtf(acc + 1e-6f) * x;
            a[k] = acc;
            d[k] = d[k] * 0.9f + 0.1f * (delta * delta);
            w[k] = w[k] - 1.0f * delta;
        }
    return (now() - start) / times;
}
double seconds(float *w, float *g, float *a, float *d, long n, int threads, int times, int triad) {
    atomic_long go = 0, done = 0;
    Part parts[64]; pthread_t ids[64];
    for (int t = 0; t < threads; t++) {
        parts[t] = (Part){w, g, a, d, n * t / threads / 64 * 64,
                          t + 1 < threads ? n * (t + 1) / threads / 64 * 64 : n, &go, &done, triad};
        if (t) pthread_create(&ids[t], 0, serve, &parts[t]);
    }
    double best = 1e9;
    for (int k = 0; k < times; k++) {
        double start = now();
        atomic_store(&done, 0);
        atomic_fetch_add(&go, 1);
        move(&parts[0]);
        while (atomic_load(&done) < threads - 1) __builtin_ia32_pause();
        double s = now() - start;
        if (s < best) best = s;
    }
    atomic_store(&go, -1);
    for (int t = 1; t < threads; t++) pthread_join(ids[t], 0);
    return best;
}
"""


def outsider(folder):
    """Compile the C program."""
    Path(folder, "roof.c").write_text(SOURCE)
    library = Path(folder, "roof.so")
    flags = ["-O3", "-march=native", "-ffp-contract=off", "-fno-math-errno"]
    flags += ["-shared", "-fPIC", "-pthread"]
    command = [shutil.which("gcc"), *flags, "roof.c", "-o", library]
    subprocess.run(command, check=True, cwd=folder, timeout=120)
    loaded = ctypes.CDLL(str(library))
    loaded.seconds.restype = loaded.step.restype = ctypes.c_double
    return loaded


def measure(loaded, elements, rounds=30):
    """Return the shortest times of the roof, of C, and of the triad, measured in turn."""
    (tensors,) = TensorSet.allocate([(elements,)], "float32", seed=0)
    (cached,) = TensorSet.allocate([(roofline.cached_elements(tensors.line),)], "float32", seed=0)
    roofs = roofline.Roofs(tensors.line, cached.line, HYPER)
    pointers = [ctypes.c_void_p(array.ctypes.data) for array in tensors.line.arrays]
    times = max(1, int(2e5 // elements))
    for _ in range(variants.settling_calls()):
        roofs.memory()
    found = {"roof": [], "C": [], "triad": []}
    for _ in range(rounds):
        for threads in {1, roofline.pool.threads()}:
            for name, triad in (("C", 0), ("triad", 1)):
                found[name].append(
                    loaded.seconds(*pointers, ctypes.c_long(elements), threads, times, triad)
                )
        for _ in range(times):
            start = time.perf_counter()
            roofs.memory()
            found["roof"].append(time.perf_counter() - start)
    return {name: min(values) for name, values in found.items()}, roofs.memory_variant()


def measure_step(loaded, elements, rounds=50):
    """Return the shortest times of our step on one thread, and of C's, measured in turn."""
    (tensors,) = TensorSet.allocate([(elements,)], "float32", seed=0)
    pointers = [ctypes.c_void_p(array.ctypes.data) for array in tensors.line.arrays]
    with variants.override("1:0"):
        step = FusedStep(tensors.parameters)
    times = max(1, int(1e6 // elements))
    found = {"step": [], "C": []}
    for _ in range(rounds):
        found["C"].append(loaded.step(*pointers, ctypes.c_long(elements), times))
        start = time.perf_counter()
        for _ in range(times):
            step()
        found["step"].append((time.perf_counter() - start) / times)
    return {name: min(values) for name, values in found.items()}


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("gcc"), reason="needs gcc")
def test_c_has_the_bits_of_the_step(tmp_path):
    """So what is timed beside it is the same work; compiled without contraction."""
    from conftest import assert_same_bits  # not as a program

    loaded = outsider(tmp_path)
    ours, theirs = (TensorSet.allocate([(10_007,)], "float32", seed=0)[0].line for _ in range(2))
    step = FusedStep([ours])
    pointers = [ctypes.c_void_p(array.ctypes.data) for array in theirs.arrays]
    for _ in range(10):
        step()
        loaded.step(*pointers, ctypes.c_long(theirs.weight.size), 1)
    assert_same_bits(ours.arrays, theirs.arrays)


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("gcc"), reason="needs gcc")
def test_the_measurement_runs(tmp_path):
    """It times all that it says; the times themselves need a quiet machine."""
    loaded = outsider(tmp_path)
    found, variant = measure(loaded, 10_000, rounds=1)
    assert set(found) == {"roof", "C", "triad"} and variants.parse(variant)
    assert all(0 < seconds < 1 for seconds in (found | measure_step(loaded, 10_000, 1)).values())


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as place:
        compiled = outsider(place)
        for size in map(int, map(float, sys.argv[1:] or ["1e4", "1e5", "1e6", "1e7"])):
            steps = measure_step(compiled, size)
            each = ", ".join(f"{n} {s / size * 1e9:.3f} ns" for n, s in steps.items())
            sys.stdout.write(f"{size:>10,} elements, one thread: {each} an element\n")
            best, variant = measure(compiled, size)
            moved = {name: traffic_bytes("float32") * size for name in best} | {"triad": 12 * size}
            speeds = ", ".join(f"{n} {moved[n] / s / 1e9:.1f} GB/s" for n, s in best.items())
            sys.stdout.write(f"{size:>10,} elements: {speeds}; the roof is {variant}\n")
