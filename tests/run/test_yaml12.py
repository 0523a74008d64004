"""YAML is read by the core schema of YAML 1.2, and what is written reads back to the same."""

from __future__ import annotations

import math

import pytest

from adadelta_cli.errors import UsageError
from adadelta_cli.run import yaml12


def parse(text):
    """Parse a document; its places are line numbers."""
    return yaml12.parse(text, str)


VALUES = {
    "1e-6": 1e-6,
    "1e3": 1000.0,
    "1E+3": 1000.0,
    ".5": 0.5,
    "5.": 5.0,
    "+0.25": 0.25,
    "-3": -3,
    "010": 10,
    "0o10": 8,
    "0x1F": 31,
    "-.inf": -math.inf,
    "9" * 300: int("9" * 300),
    "~": None,
    "": None,
    "Null": None,
    "TRUE": True,
    "'1'": "1",
    "!!str 1": "1",
    "!!float 1": 1.0,
}


@pytest.mark.parametrize(("text", "value"), VALUES.items())
def test_scalars_have_the_types_of_yaml_1_2(text, value):
    """`1e-6` is a number, `010` is ten; also in a sequence and in a mapping."""
    found, _ = parse(f"a: {text}\nb:\n- {text}\n")
    assert found == {"a": value, "b": [value]}
    assert type(found["a"]) is type(value)
    assert math.isnan(parse(".nan")[0])


@pytest.mark.parametrize(
    "text", ["1_000", "1:30", "0b1", "1e", "--1", "o10", "2001-01-01", "yes", "on", "nULL", "="]
)
def test_what_only_yaml_1_1_gives_a_type_is_a_text(text):
    """Underscores, sexagesimals, binaries, dates and the like."""
    assert parse(f"a: {text}")[0] == {"a": text}


DOCUMENT = {
    "texts": [
        "yes",
        "1e3",
        "1_000",
        "null",
        "",
        "a: b",
        "größe",
        "two\nlines",
        " x",
        "0x",
        "=",
        "~",
    ],
    "numbers": [0, -3, 10**20, 1.0, 1e-30, -0.0, 1.7976931348623157e308, 5e-324, math.inf],
    "others": {"z": None, "a": True, "list": [], "mapping": {}},
}


def test_what_is_written_reads_back_to_the_same():
    """Types, bits and the order of the keys are kept."""
    found, _ = parse(yaml12.dump(DOCUMENT))
    assert repr(found) == repr(DOCUMENT)


def test_each_key_has_its_place():
    """The line of the key or of the list item; the root has that of its first key."""
    _, places = yaml12.parse("\na:\n  b: 1\n  c:\n  - 2\n  - 3\n", str, ("root",))
    assert places == {
        ("root",): "2",
        ("root", "a"): "2",
        ("root", "a", "b"): "3",
        ("root", "a", "c"): "4",
        ("root", "a", "c", 0): "5",
        ("root", "a", "c", 1): "6",
    }


@pytest.mark.parametrize(
    "text",
    [
        "9" * 301,
        "0x" + "f" * 300,
        "!!int x",
        "!!int [1]",
        "!!map [1]",
        "!!seq {}",
        "!a b",
        "!!set {a}",
    ],
)
def test_a_value_of_no_known_type_is_refused(text):
    """Before a number of many digits is converted; the message names the key and the line."""
    with pytest.raises(UsageError, match=r"^2: a\.b is .*300 digits"):
        parse(f"a:\n  b: {text}\n")
