"""Check the invariants of an implementation, whatever numbers it computes.

* guard: it does not write outside its tensors. Each buffer is between guard zones, on a GPU too,
  and on MXNet, which gets arrays on such memory.
* repeat: a step gives the same bits again, at other memory alignments, on one thread, and in other
  chunks. A user kernel also takes one step hundreds of times, since races are rare. This finds
  elements of new arrays that the kernel leaves unwritten, too: before each run, the memory that new
  arrays are likely to get is poisoned. An element left unwritten in place keeps its old number,
  which the comparison with the reference finds.
* saved: the states survive `get_states` and `set_states` of an MXNet `Updater` midway, with the
  optimizer in them, into arrays that are poisoned meanwhile.
"""

from __future__ import annotations

import time
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from adadelta_cli.implementations import registry
from adadelta_cli.implementations.base import StepInputs
from adadelta_cli.implementations.guard import GUARD, GUARD_BYTES, Guarded, poison
from adadelta_cli.mxnet_bridge import runtime
from adadelta_cli.verification import cases
from adadelta_cli.verification.execute import bind_step, step_through
from adadelta_cli.verification.ulp import Difference, describe_first

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from contextlib import AbstractContextManager

    from adadelta_cli.implementations.array_backends import NumpyBackend
    from adadelta_cli.implementations.base import Bind, Implementation, Step
    from adadelta_cli.update import Parameter
    from adadelta_cli.verification.cases import Case
    from adadelta_cli.verification.execute import Trajectory

CASES = frozenset({"length-4097"})  # by default: cheap, and long enough for several chunks
FULL = frozenset(case.name for case in cases.DEFAULT)  # with --full
CHECKS = ("guard", "repeat", "saved")
BUFFERS = ("weight", "grad", "acc_grad", "acc_delta", "master")


@dataclass(frozen=True)
class InvariantResult:
    """The check of one invariant on one tensor."""

    check: str  # one of `CHECKS`, or `gradient`
    tensor: str
    elements: int  # compared numbers; of `guard`, the bytes of the zones
    mismatches: int = 0  # how many of them changed
    note: str = ""  # the place of the first


class GuardedBackend:
    """A backend of arrays between guard zones, `shift` elements off a multiple of 64 bytes."""

    def __init__(self, backend: NumpyBackend, shift: int) -> None:
        self._backend, self._shift = backend, shift
        self.guarded: list[Guarded] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backend, name)

    def array(self, values: np.ndarray) -> Any:
        """Copy to an array of the library, same shape and dtype, between guard zones."""
        on_host = self._backend.device.kind == "cpu"
        copied = values if on_host else self._backend.array(values)
        self.guarded.append(Guarded(copied, self._shift))
        view = self.guarded[-1].array
        if self._backend.name == "mxnet":
            return runtime.load_mxnet().nd.from_numpy(view, zero_copy=True).as_np_ndarray()
        return view

    def written_outside(self, tensors: int) -> Iterator[InvariantResult]:
        """Report writes outside of each buffer, given the number of tensors."""
        each = len(self.guarded) // tensors
        for k, name in enumerate(BUFFERS[:each]):
            zones = self.guarded[k::each]
            found = [(guard.array.shape, guard.written_outside()) for guard in zones]
            notes = [
                f"wrote outside {name} of shape {list(s)}: {what}" for s, what in found if what
            ]
            watched = 2 * GUARD_BYTES * len(zones)
            yield InvariantResult("guard", name, watched, len(notes), "".join(notes[:1]))


class Variation(NamedTuple):
    """A way to repeat a case that must not change a bit."""

    about: str
    shift: int = 0
    variant: str = ""


AGAIN = (
    Variation("again"),
    Variation("1 element off alignment", shift=1),
    Variation("3 elements off alignment", shift=3),
)
CHUNKED = (
    Variation("on one thread, uncut", variant="1:0"),
    Variation("cut into 3 parts, in blocks", variant="3:64"),
    Variation("cut into 7 parts, off alignment", shift=5, variant="7:0"),
)


def check_determinism(
    chosen: Implementation, case: Case, dtype: str, seed: int
) -> list[InvariantResult]:
    """Run a case in guarded memory several times, for `guard` and `repeat`.

    Third-party code may copy these arrays, so its buffers are guarded where it is called
    (`implementations.user_kernel`), and it has no results of `guard` here.
    """
    memory: Any = GuardedBackend(chosen.arrays(), 0)
    wanted = step_through(chosen, case, dtype, seed, backend=memory)
    outside = list(memory.written_outside(len(case.shapes))) if chosen.is_built_in else []
    repeats = {tensor: InvariantResult("repeat", tensor, 0) for tensor in wanted.tensors}
    chunked = chosen.fused and chosen.device.kind == "cpu"
    for variation in AGAIN + CHUNKED if chunked else AGAIN:
        got = _varied(variation, chosen, case, dtype, seed)
        for tensor, before in repeats.items():
            found = _compared("repeat", tensor, got, wanted)
            repeats[tensor] = replace(
                found,
                elements=before.elements + found.elements,
                mismatches=before.mismatches + found.mismatches,
                note=before.note or (found.note and f"{variation.about}: {found.note}"),
            )
    return outside + list(repeats.values())


# Elements, and repetitions of a step on them: few elements for many times, many for many threads.
REPEATED = ((4_099, 2_000), (100_003, 300))
REPEATED_S = 2.0  # time limit of each


def check_repeated(
    chosen: Implementation, elements: int, times: int, dtype: str, seed: int
) -> list[InvariantResult]:
    """Take the same step hundreds of times, and compare the bits."""
    backend, case = chosen.arrays(), cases.single(elements)
    (start,), (grad,) = case.start(dtype, seed), case.grads(dtype, seed, 1)
    parameter = registry.parameter(backend, start.weight, grad, *start[1:], dtype=dtype)
    step = bind_step(chosen, StepInputs([parameter], case.hyper, case.lr_mults, case.wd_mults))
    first: dict[str, np.ndarray] = {}
    changed, taken = dict.fromkeys(start._fields, 0), 0
    until = time.monotonic() + REPEATED_S
    while taken < times and (taken < 2 or time.monotonic() < until):
        for tensor, values in zip(start._fields, start, strict=True):
            backend.assign(getattr(parameter, tensor), values)
        step()
        taken += 1
        for tensor in changed:
            after = backend.numpy(getattr(parameter, tensor))
            before = first.setdefault(tensor, after.copy())
            changed[tensor] += Difference.between(after, before, before).mismatches
    note = f"the same step {taken} times over gave other bits"
    return [
        InvariantResult("repeat", tensor, taken * elements, count, note if count else "")
        for tensor, count in changed.items()
    ]


def _varied(
    variation: Variation, chosen: Implementation, case: Case, dtype: str, seed: int
) -> Trajectory:
    backend, on_cpu = chosen.arrays(), chosen.device.kind == "cpu"
    memory: Any = GuardedBackend(backend, variation.shift)
    for size in {int(np.prod(shape)) for shape in case.shapes}:
        poison(4, size * np.dtype(dtype).itemsize, np if on_cpu else backend.xp)
    with _taken(variation.variant):
        return step_through(chosen, case, dtype, seed, backend=memory)


def _taken(variant: str) -> AbstractContextManager[None]:
    """Fix the way in which the fused step is taken on a CPU."""
    if not variant:
        return nullcontext()
    from adadelta_cli.kernels import variants

    return variants.override(variant)


def _compared(check: str, tensor: str, got: Trajectory, wanted: Trajectory) -> InvariantResult:
    a, b = (np.concatenate(each.tensors[tensor][1:]) for each in (got, wanted))
    difference = Difference.between(a, b, b)
    note = describe_first(difference, a, b, wanted.tensors[tensor][0].size)
    return InvariantResult(check, tensor, difference.elements, difference.mismatches, note)


def checkpoint_roundtrip(
    chosen: Implementation, case: Case, dtype: str, seed: int
) -> list[InvariantResult]:
    """Compare a case with and without saving and loading the states midway."""
    wanted = step_through(chosen, case, dtype, seed)
    bind = _stopping(chosen.optimizer, case.steps // 2)
    got = step_through(chosen, case, dtype, seed, bind=bind)
    return [_compared("saved", tensor, got, wanted) for tensor in wanted.tensors]


def _stopping(make: Any, halfway: int) -> Bind:
    """Bind an optimizer by its MXNet Updater, which is saved and loaded after `halfway` steps."""

    def bind(inputs: StepInputs) -> Step:
        mx, parameters = runtime.load_mxnet(), inputs.parameters
        optimizer = make(inputs.hyper, any(p.master is not None for p in parameters))
        optimizer.set_lr_mult(dict(enumerate(inputs.lr_mults)))
        optimizer.set_wd_mult(dict(enumerate(inputs.wd_mults)))
        updater, taken = _updater(mx, optimizer, parameters), 0

        def step() -> None:
            nonlocal updater, taken
            if taken == halfway:
                updater = _reloaded(mx, updater, parameters)
            taken += 1
            grads, weights = [p.grad for p in parameters], [p.weight for p in parameters]
            updater(list(range(len(parameters))), grads, weights)
            mx.nd.waitall()

        return step

    return bind


def _updater(mx: Any, optimizer: Any, parameters: Sequence[Parameter]) -> Any:
    updater = mx.optimizer.get_updater(optimizer)
    updater.states = {k: registry.state_of(p) for k, p in enumerate(parameters)}
    updater.states_synced = dict.fromkeys(updater.states, True)
    return updater


def _reloaded(mx: Any, updater: Any, parameters: Sequence[Parameter]) -> Any:
    """Save the states, poison them in memory, and load them into a new updater."""
    content = updater.get_states(dump_optimizer=True)
    for parameter in parameters:
        for array in parameter.arrays[2:]:
            array[() if not array.shape else slice(None)] = GUARD
    loaded = mx.optimizer.get_updater(mx.optimizer.SGD())
    loaded.set_states(content)
    for k, parameter in enumerate(parameters):
        for array, kept in zip(parameter.arrays[2:], _flat(loaded.states.get(k)), strict=False):
            array[() if not array.shape else slice(None)] = kept
    return _updater(mx, loaded.optimizer, parameters)


def _flat(state: Any) -> list[Any]:
    """Order a state as in `Parameter.arrays`: acc_grad, acc_delta, master."""
    if state is None:
        return []
    first, second = state
    return [*second, first] if isinstance(second, tuple) else [first, second]
