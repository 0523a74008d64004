"""What there is to choose from: a name and a line about it."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable

    from adadelta_cli.run.config import Config

# What implementations are, by name.
STEPS = {
    "numpy": "the formula on NumPy arrays, one operation at a time: the reference",
    "numpy-fused": "the one-pass kernel on NumPy arrays",
    "cupy": "the formula on CuPy arrays, one operation at a time; --ctx gpu",
    "cupy-fused": "the one-pass kernel on CuPy arrays; --ctx gpu",
    "mxnet": "AdaDelta.step of this package, on MXNet arrays",
    "mxnet-fused": "AdaDelta.fused_step of this package, on MXNet arrays",
    "mxnet-stock": "mxnet.optimizer.AdaDelta, as MXNet ships it",
    "torch-fused": "adadelta_cli.torch.Adadelta",
    "torch": "torch.optim.Adadelta, one tensor at a time",
    "torch-foreach": "torch.optim.Adadelta with foreach",
    "torch-compile": "torch.optim.Adadelta, compiled by torch.compile",
    "optax": "optax.adadelta under jax.jit",
    "torch-adam-fused": "torch.optim.Adam(fused=True): another formula, bench only",
}
FUZZED = {
    "drawn": "cases drawn from the seed",
    "drawn:lengths": "tensors of every length, for a kernel of your own",
    "steady": "one step taken hundreds of times, for a kernel of your own",
}


class Entry(NamedTuple):
    """Something that an option or a config names."""

    name: str
    about: str


def cases() -> list[Entry]:
    """The cases of `verify --case`, those of `--full` included."""
    from adadelta_cli.verification import cases as catalogue
    from adadelta_cli.verification import fuzz

    fixed = [Entry(each.name, each.about) for each in catalogue.DEFAULT]
    more = [Entry(each.name, f"{each.about} (--full)") for each in catalogue.FULL]
    return [*fixed, *more, *(Entry(name, FUZZED[name]) for name in fuzz.COLLECTIVE)]


def implementations() -> list[Entry]:
    """The implementations of `--impl`; a kernel of one's own is named by its file."""
    from adadelta_cli.implementations import registry

    return [Entry(name, STEPS[name]) for name in (*registry.IMPLEMENTATIONS, *registry.YARDSTICKS)]


def models() -> list[Entry]:
    """The networks of `bench --model`."""
    from adadelta_cli.bench import workloads

    found = map(workloads.model, workloads.MODELS)
    return [Entry(each.name, f"{each.elements:,} in {len(each.shapes)} tensors") for each in found]


def problems() -> list[Entry]:
    """The problems of `problem.name`."""
    from adadelta_cli.run.problems import PROBLEMS

    return [Entry(name, _first_line(each)) for name, each in PROBLEMS.items()]


def optimizers() -> list[Entry]:
    """The optimizers of `optimizer.name`."""
    from adadelta_cli.run.optimizers import OPTIMIZERS

    return [Entry(name, _first_line(each)) for name, each in OPTIMIZERS.items()]


def configs() -> list[Entry]:
    """The configs that come with this program."""
    from adadelta_cli.run import config

    names = (*config.shipped(), *config.grouped())
    return [Entry(name, _about(config.load_config(name))) for name in names]


def _about(settings: Config) -> str:
    training = settings.training
    length = f"{training.steps} steps" if training.epochs is None else f"{training.epochs} epochs"
    swept = f"; sweep over {', '.join(settings.sweep.grid)}" if settings.sweep.grid else ""
    return f"{settings.problem.name} by {settings.optimizer.name}, {length}{swept}"


def _first_line(kind: type) -> str:
    return (kind.__doc__ or "").strip().partition("\n")[0]


LISTS: dict[str, Callable[[], list[Entry]]] = {
    each.__name__: each for each in (cases, implementations, models, problems, optimizers, configs)
}
