"""Record the gradients of a training for `verify --replay`."""

from __future__ import annotations

import io
import json
from typing import TYPE_CHECKING

import numpy as np

from adadelta_cli import files
from adadelta_cli.errors import UsageError
from adadelta_cli.implementations.optimizers import ADADELTA

if TYPE_CHECKING:
    from pathlib import Path

    from adadelta_cli.run.config import Config
    from adadelta_cli.run.trainer import Trainer

LARGEST_RECORD_BYTES = 2 << 30  # the gradients of all steps are held in memory


class Recorder:
    """Collects the gradient of each step.

    The file is an npz archive of

    - `weight/<tensor>`: the weights before the first step, in the run's dtype (for float16, the
      float16 weights, which are also the first masters);
    - `grad/<tensor>`: shape (steps, *shape of the tensor), the same dtype, before rescaling,
      clipping and weight decay;
    - `hyperparameters`: a text, JSON, the arguments of `update.Hyperparameters`;
    - `dtype`: a text, the run's `--dtype`.

    Raises:
        UsageError: the optimizer is not AdaDelta, or the gradients would take more than
            LARGEST_RECORD_BYTES.
    """

    def __init__(self, path: Path, trainer: Trainer, config: Config, dtype: str) -> None:
        self._path = path
        self._trainer = trainer
        if config.optimizer.name != ADADELTA:
            raise UsageError(
                "--record-gradients is for verify --replay, which takes AdaDelta steps only; "
                f"optimizer.name is {config.optimizer.name}: make it {ADADELTA}, or leave the "
                "option out"
            )
        hyper = config.optimizer.model_dump(exclude={"name"})
        self._texts = {"hyperparameters": json.dumps(hyper), "dtype": dtype}
        state = trainer.state()
        self._weights = {key: value for key, value in state.items() if key.startswith("weight/")}
        size = trainer.total * sum(value.nbytes for value in self._weights.values())
        if size > LARGEST_RECORD_BYTES:
            raise UsageError(
                f"--record-gradients would hold {size / 2**30:.1f} GiB of gradients; allowed are "
                f"{LARGEST_RECORD_BYTES / 2**30:.0f} GiB: take fewer steps"
            )
        self._grads: dict[str, list[np.ndarray]] = {name: [] for name in trainer.parameters}

    def add(self) -> None:
        """Copy the gradient of the last step."""
        for name, p in self._trainer.parameters.items():
            self._grads[name].append(self._trainer.backend.numpy(p.grad))

    def write(self) -> None:
        """Write the file."""
        grads = {f"grad/{name}": np.array(each) for name, each in self._grads.items()}
        content = io.BytesIO()
        np.savez(content, **self._weights, **grads, **self._texts)
        files.write_bytes(self._path, content.getvalue())
