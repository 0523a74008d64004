"""NVIDIA's run-time compiler, which needs neither a GPU nor a driver.

The wheel `nvidia-cuda-nvrtc-cu12` brings the library; its functions are those of the NVRTC manual,
https://docs.nvidia.com/cuda/nvrtc/.
"""

from __future__ import annotations

import ctypes
import importlib.util
from functools import cache
from pathlib import Path

OLDEST, NEWEST = 70, 120  # compute capabilities that the kernels are for, times ten


@cache
def library():
    """Load the newest NVRTC that is installed as a wheel; None where there is none."""
    spec = importlib.util.find_spec("nvidia")
    folders = spec.submodule_search_locations if spec else []
    paths = sorted(path for each in folders for path in Path(each).rglob("libnvrtc.so.*[0-9]"))
    return ctypes.CDLL(str(paths[-1])) if paths else None


def architectures():
    """List the compute capabilities from 7.0 to 12.0 that this NVRTC compiles for, times ten."""
    if library() is None:
        return []
    count = ctypes.c_int()
    library().nvrtcGetNumSupportedArchs(ctypes.byref(count))
    known = (ctypes.c_int * count.value)()
    library().nvrtcGetSupportedArchs(known)
    return [arch for arch in known if OLDEST <= arch <= NEWEST]


def compiled(code, options, arch, kind="PTX"):
    """Compile a source.

    Args:
        code: CUDA C++.
        options: of the compiler.
        arch: the compute capability, times ten.
        kind: `PTX`, a text; or `CUBIN`, machine code.

    Raises:
        ValueError: the compiler refused it; the message is what it said.
    """
    of = {"PTX": "compute", "CUBIN": "sm"}[kind]
    return _compiled(code, (*options, f"--gpu-architecture={of}_{arch}"), kind)


@cache
def _compiled(code, options, kind):
    nvrtc, program = library(), ctypes.c_void_p()
    nvrtc.nvrtcCreateProgram(ctypes.byref(program), code.encode(), b"source.cu", 0, None, None)
    try:
        texts = (ctypes.c_char_p * len(options))(*(option.encode() for option in options))
        if nvrtc.nvrtcCompileProgram(program, len(options), texts):
            raise ValueError(_result(program, "ProgramLog").decode())
        found = _result(program, kind)
    finally:
        nvrtc.nvrtcDestroyProgram(ctypes.byref(program))
    return found.rstrip(b"\0").decode() if kind == "PTX" else found


def _result(program, what):
    """Fetch what there is of a program: its log, its PTX, its machine code."""
    size = ctypes.c_size_t()
    getattr(library(), f"nvrtcGet{what}Size")(program, ctypes.byref(size))
    buffer = ctypes.create_string_buffer(size.value)
    getattr(library(), f"nvrtcGet{what}")(program, buffer)
    return buffer.raw
