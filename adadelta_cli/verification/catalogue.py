"""Cases by name: those of `cases`, any length, and the fuzzed ones that `fuzz` parses."""

from __future__ import annotations

from dataclasses import replace

from adadelta_cli.errors import UsageError, shortened, suggestion
from adadelta_cli.verification import fuzz
from adadelta_cli.verification.cases import CASES, DEFAULT, GRID_NAMES, LENGTH, Case, single

MOST_SUGGESTED, LEAST_PART = 3, 2  # cases; characters of a name that a case may contain


def _suggestion(unknown: str, collective: tuple[str, ...]) -> str:
    """Suggest cases that begin with a text, or contain it; else those that are spelled alike."""
    part = unknown.lower()
    having = [each for each in CASES if part in each.lower() and len(part) >= LEAST_PART]
    having.sort(key=lambda each: not each.lower().startswith(part))
    if having:
        return f" (did you mean {' or '.join(having[:MOST_SUGGESTED])}?)"
    return suggestion(unknown, (*CASES, *collective))


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
            f"there is no case {shortened(unknown[0])!r}{_suggestion(unknown[0], collective)}; "
            f"known are {', '.join(collective)} and the {len(CASES)} cases that adadelta list "
            "cases lists"
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
