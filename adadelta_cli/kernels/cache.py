"""Numba's cache on disk: recompile what cannot be read or written, and what has changed.

Numba itself raises what unpickling a damaged file raises, at each start until the file is deleted.
And it recompiles a function when its own file has changed, but not when one that it calls has: the
old code of another module would go on working, on memory that the new code lays out otherwise.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numba
from numba.core import sigutils
from numba.core.caching import FunctionCache
from numba.core.ccallback import CFunc

if TYPE_CHECKING:
    from collections.abc import Callable


@functools.cache
def sources() -> str:
    """Return a digest of all modules with compiled functions."""
    package = Path(__file__).parents[1]
    files = sorted(
        f for folder in ("kernels", "mxnet_bridge", "torch") for f in package.glob(f"{folder}/*.py")
    )
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


class _Cache(FunctionCache):
    """A cache that treats damaged files, and those of other sources, as missing."""

    def _index_key(self, signature: Any, codegen: Any) -> tuple[Any, ...]:
        return (*super()._index_key(signature, codegen), sources())

    def load_overload(self, signature: Any, context: Any) -> Any:
        """Load a compiled function; None if it is missing or damaged."""
        try:
            return super().load_overload(signature, context)
        except Exception:  # noqa: BLE001 - unpickling damaged files raises many types
            return None

    def save_overload(self, signature: Any, data: Any) -> None:
        """Save a compiled function; discard all others first if the index is damaged."""
        with contextlib.suppress(OSError):  # a full disk: do without
            try:
                super().save_overload(signature, data)
            except OSError:
                raise
            except Exception:  # noqa: BLE001 - as above
                self.flush()
                super().save_overload(signature, data)


def njit(*, cache: bool, **options: Any) -> Callable[[Any], Any]:
    """Compile as `numba.njit` does, with this cache; without one if no folder is writable."""

    def decorate(function: Any) -> Any:
        dispatcher = numba.njit(**options)(function)
        if cache and not numba.config.DISABLE_JIT:
            with contextlib.suppress(RuntimeError):  # no locator available
                dispatcher._cache = _Cache(function)  # noqa: SLF001 - as Dispatcher.enable_caching
        return dispatcher

    return decorate


class _CFunc(CFunc):
    """A C function with this cache."""

    _pyfunc: Any

    def enable_caching(self) -> None:
        """Cache it on disk, unless no folder is writable."""
        with contextlib.suppress(RuntimeError):
            self._cache = _Cache(self._pyfunc)


def cfunc(signature: Any) -> Callable[[Any], CFunc]:
    """Compile a C function as `numba.cfunc` does, with this cache."""

    def decorate(function: Any) -> CFunc:
        types = sigutils.normalize_signature(signature)
        made = _CFunc(function, types, locals={}, options={"nopython": True})
        made.enable_caching()
        made.compile()
        return made

    return decorate
