"""Reads PTX, the assembly that NVRTC makes of CUDA, and runs it: as much as the kernels here use.

It runs thread after thread, an instruction at a time, on memory whose bounds it knows. An
instruction that it does not know is an error, so nothing is approximated. What the instructions
mean is in the PTX ISA, https://docs.nvidia.com/cuda/parallel-thread-execution/.
"""

from __future__ import annotations

import operator
import re
import struct
from collections import Counter
from functools import cache
from typing import NamedTuple

import numpy as np

# --- reading --------------------------------------------------------------------------------------


class Instruction(NamedTuple):
    """One instruction.

    Attributes:
        guard: the predicate on which it depends; empty where it always runs.
        unless: it runs where the predicate does not hold.
        opcode: in full, as in `add.rn.f32`.
        operands: as they stand there, that of a vector in one.
    """

    guard: str
    unless: bool
    opcode: str
    operands: tuple[str, ...]


class Kernel(NamedTuple):
    """A kernel: the names of its parameters, its instructions, and where its labels stand."""

    parameters: list[str]
    body: list[Instruction]
    labels: dict[str, int]


@cache
def kernels(text):
    """Read the kernels of a module, by name; once for all tests."""
    text = re.sub(r"//.*", "", text)
    found = re.findall(r"\.entry (\w+)\((.*?)\)[^{]*\{(.*?)\n\}", text, re.DOTALL)
    return {name: _kernel(parameters, body) for name, parameters, body in found}


def _kernel(parameters, body):
    instructions, labels = [], {}
    for statement in re.sub(r"(\$\w+):", r"\1:;", body).split(";"):
        # A scope of its own, as inline assembly opens for its registers, begins a statement.
        line = " ".join(re.sub(r"^[\s{}]+", "", statement).split())
        if line.endswith(":"):
            labels[line[:-1]] = len(instructions)
        elif line and not line.startswith("."):
            instructions.append(_instruction(line))
    return Kernel(
        re.findall(r"\.param .*?(\w+)(?:\[\d+\])?\s*(?:,|$)", parameters), instructions, labels
    )


def _instruction(line):
    unless, guard, opcode, rest = re.fullmatch(r"(?:@(!?)(\S+) )?([\w.:]+) ?(.*)", line).groups()
    operands = tuple(re.findall(r"\{[^}]*\}|\[[^\]]*\]|[^,\s]+", rest))
    return Instruction(guard or "", bool(unless), opcode, operands)


# --- judging --------------------------------------------------------------------------------------

# What may be done to floats: what IEEE 754 rounds correctly, rounded to nearest, subnormals kept;
# what does not round; and moves. A bare `mul.f32` may be contracted later, and is not among them.
ROUNDED_ONCE = re.compile(
    r"(add|sub|mul|div|sqrt)\.rn\.f(32|64)"
    r"|cvt\.rn\.(f32\.f64|f16\.f32)|cvt\.f32\.f16|neg\.f64"
    r"|setp\.\w\w\.f(32|64)|(selp|mov)\.f(32|64)"
    r"|(ld\.param|(ld|st)\.global(\.nc)?)(\.v[24])?\.f(32|64)"
)
FLOAT = re.compile(r"\.(b?f\d|tf32|e\dm\d)")


def doubtful(text):
    """List a module's instructions that may not round floats once, or that use local memory."""
    opcodes = {each.opcode for kernel in kernels(text).values() for each in kernel.body}
    return sorted(
        opcode
        for opcode in opcodes
        if ".local" in opcode or (FLOAT.search(opcode) and not ROUNDED_ONCE.fullmatch(opcode))
    )


# --- running --------------------------------------------------------------------------------------


class IllegalAddressError(Exception):
    """An access outside all arrays, or not aligned to its size."""


FORMATS = {
    "f32": "f",
    "f64": "d",
    "u16": "H",
    "u32": "I",
    "u64": "Q",
    "s32": "I",
    "s64": "Q",
    "u8": "B",
}
REALS = {"f32": np.float32, "f64": np.float64}


class Memory:
    """The arrays that a kernel may touch.

    Attributes:
        writes: how often each address was written.
    """

    def __init__(self, arrays):
        self._spans = []
        self.writes = Counter()
        for array in arrays:
            self.add(array)

    def add(self, array):
        """Let an array be touched; return it."""
        start = array.__array_interface__["data"][0]
        self._spans.append((start, start + array.nbytes, array.reshape(-1).view(np.uint8).data))
        return array

    def _place(self, address, size):
        for start, end, data in self._spans:
            if start <= address and address + size <= end and address % size == 0:
                return data, address - start
        raise IllegalAddressError(f"{size} bytes at {address:#x}")

    def load(self, address, kind, count):
        """Read values side by side."""
        form = f"{count}{FORMATS[kind]}"
        values = struct.unpack_from(form, *self._place(address, struct.calcsize(form)))
        return [REALS.get(kind, int)(value) for value in values]

    def store(self, address, kind, values):
        """Write values side by side."""
        form = f"{len(values)}{FORMATS[kind]}"
        size = struct.calcsize(FORMATS[kind])
        struct.pack_into(form, *self._place(address, struct.calcsize(form)), *values)
        self.writes.update(address + k * size for k in range(len(values)))


def _bits(kind):
    return int(kind[1:]) if kind != "pred" else 1


def _signed(value, kind):
    """Read a register's bits as a number of a type."""
    bits = _bits(kind)
    value &= (1 << bits) - 1
    return value - (1 << bits) if kind[0] == "s" and value >> (bits - 1) else value


def _whole(function):
    """Make an operation on integers; the result keeps as many bits as its type."""

    def make(kind):
        mask = (1 << _bits(kind)) - 1
        return lambda *values: function(*(_signed(value, kind) for value in values)) & mask

    return make


def _real(function):
    """Make an operation on floats, which NumPy rounds once."""
    return lambda kind: lambda *values: REALS[kind](function(*values))


def _comparison(function):
    """Make a comparison of floats, or of integers."""

    def make(kind):
        if kind in REALS:
            return lambda a, b: bool(function(a, b))
        return lambda a, b: function(_signed(a, kind), _signed(b, kind))

    return make


def _moved(_kind):
    return lambda value: value


def _selected(_kind):
    return lambda first, second, condition: first if condition else second


def _wide(kind):
    double = kind[0] + str(2 * _bits(kind))
    return lambda a, b: _whole(operator.mul)(double)(_signed(a, kind), _signed(b, kind))


def _half(value):
    return np.uint16(value).view(np.float16)


# By opcode without its last type, which is that of the operands; else by the whole opcode.
OPERATIONS = {
    **{
        f"{name}.rn": _real(getattr(operator, function))
        for name, function in {"add": "add", "sub": "sub", "mul": "mul", "div": "truediv"}.items()
    },
    "sqrt.rn": _real(np.sqrt),
    "neg": _real(operator.neg),
    **{
        name: _whole(getattr(operator, function))
        for name, function in {
            "add": "add",
            "sub": "sub",
            "mul.lo": "mul",
            "and": "and_",
            "or": "or_",
            "shl": "lshift",
            "shr": "rshift",
        }.items()
    },
    "min": _whole(min),
    "not": _whole(operator.invert),
    "mul.wide": _wide,
    **{
        f"setp.{name}": _comparison(getattr(operator, name))
        for name in ("eq", "ne", "lt", "le", "gt", "ge")
    },
    "selp": _selected,
    "mov": _moved,
    "cvta.to.global": _moved,
    **{f"cvt.{kind}": _whole(operator.pos) for kind in ("s64", "u64", "u32", "s32", "u16")},
}
CONVERSIONS = {
    "cvt.rn.f32.f64": np.float32,
    "cvt.rn.f16.f32": lambda value: int(np.float16(value).view(np.uint16)),
    "cvt.f32.f16": lambda bits: np.float32(_half(bits)),
}


def _operation(opcode):
    if opcode in CONVERSIONS:
        return CONVERSIONS[opcode]
    name, _, kind = opcode.rpartition(".")
    if name not in OPERATIONS:
        raise NotImplementedError(f"the instruction {opcode}")
    return OPERATIONS[name](kind)


def _read(text):
    """Make what reads an operand from the registers."""
    if text.startswith(("0f", "0d")):
        raw = bytes.fromhex(text[2:])
        value = np.frombuffer(raw[::-1], {4: np.float32, 8: np.float64}[len(raw)])[0]
        return lambda _registers: value
    if re.fullmatch(r"-?\d+", text):
        return lambda _registers: int(text)
    return operator.itemgetter(text)


def _names(text):
    return [name.strip() for name in text.strip("{}").split(",")]


def _address(text):
    base, _, offset = text.strip("[]").partition("+")
    return base, int(offset or 0)


def _action(instruction):
    """Make what an instruction does to registers and memory."""
    opcode, operands = instruction.opcode, instruction.operands
    parts = opcode.split(".")
    if opcode.startswith("ld."):
        (base, offset), names, kind = _address(operands[1]), _names(operands[0]), parts[-1]
        if parts[1] == "param":
            return lambda registers, _memory: registers.update({names[0]: registers[base]})

        def load(registers, memory):
            values = memory.load(registers[base] + offset, kind, len(names))
            registers.update(zip(names, values, strict=True))

        return load
    if opcode.startswith("st.global."):
        (base, offset), names, kind = _address(operands[0]), _names(operands[1]), parts[-1]

        def store(registers, memory):
            values = [registers[name] for name in names]
            memory.store(registers[base] + offset, kind, values)

        return store
    function, readers = _operation(opcode), [_read(each) for each in operands[1:]]

    def compute(registers, _memory):
        registers[operands[0]] = function(*(read(registers) for read in readers))

    return compute


class Program:
    """A kernel that can be run, with the interface of CuPy's.

    Args:
        kernel: as it was read.
        memory: what it may touch.
    """

    def __init__(self, kernel, memory):
        self._kernel, self._memory = kernel, memory
        jumps = {"bra", "bra.uni", "ret"}
        self._steps = [
            (each, None if each.opcode in jumps else _action(each)) for each in kernel.body
        ]

    def __call__(self, grid, block, args, *, blocks=None):
        """Run the blocks of a grid, all by default, thread after thread."""
        values = [_argument(value) for value in args]
        registers = dict(zip(self._kernel.parameters, values, strict=True))
        registers |= {"%nctaid.x": grid[0], "%ntid.x": block[0]}
        with np.errstate(all="ignore"):
            for number in blocks or range(grid[0]):
                for thread in range(block[0]):
                    self._thread(registers | {"%ctaid.x": number, "%tid.x": thread})

    def _thread(self, registers):
        at = 0
        while at < len(self._steps):
            instruction, action = self._steps[at]
            at += 1
            if instruction.guard and bool(registers[instruction.guard]) == instruction.unless:
                continue
            if action:
                action(registers, self._memory)
            elif instruction.opcode == "ret":
                return
            else:
                at = self._kernel.labels[instruction.operands[0]]


def _argument(value):
    """Turn an argument into what a register holds of it."""
    if isinstance(value, np.ndarray):
        return value.__array_interface__["data"][0]
    return int(value) if isinstance(value, np.integer) else value
