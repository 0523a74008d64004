"""Cases by name: those of `cases`, any length, and the fuzzed ones that `fuzz` parses."""

from __future__ import annotations

from dataclasses import replace

from adadelta_cli.errors import UsageError, shortened, suggestion
from adadelta_cli.verification import fuzz
from adadelta_cli.verification.cases import CASES, DEFAULT, GRID_NAMES, LENGTH, Case, single


def select(
    names: tuple[str, ...] = (),
    *,
    full: bool = False,
    steps: int | None = None,
    sizes: tuple[int, ...] = (),
) -> list[Case]:
    """Choose the cases of a run.

    Args:
        names: of the only cases, in this order.
        full: the whole catalogue, in place of the default set.
        steps: steps of each case, in place of its own number.
        sizes: lengths of single tensors, in place of the catalogue.

    Raises:
        UsageError: a name is unknown, or there are both names and sizes.
    """
    known = CASES | {name: fuzz.parse_case(name) for name in names if name.startswith(fuzz.PREFIX)}
    known |= {m[0]: single(int(m[1])) for m in map(LENGTH.fullmatch, names) if m}
    unknown = [name for name in names if name not in known]
    if unknown:
        collective = ("length-N", GRID_NAMES, *sorted(fuzz.COLLECTIVE))
        raise UsageError(
            f"there is no case {shortened(unknown[0])!r}"
            f"{suggestion(unknown[0], (*CASES, *collective))}; known are "
            f"{', '.join(collective)} and {len(CASES)} cases that verify.csv of a full run lists"
        )
    if names and sizes:
        raise UsageError("sizes replace the cases; leave out either the sizes or the cases")
    if sizes:
        chosen = [single(size) for size in sizes]
    elif names:
        chosen = [known[name] for name in names]
    else:
        chosen = list(CASES.values()) if full else list(DEFAULT)
    return [replace(case, steps=steps) for case in chosen] if steps else chosen
