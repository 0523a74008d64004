"""Which way a step is taken: on how many threads, and in blocks with prefetch or not.

All ways give the same bits, so they are tried in the real work. The first calls take turns among
them; then the fastest is taken, and now and then another one for some calls, since a machine that
was quiet can become busy. This is learned for each function and each class of sizes, the powers of
two. ADADELTA_KERNEL fixes one way, for measurements.

A row of what is learned, int64: CALLS, the number of steps; BEST, the fastest way; NEXT, the call
at which others are tried; EVERY, the calls between two trials; TRIED, the last way that was tried;
CLOCK, two words; TIMES, the time of an element for each way, in units of 1e-14 s.
"""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING, Any

import numpy as np

from adadelta_cli.errors import UsageError
from adadelta_cli.kernels import cache, pool

if TYPE_CHECKING:
    from collections.abc import Iterator

compiled = cache.njit(cache=True, nogil=True, error_model="numpy")

# Elements a block; 0: no blocks and no prefetch. Measured, see docs/roofline.md.
BLOCKS = (0, 64, 256)
CALLS, BEST, NEXT, EVERY, TRIED, CLOCK, TIMES = 0, 1, 2, 3, 4, 5, 7
WAYS = 3 * len(BLOCKS)
WORDS = TIMES + WAYS
ROUNDS = 4  # of the first calls, for each way
TRIAL_CALLS = 4  # one after the other, so that the ones after the first find warm caches
FIRST_TRIAL, LAST_TRIAL = 64, 1024  # calls between two trials, doubled where nothing changes
HOPELESS = 3  # times as slow as the best: not tried again at once
SCALE = 100_000  # of the times: units of 1e-14 s an element
WEIGHT = 16  # of the mean: a step that waited long counts for a sixteenth of its time
CLASSES = 64
VARIABLE = "ADADELTA_KERNEL"

_learned: dict[int, tuple[Any, np.ndarray]] = {}


def learned_of(function: Any) -> np.ndarray:
    """Return what is learned of a compiled C function, int64[CLASSES, WORDS]; both are kept."""
    made = function, np.zeros((CLASSES, WORDS), np.int64)
    return _learned.setdefault(function.address, made)[1]


@compiled
def size_class(total):  # noqa: ANN201 - Numba's
    """Return the number of bits of a number of elements."""
    bits = 0
    while total > 0:
        total >>= 1
        bits += 1
    return bits


@compiled
def now(learned):  # noqa: ANN201 - Numba's
    """Read the clock, in ns."""
    return pool.now_ns(learned[CLOCK:])


@compiled
def count_ways(threads):  # noqa: ANN201 - Numba's
    """Count the ways: those of one thread, of all, and of half of them, where they differ."""
    return len(BLOCKS) * min(3, threads)


@compiled
def meaning(way, threads):  # noqa: ANN201 - Numba's
    """Return the number of threads and the length of a block."""
    kind = way // len(BLOCKS)
    parts = 1 if kind == 0 else threads if kind == 1 else (threads + 1) // 2
    return parts, BLOCKS[way % len(BLOCKS)]


@compiled
def unpacked(word):  # noqa: ANN201 - Numba's
    """Return the number of threads and the length of a block of a word of `parse`."""
    return word >> 32, word & 0xFFFFFFFF


@compiled
def _fastest(times, count):
    """Return the index of the least time; NumPy's `argmin` takes half a second to compile."""
    fastest = 0
    for way in range(1, count):
        if times[way] < times[fastest]:
            fastest = way
    return fastest


@compiled
def choose(learned, threads):  # noqa: ANN201 - Numba's
    """Return the way for the next step."""
    call, count, times = learned[CALLS], count_ways(threads), learned[TIMES:]
    learned[CALLS] = call + 1
    if call < ROUNDS * count:
        # Twice in a row, for the first call wakes threads. In another order the second time, so
        # that steps of different sizes that alternate meet all.
        way = (call // 2 + call // (2 * count)) % count
        fastest = _fastest(times, count)
        hopeless = call >= 2 * count and times[way] > HOPELESS * times[fastest]
        return fastest if hopeless else way
    if call < learned[NEXT]:
        return learned[BEST]
    if call == learned[NEXT]:
        learned[TRIED] = (learned[TRIED] + 1) % count
        if learned[TRIED] == learned[BEST]:
            learned[TRIED] = (learned[TRIED] + 1) % count
    return learned[TRIED]


@compiled
def learn(learned, way, ns, total, threads):  # noqa: ANN201 - Numba's
    """Note the time of a step on `total` elements, and which way is the fastest now."""
    call, count, times = learned[CALLS] - 1, count_ways(threads), learned[TIMES:]
    time = ns * SCALE // total  # an element's: sizes in a class differ by up to 2
    if call < ROUNDS * count:
        times[way] = time if call < 2 * count and call % 2 == 0 else min(times[way], time)
        if call < ROUNDS * count - 1:
            return
        learned[EVERY], learned[NEXT] = FIRST_TRIAL, call + FIRST_TRIAL
    elif call < learned[NEXT]:
        times[way] += (time - times[way]) // WEIGHT
    else:
        times[way] = time if call == learned[NEXT] else min(times[way], time)
        slower = times[way] // max(1, times[learned[BEST]])
        tried = call - learned[NEXT] + 1
        if tried < TRIAL_CALLS and (tried < 2 or slower < HOPELESS):
            return
        # A trial takes a hundredth of the time or less.
        rare = max(min(2 * learned[EVERY], LAST_TRIAL), 100 * slower)
        learned[EVERY], learned[NEXT] = rare, call + rare
    best = _fastest(times, count)
    if best != learned[BEST]:
        # What was best is tried again first: a single step that waited long may have decided.
        learned[TRIED] = learned[BEST] - 1
        learned[BEST] = best
        learned[EVERY], learned[NEXT] = FIRST_TRIAL, call + FIRST_TRIAL


def settling_calls() -> int:
    """Return the number of steps of one size after which the fastest way is known."""
    return ROUNDS * int(count_ways(pool.threads()))


def best(function: Any, elements: int) -> str:
    """Return how steps of a function on so many elements are taken, as `parse` takes it."""
    fixed = current()
    learned = learned_of(function)[size_class(elements)]
    parts, block = unpacked(fixed) if fixed else meaning(learned[BEST], pool.threads())
    return f"{parts}:{block}"


# --- fixed ones -----------------------------------------------------------------------------------


def parse(text: str) -> int:
    """Read a way: THREADS:BLOCK, such as 1:0 or all:64; empty for none.

    Raises:
        UsageError: it is something else.
    """
    if not text:
        return 0
    threads, _, block = text.partition(":")
    parts = str(pool.threads()) if threads == "all" else threads
    if not (parts.isdecimal() and block.isdecimal() and 0 < int(parts) <= pool.MAX_PARTS):
        raise UsageError(
            f"{VARIABLE} is {text!r}; expected THREADS:BLOCK, such as 1:0 or all:64 (a block of 0 "
            "elements: no blocks and no prefetch)"
        )
    return int(parts) << 32 | int(block)


_current: int | None = None


def current() -> int:
    """Return the way that `override` or ADADELTA_KERNEL fixes, as a table has it; 0 for none."""
    global _current  # noqa: PLW0603 - read once
    if _current is None:
        _current = parse(os.environ.get(VARIABLE, ""))
    return _current


@contextlib.contextmanager
def override(text: str) -> Iterator[None]:
    """Fix the way for steps that are prepared or called meanwhile."""
    global _current  # noqa: PLW0603 - global as the environment variable is
    before, _current = _current, parse(text)
    try:
        yield
    finally:
        _current = before
