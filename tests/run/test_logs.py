"""Logs of trainings: the numbers of history.csv, read back; and whatever can go wrong."""

from __future__ import annotations

import csv
import importlib.util
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from short_runs import interrupt, make_run, short

from adadelta_cli.cli.run import _note_logs
from adadelta_cli.errors import UsageError
from adadelta_cli.run.logs import targets
from adadelta_cli.run.logs.base import RunFacts
from adadelta_cli.run.logs.mlflow import MlflowLog
from adadelta_cli.run.logs.tensorboard import TensorboardLog
from adadelta_cli.run.result import RunOutcome

pytest.importorskip("tensorboard")
QUICK = (
    *("--backend", "numpy", "--set", "training.steps=20", "--set", "training.record_every=5"),
    *("--set", "expect={}"),
)


def prepared(*options):
    """Return what `--log` names, checked."""
    found = targets.read(options)
    targets.prepare(found)
    return found


def history(folder):
    """Return history.csv by step and column, in float64, without empty cells."""
    with (folder / "history.csv").open(newline="") as file:
        return {
            int(row.pop("step")): {name: float(each) for name, each in row.items() if each}
            for row in csv.DictReader(file)
        }


def events(folder):
    """Return the records of the only event file of a folder, as TensorBoard's loader reads them."""
    from tensorboard.backend.event_processing.event_file_loader import LegacyEventFileLoader

    (path,) = folder.iterdir()
    assert "tfevents" in path.name
    return list(LegacyEventFileLoader(str(path)).Load())


def scalars(folder):
    """Return the scalars of an event file by step and tag."""
    return {
        each.step: {value.tag: value.simple_value for value in each.summary.value}
        for each in events(folder)
        if any(value.HasField("simple_value") for value in each.summary.value)
    }


def texts(folder):
    """Return the texts of an event file by tag."""
    return {
        value.tag: value.tensor.string_val[0].decode()
        for each in events(folder)
        for value in each.summary.value
        if value.metadata.plugin_data.plugin_name == "text"
    }


def rounded(rows):
    """Round numbers to float32, as TensorBoard's scalars are."""
    with np.errstate(over="ignore"):
        return {
            step: {name: float(np.float32(each)) for name, each in row.items()}
            for step, row in rows.items()
        }


def exact(rows):
    """Write numbers so that NaN equals NaN, and zeros differ by their sign."""
    return {step: {k: repr(v) for k, v in row.items()} for step, row in rows.items()}


@pytest.mark.parametrize("name", ["rosenbrock", "logistic_regression", "mlp"])
def test_tensorboard_gets_each_number_of_the_history(name, tmp_path):
    """All columns at the same steps, equal to the last bit of float32; and what was trained."""
    log = tmp_path / "logs"
    run = make_run(tmp_path / "out", short(name), logs=prepared(f"tensorboard:{log}"))
    run.execute()
    written = history(tmp_path / "out")
    assert len(written) > 2 and len(written[max(written)]) > 3
    assert scalars(log / "out") == rounded(written)
    assert run.logs.places == {f"--log tensorboard:{log}": str(log / "out")}
    about = texts(log / "out")
    assert f"name: {name}" in about["config"] and "processor: " in about["about"]
    assert about["outcome"].strip() == "finished"


def test_the_event_file_is_there_while_the_training_goes_on(tmp_path):
    """Each row is on disk once it is recorded: TensorBoard shows it."""
    seen = []

    def tick(done, _total, _what):
        if done % 7 == 0:
            seen.append(max(scalars(tmp_path / "logs" / "out")) == done)

    run = make_run(
        tmp_path / "out", short("rosenbrock"), logs=prepared(f"tensorboard:{tmp_path}/logs")
    )
    run.execute(tick)
    assert seen == [True] * 7


def test_numbers_beyond_float32_are_infinite(tmp_path):
    """As history.csv has them, but for the range of float32."""
    diverging = short("rosenbrock", "optimizer.learning_rate=1e30", "training.record_every=1")
    run = make_run(tmp_path / "out", diverging, logs=prepared(f"tensorboard:{tmp_path}/logs"))
    assert run.execute().outcome.value == "diverged"
    got, wanted = scalars(tmp_path / "logs" / "out"), rounded(history(tmp_path / "out"))
    assert exact(got) == exact(wanted)
    assert {"inf", "nan"} <= {*exact(got)[max(got)].values()}


def test_another_run_of_the_same_name_leaves_the_first_log_alone(tmp_path):
    """It gets a folder of its own."""
    for seed in (0, 1):
        where = prepared(f"tensorboard:{tmp_path}/logs")
        make_run(tmp_path / f"{seed}/mlp", short("rosenbrock"), seed=seed, logs=where).execute()
    for folder, out in (("mlp", "0/mlp"), ("mlp-2", "1/mlp")):
        assert scalars(tmp_path / "logs" / folder) == rounded(history(tmp_path / out))


def test_a_resumed_run_logs_all_of_its_history(tmp_path):
    """The interrupted one ends with what was recorded; the resumed one is complete."""
    out, log = tmp_path / "out", f"tensorboard:{tmp_path}/logs"
    interrupt(make_run(out, short("rosenbrock"), logs=prepared(log)), 20)
    assert scalars(tmp_path / "logs/out") == rounded(history(out))
    assert max(scalars(tmp_path / "logs/out")) == 14
    assert texts(tmp_path / "logs/out")["outcome"].strip() == "interrupted"
    make_run(out, short("rosenbrock"), logs=prepared(log), resume=True).execute()
    assert scalars(tmp_path / "logs/out-2") == rounded(history(out))


def test_two_logs_get_the_same(tmp_path):
    """Several may be given."""
    where = [f"tensorboard:{tmp_path}/{name}" for name in "ab"]
    make_run(tmp_path / "out", short("rosenbrock"), logs=prepared(*where)).execute()
    assert scalars(tmp_path / "a/out") == scalars(tmp_path / "b/out")


@pytest.mark.parametrize(
    ("option", "code", "message"),
    [
        ("tensorbord:x", 2, "did you mean tensorboard?"),
        ("csv:x", 2, "expected tensorboard:DIR or mlflow:URI"),
        ("tensorboard", 2, "the DIR is missing"),
        ("tensorboard:", 2, "the DIR is missing"),
        ("mlflow: ", 2, "the URI is missing"),
        (":x", 2, "expected tensorboard:DIR or mlflow:URI"),
        ("tensorboard:~nobody-has-this-name/x", 2, "the home folder of ~nobody-has-this-name"),
        ("mlflow:~nobody-has-this-name/x", 2, "the home folder of ~nobody-has-this-name"),
        ("tensorboard:loop", 2, "levels of symbolic links"),
        ("mlflow:loop/x", 2, "levels of symbolic links"),
        ("mlflow:sqlite:///loop", 2, "levels of symbolic links"),
        ("tensorboard:file", 2, "is a file"),
        (f"tensorboard:{'x' * 300}", 2, "too long"),
        ("tensorboard:file/below", 4, "cannot be made or written to"),
        ("tensorboard:/proc/x", 4, "cannot be made or written to"),
        ("mlflow:file", 2, "is a file"),
        ("mlflow:file/below", 4, "cannot be made or written to"),
        ("mlflow:sqlite:////proc/x/db", 4, "cannot be made or written to"),
        ("mlflow:sqlite:///folder", 2, "is a folder"),
    ],
)
def test_what_cannot_be_logged_to_is_refused_before_the_training(
    adadelta, tmp_path, option, code, message
):
    """With what was expected; there is no result."""
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir()
    (tmp_path / "loop").symlink_to("loop")
    got, out, err = adadelta("run", "rosenbrock", *QUICK, "--log", option)
    assert (got, out) == (code, "")
    assert message in err and err.startswith("Error: ") and "Traceback" not in err
    assert not list(tmp_path.rglob("history.csv"))


def test_a_log_that_is_given_twice_is_refused():
    """Each run would be there twice."""
    with pytest.raises(UsageError, match="given twice"):
        targets.read(["tensorboard:x", "tensorboard:x"])


@pytest.mark.parametrize("method", ["begin", "add"])
def test_the_file_of_a_log_that_fails_is_closed(tmp_path, monkeypatch, method):
    """At its start and later: a sweep of many values would run out of files."""
    failing = []

    def fails(log, *_):
        failing.append(log)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(TensorboardLog, method, fails)
    logs = targets.RunLogs(prepared(f"tensorboard:{tmp_path}"))
    logs.start(RunFacts("a", "", {}, {}))
    logs.add(SimpleNamespace(cells={"step": 0, "loss": 1.0}))
    (log,) = failing
    assert log._file.closed and "No space left" in logs.failed[0]


@pytest.mark.parametrize("error", [None, KeyboardInterrupt])
def test_after_another_error_it_is_said_which_log_failed(error):
    """Otherwise the error of the log itself says so."""
    said = []
    logs = SimpleNamespace(places={"--log a:x": "here"}, failed=["--log b:y: no space"])
    _note_logs(SimpleNamespace(note=said.append), [SimpleNamespace(name="r", logs=logs)], error)
    failed = ["r is not logged: --log b:y: no space"] if error else []
    assert said == ["r is logged: --log a:x, here", *failed]


@pytest.mark.parametrize("kind", targets.KINDS)
def test_a_library_that_is_missing_is_exit_code_3(adadelta, monkeypatch, kind):
    """With the command that installs it."""
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == kind else find(name, *rest)
    )
    code, _out, err = adadelta("run", "rosenbrock", *QUICK, "--log", f"{kind}:x")
    assert code == 3
    assert f"{kind} not installed; python -m pip install 'adadelta[{kind}]'" in err


def test_a_log_that_fails_leaves_the_training_alone(adadelta, tmp_path, monkeypatch):
    """All files are there; the error names the log, and that the results are complete."""
    write, rows = TensorboardLog.add, []

    def fails_later(self, step, numbers):
        rows.append(step)
        if len(rows) > 2:
            raise OSError(28, "No space left on device")
        write(self, step, numbers)

    monkeypatch.setattr(TensorboardLog, "add", fails_later)
    code, out, err = adadelta("run", "rosenbrock", *QUICK, "--log", "tensorboard:logs")
    assert code == 4
    assert "finished" in out and "No space left on device" in err and "complete" in err
    assert "bug" not in err
    folder = tmp_path / "results/run/rosenbrock"
    assert [*history(folder)] == [0, 5, 10, 15, 20]
    assert {"summary.json", "loss.png", "checkpoint.npz"} <= {
        each.name for each in folder.iterdir()
    }
    assert rows == [0, 5, 10], "a log that failed is not tried again"


def test_help_and_completion_name_the_kinds(adadelta):
    """A user finds them without the docs."""
    _code, out, _err = adadelta("run", "--help")
    assert "tensorboard:DIR" in out and "mlflow:URI" in out
    from adadelta_cli.cli.options import completes

    items = completes("logs")(None, None, "m")
    assert [each.value for each in items] == ["mlflow:"]


def test_the_gradient_check_trains_nothing_to_log(adadelta):
    """The two contradict each other."""
    code, _out, err = adadelta("run", "rosenbrock", "--check-gradient", "--log", "tensorboard:logs")
    assert code == 2 and "contradict" in err


@pytest.mark.slow
def test_nothing_heavy_is_loaded_without_a_log(tmp_path):
    """Neither library, nor what they bring."""
    code = (
        "import sys; from adadelta_cli.cli.main import adadelta as a; "
        "a.main(['run', 'rosenbrock', '--backend', 'numpy', '--set', 'training.steps=5', '--set', "
        "'expect={}'], standalone_mode=False); "
        "print(*({'tensorboard', 'mlflow', 'google', 'tensorflow', 'grpc'} & {*sys.modules}))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert result.stdout.splitlines()[-1] == ""


# --- what TensorBoard shows ----------------------------------------------------------------------


@pytest.mark.slow
def test_tensorboard_shows_the_runs(tmp_path):
    """Its own reader of a folder finds each run with its scalars."""
    from tensorboard.backend.event_processing.event_multiplexer import EventMultiplexer

    for rate in ("0.5", "0.7"):
        name = f"rosenbrock_learning_rate={rate}"
        settings = short("rosenbrock", f"optimizer.learning_rate={rate}")
        make_run(tmp_path / name, settings, logs=prepared(f"tensorboard:{tmp_path}/logs")).execute()
    shown = EventMultiplexer().AddRunsFromDirectory(str(tmp_path / "logs"))
    shown.Reload()
    assert {*shown.Runs()} == {f"rosenbrock_learning_rate={rate}" for rate in ("0.5", "0.7")}
    for name in shown.Runs():
        wanted = rounded(history(tmp_path / name))
        got = {each.step: each.value for each in shown.Scalars(name, "loss")}
        assert got == {step: row["loss"] for step, row in wanted.items()}


# --- MLflow --------------------------------------------------------------------------------------


def test_messages_hide_passwords():
    """They end up in the logs of a CI; of the library's own messages, too."""
    uri = "postgresql://me:a:s@cret@localhost/db"
    (target,) = targets.read([f"mlflow:{uri}"])
    assert target.where == uri and target.option == "--log mlflow:postgresql://me:***@localhost/db"
    for raised in (RuntimeError(f"no answer of {uri}"), ImportError(uri)):
        assert "s@cret" not in str(target._explained(raised))
    logs = targets.RunLogs([target])
    logs._guarded(target, lambda: (_ for _ in ()).throw(OSError(uri)))
    assert "***" in logs.failed[0] and "s@cret" not in logs.failed[0]
    with pytest.raises(UsageError, match="twice") as caught:
        targets.read([f"mlflow:{uri}"] * 2)
    assert "s@cret" not in str(caught.value)


def test_numbers_are_sent_in_requests_that_mlflow_takes():
    """At most a thousand in one; all of them, once, in their order."""
    sent = []
    log = object.__new__(MlflowLog)
    log._waiting, log._run = [*range(2500)], "a-run"
    log._client = SimpleNamespace(log_batch=lambda _run, metrics: sent.append([*metrics]))
    log._send()
    assert [*map(len, sent)] == [1000, 1000, 500] and [n for each in sent for n in each] == [
        *range(2500)
    ]


def test_metrics_of_like_names_stay_apart():
    """Also where the first of them has no number in some rows; and none is a path."""
    pytest.importorskip("mlflow")
    log = object.__new__(MlflowLog)
    log._names, log._waiting, log._sent = {}, [], float("inf")
    log.add(0, {"a%": 1.0, "a$": 2.0, "..": 3.0})
    log.add(1, {"a$": 4.0, "a%": 5.0})
    found = [(each.key, each.step, each.value) for each in log._waiting]
    assert found == [("a_", 0, 1), ("a__2", 0, 2), ("_..", 0, 3), ("a__2", 1, 4), ("a_", 1, 5)]


@pytest.mark.parametrize(
    ("where", "folder"),
    [
        ("~/runs", "home/runs"),
        ("a%20b/runs", "a b/runs"),
        ("file:a%20b/runs", "a b/runs"),
        ("file://localhost{}/runs", "runs"),
    ],
)
def test_a_folder_is_the_one_that_mlflow_fills(tmp_path, monkeypatch, where, folder):
    """No folder of another name is made."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (target,) = targets.read([f"mlflow:{where.format(tmp_path)}"])
    target._check_place()
    made = {str(each.relative_to(tmp_path)) for each in tmp_path.iterdir()}
    assert made == {folder.partition("/")[0]} - {"runs"}
    uri = target._uri
    found = pytest.importorskip("mlflow.utils.file_utils").local_file_uri_to_path(uri)
    assert Path(found).absolute() == tmp_path / folder


@pytest.mark.slow
def test_mlflow_in_a_folder_of_other_things_and_under_an_odd_name(adadelta, tmp_path, mlflow):
    """What is there already is no experiment, and no reason for MLflow's tracebacks."""
    (tmp_path / "store/other/below").mkdir(parents=True)
    config = tmp_path / os.fsdecode(b"odd\xe9.yaml")
    config.write_text("problem: {name: rosenbrock}\n")
    code, _out, err = adadelta("run", str(config), *QUICK, "--log", "mlflow:store")
    assert (code, err.count("Traceback")) == (0, 0), err
    ((found, _rows),) = logged(mlflow, "store")
    assert found.info.run_name == r"odd\udce9"


def test_mlflow_prints_nothing_on_stdout(capsys):
    """Which has the results, and with --json nothing else."""
    log = object.__new__(MlflowLog)
    log._waiting, log._run = [], "a-run"
    log._client = SimpleNamespace(
        set_tag=lambda *_: None,
        set_terminated=lambda *_: print("View run at"),  # noqa: T201
    )
    log.close(RunOutcome.PASSED)
    assert capsys.readouterr().out == ""


@pytest.fixture
def mlflow(monkeypatch):
    """Return MLflow, with short waits."""
    found = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")  # for what reads it back
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    return found


STORES = {"folder": "file:{}/mlruns", "path": "{}/mlruns", "sqlite": "sqlite:///{}/mlflow.db"}


def logged(mlflow, uri):
    """Return the runs in a store, the newest first, each with the history of its metrics."""
    client = mlflow.MlflowClient(tracking_uri=uri)
    (experiment,) = [each for each in client.search_experiments() if each.name == "adadelta"]
    runs = client.search_runs([experiment.experiment_id])
    found = []
    for run in runs:
        rows = {}
        for name in run.data.metrics:
            for each in client.get_metric_history(run.info.run_id, name):
                assert name not in rows.setdefault(each.step, {}), "logged twice"
                rows[each.step][name] = each.value
        found.append((run, rows))
    return found


@pytest.mark.slow
@pytest.mark.parametrize("store", STORES)
def test_mlflow_gets_each_number_of_the_history(mlflow, tmp_path, store):
    """Every bit, and the config, the version and the machine."""
    uri = STORES[store].format(tmp_path)
    settings = short("mlp", "optimizer.rho=0.95")
    run = make_run(tmp_path / "out", settings, logs=prepared(f"mlflow:{uri}"), seed=3)
    run.execute()
    ((found, rows),) = logged(mlflow, uri)
    assert rows == history(tmp_path / "out")
    params, tags = found.data.params, found.data.tags
    assert (params["optimizer.rho"], params["seed"], params["backend"]) == ("0.95", "3", "numpy")
    assert params["problem.hidden"] == "[6, 5]"
    assert found.info.run_name == "out" and found.info.status == "FINISHED"
    assert tags["outcome"] == "finished" and tags["adadelta"] and tags["processor"]
    assert run.logs.places == {f"--log mlflow:{uri}": f"run {found.info.run_id}"}


@pytest.mark.slow
def test_how_a_run_ended_is_its_status(mlflow, tmp_path):
    """Interrupted: killed, with the rows that were recorded; diverged: failed, with its NaN."""
    uri = f"file:{tmp_path}/mlruns"
    interrupt(make_run(tmp_path / "out", short("rosenbrock"), logs=prepared(f"mlflow:{uri}")), 20)
    ((found, rows),) = logged(mlflow, uri)
    assert (found.info.status, found.data.tags["outcome"]) == ("KILLED", "interrupted")
    assert rows == history(tmp_path / "out")
    diverging = short("rosenbrock", "optimizer.learning_rate=1e30", "training.record_every=1")
    make_run(tmp_path / "bad", diverging, logs=prepared(f"mlflow:{uri}")).execute()
    found, rows = logged(mlflow, uri)[0]
    assert (found.info.status, found.data.tags["outcome"]) == ("FAILED", "diverged")
    wanted = history(tmp_path / "bad")
    assert exact(rows) == exact(wanted)
    assert "nan" in exact(rows)[max(rows)].values()


@pytest.mark.slow
@pytest.mark.usefixtures("mlflow")
def test_a_server_that_does_not_answer_is_exit_code_3(adadelta, tmp_path):
    """One that is not there, and one that accepts and says nothing: before the training."""
    with socket.create_server(("127.0.0.1", 0)) as silent, socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        for each in (silent, closed):
            uri = f"http://127.0.0.1:{each.getsockname()[1]}"
            code, out, err = adadelta("run", "rosenbrock", *QUICK, "--log", f"mlflow:{uri}")
            assert (code, out) == (3, "")
            assert "no MLflow server answers" in err and uri in err and "Traceback" not in err
    assert not list(tmp_path.rglob("history.csv"))


@pytest.mark.slow
@pytest.mark.usefixtures("mlflow")
@pytest.mark.parametrize(
    ("uri", "code", "message"),
    [
        ("ftp://nowhere/x", 2, "MLflow knows no such URI"),
        ("sqlite:text.db", 2, "MLflow knows no such URI"),
        ("sqlite:///text.db", 4, "text.db"),
    ],
)
def test_a_store_that_is_none_is_refused(adadelta, tmp_path, uri, code, message):
    """Before the training."""
    (tmp_path / "text.db").write_text("no database" * 100)
    got, _out, err = adadelta("run", "rosenbrock", *QUICK, "--log", f"mlflow:{uri}")
    assert got == code and message in err and "Traceback" not in err
    assert not list(tmp_path.rglob("history.csv"))


@pytest.mark.slow
def test_a_server_that_is_lost_leaves_the_training_alone(mlflow, adadelta, tmp_path, monkeypatch):
    """The files are complete, and the error says that the log is not."""

    def lost(_self):
        raise mlflow.exceptions.MlflowException("Max retries exceeded")

    monkeypatch.setattr(MlflowLog, "_send", lost)
    uri = f"file:{tmp_path}/mlruns"
    code, out, err = adadelta("run", "rosenbrock", *QUICK, "--log", f"mlflow:{uri}")
    assert code == 4 and "finished" in out
    assert "Max retries exceeded" in err and "complete" in err
    assert len(history(tmp_path / "results/run/rosenbrock")) == 5


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_closes_the_logs(mlflow, tmp_path, number, code):
    """What was recorded is in both, and MLflow's run is over."""
    command = [
        *(sys.executable, "-m", "adadelta_cli", "run", "rosenbrock", "--backend", "numpy"),
        *("--set", "training.steps=1000000", "--set", "training.record_every=500"),
        *("--log", f"tensorboard:{tmp_path}/logs", "--log", f"mlflow:file:{tmp_path}/mlruns"),
    ]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    folder = tmp_path / "logs/rosenbrock"
    with subprocess.Popen(
        command, cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True
    ) as process:
        while not (folder.exists() and any(folder.iterdir()) and len(scalars(folder)) > 3):
            assert process.poll() is None
        process.send_signal(number)
        _out, err = process.communicate()
    assert process.returncode == code, err
    rows = history(tmp_path / "results/run/rosenbrock")
    assert scalars(folder) == rounded(rows)
    ((found, sent),) = logged(mlflow, f"file:{tmp_path}/mlruns")
    assert found.info.status == "KILLED" and sent == rows
