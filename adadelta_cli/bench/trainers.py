"""Trainings as a worker carries them out: forward and backward, then the update."""

from __future__ import annotations

import itertools
import math
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from adadelta_cli.bench import trainings
from adadelta_cli.bench.timing_problem import Outcome, TimingProblem
from adadelta_cli.implementations import frameworks
from adadelta_cli.implementations.array_backends import BACKENDS, import_library

if TYPE_CHECKING:
    from collections.abc import Callable


class Trainer(Protocol):
    """Trains a network, always on the same batch.

    Attributes:
        loss: after the first steps.
        distance: of the weights then from those of the reference, see `check_distance`; None where
            the loss is compared.
    """

    loss: float
    distance: float | None

    def backward(self) -> Any:
        """Compute the loss and the gradients, or start to."""

    def wait(self) -> None:
        """Wait until the work that was started is done."""

    def update(self) -> None:
        """Update the weights, and wait until it is done."""

    def variant(self) -> str:
        """Return how the update is taken, as `kernels.variants.parse` takes it; or nothing."""


# --- MXNet ----------------------------------------------------------------------------------------


class MxnetTrainer:
    """Train the MLP 784-500-300-10 through `gluon.Trainer`, on one batch of 100 random images.

    Args:
        name: of the implementation.
        seed: of the images, labels and weights.
    """

    BATCH = 100
    STEPS_TO_LOSS = 30
    distance: float | None = None

    def __init__(self, name: str, seed: int) -> None:
        from adadelta_cli.mxnet_bridge import runtime

        self._mx = mx = runtime.load_mxnet()
        BACKENDS["mxnet"]()
        random = np.random.default_rng(seed)
        mx.np.random.seed(seed)
        self._net = self._network(random)
        self._images = mx.np.array(random.standard_normal((self.BATCH, 784)), dtype="float32")
        self._labels = mx.np.array(random.integers(0, 10, self.BATCH))
        self._loss_of = mx.gluon.loss.SoftmaxCrossEntropyLoss()
        parameters = self._net.collect_params()
        self._trainer = mx.gluon.Trainer(parameters, self._optimizer(name), kvstore=None)
        for _ in range(self.STEPS_TO_LOSS):
            self.backward()
            self.update()
        self.loss = float(self.backward().mean().asnumpy())

    def _optimizer(self, name: str) -> Any:
        from adadelta_cli.mxnet_bridge.optimizer import AdaDelta

        if name == "mxnet-stock":
            return self._mx.optimizer.adadelta.AdaDelta()
        return AdaDelta(use_fused_step={"mxnet": False, "mxnet-fused": True}[name])

    def _network(self, random: np.random.Generator) -> Any:
        nn = self._mx.gluon.nn
        net = nn.HybridSequential()
        for units, activation in ((500, "relu"), (300, "relu"), (10, None)):
            net.add(nn.Dense(units, activation=activation))
        net.initialize()
        net.hybridize(static_alloc=True, static_shape=True)
        net(self._mx.np.zeros((self.BATCH, 784)))  # now the shapes are known
        for parameter in net.collect_params().values():
            values = random.standard_normal(parameter.shape) * 0.05
            parameter.set_data(self._mx.np.array(values, dtype="float32"))
        return net

    def backward(self) -> Any:
        """Start to compute the loss and the gradients; return the loss of each image."""
        with self._mx.autograd.record():
            loss = self._loss_of(self._net(self._images), self._labels)
        loss.backward()
        return loss

    def wait(self) -> None:
        """Wait for MXNet's engine."""
        self._mx.nd.waitall()

    def update(self) -> None:
        """Update the weights, and wait for MXNet's engine."""
        self._trainer.step(self.BATCH)
        self.wait()

    def variant(self) -> str:
        """Return nothing."""
        return ""


# --- PyTorch --------------------------------------------------------------------------------------

CHECKED_STEPS = 5
# At most 2.3e-7 was measured over 20 seeds. Both get the reference's gradients: with their own, a
# rounding error may decide which pixel a pooling takes, and the trainings part.
ALLOWED_DISTANCE = 2e-6


def check_distance(name: str, distance: float) -> TimingProblem | None:
    """Return what is wrong with weights at a distance from the reference's, if anything.

    Args:
        name: of the reference.
        distance: the 2-norm of the differences over that of the reference's way from its start.
    """
    if distance <= ALLOWED_DISTANCE:  # not for NaN
        return None
    return TimingProblem(
        Outcome.WRONG,
        f"after {CHECKED_STEPS} steps the weights are {distance:.1e} of their way from those of "
        f"{name}; allowed is {ALLOWED_DISTANCE:g}",
    )


def _mlp(nn: Any) -> Any:
    layers = [nn.Linear(*pair) for pair in itertools.pairwise(trainings.LAYERS)]
    return nn.Sequential(*(each for layer in layers for each in (layer, nn.ReLU())))[:-1]


def _cnn(nn: Any) -> Any:
    """Build the convolutions, each with a pooling, and a linear layer at the end."""
    layers: list[Any] = []
    for pair in itertools.pairwise(trainings.CHANNELS):
        layers += [nn.Conv2d(*pair, trainings.KERNEL, padding="same"), nn.ReLU(), nn.MaxPool2d(2)]
    classes, left = trainings.TRAININGS["torch-cnn"].shapes[-2]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(left, classes))


# By network: how it is built, and the shape of a batch.
NETWORKS: dict[str, tuple[Callable[[Any], Any], tuple[int, ...]]] = {
    "torch-mlp": (_mlp, (64, trainings.LAYERS[0])),
    "torch-cnn": (_cnn, (32, trainings.CHANNELS[0], trainings.SIDE, trainings.SIDE)),
}


class TorchTrainer:
    """Train a network of PyTorch's, as users do: eagerly, with gradients set to None before each.

    Args:
        network: a training of `TRAININGS`.
        name: of the implementation.
        seed: of the inputs, labels and weights.
    """

    def __init__(self, network: str, name: str, seed: int) -> None:
        self._torch = torch = import_library("torch")
        build, batch = NETWORKS[network]
        torch.manual_seed(seed)
        self._net, self._name = build(torch.nn), name
        self._inputs, self._labels = torch.randn(batch), torch.randint(trainings.CLASSES, batch[:1])
        self._optimizer, self.update = self._optimizer_of(name)
        self.start = self.weights
        self.loss = math.nan
        self.distance: float | None = math.nan

    @classmethod
    def checked(cls, network: str, name: str, seed: int) -> TorchTrainer:
        """Take the first steps, with the gradients of the reference."""
        reference = cls(network, trainings.TRAININGS[network].optimizers[0], seed)
        own = cls(network, name, seed)
        for _ in range(CHECKED_STEPS):
            reference.backward()
            own.take_grads(reference)
            reference.update()
            own.update()
        way = (reference.weights - reference.start).norm()
        own.distance = ((own.weights - reference.weights).norm() / way).item()
        own.loss = own.backward().item()
        return own

    def take_grads(self, other: TorchTrainer) -> None:
        """Copy the gradients of a network with the same weights."""
        for mine, its in zip(self._net.parameters(), other._net.parameters(), strict=True):
            mine.grad = its.grad.clone()

    @property
    def weights(self) -> Any:
        """All weights, one after the other, in double precision."""
        return self._torch.cat([p.detach().double().flatten() for p in self._net.parameters()])

    def _optimizer_of(self, name: str) -> tuple[Any, Callable[[], Any]]:
        """Return the optimizer of an implementation, and its step."""
        if name == "torch-fused":
            from adadelta_cli.torch import Adadelta

            own = Adadelta(self._net.parameters())
            return own, own.step
        stock = self._torch.optim.Adadelta(self._net.parameters(), foreach=True)
        if name == "torch-compile":
            return stock, frameworks.compiled_step(self._torch, stock.step)
        return stock, stock.step

    def backward(self) -> Any:
        """Compute the gradients; return the loss."""
        self._optimizer.zero_grad()
        loss = self._torch.nn.functional.cross_entropy(self._net(self._inputs), self._labels)
        loss.backward()
        return loss

    def wait(self) -> None:
        """Return at once: on a CPU, PyTorch's calls return when the work is done."""

    def variant(self) -> str:
        """Return how the fused step on all parameters is taken at present."""
        if self._name != "torch-fused":
            return ""
        from adadelta_cli.kernels import cpu, variants
        from adadelta_cli.torch.fused import LAYOUT_OF

        layout = LAYOUT_OF[self._torch.float32]
        function = cpu.range_function(layout, decays=False)
        return variants.best(function, self.weights.numel())


def trainer(network: str, name: str, seed: int) -> Trainer:
    """Make the trainer of a training in `TRAININGS`, and take its first steps."""
    if trainings.TRAININGS[network].library == "mxnet":
        return MxnetTrainer(name, seed)
    return TorchTrainer.checked(network, name, seed)
