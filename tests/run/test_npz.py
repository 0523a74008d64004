"""An npz archive of unknown origin is read, or refused before anything large is allocated."""

from __future__ import annotations

import io
import struct
import tracemalloc
import zipfile

import numpy as np
import pytest

from adadelta_cli.errors import UsageError
from adadelta_cli.run import npz


def member(shape="(3,)", descr="'<f4'", data=bytes(12), version=(1, 0)):
    """Make an npy file by hand."""
    header = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}".encode() + b"\n"
    length = struct.pack("<H" if version == (1, 0) else "<I", len(header))
    return b"\x93NUMPY" + bytes(version) + length + header + data


def archive(path, compression=zipfile.ZIP_STORED, **members):
    """Write members as they are."""
    with zipfile.ZipFile(path, "w", compression) as file:
        for name, content in members.items():
            file.writestr(f"{name}.npy", content)
    return path


def load(path):
    """Read it."""
    return npz.load_arrays(path, "is no such file", "do this")


def test_what_savez_wrote_is_read(tmp_path):
    """Floats of every kind and shape, and texts."""
    arrays = {
        "a": np.arange(6.0).reshape(2, 3),
        "b": np.float16(3),
        "c/d": np.zeros((2, 0), "f4"),
        "e": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        "f": np.array("größe"),
    }
    path = tmp_path / "a.npz"
    np.savez(path, **arrays)
    found = load(path)
    assert list(found) == list(arrays)
    for name, array in arrays.items():
        assert found[name].dtype == np.asarray(array).dtype
        np.testing.assert_array_equal(found[name], array)


def test_a_member_by_hand_is_read_as_numpy_reads_it(tmp_path):
    """So what the cases below change is what is refused."""
    for version in ((1, 0), (2, 0)):
        path = archive(tmp_path / "a.npz", a=member(version=version))
        np.testing.assert_array_equal(load(path)["a"], np.zeros(3, "f4"))


MEMBERS = {
    "1e12 elements": member("(1000000000000,)"),
    "1e12 elements of no size": member("(1000000000000,)", "'<U0'", b""),
    "2^64 elements": member(f"({2**64},)"),
    "a negative length": member("(-3,)"),
    "two negative lengths": member("(-1, -3)"),
    "more data than elements": member("(2,)"),
    "whole numbers": member(descr="'<i4'"),
    "objects": member("(1,)", "'|O'", b"\x80\x04N." + bytes(8)),
    "fields": member("(1,)", "[('a', '<f4'), ('b', '<f8')]"),
    "no dtype": member(descr="'?!'"),
    "an expression": member(descr="__import__('os').abort()"),
    "a dtype with a shape": member("()", "('<f4', (3,))"),
    "dates": member("(1,)", "'<M8[s]'", bytes(8)),
    "a NUL in the dtype": member(descr="'<f4\\x00'"),
    "an archive in an archive": b"PK\3\4" + bytes(100),
    "a fraction for the shape": member("(3.0,)"),
    "a product for the shape": member("(1*3,)"),
    "more dimensions than NumPy has": member(f"({'1,' * 80})", data=bytes(4)),
    "a header longer than the file": member()[:8] + b"\xff\xff" + member()[10:],
    "a header shorter than it says": member()[:8] + b"\x09\0" + member()[10:],
    "a header of no length": member()[:8] + b"\0\0" + member()[10:],
    "a list for the shape": member("[3]"),
    "no header": b"\x93NUMPY\x01\x00",
    "no magic": b"nonsense",
    "empty": b"",
    "another version": member(version=(3, 0)),
    "version 9": member(version=(9, 0)),
    "a deep header": member("(" * 3000),
    "a long header": member("(" + "1, " * 9000 + ")"),
    "no Python": member("(3"),
    "Python 2": member("(3L,)", data=b""),
}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("content", MEMBERS.values(), ids=MEMBERS)
def test_a_member_that_is_not_what_it_says_is_refused(tmp_path, content):
    """Before it is allocated, by one kind of error, without a warning."""
    path = archive(tmp_path / "a.npz", a=content)
    tracemalloc.start()
    with pytest.raises(UsageError, match=r"a\.npz is no such file: .*; do this"):
        load(path)
    assert tracemalloc.get_traced_memory()[1] < 20e6
    tracemalloc.stop()


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("other", ["a.npy", "a"])
def test_two_parts_of_one_name_are_refused(tmp_path, other):
    """Which of them counts would be for the reader to choose."""
    path = archive(tmp_path / "a.npz", a=member())
    with zipfile.ZipFile(path, "a") as file:
        file.writestr(other, member(data=b"\1" * 12))
    with pytest.raises(UsageError, match="two parts of one name"):
        load(path)


@pytest.mark.parametrize("method", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_what_is_compressed_is_refused_whatever_its_size(tmp_path, method):
    """Also where it grew."""
    with pytest.raises(UsageError, match="compressed"):
        load(archive(tmp_path / "a.npz", method, a=member()))


NAMES = ["/etc/a", "../../a", "b/../../a", "C:\\a", "\x1b[31m", "\u202e", "é", "a" * 60_000, ""]


@pytest.mark.parametrize("name", NAMES, ids=lambda name: ascii(name[:9]))
def test_the_name_of_a_part_is_a_key_and_no_path(tmp_path, name):
    """Nothing is extracted."""
    folder = tmp_path / "one" / "two"
    folder.mkdir(parents=True)
    assert list(load(archive(folder / "a.npz", **{name: member()}))) == [name]
    assert [*tmp_path.rglob("*.npy")] == [] and [*folder.iterdir()] == [folder / "a.npz"]


def test_a_long_comment_does_not_matter(tmp_path):
    """Nor junk after the archive."""
    path = archive(tmp_path / "a.npz", a=member())
    with zipfile.ZipFile(path, "a") as file:
        file.comment = b"x" * 65_535
    assert list(load(path)) == ["a"]
    path.write_bytes(archive(path, a=member()).read_bytes() + b"PK" * 100)
    assert list(load(path)) == ["a"]


def test_what_is_compressed_is_refused(tmp_path):
    """A few bytes could stand for more than the memory holds."""
    zeros = member("(25000000,)", data=bytes(100_000_000))
    path = archive(tmp_path / "a.npz", zipfile.ZIP_DEFLATED, a=zeros)
    with pytest.raises(UsageError, match="compressed"):
        load(path)


@pytest.mark.parametrize("damage", range(6))
def test_a_damaged_archive_is_refused(tmp_path, damage):
    """Cut, with changed data, sizes or places, with a part twice, or encrypted."""
    content = io.BytesIO()
    np.savez(content, a=np.arange(1000.0))
    data = bytearray(content.getvalue())
    directory = data.rindex(b"PK\x01\x02")
    changes = [
        lambda: data.__delitem__(slice(len(data) // 2, None)),
        lambda: data.__setitem__(500, data[500] ^ 1),  # a number: the checksum is wrong
        lambda: data.__setitem__(slice(directory + 20, directory + 28), b"\xf0" * 8),  # the sizes
        lambda: data.__setitem__(slice(directory + 42, directory + 46), b"\x10\0\0\0"),  # the place
        lambda: data.__setitem__(directory + 8, 1),  # encrypted
        lambda: data.__setitem__(directory + 10, 99),  # compressed in an unknown way
    ]
    changes[damage]()
    path = tmp_path / "a.npz"
    path.write_bytes(data)
    with pytest.raises(UsageError, match="is no such file: "):
        load(path)


def test_parts_that_share_their_bytes_are_refused(tmp_path):
    """Each fits the file, and all together do not."""
    path = archive(tmp_path / "a.npz", a=member("(1000,)", data=bytes(4000)))
    data = path.read_bytes()
    at, end = data.index(b"PK\x01\x02"), data.index(b"PK\x05\x06")
    entry, tail = data[at:end], bytearray(data[end:])
    tail[8:10] = tail[10:12] = struct.pack("<H", 50)
    tail[12:16] = struct.pack("<I", 50 * len(entry))
    path.write_bytes(data[:at] + 50 * entry + tail)
    with pytest.raises(UsageError, match=r"larger than the file|Overlapped"):
        load(path)


def test_a_missing_file_is_said_to_be_missing(tmp_path):
    """And a folder is no file."""
    with pytest.raises(UsageError, match=r"gone\.npz cannot be read: No such file .*; do this"):
        load(tmp_path / "gone.npz")
    with pytest.raises(UsageError, match="it is a folder"):
        load(tmp_path)
