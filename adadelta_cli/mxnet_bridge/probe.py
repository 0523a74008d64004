"""Check MXNet on a GPU: was it built with CUDA, and does a small launch work?"""

from __future__ import annotations

from functools import cache

from adadelta_cli.errors import UnavailableError, in_one_line
from adadelta_cli.mxnet_bridge import runtime
from adadelta_cli.system import gpu
from adadelta_cli.system.gpu import GpuCheck
from adadelta_cli.system.sandbox import Sandbox, SandboxError

MXNET, CUPY = "MXNet's CUDA", "use the cupy backend"
LAUNCH_S = 120.0  # timeout of the first launch, which may compile kernels for this GPU


def build() -> GpuCheck:
    """Check whether MXNet is installed and was built with CUDA; launch nothing."""
    if not runtime.is_installed():
        return GpuCheck(MXNET, "MXNet is not installed", CUPY)
    try:
        with_cuda = runtime.load_mxnet().runtime.Features().is_enabled("CUDA")
    except UnavailableError as error:
        return GpuCheck(MXNET, str(error), CUPY)
    if with_cuda:
        return GpuCheck(MXNET, "built in")
    return GpuCheck(MXNET, "not built in; the wheels of 2.0.0b1 are without it", CUPY)


def launch(number: int) -> GpuCheck:
    """Check MXNet on a GPU by a small launch in this process, which it may crash.

    Args:
        number: the device's index.
    """
    found = build()
    if found.fix:
        return found
    mx = runtime.load_mxnet()
    try:
        one = mx.nd.ones(1, ctx=mx.gpu(number))
        (one + one).asnumpy()
    except mx.MXNetError as error:  # the message ends with a long stack trace
        return GpuCheck(MXNET, in_one_line(error).partition(" Stack trace")[0], CUPY)
    return GpuCheck(MXNET, "a small launch works")


@cache
def launches(number: int) -> GpuCheck:
    """Check MXNet on a GPU as `launch` does, in a child process."""
    if gpu.driver().fix:
        return GpuCheck(MXNET, "not tried: there is no driver", CUPY)
    with Sandbox(LAUNCH_S) as sandbox:
        try:
            return sandbox.call(launch, number)
        except SandboxError as error:
            return GpuCheck(MXNET, str(error), CUPY)
