"""Problems of the user's own: import the class, check what it is and what it returns."""

from __future__ import annotations

import ast
import contextlib
import hashlib
import inspect
import traceback
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
from pydantic import AfterValidator, ConfigDict, WithJsonSchema

from adadelta_cli import inputs, user_code
from adadelta_cli.errors import (
    AdadeltaError,
    UnavailableError,
    UsageError,
    in_one_line,
    shortened,
    shown,
    suggestion,
)
from adadelta_cli.run.problems.problem import Problem, Section
from adadelta_cli.run.result import COLUMNS

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from types import ModuleType
    from typing import TypeGuard

FORM = "FILE.py:NAME"


def _check_form(value: Any) -> str:
    path, _, name = value.rpartition(":") if isinstance(value, str) else ("", "", "")
    if not (path.endswith(".py") and name.isidentifier()):
        raise ValueError("not a file and a class")
    return value


# Not a str to pydantic, which takes no bytes that are not UTF-8, as a file's name may have.
ClassName = Annotated[
    Any,
    AfterValidator(_check_form),
    WithJsonSchema({"type": "string", "pattern": r"\.py:\w+$", "title": FORM}),
]


class PythonSettings(Section):
    """A problem of your own: all other keys are arguments of the class."""

    model_config = ConfigDict(extra="allow")

    name: Literal["python"] = "python"
    python: ClassName
    """FILE.py:NAME, a subclass of adadelta_cli.Problem; relative to this file's folder."""


class UserProblem(Problem):
    """A problem of the user's own, with checks of all that it returns.

    Raises:
        UsageError: something about it is wrong; the message names its file and line.
        UnavailableError: its file imports a library that is not installed.
    """

    def __init__(self, settings: PythonSettings, seed: int) -> None:
        path, _, name = settings.python.rpartition(":")
        self._path = Path(path)
        kind = self._class(name)
        self.name = name
        with self.calling("__init__"):
            self._inner = kind(**self._arguments(kind, settings.model_extra or {}, seed))
        self.start = self._checked_start()
        self.data = self._checked_data()
        self.optimum = self._checked_optimum()
        self.metrics = {"loss": "loss"}
        self.metrics = self._labels(self.evaluate([*self.start.values()]))

    # --- the class ---

    def _class(self, name: str) -> type[Problem]:
        reason = inputs.unreadable_reason(self._path)
        if reason:
            raise UsageError(
                f"problem.python is {shortened(self._path)}:{name}, and the file cannot be read: "
                f"{reason}. A relative path in a config starts at the folder of that file"
            )
        with self.calling("importing it"):
            module = _module(self._path, self._path.stat().st_mtime_ns)
        found = vars(module).get(name)
        self._line = _line_of(name, self._path)
        if not inspect.isclass(found):
            known = [key for key, each in vars(module).items() if _is_problem(each)]
            what = f"{name} is {shown(found)}" if found is not None else f"there is no {name}"
            listed = f"its problems are {', '.join(known)}" if known else "it defines no problem"
            raise self._error(f"{what}{suggestion(name, known)}; {listed}")
        if not _is_problem(found):
            raise self._error(
                f"{name} is no subclass of adadelta_cli.Problem; write class {name}(Problem)"
            )
        if found.loss is Problem.loss:
            raise self._error(
                f"{name} has no loss; define loss(self, xp, weights, *batch), which returns the "
                "objective, one number"
            )
        return found

    def _arguments(
        self, kind: type[Problem], settings: Mapping[str, Any], seed: int
    ) -> dict[str, Any]:
        """Return the arguments of the constructor: the settings, and the seed if it takes one."""
        parameters = inspect.signature(kind).parameters
        known = [name for name in parameters if name != "seed"]
        if "seed" in settings:
            raise self._error("problem.seed comes from the option --seed; leave it out")
        if not any(each.kind is each.VAR_KEYWORD for each in parameters.values()):
            for key in settings:
                if key not in known:
                    takes = f"takes {', '.join(known)}" if known else "takes no settings"
                    near = suggestion(key, known)
                    raise self._error(
                        f"problem.{shortened(key)} is unknown{near}; {self.name} {takes}"
                    )
        for name in known:
            each = parameters[name]
            plain = each.kind in {each.POSITIONAL_OR_KEYWORD, each.KEYWORD_ONLY}
            if plain and each.default is each.empty and name not in settings:
                raise self._error(f"problem.{name} is missing; {self.name} needs it")
        return {**settings, **({"seed": seed} if "seed" in parameters else {})}

    # --- its attributes ---

    def _checked_start(self) -> dict[str, np.ndarray]:
        start = self._attribute("start")
        if not isinstance(start, dict) or not start or not all(isinstance(k, str) for k in start):
            raise self._error(
                f"start is {shown(start)}; expected a dict with the initial tensors by name, such "
                "as {'weight': np.zeros(3)}"
            )
        return {name: self._numbers(f"start[{name!r}]", each) for name, each in start.items()}

    def _numbers(self, what: str, values: Any) -> np.ndarray:
        try:
            array = np.asarray(values)
            wrong = array.dtype.kind not in "fiu" or not np.isfinite(array).all()
        except (ValueError, TypeError):
            wrong = True
        if wrong:
            raise self._error(f"{what} is {shown(values)}; expected an array of finite numbers")
        return array.astype(np.float64)

    def _checked_data(self) -> tuple[np.ndarray, ...]:
        data = self._attribute("data")
        arrays = tuple(map(np.asarray, data)) if isinstance(data, (tuple, list)) else None
        if arrays is None or any(a.dtype.kind not in "fiub" or a.ndim == 0 for a in arrays):
            raise self._error(
                f"data is {shown(data)}; expected a tuple of arrays of numbers, with the samples "
                "along the first axis of each"
            )
        lengths = [len(each) for each in arrays]
        if len({*lengths}) > 1 or 0 in lengths:
            raise self._error(
                f"the arrays of data have {', '.join(map(str, lengths))} samples; expected the "
                "same number in each, and at least one"
            )
        return arrays

    def _checked_optimum(self) -> float | None:
        optimum = self._attribute("optimum")
        return optimum if optimum is None else self._number("optimum", optimum)

    def _attribute(self, name: str) -> Any:
        with self.calling(name):
            if name == "start" and not hasattr(self._inner, "start"):
                raise self._error("there is no start; set self.start, the initial tensors by name")
            return getattr(self._inner, name)

    def _number(self, what: str, value: Any) -> float:
        try:
            if getattr(value, "size", 1) == 1 and not isinstance(value, (str, bytes)):
                return float(value)
        except (TypeError, ValueError):
            pass
        raise self._error(f"{what} is {_described(value)}; expected one number")

    def _labels(self, measured: Mapping[str, float]) -> dict[str, str]:
        """Return the label of each metric: as the class says, else its name."""
        given = self._attribute("metrics")
        texts = isinstance(given, dict) and all(
            isinstance(e, str) for p in given.items() for e in p
        )
        if not texts or not given.keys() <= measured.keys():
            raise self._error(
                f"metrics is {shown(given)}; expected a dict with a label for each of "
                f"{', '.join(measured)}"
            )
        if not np.isfinite(measured["loss"]):
            raise self._error(f"the loss at the start is {measured['loss']}; expected a number")
        return {name: given.get(name, name) for name in measured}

    # --- its methods ---

    def loss(self, xp: Any, weights: Sequence[Any], *batch: Any) -> Any:
        """Call its loss.

        Raises:
            UsageError: it raised, or returned something else than one number.
        """
        with self.calling("loss"):
            loss = self._inner.loss(xp, _guarded(xp, weights), *_guarded(xp, batch))
        if xp is np:
            return self._number("what loss returned", loss)
        if not isinstance(loss, xp.ndarray) or loss.size != 1:
            raise self._error(
                f"what loss returned is {_described(loss)}; expected an array with one number, "
                "computed from the weights with xp and operators"
            )
        return loss

    def check_gradient(self) -> None:
        """Check that it has formulas for its gradient.

        Raises:
            UsageError: it has none.
        """
        if type(self._inner).gradient is Problem.gradient:
            raise self._error(
                f"{self.name} has no gradient, without which it trains on MXNet only (--backend "
                "mxnet), which differentiates the loss; define gradient(self, xp, weights, "
                "*batch), which returns the gradient of the loss for each tensor of start"
            )

    def gradient(self, xp: Any, weights: Sequence[Any], *batch: Any) -> list[Any]:
        """Call its gradient.

        Raises:
            UsageError: it raised, or it returned something else.
        """
        with self.calling("gradient"):
            grads = self._inner.gradient(xp, _guarded(xp, weights), *_guarded(xp, batch))
        shapes = [tuple(each.shape) for each in weights]
        if not isinstance(grads, (tuple, list)):
            raise self._error(f"what gradient returned is {_described(grads)}; expected a list")
        got = [_shape(each) for each in grads]
        if got != shapes:
            raise self._error(
                f"what gradient returned has the shapes {got}; expected those of start, {shapes}"
            )
        return [*grads]

    def measure(self, weights: Sequence[np.ndarray]) -> dict[str, float]:
        """Call its measure.

        Raises:
            UsageError: it raised, or returned something else than its metrics.
        """
        with self.calling("measure"):
            found = self._inner.measure(_guarded(np, weights))
        if not isinstance(found, dict) or not all(isinstance(key, str) for key in found):
            raise self._error(f"what measure returned is {shown(found)}; expected a dict by metric")
        if COLUMNS & found.keys():
            taken = ", ".join(sorted(COLUMNS & found.keys()))
            raise self._error(
                f"measure has a metric {taken}, which is a column of the tables already; rename it"
            )
        known = [name for name in self.metrics if name != "loss"]
        if known and [*found] != known:
            names = ", ".join(found)
            raise self._error(f"measure returned {names}, and before {', '.join(known)}")
        return {name: self._number(f"the metric {name}", each) for name, each in found.items()}

    @property
    def digest(self) -> str:
        """What identifies its file and its data."""
        source = hashlib.sha256(self._path.read_bytes())
        for values in self.data:
            source.update(np.ascontiguousarray(values).data)
        return source.hexdigest()

    # --- errors ---

    @contextlib.contextmanager
    def calling(self, what: str) -> Iterator[None]:
        """Turn what the user's code raises into a UsageError with its file and line."""
        try:
            yield
        except (AdadeltaError, MemoryError):
            raise
        except (Exception, SystemExit) as error:
            place = self._place(error)
            kind = UnavailableError if isinstance(error, ImportError) else UsageError
            raise kind(f"{place}: {what} raised {in_one_line(error)}; fix it there") from error

    def _place(self, error: BaseException) -> str:
        """Name the last line of the user's file that an exception passed through."""
        if isinstance(error, SyntaxError) and error.filename:
            return f"{error.filename}, line {error.lineno}"
        frames = traceback.extract_tb(error.__traceback__)
        lines = [frame.lineno for frame in frames if Path(frame.filename) == self._path.resolve()]
        line = lines[-1] if lines else getattr(self, "_line", 1)
        return f"{shortened(self._path)}, line {line}"

    def _error(self, reason: str) -> UsageError:
        return UsageError(f"{shortened(self._path)}, line {self._line}: {reason}")


@lru_cache(maxsize=8)  # several runs in one process share the module
def _module(path: Path, _changed_ns: int) -> ModuleType:
    return user_code.import_file(path.resolve())


def _line_of(name: str, path: Path) -> int:
    """Return the line of a class in a file that was imported; 1 if it is not defined there."""
    for node in ast.parse(path.read_bytes()).body:
        if isinstance(node, ast.ClassDef) and node.name == name:
            return node.lineno
    return 1


def _is_problem(value: Any) -> TypeGuard[type[Problem]]:
    return inspect.isclass(value) and issubclass(value, Problem) and value is not Problem


def _guarded(xp: Any, arrays: Sequence[Any]) -> list[Any]:
    """Return NumPy's arrays as read-only views: a problem computes, and changes nothing."""
    if xp is not np:
        return [*arrays]
    views = [np.asarray(each).view() for each in arrays]
    for each in views:
        each.flags.writeable = False
    return views


def _shape(value: Any) -> tuple[int, ...]:
    return tuple(getattr(value, "shape", np.shape(value)))


def _described(value: Any) -> str:
    shape = getattr(value, "shape", None)
    return f"an array of shape {list(shape)}" if shape else shown(value)
