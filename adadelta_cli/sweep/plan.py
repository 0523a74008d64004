"""What a sweep runs: the settings, the seeds, and one job for each run."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adadelta_cli.errors import UsageError, shortened
from adadelta_cli.run import config as configs
from adadelta_cli.run import yaml12
from adadelta_cli.run.config import MOST_ERRORS, Expect
from adadelta_cli.run.sweep_section import SweepSettings
from adadelta_cli.sweep import axes as axis_module

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from adadelta_cli.implementations.array_backends import Device
    from adadelta_cli.run.config import Config, ConfigSource
    from adadelta_cli.sweep.axes import Axis

MOST_RUNS = 10_000
LARGEST_SEED = 2**32 - 1
NOTHING_VARIES = (
    "{reference}: nothing varies, so there is only one run; name what varies: --grid "
    "optimizer.rho=0.9,0.95, --seeds 3, or a section sweep: in the config"
)


@dataclass(frozen=True)
class Request:
    """What the command line asks for; None is the config's own or the default.

    Attributes:
        overrides: as `config.load_config` takes them.
        grid: `KEY=V1,V2` or `KEY=RANGE` each; replaces the config's values of that key.
        sample: number of settings to draw.
        seeds, seed: number of seeds, and the first one.
        metric: what the best setting is chosen by.
        most_runs: the largest number of runs.
        how: fused, dtype: as in `Trainer`.
    """

    overrides: tuple[str, ...] = ()
    grid: tuple[str, ...] = ()
    sample: int | None = None
    seeds: int | None = None
    seed: int = 0
    metric: str | None = None
    most_runs: int = MOST_RUNS
    how: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Setting:
    """The values of the keys that vary, and the config that they make."""

    values: dict[str, Any]
    config: Config

    @property
    def text(self) -> str:
        """The values in one line."""
        return ", ".join(f"{key}={yaml12.flow(each)}" for key, each in self.values.items())


@dataclass(frozen=True)
class Job:
    """One run; all that its result depends on, except for the machine.

    Attributes:
        name: the config's.
        config: without expectations, which are about medians, and without the section `sweep`.
        backend: the name of an array library.
        how: `fused` and `dtype`, as `Trainer` takes them.
    """

    name: str
    config: Config
    seed: int
    backend: str
    device: Device
    how: dict[str, Any]

    def identity(self, versions: Mapping[str, str]) -> str:
        """Return a hash of everything that decides the result, the content of files included."""
        settings = self.config.model_dump(mode="json", exclude={"expect", "sweep"})
        document = {
            "config": _with_digests(settings),
            "seed": self.seed,
            "backend": self.backend,
            "device": self.device.kind,
            **self.how,
            "versions": {name: versions[name] for name in sorted(versions)},
        }
        text = json.dumps(document, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Plan:
    """A sweep of one config, validated.

    Attributes:
        name: the config's file without its ending.
        reference: the config as the user named it.
        keys: those that vary, dotted.
        settings: in the order of the rows.
        expect: about the medians over the seeds.
        metric: what the best setting is chosen by; None for the loss.
        asked: the number of settings that were asked for: the axes may have fewer.
    """

    name: str
    reference: str
    request: Request
    keys: tuple[str, ...]
    axes: tuple[Axis, ...]
    settings: tuple[Setting, ...]
    seeds: tuple[int, ...]
    expect: Expect
    metric: str | None
    asked: int

    @classmethod
    def of(cls, reference: str, request: Request) -> Plan:
        """Plan the sweep of a config.

        Raises:
            UsageError: the config, an axis or a combination of values is invalid, nothing varies,
                or there are too many runs.
        """
        source = configs.open_config(reference, request.overrides)
        own = source.config().sweep if _is_complete(source) else _section_only(source)
        axes = _axes(source, own, request)
        sample = own.sample if request.sample is None else request.sample
        seeds = request.seeds or own.seeds or 1
        _check_seeds(seeds, request)
        _check_axes(reference, axes, sample, seeds)
        asked = axis_module.count(axes) if sample is None else sample
        _check_number(reference, asked * seeds, request.most_runs)
        settings = _settings(source, axes, _values(axes, sample, request.seed))
        return cls(
            name=configs.locate(reference).stem,
            reference=reference,
            request=request,
            keys=tuple(each.key for each in axes),
            axes=tuple(axes),
            settings=settings,
            seeds=tuple(range(request.seed, request.seed + seeds)),
            expect=settings[0].config.expect,
            metric=own.metric if request.metric is None else request.metric,
            asked=asked,
        )

    def jobs(self, backend: str, device: Device) -> list[Job]:
        """Return the job of each row: for each setting, all seeds."""
        nothing = {"expect": Expect(), "sweep": SweepSettings()}
        bare = [each.config.model_copy(update=nothing) for each in self.settings]
        how = dict(self.request.how)
        return [
            Job(self.name, config, seed, backend, device, how)
            for config in bare
            for seed in self.seeds
        ]


def plans(reference: str, request: Request) -> list[Plan]:
    """Plan the sweep of a config, or of each config in a folder.

    Args:
        reference: a YAML file, a folder of them, or the name of either among the bundled configs.
        request: what to vary.

    Raises:
        UsageError: as `Plan.of`, or the folder has no configs.
    """
    return [Plan.of(each, request) for each in references(reference)]


def references(reference: str) -> list[str]:
    """List the configs that a reference stands for: itself, or those in the folder it names."""
    bundled = configs.folder() / reference
    if Path(reference).name == reference and _is_folder(bundled):
        return [f"{reference}/{path.stem}" for path in sorted(bundled.glob("*.yaml"))]
    if not _is_folder(Path(reference)):
        return [reference]
    found = sorted(map(str, Path(reference).glob("*.yaml")))
    if not found:
        raise UsageError(
            f"{shortened(reference)} is a folder without configs; expected files NAME.yaml in it"
        )
    return found


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except (OSError, ValueError):  # too long, or a NUL; `locate` reports it
        return False


def _is_complete(source: ConfigSource) -> bool:
    """Return whether the config is valid as it is; else an axis may provide what it lacks."""
    try:
        source.config()
    except UsageError:
        return False
    return True


def _section_only(source: ConfigSource) -> SweepSettings:
    """Read the section `sweep` of a config that is invalid without the values of the axes."""
    section = source.root.get("sweep", {})
    try:
        return SweepSettings.model_validate(section)
    except ValueError:
        source.config()  # names the key and its place
        raise


def _axes(source: ConfigSource, own: SweepSettings, request: Request) -> list[Axis]:
    """Return the config's axes and those of the options, which replace the config's."""
    places = {key: source.place(("sweep", "grid", key)) for key in own.grid}
    found = {each.key: each for each in axis_module.grid_axes(own.grid, places)}
    given: dict[str, Axis] = {}
    for option in request.grid:
        each = axis_module.parse_grid(option)
        if each.key in given:
            raise UsageError(f"{each.where}: {each.key} has a --grid already; list all values once")
        given[each.key] = each
    found |= given
    fixed = {option.partition("=")[0].strip() for option in request.overrides}
    for key, each in found.items():
        if key in fixed:
            raise UsageError(
                f"{each.where}: {key} varies, and --set sets it; leave out one of them"
            )
        if key.partition(".")[0] in {"expect", "sweep"}:
            raise UsageError(f"{each.where}: {key} is no setting of a run; vary another key")
    return list(found.values())


def _check_seeds(number: int, request: Request) -> None:
    last = request.seed + number - 1
    if last > LARGEST_SEED:
        raise UsageError(
            f"--seeds {number} from --seed {request.seed} on ends at {last}, which is more than "
            f"{LARGEST_SEED}; begin at a smaller --seed"
        )


def _check_axes(reference: str, axes: Sequence[Axis], sample: int | None, seeds: int) -> None:
    ranges = [each for each in axes if each.kind]
    if ranges and sample is None:
        raise UsageError(
            f"{ranges[0].where}: {ranges[0].key} is a range; say how many settings to draw: "
            "--sample 20"
        )
    if sample is not None and not axes:
        raise UsageError(
            f"{shortened(reference)}: --sample has nothing to draw from; add --grid "
            "optimizer.epsilon=log:1e-8:1e-2"
        )
    if not axes and seeds == 1:
        raise UsageError(NOTHING_VARIES.format(reference=shortened(reference)))


def _check_number(reference: str, number: int, most: int) -> None:
    if number > most:
        raise UsageError(
            f"{shortened(reference)}: {number:,} runs; at most {most:,} are allowed. Leave out "
            f"values, draw some of the settings with --sample, or allow more with --max-runs"
        )


def _values(axes: Sequence[Axis], sample: int | None, seed: int) -> list[tuple[Any, ...]]:
    lists = not any(each.kind for each in axes)
    if sample is None or (lists and sample >= axis_module.count(axes)):
        return list(axis_module.combinations(axes))
    return axis_module.drawn(axes, sample, seed)


def _settings(
    source: ConfigSource, axes: Sequence[Axis], values: Sequence[tuple[Any, ...]]
) -> tuple[Setting, ...]:
    """Validate all settings.

    Raises:
        UsageError: some are invalid; the message has a line for each of the first ones.
    """
    settings: dict[str, Setting] = {}
    errors: dict[str, None] = {}
    for each in values:
        pairs = list(zip(axes, each, strict=True))
        try:
            config = source.varied(axis.variation(value) for axis, value in pairs).config()
        except UsageError as error:
            errors |= dict.fromkeys(str(error).splitlines())
            continue
        setting = Setting({axis.key: _resolved(config, axis.key, v) for axis, v in pairs}, config)
        whole = config.model_dump_json()
        if whole in settings:
            raise UsageError(f"{axes[0].where}: two settings are {setting.text}; give each once")
        settings[whole] = setting
    if errors:
        lines, more = list(errors)[:MOST_ERRORS], len(errors) - MOST_ERRORS
        raise UsageError(*lines, *([f"... and {more:,} more"] if more > 0 else []))
    return tuple(settings.values())


def _resolved(config: Config, key: str, value: Any) -> Any:
    """Return a config's own value of a key: a path is absolute there, and 1 may be 1.0.

    Of a whole section, only what was given: its other keys have their defaults.
    """
    node: Any = config.model_dump(mode="json")
    for part in key.split("."):
        if not isinstance(node, dict) or part not in node:
            return value
        node = node[part]
    if isinstance(node, dict) and isinstance(value, dict):
        return {part: _resolved(config, f"{key}.{part}", each) for part, each in value.items()}
    return node


# --- identity -------------------------------------------------------------------------------------


def _with_digests(value: Any) -> Any:
    """Replace the absolute path of each file by its name and the hash of its content."""
    if isinstance(value, dict):
        return {key: _with_digests(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_with_digests(each) for each in value]
    return _digest(value) if isinstance(value, str) else value


@cache
def _digest(text: str) -> Any:
    for name, rest in _file_names(text):
        path = Path(name)
        if path.is_absolute() and path.is_file():
            with path.open("rb") as file:
                return [path.name + rest, _sha256(file)]
    return text


def _file_names(text: str) -> Iterator[tuple[str, str]]:
    """Yield a path, and that before a colon, as in `FILE.py:NAME`, with what follows it."""
    yield text, ""
    before, colon, after = text.rpartition(":")
    if colon:
        yield before, colon + after


def _sha256(file: Any) -> str:
    digest = hashlib.sha256()
    while portion := file.read(1 << 20):
        digest.update(portion)
    return digest.hexdigest()
