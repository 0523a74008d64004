"""The faults that `verify --self-test` plants: mistakes that people make, each a change of text."""

from __future__ import annotations

from dataclasses import dataclass

SOURCES = {"update": "update.py", "kernel": "kernels/cpu.py", "user": "verification/own_kernel.py"}


@dataclass(frozen=True)
class Mutant:
    """A small change of one source.

    Attributes:
        name: never changes.
        part: which source, a key of `SOURCES`.
        about: the mistake, in a few words.
        old: the text to change, which stands there exactly once.
        new: what is put there.
        case: the smallest case that catches it, with seed 0.
        dtype: in which it is put.
    """

    name: str
    part: str
    about: str
    old: str
    new: str
    case: str
    dtype: str = "float32"


MUTANTS: tuple[Mutant, ...] = (
    Mutant(
        "epsilon-outside-root",
        "update",
        "epsilon added to the square roots, not under them",
        "xp.sqrt(p.acc_delta + h.epsilon) / xp.sqrt(p.acc_grad + h.epsilon)",
        "(xp.sqrt(p.acc_delta) + h.epsilon) / (xp.sqrt(p.acc_grad) + h.epsilon)",
        "length-1",
        "float32",
    ),
    Mutant(
        "epsilon-only-below",
        "update",
        "no epsilon in the numerator: a fresh optimizer never moves",
        "xp.sqrt(p.acc_delta + h.epsilon)",
        "xp.sqrt(p.acc_delta)",
        "length-1",
        "float32",
    ),
    Mutant(
        "epsilon-only-above",
        "update",
        "no epsilon in the denominator",
        "xp.sqrt(p.acc_grad + h.epsilon)",
        "xp.sqrt(p.acc_grad)",
        "length-17",
        "float32",
    ),
    Mutant(
        "epsilon-after-ratio",
        "update",
        "epsilon added to the ratio of the roots",
        "xp.sqrt(p.acc_delta + h.epsilon) / xp.sqrt(p.acc_grad + h.epsilon)",
        "(xp.sqrt(p.acc_delta / p.acc_grad) + h.epsilon)",
        "length-1",
        "float32",
    ),
    Mutant(
        "one-root",
        "update",
        "one square root of the ratio, as in Paddle",
        "xp.sqrt(p.acc_delta + h.epsilon) / xp.sqrt(p.acc_grad + h.epsilon)",
        "xp.sqrt((p.acc_delta + h.epsilon) / (p.acc_grad + h.epsilon))",
        "length-17",
        "float32",
    ),
    Mutant(
        "reciprocal-root",
        "update",
        "the product with a reciprocal in place of the division",
        "/ xp.sqrt(p.acc_grad + h.epsilon) * grad",
        "* (real(1) / xp.sqrt(p.acc_grad + h.epsilon)) * grad",
        "length-17",
        "float32",
    ),
    Mutant(
        "gradient-first",
        "update",
        "the gradient multiplied in before the division",
        "delta = xp.sqrt(p.acc_delta + h.epsilon) / xp.sqrt(p.acc_grad + h.epsilon) * grad",
        "delta = xp.sqrt(p.acc_delta + h.epsilon) * grad / xp.sqrt(p.acc_grad + h.epsilon)",
        "length-17",
        "float32",
    ),
    Mutant(
        "absolute-gradient",
        "update",
        "the update has lost the gradient's sign",
        "xp.sqrt(p.acc_delta + h.epsilon) / xp.sqrt(p.acc_grad + h.epsilon) * grad",
        "xp.sqrt(p.acc_delta + h.epsilon) / xp.sqrt(p.acc_grad + h.epsilon) * xp.abs(grad)",
        "length-1",
        "float32",
    ),
    Mutant(
        "roots-upside-down",
        "update",
        "the ratio of the roots upside down",
        "xp.sqrt(p.acc_delta + h.epsilon) / xp.sqrt(p.acc_grad + h.epsilon)",
        "xp.sqrt(p.acc_grad + h.epsilon) / xp.sqrt(p.acc_delta + h.epsilon)",
        "length-1",
        "float32",
    ),
    Mutant(
        "new-acc-delta",
        "update",
        "the weight moves by a delta with the new acc_delta",
        "xp.add(p.acc_delta * h.rho, h.one_minus_rho * (delta * delta), out=p.acc_delta)",
        "xp.add(p.acc_delta * h.rho, h.one_minus_rho * (delta * delta), out=p.acc_delta)\n"
        "    delta = xp.sqrt(p.acc_delta + h.epsilon) / xp.sqrt(p.acc_grad +"
        " h.epsilon) * grad",
        "length-1",
        "float32",
    ),
    Mutant(
        "stale-acc-grad",
        "update",
        "delta computed with acc_grad from before the step",
        "xp.add(p.acc_grad * h.rho, h.one_minus_rho * (grad * grad), out=p.acc_grad)\n"
        "    delta = xp.sqrt(p.acc_delta + h.epsilon) / xp.sqrt(p.acc_grad +"
        " h.epsilon) * grad",
        "delta = xp.sqrt(p.acc_delta + h.epsilon) / xp.sqrt(p.acc_grad + h.epsilon)"
        " * grad\n"
        "    xp.add(p.acc_grad * h.rho, h.one_minus_rho * (grad * grad), out=p.acc_grad)",
        "length-1",
        "float32",
    ),
    Mutant(
        "rho-exchanged-acc-grad",
        "update",
        "rho and 1 - rho exchanged in acc_grad",
        "p.acc_grad * h.rho, h.one_minus_rho * (grad * grad)",
        "p.acc_grad * h.one_minus_rho, h.rho * (grad * grad)",
        "length-1",
        "float32",
    ),
    Mutant(
        "rho-exchanged-acc-delta",
        "update",
        "rho and 1 - rho exchanged in acc_delta",
        "p.acc_delta * h.rho, h.one_minus_rho * (delta * delta)",
        "p.acc_delta * h.one_minus_rho, h.rho * (delta * delta)",
        "length-1",
        "float32",
    ),
    Mutant(
        "acc-grad-sums",
        "update",
        "acc_grad sums up as in AdaGrad: it does not decay",
        "p.acc_grad * h.rho",
        "p.acc_grad",
        "length-1",
        "float32",
    ),
    Mutant(
        "acc-grad-forgotten",
        "update",
        "acc_grad holds the last gradient only",
        "p.acc_grad * h.rho, ",
        "xp.zeros_like(p.acc_grad), ",
        "length-1",
        "float32",
    ),
    Mutant(
        "acc-delta-forgotten",
        "update",
        "acc_delta holds the last update only",
        "p.acc_delta * h.rho, ",
        "xp.zeros_like(p.acc_delta), ",
        "length-1",
        "float32",
    ),
    Mutant(
        "acc-delta-never-updated",
        "update",
        "acc_delta is never written",
        "xp.add(p.acc_delta * h.rho, h.one_minus_rho * (delta * delta), out=p.acc_delta)",
        "pass",
        "length-1",
        "float32",
    ),
    Mutant(
        "acc-delta-of-gradients",
        "update",
        "acc_delta accumulates gradients",
        "h.one_minus_rho * (delta * delta)",
        "h.one_minus_rho * (grad * grad)",
        "length-1",
        "float32",
    ),
    Mutant(
        "rate-in-acc-delta",
        "update",
        "the learning rate inside the accumulated update",
        "h.one_minus_rho * (delta * delta)",
        "h.one_minus_rho * xp.square(real(learning_rate) * delta)",
        "length-1",
        "float32",
    ),
    Mutant(
        "rate-ignored",
        "update",
        "the learning rate not applied, as in MXNet 1.x",
        "real(learning_rate) * delta",
        "delta",
        "length-1",
        "float32",
    ),
    Mutant(
        "ascent",
        "update",
        "the minus sign missing: the loss goes up",
        "xp.subtract(weight,",
        "xp.add(weight,",
        "length-1",
        "float32",
    ),
    Mutant(
        "square-association-acc-grad",
        "update",
        "(1 - rho) * g * g read left to right",
        "h.one_minus_rho * (grad * grad)",
        "h.one_minus_rho * grad * grad",
        "length-17",
        "float32",
    ),
    Mutant(
        "square-association-acc-delta",
        "update",
        "(1 - rho) * delta * delta read left to right",
        "h.one_minus_rho * (delta * delta)",
        "h.one_minus_rho * delta * delta",
        "length-17",
        "float32",
    ),
    Mutant(
        "lerp-acc-grad",
        "update",
        "acc_grad + (1 - rho) * (g^2 - acc_grad) in place of the weighted sum",
        "xp.add(p.acc_grad * h.rho, h.one_minus_rho * (grad * grad), out=p.acc_grad)",
        "xp.add(p.acc_grad, h.one_minus_rho * (grad * grad - p.acc_grad), out=p.acc_grad)",
        "length-1",
        "float32",
    ),
    Mutant(
        "rescale-ignored",
        "update",
        "rescale_grad not applied",
        "grad = grad * h.rescale_grad",
        "pass",
        "length-1",
        "float32",
    ),
    Mutant(
        "clip-ignored",
        "update",
        "clip_gradient not applied",
        "clip = math.inf if self.clip_gradient is None else self.clip_gradient",
        "clip = math.inf",
        "length-1",
        "float32",
    ),
    Mutant(
        "clip-zero-is-none",
        "update",
        "a clip of zero taken for none",
        "math.inf if self.clip_gradient is None else",
        "math.inf if not self.clip_gradient else",
        "clip_gradient=0.0",
        "float32",
    ),
    Mutant(
        "clip-one-sided",
        "update",
        "only clipped from above",
        "grad = xp.where(grad < -h.clip_gradient, -h.clip_gradient, grad)  # a NaN passes through",
        "pass",
        "length-1",
        "float32",
    ),
    Mutant(
        "clip-sign",
        "update",
        "negative gradients clipped to the positive bound",
        "grad = xp.where(grad < -h.clip_gradient, -h.clip_gradient, grad)  # a NaN passes through",
        "grad = xp.where(grad < -h.clip_gradient, h.clip_gradient, grad)",
        "length-1",
        "float32",
    ),
    Mutant(
        "clip-before-rescale",
        "update",
        "clipped before it is rescaled",
        (
            "    grad = grad * h.rescale_grad\n"
            "    if h.clip_gradient < np.inf:\n"
            "        grad = xp.where(grad < -h.clip_gradient, -h.clip_gradient, grad)  # a NaN passes through\n"
            "        grad = xp.where(grad > h.clip_gradient, h.clip_gradient, grad)\n"
        ),
        (
            "    if h.clip_gradient < np.inf:\n"
            "        grad = xp.where(grad < -h.clip_gradient, -h.clip_gradient, grad)  # a NaN passes through\n"
            "        grad = xp.where(grad > h.clip_gradient, h.clip_gradient, grad)\n"
            "    grad = grad * h.rescale_grad\n"
        ),
        "length-1",
        "float32",
    ),
    Mutant(
        "decay-before-clip",
        "update",
        "weight decay added before clipping",
        (
            "    if h.clip_gradient < np.inf:\n"
            "        grad = xp.where(grad < -h.clip_gradient, -h.clip_gradient, grad)  # a NaN passes through\n"
            "        grad = xp.where(grad > h.clip_gradient, h.clip_gradient, grad)\n"
            "    return grad + real(wd) * weight\n"
        ),
        (
            "    grad = grad + real(wd) * weight\n"
            "    if h.clip_gradient < np.inf:\n"
            "        grad = xp.where(grad < -h.clip_gradient, -h.clip_gradient, grad)  # a NaN passes through\n"
            "        grad = xp.where(grad > h.clip_gradient, h.clip_gradient, grad)\n"
            "    return grad\n"
        ),
        "length-1",
        "float32",
    ),
    Mutant(
        "decay-before-rescale",
        "update",
        "weight decay rescaled with the gradient",
        "grad = grad * h.rescale_grad",
        "grad = (grad + real(wd) * weight) * h.rescale_grad",
        "length-1",
        "float32",
    ),
    Mutant(
        "decay-ignored",
        "update",
        "wd, and with it wd_mult, not applied",
        "return grad + real(wd) * weight",
        "return grad + real(0) * weight",
        "length-1",
        "float32",
    ),
    Mutant(
        "decay-sign",
        "update",
        "weight decay of the wrong sign",
        "return grad + real(wd) * weight",
        "return grad - real(wd) * weight",
        "length-1",
        "float32",
    ),
    Mutant(
        "decay-decoupled",
        "update",
        "the weight decayed as well, as in AdamW",
        "xp.subtract(weight, real(learning_rate) * delta, out=weight)",
        "xp.subtract(weight, real(learning_rate) * (delta + real(wd) * weight), out=weight)",
        "length-1",
        "float32",
    ),
    Mutant(
        "nan-clipped-away",
        "update",
        "clipping that turns NaN into a number",
        "grad = xp.where(grad > h.clip_gradient, h.clip_gradient, grad)",
        "grad = xp.fmin(grad, h.clip_gradient)",
        "special-odd",
        "float32",
    ),
    Mutant(
        "gradient-overwritten",
        "update",
        "the caller's gradient rescaled in place, as in stock MXNet",
        "grad = preprocess(xp, p.grad.astype(p.acc_grad.dtype), weight, h, wd)",
        (
            "grad = preprocess(xp, p.grad.astype(p.acc_grad.dtype), weight, h, wd)\n"
            "    p.grad[...] = grad"
        ),
        "length-1",
        "float32",
    ),
    Mutant(
        "zeros-skipped",
        "update",
        "elements without gradient left out, as lazy sparse updates do",
        "(grad * grad), out=p.acc_grad)",
        "(grad * grad), out=p.acc_grad, where=p.grad != 0)",
        "sparse-gradients",
        "float32",
    ),
    Mutant(
        "one-minus-rho-in-single",
        "update",
        "1 - rho taken in float32",
        "Scalars(*map(real, self))",
        "Scalars(*map(real, self))._replace(one_minus_rho=real(1) - real(self.rho))",
        "length-17",
        "float32",
    ),
    Mutant(
        "one-minus-rho-other-way",
        "update",
        "1 - rho rounded the other way",
        "Scalars(*map(real, self))",
        "Scalars(*map(real, self))._replace("
        "one_minus_rho=np.nextafter(real(1.0 - self.rho), real(1)))",
        "length-17",
        "float32",
    ),
    Mutant(
        "contracted-acc-grad",
        "update",
        "a fused multiply-add in acc_grad",
        "xp.add(p.acc_grad * h.rho, h.one_minus_rho * (grad * grad), out=p.acc_grad)",
        "p.acc_grad[...] = p.acc_grad.astype(np.float64) * h.rho + h.one_minus_rho * (grad * grad)",
        "length-1",
        "float32",
    ),
    Mutant(
        "contracted-weight",
        "update",
        "a fused multiply-subtract in the weight",
        "xp.subtract(weight, real(learning_rate) * delta, out=weight)",
        "weight[...] = weight - np.float64(real(learning_rate)) * delta.astype(np.float64)",
        "length-17",
        "float32",
    ),
    Mutant(
        "contracted-decay",
        "update",
        "a fused multiply-add of weight decay",
        "return grad + real(wd) * weight",
        "return (grad + np.float64(real(wd)) * weight.astype(np.float64)).astype(grad.dtype)",
        "ranks",
        "float32",
    ),
    Mutant(
        "wider-inside",
        "update",
        "delta computed in float64 and rounded at the end",
        "delta = xp.sqrt(p.acc_delta + h.epsilon) / xp.sqrt(p.acc_grad + h.epsilon) * grad",
        "delta = (xp.sqrt(p.acc_delta.astype(np.float64) + h.epsilon) /"
        " xp.sqrt(p.acc_grad.astype(np.float64) + h.epsilon) * grad).astype(grad.dtype)",
        "length-17",
        "float32",
    ),
    Mutant(
        "subnormals-flushed",
        "update",
        "subnormal accumulators flushed to zero",
        "xp.add(p.acc_grad * h.rho, h.one_minus_rho * (grad * grad), out=p.acc_grad)",
        "xp.add(p.acc_grad * h.rho, h.one_minus_rho * (grad * grad), out=p.acc_grad)\n"
        "    p.acc_grad[...] = xp.where(p.acc_grad <"
        " np.finfo(p.acc_grad.dtype).tiny, 0, p.acc_grad)",
        "subnormal",
        "float32",
    ),
    Mutant(
        "negative-zero-lost",
        "update",
        "a weight of -0 becomes +0",
        "xp.subtract(weight, real(learning_rate) * delta, out=weight)",
        "xp.subtract(weight, real(learning_rate) * delta, out=weight)\n    weight[...] += real(0)",
        "special",
        "float32",
    ),
    Mutant(
        "one-ulp-in-a-million",
        "update",
        "one element of a million off by one unit in the last place",
        "xp.subtract(weight, real(learning_rate) * delta, out=weight)",
        "xp.subtract(weight, real(learning_rate) * delta, out=weight)\n"
        "    weight.reshape(-1)[999_999:1_000_000] = xp.nextafter(\n"
        "        weight.reshape(-1)[999_999:1_000_000], real(9)\n"
        "    )",
        "million",
        "float32",
    ),
    Mutant(
        "single-constants-in-double",
        "update",
        "hyper-parameters rounded to float32 in a float64 step",
        "real = np.dtype(dtype).type",
        "real = np.float32",
        "length-1",
        "float64",
    ),
    Mutant(
        "single-states-in-double",
        "update",
        "float32 accumulators under float64 weights",
        "xp.add(p.acc_grad * h.rho, h.one_minus_rho * (grad * grad), out=p.acc_grad)",
        "xp.add(p.acc_grad * h.rho, h.one_minus_rho * (grad * grad), out=p.acc_grad)\n"
        "    p.acc_grad[...] = p.acc_grad.astype(np.float32)",
        "length-1",
        "float64",
    ),
    Mutant(
        "half-states",
        "update",
        "accumulators in float16 under float16 weights",
        "xp.add(p.acc_grad * h.rho, h.one_minus_rho * (grad * grad), out=p.acc_grad)",
        "xp.add(p.acc_grad * h.rho, h.one_minus_rho * (grad * grad), out=p.acc_grad)\n"
        "    p.acc_grad[...] = p.acc_grad.astype(p.weight.dtype)",
        "length-1",
        "float16",
    ),
    Mutant(
        "half-rescale",
        "update",
        "the float16 gradient rescaled before it is widened",
        "grad = preprocess(xp, p.grad.astype(p.acc_grad.dtype), weight, h, wd)",
        (
            "grad = (p.grad * p.grad.dtype.type(h.rescale_grad)).astype(p.acc_grad.dtype)\n"
            "    grad = preprocess(xp, grad, weight, h._replace(rescale_grad=real(1)), wd)"
        ),
        "length-1",
        "float16",
    ),
    Mutant(
        "master-not-read",
        "update",
        "the step starts from the float16 weight, not from its master",
        "weight = p.weight if p.master is None else p.master",
        "weight = p.weight",
        "length-1",
        "float16",
    ),
    Mutant(
        "master-not-updated",
        "update",
        "the float16 weight moves, its master does not",
        "xp.subtract(weight, real(learning_rate) * delta, out=weight)",
        "weight = xp.subtract(weight, real(learning_rate) * delta)",
        "length-1",
        "float16",
    ),
    Mutant(
        "master-rounded",
        "update",
        "the master rounded to float16 with the weight",
        "p.weight[every] = weight.astype(p.weight.dtype)",
        "p.weight[every] = weight.astype(p.weight.dtype)\n        weight[...] = p.weight",
        "length-1",
        "float16",
    ),
    Mutant(
        "half-weight-stale",
        "update",
        "the master moves, the float16 weight does not",
        "p.weight[every] = weight.astype(p.weight.dtype)",
        "pass",
        "length-1",
        "float16",
    ),
    Mutant(
        "fastmath",
        "kernel",
        "compiled with fastmath",
        'compiled = cache.njit(cache=True, nogil=True, error_model="numpy")',
        'compiled = cache.njit(cache=True, nogil=True, error_model="numpy", fastmath=True)',
        "length-17",
        "float32",
    ),
    Mutant(
        "contraction",
        "kernel",
        "compiled with contraction into fused multiply-adds",
        'compiled = cache.njit(cache=True, nogil=True, error_model="numpy")',
        'compiled = cache.njit(cache=True, nogil=True, error_model="numpy", fastmath={"contract"})',
        "length-1",
        "float32",
    ),
    Mutant(
        "kernel-single-constants",
        "kernel",
        "float32 constants handed to the float64 kernel",
        "_hyper(doubles, kind[2])",
        "_hyper(doubles, np.float32(0))",
        "length-1",
        "float64",
    ),
    Mutant(
        "nan-clipped-away-kernel",
        "kernel",
        "the clamp's comparison turned round: a NaN becomes the bound",
        "grad = clip if grad > clip else grad",
        "grad = grad if grad < clip else clip",
        "special",
        "float32",
    ),
    Mutant(
        "missing-tail",
        "kernel",
        "elements after the last whole vector of 8 left out",
        "for i in range(weight.size):",
        "for i in range(weight.size // 8 * 8):",
        "length-1",
        "float32",
    ),
    Mutant(
        "block-end-skipped",
        "kernel",
        "the last element of each block of 64 left out",
        "weight[low:high],\n            grad",
        "weight[low : high - (high - low == BLOCK_ELEMENTS)],\n            grad",
        "clip_gradient=0.0",
        "float32",
    ),
    Mutant(
        "part-end-skipped",
        "kernel",
        "the last element of each thread's part left out",
        "low, high = total * part // parts, total * (part + 1) // parts",
        "low, high = total * part // parts, total * (part + 1) // parts - 1",
        "length-4097",
        "float32",
    ),
    Mutant(
        "parts-overlap",
        "kernel",
        "a race: neighbouring parts share elements, which step twice",
        "total * (part + 1) // parts",
        "min(total, total * (part + 1) // parts + 3)",
        "length-4097",
        "float32",
    ),
    Mutant(
        "remainder-lost",
        "kernel",
        "what the number of threads leaves over is left out",
        "low, high = total * part // parts, total * (part + 1) // parts",
        "low, high = total // parts * part, total // parts * (part + 1)",
        "length-4097",
        "float32",
    ),
    Mutant(
        "part-restarts-tensor",
        "kernel",
        "each part begins at the start of its tensor",
        "at = low - starts[t]",
        "at = 0",
        "length-4097",
        "float32",
    ),
    Mutant(
        "lr-mult-ignored",
        "kernel",
        "every tensor has the first one's rate: lr_mult ignored",
        "rates[t]",
        "rates[0]",
        "multipliers",
        "float32",
    ),
    Mutant(
        "wd-mult-ignored",
        "kernel",
        "every tensor has the first one's decay: wd_mult ignored",
        "weight_decays[t]",
        "weight_decays[0]",
        "multipliers",
        "float32",
    ),
    Mutant(
        "empty-tensor-stops",
        "kernel",
        "an empty tensor ends the part it is in",
        "        low += size\n",
        "        low += size if size > 0 else high\n",
        "sparse-gradients",
        "float32",
    ),
    Mutant(
        "states-exchanged",
        "kernel",
        "acc_grad and acc_delta exchanged in the table of addresses",
        "_view(addresses[t, 2], at, size, state0),\n                _view(addresses[t, 3]",
        "_view(addresses[t, 3], at, size, state0),\n                _view(addresses[t, 2]",
        "length-1",
        "float32",
    ),
    Mutant(
        "subnormals-flushed-kernel",
        "kernel",
        "the kernel always flushes subnormals to zero",
        "(before | both) if table[FLUSH] else (before & ~both)",
        "before | both",
        "subnormal",
        "float32",
    ),
    Mutant(
        "half-weight-stale-kernel",
        "kernel",
        "the kernel's master moves, the float16 weight does not",
        "half[i] = _store(new, half[i])",
        "pass",
        "length-1",
        "float16",
    ),
)

# --- in a kernel of the user's own ----------------------------------------------------------------

# One for each way in which a result might be excused, and one for each check of such a kernel.
_RESULT = "weight[wrong] = acc_grad[wrong] = acc_delta[wrong] = 0"
_WHERE = "wrong = finite & False"
_END = 'weight[...] = weight - real(settings["learning_rate"]) * delta\n'


def _written(name: str, about: str, where: str, value: str, case: str) -> Mutant:
    """Write a value to all results where a condition holds."""
    both = f"{_WHERE}\n        {_RESULT}"
    results = _RESULT.replace("= 0", f"= {value}")
    new = f"wrong = np.broadcast_to({where}, weight.shape)\n        {results}"
    return Mutant(name, "user", about, both, new, case)


def _afterwards(name: str, about: str, line: str, case: str) -> Mutant:
    """Do something more after the step."""
    return Mutant(name, "user", about, _END, f"{_END}        {line}\n", case)


def _before(name: str, about: str, line: str, case: str) -> Mutant:
    """Do something before the step."""
    first = "real = weight.dtype.type\n"
    return Mutant(name, "user", about, first, f"{first}    {line}\n", case)


_NARROW = "(abs(grad) > 0.01) & (abs(grad) < 0.011)"
MUTANTS += (
    _written("user-garbage", "garbage everywhere", "True", "-7.5", "length-1"),
    _written("user-nan", "NaN everywhere", "True", "np.nan", "length-1"),
    _written("user-infinity", "infinity everywhere", "True", "np.inf", "length-1"),
    _written(
        "user-garbage-where-finite",
        "garbage where the inputs are finite",
        "finite",
        "-7.5",
        "length-1",
    ),
    _written(
        "user-nan-where-finite", "NaN where the inputs are finite", "finite", "np.nan", "length-1"
    ),
    _written(
        "user-infinity-where-finite",
        "infinity where the inputs are finite",
        "finite",
        "np.inf",
        "length-1",
    ),
    _written(
        "user-garbage-narrow",
        "garbage where the gradient lies in a narrow range",
        _NARROW,
        "7.5",
        "multipliers",
    ),
    _written(
        "user-nan-narrow",
        "NaN where the gradient lies in a narrow range",
        _NARROW,
        "np.nan",
        "multipliers",
    ),
    _afterwards(
        "user-negative-acc-grad",
        "acc_grad negative",
        "acc_grad[...] = -abs(acc_grad) - real(1)",
        "length-1",
    ),
    _afterwards(
        "user-negative-acc-delta",
        "acc_delta negative",
        "acc_delta[...] = -abs(acc_delta) - real(1)",
        "length-1",
    ),
    _afterwards("user-nan-acc-grad", "acc_grad alone NaN", "acc_grad[...] = np.nan", "length-1"),
    _afterwards(
        "user-infinite-acc-grad",
        "acc_grad infinite where it is large",
        "acc_grad[acc_grad > 100] = np.inf",
        "length-1",
    ),
    _afterwards(
        "user-nan-near-overflow",
        "NaN where the gradient comes near the largest number",
        "acc_grad[abs(grad) > np.finfo(real).max / 2] = np.nan",
        "overflow",
    ),
    _afterwards(
        "user-flushes",
        "subnormals flushed to zero, in a kernel that is not said to",
        "for each in (weight, acc_grad, acc_delta): each[abs(each) < np.finfo(real).tiny] = 0",
        "subnormal",
    ),
    _afterwards(
        "user-rank-six",
        "wrong for tensors of six dimensions",
        "weight *= real(1 if weight.ndim != 6 else 2)",
        "drawn",
    ),
    _afterwards(
        "user-length-window",
        "the last element wrong for lengths of 65,538 to 69,999",
        "weight.reshape(-1)[-1:] *= real(2 if 65_538 <= weight.size < 70_000 else 1)",
        "drawn:lengths",
    ),
    _afterwards(
        "user-beyond-2^20",
        "wrong beyond 2^20 elements",
        "weight.reshape(-1)[2**20 :] = 0",
        "drawn:lengths",
    ),
    _afterwards(
        "user-race",
        "a race: one element wrong in one call of 997 on 4,096 elements or more",
        "calls[0] += weight.size >= 4_096; weight.reshape(-1)[:1] *= real(calls[0] % 997 > 0)",
        "steady",
    ),
    _before(
        "user-rho-range",
        "wrong for rho between 0.5 and 0.85",
        'settings["rho"] += 0.01 * (0.5 < settings["rho"] < 0.85)',
        "drawn",
    ),
    _before(
        "user-clip-range",
        "a clip between 1 and 1e20 ignored",
        'settings["clip_gradient"] = None if 1 < (settings["clip_gradient"] or 0) < 1e20 else '
        'settings["clip_gradient"]',
        "drawn",
    ),
)
