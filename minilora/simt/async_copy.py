"""cp.async: copy from global to shared memory while the thread goes on.

    cp.async.cg.shared.global [dst], [src], 16;     start a copy of 4, 8 or 16 bytes
    cp.async.commit_group;                          this thread's copies since the last commit are a group
    cp.async.wait_group 1;                          wait until at most one of this thread's groups is under way
    cp.async.wait_all;

(PTX ISA, section 9.7.9.25 Asynchronous copy.) When the bytes arrive is not said, only that they are there after the
wait, for the thread that waited; others need a barrier after it. Here they arrive with the wait, as late as may be, so
that code which forgets it computes with old values; with checks on, touching them before is an error, and so is
changing the source meanwhile.
"""

import re
from dataclasses import dataclass

import numpy as np

from minilora.errors import SimulationError
from minilora.simt.access import address
from minilora.simt.check import access, shadow_of
from minilora.simt.operands import Lanes


@dataclass
class Batch:
    """Copies of one instruction, an entry for each lane. group: the lane's groups before this one."""

    lanes: Lanes
    group: np.ndarray
    source: np.ndarray  # generic addresses
    target: np.ndarray
    data: np.ndarray  # (lanes, size) uint8
    taken: np.ndarray  # bytes that come from the source; the others are zeros
    event: int

    def part(self, mask: np.ndarray) -> "Batch":
        arrays = (self.group, self.source, self.target, self.data, self.taken)
        return Batch(self.lanes.where(mask), *(a[mask] for a in arrays), self.event)


class Copies:
    """Those under way, of a wave."""

    def __init__(self, machine):
        self.machine = machine

    def start(self):
        self.batches: list[Batch] = []
        self.groups = np.zeros(self.machine.threads.lanes, np.int64)  # committed by each lane

    def issue(self, lanes: Lanes, target, source, size: int, taken: np.ndarray):
        """target: in shared memory. taken: how many of the `size` bytes to read, of each lane; the rest are zeros."""
        machine, memory = self.machine, self.machine.memory
        data = np.zeros((lanes.count, size), np.uint8)
        for count in np.unique(taken[taken > 0]):
            some = np.flatnonzero(taken == count)
            part, step = lanes if len(some) == lanes.count else Lanes(lanes.ids[some]), int(count & -count)
            for first in range(0, int(count), step):
                access(machine, "read", "global", source[some] + first, step, part)
            data[some, :count] = memory.bytes[source[some][:, None] + np.arange(count)]
        absolute = access(machine, "copy", "shared", target, size, lanes)
        event = len(machine.clock.pcs) - 1
        self.batches.append(Batch(lanes, self.groups[lanes.ids], source, absolute, data, taken, event))

    def commit(self, lanes: Lanes):
        self.groups[lanes.index] += 1

    def wait(self, lanes: Lanes, under_way: int | None):
        """Of each lane, all but the last `under_way` groups arrive; None: everything does."""
        waits = np.zeros(self.machine.threads.lanes, bool)
        waits[lanes.index] = True
        left = []
        for batch in self.batches:
            done = waits[batch.lanes.ids]
            if under_way is not None:
                done &= batch.group < self.groups[batch.lanes.ids] - under_way
            if done.any():
                self._arrive(batch if done.all() else batch.part(done))
            if not done.all():
                left.append(batch.part(~done) if done.any() else batch)
        self.batches = left

    def _arrive(self, batch: Batch):
        machine, size = self.machine, batch.data.shape[1]
        machine.memory.bytes[batch.target[:, None] + np.arange(size)] = batch.data
        shared = machine.memory.shared
        if shared.shadow is None:
            return
        self._check_source(batch, size)
        shared.shadow.arrive(batch.target - shared.start, size, machine.threads.number[batch.lanes.index], machine.at)

    def _check_source(self, batch: Batch, size: int):
        whole = np.flatnonzero(batch.taken == size)
        if len(whole) == 0:
            return
        machine, region = self.machine, self.machine.memory.global_
        source = batch.source[whole]
        index = np.searchsorted(region.starts, source, "right") - 1
        for k in np.unique(index):
            shadow, base = shadow_of(machine, region, region.segments[k])
            if shadow is None:
                continue
            some = np.flatnonzero(index == k)
            changed = shadow.written_since(batch.event, source[some] - base, size)
            if changed.any():
                i = some[int(changed.argmax())]
                where = region.describe(int(source[i]))
                machine.fail(f"race: {where} was written while cp.async was copying it", batch.lanes.ids[whole[i]])


def decode(machine, instruction):
    """A function that executes the instruction for some lanes; None if it is not of this kind."""
    opcode = instruction.opcode
    if not opcode.startswith("cp."):
        return None
    copies = machine.copies
    if opcode == "cp.async.commit_group":
        return copies.commit
    if opcode == "cp.async.wait_all":
        return lambda lanes: copies.wait(lanes, None)
    if opcode == "cp.async.wait_group":
        under_way = int(instruction.operands[0], 0)
        return lambda lanes: copies.wait(lanes, under_way)
    if not re.match(r"cp\.async\.c[ag]\.shared(::cta)?\.global\b", opcode):
        raise SimulationError("of the asynchronous copies only cp.async with commit_group and wait_group is supported")
    return _copy(machine, instruction)


def _copy(machine, instruction):
    size = int(instruction.operands[2], 0)
    if size not in (4, 8, 16) or ("cg" in instruction.modifiers and size != 16):
        raise SimulationError(f"{size} bytes: .ca copies 4, 8 or 16, .cg copies 16")
    target = address(machine, instruction.operands[0], "shared")
    source = address(machine, instruction.operands[1], "global")
    rest = instruction.operands[3:]
    if "L2::cache_hint" in instruction.modifiers:
        rest = rest[:-1]
    if not rest:
        taken = lambda lanes: np.full(lanes.count, size)  # noqa: E731
    elif machine.kernel.registers.get(rest[0].lstrip("!")) == "pred":
        ignore = machine.registers.reader(rest[0], "pred")
        taken = lambda lanes: np.where(ignore(lanes), 0, size)  # noqa: E731
    else:
        read = machine.registers.reader(rest[0], "u32")
        taken = lambda lanes: read(lanes).astype(np.int64)  # noqa: E731

    def execute(lanes: Lanes):
        counts = taken(lanes)
        if (counts > size).any():
            machine.fail(f"the source has {counts.max()} bytes, the copy {size}", lanes.ids[int(counts.argmax())])
        machine.copies.issue(lanes, target(lanes), source(lanes), size, counts)

    return execute
