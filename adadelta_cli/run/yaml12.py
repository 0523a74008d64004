"""Read and write YAML 1.2, and tell where each key stands.

PyYAML reads YAML 1.1: `1e-6` is a text, `010` is eight, `yes` is true. CORE_SCHEMA replaces that.
ruamel.yaml needs the same table, as it reads `1_000`, `0b1` and dates; it takes 1.6 times as long.
"""

from __future__ import annotations

import json
import re
import reprlib
from typing import TYPE_CHECKING, Any

import yaml

from adadelta_cli.errors import UsageError, shortened

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

Key = tuple[str | int, ...]
LARGEST_DIGITS = 300  # of an integer; float64 ends at 309
TAG = "tag:yaml.org,2002:"


def dotted(key: Key) -> str:
    """Write a key as `--set` takes it."""
    return shortened(".".join(map(str, key))) or "the file"


def parse(text: str, place: Callable[[int], str], root: Key = ()) -> tuple[Any, dict[Key, str]]:
    """Parse a document into dicts, lists, texts, numbers, booleans and None.

    Args:
        text: the document; an empty one is None.
        place: names a line, counted from 1, in messages.
        root: the key that the document is the value of.

    Returns:
        The value, and the place of each key in it.

    Raises:
        UsageError: the text is not YAML, repeats a key, or has an alias, a tag, a key that is not
            a text, an integer of more than LARGEST_DIGITS digits or too many levels.
    """
    document = _Document(place)
    document.places[root] = place(1)
    try:
        node = yaml.compose(text, _Loader)
        return None if node is None else document.value(node, root), document.places
    except RecursionError:
        raise UsageError(f"{place(1)}: nested too deeply for YAML of this program") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
        parts = (getattr(error, name, None) for name in ("context", "problem"))
        reason = shortened(" ".join(filter(None, parts)) or error)
        raise UsageError(
            f"{place(mark.line + 1 if mark else 1)}: invalid YAML: {reason}"
        ) from error


def dump(document: Any) -> str:
    """Write a document so that `parse` reads the same values; keys keep their order."""
    return yaml.dump(document, Dumper=_Dumper, sort_keys=False)


def flow(value: Any) -> str:
    """Write a value in one line, as `--set` takes it.

    >>> flow(1e-6), flow([16, 8]), flow("relu"), flow("1"), flow(None)
    ('1e-06', '[16, 8]', 'relu', '"1"', 'null')
    """
    plain = isinstance(value, str) and re.fullmatch(r"[\w./+~][\w./+~: -]*", value)
    if plain and ": " not in value and value == value.strip():
        kinds = (pattern for pattern, _ in CORE_SCHEMA.values())
        if not any(re.fullmatch(pattern, value) for pattern in kinds) and value[-1] != ":":
            return value
    if isinstance(value, list):
        return f"[{', '.join(map(flow, value))}]"
    return repr(value) if isinstance(value, float) else json.dumps(value)


def _integer(text: str) -> int:
    if len(text) > LARGEST_DIGITS:
        raise ValueError
    return int(text, {"0o": 8, "0x": 16}.get(text[:2], 10))


def _float(text: str) -> float:
    return float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))


CORE_SCHEMA: dict[str, tuple[str, Callable[[str], Any]]] = {  # YAML 1.2.2, section 10.3.2
    "null": (r"null|Null|NULL|~|", lambda _text: None),
    "bool": (r"true|True|TRUE|false|False|FALSE", lambda text: text.lower() == "true"),
    "int": (r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", _integer),
    "float": (
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        _float,
    ),
}
SCALARS = {TAG + "str": str} | {TAG + tag: read for tag, (_, read) in CORE_SCHEMA.items()}


class _Loader(yaml.SafeLoader):
    """Composes nodes with YAML 1.2's tags; refuses aliases: a few can stand for gigabytes."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012 - PyYAML's own way

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
            raise yaml.MarkedYAMLError(problem="an alias (*name) is not allowed", problem_mark=mark)
        return super().compose_node(parent, index)


class _Dumper(yaml.SafeDumper):
    """Quotes the texts that YAML 1.2 would read as something else."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012


for _kind in (_Loader, _Dumper):
    for _tag, (_pattern, _) in CORE_SCHEMA.items():
        _kind.add_implicit_resolver(TAG + _tag, re.compile(rf"(?:{_pattern})\Z"), None)


class _Document:
    """Turns nodes into values, and notes the place of each key."""

    def __init__(self, place: Callable[[int], str]) -> None:
        self._place = place
        self.places: dict[Key, str] = {}

    def value(self, node: yaml.Node, key: Key) -> Any:
        where = self.places[key] = self._line(node)
        if isinstance(node, yaml.MappingNode) and node.tag == TAG + "map":
            return dict(self._items(node, key))
        if isinstance(node, yaml.SequenceNode) and node.tag == TAG + "seq":
            return [self.value(each, (*key, i)) for i, each in enumerate(node.value)]
        try:
            if isinstance(node, yaml.ScalarNode):
                return SCALARS[node.tag](node.value)
        except (KeyError, ValueError):
            pass
        raise UsageError(
            f"{where}: {dotted(key)} is {shortened(node.tag.replace(TAG, '!!'))} {_shown(node)}; "
            f"allowed are untagged values, and integers of at most {LARGEST_DIGITS} digits"
        )

    def _line(self, node: yaml.Node) -> str:
        return self._place(node.start_mark.line + 1)

    def _items(self, node: yaml.Node, parent: Key) -> Iterator[tuple[str, Any]]:
        first: dict[str, str] = {}
        for name, value in node.value:
            where = self._line(name)
            if not isinstance(name, yaml.ScalarNode) or name.tag != TAG + "str":
                raise UsageError(f"{where}: the key {_shown(name)} is not a text; put it in quotes")
            key = (*parent, name.value)
            if name.value in first:
                before = first[name.value]
                raise UsageError(f"{where}: {dotted(key)} is given twice, first at {before}")
            first[name.value] = where
            yield name.value, self.value(value, key)
            self.places[key] = where


def _shown(node: yaml.Node) -> str:
    return reprlib.repr(node.value) if isinstance(node, yaml.ScalarNode) else "a collection"
