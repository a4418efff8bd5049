"""Loads, stores and atomics: from an instruction to addresses, through the checks, to bytes.

ld, st, atom, red, cvta (PTX ISA, sections 9.7.9 Data Movement and 9.7.13 Parallel Synchronization). Lanes whose
atomics meet at one address take turns, in the order of their numbers. A GPU may take another order, so that sums of
floats differ in their last bits from one run to the next. Accesses that order others (.acquire, .release) are refused,
as are .relaxed loads and stores: races.py has no rule for them. A .volatile access is a plain one.
"""

import re
from collections.abc import Callable

import numpy as np

from minilora.errors import SimulationError
from minilora.simt import floats
from minilora.simt.check import access
from minilora.simt.instructions import TYPES
from minilora.simt.operands import Lanes, vector

SPACES = ("global", "shared", "const", "local", "param")
HINTS = {"nc", "ca", "cg", "cs", "lu", "cv", "wb", "wt", "weak", "volatile"}  # of a load or a store
SCOPES = {"relaxed", "cta", "cluster", "gpu", "sys", "noftz"}  # of an atomic


def decode(machine, instruction) -> Callable[[Lanes], None] | None:
    """A function that executes the instruction for some lanes; None if it is not of this kind."""
    kinds = {"ld": _load, "ldu": _load, "st": _store, "atom": _atomic, "red": _atomic, "cvta": _convert}
    kind = kinds.get(instruction.name)
    return kind(machine, instruction) if kind else None


def _parts(instruction, harmless: set[str]) -> tuple[str, int, str, list[str]]:
    """(space or "generic", elements of a vector, type, modifiers that are not harmless)."""
    *modifiers, type = instruction.modifiers
    space, count, rest = "generic", 1, []
    for modifier in modifiers:
        if modifier in SPACES:
            space = modifier
        elif modifier in ("v2", "v4", "v8"):
            count = int(modifier[1])
        elif modifier not in harmless and not modifier.startswith(("L1::", "L2::")):
            rest.append(modifier)
    return space, count, type, rest


def address(machine, operand: str, space: str) -> Callable[[Lanes], np.ndarray]:
    """A function that gives the address in `operand`, "[%rd4+16]", as int64."""
    match = re.fullmatch(r"\[\s*([\w$%.]+)\s*(?:\+\s*(-?\w+))?\s*\]", operand)
    if not match:
        raise SimulationError(f"address {operand} is not understood")
    base, plus = match[1], int(match[2] or "0", 0)
    wide = machine.kernel.registers.get(base, "b64") not in ("b32", "u32", "s32")
    read = machine.registers.reader(base, "u64" if wide else "u32")
    if not wide:
        return lambda lanes: read(lanes).astype(np.int64) + plus
    return lambda lanes: read(lanes).view(np.int64) + plus


def _load(machine, instruction):
    space, count, type, rest = _parts(instruction, HINTS)
    _refuse(rest)
    target = vector(instruction.operands[0]) or [instruction.operands[0]]
    writers = [machine.registers.writer(register, type) for register in target]
    dtype = np.dtype(TYPES[type])
    if space == "param":
        return _load_parameter(machine, instruction, writers, dtype)
    where = address(machine, instruction.operands[1], space)
    memory, nbytes = machine.memory.typed(dtype), dtype.itemsize * count

    def execute(lanes):
        index = access(machine, "read", space, where(lanes), nbytes, lanes) // dtype.itemsize
        for i, write in enumerate(writers):
            write(lanes, memory[index + i])

    return execute


def _load_parameter(machine, instruction, writers, dtype):
    match = re.fullmatch(r"\[\s*([\w$]+)\s*(?:\+\s*(\d+))?\s*\]", instruction.operands[1])
    if not match or match[1] not in machine.parameters:
        raise SimulationError(f"parameter {instruction.operands[1]} is not known")
    first = int(match[2] or 0)
    data = machine.parameters[match[1]][first : first + dtype.itemsize * len(writers)].view(dtype)

    def execute(lanes):
        for write, value in zip(writers, data, strict=True):
            write(lanes, value)

    return execute


def _store(machine, instruction):
    space, count, type, rest = _parts(instruction, HINTS)
    _refuse(rest)
    if space == "param":
        raise SimulationError("calls are not supported: make the device function __forceinline__")
    source = vector(instruction.operands[1]) or [instruction.operands[1]]
    readers = [machine.registers.reader(operand, type) for operand in source]
    dtype = np.dtype(TYPES[type])
    where = address(machine, instruction.operands[0], space)
    memory, nbytes = machine.memory.typed(dtype), dtype.itemsize * count

    def execute(lanes):
        index = access(machine, "write", space, where(lanes), nbytes, lanes) // dtype.itemsize
        for i, read in enumerate(readers):
            memory[index + i] = read(lanes)

    return execute


def _convert(machine, instruction):
    """cvta: between an address in a space and the generic one of the same byte."""
    *to, size = instruction.modifiers
    space, sign = (to[1], -1) if to[0] == "to" else (to[0], 1)
    read = machine.registers.reader(instruction.operands[1], size)
    write = machine.registers.writer(instruction.operands[0], size)
    if space in ("global", "const"):
        return lambda lanes: write(lanes, read(lanes))
    if space not in ("shared", "local"):
        raise SimulationError(f"state space .{space} is not supported")

    def execute(lanes):
        window = sign * machine.window(machine.memory.region[space], lanes)
        write(lanes, (read(lanes).astype(np.int64) + window).astype(TYPES[size]))

    return execute


def _atomic(machine, instruction):
    space, count, type, rest = _parts(instruction, SCOPES)
    if len(rest) != 1 or count != 1:
        _refuse(rest[:-1] or [f"v{count}"])
    operation = rest[0]
    operands = instruction.operands if instruction.name == "atom" else ("_", *instruction.operands)
    write = machine.registers.writer(operands[0], type)
    where = address(machine, operands[1], space)
    readers = [machine.registers.reader(operand, type) for operand in operands[2:]]
    dtype = np.dtype(TYPES[type])
    memory = machine.memory.typed(dtype)
    combine = _combination(operation, type, flush=space != "shared")

    def execute(lanes):
        index = access(machine, "atomic", space, where(lanes), dtype.itemsize, lanes) // dtype.itemsize
        values = [np.ascontiguousarray(read(lanes)) for read in readers]
        old = np.empty(len(index), dtype)
        for turn in _turns(index):
            at = index[turn]
            old[turn] = memory[at]
            memory[at] = combine(old[turn], *(v[turn] for v in values))
        write(lanes, old)

    return execute


def _turns(index: np.ndarray) -> list[np.ndarray]:
    """Positions in groups that have no address twice, each address served in order."""
    order = np.argsort(index, kind="stable")
    ordered = index[order]
    start = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]])
    if len(start) == len(index):
        return [slice(None)]
    rank = np.arange(len(index)) - np.repeat(start, np.diff(np.r_[start, len(index)]))
    by_rank = np.argsort(rank, kind="stable")
    return [order[part] for part in np.split(by_rank, np.cumsum(np.bincount(rank))[:-1])]


def _combination(operation: str, type: str, flush: bool) -> Callable:
    """What an atomic puts in the place of `old`. flush: add.f32 in global memory takes subnormals for zero."""
    one = TYPES[type](1)
    functions = {
        "add": lambda old, b: old + b,
        "min": np.minimum,
        "max": np.maximum,
        "and": np.bitwise_and,
        "or": np.bitwise_or,
        "xor": np.bitwise_xor,
        "exch": lambda old, b: b,
        "cas": lambda old, b, c: np.where(old == b, c, old),
        "inc": lambda old, b: np.where(old >= b, old - old, old + one),
        "dec": lambda old, b: np.where((old == 0) | (old > b), b, old - one),
    }
    if operation not in functions or ("16" in type and operation != "add"):
        raise SimulationError(f"atomic .{operation}.{type} is not supported; there are: {', '.join(functions)}")
    if operation == "add" and type == "f32" and flush:
        return lambda old, b: floats.flush(floats.flush(old) + floats.flush(b))
    if operation == "add" and type == "f16x2":
        return lambda old, b: (old.view(np.float16) + b.view(np.float16)).view(np.uint32)
    if operation == "add" and type in ("bf16", "bf16x2"):
        return _add_bfloat16
    return functions[operation]


def _add_bfloat16(old: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The float32 sum, rounded; float32 has more than twice bfloat16's digits, so rounding twice is harmless."""
    x, y = (floats.bfloat16_values(v.view(np.uint16)) for v in (old, b))
    return floats.bfloat16_bits(x + y).view(old.dtype)


def _refuse(modifiers: list[str]):
    if modifiers:
        raise SimulationError(f"modifier .{modifiers[0]} is not supported here")
