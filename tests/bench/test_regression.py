"""Two handmade results of bench, and the verdicts on them."""

from __future__ import annotations

import copy
import csv
import json
import os
import subprocess
import sys
import time

import pytest

from adadelta_cli.bench import regression, regression_report
from adadelta_cli.bench.regression import COLUMNS, SECONDS, SHARE
from adadelta_cli.bench.significance import Verdict
from adadelta_cli.cli.main import adadelta
from adadelta_cli.errors import ExitCode, UsageError

MACHINE = {
    "host": "one",
    "processor": "P",
    "architecture": "x86_64",
    "cores": 2,
    "cores_available": 2,
    "cache_bytes": {"L1d": 32768, "L2": 1048576},
    "memory_bytes": 10**10,
    "load_average": 0.1,
    "versions": {"numpy": "1.26.4", "numba": "0.60"},
}
SETTINGS = {"precision": 0.02, "max_time_s": 4.0, "processes": 6, "seed": 0, "threads": [2]}
SPREAD = (0.99, 1.0, 1.01, 0.995, 1.005, 1.0)


def content(*, slower=1.0, share_slower=None, ceiling=True, processes=6, **machine):
    """Make bench.json: one fused step on 1e6 elements, and one training step without a ceiling."""
    row = {
        "implementation": "numpy-fused",
        "backend": "numpy",
        "ctx": "cpu",
        "dtype": "float32",
        "workload": "1e6",
        "tensors": 1,
        "elements": 10**6,
        "threads": 2,
        "cache": "warm",
        "median_s": 1e-3 * slower,
        "ceiling_gigabytes_per_s": 50.0,
        "note": "",
    }
    train = row | {"workload": "train:mlp", "ceiling_gigabytes_per_s": None}
    spread = SPREAD[:processes]
    times = [1e-3 * slower * each for each in spread]
    shares = [0.9 / (share_slower or slower) / each for each in spread] if ceiling else []
    return {
        "rows": [row, train],
        "by_process": [
            {"median_s": times, "ceiling_fraction": shares},
            {"median_s": times, "ceiling_fraction": []},
        ],
        "machine": MACHINE | machine,
        "settings": copy.deepcopy(SETTINGS),
    }


def judged(old, new, threshold=0.05):
    """Compare two contents."""
    return regression.judge(
        regression.parse_document(old, "old"), regression.parse_document(new, "new"), threshold
    )


def only(old, new, **how):
    """Compare, and return the row of 1e6."""
    return judged(old, new, **how).rows[0]


@pytest.mark.parametrize(
    ("slower", "wanted", "code"),
    [
        (1.0, Verdict.SAME, ExitCode.OK),
        (1.03, Verdict.SAME, ExitCode.OK),
        (1.08, Verdict.SLOWER, ExitCode.CHECK_FAILED),
        (1 / 1.08, Verdict.FASTER, ExitCode.OK),
    ],
)
def test_on_one_machine_all_rows_are_judged(slower, wanted, code):
    """By shares where there is a ceiling, else by seconds; exit code 1 only when SLOWER."""
    found = judged(content(), content(slower=slower))
    assert [row.compared for row in found.rows] == [SHARE, SECONDS]
    assert {row.verdict for row in found.rows} == {wanted}
    for row in found.rows:
        assert row.ratio == pytest.approx(slower, rel=1e-3)
        assert row.ratio_low < row.ratio < row.ratio_high
        assert (row.processes_old, row.processes_new) == (6, 6)
    share, seconds = found.rows
    assert share.ratio == pytest.approx(share.old / share.new)
    assert seconds.ratio == pytest.approx(seconds.new / seconds.old)
    assert found.exit_code is code


def test_shares_come_first():
    """A busy machine slows the ceiling too: seconds double, shares say SAME, a note says why."""
    new = content(slower=2.0, share_slower=1.0)
    new["rows"][0]["ceiling_gigabytes_per_s"] = 25.0
    row = only(content(), new)
    assert row.verdict is Verdict.SAME
    assert row.note == "the ceiling itself was 50 GB/s and is 25"
    assert only(content(ceiling=False), new).note == ""  # seconds, whatever the ceiling does


@pytest.mark.parametrize("side", ["old", "new"])
@pytest.mark.parametrize("host", ["one", "two"])
def test_a_share_that_means_nothing_is_not_compared(side, host):
    """Neither SLOWER nor FASTER: in that result the roofs were disturbed, as its note says."""
    disturbed = content(slower=1 / 7)
    disturbed["rows"][0]["ceiling_fraction"] = 7.61
    pair = {"old": content(), "new": content(host=host)} | {side: disturbed}
    found = judged(pair["old"], pair["new"])
    row = found.rows[0]
    assert (row.verdict, row.ratio, row.compared) == (Verdict.UNCLEAR, None, "")
    assert row.note.startswith("faster than its ceiling: the roofs were disturbed")
    assert f"in the {side} result" in row.note and "bench --against" in row.note
    disturbed["rows"][0]["ceiling_fraction"] = 1.05
    assert judged(pair["old"], pair["new"]).rows[0].verdict is not Verdict.UNCLEAR


def test_shares_carry_over_to_another_host_seconds_do_not():
    """The row without a ceiling is UNCLEAR, with the reason."""
    share, seconds = judged(content(), content(slower=1.08, host="two")).rows
    assert share.verdict is Verdict.SLOWER
    assert seconds.verdict is Verdict.UNCLEAR and seconds.ratio is None
    assert "same machine" in seconds.note


def test_a_machine_without_a_name_is_not_known_to_be_the_same():
    """Seconds are compared only where both say which host they are of."""
    old, new = content(), content(slower=1.08)
    del old["machine"]["host"], new["machine"]["host"]
    share, seconds = judged(old, new).rows
    assert (share.verdict, seconds.verdict) == (Verdict.SLOWER, Verdict.UNCLEAR)


def test_without_a_ceiling_seconds_are_compared():
    """A share on one side only cannot be compared."""
    assert only(content(ceiling=False), content(slower=1.08)).compared == SECONDS
    assert only(content(ceiling=False), content(slower=1.08, host="two")).compared == ""


@pytest.mark.parametrize(
    ("name", "value", "shown"),
    [
        ("processor", "Q", "processor"),
        ("architecture", "aarch64", "architecture"),
        ("cores", 4, "cores"),
        ("cores_available", 1, "cores_available"),
        ("cache_bytes", {"L1d": 32768, "L2": 2097152}, "cache_bytes.L2"),
        ("cache_bytes", {}, "cache_bytes.L1d, cache_bytes.L2"),
    ],
)
def test_another_kind_of_machine_makes_all_unclear(name, value, shown):
    """Processor, cores and caches: neither shares nor seconds carry over."""
    found = judged(content(), content(slower=2.0, **{name: value}))
    assert {row.verdict for row in found.rows} == {Verdict.UNCLEAR}
    assert all(f"another kind of machine ({shown} changed)" in row.note for row in found.rows)
    assert found.changes[0].consequence == "nothing can be compared"
    assert found.exit_code is ExitCode.OK


def test_versions_and_settings_are_listed_and_forbid_nothing():
    """Another NumPy, seed or amount of memory stands in the list; the load, which varies, not."""
    new = content(
        versions={"numpy": "2.0", "mxnet": "2.0.0b1"},
        memory_bytes=1,
        load_average=9,
        swap_used_bytes=7,
    )
    new["settings"]["seed"] = 1
    found = judged(content(), new)
    assert {(each.name, each.old, each.new, each.consequence) for each in found.changes} == {
        ("machine.memory_bytes", "10000000000", "1", ""),
        ("machine.versions.numpy", "1.26.4", "2.0", ""),
        ("machine.versions.numba", "0.60", "not recorded", ""),
        ("machine.versions.mxnet", "not recorded", "2.0.0b1", ""),
        ("settings.seed", "0", "1", ""),
    }
    assert {row.verdict for row in found.rows} == {Verdict.SAME}


def test_what_matters_is_listed_first():
    """A change with a consequence stands above those without."""
    found = judged(content(), content(versions={"numpy": "2"}, host="two"))
    assert found.changes[0].name == "machine.host"
    assert found.changes[0].consequence == "seconds cannot be compared"
    assert not any(change.consequence for change in found.changes[1:])


def test_two_processes_are_too_few():
    """The ratio is shown without an interval, and the row is UNCLEAR."""
    row = only(content(), content(slower=3.0, processes=2))
    assert row.verdict is Verdict.UNCLEAR
    assert row.ratio == pytest.approx(3, rel=0.01)
    assert row.ratio_low is row.ratio_high is row.p_value is None
    assert "at least 3" in row.note


def test_a_process_without_samples_does_not_count():
    """It is a null in bench.json."""
    new = content(slower=1.08)
    new["by_process"][0]["ceiling_fraction"][2] = None
    assert only(content(), new).processes_new == 5


def test_rows_of_one_side_are_unclear():
    """What vanished and what appeared is listed, in this order after what is new."""
    old, new = content(), content()
    old["rows"][1]["workload"], new["rows"][1]["workload"] = "1e7", "1e8"
    found = judged(old, new)
    unclear = [(row.workload, row.verdict, row.note.split(";")[0]) for row in found.rows[1:]]
    assert unclear == [
        ("1e8", Verdict.UNCLEAR, "not in the old result"),
        ("1e7", Verdict.UNCLEAR, "not in the new result"),
    ]
    assert found.exit_code is ExitCode.OK


@pytest.mark.parametrize(
    "name", ["implementation", "backend", "ctx", "dtype", "workload", "threads", "cache"]
)
def test_rows_are_matched_by_all_that_makes_them_alike(name):
    """Another of these is another measurement."""
    new = content()
    new["rows"][0][name] = 1 if name == "threads" else "other"
    assert len(judged(content(), new).rows) == 3


def test_nothing_in_common_is_an_error():
    """A comparison that compares nothing does not pass."""
    new = content()
    for row in new["rows"]:
        row["dtype"] = "float64"
    with pytest.raises(UsageError, match=r"old and new .*same options"):
        judged(content(), new)


def without_time(note):
    """Make a result whose first row has no time."""
    found = content()
    found["rows"][0] |= {"median_s": None, "note": note}
    found["by_process"][0] = {"median_s": [], "ceiling_fraction": []}
    return found


@pytest.mark.parametrize("machine", [{}, {"processor": "Q"}])
def test_a_step_that_became_wrong_is_slower(machine):
    """On any machine: it never gives the result. So a CI job fails on it."""
    new = without_time("wrong: 3 of 9 values differ from the array update")
    new["machine"] |= machine
    found = judged(content(), new)
    assert found.rows[0].verdict is Verdict.SLOWER
    assert found.rows[0].note.startswith(new["rows"][0]["note"])
    assert found.exit_code is ExitCode.CHECK_FAILED


def test_a_training_that_became_wrong_is_slower():
    """It has a time, which does not count."""
    new = content(slower=0.5)
    new["rows"][1]["note"] = "loss 0.2, wrong: not that of mxnet-stock"
    assert judged(content(), new).rows[1].verdict is Verdict.SLOWER


def test_a_training_that_was_wrong_gives_no_time_to_compare_with():
    """The old time is one of another computation."""
    old = content()
    old["rows"][1]["note"] = "loss 0.2, wrong: not that of mxnet-stock"
    row = judged(old, content(slower=2.0)).rows[1]
    assert row.verdict is Verdict.UNCLEAR and row.ratio is None


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        (without_time("wrong: all"), content(), "the old result has no time: wrong: all"),
        (without_time("wrong: all"), without_time("wrong: all"), "the old result has no time"),
        (content(), without_time("skipped: no torch"), "new result has no time: skipped: no torch"),
        (content(), without_time(""), "the new result has no time"),
    ],
)
def test_without_a_time_a_row_is_unclear(old, new, says):
    """Skipped in one, or wrong before: nothing is compared, nothing fails."""
    found = judged(old, new)
    assert found.rows[0].verdict is Verdict.UNCLEAR
    assert says in found.rows[0].note
    assert found.exit_code is ExitCode.OK


def test_a_folder_stands_for_its_bench_json(tmp_path):
    """What bench was given as --out can be named."""
    (tmp_path / "bench.json").write_text(json.dumps(content()))
    by_folder, by_file = map(regression.read_document, (tmp_path, tmp_path / "bench.json"))
    assert by_folder == by_file
    assert by_file.source == str(tmp_path / "bench.json")


def broken(name, value):
    """Make a document with one part replaced."""
    return json.dumps(content() | {name: value})


def nested(depth):
    """Make lists and objects within each other."""
    return {"a": [nested(depth - 2)]} if depth > 0 else 1


OLD_FORMAT = {key: value for key, value in content().items() if key != "by_process"}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (None, "cannot be read"),
        ("not json", "JSON"),
        ("\xff", "JSON"),
        ("[]", "has no 'rows'"),
        ("{}", "has no 'rows'"),
        (json.dumps(OLD_FORMAT), "'by_process'.*adadelta bench"),
        (broken("rows", 3), "malformed, rows:"),
        (broken("rows", [{}]), "malformed, rows.0.implementation"),
        (broken("machine", []), "malformed, machine"),
        (broken("by_process", []), "2 rows and 0 entries in by_process"),
        (broken("by_process", [{"median_s": [0]}, {}]), "malformed, by_process.0.median_s.0"),
        (broken("by_process", [{"median_s": ["nan"]}, {}]), "malformed, by_process.0.median_s.0"),
        (broken("by_process", [{"median_s": [1e300]}, {}]), "malformed, by_process.0.median_s.0"),
        (broken("by_process", [{"median_s": [1e-300]}, {}]), "malformed, by_process.0.median_s.0"),
        (broken("by_process", [{"median_s": [10**400]}, {}]), "malformed, by_process.0.median_s.0"),
        (
            broken("by_process", [{"ceiling_fraction": [1e300]}, {}]),
            "by_process.0.ceiling_fraction",
        ),
        ('{"rows":' + "[" * 100_000, "JSON"),
        (broken("machine", {"a": nested(900)}), "nested too deeply"),
        (broken("settings", {"a": nested(25)}), "nested too deeply"),
        (broken("rows", content()["rows"][:1] * 2), "two rows .*: numpy-fused"),
    ],
)
def test_what_cannot_be_compared_is_wrong_usage(text, says, tmp_path):
    """One sentence that names the file and what to do."""
    path = tmp_path / "b.json"
    if text is not None:
        path.write_bytes(text.encode("latin-1"))
    with pytest.raises(UsageError, match=says) as caught:
        regression.read_document(path)
    assert str(path) in str(caught.value)
    assert caught.value.exit_code is ExitCode.USAGE


def test_many_rows_are_read_in_a_time_that_grows_as_they_do():
    """What twice as many rows cost is about twice as much, not four times."""
    row, times = content()["rows"][0], content()["by_process"][0]

    def seconds(count):
        rows = [row | {"workload": str(k)} for k in range(count)]
        made = content() | {"rows": rows, "by_process": [times] * count}
        began = time.process_time()
        regression.parse_document(made, "x")
        return time.process_time() - began

    few, many = (min(seconds(count) for _ in range(3)) for count in (500, 5000))
    assert many < 30 * few


def test_what_stdout_cannot_write_is_written_as_an_escape(tmp_path):
    """A lone surrogate, which JSON can write, in a fact of the machine; and names on ASCII."""
    odd = content(kernel="\ud800")
    for name, made in {"old": content(), "odd": odd}.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(made))
    done = subprocess.run(
        [sys.executable, "-m", "adadelta_cli", "compare", "old.json", "odd.json"],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        env={**os.environ, "PYTHONIOENCODING": "ascii:strict"},
    )
    assert done.returncode == 0, done.stderr
    assert "machine.kernel was not recorded, is \\ud800" in done.stdout


@pytest.fixture
def results(tmp_path):
    """Write results `old`, `same`, `slow` and `other` (of another machine); return their paths."""
    made = {
        "old": content(),
        "same": content(slower=1.01),
        "slow": content(slower=1.2),
        "other": content(slower=1.2, processor="Q", versions={"numpy": "2"}),
    }
    for name, each in made.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(each))
    return {name: str(tmp_path / f"{name}.json") for name in made}


def compare(*args):
    """Run the command; return its exit code."""
    return adadelta.main(["compare", *args], standalone_mode=False)


@pytest.mark.parametrize(
    ("new", "options", "code"),
    [("same", [], 0), ("slow", [], 1), ("slow", ["--threshold", "0.3"], 0), ("other", [], 0)],
)
def test_exit_code(new, options, code, results):
    """1 only when a row is SLOWER by more than the threshold."""
    assert compare(results["old"], results[new], *options) == code


def test_the_table_explains_itself(results, capsys, monkeypatch):
    """Old, new, ratio with interval, verdict, what was compared, the test, and what differs."""
    monkeypatch.setenv("COLUMNS", "200")
    compare(results["old"], results["slow"])
    out = " ".join(capsys.readouterr().out.split())
    for part in (
        "slow.json against",
        "old.json: 2 SLOWER",
        "float32, 2 threads, warm",
        "time, new / old (99% interval)",
        "share of the ceiling 0.900 0.750 1.200 (1.18",
        "1.2 ms 1.200 (1.18",
        "Welch's t-test",
        "Holm",
        "beyond 1.05",
        "below 0.9524",
    ):
        assert part in out, out
    compare(results["old"], results["other"])
    out = capsys.readouterr().out
    assert "UNCLEAR (2 rows): another kind of machine (processor changed)" in out
    assert "Differs: machine.processor was P, is Q: nothing can be compared" in out
    assert "Differs: machine.versions.numpy was 1.26.4, is 2\n" in out


@pytest.mark.slow
def test_markdown(results, capsys):
    """A table with a note for each row, and a list of what differs."""
    compare(results["old"], results["other"], "--format", "markdown")
    lines = capsys.readouterr().out.splitlines()
    table = [line for line in lines if line.startswith("|")]
    assert len(table) == 4
    assert len({line.count("|") for line in table}) == 1
    assert "**UNCLEAR** | another kind of machine" in table[2]
    assert "- machine.processor was P, is Q: nothing can be compared" in lines


@pytest.mark.slow
def test_json_is_alone_on_stdout(results, capsys):
    """With the exit code, every row and what differs."""
    compare(results["old"], results["slow"], "--json")
    document = json.loads(capsys.readouterr().out)
    assert document["exit_code"] == 1
    assert [row["verdict"] for row in document["rows"]] == ["SLOWER", "SLOWER"]
    assert list(document["rows"][0]) == list(COLUMNS)
    assert document["changes"] == [] and document["threshold"] == 0.05


def test_compare_csv_only_where_asked_for(results, tmp_path, monkeypatch):
    """No file appears without --out; with it, compare.csv has the columns of the rows."""
    monkeypatch.chdir(tmp_path)
    before = set(tmp_path.iterdir())
    compare(results["old"], results["slow"], "--quiet")
    assert set(tmp_path.iterdir()) == before
    compare(results["old"], results["slow"], "--out", "made/here")
    with (tmp_path / "made" / "here" / "compare.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert tuple(rows[0]) == COLUMNS
    assert [row["verdict"] for row in rows] == ["SLOWER", "SLOWER"]


@pytest.mark.parametrize("threshold", ["0", "1", "5", "-0.1", "nan"])
def test_the_threshold_is_a_share(threshold, results):
    """5 does not mean 5 %."""
    with pytest.raises(UsageError, match="--threshold is "):
        compare(results["old"], results["slow"], "--threshold", threshold)


def test_every_verdict_has_a_colour():
    """So that none breaks the table."""
    assert set(regression_report.COLOURS) == set(Verdict)
