"""Instructions in which the 32 threads of a warp take part together.

shfl.sync hands values from lane to lane, vote.sync and redux.sync combine them, match.sync compares them, bar.warp.sync
only waits; mma.sync and ldmatrix work on matrices that lie spread over the lanes (PTX ISA, sections 9.7.13, 9.7.14).
Each names by a mask of 32 bits the lanes that take part, and waits until all of them are there with the same mask. Only
bar.warp.sync puts accesses to memory in an order; the others "do not imply a memory barrier" (CUDA C++ Programming
Guide, "Warp Shuffle Functions", "Warp Vote Functions", "Warp Match Functions").

Errors: a lane of the mask waits elsewhere, or has left the kernel (which is allowed where the ISA says "non-exited
threads": all but bar.warp.sync and the matrix instructions); a lane is not in its own mask; a shuffle from a lane that
has left or is not in the mask.
"""

import numpy as np

from minilora.errors import SimulationError
from minilora.simt import tensor_cores
from minilora.simt.access import address
from minilora.simt.check import access
from minilora.simt.instructions import TYPES
from minilora.simt.operands import Lanes, vector

RUNNING, AT_BARRIER, IN_WARP = 0, 1, 2  # what a lane waits for
FULL = np.uint32(0xFFFFFFFF)
_SYNC = ("shfl.sync", "vote.sync", "match.any.sync", "match.all.sync", "redux.sync", "bar.warp.sync")
_WHOLE = ("mma.sync", "ldmatrix")


def decode(machine, instruction):
    """A function that executes the instruction for some lanes; None if it is not of this kind."""
    if instruction.name == "activemask":
        return _activemask(machine, instruction)
    if instruction.opcode.startswith(_WHOLE):
        return _synchronised(machine, instruction, None, _matrix(machine, instruction))
    if instruction.opcode.startswith(_SYNC):
        mask = machine.registers.reader(instruction.operands[-1], "u32")
        kind = {"shfl": _shuffle, "vote": _vote, "match": _match, "redux": _reduce, "bar": _nothing}[instruction.name]
        return _synchronised(machine, instruction, mask, kind(machine, instruction))
    return None


def has_partial_masks(kernel) -> bool:
    """Whether a bar.warp.sync of this kernel may have a mask that is not plainly all 32 lanes."""
    full = {"-1", "4294967295", "0xffffffff", "0xFFFFFFFF"}
    definitions = {}
    for instruction in kernel.instructions:
        if instruction.operands:
            value = instruction.operands[-1] if instruction.name == "mov" else None
            definitions.setdefault(instruction.operands[0], set()).add(value)
    masks = [i.operands[-1] for i in kernel.instructions if i.opcode == "bar.warp.sync"]
    return any(mask not in full and not definitions.get(mask, {None}) <= full for mask in masks)


def _synchronised(machine, instruction, read_mask, execute):
    """Wait for the lanes of the mask, then execute for those that are complete."""
    is_barrier = instruction.opcode == "bar.warp.sync"

    def run(lanes: Lanes):
        mask = read_mask(lanes) if read_mask else np.broadcast_to(FULL, len(lanes))
        needed = mask & (machine.warp_exists if is_barrier else bits(machine.pc < machine.end))[lanes.ids >> 5]
        complete = _complete(machine, lanes, mask, needed)
        ready = lanes if complete.all() else lanes.where(complete)
        if ready.count:
            execute(ready, mask[complete])
            if is_barrier:
                whole = needed == machine.warp_exists[lanes.ids >> 5]
                machine.clock.warp_barrier(ready.ids, mask[complete], whole[complete], machine.at)
        if complete.all():
            return None
        machine.pc[machine.group.index] = machine.at + 1
        waits = lanes.where(~complete)
        machine.waiting[waits.index] = IN_WARP
        machine.mask[waits.index] = mask[~complete]
        machine.place(waits, machine.at)
        return ready

    return run


def _complete(machine, lanes: Lanes, mask: np.ndarray, needed: np.ndarray) -> np.ndarray:
    """Of each lane: whether the lanes that it needs, as bits, are here with the same mask."""
    warps = lanes.ids >> 5
    bit = np.uint32(1) << (lanes.ids & 31).astype(np.uint32)
    if len(outside := np.flatnonzero((mask & bit) == 0)):
        machine.fail("this thread is not in the mask of the instruction that it executes", lanes.ids[outside[0]])
    key = warps.astype(np.uint64) << np.uint64(32) | mask  # lanes of a warp with different masks do not count together
    order = np.argsort(key, kind="stable")
    first = np.flatnonzero(np.r_[True, np.diff(key[order]) != 0])
    here = np.bitwise_or.reduceat(bit[order], first)
    present = np.empty_like(bit)
    present[order] = np.repeat(here, np.diff(np.r_[first, len(order)]))
    return (present & needed) == needed


def fail_if_waiting(machine):
    """No lane can go on: fail for one that waits in vain for others of its warp."""
    waits = np.flatnonzero((machine.pc < machine.end) & (machine.waiting == IN_WARP))
    if len(waits) == 0:
        return
    lane = int(waits[0])
    machine.at = int(machine.pc[lane])
    warp = np.arange(lane & ~31, (lane & ~31) + 32)
    named = (machine.mask[lane] >> (warp & 31).astype(np.uint32) & np.uint32(1)).astype(bool)
    away = warp[named & machine.threads.exists[warp] & (machine.pc[warp] != machine.at)]
    if len(away) == 0:
        machine.fail("the lanes of its mask are here, but with other masks", lane)
    if machine.pc[away[0]] == machine.end:
        what = _gone(machine, away[0])
    else:
        what = f"waits elsewhere{machine.line_of(machine.pc[away[0]])}"
    machine.fail(f"waits for lane {away[0] & 31} of its warp, which {what}", lane)


def _gone(machine, lane: int) -> str:
    if not machine.threads.exists[lane]:
        return "is not there: the block has fewer threads"
    return f"left the kernel{machine.line_of(machine.left_at[lane])}"


def bits(flags: np.ndarray) -> np.ndarray:
    """(lanes,) bool -> (warps,) uint32."""
    return np.packbits(flags.reshape(-1, 32), axis=1, bitorder="little").view(np.uint32)[:, 0]


def _by_warp(machine, lanes: Lanes, values: np.ndarray) -> np.ndarray:
    """(lanes of the wave,) with `values` at these lanes."""
    everywhere = np.zeros(machine.threads.lanes, values.dtype)
    everywhere[lanes.index] = values
    return everywhere


def _nothing(machine, instruction):
    return lambda lanes, mask: None


def _shuffle(machine, instruction):
    """d = a of lane j (PTX ISA, section 9.7.9.6): j is lane - b, lane + b, lane ^ b or b, within a segment."""
    mode = instruction.modifiers[1]
    if mode not in ("up", "down", "bfly", "idx"):
        raise SimulationError(f"shuffle .{mode} is not supported")
    target, *valid = instruction.operands[0].split("|")
    value, b, c = (machine.registers.reader(o, "u32") for o in instruction.operands[1:4])
    write = machine.registers.writer(target, "b32")
    write_valid = machine.registers.writer(valid[0], "pred") if valid else None

    def execute(lanes, mask):
        lane = lanes.ids & 31
        by, segment, clamp = (n.astype(np.int64) for n in (b(lanes) & 31, c(lanes) >> 8 & 31, c(lanes) & 31))
        low = lane & segment
        high = low | (clamp & ~segment)
        j = {"up": lane - by, "down": lane + by, "bfly": lane ^ by, "idx": low | (by & ~segment)}[mode]
        inside = j >= high if mode == "up" else j <= high
        source = np.where(inside, j, lane)
        giver = (lanes.ids & ~31) + source
        outside = (mask >> source.astype(np.uint32) & np.uint32(1)) == 0
        if (bad := outside | (machine.pc[giver] == machine.end)).any():
            i = int(bad.argmax())
            why = f"is not in the mask {int(mask[i]):#x}" if outside[i] else _gone(machine, giver[i])
            machine.fail(f"shuffle from lane {source[i]}, which {why}", lanes.ids[i])
        write(lanes, _by_warp(machine, lanes, value(lanes))[giver])
        if write_valid:
            write_valid(lanes, inside)

    return execute


def _bits(machine, lanes, predicate) -> np.ndarray:
    """(lanes,) of each lane: the lanes of its warp for which the predicate holds, as bits."""
    bit = np.where(predicate, np.uint32(1) << (lanes.ids & 31).astype(np.uint32), np.uint32(0))
    rows = _by_warp(machine, lanes, bit).reshape(-1, 32)
    return np.bitwise_or.reduce(rows, axis=1)[lanes.ids >> 5]


def _vote(machine, instruction):
    """all, any, uni, ballot of a predicate over the lanes of the mask (PTX ISA, section 9.7.13.9)."""
    mode = instruction.modifiers[1]
    read = machine.registers.reader(instruction.operands[1], "pred")
    write = machine.registers.writer(instruction.operands[0], "b32" if mode == "ballot" else "pred")

    def execute(lanes, mask):
        mask = mask & bits(machine.pc < machine.end)[lanes.ids >> 5]
        votes = _bits(machine, lanes, read(lanes)) & mask
        result = {"ballot": votes, "any": votes != 0, "all": votes == mask, "uni": (votes == 0) | (votes == mask)}
        write(lanes, result[mode])

    return execute


def _groups(machine, lanes, mask, values):
    """Positions of lanes of one warp with one mask."""
    key = (lanes.ids >> 5).astype(np.uint64) << np.uint64(32) | mask
    return [np.flatnonzero(key == k) for k in np.unique(key)]


def _match(machine, instruction):
    """Which lanes have my value (PTX ISA, section 9.7.13.10)."""
    mode, type = instruction.modifiers[0], instruction.modifiers[-1]
    target, *same = instruction.operands[0].split("|")
    read = machine.registers.reader(instruction.operands[1], type)
    write = machine.registers.writer(target, "b32")
    write_same = machine.registers.writer(same[0], "pred") if same else None

    def execute(lanes, mask):
        values = read(lanes)
        bit = np.uint32(1) << (lanes.ids & 31).astype(np.uint32)
        result = np.zeros(len(lanes), np.uint32)
        for group in _groups(machine, lanes, mask, values):
            equal = values[group][:, None] == values[group]
            bits = np.bitwise_or.reduce(np.where(equal, bit[group], np.uint32(0)), axis=1)
            if mode == "all":
                bits = np.where(equal.all(), bits, np.uint32(0))
            result[group] = bits
        write(lanes, result)
        if write_same:
            write_same(lanes, result != 0)

    return execute


def _reduce(machine, instruction):
    """add, min, max, and, or, xor of a value over the lanes of the mask (PTX ISA, section 9.7.13.11)."""
    mode, type = instruction.modifiers[1], instruction.modifiers[-1]
    functions = {
        "add": np.add,
        "min": np.minimum,
        "max": np.maximum,
        "and": np.bitwise_and,
        "or": np.bitwise_or,
        "xor": np.bitwise_xor,
    }
    if mode not in functions or type not in ("u32", "s32", "b32"):
        raise SimulationError(f"reduction .{mode}.{type} is not supported")
    read = machine.registers.reader(instruction.operands[1], type)
    write = machine.registers.writer(instruction.operands[0], type)
    dtype = TYPES[type]

    def execute(lanes, mask):
        values = read(lanes)
        result = np.empty(len(lanes), dtype)
        for group in _groups(machine, lanes, mask, values):
            result[group] = functions[mode].reduce(values[group], dtype=dtype)
        write(lanes, result)

    return execute


def _activemask(machine, instruction):
    """The lanes of the warp that execute this together."""
    write = machine.registers.writer(instruction.operands[0], "b32")
    return lambda lanes: write(lanes, _bits(machine, lanes, np.ones(len(lanes), bool)))


def _matrix(machine, instruction):
    return _multiply(machine, instruction) if instruction.name == "mma" else _load_matrices(machine, instruction)


def _multiply(machine, instruction):
    """d = a b + c, matrices that lie spread over the registers of a warp (tensor_cores.py)."""
    *_, type_d, _, _, type_c = instruction.modifiers
    types = ["f32" if t == "f32" else "b32" for t in (type_d, "b32", "b32", type_c)]
    d, a, b, c = (vector(operand) for operand in instruction.operands)
    writes = [machine.registers.writer(register, types[0]) for register in d]
    reads = [[machine.registers.reader(r, t) for r in part] for part, t in zip((a, b, c), types[1:], strict=True)]

    def execute(lanes, mask):
        _whole_warps(machine, lanes)
        values = [[read(lanes).reshape(-1, 32) for read in part] for part in reads]
        for write, value in zip(writes, tensor_cores.mma(instruction, *values), strict=True):
            write(lanes, value.reshape(-1))

    return execute


def _load_matrices(machine, instruction):
    """ldmatrix: lane i names the address of row i mod 8 of matrix i / 8, 8 numbers of 16 bits each."""
    registers = vector(instruction.operands[0])
    writes = [machine.registers.writer(register, "b32") for register in registers]
    where = address(machine, instruction.operands[1], "shared")
    rows = 8 * len(registers)

    def execute(lanes, mask):
        _whole_warps(machine, lanes)
        naming = lanes.where((lanes.ids & 31) < rows)
        at = access(machine, "read", "shared", where(naming), 16, naming)
        matrix = machine.memory.typed(np.dtype(np.uint16))[at[:, None] // 2 + np.arange(8)]
        values = tensor_cores.ldmatrix(instruction, matrix.reshape(-1, rows, 8))
        for write, value in zip(writes, values, strict=True):
            write(lanes, value.reshape(-1))

    return execute


def _whole_warps(machine, lanes: Lanes):
    """A whole number of warps, or fail."""
    if lanes.count % 32 or (lanes.ids.reshape(-1, 32) != lanes.ids[::32, None] + np.arange(32)).any():
        here = bits(_by_warp(machine, lanes, np.ones(lanes.count, bool)))
        i = int((here[lanes.ids >> 5] != FULL).argmax())
        absent = next(k for k in range(32) if not here[lanes.ids[i] >> 5] >> k & 1)
        why = _gone(machine, (lanes.ids[i] & ~31) + absent)
        machine.fail(f"the instruction needs all 32 lanes; lane {absent} {why}", lanes.ids[i])
