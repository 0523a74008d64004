"""YAML to a validated, frozen `Config`; an error names file, line, key, what was given and allowed.

Numbers are read as YAML 1.2's core schema reads them: `1e-6` is a number, `010` is ten, `yes` is a
text. PyYAML by itself reads YAML 1.1, where these are a text, eight and true.
"""

from __future__ import annotations

import difflib
import json
import re
import reprlib
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import yaml
from pydantic import Field, ValidationError

from adadelta_cli import inputs
from adadelta_cli.errors import UsageError, shortened
from adadelta_cli.run.problems import PROBLEMS
from adadelta_cli.run.problems.settings import (
    LogisticRegressionSettings,
    MlpSettings,
    RosenbrockSettings,
    Section,
)
from adadelta_cli.update import Hyperparameters

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

LARGEST_BYTES = 100_000  # a config takes one; a mistaken file is not read to its end
LARGEST_DIGITS = 300  # of a whole number; float64 ends at 309
MOST_FAULTS = 10  # that a message lists
SCHEMA_DIALECT = "https://json-schema.org/draft/2020-12/schema"

# Of what the plot shows: see run.report.LARGEST_DRAWN.
Bound = Annotated[float, Field(ge=-1e150, le=1e150)]
PositiveBound = Annotated[float, Field(gt=0, le=1e150)]


# --- what a config holds --------------------------------------------------------------------------


class OptimizerSettings(Section):
    """The hyper-parameters of AdaDelta, with the defaults of MXNet 2.0."""

    learning_rate: float = 1.0
    """Factor of the step; the paper's method has 1."""
    rho: float = Field(0.9, ge=0, lt=1)
    """Decay of both accumulators."""
    epsilon: float = Field(1e-6, gt=0)
    """Added under both square roots."""
    wd: float = 0.0
    """Weight decay, added to the gradient as wd * weight."""
    rescale_grad: float = 1.0
    """Factor of the gradient, before anything else."""
    clip_gradient: float | None = Field(None, ge=0)
    """The rescaled gradient is clipped to [-clip, clip]; null for no clipping."""

    def hyperparameters(self) -> Hyperparameters:
        """Return what the steps take."""
        return Hyperparameters(**self.model_dump())


class TrainingSettings(Section):
    """How long, on how much at a time, and how often something is written."""

    steps: int | None = Field(None, ge=1, le=10**9)
    """Steps to take; either this or epochs."""
    epochs: int | None = Field(None, ge=1, le=10**6)
    """Passes over the data to take; either this or steps."""
    batch_size: int | None = Field(None, ge=1)
    """Samples of a step, shuffled anew each epoch; null for all of them."""
    record_every: int | None = Field(None, ge=1)
    """Steps between two rows of history.csv; null for an epoch."""
    checkpoint_every: int = Field(1000, ge=1)
    """Steps between two checkpoints."""


class Expect(Section):
    """What counts as success: bounds on the last row of history.csv."""

    max_loss: Bound | None = None
    """Largest loss."""
    max_distance: PositiveBound | None = None
    """Largest distance to the minimum (rosenbrock)."""
    max_gap: PositiveBound | None = None
    """Largest loss above the optimum's (logistic_regression)."""
    min_accuracy: float | None = Field(None, ge=0, le=1)
    """Least share of samples classified rightly (logistic_regression, mlp)."""

    def bounds(self) -> Iterator[tuple[str, str, float]]:
        """Yield `max` or `min`, the metric and the bound of each expectation that is stated."""
        for key, bound in self.model_dump(exclude_none=True).items():
            side, metric = key.split("_", 1)
            yield side, metric, bound


class Config(Section):
    """A problem, the optimizer that is to solve it, for how long, and what counts as success."""

    problem: RosenbrockSettings | LogisticRegressionSettings | MlpSettings = Field(
        discriminator="name"
    )
    optimizer: OptimizerSettings = OptimizerSettings()
    training: TrainingSettings
    expect: Expect = Expect()

    def to_yaml(self) -> str:
        """Write every value, defaults too, as YAML that loads back to an equal config."""
        return yaml.dump(
            self.model_dump(mode="json", exclude_none=True), Dumper=_Dumper, sort_keys=False
        )


@cache
def schema() -> dict[str, Any]:
    """Return the JSON schema of a config, for editors; only to be read."""
    return {"$schema": SCHEMA_DIALECT, **Config.model_json_schema()}


# --- where configs are ----------------------------------------------------------------------------


def folder() -> Path:
    """Return the folder of the configs that ship: inside a wheel, beside the package in a clone."""
    package = Path(__file__).parents[1]
    inside = package / "configs"
    return inside if inside.is_dir() else package.parent / "configs"


def shipped() -> tuple[str, ...]:
    """Name the configs that ship."""
    return tuple(sorted(path.stem for path in folder().glob("*.yaml")))


def locate(reference: str) -> Path:
    """Return the file of a config, given its path or the name of one that ships.

    Raises:
        UsageError: there is none, or it is no file.
    """
    path = folder() / f"{reference}.yaml" if reference in shipped() else Path(reference)
    lack = inputs.unreadable_reason(path)
    if lack:
        raise UsageError(
            f"there is no config {shortened(reference)!r}: {lack}; name a YAML file, or one that "
            f"ships: {', '.join(shipped())}"
        )
    return path


def load_config(reference: str, overrides: Sequence[str] = ()) -> Config:
    """Read a config and check all of it.

    Args:
        reference: a path, or the name of a config that ships.
        overrides: `key.sub=value` each, the value in YAML; what `--set` takes.

    Raises:
        UsageError: the file cannot be read, is no YAML, or holds what is not allowed.
    """
    path = locate(reference)
    tree = _Tree()
    tree.root = tree.read(_text(path), lambda line: f"{path}, line {line}")
    if not isinstance(tree.root, dict):
        got = "empty" if tree.root is None else f"a {type(tree.root).__name__}"
        raise UsageError(f"{path}, line 1: the file is {got}; {EXPECTED_SHAPE}")
    tree.anchor_csv(path.absolute().parent)
    for override in overrides:
        tree.set(override)
    try:
        config = Config.model_validate(tree.root)
    except ValidationError as error:
        found = _deepest(error.errors())
        faults = [_config_error(each) for each in found[:MOST_FAULTS]]
    else:
        found = faults = list(_contradictions(config))
    if faults:
        lines = [f"{tree.place(f.key)}: {f.message}" for f in faults]
        more = len(found) - len(faults)
        raise UsageError("\n".join([*lines, f"... and {more:,} more"] if more else lines))
    return config


EXPECTED_SHAPE = "a config is a mapping with the keys problem, optimizer, training and expect"


def _text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            content = file.read(LARGEST_BYTES + 1)
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from error
    if len(content) > LARGEST_BYTES:
        raise UsageError(f"{path} is no config: it has more than {LARGEST_BYTES} bytes")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise UsageError(
            f"{path}, line {line}: byte 0x{content[error.start]:02x} is not UTF-8; save the file "
            "as UTF-8"
        ) from error


# --- YAML 1.2, with the line of every key ---------------------------------------------------------

CORE_SCHEMA = {  # YAML 1.2.2, section 10.3.2: the pattern of each tag, and what it starts with
    "null": (r"null|Null|NULL|~|", ["n", "N", "~", ""]),
    "bool": (r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    "int": (r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", list("-+0123456789")),
    "float": (
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        list("-+.0123456789"),
    ),
}
TAG = "tag:yaml.org,2002:"


def _integer(text: str) -> int:
    if len(text) > LARGEST_DIGITS:
        raise ValueError
    base = {"0o": 8, "0x": 16}.get(text[:2], 10)
    return int(text if base == 10 else text[2:], base)


SCALARS: dict[str, Callable[[str], Any]] = {
    "null": lambda _text: None,
    "bool": lambda text: text.lower() == "true",
    "int": _integer,
    "float": lambda text: float(text.lower().replace(".inf", "inf").replace(".nan", "nan")),
    "str": str,
}


class _Loader(yaml.SafeLoader):
    """Composes nodes with YAML 1.2's tags; an alias, and so a bomb of them, is refused."""

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
    for _tag, (_pattern, _first) in CORE_SCHEMA.items():
        _kind.add_implicit_resolver(TAG + _tag, re.compile(f"^(?:{_pattern})$"), _first)

Key = tuple[str | int, ...]


class _Tree:
    """The values of a file and of the overrides, and where each of them stands."""

    def __init__(self) -> None:
        self.root: Any = None
        self._places: dict[Key, str] = {}

    def place(self, key: Key) -> str:
        """Say where a key stands, or its nearest ancestor that is there."""
        while key and key not in self._places:
            key = key[:-1]
        return self._places.get(key, "")

    def read(self, text: str, place: Any, key: Key = ()) -> Any:
        """Read YAML; `place` names a line of it, `key` is where its root goes.

        Raises:
            UsageError: it is no YAML, or uses what a config has no use for.
        """
        self._places[key] = place(1)
        try:
            node = yaml.compose(text, _Loader)
            return None if node is None else self._value(node, place, key)
        except RecursionError:
            raise UsageError(f"{place(1)}: nested too deeply; {EXPECTED_SHAPE}") from None
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            reason = shortened(" ".join(part for part in (error.context, error.problem) if part))
            line = mark.line + 1 if mark else 1
            raise UsageError(f"{place(line)}: this is no YAML for a config: {reason}") from error
        except yaml.YAMLError as error:
            raise UsageError(f"{place(1)}: this is no YAML: {shortened(error)}") from error

    def _value(self, node: yaml.Node, place: Any, key: Key) -> Any:
        where = place(node.start_mark.line + 1)
        self._places[key] = where
        tag = node.tag.removeprefix(TAG)
        if isinstance(node, yaml.MappingNode) and tag == "map":
            return dict(self._items(node, place, key))
        if isinstance(node, yaml.SequenceNode) and tag == "seq":
            return [self._value(each, place, (*key, i)) for i, each in enumerate(node.value)]
        try:
            return SCALARS[tag](node.value)
        except (KeyError, ValueError):
            got = f"{dotted(key)} is {shortened(node.tag)} {reprlib.repr(node.value)}"
            raise UsageError(
                f"{where}: {got}; allowed are plain texts, and numbers of at most {LARGEST_DIGITS} "
                "digits"
            ) from None

    def _items(self, node: yaml.Node, place: Any, key: Key) -> Iterator[tuple[str, Any]]:
        first: dict[str, str] = {}
        for name, value in node.value:
            where = place(name.start_mark.line + 1)
            if name.tag != TAG + "str":
                got = reprlib.repr(name.value)
                raise UsageError(f"{where}: the key {got} is no text; allowed are texts only")
            path = (*key, name.value)
            if name.value in first:
                before = first[name.value]
                raise UsageError(
                    f"{where}: {dotted(path)} is given twice, first at {before}; allowed is once"
                )
            first[name.value] = where
            yield name.value, self._value(value, place, path)
            self._places[path] = where

    def anchor_csv(self, base: Path) -> None:
        """Make the CSV file's path absolute: it is relative to `base`."""
        problem = self.root.get("problem")
        if isinstance(problem, dict) and isinstance(problem.get("csv"), str):
            problem["csv"] = str(base / problem["csv"])

    def set(self, override: str) -> None:
        """Apply one `key.sub=value`.

        Raises:
            UsageError: it is not of that form, or the key lies below something that is no mapping.
        """
        where = f"--set {shortened(override)}"
        name, equals, text = override.partition("=")
        key = tuple(name.strip().split("."))
        if not equals or not all(key):
            raise UsageError(f"{where}: this is no KEY=VALUE, such as optimizer.rho=0.95")
        parent = self.root
        for depth, part in enumerate(key[:-1], start=1):
            parent = parent.setdefault(part, {})
            if not isinstance(parent, dict):
                raise UsageError(f"{where}: {dotted(key[:depth])} has no keys; set it whole")
        parent[key[-1]] = self.read(text, lambda _line: where, key)
        self.anchor_csv(Path.cwd())  # what the file named is absolute by now


def dotted(key: Key) -> str:
    """Write a key as `--set` takes it."""
    return shortened(".".join(map(str, key))) or "the file"


# --- what was wrong -------------------------------------------------------------------------------


class _ConfigError(NamedTuple):
    key: Key
    message: str


def _deepest(errors: Sequence[Any]) -> list[Any]:
    """Leave out a fault of a list that only repeats one of its items."""
    above = {error["loc"][:depth] for error in errors for depth in range(len(error["loc"]))}
    return [error for error in errors if error["loc"] not in above]


def _shown(value: Any) -> str:
    """Write a value as YAML does, cut short where it is long."""
    return json.dumps(value) if value is None or isinstance(value, bool) else reprlib.repr(value)


def _config_error(error: Any) -> _ConfigError:
    """Turn one of pydantic's errors into key, what was given, what is allowed."""
    location, kind = error["loc"], error["type"]
    key = tuple(part for i, part in enumerate(location) if (i, location[0]) != (1, "problem"))
    if kind in {"union_tag_not_found", "union_tag_invalid"}:
        given = error["input"]
        got = _shown(given["name"]) if "name" in given else "missing"
        message = f"{dotted(key)}.name is {got}; allowed are {', '.join(PROBLEMS)}"
        return _ConfigError((*key, "name"), message)
    if kind == "extra_forbidden":
        known = list(_section(location[:-1])["properties"])
        close = difflib.get_close_matches(str(key[-1]), known, n=1)
        hint = f" (did you mean {close[0]}?)" if close else ""
        return _ConfigError(
            key, f"{dotted(key)} is not known{hint}; allowed here are {', '.join(known)}"
        )
    got = "missing" if kind == "missing" else _shown(error["input"])
    return _ConfigError(key, f"{dotted(key)} is {got}; allowed is {_allowed(_section(location))}")


def _section(location: Key) -> dict[str, Any]:
    """Look up the JSON schema of a value: the one place that knows what is allowed."""
    root = schema()
    node: dict[str, Any] = root

    def resolved(node: dict[str, Any]) -> dict[str, Any]:
        return root["$defs"][node["$ref"].rsplit("/", 1)[1]] if "$ref" in node else node

    for part in location:
        if "discriminator" in node:
            node = {"$ref": node["discriminator"]["mapping"][part]}
        else:
            node = node["items"] if isinstance(part, int) else node["properties"][part]
        node = resolved(node)
    return node


NOUNS = {
    "number": "a number",
    "integer": "a whole number",
    "string": "a text",
    "null": "null",
    "array": "a list",
}
BOUNDS = {
    "minimum": "at least",
    "exclusiveMinimum": "more than",
    "maximum": "at most",
    "exclusiveMaximum": "less than",
}


def _allowed(node: dict[str, Any]) -> str:
    if "anyOf" in node:
        return " or ".join(map(_allowed, node["anyOf"]))
    if "enum" in node or "const" in node:
        return " or ".join(node.get("enum", [node.get("const")]))
    if "properties" in node or "discriminator" in node:
        return "a mapping" + (
            f" with {', '.join(node['properties'])}" if "properties" in node else ""
        )
    words = [f"{text} {node[bound]}" for bound, text in BOUNDS.items() if bound in node]
    if node["type"] == "array":
        items = _allowed(node["items"]).replace("a whole number", "whole numbers")
        return f"a list of {node['minItems']} to {node['maxItems']} {items}"
    noun = "a finite number" if node["type"] == "number" and not words else NOUNS[node["type"]]
    return ", ".join([noun, " and ".join(words)] if words else [noun])


def _contradictions(config: Config) -> Iterator[_ConfigError]:
    """Yield what is wrong only in the light of another key."""
    name, training = config.problem.name, config.training
    if (training.steps is None) == (training.epochs is None):
        given = "neither" if training.steps is None else "both"
        yield _ConfigError(
            ("training", "steps"),
            f"training.steps and training.epochs are {given} given; allowed is one of them, the "
            "other null or left out",
        )
    if name == "rosenbrock":
        for key in ("epochs", "batch_size"):
            if getattr(training, key) is not None:
                yield _ConfigError(
                    ("training", key),
                    f"training.{key} is {getattr(training, key)}; rosenbrock has no data to pass "
                    "over, so allowed is null: use training.steps",
                )
    metrics = PROBLEMS[name].metrics
    for side, metric, bound in config.expect.bounds():
        if metric not in metrics:
            key = f"{side}_{metric}"
            reported = ", ".join(metrics)
            message = f"expect.{key} is {bound}, and {name} reports {reported} only; leave it out"
            yield _ConfigError(("expect", key), message)
