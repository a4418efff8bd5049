"""bar.sync: wait until all threads of the block are at the same barrier (__syncthreads).

bar.red also combines a predicate of all threads: __syncthreads_count, _and, _or (PTX ISA, section 9.7.13.1). That some
threads of a block do not come, because they left the kernel or wait at another barrier, is an error here even where a
GPU would go on: CUDA allows __syncthreads in a branch only if all threads of the block take it.
"""

import numpy as np

from minilora.errors import SimulationError
from minilora.simt.operands import Lanes
from minilora.simt.warp import AT_BARRIER, RUNNING


def decode(machine, instruction):
    """A function that makes lanes wait; None if the instruction is no barrier."""
    if instruction.name not in ("bar", "barrier") or "warp" in instruction.modifiers:
        return None
    modifiers = [m for m in instruction.modifiers if m not in ("cta", "aligned")]
    if modifiers[0] not in ("sync", "red"):
        raise SimulationError(f"barrier .{modifiers[0]} is not supported")
    operands = list(instruction.operands)
    together = lambda lanes: None  # noqa: E731
    if modifiers[0] == "red":
        together = _combination(machine, modifiers[1], operands.pop(0), operands.pop())
    if operands[0] != "0":
        raise SimulationError("of the sixteen barriers of a block only number 0 is supported")
    if operands[1:] and operands[1] != str(machine.threads.size):
        raise SimulationError(f"it waits for {operands[1]} of {machine.threads.size} threads; only all are supported")
    machine.barriers[machine.at] = together

    def execute(lanes: Lanes):
        machine.pc[machine.group.index] = machine.at + 1
        machine.waiting[lanes.index] = AT_BARRIER
        machine.place(lanes, machine.at)
        return lanes

    return execute


def _combination(machine, how: str, target: str, source: str):
    """What the last of a block's threads brings about: the result, in every thread."""
    read = machine.registers.reader(source, "pred")
    write = machine.registers.writer(target, "u32" if how == "popc" else "pred")
    functions = {"popc": np.sum, "and": np.all, "or": np.any}
    size = machine.threads.size

    def together(lanes: Lanes):
        result = functions[how](read(lanes).reshape(-1, size), axis=1)
        write(lanes, np.repeat(result, size).astype(np.uint32 if how == "popc" else bool))

    return together


def release(machine):
    """No lane can go on: let the blocks pass whose threads are all at one barrier; fail for the others."""
    at_barrier = (machine.pc < machine.end) & (machine.waiting == AT_BARRIER)
    lanes_of_block, size = machine.threads.block_lanes, machine.threads.size
    pcs = np.where(at_barrier, machine.pc, -1).reshape(-1, lanes_of_block)[:, :size]
    waits = at_barrier.any() & (pcs >= 0).any(1)
    divergent = waits & (pcs != pcs[:, :1]).any(1)
    if divergent.any():
        _fail(machine, int(divergent.argmax()) * lanes_of_block, pcs[divergent.argmax()])
    ready = np.flatnonzero(at_barrier)
    for pc in np.unique(machine.pc[ready]):
        lanes = Lanes(ready[machine.pc[ready] == pc])
        machine.barriers[int(pc)](lanes)
        machine.clock.barrier(lanes.ids, int(pc))
        machine.pc[lanes.index] += 1
        machine.waiting[lanes.index] = RUNNING


def _fail(machine, first: int, pcs: np.ndarray):
    """pcs: of the block's threads, the barrier that each waits at, -1 if none. first: the block's first lane."""
    there = np.flatnonzero(pcs >= 0)
    machine.at = int(pcs[there[0]])
    waits = np.flatnonzero(pcs == machine.at)
    other = np.flatnonzero(pcs != machine.at)[0]
    if pcs[other] < 0:
        what = f"left the kernel{machine.line_of(machine.left_at[first + other])}"
    else:
        what = f"waits at another one{machine.line_of(pcs[other])}"
    machine.fail(
        f"barrier divergence: {len(waits)} of the block's {len(pcs)} threads wait at this barrier, "
        f"{machine.who(first + other)} {what}",
        first + waits[0],
    )
