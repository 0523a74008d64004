"""Train a network in MXNet with the fused step: python examples/mxnet_training.py."""

from adadelta_cli import AdaDelta  # before mxnet: it adds what MXNet misses in NumPy 1.26
import mxnet as mx


def train(epochs=200):
    """Fit a sine; return the loss before and after, and the trainer."""
    mx.npx.set_np()
    mx.random.seed(0)
    x = mx.np.linspace(-3, 3, 256).reshape(-1, 1)
    y = mx.np.sin(x)
    net = mx.gluon.nn.HybridSequential()
    net.add(mx.gluon.nn.Dense(64, activation="tanh"), mx.gluon.nn.Dense(1))
    net.initialize(mx.init.Xavier())
    trainer = mx.gluon.Trainer(net.collect_params(), AdaDelta(use_fused_step=True))
    losses = []
    for _ in range(epochs):
        with mx.autograd.record():
            loss = ((net(x) - y) ** 2).mean()
        loss.backward()
        trainer.step(1)  # the loss is a mean: nothing to divide by
        losses.append(float(loss))
    return losses[0], losses[-1], trainer


if __name__ == "__main__":
    first, last, _ = train()
    print(f"loss: {first:.4f} at the start, {last:.4f} at the end")  # noqa: T201 - its result
