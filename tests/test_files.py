"""Files are written whole or not at all, and a disk that fails takes no results from the screen."""

from __future__ import annotations

import errno
import json
import os
import re
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from test_regression import content

from adadelta_cli import files
from adadelta_cli.errors import BrokenError, ExitCode, UsageError
from adadelta_cli.verification import self_test

ROOT = Path(files.__file__).parents[1]
MODE = 0o640


def names(folder):
    """List a folder."""
    return sorted(path.name for path in folder.iterdir())


def a_finished_process():
    """Return the number of a process that has ended."""
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait()
    return process.pid


def test_a_file_is_written_with_its_folder(tmp_path):
    """It has the permissions that any new file has, and nothing lies beside it."""
    before = os.umask(0o777 & ~MODE)
    try:
        path = files.write_bytes(tmp_path / "a" / "b", b"content")
    finally:
        os.umask(before)
    assert (path.read_bytes(), path.stat().st_mode & 0o777) == (b"content", MODE)
    assert names(path.parent) == ["b"]


@pytest.mark.parametrize("name", ["open", "replace"])
def test_a_full_disk_leaves_the_earlier_file(tmp_path, monkeypatch, name):
    """The error has no file name of its own, so the message names the path and the reason."""
    path = files.write_bytes(tmp_path / "rows.csv", b"before")

    def fail(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, name, fail)
    with pytest.raises(BrokenError, match=r"rows\.csv could not be written \(No space.*free space"):
        files.write_bytes(path, b"after")
    monkeypatch.undo()
    assert path.read_bytes() == b"before"
    assert names(tmp_path) == ["rows.csv"]


def test_what_a_killed_writer_left_is_removed(tmp_path):
    """Of this file only; what a process that lives is about to write, is left to it."""
    gone = a_finished_process()
    lives = f".rows.csv.{os.getppid()}.tmp"
    kept = [lives, f".other.csv.{gone}.tmp", ".rows.csv.abc.tmp", f".rows.csv.{gone}"]
    for name in (*kept, f".rows.csv.{gone}.tmp", f".rows.csv.{os.getpid()}.tmp"):
        (tmp_path / name).write_text("half of")
    files.write_bytes(tmp_path / "rows.csv", b"all")
    assert names(tmp_path) == sorted([*kept, "rows.csv"])


def test_a_writer_that_is_killed_leaves_what_the_next_one_removes(tmp_path):
    """A name that only this one could have left, and an earlier file that is as it was."""
    path = files.write_bytes(tmp_path / "rows.csv", b"before")
    code = (
        "import os, sys; from pathlib import Path; from adadelta_cli import files\n"
        "Path.replace = lambda *_: os.kill(os.getpid(), 9)\n"
        "files.write_bytes(Path(sys.argv[1]), b'half of')"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], check=False, cwd=ROOT)
    assert done.returncode == -signal.SIGKILL
    assert len(names(tmp_path)) == 2 and path.read_bytes() == b"before"
    files.write_bytes(path, b"after")
    assert (names(tmp_path), path.read_bytes()) == (["rows.csv"], b"after")


def make_device(path):
    """Make another null device: a test that fails as root would replace the system's own."""
    try:
        os.mknod(path, stat.S_IFCHR | 0o666, os.makedev(1, 3))
    except PermissionError:
        pytest.skip("only root may make a device")


def special(folder, kind):
    """Make something that is not a regular file."""
    path = folder / kind.replace(" ", "-")
    if kind == "a device":
        make_device(path)
    elif kind == "a link to a device":
        make_device(folder / "null")
        path.symlink_to(folder / "null")
    elif kind == "a folder":
        path.mkdir()
    elif kind == "a named pipe":
        os.mkfifo(path)
    else:
        os.mknod(path, stat.S_IFSOCK | 0o600)
    return path


KINDS = ["a device", "a link to a device", "a folder", "a named pipe", "a socket"]


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_no_file_is_not_replaced_by_one(tmp_path, kind):
    """It is refused, before the work and by the writer."""
    path = special(tmp_path, kind)
    before = path.lstat()
    for refuses in (
        lambda: files.write_bytes(path, b""),
        lambda: files.prepare_folder(tmp_path, [path.name]),
    ):
        what = kind.removeprefix("a link to ")
        with pytest.raises(UsageError, match=rf"^--out: {re.escape(str(path))} is {what}, which"):
            refuses()
    assert path.lstat() == before


def test_a_link_stays_and_what_it_leads_to_is_written(tmp_path):
    """Whether the target exists or not; removing removes the target."""
    (tmp_path / "disk").mkdir()
    link, target = tmp_path / "link", tmp_path / "disk" / "target"
    link.symlink_to(Path("disk") / "target")
    for text in (b"first", b"second"):
        files.write_bytes(link, text)
        assert link.is_symlink() and target.read_bytes() == text
    assert names(tmp_path / "disk") == ["target"]
    files.remove(link)
    files.remove(link)
    assert link.is_symlink() and not target.exists()


def test_a_link_that_leads_to_itself(tmp_path):
    """It is an error, not a bug."""
    link = tmp_path / "link"
    link.symlink_to(link)
    with pytest.raises(BrokenError, match="link could not be written"):
        files.write_bytes(link, b"")


QUICK = ("rosenbrock", "--backend", "numpy", "--set", "training.steps=30", "--set", "expect={}")
ODD = ("--case", "odd", "--impl", "numpy-fused", "--dtype", "float32")


@pytest.mark.parametrize(
    ("arguments", "out", "name"),
    [
        (("run", *QUICK), "out/rosenbrock", "history.csv"),
        (("run", *QUICK), "out/rosenbrock", "checkpoint.npz"),
        (("verify", *ODD), "out", "verify.png"),
        (("verify", "--self-test"), "out", "self-test.md"),
        (("bench", "--sizes", "1e3", "--impl", "numpy-fused"), "out", "bench-samples.png"),
    ],
)
def test_a_command_refuses_what_is_no_file_before_the_work(
    adadelta, tmp_path, arguments, out, name
):
    """In the folder that --out names; nothing else is written there."""
    folder = tmp_path / out
    folder.mkdir(parents=True)
    os.mkfifo(folder / name)
    code, stdout, err = adadelta(*arguments, "--out", "out")
    assert (code, stdout) == (ExitCode.USAGE, "")
    assert re.fullmatch(rf"Error: --out: \S*{name} is a named pipe, which is not .*\n", err)
    assert names(folder) == [name]


def test_gradients_are_not_recorded_on_a_device(adadelta, tmp_path):
    """The error comes before the training, not at its end."""
    make_device(tmp_path / "null")
    code, _out, err = adadelta("run", *QUICK, "--record-gradients", "null")
    assert code == ExitCode.USAGE and "--record-gradients: null is a device" in err
    assert names(tmp_path) == ["null"] and (tmp_path / "null").is_char_device()


def test_a_folder_for_gradients_that_cannot_be_made(adadelta, tmp_path):
    """It is an error before the training, too."""
    (tmp_path / "file").touch()
    code, _out, err = adadelta("run", *QUICK, "--record-gradients", "file/gradients.npz")
    assert code == ExitCode.BROKEN and "--record-gradients: file cannot be made" in err
    assert "/rosenbrock" not in str(list(tmp_path.rglob("*")))


def test_a_link_of_an_earlier_run_is_kept(adadelta, tmp_path):
    """The file that it leads to is removed at the start, and written at the end."""
    folder = tmp_path / "out" / "rosenbrock"
    folder.mkdir(parents=True)
    (tmp_path / "elsewhere.csv").write_text("earlier")
    (folder / "history.csv").symlink_to(tmp_path / "elsewhere.csv")
    code, _out, _err = adadelta("run", *QUICK, "--out", "out")
    assert code == 0 and (folder / "history.csv").is_symlink()
    assert (tmp_path / "elsewhere.csv").read_text().startswith("step,epoch,loss")


@pytest.fixture
def full(monkeypatch):
    """Let each write of a file fail as on a full disk."""

    def fail(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "replace", fail)


def assert_shown(found, table, name):
    """Check that the table came, then the error that names the file."""
    code, out, err = found
    assert code == ExitCode.BROKEN
    assert re.search(table, out)
    assert re.search(rf"^Error: \S*{name} could not be written \(No space left", err, re.MULTILINE)
    assert "This is a bug" not in err and "Traceback" not in err


@pytest.mark.usefixtures("full")
def test_rows_of_a_run_survive_a_full_disk(adadelta):
    """At the end of the training."""
    assert_shown(adadelta("run", *QUICK), r"rosenbrock +30 ", "checkpoint.npz")


@pytest.mark.usefixtures("full")
def test_rows_of_a_run_survive_a_disk_that_is_full_midway(adadelta):
    """At the first checkpoint; how far it came is shown, too."""
    found = adadelta("run", *QUICK, "--set", "training.checkpoint_every=10")
    assert_shown(found, r"rosenbrock +10 ", "history.csv")
    assert "interrupted" in found[1]


@pytest.mark.usefixtures("full")
def test_rows_of_verify_survive_a_full_disk(adadelta):
    """All of them."""
    assert_shown(adadelta("verify", *ODD), "synthetic steps", "verify.csv")


@pytest.mark.usefixtures("full")
def test_rows_of_a_self_test_survive_a_full_disk(adadelta, monkeypatch):
    """One fault stands for all."""
    row = self_test.MutantRow(
        "planted",
        "update.py",
        "a mistake",
        "odd",
        "float32",
        "weight",
        1,
        caught=True,
        mxnet_test=False,
        pytorch_test=False,
        passed=True,
    )
    monkeypatch.setattr(self_test.SelfTest, "execute", lambda self, _: self._rows.update({0: row}))
    assert_shown(adadelta("verify", "--self-test"), "planted", "selftest.csv")


@pytest.mark.usefixtures("full")
def test_rows_of_bench_survive_a_full_disk(adadelta):
    """All of them, which took the longest."""
    arguments = ("--sizes", "1e3", "--impl", "numpy-fused", "--processes", "1", "--max-time", "0.1")
    assert_shown(adadelta("bench", *arguments), "numpy-fused", "bench.csv")


@pytest.mark.usefixtures("full")
def test_verdicts_survive_a_full_disk(adadelta, tmp_path):
    """Those of compare."""
    for name in ("old.json", "new.json"):
        (tmp_path / name).write_text(json.dumps(content()))
    assert_shown(adadelta("compare", "old.json", "new.json", "--out", "out"), "SAME", "compare.csv")


@pytest.mark.slow
def test_what_nobody_reads_is_written_all_the_same(tmp_path):
    """A pipe that is closed takes no file from the disk, though the table is shown first."""
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "w") as closed:
        done = subprocess.run(
            [sys.executable, "-u", "-m", "adadelta_cli", "verify", *ODD, "--out", str(tmp_path)],
            stdout=closed,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
            cwd=ROOT,
        )
    assert done.returncode == ExitCode.BROKEN and "Traceback" not in done.stderr
    assert names(tmp_path) == ["verify.csv", "verify.json", "verify.png"]


@pytest.fixture
def small_disk(tmp_path):
    """Mount a disk of 64 KiB, with some bytes left of it."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "adadelta-test", str(disk)]
    try:
        subprocess.run(mount, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"no disk can be mounted here: {error}")
    (disk / "ballast").write_bytes(bytes(60 * 1024))
    yield disk
    subprocess.run(["umount", str(disk)], check=True)  # noqa: S607 - as mount above


@pytest.mark.parametrize("arguments", [("run", *QUICK), ("verify", *ODD)], ids=["run", "verify"])
def test_a_disk_that_is_full(adadelta, small_disk, arguments):
    """The table is on the screen, the error names the file, and no part of a file is left."""
    code, out, err = adadelta(*arguments, "--out", small_disk / "out")
    assert code == ExitCode.BROKEN and f"adadelta {arguments[0]}" in out
    assert re.search(
        rf"^Error: {small_disk}/out/\S+ could not be written \(No space left on device\)",
        err,
        re.MULTILINE,
    )
    assert not list(small_disk.rglob("*.tmp"))
