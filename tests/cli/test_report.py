"""`adadelta report`, and `--report` of other commands, as users and their scripts see them."""

from __future__ import annotations

import json

import pytest
from made_results import bench_row, make_all, make_bench, make_run


def test_the_default_is_results(adadelta, tmp_path):
    """What was found is printed, and at the end the path of the page."""
    make_all(tmp_path / "results")
    code, out, err = adadelta("report")
    assert code == 0, err
    assert "failed: verify" in out
    assert out.splitlines()[-1] == "Report: results/report.html"
    assert "<!DOCTYPE html>" in (tmp_path / "results" / "report.html").read_text()


def test_json(adadelta, tmp_path):
    """One document: the path, the findings, the notes."""
    make_run(tmp_path / "results" / "a")
    (tmp_path / "results" / "verify.json").write_text("{")
    code, out, err = adadelta("report", "--json", "--out", "elsewhere")
    assert code == 0
    document = json.loads(out)
    assert document["report"] == "elsewhere/report.html"
    assert document["findings"][0]["level"] == "good"
    assert "verify.json is left out" in document["notes"][0]
    assert "Warning: results/verify.json is left out" in err


def test_nothing_found_is_exit_code_2(adadelta, tmp_path):
    """And no page is written."""
    (tmp_path / "results").mkdir()
    code, _out, err = adadelta("report")
    assert code == 2
    assert err.startswith("Error: no results in results;")
    assert not (tmp_path / "results" / "report.html").exists()


def test_a_page_is_not_written_over_a_folder(adadelta, tmp_path):
    """That is wrong usage."""
    make_run(tmp_path / "results")
    (tmp_path / "results" / "report.html").mkdir()
    code, _out, err = adadelta("report")
    assert code == 2 and "is a folder" in err


def test_run_writes_a_report(adadelta, tmp_path):
    """Of the results in its folder, read back from what it wrote."""
    settings = ("--set", "expect={}", "--set", "training.steps=20")
    code, _out, err = adadelta("run", "rosenbrock", "--backend", "numpy", *settings, "--report")
    assert code == 0, err
    assert "Report: results/run/report.html" in err
    assert "Of 1 run, 1 finished" in (tmp_path / "results" / "run" / "report.html").read_text()


@pytest.mark.slow
def test_verify_writes_a_report(adadelta, tmp_path):
    """It has the rows that verify wrote."""
    chosen = ("--impl", "numpy-fused", "--dtype", "float32", "--case", "fresh")
    code, _out, err = adadelta("verify", *chosen, "--report")
    assert code == 0, err
    assert "implementation passed" in (tmp_path / "results/verify/report.html").read_text()


def test_compare_writes_a_report_into_out(adadelta, tmp_path):
    """Without --out, there is no folder for it."""
    make_bench(tmp_path / "old", [bench_row()])
    path = tmp_path / "old" / "bench.json"
    medians = {"median_s": [1.0, 1.1, 1.2], "ceiling_fraction": [0.5, 0.6, 0.7]}
    document = json.loads(path.read_text()) | {"by_process": [medians]}
    path.write_text(json.dumps(document))
    code, _out, err = adadelta("compare", "old", "old", "--report")
    assert code == 2 and "--out" in err
    code, _out, err = adadelta("compare", "old", "old", "--report", "--out", "new")
    assert code == 0, err
    assert "Of 1 row:" in (tmp_path / "new" / "report.html").read_text()


def test_the_self_test_has_a_page_of_its_own(adadelta):
    """So --report contradicts it."""
    code, _out, err = adadelta("verify", "--self-test", "--report")
    assert code == 2 and "self-test.md" in err


@pytest.mark.slow
def test_sweep_writes_a_report(adadelta, tmp_path):
    """It has the settings and a heat map; its runs are not listed again as runs."""
    grid = ("--grid", "optimizer.rho=0.9,0.95", "--grid", "optimizer.epsilon=1e-6,1e-4")
    short = ("--set", "training.steps=20", "--set", "expect={}", "--workers", "1")
    code, _out, err = adadelta(
        "sweep", "rosenbrock", "--backend", "numpy", *grid, *short, "--report"
    )
    assert code == 0, err
    text = (tmp_path / "results/sweep/report.html").read_text()
    assert "Of 4 settings of rosenbrock, the best is optimizer.rho=" in text
    assert "Of 4 runs" not in text
    assert '<table class="heat">' in text
