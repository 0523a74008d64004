"""What NVRTC makes of the CUDA source gives the bits of the CPU: its PTX is read, and run.

NVRTC needs no GPU. From the PTX on, the assembler may no longer change a result: an instruction
with `.rn` is never contracted.
"""

from __future__ import annotations

import numpy as np
import nvrtc
import ptx
import pytest
from conftest import (
    AWKWARD,
    FAR_ELEMENTS,
    KINDS,
    assert_same_bits,
    far_tile,
    prepared_on_gpu,
    random_arrays,
    simulated_gpu,
    slow_but,
    take_fused_step,
)

from adadelta_cli.kernels import cuda
from adadelta_cli.kernels.layout import LAYOUTS
from adadelta_cli.update import Hyperparameters, Parameter
from adadelta_cli.verification.cases import ODD, Case

pytestmark = pytest.mark.skipif(
    nvrtc.library() is None,
    reason="no NVRTC: python -m pip install nvidia-cuda-nvrtc-cu12 (Linux and Windows only)",
)
ARCH = 90  # where one is enough
CAREFUL = cuda.OPTIONS
# What others may put behind our options; the last of several that contradict each other holds.
# Each with an instruction that it leaves where the language's own operators stand.
CARELESS = {
    "-fmad=true": "fma.rn.f32",
    "-use_fast_math": "div.approx.ftz.f32",
    "-ftz=true": "add.rn.ftz.f32",
    "-prec-sqrt=false": "sqrt.approx.f32",
    "-prec-div=false": "div.full.f32",
}
SOME = {nvrtc.OLDEST, ARCH, nvrtc.NEWEST} & {*nvrtc.architectures()}  # which are not slow
NAMES = {f"{work}_{layout.name}" for work in ("update", "traffic") for layout in LAYOUTS.values()}


@pytest.mark.parametrize("arch", slow_but(nvrtc.architectures(), *SOME))
def test_each_operation_rounds_once(arch):
    """On every GPU from compute capability 7.0 to 12.0: nothing contracted, approximate, flushed.

    Nor does a thread keep anything in local memory, which would be traffic.
    """
    text = nvrtc.compiled(cuda.source(), CAREFUL, arch)
    assert set(ptx.kernels(text)) >= NAMES
    assert ptx.doubtful(text) == []


# What a thread reads and then writes at once, by the kind of tensor: 16 bytes of each state.
ACCESSES = {
    "float32": (["v4.f32"] * 4, ["v4.f32"] * 3),
    "float64": (["v2.f64"] * 4, ["v2.f64"] * 3),
    "float16": (["v4.f32"] * 2 + ["v4.u16"] * 2, ["v4.f32"] * 2 + ["v4.u16"]),
    "float16_master": (["v4.f32"] * 3 + ["v4.u16"], ["v4.f32"] * 3 + ["v4.u16"]),
}


@pytest.mark.parametrize("arch", slow_but(nvrtc.architectures(), *SOME))
def test_memory_is_accessed_in_16_bytes(arch):
    """Each kernel asks for all of it before it writes any."""
    kernels = ptx.kernels(nvrtc.compiled(cuda.source(), CAREFUL, arch))
    for name in NAMES:
        reads, writes = ACCESSES[name.split("_", 1)[1]]
        wanted = [f"ld.global.{e}" for e in reads] + [f"st.global.{e}" for e in sorted(writes)]
        wide = [each.opcode for each in kernels[name].body if ".global.v" in each.opcode]
        assert wide and len(wide) % len(wanted) == 0  # the compiler may write the loop twice
        for k in range(0, len(wide), len(wanted)):
            visit = wide[k : k + len(wanted)]
            assert sorted(visit[: len(reads)]) + sorted(visit[len(reads) :]) == wanted


@pytest.mark.parametrize("option", CARELESS)
def test_no_option_changes_an_instruction(option):
    """CuPy adds -ftz=true to whatever it compiles; the kernels are the same under it."""
    same = nvrtc.compiled(cuda.source(), (*CAREFUL, option), ARCH)
    assert ptx.kernels(same) == ptx.kernels(nvrtc.compiled(cuda.source(), CAREFUL, ARCH))


# The source with the operators of the language, whose instructions the options choose.
PLAIN = cuda.source()
for _old, _new in (
    (
        'asm(NAME ".rn." TYPE " %0, %0, %1;" : "+" REGISTER(a.value) : REGISTER(b.value));',
        "a.value = a.value SIGN b.value;",
    ),
    ('asm("sqrt.rn." TYPE " %0, %0;" : "+" REGISTER(a.value));', "a.value = ::sqrt(a.value);"),
):
    assert PLAIN.count(_old) == 1
    PLAIN = PLAIN.replace(_old, _new)


@pytest.mark.parametrize("option", slow_but(CARELESS, "-use_fast_math"))
def test_a_careless_option_would_be_seen(option):
    """With the language's operators, each such option leaves an instruction that is refused."""
    assert ptx.doubtful(nvrtc.compiled(PLAIN, CAREFUL, ARCH)) == []
    assert CARELESS[option] in ptx.doubtful(nvrtc.compiled(PLAIN, (*CAREFUL, option), ARCH))


@pytest.mark.parametrize(
    "opcode",
    [
        "mul.f32",
        "fma.rn.f32",
        "mad.rn.f64",
        "add.rz.f32",
        "add.rn.ftz.f32",
        "sqrt.approx.f32",
        "rsqrt.approx.f64",
        "cvt.f16.f32",
        "cvt.rz.f32.f64",
        "min.f32",
        "mul.rn.f16",
        "fma.rn.bf16x2",
        "setp.lt.ftz.f32",
        "neg.ftz.f32",
        "add.rn.sat.f32",
        "ld.local.v4.f32",
        "st.local.b32",
    ],
)
def test_what_is_doubtful(opcode):
    """An instruction on floats that is not known to round once is refused, wherever it stands."""
    inside = f"@!%p1 {opcode} %f1, %f2, %f3;"
    text = f".visible .entry k(.param .u64 k_0)\n{{\n\t{{ .reg .pred p; {inside} }}\n\tret;\n}}"
    assert ptx.doubtful(text) == [opcode]


def test_machine_code_is_made():
    """The assembler, which NVRTC brings, takes the PTX."""
    assert nvrtc.compiled(cuda.source(), CAREFUL, ARCH, "CUBIN").startswith(b"\x7fELF")


# --- running it -----------------------------------------------------------------------------------


def programs(memory, code=None):
    """Make what stands for `cupy.RawModule`: PTX, run on this memory."""

    class Module:
        def __init__(self, *, code, options):
            self._kernels = ptx.kernels(nvrtc.compiled(code, options, ARCH))

        def get_function(self, name):
            return ptx.Program(self._kernels[name], memory)

    return {
        "RawModule": lambda **given: Module(**given | ({"code": code} if code else {})),
        "asarray": lambda values: memory.add(np.array(values)),
    }


def assert_ptx_is_cpu(tensors, hyper, *, steps=1, code=None):
    """Take steps by the PTX and by the CPU's kernel; each element is written once a step."""
    wanted = [Parameter(*(each.copy() for each in p.arrays)) for p in tensors]
    memory = ptx.Memory([each for p in tensors for each in p.arrays])
    rates = [0.7 + 0.1 * k for k in range(len(tensors))]
    weight_decays = [0.01 * k for k in range(len(tensors))]
    with simulated_gpu(**programs(memory, code)):
        step = prepared_on_gpu(tensors, hyper, rates, weight_decays)
        for _ in range(steps):
            step()
            take_fused_step(wanted, hyper, rates, weight_decays)
    assert_same_bits([a for p in tensors for a in p.arrays], [a for p in wanted for a in p.arrays])
    written = sum(p.weight.size * (len(p.arrays) - 1) for p in tensors)
    assert len(memory.writes) == written
    assert set(memory.writes.values()) <= {steps}


def of_case(fill, kind, shapes):
    """Make the tensors of a case of `verify`."""
    dtype, _, has_master = KINDS[kind]
    case = Case(f"ptx-{fill}", "", shapes, fill=fill)
    with np.errstate(over="ignore"):
        return [
            Parameter(
                np.array(values.weight, dtype),
                np.array(grad),
                np.array(values.acc_grad),
                np.array(values.acc_delta),
                np.array(values.weight) if has_master else None,
            )
            for values, grad in zip(case.start(dtype, 0), case.grads(dtype, 0, 1), strict=True)
        ]


@pytest.mark.parametrize("hyper", [Hyperparameters(), ODD], ids=["defaults", "odd"])
@pytest.mark.parametrize("fill", ["usual", "special", "tiny", "huge"])
@pytest.mark.parametrize("kind", KINDS)
def test_ptx_gives_the_bits_of_the_cpu(kind, fill, hyper):
    """Ordinary numbers, infinities, NaNs, subnormals, overflow; whole packs, tails, no element."""
    most = 400 if fill == "special" else 100
    assert_ptx_is_cpu(of_case(fill, kind, ((most,), (0,), (7,), ())), hyper, steps=2)


@pytest.mark.parametrize("kind", KINDS)
def test_ptx_cuts_tensors_as_planned(kind):
    """More tiles than one, in tensors that begin anywhere, and fewer blocks than tiles."""
    sizes = [3, cuda.TILE_ELEMENTS + 5, 0, 1]
    aligned = [Parameter(*random_arrays(size, kind, seed=size)) for size in sizes]
    offset = [Parameter(*(a[1:] for a in random_arrays(size + 1, kind))) for size in sizes]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cuda, "MOST_BLOCKS", 2)
        for tensors in (aligned, offset):
            assert_ptx_is_cpu(tensors, Hyperparameters(**AWKWARD))


def run_far_tile(tile, code=None):
    """Run one tile of a tensor whose other elements have no memory; return what was written."""
    arrays, rows, run = far_tile(tile)
    memory = ptx.Memory([*arrays, rows])
    with simulated_gpu(**programs(memory, code)):
        run()
    return memory.writes


@pytest.mark.parametrize("tile", [2**19, 2**20, 2**21, 2**31 - 1])
def test_offsets_of_32_bits_would_be_seen(tile):
    """Beyond 2^31 elements they lead elsewhere; those of 64 bits do not."""
    assert len(run_far_tile(tile)) == 3 * FAR_ELEMENTS
    right, wrong = "const long long low =", "const int low ="
    assert cuda.source().count(right) == 1
    if tile * cuda.TILE_ELEMENTS >= 2**31:
        with pytest.raises(ptx.IllegalAddressError):
            run_far_tile(tile, cuda.source().replace(right, wrong))


FAULTS = {
    "addition of the wrong sign": ('(+, "add"', '(+, "sub"'),
    "subtraction of the wrong sign": ('(-, "sub"', '(-, "add"'),
    "division for multiplication": ('(*, "mul"', '(*, "div"'),
    "multiplication for division": ('(/, "div"', '(/, "mul"'),
    "operands exchanged": ('" %0, %0, %1;"', '" %0, %1, %0;"'),
    "no root": ('"sqrt.rn." TYPE', '"neg." TYPE'),
    "greater for less": ("setp.lt.", "setp.gt."),
    "truncated half": ("cvt.rn.f16.f32", "cvt.rz.f16.f32"),
    "truncated scalars": ("cvt.rn.f32.f64", "cvt.rz.f32.f64"),
}


@pytest.mark.parametrize("fault", slow_but(FAULTS, "no root", "operands exchanged"))
def test_a_wrong_instruction_is_found(fault):
    """Each mistake among the instructions that the source names changes a bit, or is unknown."""
    old, new = FAULTS[fault]
    assert cuda.source().count(old) == 1
    code = cuda.source().replace(old, new)
    with pytest.raises((AssertionError, NotImplementedError)):
        assert_ptx_is_cpu(of_case("usual", "mixed", ((50,),)), ODD, code=code)
