"""From the samples of a group of implementations to its rows.

Ratios are of samples of one round, and every interval accounts for the processes (bootstrap.py).
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from adadelta_cli.bench.bootstrap import MedianCI, median_ci, ratio
from adadelta_cli.bench.buffers import traffic_bytes
from adadelta_cli.bench.ceiling import share_problem
from adadelta_cli.bench.device import COPY, ROOFS
from adadelta_cli.bench.measurement_warnings import (
    DISAGREE,
    FEW_SAMPLES,
    find_warnings,
    measured,
    medians,
    spread,
)
from adadelta_cli.bench.timing_problem import Outcome, TimingProblem
from adadelta_cli.implementations.array_backends import CPU, FRAMEWORKS, Device

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from adadelta_cli.bench.measurement_warnings import MeasurementWarning, Samples
    from adadelta_cli.bench.workloads import Workload
    from adadelta_cli.implementations.base import Implementation


@dataclass(frozen=True)
class Group:
    """What is timed together, in turn.

    Attributes:
        implementations: what takes the steps, as they are on the device.
        dtype: float32, float64, or float16 (with float32 masters).
        cache: `warm`, the same tensors again and again; `cold`, tensors that other memory accesses
            pushed out of the caches.
        precision: target for half the width of the median's 95 % interval, as a share of it.
    """

    workload: Workload
    implementations: tuple[Implementation, ...]
    dtype: str = "float32"
    threads: int = 1
    cache: str = "warm"
    precision: float = 0.02
    device: Device = CPU
    busy: int = 0


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
    busy: int = 0
    variant: str = ""
    ceiling_variant: str = ""
    note: str = ""

    @property
    def place(self) -> str:
        """Where it was computed: the threads of a CPU, or the GPU; and beside what."""
        threads = f"{self.threads} thread{'s' * (self.threads > 1)}"
        beside = f" beside {self.busy} busy process{'es' * (self.busy > 1)}" * bool(self.busy)
        return (threads if self.ctx == "cpu" else self.ctx) + beside

    @property
    def share_holds(self) -> bool:
        """Whether it has a share of the ceiling that means something."""
        return self.ceiling_fraction is not None and not share_problem(self.ceiling_fraction)


@dataclass(frozen=True)
class Timings:
    """What the passes over a group found for one version of the package, by implementation.

    Attributes:
        samples: also of the roofs; an implementation with a problem has none.
        problems: why it was not timed.
        variants: how its steps were taken, in each process.
    """

    samples: Samples
    problems: Mapping[str, TimingProblem] = field(default_factory=dict)
    variants: Mapping[str, Sequence[str]] = field(default_factory=dict)

    def variant(self, name: str) -> str:
        """Return the variant of most processes; empty where there is none."""
        found = Counter(self.variants.get(name, ()))
        return found.most_common(1)[0][0] if found else ""


@dataclass(frozen=True)
class Measurement:
    """A row, and the samples behind it.

    Attributes:
        samples_s: the samples of each process, in seconds a step, in the order they were taken.
        by_process: of each process the median of `median_s` and of `ceiling_fraction`.
        problem: why the time is missing or means nothing.
        check_failed: the problem makes the command end with exit code 1.
    """

    row: BenchRow
    samples_s: list[list[float]] = field(default_factory=list)
    by_process: dict[str, list[float]] = field(default_factory=dict)
    problem: TimingProblem | None = None
    check_failed: bool = False


@dataclass(frozen=True)
class Pair:
    """An implementation in this version and in another, timed in the same rounds.

    Attributes:
        row: of this version.
        old_s, new_s: of each process of a version, the median seconds of a step.
        ratios: of each pair of processes, the median ratio of this one's seconds to the other's in
            the same round.
        problem, old_problem: what is wrong with a version's step.
    """

    row: BenchRow
    old_s: list[float]
    new_s: list[float]
    ratios: list[float]
    problem: TimingProblem | None = None
    old_problem: TimingProblem | None = None


@dataclass(frozen=True)
class GroupResult:
    """What came of timing a group.

    Attributes:
        measurements: one for each implementation.
        roofs_s: the samples of the roofs, and of a device copy, by process, NaN-free.
        warnings: why these numbers should not be trusted.
        pairs: this version's steps and those of the version that `--against` names.
    """

    measurements: list[Measurement]
    roofs_s: dict[str, list[list[float]]] = field(default_factory=dict)
    warnings: list[MeasurementWarning] = field(default_factory=list)
    pairs: list[Pair] = field(default_factory=list)


def group_result(
    group: Group, timings: Timings, peaks: Mapping[str, int | None], old: Timings | None = None
) -> GroupResult:
    """Make the rows of a group from the samples of its implementations and of the roofs.

    Args:
        group: the implementations, one row each.
        timings: of this version, with one roof at least.
        peaks: by implementation, its peak extra memory in bytes, where it was measured.
        old: of the version that `--against` names.
    """
    samples, old = timings.samples, old or Timings({})
    roofs = {roof: measured(samples[roof]) for roof in (*ROOFS, COPY) if roof in samples}
    bound = max((r for r in ROOFS if r in roofs), key=lambda roof: median_ci(roofs[roof]).median)
    measurements = [
        _measurement(group, each, timings, bound, peaks.get(each.name))
        for each in group.implementations
    ]
    old_names = {*old.samples, *old.problems}
    pairs = [_pair(m, samples, old) for m in measurements if m.row.implementation in old_names]
    together = samples | {f"old: {name}": each for name, each in old.samples.items()}
    place = f"{group.workload.name} {group.dtype}"
    shares_hold = all(m.row.share_holds for m in measurements if m.row.median_s is not None)
    warnings = find_warnings(place, group.threads, together, shares_hold=shares_hold)
    roofs_s = {roof: _lists(each) for roof, each in roofs.items()}
    return GroupResult(measurements, roofs_s, warnings, pairs)


def _pair(measurement: Measurement, samples: Samples, old: Timings) -> Pair:
    name = measurement.row.implementation
    new_s, old_s = samples.get(name, []), old.samples.get(name, [])
    ratios = medians(ratio(new_s, old_s)) if new_s and old_s else []
    before, now = (medians(measured(each)) for each in (old_s, new_s))
    problem, old_problem = measurement.problem, old.problems.get(name)
    return Pair(measurement.row, before, now, ratios, problem, old_problem)


def _lists(arrays: Sequence[np.ndarray]) -> list[list[float]]:
    return [each.tolist() for each in arrays]


def _row(group: Group, chosen: Implementation, note: str, **measured: Any) -> BenchRow:
    return BenchRow(
        implementation=chosen.name,
        backend=chosen.backend,
        ctx=str(group.device),
        dtype=group.dtype,
        workload=group.workload.name,
        tensors=group.workload.tensors,
        elements=group.workload.elements,
        threads=group.threads,
        cache=group.cache,
        bytes_per_element=traffic_bytes(group.dtype),
        busy=group.busy,
        note=note,
        **measured,
    )


def _measurement(
    group: Group, chosen: Implementation, timings: Timings, bound: str, peak: int | None
) -> Measurement:
    """Make a row from the samples; without samples, from the problem."""
    name, samples = chosen.name, timings.samples
    if name not in samples:
        problem = timings.problems.get(name)
        row = _row(group, chosen, str(problem or ""), peak_extra_bytes=peak)
        return Measurement(row, problem=problem, check_failed=_counts(chosen, problem))
    known, moved = measured(samples[name]), group.workload.elements * traffic_bytes(group.dtype)
    time_s, ceiling_s = median_ci(known), median_ci(measured(samples[bound]))
    shares = ratio(samples[bound], samples[name])
    share = median_ci(shares)
    notes = list(_notes(chosen, group, samples, time_s))
    notes += filter(None, [share_problem(share.median)])
    values = _times(group, known, time_s) | _interval("ceiling_fraction", share)
    unfused = samples.get(chosen.unfused) if chosen.is_built_in else None
    if unfused:
        values |= _interval("speedup", median_ci(ratio(unfused, samples[name])))
    row = _row(
        group,
        chosen,
        "; ".join(notes),
        peak_extra_bytes=peak,
        gigabytes_per_s=moved / time_s.median / 1e9,
        ceiling_gigabytes_per_s=moved / ceiling_s.median / 1e9,
        bound=ROOFS[bound],
        variant=timings.variant(name),
        ceiling_variant=timings.variant(bound),
        **values,
    )
    by_process = {"median_s": medians(known), "ceiling_fraction": medians(shares)}
    return Measurement(row, _lists(known), by_process)


def _counts(chosen: Implementation, problem: TimingProblem | None) -> bool:
    """Return whether a problem makes the command end with exit code 1.

    A user of this command cannot fix what is wrong with a framework.
    """
    other = chosen.backend in FRAMEWORKS and not chosen.is_built_in
    return bool(problem and problem.is_failure) and not other


def _times(group: Group, known: Sequence[np.ndarray], time_s: MedianCI) -> dict[str, Any]:
    q1, q3 = np.median([np.percentile(each, [25, 75]) for each in known], axis=0)
    return {
        "processes": len(known),
        "samples": sum(map(len, known)),
        **dict(zip(("median_s", "ci_low_s", "ci_high_s"), time_s, strict=True)),
        "q1_s": float(q1),
        "q3_s": float(q3),
        "elements_per_s": group.workload.elements / time_s.median,
    }


def _interval(name: str, found: MedianCI) -> dict[str, float]:
    """Return the columns of a share or a speed-up."""
    return dict(zip((name, f"{name}_low", f"{name}_high"), found, strict=True))


def _notes(
    chosen: Implementation, group: Group, samples: Samples, time_s: MedianCI
) -> Iterator[str]:
    """Say how well a row is known, and how it compares with other libraries."""
    own = samples[chosen.name]
    known = measured(own)
    if time_s.precision > group.precision:
        yield f"stopped at --max-time with +-{time_s.precision:.1%} (target {group.precision:.1%})"
    if sum(map(len, known)) < FEW_SAMPLES:
        yield f"only {sum(map(len, known))} samples"
    if spread(known) > DISAGREE:
        yield f"processes disagree by {spread(known):.0%}"
    if COPY in samples:
        share = median_ci(ratio(samples[COPY], own))
        yield f"{share.median:.3g} ({share.low:.3g}-{share.high:.3g}) of a device copy's bandwidth"
    others = [each for each in group.implementations if not (each.is_built_in and each.keeps_grad)]
    gains = {e.name: median_ci(ratio(samples[e.name], own)) for e in others if e.name in samples}
    if chosen.fused and chosen.is_built_in and gains:
        listed = [f"{name} {g.median:.3g} ({g.low:.3g}-{g.high:.3g})" for name, g in gains.items()]
        yield f"times as fast as {', '.join(listed)}"


class Trained(NamedTuple):
    """What a process trained to before it was timed.

    Attributes:
        loss: after some steps.
        distance: of the weights from the reference's, which was checked; see `trainers.py`. None:
            the loss is compared, to the last digit.
    """

    loss: float
    distance: float | None = None


def training_result(
    group: Group, found: Mapping[str, Timings], trained: Mapping[str, Sequence[Trained]]
) -> GroupResult:
    """Make the rows of whole training steps.

    Args:
        group: the network; its first implementation is what the others are compared with.
        found: by implementation, the samples of `step`, a whole step, of `update`, its update, and
            of `rest`, its forward and backward.
        trained: by implementation, what each process trained to.
    """
    every = group.implementations
    rows = [_training_measurement(group, each, found, trained) for each in every]
    together = {name: each.samples["step"] for name, each in found.items() if each.samples}
    place = group.workload.name  # a training has no ceiling
    warnings = find_warnings(place, group.threads, together, shares_hold=False)
    return GroupResult(rows, warnings=warnings)


def _training_measurement(
    group: Group,
    chosen: Implementation,
    found: Mapping[str, Timings],
    trained: Mapping[str, Sequence[Trained]],
) -> Measurement:
    own, baseline = found[chosen.name], group.implementations[0].name
    failed = own.problems.get(chosen.name)
    if failed or not own.samples:
        row = _row(group, chosen, str(failed or ""))
        return Measurement(row, problem=failed, check_failed=_counts(chosen, failed))
    whole = measured(own.samples["step"])
    problem, reached = _reached(chosen.name, baseline, trained)
    share = median_ci(ratio(own.samples["update"], own.samples["step"])).median
    gains, others = _against(own.samples, found[baseline].samples)
    note = "; ".join((f"the update is {share:.0%} of it", reached, *others))
    values = _times(group, whole, median_ci(whole)) | gains
    row = _row(group, chosen, note, variant=own.variant("step"), **values)
    by_process = {"median_s": medians(whole), "update_s": medians(measured(own.samples["update"]))}
    failed_too = _counts(chosen, problem)
    return Measurement(row, _lists(whole), by_process, problem, check_failed=failed_too)


def _against(own: Samples, reference: Samples) -> tuple[dict[str, float], list[str]]:
    """Compare a training with the reference: the columns of the speed-up, and notes."""
    if not reference:
        return {}, []
    gain = _interval("speedup", median_ci(ratio(reference["step"], own["step"])))
    if own is reference or "rest" not in own:
        return gain, []
    rest = median_ci(ratio(own["rest"], reference["rest"]))
    interval = f"{rest.median:.3g} ({rest.low:.3g}-{rest.high:.3g})"
    return gain, [f"forward and backward take {interval} times as long as with the baseline"]


def _reached(
    name: str, baseline: str, trained: Mapping[str, Sequence[Trained]]
) -> tuple[TimingProblem | None, str]:
    """Compare what was trained to with the reference's; return the problem, and a note."""
    loss, distance = trained[name][-1]
    if distance is not None:
        near = f"weights {distance:.1e} of their way from those of {baseline}"
        return None, f"loss {loss!r}, {near}, the speed-up's baseline"
    correct = trained[name] == trained[baseline]
    problem = None if correct else TimingProblem(Outcome.WRONG, f"not that of {baseline}")
    verdict = problem or f"identical to {baseline}"
    return problem, f"loss {loss!r}, {verdict}, the speed-up's baseline"
