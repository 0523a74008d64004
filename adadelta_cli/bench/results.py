"""From the samples of a group of implementations to its rows, and what to think of them.

Ratios are of samples of one round, and every interval knows about the processes (bootstrap.py).
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING

import numpy as np

from adadelta_cli.bench.bootstrap import MedianCI, median_ci, ratio
from adadelta_cli.bench.buffers import traffic_bytes
from adadelta_cli.bench.device import ARITHMETIC, COPY, ROOFS
from adadelta_cli.implementations.array_backends import FRAMEWORKS, Device
from adadelta_cli.implementations.registry import timeable
from adadelta_cli.system import machine

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from adadelta_cli.bench.workloads import Workload


@dataclass(frozen=True)
class Group:
    """What is timed together, in turn.

    Attributes:
        workload: the tensors of a step.
        implementations: their names.
        dtype: float32, float64, or float16 (with float32 masters).
        threads: how many CPU threads.
        cache: `warm`, the same tensors again and again; `cold`, others pushed them out of the
            caches meanwhile.
        precision: half the width of the median's 95 % interval, as a share of it, that suffices.
        ctx: the device, as `--ctx` names it.
    """

    workload: Workload
    implementations: tuple[str, ...]
    dtype: str = "float32"
    threads: int = 1
    cache: str = "warm"
    precision: float = 0.02
    ctx: str = "cpu"


@dataclass(frozen=True)
class BenchRow:
    """The time of one implementation's step on one workload: a row of bench.csv.

    A share or a speed-up is the median of the ratios within rounds, with its own interval. None:
    not measured, and `note` says why.
    """

    implementation: str
    backend: str
    ctx: str
    dtype: str
    workload: str
    tensors: int
    elements: int
    threads: int
    cache: str = "warm"
    processes: int = 0
    samples: int = 0
    median_s: float | None = None
    ci_low_s: float | None = None
    ci_high_s: float | None = None
    q1_s: float | None = None
    q3_s: float | None = None
    elements_per_s: float | None = None
    gigabytes_per_s: float | None = None
    ceiling_gigabytes_per_s: float | None = None
    ceiling_fraction: float | None = None
    ceiling_fraction_low: float | None = None
    ceiling_fraction_high: float | None = None
    bound: str | None = None
    speedup: float | None = None
    speedup_low: float | None = None
    speedup_high: float | None = None
    peak_extra_bytes: int | None = None
    bytes_per_element: int | None = None
    note: str = ""

    @property
    def place(self) -> str:
        """Where it was computed: the threads of a CPU, or the GPU."""
        return f"{self.threads} thread{'s' * (self.threads > 1)}" if self.ctx == "cpu" else self.ctx


COLUMNS = tuple(field.name for field in fields(BenchRow))
Samples = dict[str, list[np.ndarray]]
"""By entry, an array for each process; a round in which the entry had no turn is a NaN."""


@dataclass(frozen=True)
class Measurement:
    """A row, and the samples behind it.

    Attributes:
        row: what bench.csv has.
        samples_s: the samples of each process, in seconds a step, in the order they were taken.
        by_process: of each process the median of `median_s` and of `ceiling_fraction`.
        wrong: this implementation's step is not that of the array update.
    """

    row: BenchRow
    samples_s: list[list[float]] = field(default_factory=list)
    by_process: dict[str, list[float]] = field(default_factory=dict)
    wrong: bool = False


@dataclass(frozen=True)
class Pair:
    """An implementation in this version and in another, timed in the same rounds.

    Attributes:
        row: of this version.
        old_s: of each process of the other version, the median seconds of a step.
        new_s: of each process of this one.
        ratios: of each pair of processes, the median ratio of this one's seconds to the other's in
            the same round.
        old_fault: what is wrong with the other version's step; empty where nothing is.
    """

    row: BenchRow
    old_s: list[float]
    new_s: list[float]
    ratios: list[float]
    old_fault: str = ""


@dataclass(frozen=True)
class GroupResult:
    """What came of timing a group.

    Attributes:
        measurements: one for each implementation.
        roofs_s: the samples of the roofs, and of a device copy, by process, NaN-free.
        doubts: why these numbers should not be trusted.
        pairs: this version's steps and those of the version that `--against` names.
    """

    measurements: list[Measurement]
    roofs_s: dict[str, list[list[float]]] = field(default_factory=dict)
    doubts: list[MeasurementWarning] = field(default_factory=list)
    pairs: list[Pair] = field(default_factory=list)


OLD = "old: "  # so begin the names of what another version timed


def result(
    group: Group, samples: Samples, faults: dict[str, str], peaks: dict[str, int | None]
) -> GroupResult:
    """Make the rows of a group from the samples of its implementations and of the roofs.

    Args:
        group: what was timed.
        samples: by implementation and roof; what is at fault has none.
        faults: what is wrong with each implementation; empty, or missing, where nothing is.
        peaks: each one's peak extra memory in bytes, where it was measured.
    """
    here = [roof for roof in ROOFS if roof in samples]
    bound = max(here, key=lambda roof: median_ci(_known(samples[roof])).median)
    blanks = [
        _blank(group, name, faults.get(name, ""), peaks.get(name)) for name in group.implementations
    ]
    roofs = {roof: _lists(_known(samples[roof])) for roof in (*ROOFS, COPY) if roof in samples}
    measurements = [_measurement(blank, group, samples, bound) for blank in blanks]
    rows = [each.row for each in measurements]
    known = {*samples, *faults}
    pairs = [_pair(row, samples, faults) for row in rows if OLD + row.implementation in known]
    return GroupResult(measurements, roofs, find_warnings(group, samples), pairs)


def _pair(row: BenchRow, samples: Samples, faults: dict[str, str]) -> Pair:
    then = OLD + row.implementation
    new_s, old_s = samples.get(row.implementation, []), samples.get(then, [])
    ratios = ratio(new_s, old_s) if new_s and old_s else []
    before, now = (_medians(_known(each)) for each in (old_s, new_s))
    return Pair(row, before, now, _medians(ratios), faults.get(then, ""))


def _lists(arrays: Sequence[np.ndarray]) -> list[list[float]]:
    return [each.tolist() for each in arrays]


def _blank(group: Group, name: str, fault: str, peak: int | None = None) -> BenchRow:
    workload = group.workload
    return BenchRow(
        implementation=name,
        backend=timeable(name, Device.parse(group.ctx)).backend,
        ctx=group.ctx,
        dtype=group.dtype,
        workload=workload.name,
        tensors=workload.tensors,
        elements=workload.elements,
        threads=group.threads,
        cache=group.cache,
        peak_extra_bytes=peak,
        bytes_per_element=traffic_bytes(group.dtype),
        note=fault,
    )


def _measurement(blank: BenchRow, group: Group, samples: Samples, bound: str) -> Measurement:
    """Fill a row from the samples; an implementation that is wrong has none."""
    name = blank.implementation
    if name not in samples:
        ours = timeable(name).backend not in FRAMEWORKS  # or the user's own: theirs to fix
        return Measurement(blank, wrong=ours and blank.note.startswith(FAILURES))
    known, moved = _known(samples[name]), blank.elements * traffic_bytes(blank.dtype)
    time_s, ceiling_s = median_ci(known), median_ci(_known(samples[bound]))
    shares = ratio(samples[bound], samples[name])
    share = median_ci(shares)
    row = replace(
        fill_times(blank, known, time_s),
        gigabytes_per_s=moved / time_s.median / 1e9,
        ceiling_gigabytes_per_s=moved / ceiling_s.median / 1e9,
        ceiling_fraction=share.median,
        ceiling_fraction_low=share.low,
        ceiling_fraction_high=share.high,
        bound=bound.split(maxsplit=1)[0],
        note="; ".join([*_notes(name, group, samples, time_s), *_too_fast(share)]),
    )
    unfused = None if timeable(name).tolerance else samples.get(timeable(name).unfused)
    by_process = {"median_s": _medians(known), "ceiling_fraction": _medians(shares)}
    return Measurement(fill_speedup(row, unfused, samples[name]), _lists(known), by_process)


def _medians(processes: Sequence[np.ndarray]) -> list[float]:
    return [float(np.median(each)) for each in processes if len(each)]


def fill_times(blank: BenchRow, known: Sequence[np.ndarray], time_s: MedianCI) -> BenchRow:
    """Fill in a row's times."""
    q1, q3 = np.median([np.percentile(each, [25, 75]) for each in known], axis=0)
    return replace(
        blank,
        processes=len(known),
        samples=sum(map(len, known)),
        median_s=time_s.median,
        ci_low_s=time_s.low,
        ci_high_s=time_s.high,
        q1_s=float(q1),
        q3_s=float(q3),
        elements_per_s=blank.elements / time_s.median,
    )


def fill_speedup(
    row: BenchRow, reference: list[np.ndarray] | None, own: list[np.ndarray]
) -> BenchRow:
    """Fill in a row's speed-up against samples of the same rounds, if there are any."""
    if reference is None:
        return row
    gain = median_ci(ratio(reference, own))
    return replace(row, speedup=gain.median, speedup_low=gain.low, speedup_high=gain.high)


def _known(processes: Sequence[np.ndarray]) -> list[np.ndarray]:
    known = [each[~np.isnan(each)] for each in processes]
    return [each for each in known if len(each)]


FAILURES = ("wrong: ", "failed: ")  # so begins the note of a row whose step is at fault


# --- training -------------------------------------------------------------------------------------


def training_rows(group: Group, samples: Samples, losses: dict[str, list[float]]) -> GroupResult:
    """Make the rows of whole training steps.

    Args:
        group: the network; its first implementation is what the others are compared with.
        samples: of `NAME step`, a whole step, and of `NAME update`, the update in it.
        losses: what each trained to, in each process.
    """
    return GroupResult(
        [_training_row(group, name, samples, losses) for name in group.implementations]
    )


def _training_row(
    group: Group, name: str, samples: Samples, losses: dict[str, list[float]]
) -> Measurement:
    reference = group.implementations[0]
    whole = _known(samples[f"{name} step"])
    share = median_ci(ratio(samples[f"{name} update"], samples[f"{name} step"])).median
    right = losses[name] == losses[reference]
    verdict = "the same as" if right else "wrong: not that of"
    note = (
        f"the update is {share:.0%} of it; loss {losses[name][-1]!r}, {verdict} {reference}, "
        "against which the speed-up is"
    )
    row = fill_times(_blank(group, name, note), whole, median_ci(whole))
    row = fill_speedup(row, samples[f"{reference} step"], samples[f"{name} step"])
    return Measurement(row, _lists(whole), {"median_s": _medians(whole)}, wrong=not right)


# --- what to make of it ---------------------------------------------------------------------------

FEW_SAMPLES = 10
DISAGREE = 0.10
FASTER_THAN_ITS_CEILING = 1.2
CORES_SHARED = 0.10
FREQUENCY_CHANGED = 0.05
SLOW_FIRST = 0.05


def _notes(name: str, group: Group, samples: Samples, time_s: MedianCI) -> Iterator[str]:
    """Say how well a row is known, and how it compares with what is not ours."""
    known = _known(samples[name])
    if time_s.precision > group.precision:
        yield f"+-{time_s.precision:.1%} when time was up"
    if sum(map(len, known)) < FEW_SAMPLES:
        yield f"only {sum(map(len, known))} samples"
    apart = max(_medians(known)) / min(_medians(known)) - 1
    if apart > DISAGREE:
        yield f"processes disagree by {apart:.0%}"
    if COPY in samples:
        share = median_ci(ratio(samples[COPY], samples[name]))
        yield f"{share.median:.3g} ({share.low:.3g}-{share.high:.3g}) of a device copy's bandwidth"
    if timeable(name).fused and timeable(name).tolerance is None:
        yield from _speedups(name, group, samples)


def _too_fast(share: MedianCI) -> Iterator[str]:
    if share.median > FASTER_THAN_ITS_CEILING:
        yield "faster than its ceiling, so the roofs were disturbed: its share means nothing"


def _speedups(name: str, group: Group, samples: Samples) -> Iterator[str]:
    theirs = [
        other
        for other in group.implementations
        if other in samples and (timeable(other).tolerance or not timeable(other).keeps_grad)
    ]
    gains = {other: median_ci(ratio(samples[other], samples[name])) for other in theirs}
    told = [f"{other} {g.median:.3g} ({g.low:.3g}-{g.high:.3g})" for other, g in gains.items()]
    if told:
        yield f"times as fast as {', '.join(told)}"


@dataclass(frozen=True)
class MeasurementWarning:
    """Why numbers should not be trusted.

    Attributes:
        what: was seen.
        advice: why it matters, and what to do about it.
        place: which group.
        measured: how large it was there.
    """

    what: str
    advice: str
    place: str
    measured: str


def format_warnings(doubts: Sequence[MeasurementWarning]) -> list[str]:
    """Write doubts as sentences, one for all places where the same was seen."""
    places: dict[tuple[str, str], list[str]] = {}
    for each in doubts:
        found = f"{each.measured} at {each.place}"
        places.setdefault((each.what, each.advice), []).append(found)
    return [f"{what}: {', '.join(found)}; {advice}" for (what, advice), found in places.items()]


def find_warnings(group: Group, samples: Samples) -> list[MeasurementWarning]:
    """Say why the numbers of a group should not be trusted, and what to do about it."""
    known = {name: _known(each) for name, each in samples.items()}
    seen = {}
    if ARITHMETIC in known:
        seen = {
            TOO_MANY_THREADS: _too_many_threads(group),
            SHARED_CORES: _shared_cores(known[ARITHMETIC]),
            FREQUENCY: _frequency(known[ARITHMETIC]),
        }
    seen |= {SLOW_START: _slow_start(known), DISAGREEMENT: _disagreement(known)}
    place = f"{group.workload.name} {group.dtype}"
    return [
        MeasurementWarning(*what, place, measured) for what, measured in seen.items() if measured
    ]


TOO_MANY_THREADS = (
    "more threads than cores",
    "they wait for each other, which no ceiling accounts for; ask for fewer --threads",
)
SHARED_CORES = (
    (
        "arithmetic that stays in the first-level cache took longer in a quarter of its samples "
        "than in the best"
    ),
    "so other work shares the cores: end it, or measure again later",
)
FREQUENCY = (
    "even the best time of that arithmetic differs between processes",
    (
        "so the cores' frequency changed, or a neighbour on the same host took from it: fix the "
        "frequency (adadelta doctor), or look at the shares of the ceiling only"
    ),
)
SLOW_START = (
    "the first samples were slower in every process",
    "so it had not settled: give it a longer --max-time",
)
DISAGREEMENT = (
    "processes disagree",
    (
        "their memory lies elsewhere, or the machine changed meanwhile: ask for more --processes, "
        "and look at the shares of the ceiling, which come from the same rounds"
    ),
)


def _too_many_threads(group: Group) -> str:
    cores = machine.available_cores()
    return f"{group.threads} on {cores}" if group.threads > cores else ""


def _shared_cores(arithmetic: Sequence[np.ndarray]) -> str:
    """Look at the arithmetic roof, which needs nothing but its cores, so it should not vary."""
    spread = float(np.median([np.percentile(each, 75) / np.min(each) for each in arithmetic])) - 1
    return f"{spread:.0%}" if spread > CORES_SHARED else ""


def _frequency(arithmetic: Sequence[np.ndarray]) -> str:
    best = [float(np.min(each)) for each in arithmetic]
    change = max(best) / min(best) - 1
    return f"{change:.0%}" if change > FREQUENCY_CHANGED else ""


def _slow_start(known: dict[str, list[np.ndarray]]) -> str:
    """Compare the first tenth of each process's samples with the rest."""
    slow = {}
    for name, processes in known.items():
        long = [each for each in processes if len(each) >= 2 * FEW_SAMPLES]
        tenths = [(each[: len(each) // 10], each[len(each) // 10 :]) for each in long]
        ratios = [float(np.median(first) / np.median(rest)) - 1 for first, rest in tenths]
        if ratios and min(ratios) > SLOW_FIRST:
            slow[name] = min(ratios)
    return _listed(slow)


def _disagreement(known: dict[str, list[np.ndarray]]) -> str:
    medians = {name: _medians(each) for name, each in known.items() if each}
    apart = {name: max(each) / min(each) - 1 for name, each in medians.items()}
    return _listed({name: each for name, each in apart.items() if each > DISAGREE})


def _listed(found: dict[str, float]) -> str:
    if not found:
        return ""
    worst = max(found, key=found.__getitem__)
    others = f" and {len(found) - 1} more" if len(found) > 1 else ""
    return f"{found[worst]:.0%} ({worst}{others})"
