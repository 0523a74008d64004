"""The mutants of `verify --self-test`: mistakes that people make, each a change of one source."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

SOURCES = {
    "update": "update.py",
    "kernel": "kernels/cpu.py",
    "pool": "kernels/pool.py",
    "user": "verification/sample_user_kernel.py",
}


@dataclass(frozen=True)
class Mutant:
    """A small change of one source."""

    name: str  # never changes
    part: str  # the source, a key of `SOURCES`
    about: str  # the mistake, in a few words
    old: str  # the text to change, which the source has exactly once
    new: str  # the text that replaces it
    case: str  # the smallest case that catches it, with seed 0
    dtype: str = "float32"


# Lines of the sources that several mutants change.
ROOTS = "xp.sqrt(p.acc_delta + h.epsilon) / xp.sqrt(p.acc_grad + h.epsilon)"
ADD_GRAD = "xp.add(p.acc_grad * h.rho, h.one_minus_rho * (grad * grad), out=p.acc_grad)"
ADD_DELTA = "xp.add(p.acc_delta * h.rho, h.one_minus_rho * (delta * delta), out=p.acc_delta)"
MOVE = "xp.subtract(weight, real(learning_rate) * delta, out=weight)"
CLIP_LOW = (
    "grad = xp.where(grad < -h.clip_gradient, -h.clip_gradient, grad)  # a NaN passes through"
)
CLIP_HIGH = "grad = xp.where(grad > h.clip_gradient, h.clip_gradient, grad)"
DECAYED = "grad + real(wd) * weight"
PREPROCESS = "grad = preprocess(xp, p.grad.astype(p.acc_grad.dtype), weight, h, wd)"
STORE_HALF = "p.weight[every] = weight.astype(p.weight.dtype)"
COMPILED = 'compiled = cache.njit(cache=True, nogil=True, error_model="numpy"'
BEGIN = "real = weight.dtype.type"
END = 'weight[...] = weight - real(settings["learning_rate"]) * delta'
WHERE = "wrong = finite & False"
RESULTS = "weight[wrong] = acc_grad[wrong] = acc_delta[wrong]"

# Wrong numbers, where a result might be excused: entries of the table below.
VALUES = {"garbage": "-7.5", "nan": "np.nan", "infinity": "np.inf"}
NARROW = "(abs(grad) > 0.01) & (abs(grad) < 0.011)"
PLACES = {
    ("", "everywhere"): "True",
    ("-where-finite", "where the inputs are finite"): "finite",
    ("-narrow [multipliers]", "where the gradient lies in a narrow range"): NARROW,
}
WRONG = "".join(
    f"user-{name}{suffix}: {name if name != 'nan' else 'NaN'} {about}\n"
    f"- {WHERE}\n+ wrong = np.broadcast_to({place}, weight.shape)\n"
    f"-         {RESULTS} = 0\n+         {RESULTS} = {value}\n"
    for (suffix, about), place in PLACES.items()
    for name, value in VALUES.items()
    if (name, place) != ("infinity", NARROW)
)

# Each entry is `name [case dtype]: mistake`, then the change as in a diff: "-" removes a line, "+"
# adds one, and a space keeps one. In brackets: case and dtype; default length-1 float32.
TABLES = {
    "update": f"""
epsilon-outside-root: epsilon added to the square roots, not under them
- {ROOTS}
+ (xp.sqrt(p.acc_delta) + h.epsilon) / (xp.sqrt(p.acc_grad) + h.epsilon)
epsilon-only-below: no epsilon in the numerator: a fresh optimizer never moves
- xp.sqrt(p.acc_delta + h.epsilon)
+ xp.sqrt(p.acc_delta)
epsilon-only-above [length-17]: no epsilon in the denominator
- xp.sqrt(p.acc_grad + h.epsilon)
+ xp.sqrt(p.acc_grad)
epsilon-after-ratio: epsilon added to the ratio of the roots
- {ROOTS}
+ (xp.sqrt(p.acc_delta / p.acc_grad) + h.epsilon)
one-root [length-17]: one square root of the ratio, as in Paddle
- {ROOTS}
+ xp.sqrt((p.acc_delta + h.epsilon) / (p.acc_grad + h.epsilon))
reciprocal-root [length-17]: the product with a reciprocal in place of the division
- / xp.sqrt(p.acc_grad + h.epsilon) * grad
+ * (real(1) / xp.sqrt(p.acc_grad + h.epsilon)) * grad
gradient-first [length-17]: the gradient multiplied in before the division
- delta = {ROOTS} * grad
+ delta = xp.sqrt(p.acc_delta + h.epsilon) * grad / xp.sqrt(p.acc_grad + h.epsilon)
absolute-gradient: the update has lost the gradient's sign
- {ROOTS} * grad
+ {ROOTS} * xp.abs(grad)
roots-upside-down: the ratio of the roots upside down
- {ROOTS}
+ xp.sqrt(p.acc_grad + h.epsilon) / xp.sqrt(p.acc_delta + h.epsilon)
new-acc-delta: the weight moves by a delta with the new acc_delta
  {ADD_DELTA}
+     delta = {ROOTS} * grad
stale-acc-grad: delta computed with acc_grad from before the step
- {ADD_GRAD}
-     delta = {ROOTS} * grad
+ delta = {ROOTS} * grad
+     {ADD_GRAD}
rho-exchanged-acc-grad: rho and 1 - rho exchanged in acc_grad
- p.acc_grad * h.rho, h.one_minus_rho * (grad * grad)
+ p.acc_grad * h.one_minus_rho, h.rho * (grad * grad)
rho-exchanged-acc-delta: rho and 1 - rho exchanged in acc_delta
- p.acc_delta * h.rho, h.one_minus_rho * (delta * delta)
+ p.acc_delta * h.one_minus_rho, h.rho * (delta * delta)
acc-grad-sums: acc_grad sums up as in AdaGrad: it does not decay
- p.acc_grad * h.rho
+ p.acc_grad
acc-grad-forgotten: acc_grad holds the last gradient only
- p.acc_grad * h.rho,
+ xp.zeros_like(p.acc_grad),
acc-delta-forgotten: acc_delta holds the last update only
- p.acc_delta * h.rho,
+ xp.zeros_like(p.acc_delta),
acc-delta-never-updated: acc_delta is never written
- {ADD_DELTA}
+ pass
acc-delta-of-gradients: acc_delta accumulates gradients
- h.one_minus_rho * (delta * delta)
+ h.one_minus_rho * (grad * grad)
rate-in-acc-delta: the learning rate inside the accumulated update
- h.one_minus_rho * (delta * delta)
+ h.one_minus_rho * xp.square(real(learning_rate) * delta)
rate-ignored: the learning rate not applied, as in MXNet 1.x
- real(learning_rate) * delta
+ delta
ascent: the minus sign missing: the loss goes up
- xp.subtract(weight,
+ xp.add(weight,
square-association-acc-grad [length-17]: (1 - rho) * g * g read left to right
- h.one_minus_rho * (grad * grad)
+ h.one_minus_rho * grad * grad
square-association-acc-delta [length-17]: (1 - rho) * delta * delta read left to right
- h.one_minus_rho * (delta * delta)
+ h.one_minus_rho * delta * delta
lerp-acc-grad: acc_grad + (1 - rho) * (g^2 - acc_grad) in place of the weighted sum
- {ADD_GRAD}
+ xp.add(p.acc_grad, h.one_minus_rho * (grad * grad - p.acc_grad), out=p.acc_grad)
rescale-ignored: rescale_grad not applied
- grad = grad * h.rescale_grad
+ pass
clip-ignored: clip_gradient not applied
- clip = math.inf if self.clip_gradient is None else self.clip_gradient
+ clip = math.inf
clip-zero-is-none [clip_gradient=0.0]: a clip of zero taken for none
- math.inf if self.clip_gradient is None else
+ math.inf if not self.clip_gradient else
clip-one-sided: only clipped from above
- {CLIP_LOW}
+ pass
clip-sign: negative gradients clipped to the positive bound
- {CLIP_LOW}
+ grad = xp.where(grad < -h.clip_gradient, h.clip_gradient, grad)
clip-before-rescale: clipped before it is rescaled
-     grad = grad * h.rescale_grad
      if h.clip_gradient < np.inf:
          {CLIP_LOW}
          {CLIP_HIGH}
+     grad = grad * h.rescale_grad
decay-before-clip: weight decay added before clipping
+     grad = {DECAYED}
      if h.clip_gradient < np.inf:
          {CLIP_LOW}
          {CLIP_HIGH}
-     return {DECAYED}
+     return grad
decay-before-rescale: weight decay rescaled with the gradient
- grad = grad * h.rescale_grad
+ grad = ({DECAYED}) * h.rescale_grad
decay-ignored: wd, and with it wd_mult, not applied
- return {DECAYED}
+ return grad + real(0) * weight
decay-sign: weight decay of the wrong sign
- return {DECAYED}
+ return grad - real(wd) * weight
decay-decoupled: the weight decayed as well, as in AdamW
- {MOVE}
+ xp.subtract(weight, real(learning_rate) * (delta + real(wd) * weight), out=weight)
nan-clipped-away [special-odd]: clipping that turns NaN into a number
- {CLIP_HIGH}
+ grad = xp.fmin(grad, h.clip_gradient)
gradient-overwritten: the caller's gradient rescaled in place, as in stock MXNet
  {PREPROCESS}
+     p.grad[...] = grad
zeros-skipped [sparse-gradients]: elements without gradient left out, as lazy sparse updates do
- (grad * grad), out=p.acc_grad)
+ (grad * grad), out=p.acc_grad, where=p.grad != 0)
one-minus-rho-in-single [length-17]: 1 - rho taken in float32
- Scalars(*map(real, self))
+ Scalars(*map(real, self))._replace(one_minus_rho=real(1) - real(self.rho))
one-minus-rho-other-way [length-17]: 1 - rho rounded the other way
- Scalars(*map(real, self))
+ Scalars(*map(real, self))._replace(one_minus_rho=np.nextafter(real(1.0 - self.rho), real(1)))
contracted-acc-grad: a fused multiply-add in acc_grad
- {ADD_GRAD}
+ p.acc_grad[...] = p.acc_grad.astype(np.float64) * h.rho + h.one_minus_rho * (grad * grad)
contracted-weight [length-17]: a fused multiply-subtract in the weight
- {MOVE}
+ weight[...] = weight - np.float64(real(learning_rate)) * delta.astype(np.float64)
contracted-decay [ranks]: a fused multiply-add of weight decay
- return {DECAYED}
+ return (grad + np.float64(real(wd)) * weight.astype(np.float64)).astype(grad.dtype)
wider-inside [length-17]: delta computed in float64 and rounded at the end
- delta = {ROOTS} * grad
+ delta = (xp.sqrt(p.acc_delta.astype(np.float64) + h.epsilon) / xp.sqrt(p.acc_grad.astype(np.float64) + h.epsilon) * grad).astype(grad.dtype)
subnormals-flushed [subnormal]: subnormal accumulators flushed to zero
  {ADD_GRAD}
+     p.acc_grad[...] = xp.where(p.acc_grad < np.finfo(p.acc_grad.dtype).tiny, 0, p.acc_grad)
negative-zero-lost [special]: a weight of -0 becomes +0
  {MOVE}
+     weight[...] += real(0)
one-ulp-in-a-million [million]: one element of a million off by one unit in the last place
  {MOVE}
+     weight.reshape(-1)[999_999:1_000_000] = xp.nextafter(
+         weight.reshape(-1)[999_999:1_000_000], real(9)
+     )
single-constants-in-double [length-1 float64]: hyper-parameters rounded to float32 in a float64 step
- real = np.dtype(dtype).type
+ real = np.float32
single-states-in-double [length-1 float64]: float32 accumulators under float64 weights
  {ADD_GRAD}
+     p.acc_grad[...] = p.acc_grad.astype(np.float32)
half-states [length-1 float16]: accumulators in float16 under float16 weights
  {ADD_GRAD}
+     p.acc_grad[...] = p.acc_grad.astype(p.weight.dtype)
half-rescale [length-1 float16]: the float16 gradient rescaled before it is widened
- {PREPROCESS}
+ grad = (p.grad * p.grad.dtype.type(h.rescale_grad)).astype(p.acc_grad.dtype)
+     grad = preprocess(xp, grad, weight, h._replace(rescale_grad=real(1)), wd)
master-not-read [length-1 float16]: the step starts from the float16 weight, not from its master
- weight = p.weight if p.master is None else p.master
+ weight = p.weight
master-not-updated [length-1 float16]: the float16 weight moves, its master does not
- {MOVE}
+ weight = xp.subtract(weight, real(learning_rate) * delta)
master-rounded [length-1 float16]: the master rounded to float16 with the weight
  {STORE_HALF}
+         weight[...] = p.weight
half-weight-stale [length-1 float16]: the master moves, the float16 weight does not
- {STORE_HALF}
+ pass
""",
    "kernel": f"""
fastmath [length-17]: compiled with fastmath
- {COMPILED})
+ {COMPILED}, fastmath=True)
contraction: compiled with contraction into fused multiply-adds
- {COMPILED})
+ {COMPILED}, fastmath={{"contract"}})
kernel-single-constants [length-1 float64]: float32 constants handed to the float64 kernel
- hyper_of(table, state0), np.int64
+ hyper_of(table, np.float32(0)), np.int64
nan-clipped-away-kernel [special]: the clamp's comparison turned round: a NaN becomes the bound
- grad = clip if grad > clip else grad
+ grad = grad if grad < clip else clip
missing-tail: elements after the last whole vector of 8 left out
- for i in range(weight.size):
+ for i in range(weight.size // 8 * 8):
block-end-skipped [clip_gradient=0.0]: the last element of each block of 64 left out
- weight[low:high],
+ weight[low : high - (high - low == block)],
              grad
part-restarts-tensor [length-4097]: each part begins at the start of its tensor
- at = max(low - start, 0)
+ at = 0
lr-mult-ignored [multipliers]: every tensor has the first one's rate: lr_mult ignored
- rates[t]
+ rates[0]
wd-mult-ignored [multipliers]: every tensor has the first one's decay: wd_mult ignored
- weight_decays[t]
+ weight_decays[0]
empty-tensor-stops [maximize]: an empty tensor ends the part it is in
- if start >= high:
+ if start >= high or sizes[t] == 0:
states-exchanged: acc_grad and acc_delta exchanged in the table of addresses
- _view(addresses[t, 2], at, size, state0),
+ _view(addresses[t, 3], at, size, state0),
-                 _view(addresses[t, 3]
+                 _view(addresses[t, 2]
subnormals-flushed-kernel [subnormal]: the kernel always flushes subnormals to zero
- np.uint32(NEAREST | both) if table[FLUSH] else np.uint32(NEAREST)
+ np.uint32(NEAREST | both)
half-weight-stale-kernel [length-1 float16]: the kernel's master moves, the float16 weight does not
- half[i] = _store(new, half[i])
+ pass
""",
    "pool": """
part-end-skipped [length-4097]: the last element of each thread's piece left out
- state[WORDS], low, high)
+ state[WORDS], low, high - 1)
parts-overlap [length-4097]: a race: neighbouring pieces share elements, which step twice
- high = min(low + state[PIECE], end)
+ high = min(end + 3, total)
remainder-lost [length-4097]: what the number of threads leaves over is left out
- (part + 1) // parts // ALIGNED * ALIGNED if part + 1 < parts else total
+ (part + 1) // parts // ALIGNED * ALIGNED
""",
    # One for each way in which a wrong result might be excused, one for each check of such a kernel.
    "user": f"""
{WRONG}user-negative-acc-grad: acc_grad negative
  {END}
+         acc_grad[...] = -abs(acc_grad) - real(1)
user-negative-acc-delta: acc_delta negative
  {END}
+         acc_delta[...] = -abs(acc_delta) - real(1)
user-nan-acc-grad: acc_grad alone NaN
  {END}
+         acc_grad[...] = np.nan
user-infinite-acc-grad: acc_grad infinite where it is large
  {END}
+         acc_grad[acc_grad > 100] = np.inf
user-nan-near-overflow [overflow]: NaN where the gradient comes near the largest number
  {END}
+         acc_grad[abs(grad) > np.finfo(real).max / 2] = np.nan
user-flushes [subnormal]: subnormals flushed to zero, in a kernel that is not said to
  {END}
+         for each in (weight, acc_grad, acc_delta): each[abs(each) < np.finfo(real).tiny] = 0
user-rank-six [drawn]: wrong for tensors of six dimensions
  {END}
+         weight *= real(1 if weight.ndim != 6 else 2)
user-length-window [drawn:lengths]: the last element wrong for lengths of 65,538 to 69,999
  {END}
+         weight.reshape(-1)[-1:] *= real(2 if 65_538 <= weight.size < 70_000 else 1)
user-beyond-2^20 [drawn:lengths]: wrong beyond 2^20 elements
  {END}
+         weight.reshape(-1)[2**20 :] = 0
user-race [steady]: a race: one element wrong in one call of 997 on 4,096 elements or more
  {END}
+         calls[0] += weight.size >= 4_096; weight.reshape(-1)[:1] *= real(calls[0] % 997 > 0)
user-rho-range [drawn]: wrong for rho between 0.5 and 0.85
  {BEGIN}
+     settings["rho"] += 0.01 * (0.5 < settings["rho"] < 0.85)
user-clip-range [drawn]: a clip between 1 and 1e20 ignored
  {BEGIN}
+     settings["clip_gradient"] = None if 1 < (settings["clip_gradient"] or 0) < 1e20 else settings["clip_gradient"]
""",
}
_HEADER = re.compile(r"(\S+)(?: \[(\S+)(?: (\S+))?\])?: (.+)")


def _mutants(part: str, table: str) -> Iterator[Mutant]:
    for entry in re.findall(r"^\w.*\n(?:[-+ ] .*\n)+", table, re.MULTILINE):
        header, *lines = entry.splitlines()
        _, name, case, dtype, about, _ = _HEADER.split(header)
        old, new = ("\n".join(x[2:] for x in lines if x[0] in signs) for signs in ("- ", "+ "))
        yield Mutant(name, part, about, old, new, case or "length-1", dtype or "float32")


MUTANTS = tuple(mutant for part, table in TABLES.items() for mutant in _mutants(part, table))
