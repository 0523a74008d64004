"""Numba's cache on disk, of which what cannot be read or written is compiled anew.

Numba itself raises whatever unpickling a damaged file raises, at each start until the file is gone.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import numba
from numba.core.caching import FunctionCache

if TYPE_CHECKING:
    from collections.abc import Callable


class _Cache(FunctionCache):
    """A cache that has nothing where its files are damaged."""

    def load_overload(self, signature: Any, context: Any) -> Any:
        """Load a compiled function; None where it is not there, or cannot be read."""
        try:
            return super().load_overload(signature, context)
        except Exception:  # noqa: BLE001 - unpickling raises many kinds on damaged files
            return None

    def save_overload(self, signature: Any, data: Any) -> None:
        """Save a compiled function, in place of all if the index is damaged."""
        with contextlib.suppress(OSError):  # of a full disk: it works without
            try:
                super().save_overload(signature, data)
            except OSError:
                raise
            except Exception:  # noqa: BLE001 - as above
                self.flush()
                super().save_overload(signature, data)


def njit(*, cache: bool, **options: Any) -> Callable[[Any], Any]:
    """Compile as `numba.njit` does, with this cache; without one where no folder can be written."""

    def compiling(function: Any) -> Any:
        dispatcher = numba.njit(**options)(function)
        if cache and not numba.config.DISABLE_JIT:
            with contextlib.suppress(RuntimeError):  # no locator available
                dispatcher._cache = _Cache(function)  # noqa: SLF001 - as Dispatcher.enable_caching
        return dispatcher

    return compiling


def cfunc(signature: Any) -> Callable[[Any], Any]:
    """Compile a C function as `numba.cfunc` does, anew where the cache is damaged."""

    def compiling(function: Any) -> Any:
        try:
            return numba.cfunc(signature, nopython=True, cache=True)(function)
        except Exception:  # noqa: BLE001 - as above; what is wrong with the function is raised now
            return numba.cfunc(signature, nopython=True)(function)

    return compiling
