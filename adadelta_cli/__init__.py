"""Run, verify and benchmark the AdaDelta optimizer; and a fused AdaDelta step for MXNet.

Nothing heavy is imported here: the public names are imported when they are first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from adadelta_cli.mxnet_bridge.optimizer import AdaDelta, load_states
    from adadelta_cli.verification.api import assert_correct, verify

__all__ = ["AdaDelta", "assert_correct", "load_states", "verify"]

_MODULE_OF = {
    "AdaDelta": "mxnet_bridge.optimizer",
    "assert_correct": "verification.api",
    "load_states": "mxnet_bridge.optimizer",
    "verify": "verification.api",
}


def __getattr__(name: str) -> Any:
    """Import a public name on first use (PEP 562)."""
    from importlib import import_module, metadata

    if name == "__version__":
        return metadata.version("adadelta")
    if name in _MODULE_OF:
        return getattr(import_module(f"adadelta_cli.{_MODULE_OF[name]}"), name)
    raise AttributeError(f"module 'adadelta_cli' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
