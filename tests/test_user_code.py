"""Files that users name are read anew each time."""

from __future__ import annotations

import os
import sys

from adadelta_cli import user_code


def test_a_file_that_was_changed_within_a_second_is_read_again(tmp_path, monkeypatch):
    """Python would take the bytecode of the old one, which has the same size: a wrong verdict."""
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    monkeypatch.setattr(sys, "path", sys.path[:])
    path = tmp_path / "changing.py"
    for value in (1, 2):
        path.write_text(f"value = {value}\n")
        os.utime(path, (1_700_000_000, 1_700_000_000))
        module = user_code.import_file(path)
        assert (module.value, module.__file__) == (value, str(path))
        del sys.modules["changing"]
    assert list(tmp_path.iterdir()) == [path]  # nor is anything left beside it


def test_a_link_to_a_file_of_another_suffix_is_imported(tmp_path, monkeypatch):
    """Its links are followed before it is imported."""
    monkeypatch.setattr(sys, "path", sys.path[:])
    path = tmp_path / "linked.txt"
    path.write_text("value = 3\n")
    assert user_code.import_file(path).value == 3
    del sys.modules["linked"]
