"""The grid of a verification, and the heat maps of a sweep: tables with coloured squares."""

from __future__ import annotations

import json
import math
from itertools import combinations
from typing import TYPE_CHECKING, Any, NamedTuple

from adadelta_cli.report.found import finite
from adadelta_cli.run.config import Expect
from adadelta_cli.sweep.rows import higher_is_better
from adadelta_cli.verification.report import CHECKS

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from adadelta_cli.report.found import FoundSweep, FoundVerification, SweepDocument
    from adadelta_cli.verification.rows import ComparisonRow


class Square(NamedTuple):
    """A case of an implementation, check and dtype: all its tensors together.

    Attributes:
        row: the number of the row in verify.csv that is worst.
        mark: what stands in the square, so that it does not speak by its colour only.
    """

    row: int
    status: str
    mark: str


class Grid(NamedTuple):
    """Squares by line and case; None where there is no such comparison."""

    cases: list[str]
    lines: list[tuple[tuple[str, str, str], list[Square | None]]]


RARE = {"training", "replay", "drawn"}  # the checks whose few cases no other check has


def verify_grid(each: FoundVerification) -> Grid:
    """Arrange a verification: a line for each implementation, check and dtype."""
    rare = (row for row in each.rows if row.check in RARE)  # else they would lie far to the right
    cases = {row.case: k for k, row in enumerate({r.case: r for r in (*rare, *each.rows)}.values())}
    worst: dict[tuple[str, str, str], dict[str, int]] = {}
    for number, row in enumerate(each.rows):
        name = row.implementation, CHECKS.get(row.check, row.check), row.dtype
        before = worst.setdefault(name, {}).setdefault(row.case, number)
        if _badness(row) > _badness(each.rows[before]):
            worst[name][row.case] = number
    order = {part: k for k, part in enumerate(dict.fromkeys(p for name in worst for p in name))}
    lines = []
    for name in sorted(worst, key=lambda name: [order[part] for part in name]):
        squares: list[Square | None] = [None] * len(cases)
        for case, number in worst[name].items():
            squares[cases[case]] = _square(number, each.rows[number])
        lines.append((name, squares))
    return Grid(list(cases), lines)


def _badness(row: ComparisonRow) -> tuple[int, float, float]:
    """Order rows: failed ones last, then by the share of the bound, then by the error."""
    rank = {None: 0, True: 1, False: 2}[row.passed]
    error = row.scaled_ulp or 0.0
    error = math.inf if math.isnan(error) else error
    return rank, error / row.allowed_ulp if row.allowed_ulp else 0.0, error


def _square(number: int, row: ComparisonRow) -> Square:
    status, mark = {None: ("skipped", "-"), True: ("passed", "✓"), False: ("failed", "✗")}[
        row.passed
    ]
    return Square(number, status, mark)


# --- heat maps of a sweep -------------------------------------------------------------------------


class HeatCell(NamedTuple):
    """A cell: its text, and its colours as CSS has them."""

    text: str
    background: str
    color: str


class HeatMap(NamedTuple):
    """The best medians by two keys."""

    down: str
    across: str
    columns: list[str]
    rows: list[tuple[str, list[HeatCell | None]]]
    caption: str


MOST_VALUES = 40  # of a key in a heat map
MOST_KEYS = 4  # of which each pair gets a heat map


def heat_maps(each: FoundSweep) -> list[HeatMap]:
    """Return a heat map for each pair of keys that have several values, but not too many."""
    settings, keys = each.document.settings, each.document.keys
    counts = {key: len({_word(row.get(key)) for row in settings}) for key in keys}
    chosen = [key for key in keys if 1 < counts[key] <= MOST_VALUES][:MOST_KEYS]
    return [_heat_map(each, down, across) for down, across in combinations(chosen, 2)]


def _heat_map(each: FoundSweep, down: str, across: str) -> HeatMap:
    document = each.document
    best = max if higher_is_better(document.metric, _least(document)) else min
    values: dict[tuple[str, str], float] = {}
    for row in document.settings:
        value = finite(row.get(f"{document.metric}_median"))
        place = _word(row.get(down)), _word(row.get(across))
        if value is not None:
            values[place] = best(value, values.get(place, value))
    names = [_ordered([row.get(key) for row in document.settings]) for key in (down, across)]
    paint = _colours(list(values.values()))
    rows = [
        (y, [paint(values[y, x]) if (y, x) in values else None for x in names[1]]) for y in names[0]
    ]
    others = ", the best over all other keys" if len(document.keys) > 2 else ""
    caption = f"Median {document.metric} by {down} (down) and {across} (across){others}"
    return HeatMap(down, across, names[1], rows, caption)


def _least(document: SweepDocument) -> Expect:
    """Return what the config expects at least, from the checks of the settings."""
    lists = [row.get("checks") for row in document.settings]
    checks = [check for each in lists if isinstance(each, list) for check in each]
    least = [each for each in checks if isinstance(each, dict) and each.get("side") == "min"]
    return Expect.model_construct(None, **{f"min_{each.get('metric')}": 0.0 for each in least})


def _word(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _ordered(values: Sequence[Any]) -> list[str]:
    """Return the different values as texts, numbers in their order before all else."""
    words = {_word(value): finite(value) for value in values}
    return sorted(words, key=lambda word: (words[word] is None, words[word] or 0.0))


def _is_light(colour: Sequence[float]) -> bool:
    """Tell whether black has more contrast on a colour than white, as WCAG 2 computes it."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in colour[:3]]
    luminance = sum(w * c for w, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))
    return (luminance + 0.05) ** 2 > 0.05 * 1.05


def _colours(values: Sequence[float]) -> Callable[[float], HeatCell]:
    """Return what paints a value: logarithmic where the values span more than a decade."""
    from matplotlib import colormaps
    from matplotlib.colors import to_hex

    low, high = min(values, default=0.0), max(values, default=1.0)
    scale = math.log10 if low > 0 and high > 10 * low else float
    first, span = scale(low), scale(high) - scale(low)
    cividis = colormaps["cividis"]  # colour-blind people see it as others do

    def paint(value: float) -> HeatCell:
        share = (scale(value) - first) / span if span else 0.5
        colour = cividis(share)
        return HeatCell(f"{value:.4g}", to_hex(colour), "#000" if _is_light(colour) else "#fff")

    return paint
