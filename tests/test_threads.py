"""Threads of this package have a stack of their own size, whatever `ulimit -s` says."""

from __future__ import annotations

import ctypes
import subprocess
import sys
import threading

import pytest

from adadelta_cli import threads


def stack_bytes():
    """Return the size of the calling thread's stack, by glibc."""
    libc, attributes, size = ctypes.CDLL(None), ctypes.create_string_buffer(64), ctypes.c_size_t()
    libc.pthread_self.restype = ctypes.c_ulong
    assert libc.pthread_getattr_np(ctypes.c_ulong(libc.pthread_self()), attributes) == 0
    libc.pthread_attr_getstacksize(attributes, ctypes.byref(size))
    return size.value


@pytest.mark.skipif(sys.platform != "linux", reason="asks glibc")
def test_a_thread_has_the_stack_that_it_needs():
    """And the size for other threads of this process is as before."""
    before, sizes = threading.stack_size(2**20 * 3), []
    try:
        threads.start(lambda: sizes.append(stack_bytes())).join()
        assert threading.stack_size() == 2**20 * 3
    finally:
        threading.stack_size(before)
    assert sizes == [threads.STACK_BYTES]


CODE = """
import resource
resource.setrlimit(resource.RLIMIT_AS, (2**34, 2**34))
import numpy as np
from adadelta_cli.kernels import pool
assert pool.state()[pool.WORKERS] == 3
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the pool has no threads elsewhere")
def test_the_pool_has_its_threads_where_stacks_are_huge(tmp_path):
    """`ulimit -s` of 8 GiB: the system's stacks of three threads would not fit into 16."""
    environment = {"NUMBA_NUM_THREADS": "4", "NUMBA_CACHE_DIR": str(tmp_path), "PATH": ""}
    program = f"ulimit -s 8388608 && exec {sys.executable} -c '{CODE}'"
    done = subprocess.run(
        ["/bin/bash", "-c", program],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr
