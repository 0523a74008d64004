"""Threads that take shares of a range, such that nobody waits for a thread that has not begun.

The calling thread publishes a job and works on it at once. The other threads wake, and each free
one takes the next piece. The call returns when no piece is left and no thread is inside one. So a
thread that the system keeps waiting, because other processes compute on its core, costs nothing;
only one that is preempted inside a piece does. OpenMP's threads, and Numba's other layers, all wait
for each other at the end of each region, often for whole slices of the scheduler.

Idle threads spin for `SPIN_NS`, then sleep; at once where spinning was in vain of late, since a
training's forward and backward need the cores. They belong to this process: in a forked child there
are none, and the calling thread does all the work.
"""

from __future__ import annotations

import contextlib
import functools
import os
import platform
import sys
import threading
from typing import TYPE_CHECKING

import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic
from numba.np.arrayobj import make_array

from adadelta_cli.kernels import cache
from adadelta_cli.threads import start

if TYPE_CHECKING:
    from collections.abc import Iterator

compiled = cache.njit(cache=True, nogil=True, error_model="numpy")

# Longer than Python takes from one step to the next, shorter than what a neighbour would notice.
SPIN_NS = 50_000
IN_VAIN = 4  # jobs in a row that came after the spinning: then it is left out
PIECES = 16  # of a thread's part: what is left when others are done is small
# The least, since taking a piece costs 50 ns or more; and the most, so that the caller need
# not sleep until the last piece is done: the thread that wakes it would take it to its own core.
PIECE_ELEMENTS, MOST_PIECE_ELEMENTS = 4096, 32768
ALIGNED = 64  # elements: pieces end at a cache line's end where the tensors begin at one

# The pool's state: int64 words, those that different threads write in cache lines of their own.
LINE = 8
WORKERS, GENERATION, OPEN, INSIDE, WAITING, DONE = (LINE * k for k in range(6))
FUNCTION, TABLE, WORDS, TOTAL, PARTS, PIECE, CORE, LATE = (LINE * 6 + k for k in range(8))
ENDED, CLOCK = LINE * 7, LINE * 7 + 1  # when the last job did; two words
MAX_PARTS = 1024
# A line each for every part or thread.
TAKEN, SLEEPS, WAKE, ALLOWED = (LINE * (8 + MAX_PARTS * k) for k in range(4))
CORES = 1024  # in ALLOWED, a bit each: those that this process may run on; as a cpu_set_t of glibc
STATE_WORDS = ALLOWED + CORES // 64
# A range function: it takes a table's address, a number for it, and the first and the end of the
# elements that it works on.
RANGE = types.void(types.int64, types.int64, types.int64, types.int64)


# --- what Numba lacks -----------------------------------------------------------------------------


def _element(context, builder, signature, args):
    array = make_array(signature.args[0])(context, builder, args[0])
    return builder.gep(array.data, [args[1]])


def _atomic(operation):
    """Make an intrinsic that changes an element in one atomic operation; it returns what it was."""

    def typed(_context, _array, _index, _value):
        def generate(context, builder, signature, args):
            address = _element(context, builder, signature, args)
            return builder.atomic_rmw(operation, address, args[2], "seq_cst")

        return types.int64(_array, types.int64, types.int64), generate

    return intrinsic(typed)


_add, _swap = _atomic("add"), _atomic("xchg")


@intrinsic
def _get(_context, _array, _index):
    """Read an element that other threads write."""

    def generate(context, builder, signature, args):
        return builder.load_atomic(_element(context, builder, signature, args), "seq_cst", 8)

    return types.int64(_array, types.int64), generate


@intrinsic
def _set(_context, _array, _index, _value):
    """Write an element that other threads read."""

    def generate(context, builder, signature, args):
        address = _element(context, builder, signature, args)
        builder.store_atomic(args[2], address, "seq_cst", 8)
        return context.get_dummy_value()

    return types.void(_array, types.int64, types.int64), generate


_PAUSE = {"x86_64": "pause", "AMD64": "pause", "aarch64": "yield", "arm64": "yield"}


@intrinsic
def _pause(_context):
    """Tell the processor that this thread spins."""

    def generate(context, builder, _signature, _args):
        instruction = _PAUSE.get(platform.machine())
        if instruction:
            function = ir.FunctionType(ir.VoidType(), [])
            builder.call(ir.InlineAsm(function, instruction, "", side_effect=True), [])
        return context.get_dummy_value()

    return types.void(), generate


@intrinsic
def call_range(_context, _function, _table, _words, _low, _high):  # noqa: ANN201 - Numba's
    """Call a range function (see `RANGE`) by its address."""

    def generate(_context, builder, _signature, args):
        word = ir.IntType(64)
        function = ir.FunctionType(ir.VoidType(), [word] * 4)
        return builder.call(builder.inttoptr(args[0], function.as_pointer()), list(args[1:]))

    return types.void(*[types.int64] * 5), generate


_int = types.int32
_clock_gettime = types.ExternalFunction("clock_gettime", _int(_int, types.uint64))
# POSIX semaphores; one of zeros has the value 0 (glibc and musl). Condition variables will not do:
# glibc's, up to 2.40, make a thread that signals wait until all that were woken before have run.
_post = types.ExternalFunction("sem_post", _int(types.uint64))
_wait = types.ExternalFunction("sem_wait", _int(types.uint64))
_getcpu = types.ExternalFunction("sched_getcpu", _int())
_setaffinity = types.ExternalFunction("sched_setaffinity", _int(_int, types.uint64, types.uint64))
MONOTONIC = 1 if sys.platform == "linux" else 6  # CLOCK_MONOTONIC: time.h; macOS has 6


@compiled
def now_ns(scratch):  # noqa: ANN201 - Numba's
    """Read the clock; `scratch` is int64[2]."""
    _clock_gettime(np.int32(MONOTONIC), np.uint64(scratch.ctypes.data))
    return scratch[0] * 1_000_000_000 + scratch[1]


@compiled
def _address(state, index):
    return np.uint64(state.ctypes.data + 8 * index)


# --- a job ----------------------------------------------------------------------------------------


@compiled
def run(state, function, table, words, total, parts):  # noqa: ANN201 - Numba's
    """Call a range function on pieces that cover the range [0, total) once.

    Args:
        state: of the pool; one job at a time.
        function: the address of a range function.
        table: the address that it is given.
        words: the number that it is given.
        total: elements.
        parts: how many threads the range is divided among; free ones help the others.
    """
    for part in range(parts):
        state[TAKEN + LINE * part] = 0
    _note_begin(state, now_ns(state[CLOCK:]))
    state[FUNCTION], state[TABLE], state[WORDS] = function, table, words
    state[TOTAL], state[PARTS], state[CORE] = total, parts, _getcpu()
    piece = min(total // (parts * PIECES), MOST_PIECE_ELEMENTS) // ALIGNED * ALIGNED
    state[PIECE] = max(PIECE_ELEMENTS, piece)
    _set(state, OPEN, 1)
    _add(state, GENERATION, 1)
    for worker in range(1, min(parts, state[WORKERS] + 1)):
        if _swap(state, SLEEPS + LINE * worker, 0) == 1:
            _post(_address(state, WAKE + LINE * worker))
    _work(state, 0)
    _set(state, OPEN, 0)
    _finish(state)
    state[ENDED] = now_ns(state[CLOCK:])


@compiled
def _note_begin(state, now):
    """Count the jobs in a row that came later than idle threads spin."""
    _set(state, LATE, _get(state, LATE) + 1 if now - state[ENDED] > SPIN_NS else 0)


@compiled
def _spin_ns(state):
    """Return for how long an idle thread spins before it sleeps."""
    return SPIN_NS if _get(state, LATE) < IN_VAIN else 0


@compiled
def _work(state, own):
    """Take pieces until none is left, those of one's own part first."""
    parts, total = state[PARTS], state[TOTAL]
    for k in range(parts):
        part = (own + k) % parts
        begin = total * part // parts // ALIGNED * ALIGNED
        end = total * (part + 1) // parts // ALIGNED * ALIGNED if part + 1 < parts else total
        low = begin + _add(state, TAKEN + LINE * part, state[PIECE])
        while low < end:
            high = min(low + state[PIECE], end)
            call_range(state[FUNCTION], state[TABLE], state[WORDS], low, high)
            low = begin + _add(state, TAKEN + LINE * part, state[PIECE])


@compiled
def _finish(state):
    """Wait until no other thread is inside the job: spin, then sleep."""
    scratch = np.empty(2, np.int64)
    end = now_ns(scratch) + SPIN_NS
    while _get(state, INSIDE) > 0:
        if now_ns(scratch) < end:
            _pause()
            continue
        _set(state, WAITING, 1)
        if _get(state, INSIDE) == 0 and _swap(state, WAITING, 0) == 1:
            return  # nobody has seen it wait
        _sleep(state, DONE)


# --- the other threads ----------------------------------------------------------------------------


@compiled
def _serve(state, own):
    """Work on each job, for ever."""
    seen = np.int64(0)
    scratch, mask = np.empty(2, np.int64), np.empty(CORES // 64, np.int64)
    while True:
        seen = _next_generation(state, own, seen, scratch)
        # Before it is inside, where the caller would wait for it.
        if _getcpu() == _get(state, CORE):
            _leave_core(state, mask)
        _add(state, INSIDE, 1)
        # Closed, or the next job is not published yet: its words may not be read.
        if _get(state, OPEN) == 1 and own < state[PARTS]:
            _work(state, own)
        if _add(state, INSIDE, -1) == 1 and _swap(state, WAITING, 0) == 1:
            _post(_address(state, DONE))


@compiled
def _leave_core(state, mask):
    """Move to another core than the caller's, if there is one.

    The system wakes a thread on the core of who woke it; and since the two take turns in sleeping,
    it may never see that both want to run at once.
    """
    any_left = False
    for k in range(mask.size):
        mask[k] = state[ALLOWED + k]
        if k == state[CORE] // 64:
            mask[k] &= ~(np.int64(1) << (state[CORE] % 64))
        any_left |= mask[k] != 0
    if any_left:
        _setaffinity(np.int32(0), np.uint64(8 * mask.size), np.uint64(mask.ctypes.data))


@compiled
def _next_generation(state, own, seen, scratch):
    """Wait for a job after the one that was seen: spin, then sleep."""
    end = now_ns(scratch) + _spin_ns(state)
    while _get(state, GENERATION) == seen:
        if now_ns(scratch) < end:
            _pause()
            continue
        _set(state, SLEEPS + LINE * own, 1)
        if _get(state, GENERATION) != seen and _swap(state, SLEEPS + LINE * own, 0) == 1:
            break  # nobody has seen it sleep
        _sleep(state, WAKE + LINE * own)
    return _get(state, GENERATION)


@compiled
def _sleep(state, semaphore):
    while _wait(_address(state, semaphore)) != 0:  # a signal interrupted it
        pass


# --- the pool of this process ---------------------------------------------------------------------

_states: dict[int, np.ndarray] = {}  # by process: a forked child has the memory, not the threads
_made: list[np.ndarray] = []  # all of them: tables have their addresses
_starting = threading.Lock()


def threads() -> int:
    """Return the number of threads: NUMBA_NUM_THREADS, by default the cores of this process.

    One on other systems than Linux, for want of semaphores that were tested there.
    """
    most = MAX_PARTS if sys.platform == "linux" else 1
    return int(min(numba.config.NUMBA_NUM_THREADS, most))


def state() -> np.ndarray:
    """Return the state of this process's pool; start its threads where there are none."""
    found = _states.get(os.getpid())
    if found is None:
        with _starting:
            found = _states.get(os.getpid())
            if found is None:
                found = _states[os.getpid()] = _start()
    return found


def _start() -> np.ndarray:
    made = _without_threads()
    for core in os.sched_getaffinity(0) if threads() > 1 else ():
        if core < CORES:
            made[ALLOWED + core // 64] |= np.int64(np.uint64(1 << core % 64).view(np.int64))
    with contextlib.suppress(RuntimeError):  # the system allows no more threads
        for number in range(1, threads()):
            name = f"adadelta-{number}"
            start(_serve, made, number, name=name)
            made[WORKERS] = number
    return made


def _without_threads() -> np.ndarray:
    _made.append(np.zeros(STATE_WORDS, np.int64))
    return _made[-1]


_alone = functools.cache(_without_threads)


@contextlib.contextmanager
def no_threads() -> Iterator[None]:
    """Let the calling thread alone take steps that are prepared meanwhile, piece after piece."""
    process = os.getpid()
    before = _states.get(process)
    _states[process] = _alone()
    try:
        yield
    finally:
        _states.pop(process)
        if before is not None:
            _states[process] = before


def _after_fork() -> None:
    """Forget the parent's threads: they are not here. Whatever they held is free again."""
    global _starting  # noqa: PLW0603 - another thread may have held it
    _starting = threading.Lock()
    for inherited in _made:
        inherited[:] = 0


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
