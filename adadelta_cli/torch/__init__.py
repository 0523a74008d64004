"""`Adadelta` for PyTorch: `torch.optim.Adadelta` with the fused step.

Example:
    >>> from adadelta_cli.torch import Adadelta
    >>> import torch
    >>> weight = torch.nn.Parameter(torch.zeros(3))
    >>> optimizer = Adadelta([weight])
    >>> weight.sum().backward()
    >>> optimizer.step()
"""

from __future__ import annotations

from importlib.util import find_spec

from adadelta_cli.errors import UnavailableError

if find_spec("torch") is None:
    raise UnavailableError(
        "adadelta_cli.torch needs PyTorch, which is not installed; python -m pip install "
        "'adadelta[torch]'"
    )

from adadelta_cli.torch.optimizer import Adadelta

__all__ = ["Adadelta"]
