"""Runs CUDA kernels on the host: a simulation, for tests where there is no GPU.

The host's C++ compiler compiles the source after a header that defines CUDA's keywords. Blocks and
threads run one after another on host memory. The interface is that of `cupy.RawModule`. Its run
time says nothing about a GPU.
"""

from __future__ import annotations

import ctypes
import hashlib
import platform
import re
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
HEADER = HERE / "host_cuda.h"
LIBRARIES = (
    HERE.parent / ".pytest_cache" / "host_cuda"
)  # what was compiled, for other processes too
COMPILER = next(filter(None, map(shutil.which, ("c++", "g++", "clang++"))), None)
# Each operation rounds by itself, as on a GPU; and a pointer may be cast as in CUDA. Tests run a
# kernel for a moment: more optimization takes longer than it saves.
FLAGS = ("-O0", "-ffp-contract=off", "-fno-strict-aliasing", "-fsanitize=alignment", "-fPIC", "-w")
HALF_FLAGS = {"x86_64": ("-mf16c",), "AMD64": ("-mf16c",)}.get(platform.machine(), ())


class MisalignedAddressError(RuntimeError):
    """A kernel used an address that is not a multiple of the size of its access."""


class RawModule:
    """The kernels of a CUDA source, to be run on host memory.

    Args:
        code: the source.
        options: of the CUDA compiler; definitions and the language's version matter here.
    """

    def __init__(self, *, code, options=()):
        self._library = ctypes.CDLL(str(compiled(code, tuple(options))))

    def get_function(self, name):
        """Return a kernel."""
        return Kernel(getattr(self._library, f"host_{name}"))


class Kernel:
    """A kernel, called as CuPy's are: `kernel(grid, block, arguments)`."""

    def __init__(self, function):
        self._function = function

    def __call__(self, grid, block, args, *, shared_mem=0, stream=None, blocks=None):
        """Run it to its end; of the grid those `blocks`, a range, or all."""
        del shared_mem, stream  # there is one memory, and nothing runs beside
        values = [as_c(value) for value in args]
        pointers = (ctypes.c_void_p * len(values))(*map(ctypes.addressof, values))
        first, last = (blocks.start, blocks.stop) if blocks else (0, grid[0])
        if self._function(grid[0], block[0], first, last, pointers):
            raise MisalignedAddressError("CUDA_ERROR_MISALIGNED_ADDRESS: misaligned address")


def as_c(value):
    """Turn an argument into the C value that CuPy passes for it."""
    for interface in ("__cuda_array_interface__", "__array_interface__"):
        if hasattr(value, interface) and not isinstance(value, np.generic):
            return ctypes.c_void_p(getattr(value, interface)["data"][0])
    if isinstance(value, np.generic):
        return np.ctypeslib.as_ctypes_type(value.dtype)(value.item())
    return {int: ctypes.c_longlong, float: ctypes.c_double}[type(value)](value)


@cache
def compiled(code, options):
    """Compile a source to a shared library, unless that was done before; return its path.

    Raises:
        subprocess.CalledProcessError: the compiler refused it; what it said is on stderr.
    """
    kept = [option for option in options if option.startswith(("-D", "-std="))]
    header = HEADER.read_text()
    command = [COMPILER, *FLAGS, *HALF_FLAGS, *kept]
    key = hashlib.sha256("\0".join([*command, header, code]).encode()).hexdigest()[:24]
    path = LIBRARIES / f"{key}.so"
    if not path.exists():
        LIBRARIES.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=LIBRARIES) as folder:
            _build(command, header + code, Path(folder)).replace(path)
    return path


def _build(command, text, folder):
    source, built, library = folder / "source.cpp", folder / "source.o", folder / "library.so"
    source.write_text(text)
    seen = subprocess.run([*command, "-E", source], capture_output=True, text=True, check=True)
    names = re.findall(r"__attribute__\(\(used\)\)\s+void\s+(\w+)", seen.stdout)
    source.write_text(text + "".join(f"HOST_KERNEL({name})\n" for name in names))
    subprocess.run([*command, "-c", source, "-o", built], check=True)
    # Without -fsanitize, which would bring its own handler in place of the header's.
    subprocess.run([COMPILER, "-shared", built, "-o", library], check=True)
    return library
