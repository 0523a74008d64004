"""Convert a file of states: read, reorder, write, and check by steps that both files take."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from adadelta_cli import files
from adadelta_cli.conversion import replay
from adadelta_cli.conversion.states import check, listed, reordered
from adadelta_cli.errors import ExitCode, UnavailableError, UsageError
from adadelta_cli.system.progress import Tick, no_tick

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.table import Table

    from adadelta_cli.conversion.replay import Comparison
    from adadelta_cli.conversion.states import States

SUFFIXES = {"mxnet": ".states", "npz": ".npz", "torch": ".pt"}


def default_out(source: Path, to: str) -> Path:
    """Return the name of the new file, beside the old one.

    >>> default_out(Path("trainer.states"), "torch").name
    'trainer.pt'
    """
    return source.with_suffix(SUFFIXES[to])


@dataclass(frozen=True, eq=False)
class Conversion:
    """What was converted.

    Attributes:
        source, out: the files.
        origin, to: their formats.
        states: what the new file holds.
        remarks: what a user has to do or to know.
        comparison: of the steps that both files took.
        same: whether the new file, read again, has the same arrays and counts.
    """

    source: Path
    out: Path
    origin: str
    to: str
    states: States
    remarks: list[str]
    comparison: Comparison
    same: bool

    @property
    def passed(self) -> bool:
        """Whether the new file equals the old one; only then it was written."""
        return self.same and not self.comparison.differ

    @property
    def exit_code(self) -> ExitCode:
        """That of the command."""
        return ExitCode.OK if self.passed else ExitCode.CHECK_FAILED


def convert(
    source: Path,
    out: Path,
    origin: str,
    to: str,
    *,
    order: Sequence[int | None] = (),
    force: bool = False,
    tick: Tick = no_tick,
) -> Conversion:
    """Convert a file of states; write the new one only if it gives the same steps.

    Args:
        source: the file.
        out: the new file.
        origin: the format of the file: mxnet, npz or torch.
        to: the format of the new file.
        order: as for `states.reordered`.
        force: replace the new file if it exists.
        tick: gets the steps that were taken, and how many there are.

    Raises:
        UsageError: the file cannot be converted, or the new one exists.
        UnavailableError: a format's framework is not installed.
    """
    _check_out(source, out, force=force)
    old, new = _format("--from", origin), _format("--to", to)
    read = old.read(source)
    check(source, read)
    states = reordered(read, order, packed=to == "torch")
    content = new.content(states)
    with TemporaryDirectory() as folder:
        written = Path(folder) / out.name
        written.write_bytes(content)
        same = replay.same_arrays(states_of(states), states_of(new.read(written)))
        before, after = replay.draw(states, tick)
        found = replay.compare(states, old.replay(source, before), new.replay(written, after))
    remarks = [
        *read.remarks,
        *(() if order else _guessed(read, {origin, to})),
        *new.remarks(states),
    ]
    result = Conversion(source, out, origin, to, states, remarks, found, same)
    if result.passed:
        files.write_bytes(out, content)
    return result


def states_of(states: States) -> list[Any]:
    """Return the tensors that have states, by number."""
    return sorted((each for each in states.tensors if each.arrays), key=lambda each: each.number)


def _check_out(source: Path, out: Path, *, force: bool) -> None:
    files.check_writable(out)
    if out.exists() and source.exists() and out.samefile(source):
        raise UsageError(f"--out: {out} is the file to convert; name another file")
    if out.exists() and not force:
        raise UsageError(f"--out: {out} exists; use --force to replace it, or name another file")


def _format(option: str, name: str) -> Any:
    """Import the module of a format.

    Raises:
        UnavailableError: its framework is not installed, or does not load.
    """
    try:
        if name == "torch":
            import_module("adadelta_cli.torch")  # which says what to install
        return import_module(f"adadelta_cli.conversion.{name}_states")
    except (ImportError, OSError) as error:
        raise UnavailableError(f"{option} {name}: {error}") from error


def _guessed(read: States, formats: set[str]) -> list[str]:
    """Say what was guessed of the parameters' order, without which a wrong one fits, too."""
    if not formats >= {"mxnet", "torch"} or len(read.tensors) == 1:
        return []
    order = (
        "check the order: a Trainer numbers the parameters by their sorted names, PyTorch as the "
        "model defines them; --order gives another one (docs/pytorch.md)"
    )
    found = [order]
    known = {each.number for each in read.tensors}
    if missing := sorted({*range(max(known))} - known):
        found.append(
            f"parameters {listed(missing)} have no states and are left out: running means and "
            "variances, which are no parameters in PyTorch, or frozen ones"
        )
    return found


# --- reports --------------------------------------------------------------------------------------


def table(result: Conversion) -> Table:
    """Format the parameters: what becomes what."""
    from rich.markup import escape

    from adadelta_cli.tables import FittingTable

    found = FittingTable()
    for head, rank in (("parameter", 0), ("from", 0), ("shape", 0), ("dtype", 3), ("updates", 2)):
        found.add_column(head, rank=rank, justify="left" if head == "shape" else "right")
    named = any(each.name != str(each.number) for each in result.states.tensors)
    if named:
        found.add_column("name", rank=1)
    for each in result.states.tensors:
        acc_grad = each.arrays.get("acc_grad")
        shape = "no states" if acc_grad is None else " x ".join(map(str, acc_grad.shape)) or "1"
        dtype = "" if acc_grad is None else str(acc_grad.dtype)
        origin = "" if each.source is None else str(each.source)
        cells = str(each.number), origin, shape, dtype, str(each.updates)
        found.add_row(*cells, *([escape(each.name)] if named else []))
    return found


def verdict(result: Conversion) -> str:
    """Say in a line what was converted, or why not."""
    each = result.comparison
    checked = f"{each.differ:,} of {each.numbers:,} numbers differ after {replay.STEPS} steps"
    if result.passed:
        count = sum(bool(t.arrays) for t in result.states.tensors)
        return f"{result.out}: the states of {count} parameters; {checked}"
    where = f", first the {each.first}" if each.first else ""
    what = checked + where if each.differ else "its arrays or counts differ"
    return f"{result.out} was not written: {what}. Report this with the file of states"


def document(result: Conversion) -> dict[str, Any]:
    """Return the document of `--json`."""
    each = result.comparison
    return files.jsonable(
        {
            "source": result.source,
            "from": result.origin,
            "out": result.out if result.passed else None,
            "to": result.to,
            "passed": result.passed,
            "replay": {"steps": replay.STEPS, "numbers": each.numbers, "differ": each.differ},
            "hyperparameters": vars(result.states.hyper),
            "parameters": [
                {
                    "number": t.number,
                    "source": t.source,
                    "name": t.name,
                    "shape": None if t.acc_grad is None else t.acc_grad.shape,
                    "dtype": None if t.acc_grad is None else str(t.acc_grad.dtype),
                    "updates": t.updates,
                    "learning_rate": t.learning_rate,
                    "wd": t.wd,
                }
                for t in result.states.tensors
            ],
            "remarks": result.remarks,
        }
    )
