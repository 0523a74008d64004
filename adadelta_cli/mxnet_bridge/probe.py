"""MXNet on a GPU: whether it was built for one, and whether a small launch works."""

from __future__ import annotations

from functools import cache

from adadelta_cli.errors import UnavailableError, in_one_line
from adadelta_cli.mxnet_bridge import runtime
from adadelta_cli.system import gpu
from adadelta_cli.system.gpu import GpuCheck
from adadelta_cli.system.sandbox import Sandbox, SandboxError

MXNET, CUPY = "MXNet's CUDA", "use --backend cupy"
LAUNCH_S = 120.0  # that MXNet's first launch may take: it may compile kernels for this GPU


def build() -> GpuCheck:
    """See whether there is an MXNet that was built with CUDA; nothing is launched."""
    if not runtime.is_installed():
        return GpuCheck(MXNET, "MXNet is not installed", CUPY)
    try:
        with_cuda = runtime.load_mxnet().runtime.Features().is_enabled("CUDA")
    except UnavailableError as error:
        return GpuCheck(MXNET, str(error), CUPY)
    if with_cuda:
        return GpuCheck(MXNET, "built with it")
    return GpuCheck(MXNET, "built without it, as the wheels of 2.0.0b1 are", CUPY)


def launch(number: int) -> GpuCheck:
    """Try MXNet on a device by a small launch, in this process, which it may end.

    Args:
        number: of the device.
    """
    found = build()
    if found.fix:
        return found
    mx = runtime.load_mxnet()
    try:
        one = mx.nd.ones(1, ctx=mx.gpu(number))
        (one + one).asnumpy()
    except mx.MXNetError as error:  # its message ends in a page of addresses
        return GpuCheck(MXNET, in_one_line(error).partition(" Stack trace")[0], CUPY)
    return GpuCheck(MXNET, "a small launch works")


@cache
def launches(number: int) -> GpuCheck:
    """Try MXNet on a device as `launch` does, in a process of its own."""
    if gpu.driver().fix:
        return GpuCheck(MXNET, "not tried, for there is no driver", CUPY)
    with Sandbox(LAUNCH_S) as sandbox:
        try:
            return sandbox.call(launch, number)
        except SandboxError as error:
            return GpuCheck(MXNET, str(error), CUPY)
