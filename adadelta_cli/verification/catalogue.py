"""The cases that names stand for: those of `cases`, and those that `fuzz` reads."""

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
        names: these only, in this order.
        full: the whole catalogue, not only the default set.
        steps: take so many steps in each, in place of each case's own number.
        sizes: one tensor of each of these lengths, in place of the catalogue.

    Raises:
        UsageError: there is no case of a name.
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
        raise UsageError("--sizes takes the place of the cases; leave out --case or --sizes")
    if sizes:
        chosen = [single(size) for size in sizes]
    elif names:
        chosen = [known[name] for name in names]
    else:
        chosen = list(CASES.values()) if full else list(DEFAULT)
    return [replace(case, steps=steps) for case in chosen] if steps else chosen
