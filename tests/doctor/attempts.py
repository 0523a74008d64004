"""What doctor's checks meet, in a module of its own: a child process imports it in no time."""

from __future__ import annotations

import signal

from adadelta_cli.errors import DeviceError
from adadelta_cli.system.sandbox import ReportedError


def crash():
    """End by a fault of memory."""
    signal.raise_signal(signal.SIGSEGV)


def is_killed():
    """End as by a lack of memory."""
    signal.raise_signal(signal.SIGKILL)


def cannot_cache():
    """Raise what Numba does where it cannot cache."""
    raise RuntimeError("cannot cache function '_update': no locator available for file 'x'")


def lacks_a_module():
    """Raise, since a module is missing."""
    try:
        import nonesuch.part  # noqa: F401
    except ImportError as error:
        raise ValueError("does not load") from error


def lacks_memory():
    """Raise what Python does without memory."""
    raise MemoryError


def knows_the_fix():
    """Report an error with its fix."""
    raise ReportedError("numba 0.1", "pip install numba")


def loses_the_device():
    """Raise what a lost device does."""
    raise DeviceError("the GPU failed", 700)


def fine():
    """Work."""
    return "fine"


def no_gizmo():
    """Say what is not installed."""
    return "gizmo not installed"
