"""A folder for TensorBoard: each run writes an event file into a folder of its own."""

from __future__ import annotations

import contextlib
import os
import socket
import textwrap
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from adadelta_cli import files, inputs
from adadelta_cli.errors import UsageError, shortened
from adadelta_cli.run.logs.base import Log, RunFacts, Target

if TYPE_CHECKING:
    from collections.abc import Mapping

    from adadelta_cli.run.result import RunOutcome

VERSION = "brain.Event:2"  # of the format; the first record of each event file


class TensorboardTarget(Target):
    """`tensorboard:DIR`."""

    kind = "tensorboard"
    wanted = "DIR"
    modules = ("tensorboard",)

    def prepare(self) -> None:
        """Make the folder."""
        self._folder = inputs.expanded(Path(self.where), "--log")
        inputs.check_possible(self._folder, "--log")
        if self._folder.exists() and not self._folder.is_dir():
            raise UsageError(
                f"{self.option}: {shortened(self._folder)} is a file; name a folder for the logs"
            )
        files.prepare_folder(self._folder, option="--log")

    def start(self, facts: RunFacts) -> Log:
        """Begin an event file in a new folder: a log that is there stays as it is."""
        log = TensorboardLog(_new_folder(self._folder, facts.name))
        try:
            log.begin(facts)
        except OSError:
            log.abandon()
            raise
        return log


def _new_folder(parent: Path, name: str) -> Path:
    """Make a folder NAME, or NAME-2 and so on where there is one."""
    number = 1
    while True:
        folder = parent / (name if number == 1 else f"{name}-{number}")
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            number += 1
        else:
            return folder


class TensorboardLog(Log):
    """An event file; each row is on disk once it is added.

    The records are written by TensorBoard's own writer of records, without a thread: so an error
    of the disk is raised here. Numbers are float32 there, the only ones that all its readers take.
    """

    def __init__(self, folder: Path) -> None:
        from tensorboard.summary.writer.record_writer import RecordWriter

        self.place = str(folder)
        name = f"events.out.tfevents.{time.time():.0f}.{socket.gethostname()}.{os.getpid()}.0"
        self._file = (folder / name).open("xb")
        self._records = RecordWriter(self._file)

    def begin(self, facts: RunFacts) -> None:
        """Write what a reader needs, and what is trained."""
        about = "\n".join(f"{key}: {value}" for key, value in facts.tags.items())
        self._write(file_version=VERSION)
        self._write(summary={"value": [_text("config", facts.config), _text("about", about)]})

    def add(self, step: int, numbers: Mapping[str, float]) -> None:
        """Write a scalar for each number."""
        with np.errstate(over="ignore"):  # beyond float32: infinite
            values = [
                {"tag": name, "simple_value": float(np.float32(number))}
                for name, number in numbers.items()
            ]
        self._write(step=step, summary={"value": values})

    def close(self, outcome: RunOutcome | None) -> None:
        """Close the file."""
        try:
            if outcome:
                self._write(summary={"value": [_text("outcome", outcome.value)]})
        finally:
            self._file.close()

    def abandon(self) -> None:
        """Close the file, whose buffer may be lost."""
        with contextlib.suppress(OSError):
            self._file.close()

    def _write(self, **event: Any) -> None:
        from tensorboard.compat.proto.event_pb2 import Event

        self._records.write(Event(wall_time=time.time(), **event).SerializeToString())
        self._file.flush()


def _text(tag: str, text: str) -> dict[str, Any]:
    """Return a text for TensorBoard's tab of texts, which reads Markdown: indented, it is code."""
    from tensorboard.compat.proto import types_pb2

    return {
        "tag": tag,
        "metadata": {"plugin_data": {"plugin_name": "text"}},
        "tensor": {
            "dtype": types_pb2.DT_STRING,
            "string_val": [files.to_utf8(textwrap.indent(text, "    "))],
        },
    }
