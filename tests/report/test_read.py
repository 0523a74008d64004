"""The files of the commands are found and read; what is damaged or foreign is named in a note."""

from __future__ import annotations

import os

import pytest
from made_results import (
    FAILED,
    bench_row,
    make_all,
    make_bench,
    make_run,
    make_sweep,
    make_verification,
    verify_row,
)

from adadelta_cli.errors import UsageError
from adadelta_cli.report.read import read_folders


@pytest.fixture(scope="module")
def everything(tmp_path_factory):
    """Read a result of each command."""
    folder = tmp_path_factory.mktemp("results")
    make_all(folder)
    return read_folders([folder])


def test_a_result_of_each_command_is_found(everything):
    """Runs, verifications, benches, comparisons and sweeps; nothing to note."""
    kinds = ("runs", "verifications", "benches", "comparisons", "sweeps")
    assert [len(getattr(everything, kind)) for kind in kinds] == [2, 1, 1, 1, 1]
    assert everything.notes == []


def test_a_run_has_its_history_settings_and_command(everything):
    """From history.csv and config.yaml, which lie beside summary.json."""
    run = everything.runs[0]
    assert run.history["step"][0] == 0 and run.history["step"][-1] == 200
    assert run.history["grad_norm"][0] is None
    assert run.settings["optimizer.learning_rate"] == "1.0"
    assert run.settings["backend"] == "numpy"
    assert run.command.startswith("adadelta run ")


def test_a_row_of_verify_has_the_command_that_repeats_it(everything):
    """It is that of the file."""
    (found,) = everything.verifications
    assert found.commands[0] == "adadelta verify --case case-0"
    assert found.rows[-1].passed is False


def test_old_results_without_json_are_read(tmp_path):
    """verify.csv by itself: an empty bound is none, and commands are made from the rows."""
    rows = [verify_row(), verify_row(1, check="oracle", case="special", allowed_ulp=None)]
    make_verification(tmp_path, rows, as_csv=True)
    (found,) = read_folders([tmp_path]).verifications
    assert [row.allowed_ulp for row in found.rows] == [0.0, None]
    assert "--case special" in found.commands[1]


def test_a_csv_file_beside_its_json_is_not_read_twice(tmp_path):
    """The same verification is shown once; so is a folder that is named twice."""
    make_verification(tmp_path, [verify_row()])
    make_verification(tmp_path, [verify_row()], as_csv=True)
    assert len(read_folders([tmp_path, tmp_path]).verifications) == 1


def test_the_runs_of_a_sweep_are_shown_with_the_sweep(tmp_path):
    """Not among the runs, unless their folder is named; other folders of that name are read."""
    make_sweep(tmp_path / "sweep")
    make_run(tmp_path / "sweep" / "runs" / "a1b2")
    make_run(tmp_path / "sweep" / "mine")
    make_run(tmp_path / "runs" / "a")
    found = read_folders([tmp_path])
    assert [run.place for run in found.runs] == [f"{tmp_path}/runs/a", f"{tmp_path}/sweep/mine"]
    assert len(found.sweeps) == 1
    assert len(read_folders([tmp_path / "sweep" / "runs"]).runs) == 1


def test_a_file_can_be_named(tmp_path):
    """In place of its folder."""
    make_bench(tmp_path, [bench_row()])
    assert len(read_folders([tmp_path / "bench.json"]).benches) == 1


DAMAGED = {
    "cut off": ("summary.json", b'{"name": "mlp", "pro'),
    "empty": ("verify.json", b""),
    "not UTF-8": ("bench.json", b"\xff\xfe{}"),
    "a list": ("sweep.json", b"[1, 2]"),
    "foreign": ("summary.json", b'{"total": 3, "passed": 2}'),
    "nested too deeply": ("bench.json", b'{"rows":' * 100_000),
    "no rows": ("verify.json", b'{"rows": []}'),
    "rows of something else": ("verify.json", b'{"rows": [{"a": 1}, 5]}'),
    "another table": ("compare.csv", b"a,b\n1,2\n"),
    "a NUL": ("verify.csv", b"check,case\n\0,\n"),
    "numbers that are texts": ("sweep.json", b'{"config": 1, "keys": 2, "metric": 3}'),
}


@pytest.mark.parametrize(("name", "content"), DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_or_foreign_file_becomes_a_note(tmp_path, name, content):
    """The note names it and the reason; the other results are shown."""
    make_run(tmp_path / "good")
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / name).write_bytes(content)
    found = read_folders([tmp_path])
    assert len(found.runs) == 1
    (note,) = found.notes
    assert str(tmp_path / "bad" / name) in note


def test_a_pipe_is_not_opened(tmp_path):
    """To open one may block forever."""
    make_run(tmp_path / "good")
    os.mkfifo(tmp_path / "bench.json")
    assert "a pipe" in read_folders([tmp_path]).notes[0]


def test_wrong_rows_are_left_out_and_counted(tmp_path):
    """The others are shown."""
    make_verification(tmp_path, [verify_row(), verify_row(1)])
    path = tmp_path / "verify.json"
    path.write_text(path.read_text().replace('"elements": 1000', '"elements": "many"', 1))
    found = read_folders([tmp_path])
    assert len(found.verifications[0].rows) == 1
    assert "1 of 2 rows are left out: row 1, elements" in found.notes[0]


@pytest.mark.parametrize("name", ["history.csv", "config.yaml"])
def test_a_run_without_one_of_its_files_is_shown(tmp_path, name):
    """Its summary is enough; a note names the file."""
    make_run(tmp_path)
    (tmp_path / name).unlink()
    found = read_folders([tmp_path])
    assert len(found.runs) == 1
    assert name in found.notes[0]


def test_aliases_in_a_config_are_refused(tmp_path):
    """A few of them can stand for gigabytes."""
    make_run(tmp_path)
    (tmp_path / "config.yaml").write_text("a: &a [x, x]\nb: [*a, *a]\n")
    found = read_folders([tmp_path])
    assert "config.yaml" in found.notes[0] and "alias" in found.notes[0]


def test_numbers_that_json_lacks_are_read(tmp_path):
    """A diverged run has nan and inf, as texts in JSON."""
    make_run(tmp_path, outcome="diverged")
    path = tmp_path / "summary.json"
    path.write_text(path.read_text().replace('"accuracy": 0', '"accuracy": "nan", "x": 0'))
    make_verification(tmp_path, [verify_row(**FAILED | {"scaled_ulp": float("inf")})])
    found = read_folders([tmp_path])
    assert found.runs[0].summary.end["accuracy"] is None
    assert found.verifications[0].rows[0].scaled_ulp == float("inf")


def test_nothing_found_is_wrong_usage(tmp_path):
    """The message names the folder, damaged files, and what to do."""
    (tmp_path / "bench.json").write_text("{")
    with pytest.raises(UsageError, match=r"no results in .*bench\.json is left out.*run one"):
        read_folders([tmp_path])


@pytest.mark.parametrize("name", ["missing", "other.txt"])
def test_a_path_that_is_no_result_is_wrong_usage(tmp_path, name):
    """A missing folder, or a file with another name."""
    (tmp_path / "other.txt").write_text("")
    with pytest.raises(UsageError, match=f"{name} (does not exist|is none of)"):
        read_folders([tmp_path / name])
