"""What a sweep varies: lists of values, and ranges that values are drawn from."""

from __future__ import annotations

import hashlib
import itertools
import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from adadelta_cli.errors import UsageError, nearest, shortened, suggestion
from adadelta_cli.run import key_values, yaml12
from adadelta_cli.run.config import Variation

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

RANGE = re.compile(r"(log|lin|uniform|int):([^:]*):([^:]*)")
KINDS = ("log", "lin", "uniform", "int")
LIKE_A_RANGE = re.compile(r"([A-Za-z]+)(:[-+.0-9][^:,]*){2}")
FORMS = "log:LOW:HIGH, lin:LOW:HIGH or int:LOW:HIGH, with LOW less than HIGH (log: LOW above 0)"
DIGITS = 6  # of a drawn number: logarithms of two machines may differ in the last bit
PATIENCE = 100  # draws in vain for each setting found, until the ranges count as exhausted


@dataclass(frozen=True)
class Axis:
    """The values of one key.

    Attributes:
        key: dotted.
        where: its place, for messages.
        values: the values in a list.
        bounds: of a range, else None.
        kind: of the range: `log`, `lin` or `int`; empty for a list.
        of_file: as in `Variation`.
    """

    key: str
    where: str
    values: tuple[Any, ...] = ()
    bounds: tuple[Any, Any] | None = None
    kind: str = ""
    of_file: bool = False

    def draw(self, uniform: float) -> Any:
        """Return the value for a number drawn uniformly from [0, 1)."""
        if self.bounds is None:
            return self.values[int(uniform * len(self.values))]
        return DRAWS[self.kind](*self.bounds, uniform)

    def variation(self, value: Any) -> Variation:
        """Return one of the values in the form that a config takes."""
        return Variation(self.key, value, self.where, of_file=self.of_file)


def _draw_log(low: float, high: float, uniform: float) -> float:
    width = math.log(high) - math.log(low)  # the quotient may be infinite
    drawn = float(f"{math.exp(math.log(low) + uniform * width):.{DIGITS}g}")
    return min(max(drawn, low), high)


def _draw_linear(low: float, high: float, uniform: float) -> float:
    drawn = round(low + uniform * (high - low), DIGITS - math.ceil(math.log10(high - low)))
    return min(max(drawn, low), high)


def _draw_integer(low: int, high: int, uniform: float) -> int:
    return low + int(uniform * (high - low + 1))


DRAWS: dict[str, Callable[[Any, Any, float], Any]] = {
    "log": _draw_log,
    "lin": _draw_linear,
    "int": _draw_integer,
}


def axis(key: str, values: Any, where: str, *, of_file: bool = False) -> Axis:
    """Make an axis of a list of values, or of a range in a text.

    Raises:
        UsageError: a value occurs twice, or the text is no range.
    """
    if isinstance(values, str):
        kind, low, high = _range(key, values, where)
        return Axis(key, where, bounds=(low, high), kind=kind, of_file=of_file)
    key_values.check_distinct(where, key, values)
    return Axis(key, where, values=tuple(values), of_file=of_file)


def _range(key: str, text: str, where: str) -> tuple[str, Any, Any]:
    near = suggestion(text.partition(":")[0], KINDS)
    error = UsageError(f"{where}: {key} is {shortened(text)!r}{near}; expected a list, or {FORMS}")
    match = RANGE.fullmatch(text)
    if not match:
        raise error
    low, high = (yaml12.parse(each, lambda _line: where)[0] for each in match.groups()[1:])
    kind = match[1].replace("uniform", "lin")
    allowed = (int,) if kind == "int" else (int, float)
    numbers = all(isinstance(each, allowed) and not isinstance(each, bool) for each in (low, high))
    if not (numbers and -1e300 < low < high < 1e300 and (kind != "log" or low > 0)):
        raise error
    return kind, low, high


def parse_grid(option: str) -> Axis:
    """Read `KEY=V1,V2` or `KEY=log:LOW:HIGH`, as `--grid` takes them; values are in YAML.

    Raises:
        UsageError: it has another form, or no values.
    """
    where = f"--grid {shortened(option)}"
    key, text = key_values.split_key(where, option)
    is_range = RANGE.fullmatch(text.strip()) or _is_misspelt(text.strip())
    return axis(key, text.strip() if is_range else key_values.listed(where, text), where)


def _is_misspelt(text: str) -> bool:
    """Return whether a text is like a range but for its kind, as `lgo:1:10`."""
    match = LIKE_A_RANGE.fullmatch(text)
    return bool(match and nearest(match[1], KINDS))


def combinations(axes: Sequence[Axis]) -> Iterator[tuple[Any, ...]]:
    """Yield all combinations of the values, the last axis changing fastest."""
    return itertools.product(*(each.values for each in axes))


def count(axes: Sequence[Axis]) -> int:
    """Count the combinations of lists, without making them."""
    return math.prod(len(each.values) for each in axes)


def drawn(axes: Sequence[Axis], number: int, seed: int) -> list[tuple[Any, ...]]:
    """Draw distinct settings: of each axis a value of its list or its range.

    A draw depends on the seed, the key and its number only. So every machine draws the same, and a
    larger `number` begins with the settings of a smaller one.

    Returns:
        `number` settings, or fewer where the axes have no more.
    """
    found: dict[str, tuple[Any, ...]] = {}
    turn = last = 0
    while len(found) < number and turn <= last + PATIENCE * len(found):
        setting = tuple(each.draw(uniform(seed, each.key, turn)) for each in axes)
        if found.setdefault(repr(setting), setting) is setting:
            last = turn
        turn += 1
    return list(found.values())


def uniform(seed: int, key: str, turn: int) -> float:
    """Return a number in [0, 1) with 53 random bits, the same on every machine."""
    digest = hashlib.sha256(f"{seed} {turn} {key}".encode("utf-8", "backslashreplace")).digest()
    return (int.from_bytes(digest[:8], "big") >> 11) * 2.0**-53


def grid_axes(grid: Mapping[str, Any], places: Mapping[str, str]) -> list[Axis]:
    """Return the axes of a config's own section, given the place of each key."""
    return [axis(key, values, places[key], of_file=True) for key, values in grid.items()]
