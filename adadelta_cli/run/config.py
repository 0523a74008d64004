"""Read and validate configs; an error names the file, the line, the key and what is allowed."""

from __future__ import annotations

import contextlib
import itertools
import json
import reprlib
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

from pydantic import ConfigDict, Field, ValidationError

from adadelta_cli import inputs
from adadelta_cli.errors import UsageError, nearest, shortened, suggestion
from adadelta_cli.implementations.optimizers import ADADELTA
from adadelta_cli.run import yaml12
from adadelta_cli.run.optimizers import OPTIMIZERS, AdadeltaSettings, OptimizerSettings
from adadelta_cli.run.problems import PROBLEMS, PYTHON, ProblemSettings
from adadelta_cli.run.problems.problem import Section
from adadelta_cli.run.result import Side
from adadelta_cli.run.sweep_section import SweepSettings
from adadelta_cli.run.yaml12 import Key, dotted

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

LARGEST_BYTES = 100_000  # a config takes one; a file named by mistake may be huge
MOST_ERRORS = 10  # that a message lists
MOST_BESIDE = 1000  # files of a folder that may have been meant
SCHEMA_DIALECT = "https://json-schema.org/draft/2020-12/schema"
EXPECTED_SHAPE = "a config is a mapping with the keys problem, optimizer, training and expect"

# The range that a plot can show: see run.report.LARGEST_DRAWN.
Bound = Annotated[float, Field(ge=-1e150, le=1e150)]
PositiveBound = Annotated[float, Field(gt=0, le=1e150)]


class TrainingSettings(Section):
    """Length, batch size, and how often results are written."""

    steps: int | None = Field(None, ge=1, le=10**9)
    """Steps to take; set this or epochs."""
    epochs: int | None = Field(None, ge=1, le=10**6)
    """Passes over the data; set this or steps."""
    batch_size: int | None = Field(None, ge=1)
    """Samples per step, reshuffled each epoch; null for all of them."""
    record_every: int | None = Field(None, ge=1)
    """Steps between two rows of history.csv; null for an epoch."""
    checkpoint_every: int = Field(1000, ge=1)
    """Steps between two checkpoints."""


def _as_pattern(schema: dict[str, Any]) -> None:
    """Let editors know what the free keys are named."""
    schema["patternProperties"] = {"^(max|min)_.": {"type": "number"}}
    schema["additionalProperties"] = False


class Expect(Section):
    """What counts as success: bounds on the last row of history.csv.

    A problem of your own has further ones: max_METRIC and min_METRIC.
    """

    model_config = ConfigDict(extra="allow", json_schema_extra=_as_pattern)
    __pydantic_extra__: dict[str, Bound]

    max_loss: Bound | None = None
    """Largest loss."""
    max_distance: PositiveBound | None = None
    """Largest distance to the minimum (rosenbrock)."""
    max_test_error: float | None = Field(None, ge=0, le=100)
    """Largest test error, in percent (mlp)."""
    max_gap: PositiveBound | None = None
    """Largest loss above the optimum's (logistic_regression)."""
    min_accuracy: float | None = Field(None, ge=0, le=1)
    """Least accuracy (logistic_regression, mlp)."""

    def bounds(self) -> Iterator[tuple[Side, str, float]]:
        """Yield the side, the metric and the bound of each expectation that is set."""
        for key, bound in self.model_dump(exclude_none=True).items():
            side, metric = key.split("_", 1)
            yield Side(side), metric, bound


class Config(Section):
    """A problem, the optimizer, the length of the training, and what counts as success."""

    problem: ProblemSettings
    optimizer: OptimizerSettings = AdadeltaSettings()
    training: TrainingSettings
    expect: Expect = Expect()
    sweep: SweepSettings = SweepSettings()

    def to_yaml(self) -> str:
        """Write every value that a run reads, as YAML that loads back to an equal config."""
        return yaml12.dump(self.model_dump(mode="json", exclude_none=True, exclude={"sweep"}))


@cache
def schema() -> dict[str, Any]:
    """Return the JSON schema of a config, for editors; do not modify it."""
    return {"$schema": SCHEMA_DIALECT, **Config.model_json_schema()}


def folder() -> Path:
    """Return the folder of the bundled configs: in a wheel inside the package, else beside it."""
    package = Path(__file__).parents[1]
    inside = package / "configs"
    return inside if inside.is_dir() else package.parent / "configs"


SWEEP = "sweep-"  # begins the names of bundled configs that are examples of `adadelta sweep`


def shipped() -> tuple[str, ...]:
    """List the names of the bundled configs that commands use when none is named."""
    found = (path.stem for path in folder().glob("*.yaml"))
    return tuple(sorted(name for name in found if not name.startswith(SWEEP)))


def grouped() -> tuple[str, ...]:
    """List the other bundled configs: those in folders, as FOLDER/NAME, and those of sweeps."""
    found = (*folder().glob("*/*.yaml"), *folder().glob(f"{SWEEP}*.yaml"))
    return tuple(sorted(str(path.relative_to(folder()))[: -len(path.suffix)] for path in found))


def locate(reference: str) -> Path:
    """Return the file of a config, given its path or the name of a bundled one.

    Raises:
        UsageError: there is no such file, or it cannot be read.
    """
    names = shipped()
    known = (*names, *grouped())
    path = folder() / f"{reference}.yaml" if reference in known else Path(reference)
    if any(each.startswith(f"{reference}/") for each in known):
        listed = ", ".join(each for each in known if each.startswith(f"{reference}/"))
        raise UsageError(f"{reference} is a folder of configs; name one of {listed}")
    reason = inputs.unreadable_reason(path)
    if reason:
        raise UsageError(
            f"unknown config {shortened(reference)!r}: {reason}; name a YAML file or a bundled "
            f"config ({', '.join(names)}){_near_configs(reference, known)}"
        )
    return path


def _near_configs(reference: str, known: Sequence[str]) -> str:
    """Suggest bundled configs, and files in the folder of a missing one, whatever the ending."""
    names = {name: name for name in known}
    with contextlib.suppress(OSError, ValueError):  # no folder can have this name
        for each in itertools.islice(Path(reference).parent.glob("*.y*ml"), MOST_BESIDE):
            if each.is_file() and each != Path(reference):
                names[str(each.with_suffix(""))] = str(each)
    near = nearest(reference.removesuffix(".yaml").removesuffix(".yml"), names)
    return f" (did you mean {' or '.join(names[each] for each in near)}?)" if near else ""


def load_config(
    reference: str, overrides: Sequence[str] = (), varied: Sequence[str] = ()
) -> Config:
    """Read and validate a config.

    Args:
        reference: a path, or the name of a bundled config.
        overrides: `key.sub=value` each, the value in YAML, as `--set` takes them.
        varied: likewise, of `--vary`.

    Raises:
        UsageError: the file cannot be read, is not YAML, or has invalid values.
    """
    source = open_config(reference, overrides)
    for override in varied:
        source.set(override, "--vary")
    return source.config()


def open_config(reference: str, overrides: Sequence[str] = ()) -> ConfigSource:
    """Read a config without validating its values; arguments and errors as `load_config`."""
    source = ConfigSource(locate(reference))
    for override in overrides:
        source.set(override)
    return source


def _text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            content = file.read(LARGEST_BYTES + 1)
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from error
    if len(content) > LARGEST_BYTES:
        raise UsageError(f"{path} is not a config: it has more than {LARGEST_BYTES} bytes")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise UsageError(
            f"{path}, line {line}: byte 0x{content[error.start]:02x} is not UTF-8; save the file "
            "as UTF-8"
        ) from error


# The keys of a problem that name a file, where the name (before a colon) ends like this.
PATHS = {"csv": "", "data": ".npz", "python": ".py"}


class Variation(NamedTuple):
    """A value that takes the place of a config's own.

    Attributes:
        key: dotted.
        value: as YAML has it.
        where: its place, for messages.
        of_file: it is in the config's own file, to whose folder paths are relative.
    """

    key: str
    value: Any
    where: str
    of_file: bool = False


class ConfigSource:
    """The values of a file and of the overrides, and the place of each.

    Raises:
        UsageError: the file cannot be read, or is not a mapping in YAML.
    """

    def __init__(self, path: Path) -> None:
        self._folder = path.resolve().parent
        self.root, self._places = yaml12.parse(_text(path), lambda line: f"{path}, line {line}")
        if not isinstance(self.root, dict):
            got = "empty" if self.root is None else f"a {type(self.root).__name__}"
            raise UsageError(f"{path}, line 1: the file is {got}; {EXPECTED_SHAPE}")
        self._of_file = {*self._places}  # the keys whose values are the file's own
        self._anchor_paths(self._folder)

    def place(self, key: Key) -> str:
        """Return the place of a key, or of its nearest ancestor that is set."""
        while key and key not in self._places:
            key = key[:-1]
        return self._places[key]

    def set(self, override: str, option: str = "--set") -> None:
        """Apply one `key.sub=value` of an option.

        Raises:
            UsageError: it has another form, or the key lies below something that is not a mapping.
        """
        where = f"{option} {shortened(override)}"
        name, equals, text = override.partition("=")
        key = tuple(name.strip().split("."))
        if not equals or not all(key):
            raise UsageError(f"{where}: expected KEY=VALUE, such as optimizer.rho=0.95")
        value, places = yaml12.parse(text, lambda _line: where, key)
        self._put(key, value, where)
        self._places |= places
        self._anchor_paths(Path.cwd())  # a path from the file is absolute already

    def varied(self, values: Iterable[Variation]) -> ConfigSource:
        """Return a copy with other values.

        Raises:
            UsageError: a key lies below something that is not a mapping.
        """
        copy = deepcopy(self)
        for each in values:
            copy.vary(each)
        return copy

    def vary(self, variation: Variation) -> None:
        """Set one value; errors as `varied`."""
        key = tuple(variation.key.split("."))
        self._put(key, variation.value, variation.where)
        self._anchor_paths(self._folder if variation.of_file else Path.cwd())

    def _put(self, key: Key, value: Any, where: str) -> None:
        """Set a value, whose place is `where`."""
        parent = self.root
        for depth, part in enumerate(key[:-1], start=1):
            parent = parent.setdefault(part, {})
            if not isinstance(parent, dict):
                raise UsageError(f"{where}: {dotted(key[:depth])} has no keys; set it whole")
        self._drop_others(key, value)
        parent[key[-1]] = value
        replaced = {old for old in self._places if old[: len(key)] == key}
        self._places = {old: at for old, at in self._places.items() if old not in replaced}
        self._places[key] = where
        self._of_file -= replaced

    def config(self) -> Config:
        """Validate the values.

        Raises:
            UsageError: some are invalid; the message has a line for each of the first ones.
        """
        try:
            config = Config.model_validate(self.root)
        except ValidationError as error:
            found = _deepest(error.errors())
            errors = [_explain(each) for each in found[:MOST_ERRORS]]
        else:
            found = errors = list(_contradictions(config))
        if errors:
            lines = [f"{self.place(key)}: {message}" for key, message in errors]
            more = len(found) - len(errors)
            raise UsageError(*lines, *([f"... and {more:,} more"] if more else []))
        return config

    def _drop_others(self, key: Key, name: Any) -> None:
        """Where another optimizer or problem is named, drop the file's settings of the old one."""
        section = self.root.get(key[0])
        if key not in {(each, "name") for each in VARIANTS} or not isinstance(section, dict):
            return
        if name != section.get("name", ADADELTA):
            for each in [each for each in section if (key[0], each) in self._of_file]:
                del section[each]

    def _anchor_paths(self, base: Path) -> None:
        """Make the paths of files of the problem, which are relative to `base`, absolute."""
        problem = self.root.get("problem")
        for key, ending in PATHS.items() if isinstance(problem, dict) else ():
            value = problem.get(key)
            if isinstance(value, str) and value.partition(":")[0].endswith(ending):
                problem[key] = str(base / value)


# The sections whose keys depend on `name`, and its values.
VARIANTS: dict[str, Iterable[str]] = {"optimizer": OPTIMIZERS, "problem": PROBLEMS}

ALIASES = {  # what other frameworks, and users, call a key or an option
    "learning_rate": "lr eta step_size stepsize base_lr rate alpha",
    "rho": "decay decay_rate gamma beta beta2 momentum_decay momentum smoothing forget",
    "epsilon": "eps",
    "momentum": "mu velocity",
    "beta1": "beta_1 b1 beta betas momentum mu",
    "beta2": "beta_2 b2 rho decay decay_rate gamma",
    "wd": "weight_decay weightdecay decay_weights l2_penalty weight_decay_rate",
    "rescale_grad": "rescale grad_scale loss_scale rescale_gradient",
    "clip_gradient": "clip clip_grad clip_gradients clipvalue clip_value grad_clip gradient_clip "
    "gradient_clipping max_grad clip_norm max_grad_norm",
    "steps": "num_steps n_steps max_steps iterations iters max_iter n_iter num_iterations step",
    "epochs": "epoch num_epochs n_epochs max_epochs num_epoch",
    "batch_size": "batch bs batchsize minibatch mini_batch minibatch_size",
    "record_every": "log_every log_interval eval_every log_frequency record",
    "checkpoint_every": "save_every checkpoint save_interval checkpoint_interval save_steps",
    "hidden": "layers hidden_sizes hidden_layers hidden_layer_sizes units width widths hidden_dim",
    "activation": "act nonlinearity activation_function",
    "held_out": "test_size validation_split val_split valid_fraction test_split holdout heldout",
    "l2": "l2_reg reg regularization regularisation penalty lambda lam l2_regularization",
    "csv": "data file path dataset filename train data_file",
    "label": "target class y label_column target_column labels",
    "dimension": "dim dims n ndim dimensions d",
    "max_loss": "loss",
    "max_distance": "distance",
    "max_test_error": "test_error error max_error",
    "max_gap": "gap",
    "min_accuracy": "accuracy acc min_acc",
    "name": "type kind algorithm",
    "problem": "model task",
    "optimizer": "optim optimiser solver",
    "training": "trainer train fit",
    "expect": "expected expectations success",
    "--seed": "seed random_seed random_state rng_seed manual_seed",
    "--dtype": "dtype precision float_type data_type",
    "--ctx": "ctx device context gpu cuda accelerator",
    "--backend": "backend framework library",
    "--threads": "threads num_threads n_threads n_jobs workers num_workers",
    "--out": "out output output_dir out_dir outdir save_dir logdir",
    "--fused": "fused use_fused_step fused_step foreach",
    "--resume": "resume resume_from",
    "--force": "force overwrite",
    "--record-gradients": "record_gradients",
}


def _meant(location: Key, known: Sequence[str]) -> str:
    """Suggest the key, of this section or another, or the option that an unknown key stands for."""
    given = str(location[-1]).lower().replace("-", "_")
    elsewhere = _variants_with(location[0], given)
    if elsewhere:
        near = f"did you mean {here[0]}? " if (here := _aliased(given, known)) else ""
        return f" ({near}name: {' or '.join(elsewhere)} has it)"
    names = _names(given)
    options = [name for name in names if name.startswith("--")]
    here = _aliased(given, known)
    close = nearest(given, known, most=1)
    elsewhere = list(_keys_meant(given))
    if here or (close and not options and not elsewhere):
        return f" (did you mean {(here or close)[0]}?)"
    if options:
        return f" (did you mean the option {options[0]} of the command?)"
    return f" (did you mean {' or '.join(elsewhere)}?)" if elsewhere else ""


def _aliased(given: str, known: Sequence[str]) -> list[str]:
    return [name for name in _names(given) if name in known]


def _variants_with(section: Any, key: str) -> list[str]:
    """List the names of a section that have a key."""
    return [
        each for each in VARIANTS.get(section, ()) if key in _section((section, each))["properties"]
    ]


def _names(given: str) -> list[str]:
    return [name for name, others in ALIASES.items() if given in {name, *others.split()}]


def meant_by_option(option: str) -> list[str]:
    """Return the options and the dotted keys that an unknown option of a command stands for.

    >>> meant_by_option("--lr"), meant_by_option("--device")
    (['optimizer.learning_rate'], ['--ctx'])
    """
    given = option.lstrip("-").lower().replace("-", "_")
    names = _names(given)
    keys = [key for key in _keys_meant(given) if "." in key]
    return [*(name for name in names if name.startswith("--")), *keys]


def _keys_meant(given: str) -> Iterator[str]:
    """Yield the dotted keys of this name; then those that it is an alias of.

    A name that AdaDelta has stands for nothing else.
    """
    exact = list(_keys(given))
    others = [key for name in _names(given) for key in _keys(name)]
    foreign = any(key.startswith("optimizer.") for key in exact) and (
        given not in _section(("optimizer", ADADELTA))["properties"]
    )
    yield from exact if exact and not foreign else dict.fromkeys((*exact, *others))


def _keys(name: str) -> Iterator[str]:
    """Yield the dotted keys of a name, in any section."""
    if name in schema()["properties"]:
        yield name
    sections = [(each,) for each in ("training", "expect")]
    variants = [(section, each) for section, names in VARIANTS.items() for each in names]
    for section in dict.fromkeys(
        where[0] for where in (*variants, *sections) if name in _section(where)["properties"]
    ):
        yield f"{section}.{name}"


def _deepest(errors: Sequence[Any]) -> list[Any]:
    """Leave out an error of a list that only repeats one of its items."""
    above = {error["loc"][:depth] for error in errors for depth in range(len(error["loc"]))}
    return [error for error in errors if error["loc"] not in above]


def _shown(value: Any) -> str:
    """Write a value as YAML does, shortened."""
    return json.dumps(value) if value is None or isinstance(value, bool) else reprlib.repr(value)


def _explain(error: Any) -> tuple[Key, str]:
    """Turn one of pydantic's errors into the key and a message."""
    location, kind = error["loc"], error["type"]
    varies = location[:1] and location[0] in VARIANTS
    key = (location[0], *location[2:]) if varies else location  # [1] is the section's name
    if kind == "string_unicode":  # of a key
        what = f"it has the key {_shown(error['input'])}, which is no text in UTF-8; rename it"
        return key, f"{dotted(key)}: {what}"
    got = "missing" if kind == "missing" else _shown(error["input"])
    if kind in {"union_tag_not_found", "union_tag_invalid"}:
        key, given, known = (location[0], "name"), error["input"], VARIANTS[location[0]]
        if "name" in given:
            got = _shown(given["name"]) + suggestion(str(given["name"]), known)
        else:
            got = "missing"
        allowed = ", ".join(known)
        if location[0] == "problem":
            allowed += ", or problem.python: FILE.py:NAME for one of your own"
    elif kind == "extra_forbidden":
        known = list(_section(location[:-1])["properties"])
        got, allowed = f"unknown{_meant(location, known)}", ", ".join(known)
    else:
        node = _section(location)
        allowed = allowed_values(node)
        sides = (node, *node.get("anyOf", ()))
        got += suggestion(str(error["input"]), [e for s in sides for e in s.get("enum", ())])
    return key, f"{dotted(key)} is {got}; allowed: {allowed}"


def _section(location: Key) -> dict[str, Any]:
    """Look up the JSON schema of a value."""
    root = schema()
    node: dict[str, Any] = root
    for part in location:
        if "discriminator" in node:
            node = {"$ref": node["discriminator"]["mapping"][part]}
        else:
            node = node["items"] if isinstance(part, int) else _child(node, part)
        if "$ref" in node:
            node = root["$defs"][node["$ref"].rsplit("/", 1)[1]]
    return node


def _child(node: dict[str, Any], name: str) -> dict[str, Any]:
    """Look up the JSON schema of a value of a mapping, whose keys may be free."""
    found = node.get("properties", {}).get(name)
    free = node.get("patternProperties", {"": node.get("additionalProperties")})
    return next(iter(free.values())) if found is None else found


def keys_of(section: str, name: str | None) -> list[tuple[str, dict[str, Any], bool]]:
    """List the keys of a section: the name, its JSON schema, and whether it is required."""
    node = _section((section,) if name is None else (section, name))
    required = node.get("required", ())
    return [(key, each, key in required) for key, each in node["properties"].items()]


NOUNS = {"number": "a number", "integer": "an integer", "string": "a text", "null": "null"}
BOUNDS = {
    "minimum": "at least",
    "exclusiveMinimum": "more than",
    "maximum": "at most",
    "exclusiveMaximum": "less than",
}


def allowed_values(node: dict[str, Any]) -> str:
    """Put a JSON schema in words."""
    if "anyOf" in node or "enum" in node:
        sides = map(allowed_values, node.get("anyOf", ()))
        return " or ".join([*sides, *node.get("enum", ())])
    if "properties" in node or "discriminator" in node:
        names = node.get("discriminator", {}).get("mapping", ())
        keys = ", ".join(node.get("properties", ()))
        return f"a mapping with {keys}" if keys else f"a mapping, such as {{name: {[*names][-1]}}}"
    if node.get("type", "object") == "object":
        return "a mapping" if "type" in node or "$ref" in node else "any value"
    if node["type"] == "array":
        items = allowed_values(node["items"]).replace("an integer", "integers")
        return f"a list of {node['minItems']} to {node['maxItems']} {items}"
    bounds = " and ".join(f"{text} {node[key]}" for key, text in BOUNDS.items() if key in node)
    if not bounds and node["type"] == "number":
        return "a finite number"
    noun = node["title"] if "pattern" in node else NOUNS[node["type"]]
    return f"{noun}{bounds and ', '}{bounds}"


def _contradictions(config: Config) -> Iterator[tuple[Key, str]]:
    """Yield the errors that only several keys together make."""
    name, training = config.problem.name, config.training
    if (training.steps is None) == (training.epochs is None):
        given = "neither is" if training.steps is None else "both are"
        expected = "set exactly one of training.steps and training.epochs"
        yield ("training", "steps"), f"{expected}; {given} set (null unsets one)"
    if name in WITHOUT_DATA:
        yield from without_data(training, name)
    unknown = [key for key in config.expect.model_extra or () if not _is_bound(key, name)]
    for key in unknown:
        known = list(_section(("expect",))["properties"])
        meant = _meant(("expect", key), known)
        yield ("expect", key), f"expect.{key} is unknown{meant}; allowed: {', '.join(known)}"
    if name != PYTHON and not unknown:
        yield from unknown_metrics(config.expect, name, PROBLEMS[name].metrics)


WITHOUT_DATA = {"rosenbrock"}  # of the built-in problems
OF_DATA = ("epochs", "batch_size")  # keys of `training`


def is_usable(section: str, key: str, problem: str) -> bool:
    """Return whether a config of this built-in problem can have a value for a key."""
    if section == "training":
        return not (key in OF_DATA and problem in WITHOUT_DATA)
    return section != "expect" or key.partition("_")[2] in PROBLEMS[problem].metrics


def without_data(training: TrainingSettings, problem: str) -> Iterator[tuple[Key, str]]:
    """Yield the key and a message for each setting that only a problem with data can have."""
    for key in OF_DATA:
        value = getattr(training, key)
        if value is not None:
            fix = f"{problem} has no data; use training.steps"
            yield ("training", key), f"training.{key} is {value}, but {fix}"


def _is_bound(key: str, problem: str) -> bool:
    """Return whether a key that Expect lacks bounds a metric of a problem of the user's own."""
    return problem == PYTHON and key.startswith(tuple(f"{side.value}_" for side in Side))


def unknown_metrics(
    expect: Expect, problem: str, metrics: Iterable[str]
) -> Iterator[tuple[Key, str]]:
    """Yield the key and a message for each expectation of a metric that a problem lacks."""
    for side, metric, bound in expect.bounds():
        if metric not in metrics:
            key = f"{side.value}_{metric}"
            fix = f"{problem} reports {', '.join(metrics)}; remove it"
            yield ("expect", key), f"expect.{key} is {bound}, but {fix}"
