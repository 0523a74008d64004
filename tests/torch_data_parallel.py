"""One of two processes that train one model on halves of each batch; test_data_parallel.py runs it.

Usage: torch_data_parallel.py RANK FOLDER MODULE..., where each module has an `Adadelta`.
"""

import importlib
import itertools
import sys
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn

DTYPES = "float32", "float64"
STEPS, ROWS, WORLD = 10, 8, 2
TIMEOUT = timedelta(seconds=180)  # of a rendezvous and of a collective operation
SETTINGS = {"lr": 0.8, "weight_decay": 0.01}
MODES = {  # arguments of DistributedDataParallel, and of ZeroRedundancyOptimizer
    "ddp": ({}, None),
    "ddp-view": ({"gradient_as_bucket_view": True}, None),
    "ddp-static": ({"static_graph": True, "bucket_cap_mb": 0.0001}, None),
    "zero": ({}, {}),
    "zero-view": ({"gradient_as_bucket_view": True}, {"parameters_as_bucket_view": True}),
}


def model_of(dtype):
    """Make the model, the same in each process."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 40), nn.Tanh(), nn.Linear(40, 2)).to(dtype)


def loss_of(model, step, rows, dtype):
    """Compute the loss on some rows of a batch."""
    generator = torch.Generator().manual_seed(step)
    given, wanted = (torch.randn(ROWS, n, generator=generator, dtype=dtype) for n in (6, 2))
    return nn.functional.mse_loss(model(given[rows]), wanted[rows])


def train(model, optimizer, rows, dtype):
    """Train on some rows of each batch; return each step's gradients."""
    grads = []
    for step in range(STEPS):
        optimizer.zero_grad(set_to_none=step % 2 == 0)
        loss_of(model, step, rows, dtype).backward()
        grads.append([each.grad.clone() for each in model.parameters()])
        optimizer.step()
    return grads


def train_in_parallel(module, mode, dtype, rank):
    """Train with others; return weights, gradients and the optimizer's `state_dict`, on rank 0."""
    kind = importlib.import_module(module).Adadelta
    parallel, zero = MODES[mode]
    model = nn.parallel.DistributedDataParallel(model_of(dtype), **parallel)
    if zero is None:
        optimizer = kind(model.parameters(), **SETTINGS)
    else:
        from torch.distributed.optim import ZeroRedundancyOptimizer  # it warns at its import

        optimizer = ZeroRedundancyOptimizer(model.parameters(), kind, **zero, **SETTINGS)
    grads = train(model, optimizer, slice(rank, None, WORLD), dtype)
    if zero is not None:
        optimizer.consolidate_state_dict(to=0)
    saved = optimizer.state_dict() if zero is None or rank == 0 else None
    return [each.detach() for each in model.parameters()], grads, saved


def main(rank, folder, *modules):
    """Train each class in each way; save the results."""
    rank, folder = int(rank), Path(folder)
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=WORLD, timeout=TIMEOUT
    )
    found = {
        each: train_in_parallel(*each[:2], getattr(torch, each[2]), rank)
        for each in itertools.product(modules, MODES, DTYPES)
    }
    torch.save(found, folder / f"{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
