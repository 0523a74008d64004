"""Read `KEY=V1,V2`, as `run --vary` and `sweep --grid` take it."""

from __future__ import annotations

from typing import Any

from adadelta_cli.errors import UsageError, shortened
from adadelta_cli.run import yaml12


def split_key(where: str, option: str) -> tuple[str, str]:
    """Split an option's value into a dotted key and the text of its values.

    Args:
        where: the option and its value, for messages.
        option: the value.

    Raises:
        UsageError: it has another form.
    """
    key, equals, text = option.partition("=")
    key = key.strip()
    if not equals or not all(key.split(".")):
        raise UsageError(f"{where}: expected KEY=V1,V2, such as optimizer.rho=0.9,0.95")
    return key, text


def listed(where: str, text: str) -> list[Any]:
    """Read values in YAML with commas between them.

    Raises:
        UsageError: a value is missing, or the text is not YAML.
    """
    values, _ = yaml12.parse(f"[{text}]", lambda _line: where)
    if not isinstance(values, list) or not values or text.rstrip().endswith(","):
        raise UsageError(f"{where}: a value is missing; expected KEY=V1,V2, or KEY=VALUE")
    return values


def check_distinct(where: str, key: str, values: list[Any]) -> None:
    """Check that no value occurs twice.

    Raises:
        UsageError: one does.
    """
    shown = [yaml12.flow(each) for each in values]
    twice = next((each for each in shown if shown.count(each) > 1), None)
    if twice:
        raise UsageError(f"{where}: {key} has {shortened(twice)} twice; give each value once")


def value_text(value: Any) -> str:
    """Write a value of a key for people, in a table or a picture.

    >>> value_text(1e-6), value_text({"name": "sgd", "learning_rate": 1.0})
    ('1e-06', 'sgd (learning_rate=1.0)')
    """
    if not isinstance(value, dict):
        return yaml12.flow(value)
    name = [str(each) for key, each in value.items() if key == "name"]
    rest = [f"{key}={value_text(each)}" for key, each in value.items() if key != "name"]
    return " ".join([*name, *([f"({', '.join(rest)})"] if rest or not name else [])])
