"""The keys of a config: meaning, default and allowed values, from the schema."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from typing import Any

from adadelta_cli.errors import UsageError, shortened, suggestion
from adadelta_cli.run import config
from adadelta_cli.run.problems import PYTHON


@dataclass(frozen=True)
class KeyHelp:
    """What a key of a config means.

    Attributes:
        key: with dots, such as `optimizer.rho`.
        name: of the problem or the optimizer that has this key; empty if all configs have it.
        meaning: a sentence.
        allowed: its values, in words.
        default: in YAML; empty if the key is required.
    """

    key: str
    name: str
    meaning: str
    allowed: str
    default: str


@cache
def all_keys() -> tuple[KeyHelp, ...]:
    """List every key of every section, in the schema's order."""
    sections = config.schema()["properties"]
    return tuple(each for section in sections for each in _section_keys(section))


def _section_keys(section: str) -> list[KeyHelp]:
    return [
        _key_help(f"{section}.{key}", "" if name is None else name, node, required)
        for name in _names(section)
        for key, node, required in config.keys_of(section, name)
        if not (key == "name" and name is not None)
    ]


def _names(section: str) -> tuple[str | None, ...]:
    """List the problems or the optimizers, those of the user's own included; None for others."""
    own = (PYTHON,) if section == "problem" else ()
    return (*config.VARIANTS.get(section, (None,)), *own)


def _key_help(key: str, name: str, node: dict[str, Any], required: bool) -> KeyHelp:
    default = "" if required else json.dumps(node.get("default"))
    return KeyHelp(key, name, node["description"], config.allowed_values(node), default)


def explain(key: str) -> tuple[KeyHelp, ...]:
    """Explain a key, with or without its section, or all keys of a section.

    Raises:
        UsageError: there is no such key; the nearest are suggested.
    """
    known = all_keys()
    wanted = key.strip().strip(".-").lower().replace("-", "_")
    found = _matching(known, wanted)
    if not found:
        found = [
            each for other in config.meant_by_option(wanted) for each in _matching(known, other)
        ]
    if not found:
        names = [name for each in known for name in (each.key, each.key.split(".")[1])]
        sections = ", ".join(config.schema()["properties"])
        near = suggestion(wanted, dict.fromkeys(names))
        raise UsageError(
            f"a config has no key {shortened(key)!r}{near}; name a key such as optimizer.rho, or a "
            f"section: {sections}"
        )
    return tuple(dict.fromkeys(found))


def _matching(known: tuple[KeyHelp, ...], wanted: str) -> list[KeyHelp]:
    return [
        each
        for each in known
        if wanted in {each.key, *each.key.split(".")} or f"{each.name}.{wanted}" == each.key
    ]


def near_keys(start: str) -> list[str]:
    """List the keys that begin with a text, for a shell to complete."""
    return sorted({each.key for each in all_keys() if each.key.startswith(start)})
