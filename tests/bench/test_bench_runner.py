"""Carrying out a plan: what the passes find, versions against each other, training."""

from dataclasses import replace

import numpy as np
import pytest
from conftest import needs_mxnet
from invented import ALL_WRONG, GROUP, PLAN, samples

from adadelta_cli.bench import regression, runner
from adadelta_cli.bench.plan import OLD
from adadelta_cli.bench.results import Timings, group_result
from adadelta_cli.bench.significance import Verdict
from adadelta_cli.bench.timing_problem import Outcome, TimingProblem
from adadelta_cli.bench.trainings import TRAININGS
from adadelta_cli.bench.worker_pool import EntryKey


def judged(new, old):
    """Judge the timings of two versions; return the rows."""
    work = runner.Benchmark(PLAN, {})
    work.results = [group_result(GROUP, new, {}, old)]
    work.other = {"version": "0.0.1", "path": "elsewhere"}
    return regression.judge_in_turn(work, 0.05).rows


@pytest.mark.parametrize(
    ("times", "verdict"), [(2.0, Verdict.SAME), (2.4, Verdict.SLOWER), (1.6, Verdict.FASTER)]
)
def test_against_another_version(times, verdict):
    """What is timed in turn is judged by the ratios within the rounds, drift or not."""
    drift = [np.linspace(1, 3, 30) * (1 + k / 1000) for k in range(6)]
    found = {name: [each[0] * d for d in drift] for name, each in samples(fused=times).items()}
    old = Timings({"numpy-fused": [2e-3 * d * (1 + k / 500) for k, d in enumerate(drift)]})
    (row,) = judged(Timings(found), old)
    assert (row.verdict, row.implementation, row.processes_old) == (verdict, "numpy-fused", 6)


def test_against_reports_what_one_of_the_versions_cannot_do():
    """New and wrong is SLOWER; what the old one cannot do is UNCLEAR, with the reason."""
    found = {name: each for name, each in samples().items() if name != "numpy-fused"}
    missing = {"numpy": TimingProblem(Outcome.FAILED, "raised UsageError: unknown")}
    old = Timings({"numpy-fused": [np.full(30, 2e-3)]}, missing)
    rows = {
        row.implementation: row for row in judged(Timings(found, {"numpy-fused": ALL_WRONG}), old)
    }
    assert rows["numpy-fused"].verdict is Verdict.SLOWER
    assert rows["numpy"].verdict is Verdict.UNCLEAR
    assert rows["numpy"].note == f"the old one: {missing['numpy']}", "it says which of the two"


def test_passes_keep_the_versions_apart():
    """Samples of one name are of this version or of the other; a problem discards its samples."""
    passes = runner._Passes()
    here, there, lost = EntryKey("", "a"), EntryKey(OLD, "a"), EntryKey("", "b")
    passes.add({here: np.ones(2), there: np.zeros(3), lost: np.ones(1)}, {}, {here: "2:0"})
    passes.add(
        {here: np.ones(2), there: np.zeros(3)}, {lost: ALL_WRONG}, {here: "1:0", there: "1:64"}
    )
    passes.add({}, {}, {here: "2:0"})
    assert [passes.timings(side).variant("a") for side in ("", OLD)] == ["2:0", "1:64"]
    assert list(map(len, passes.timings().samples["a"])) == [2, 2]
    assert list(map(len, passes.timings(OLD).samples["a"])) == [3, 3]
    assert set(passes.timings().samples) == {"a"} and passes.timings().problems == {"b": ALL_WRONG}


@pytest.mark.slow
@needs_mxnet
def test_training_gives_one_loss():
    """The stock, unfused and fused optimizer train to the same loss, to the last digit."""
    plan = replace(PLAN, workloads=(), processes=1, max_time_s=0.3)
    results = []
    runner.train_steps(TRAININGS["mlp"], plan, results)
    (result,) = results
    names = [each.row.implementation for each in result.measurements]
    assert names == ["mxnet-stock", "mxnet", "mxnet-fused"]
    assert not any(each.problem or each.check_failed for each in result.measurements)
    assert all("mxnet-stock" in each.row.note for each in result.measurements)
    assert all(each.row.ceiling_fraction is None for each in result.measurements)
