"""Numba's cache on disk: recompile what cannot be read or written.

Numba itself raises what unpickling a damaged file raises, at each start until the file is deleted.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import numba
from numba.core.caching import FunctionCache

if TYPE_CHECKING:
    from collections.abc import Callable


class _Cache(FunctionCache):
    """A cache that treats damaged files as missing."""

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


def cfunc(signature: Any) -> Callable[[Any], Any]:
    """Compile a C function as `numba.cfunc` does; without the cache if it is damaged."""

    def decorate(function: Any) -> Any:
        try:
            return numba.cfunc(signature, nopython=True, cache=True)(function)
        except Exception:  # noqa: BLE001 - as above; an error of the function is raised here again
            return numba.cfunc(signature, nopython=True)(function)

    return decorate
