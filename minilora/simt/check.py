"""What may be wrong with an access to memory, checked in this order, and said in words.

Outside every array; not aligned to its own size; a write to what is read-only; bytes that were never written, that
cp.async is still copying, or that another thread may touch at the same time (races.py).
"""

import numpy as np

from minilora.simt.memory import Region, Segment
from minilora.simt.operands import Lanes
from minilora.simt.races import Conflict, Shadow


def add_shadows(machine):
    """Remember accesses, except to what can only be read."""
    memory = machine.memory
    for segment in memory.global_.segments:
        if not segment.read_only:
            segment.shadow = Shadow(segment.start % 16 + segment.size, machine.clock, not segment.initialized)
    for region in (memory.shared, memory.local):
        region.shadow = Shadow(region.end - region.start, machine.clock, poisoned=True)


def access(machine, kind: str, space: str, addresses: np.ndarray, nbytes: int, lanes: Lanes) -> np.ndarray:
    """Check what each of `lanes` does; the generic addresses. kind: "read", "write", "atomic", "copy" (cp.async)."""
    memory = machine.memory
    if space == "generic":
        for region, some in memory.regions_of(addresses):
            part, there = (lanes, addresses) if some is None else (Lanes(lanes.ids[some]), addresses[some])
            _check(machine, kind, region, there - machine.window(region, part), there, nbytes, part)
        return addresses
    region = memory.region[space]
    absolute = addresses + machine.window(region, lanes) if region is not memory.global_ else addresses
    _check(machine, kind, region, addresses, absolute, nbytes, lanes)
    return absolute


def _check(machine, kind: str, region: Region, offsets, absolute, nbytes: int, lanes: Lanes):
    """offsets: from the start of the region's window, whose segments they must fall in."""
    segment = region.segment_of(offsets, nbytes)
    parts = [(segment, slice(None))]
    if isinstance(segment, np.ndarray):  # not all in one
        if (segment < 0).any():
            i = int((segment < 0).argmax())
            where = region.nearest(int(offsets[i]))
            machine.fail(f"{region.space} {kind} of {nbytes} bytes out of bounds: {where}", lanes.ids[i])
        parts = [(region.segments[k], np.flatnonzero(segment == k)) for k in np.unique(segment)]
    if int(np.bitwise_or.reduce(absolute)) & (nbytes - 1):
        i = int((absolute % nbytes != 0).argmax())
        past = int(absolute[i]) % nbytes
        machine.fail(
            f"misaligned {region.space} {kind} of {nbytes} bytes at {region.describe(int(offsets[i]))}, "
            f"{past} after a multiple of {nbytes}",
            lanes.ids[i],
        )
    if machine.counters is not None:
        number = machine.threads.number[lanes.index]
        write = kind != "read"
        machine.counters.access(machine.at, region.space, write, offsets, nbytes, number >> 5, number & 31)
    for segment, some in parts:
        part = lanes if isinstance(some, slice) else Lanes(lanes.ids[some])
        if segment.read_only and kind != "read":
            where = segment.describe(int(offsets[some][0]))
            machine.fail(f"{kind} to read-only memory: {where}", part.ids[0])
        shadow, base = shadow_of(machine, region, segment)
        if shadow is not None:
            threads = machine.threads.number[part.index]
            conflict = shadow.touch(kind, absolute[some] - base, nbytes, threads, machine.at)
            if conflict is not None:
                _report(machine, kind, region, base + conflict.offset, conflict, part.ids[conflict.position])


def shadow_of(machine, region: Region, segment: Segment) -> tuple[Shadow | None, int]:
    """What remembers accesses there, and the address that it counts from, a multiple of 16."""
    if region is machine.memory.global_:
        return segment.shadow, segment.start & ~15
    return region.shadow, region.start


def _report(machine, kind: str, region: Region, address: int, conflict: Conflict, lane: int):
    offset = address - int(machine.window(region, Lanes(np.array([lane])))[0])
    what = f"{region.space} {kind} of {region.describe(offset)}"
    if conflict.what == "not initialised":
        machine.fail(f"{what}, which was not written before", lane)
    other = machine.threads.who(conflict.thread)
    its = f"{machine.kernel.instructions[conflict.pc]}{machine.line_of(conflict.pc)}"
    if conflict.what == "copy":
        machine.fail(f"{what}, still being copied for {other} by {its}", lane)
    if conflict.same:
        machine.fail(f"race: {what}, and {conflict.what} by {other} in the same instruction", lane)
    machine.fail(f"race: {what}, and {conflict.what} by {other} at {its}; nothing puts the two in an order", lane)
