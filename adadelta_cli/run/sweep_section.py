"""The section `sweep` of a config, which only `adadelta sweep` reads."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AfterValidator, Field, WithJsonSchema

from adadelta_cli.run.problems.problem import Section

MOST_VALUES = 10_000  # of a key


def _check_values(value: Any) -> Any:
    is_list = isinstance(value, list) and 1 <= len(value) <= MOST_VALUES
    if not (is_list or isinstance(value, str)):  # a text may be a range, which the sweep reads
        raise ValueError("neither values nor a range")
    return value


LIST = {"type": "array", "items": {}, "minItems": 1, "maxItems": MOST_VALUES}
# A union's own errors would name its sides, not the key.
Values = Annotated[
    Any, AfterValidator(_check_values), WithJsonSchema({"anyOf": [LIST, {"type": "string"}]})
]


class SweepSettings(Section):
    """What `adadelta sweep` varies; the options of the command override it."""

    grid: dict[str, Values] = Field(default_factory=dict, json_schema_extra={"default": {}})
    """By dotted key, a list of values, or a range: log:LOW:HIGH, lin:LOW:HIGH, int:LOW:HIGH."""
    sample: int | None = Field(None, ge=1, le=10**9)
    """Number of settings to draw; null for all combinations."""
    seeds: int | None = Field(None, ge=1, le=10**9)
    """Number of seeds of each setting, from --seed on; null for 1."""
    metric: str | None = None
    """The metric that the best setting is chosen by; null for the loss."""
