"""Rows to CSV, JSON, tables and plots, a module a command.

Nothing is computed here; nothing is formatted elsewhere.
"""

from __future__ import annotations

import os

from adadelta_cli.errors import UnavailableError, in_one_line


def check_pictures() -> None:
    """See that pictures can be drawn, before the work that they are to show.

    Raises:
        UnavailableError: Matplotlib does not load, as under an MPLBACKEND that it does not know.
    """
    try:
        import matplotlib.figure  # noqa: F401
    except (ImportError, OSError, ValueError) as error:
        backend = os.environ.get("MPLBACKEND")
        cause = f" (MPLBACKEND is {backend!r}; unset it, or make it agg)" if backend else ""
        raise UnavailableError(
            f"Matplotlib, which draws the pictures, does not load{cause}: {in_one_line(error)}"
        ) from error
