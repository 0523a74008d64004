"""A commented config to start from."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING

from adadelta_cli.guide.keys import all_keys
from adadelta_cli.run import config, yaml12

if TYPE_CHECKING:
    from collections.abc import Iterator

    from adadelta_cli.guide.keys import KeyHelp

WIDTH = 100


def starter_config(problem: str) -> str:
    """Write a config in YAML: the bundled one of a problem, with each key explained.

    Keys that the bundled config leaves at their defaults are commented out.
    """
    settings = config.load_config(problem)
    given = settings.model_dump(mode="json", exclude_unset=True)
    names = {"problem": problem, "optimizer": settings.optimizer.name}
    lines = [
        f"# adadelta run FILE; a key's meaning: adadelta explain KEY. Begun from {problem}.",
        "# A line that begins with '# ' and a key is the default; remove the '# ' to change it.",
        "# For a key of a section that is itself commented out, remove it there, too.",
    ]
    for section in config.schema()["properties"]:
        lines += ["", f"{section}:" if given.get(section) else f"# {section}:"]
        keys = _keys(section, names.get(section, ""), problem)
        lines += _section(keys, names.get(section, ""), given.get(section, {}))
    return "\n".join(lines) + "\n"


def _keys(section: str, name: str, problem: str) -> dict[str, KeyHelp]:
    """Return the keys of a section that a config of this problem can use."""
    keys = {
        each.key.removeprefix(f"{section}."): each
        for each in all_keys()
        if each.key.startswith(f"{section}.") and each.name == name
    }
    return {
        key: each
        for key, each in keys.items()
        if key != "name" and config.is_usable(section, key, problem)
    }


def _section(keys: dict[str, KeyHelp], name: str, given: dict[str, object]) -> Iterator[str]:
    if name:
        yield f"  name: {name}"
    for key, each in keys.items():
        yield from _comment(each)
        value = yaml12.dump({key: given.get(key)}).strip()
        default = f"# {key}: {each.default or 'required'}"
        yield textwrap.indent(value if key in given else default, "  ")


def _comment(key: KeyHelp) -> list[str]:
    text = f"{key.meaning} Allowed: {key.allowed}."
    return textwrap.wrap(text, WIDTH, initial_indent="  # ", subsequent_indent="  # ")
