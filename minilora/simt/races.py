"""Find data races: two accesses to one byte, at least one a write, that nothing puts in an order.

Access a happens before access b when the same thread did a earlier, or a barrier lies between that both threads took
part in: bar.sync orders all threads of a block, bar.warp.sync those lanes of a warp that its mask names (PTX ISA,
section 8 Memory Consistency Model). Happens-before is transitive. Nothing orders two blocks of one launch. Atomics do
not race with each other, and order nothing; nor does a shuffle, a vote or a fence.

A race is found whichever order the simulator happened to run the threads in, so one run is enough. Each access gets a
number, its event; `Clock` knows for each thread up to which event it is ordered after its block, its warp and each
single lane, so that "is a before b" is a comparison (the epochs of FastTrack: Flanagan and Freund, PLDI 2009). Of each
memory cell a `Shadow` keeps the last write, and of the reads and of the atomics two: see `Latest` why that is enough.
"""

from dataclasses import dataclass

import numpy as np

THREAD = np.int64(0xFFFFFFFF)  # a record is event << 32 | thread


@dataclass(frozen=True)
class Conflict:
    """position: which of the accessing threads. offset: the byte. The other: what it did, thread, instruction.

    same: both are in one instruction.
    """

    what: str
    position: int
    offset: int
    thread: int
    pc: int
    same: bool = False


class Clock:
    """What each lane knows of the past. first: the thread number of lane 0 of this wave. exact: masks may be partial.

    The events of a launch are numbered on; `pcs[event]` is the instruction that made it.
    """

    def __init__(self, block_lanes: int, exact: bool = False):
        self.block_lanes, self.exact = block_lanes, exact
        self.pcs = [-1]

    def start(self, first: int, lanes: int):
        """A wave of blocks begins; they know nothing of each other."""
        self.first = first
        self.block = np.zeros(lanes, np.int64)  # after every access of the block up to this event
        self.warp = np.zeros(lanes, np.int64)
        self.lane = None  # (lanes, 32), after that lane of the warp: only where masks are not full

    def tick(self, pc: int) -> int:
        self.pcs.append(pc)
        return len(self.pcs) - 1

    def barrier(self, lanes, pc: int):
        """All lanes of some blocks meet."""
        self.block[lanes] = self.tick(pc)

    def warp_barrier(self, lanes: np.ndarray, masks: np.ndarray, whole: np.ndarray, pc: int):
        """Lanes meet those of their warp that `masks` names; whole: that is all of the warp's."""
        now = self.tick(pc)
        self.warp[lanes[whole]] = now
        if whole.all():
            return
        if self.lane is None:
            self.lane = np.zeros((len(self.block), 32), np.int64)
        part, masks = lanes[~whole], masks[~whole]
        for mask in np.unique(masks):
            group = np.zeros(len(self.block), bool)
            group[part[masks == mask]] = True
            group = group.reshape(-1, 32)  # (warps, 32)
            known = self.lane.reshape(-1, 32, 32)
            most = np.where(group[:, :, None], known, 0).max(1)  # what they know together
            most = np.where(group, now, most)
            self.lane = np.where(group[:, :, None], most[:, None], known).reshape(-1, 32)

    def unordered(self, records: np.ndarray, threads: np.ndarray) -> np.ndarray:
        """Whether the recorded accesses are by others and not before what `threads` do now."""
        event, other = records >> 32, records & THREAD
        lane = threads - self.first
        same_block = other // self.block_lanes == threads // self.block_lanes
        loose = (event > 0) & (other != threads) & ~(same_block & (event <= self.block[lane]))
        if loose.any():
            same_warp = other >> 5 == threads >> 5
            loose &= ~(same_warp & (event <= self.warp[lane]))
            if self.lane is not None:
                loose &= ~(same_warp & (event <= self.lane[lane, other & 31]))
        return loose

    def distance(self, records: np.ndarray, threads: np.ndarray) -> np.ndarray:
        """How far away the recorded threads are: 1 in this warp, 2 in this block, 3 elsewhere; 0 if ordered before."""
        other = records & THREAD
        far = (other // self.block_lanes != threads // self.block_lanes).astype(np.int8)
        far += (other >> 5 != threads >> 5).astype(np.int8)
        return np.where(self.unordered(records, threads), far + 1, 0)


class Latest:
    """Of one kind of access, two to each cell: the last, and another by a thread as far from it as there was.

    With full masks the two are enough. Threads of different blocks: whoever writes, one of them is in another block.
    Of different warps: only a barrier of the block orders a thread after both, and it orders all. Of one warp: a full
    bar.warp.sync orders all; with partial masks (`exact`) a third lane's access may stay unordered, so it is logged.
    """

    def __init__(self, cells: int, clock: Clock):
        self.clock = clock
        self.last = np.zeros(cells, np.int64)
        self.other = np.zeros(cells, np.int64)
        self.log = []  # (cells, records) forgotten, in exact mode

    def refine(self, by: int):
        self.last, self.other = np.repeat(self.last, by), np.repeat(self.other, by)
        self.log = [((c[:, None] * by + np.arange(by)).ravel(), np.repeat(r, by)) for c, r in self.log]

    def add(self, cells: np.ndarray, records: np.ndarray):
        """Several lanes may touch one cell at once: then the highest thread is its last, the lowest a candidate."""
        candidates = [self.last[cells], self.other[cells]]
        self.last[cells] = records
        top = self.last[cells]
        self.other[cells[::-1]] = records[::-1]
        candidates.append(self.other[cells])
        threads = top & THREAD
        far = [self.clock.distance(record, threads) for record in candidates]
        best, best_far = candidates[0], far[0]
        for record, distance in zip(candidates[1:], far[1:], strict=True):
            better = distance > best_far
            best, best_far = np.where(better, record, best), np.where(better, distance, best_far)
        self.other[cells] = best
        if self.clock.exact:
            for record in (*candidates, records):
                lost = (best_far == 1) & (record != best) & (record != top)
                lost &= self.clock.distance(record, threads) == 1
                if lost.any():
                    self.log.append((cells[lost], record[lost]))

    def conflict(self, cells: np.ndarray, threads: np.ndarray):
        """(position, record) of an access that is not ordered before this one, or None."""
        for store in (self.last, self.other):
            records = store[cells]
            if records.any() and (bad := self.clock.unordered(records, threads)).any():
                i = int(bad.argmax())
                return i, int(records[i])
        return self._logged(cells, threads) if self.log else None

    def _logged(self, cells, threads):
        logged, records = (np.concatenate(parts) for parts in zip(*self.log, strict=True))
        lane = (records & THREAD) - self.clock.first
        useful = (lane >= 0) & (records >> 32 > self.clock.block[np.maximum(lane, 0)])  # not before a block's barrier
        logged, records = logged[useful], records[useful]
        self.log = [(logged, records)]
        order = np.argsort(cells, kind="stable")
        first, stop = (np.searchsorted(cells[order], logged, side) for side in ("left", "right"))
        which = np.repeat(np.arange(len(logged)), stop - first)  # each logged access with each lane at its cell
        place = np.arange(len(which)) - np.repeat(np.cumsum(stop - first) - stop, stop - first)
        position = order[place]
        bad = self.clock.unordered(records[which], threads[position])
        if bad.any():
            i = int(bad.argmax())
            return int(position[i]), int(records[which[i]])
        return None


class Shadow:
    """What happened to each cell of a piece of memory. A cell is as large as the smallest access so far.

    poisoned: reading what was not written is an error.
    """

    def __init__(self, size: int, clock: Clock, poisoned: bool):
        self.size, self.clock, self.poisoned = size, clock, poisoned
        self.clear()

    def clear(self):
        self.shift = 4  # cells of 16 bytes, until a smaller access comes
        self.write = np.zeros(-(-self.size >> 4) + 1, np.int64)
        self.reads = self.atomics = self.pending = None

    def _cells(self, offsets, nbytes, threads):
        while nbytes < 1 << self.shift:
            self.shift -= 1
            self.write = np.repeat(self.write, 2)
            self.pending = None if self.pending is None else np.repeat(self.pending, 2)
            for latest in (self.reads, self.atomics):
                if latest is not None:
                    latest.refine(2)
        cells = offsets >> self.shift
        if (each := nbytes >> self.shift) > 1:
            return (cells[:, None] + np.arange(each)).ravel(), np.repeat(threads, each), each
        return cells, threads, 1

    def touch(self, kind: str, offsets: np.ndarray, nbytes: int, threads: np.ndarray, pc: int) -> Conflict | None:
        """Record an access, or say what is wrong with it. kind: "read", "write", "atomic", "copy". offsets: bytes."""
        cells, threads, each = self._cells(offsets, nbytes, threads)

        def wrong(what, i, record=0, same=False):
            other, there = int(record) & 0xFFFFFFFF, self.clock.pcs[int(record) >> 32]
            return Conflict(what, i // each, int(cells[i]) << self.shift, other, there, same)

        if self.pending is not None and (waits := self.pending[cells]).any():
            i = int((waits != 0).argmax())
            return wrong("copy", i, waits[i])
        last = self.write[cells]
        if self.poisoned and kind in ("read", "atomic") and not last.all():
            return wrong("not initialised", int((last == 0).argmax()))
        if last.any() and (bad := self.clock.unordered(last, threads)).any():
            return wrong("write", int(bad.argmax()), last[bad.argmax()])
        for past, name in ((self.reads, "read"), (self.atomics, "atomic")):
            if past is not None and kind != name and (found := past.conflict(cells, threads)):
                return wrong(name, *found)
        records = (self.clock.tick(pc) << 32) | threads
        if kind == "read":
            self.reads = self.reads or Latest(len(self.write), self.clock)
            self.reads.add(cells, records)
        elif kind == "atomic":
            self.atomics = self.atomics or Latest(len(self.write), self.clock)
            self.atomics.add(cells, records)
        else:
            store = self.write
            if kind == "copy":
                store = self.pending = np.zeros_like(self.write) if self.pending is None else self.pending
            store[cells] = records
            if (twice := store[cells] != records).any():
                i = int(twice.argmax())
                return wrong("write", i, store[cells[i]], same=True)
        return None

    def arrive(self, offsets: np.ndarray, nbytes: int, threads: np.ndarray, pc: int):
        """What was being copied for these threads is written now."""
        cells, threads, _ = self._cells(offsets, nbytes, threads)
        self.pending[cells] = 0
        self.write[cells] = (self.clock.tick(pc) << 32) | threads

    def written_since(self, event: int, offsets: np.ndarray, nbytes: int) -> np.ndarray:
        """Whether these bytes were written after an event."""
        cells, _, each = self._cells(offsets, nbytes, offsets)
        return (self.write[cells] >> 32 > event).reshape(-1, each).any(1)
