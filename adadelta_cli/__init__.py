"""Run, verify and benchmark the AdaDelta optimizer; fused AdaDelta steps for MXNet and NumPy.

Nothing heavy is imported here: the public names are imported when they are first used.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from adadelta_cli.errors import AdadeltaError, BrokenError, UnavailableError, UsageError
    from adadelta_cli.kernels.step import FusedStep
    from adadelta_cli.mxnet_bridge.optimizer import AdaDelta, load_states
    from adadelta_cli.run.problems.problem import Problem
    from adadelta_cli.update import Parameter
    from adadelta_cli.verification.api import assert_correct, verify

_MODULE_OF = {
    "AdaDelta": "mxnet_bridge.optimizer",
    "AdadeltaError": "errors",
    "BrokenError": "errors",
    "FusedStep": "kernels.step",
    "Parameter": "update",
    "Problem": "run.problems.problem",
    "UnavailableError": "errors",
    "UsageError": "errors",
    "assert_correct": "verification.api",
    "load_states": "mxnet_bridge.optimizer",
    "verify": "verification.api",
}

__all__ = [
    "AdaDelta",
    "AdadeltaError",
    "BrokenError",
    "FusedStep",
    "Parameter",
    "Problem",
    "UnavailableError",
    "UsageError",
    "assert_correct",
    "load_states",
    "verify",
]


def __getattr__(name: str) -> Any:
    """Import a public name on first use (PEP 562)."""
    from importlib import import_module, metadata

    if name == "__version__":
        return metadata.version("adadelta")
    if name in _MODULE_OF:
        try:
            found = getattr(import_module(f"adadelta_cli.{_MODULE_OF[name]}"), name)
        except ImportError as error:
            return _unavailable(name, error)
        if name == "AdaDelta":
            _serve()
        return found
    raise AttributeError(f"module 'adadelta_cli' has no attribute {name!r}")


def _unavailable(name: str, error: ImportError) -> type:
    """Return a placeholder that raises the error when it is called.

    So `hasattr` and `from adadelta_cli import *` work without MXNet.
    """

    def fail(_cls: type, *_: Any, **__: Any) -> None:
        raise error

    return type(name, (), {"__new__": fail, "__doc__": f"Not available: {error}"})


def _serve() -> None:
    """Serve in a server or scheduler of a distributed training, as MXNet's own import does."""
    import os

    if os.environ.get("DMLC_ROLE") in {"server", "scheduler"}:
        from adadelta_cli.mxnet_bridge import server

        server.serve()
        sys.exit()


class _BeforeMxnet:
    """Restore `numpy.bool` when MXNet is imported: 2.0.0b1 uses it, and NumPy 1.24 removed it."""

    @staticmethod
    def find_spec(name: str, _path: object = None, _target: object = None) -> None:
        """Find nothing; Python asks here before it imports a module."""
        if name == "mxnet.numpy":
            import numpy as np

            vars(np).setdefault("bool", np.bool_)


sys.meta_path.insert(0, _BeforeMxnet)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
