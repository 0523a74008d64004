"""What a sweep computes, what it does not compute again, and the row of each run."""

from __future__ import annotations

import csv
import json
from dataclasses import replace

import pytest
from small_sweeps import GRID, TEXT, Failure, InProcess, engine, executed, plan, sweep

from adadelta_cli.errors import BrokenError, UnavailableError, UsageError
from adadelta_cli.implementations.array_backends import CPU
from adadelta_cli.run import training
from adadelta_cli.run.problems import rosenbrock
from adadelta_cli.sweep import runner
from adadelta_cli.sweep.report import FILES, Report
from adadelta_cli.sweep.rows import Spread, Status, SweepRow


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch):
    """Leave out sweep.png, which takes longer to draw than these runs; test_figures.py has it."""
    monkeypatch.setattr("adadelta_cli.sweep.report.write_plot", lambda path, _figure: path.touch())
    monkeypatch.setattr("adadelta_cli.sweep.figures.sweep_figure", lambda *_: None)


def test_each_run_has_a_row_in_the_order_of_the_plan(tmp_path):
    """Whatever the order in which the runs end."""
    found, executor = executed(tmp_path, seeds=2)
    assert len(executor.jobs) == 12
    rows = found.rows
    assert [row.seed for row in rows] == [0, 1] * 6
    assert [row.setting for row in rows] == [k // 2 for k in range(12)]
    assert all(row.status is Status.FINISHED and row.steps == 6 for row in rows)
    assert len({row.run for row in rows}) == 12


def test_a_run_is_that_of_adadelta_run(tmp_path):
    """The same history, to the byte."""
    found, _ = executed(tmp_path)
    run, job = next(iter(found.jobs.items()))
    other = training.Run(
        "it", job.config, tmp_path / "run", executed_backend(), seed=job.seed, **job.how
    )
    other.execute()
    histories = [tmp_path / "out" / "runs" / run, tmp_path / "run"]
    one, two = ((folder / "history.csv").read_bytes() for folder in histories)
    assert one == two


def executed_backend():
    """Return NumPy's arrays."""
    from adadelta_cli.implementations.array_backends import backend

    return backend("numpy")


def test_what_is_stored_is_not_run_again(tmp_path):
    """Nothing the second time; a larger sweep computes what is new; --force everything."""
    first, _ = executed(tmp_path)
    again, executor = executed(tmp_path)
    assert executor.jobs == [] and again.rows == first.rows
    _, executor = executed(tmp_path, seeds=2)
    assert [job.seed for job in executor.jobs] == [1] * 6
    forced, executor = sweep(tmp_path), InProcess()
    forced.execute(engine(executor), force=True)
    assert len(executor.jobs) == 6


def test_a_failure_is_a_row_and_the_others_go_on(tmp_path):
    """Timeouts and crashes are tried again by the next sweep."""
    failures = {1: Failure.TIMEOUT, 2: Failure.CRASHED, 3: Failure.FAILED}
    found, _ = executed(tmp_path, ["optimizer.rho=0.9"], failures=failures, seeds=5)
    assert [row.status.value for row in found.rows] == [
        *("finished", "timeout", "crashed", "failed", "finished")
    ]
    assert found.rows[1].message == "it timeout" and found.rows[1].metrics == {}
    assert Report(found).exit_code == 1
    found, executor = executed(tmp_path, ["optimizer.rho=0.9"], seeds=5)
    assert [job.seed for job in executor.jobs] == [1, 2, 3]
    assert Report(found).exit_code == 0


def test_a_worker_of_a_cluster_that_dies_again_and_again_is_a_crash(tmp_path):
    """Dask raises KilledWorker when it gives up a run."""
    killed = type("KilledWorker", (Exception,), {})("task")
    found, _ = executed(tmp_path, (), failures={1: killed}, seeds=3)
    assert found.rows[1].status is Status.CRASHED and "died" in found.rows[1].message


@pytest.mark.parametrize(
    ("raised", "kind"),
    [(UnavailableError("other versions"), UnavailableError), (ZeroDivisionError("x"), BrokenError)],
)
def test_what_no_run_can_help_ends_the_sweep(tmp_path, raised, kind):
    """What was finished before stays."""
    found = sweep(tmp_path, (), seeds=4)
    with pytest.raises(kind):
        found.execute(engine(InProcess({2: raised}), capacity=1))
    assert [row.seed for row in found.rows] == [0, 1]


def test_what_ended_together_with_a_failure_is_stored(tmp_path):
    """In whatever order the results are looked at."""
    found = sweep(tmp_path, (), seeds=8)
    with pytest.raises(BrokenError):
        found.execute(engine(InProcess({3: ZeroDivisionError("x")}), capacity=8))
    assert len(found.rows) == 7


def test_a_metric_that_is_a_column_already_is_refused(tmp_path):
    """It would replace the seed or the status of a run."""
    path = tmp_path / "own.py"
    for name in SweepRow(0, {}, 0, Status.FINISHED, None, {}, "", "", None).cells(()):
        path.write_text(
            "import numpy as np\nfrom adadelta_cli import Problem\n\n\n"
            "class Own(Problem):\n    start = {'w': np.ones(1)}\n\n"
            "    def loss(self, xp, weights):\n        return (weights[0] ** 2).sum()\n\n"
            f"    def measure(self, weights):\n        return {{'{name}': 1.0}}\n"
        )
        text = "problem: {python: own.py:Own}\ntraining: {steps: 2}\n"
        with pytest.raises(UsageError, match=f"a metric {name}, .*rename it"):
            sweep(tmp_path, (), text, seeds=2)


def test_a_lost_scheduler_ends_the_sweep(tmp_path):
    """Its futures are cancelled."""
    executor = InProcess()
    found = sweep(tmp_path, (), seeds=3, where=engine(executor))
    submit = executor.submit

    def lost(*args, **kwargs):
        future = submit(*args, **kwargs)
        if len(executor.jobs) == 2:
            future = type(future)()
            future.cancel()
            future.set_running_or_notify_cancel()
        return future

    executor.submit = lost
    with pytest.raises(BrokenError, match=r"scheduler was lost.*same command"):
        found.execute(engine(executor, capacity=1))
    assert len(found.rows) == 1


def test_a_diverged_run_is_a_result(tmp_path):
    """It is stored, and the exit code is 0 where nothing is expected."""
    grid = ["optimizer.learning_rate=1,1e300"]
    found, _ = executed(tmp_path, grid)
    assert [row.status for row in found.rows] == [Status.FINISHED, Status.DIVERGED]
    report = Report(found)
    assert report.exit_code == 0
    assert report.best.values == {"optimizer.learning_rate": 1.0}
    assert any("1 of 2 runs diverged" in line for line in report.remarks())
    _, executor = executed(tmp_path, grid)
    assert executor.jobs == []


def test_expectations_decide_the_exit_code(tmp_path):
    """By the medians; the remark says what was expected."""
    text = f"{TEXT}expect: {{max_distance: 1e9}}\n"
    assert Report(executed(tmp_path, text=text)[0]).exit_code == 0
    report = Report(executed(tmp_path, text=f"{TEXT}expect: {{max_distance: 1e-9}}\n")[0])
    assert report.exit_code == 1
    assert any(
        "6 of 6 settings missed expect: distance at most" in each for each in report.remarks()
    )


@pytest.mark.parametrize(
    ("seeds", "covers"), [(1, ""), (3, ", the 75% interval of the median of 3 seeds)")]
)
def test_the_best_setting_says_what_its_interval_covers(tmp_path, seeds, covers):
    """With one seed there is none, and nothing is said of another setting."""
    report = Report(executed(tmp_path, GRID[:1], seeds=seeds)[0])
    best = report.conclusion()[0]
    assert best.startswith("Best: optimizer.rho=") and ("interval" in best) == (seeds > 1)
    assert best.endswith(covers)
    report.second = report.best  # as good
    doubt = [each for each in report.remarks() if each.startswith("Not clearly better than")]
    assert len(doubt) == (seeds > 1)
    assert all("optimizer.rho=" in each and "more --seeds" in each for each in doubt)


@pytest.mark.parametrize(("low", "doubtful"), [(1.9, True), (2.0, True), (2.1, False)])
def test_intervals_that_are_apart_leave_no_doubt(tmp_path, low, doubtful):
    """They overlap from their common end on."""
    report = Report(executed(tmp_path, GRID[:1], seeds=3)[0])
    best, second = Spread(1.0, 0.5, 2.0), Spread(3.0, low, 4.0)
    report.best = replace(report.best, spreads={"loss": best})
    report.second = replace(report.second, spreads={"loss": second})
    assert any("Not clearly better" in each for each in report.remarks()) == doubtful


def test_runs_of_another_sweep_are_waited_for(tmp_path, monkeypatch):
    """They are not computed twice: the result is read when it is there."""
    first, _ = executed(tmp_path)
    last = list(first.jobs)[-1]
    folder = tmp_path / "out" / "runs" / last
    hidden = folder.with_name("hidden")
    folder.rename(hidden)
    refusals = []

    def claim(_store, run):
        refusals.append(run)
        if len(refusals) == 3:  # the other sweep has finished it
            hidden.rename(folder)
        return False

    monkeypatch.setattr(runner, "ELSEWHERE_S", 0.001)
    monkeypatch.setattr("adadelta_cli.sweep.store.Store.claim", claim)
    again, executor = executed(tmp_path)
    assert executor.jobs == [] and len(again.rows) == 6 and refusals == [last] * 3


def test_the_progress_counts_what_is_computed(tmp_path):
    """Without the runs that were stored before: the time left is estimated by the others."""
    ticks = []
    found = sweep(tmp_path)
    found.execute(engine(capacity=1), tick=lambda *tick: ticks.append(tick))
    assert ticks[-1][:2] == (6, 6)
    assert [done for done, *_ in ticks] == sorted(done for done, *_ in ticks)
    ticks.clear()
    more = sweep(tmp_path, seeds=2)
    more.execute(engine(capacity=1), tick=lambda *tick: ticks.append(tick))
    assert ticks[0][:2] == (0, 6) and ticks[-1] == (6, 6, "runs; 6 were there")


def test_wrong_data_end_the_sweep_before_it_begins(tmp_path):
    """Nothing is written."""
    text = "problem: {name: logistic_regression, csv: none.csv}\ntraining: {steps: 3}\n"
    with pytest.raises(UsageError, match=r"none\.csv"):
        sweep(tmp_path, (), text=text, seeds=2)
    assert not (tmp_path / "out").exists()


def test_a_problem_that_raises_ends_the_sweep_before_it_begins(tmp_path):
    """As its worker reports it."""

    class Raising(InProcess):
        def submit(self, *_args, **_kwargs):
            future = runner.Future()
            future.set_result(
                runner.Outcome(failure=Failure.FAILED, message="raised ValueError: x")
            )
            return future

    with pytest.raises(UsageError, match=r"cannot begin: raised ValueError"):
        sweep(tmp_path, where=engine(Raising()))


def test_an_unknown_metric_is_refused(tmp_path):
    """With those that there are."""
    with pytest.raises(UsageError, match=r"'distanc'.*loss, distance \(did you mean distance\?\)"):
        sweep(tmp_path, metric="distanc")


def test_a_problem_is_probed_once(tmp_path, monkeypatch):
    """Where the optimizer varies; each that differs, where the problem does."""
    built = []
    real = rosenbrock.Rosenbrock.__init__

    def count(self, settings, seed):
        built.append(settings.dimension)
        real(self, settings, seed)

    monkeypatch.setattr(rosenbrock.Rosenbrock, "__init__", count)
    sweep(tmp_path)
    assert built == [2]
    sweep(tmp_path, ["problem.dimension=3,4"])
    assert built == [2, 3, 4]


def read(path):
    """Read a CSV file."""
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_the_files(tmp_path):
    """Tidy rows, a summary with the same numbers, a document with both."""
    found, _ = executed(tmp_path, seeds=3, metric="distance")
    report = Report(found)
    report.write()
    out = tmp_path / "out"
    assert {path.name for path in out.iterdir()} == {*FILES, "runs"}
    runs, summary = read(out / "sweep.csv"), read(out / "summary.csv")
    assert list(runs[0]) == [
        *("optimizer.rho", "optimizer.epsilon", "seed", "status", "steps", "loss", "distance"),
        *("run", "message", "seconds"),
    ]
    assert len(runs) == 18 and len(summary) == 6
    assert summary[0]["runs"] == summary[0]["finished"] == "3"
    medians = sorted(float(row["distance"]) for row in runs[:3])
    assert float(summary[0]["distance_median"]) == medians[1]
    document = json.loads((out / "sweep.json").read_text())
    assert document["complete"] and len(document["runs"]) == 18
    best = min(summary, key=lambda row: float(row["distance_median"]))
    assert str(document["best"]["setting"]["optimizer.rho"]) == best["optimizer.rho"]


def test_the_files_of_a_sweep_without_any_result(tmp_path):
    """The tables have their headings."""
    failures = {0: Failure.CRASHED}
    found, _ = executed(tmp_path, failures=failures)
    report = Report(found)
    report.write()
    assert report.best is None and report.command == ""
    assert read(tmp_path / "out" / "sweep.csv")[0]["loss"] == ""
    assert report.conclusion() == ["No setting has a finite loss."]
    found.ends.clear()
    Report(found).write()
    assert (tmp_path / "out" / "summary.csv").read_text().startswith("optimizer.rho,")
    assert any("0 of 6 runs are done; the same command" in line for line in Report(found).remarks())


def test_equal_sweeps_write_equal_bytes(tmp_path):
    """Whatever was stored before, and in whatever order they computed."""
    texts = []
    for name, capacity in (("a", 1), ("b", 5)):
        (tmp_path / name).mkdir()
        found = sweep(tmp_path / name, seeds=2)
        if capacity == 5:
            executed(tmp_path / name, [GRID[0], "optimizer.epsilon=1e-4"], seeds=2)
        found.execute(engine(capacity=capacity))
        Report(found).write()
        out = tmp_path / name / "out"
        rows = [{k: v for k, v in row.items() if k != "seconds"} for row in read(out / "sweep.csv")]
        texts.append((rows, (out / "summary.csv").read_bytes()))
    assert texts[0] == texts[1]


def test_the_table_shows_the_best_of_many(tmp_path):
    """Twenty, in the order of the plan."""
    found, _ = executed(tmp_path, [f"optimizer.rho={','.join(f'0.{k}' for k in range(10, 40))}"])
    table = Report(found).tables()[0]
    assert table.row_count == 20
    assert "best 20 of 28" in str(table.title) or "best 20 of" in str(table.title)


def test_the_command_repeats_the_best_run(tmp_path):
    """It sets what varies, after what the user set; results/run may hold another run's files."""
    found, _ = executed(
        tmp_path, ["problem.dimension=2,3"], overrides=("optimizer.wd=0.1",), seeds=2
    )
    report = Report(found)
    command = report.command
    assert command.startswith(f"adadelta run {tmp_path}/it.yaml --set optimizer.wd=0.1 --set ")
    assert "--backend numpy --dtype float64 --no-fused --seed" in command
    assert command.endswith(f" --out results/best/{report.run.run}")


def test_the_plan_names_its_runs_by_content(tmp_path):
    """The names of the folders are the same in every sweep."""
    one, two = sweep(tmp_path), sweep(tmp_path)
    assert list(one.jobs) == list(two.jobs)
    assert plan(tmp_path).jobs("numpy", CPU)[0] == next(iter(one.jobs.values()))
