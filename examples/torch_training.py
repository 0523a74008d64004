"""Train a network in PyTorch with the fused step: python examples/torch_training.py."""

import torch

from adadelta_cli.torch import Adadelta


def train(epochs=200):
    """Fit a sine; return the loss before and after, and the optimizer."""
    torch.manual_seed(0)
    x = torch.linspace(-3, 3, 256)[:, None]
    y = torch.sin(x)
    model = torch.nn.Sequential(torch.nn.Linear(1, 64), torch.nn.Tanh(), torch.nn.Linear(64, 1))
    optimizer = Adadelta(model.parameters(), lr=1.0, rho=0.9)
    losses = []
    for _ in range(epochs):
        optimizer.zero_grad()
        loss = torch.nn.functional.mse_loss(model(x), y)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses[0], losses[-1], optimizer


if __name__ == "__main__":
    first, last, _ = train()
    print(f"loss: {first:.4f} at the start, {last:.4f} at the end")  # noqa: T201 - its result
