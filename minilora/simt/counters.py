"""What a kernel did to the machine: instructions, bytes, sectors of memory, bank conflicts, idle lanes. No times.

    counters = Counters(program.kernels["scale"])
    simt.launch(program, "scale", ..., counters=counters)
    print(counters.summary(weights=n))
    for row in counters.by_line(): print(row)

Instructions are PTX's; a thread instruction is one that one thread executed. Of memory each row has, summed over warps:

global      Memory moves in sectors, 32 bytes at a multiple of 32. `sectors`: the different ones that the lanes of a
            warp touch with one instruction. `least`: the different bytes that they ask for, in units of 32 bytes,
            rounded up. efficiency = least / sectors: 1 for neighbours, and for one address in all lanes.
shared      32 banks of 4 bytes, word i in bank i mod 32. `passes`: the most different words in one bank, so 1 where all
            lanes read one word; of an atomic, the most lanes. 8-byte accesses go by half warps, 16-byte ones by
            quarters. `fewest`: those halves or quarters, one pass each.
constant    `passes`: the different words that a warp reads; `fewest`: one.
local       only bytes: the compiler's own arrays and spills.

(NVIDIA, CUDA C++ Programming Guide, "Device Memory Accesses", "Shared Memory"; Nsight Compute, "Memory Tables".) A
cache may hold a sector from an earlier instruction: `dram_bytes` counts each sector once for reading and once for
writing, which is what a GPU with an endless second-level cache would ask of its memory.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field, fields

import numpy as np

from minilora.simt.ptx import Kernel

SECTOR, BANKS, WORD = 32, 32, 4


@dataclass
class Count:
    """One instruction of the program, or a sum of several. lanes, warps: that executed it, all times together."""

    what: str = ""
    line: int | None = None
    lanes: int = 0
    warps: int = 0
    requests: int = 0  # warps that accessed memory
    bytes: int = 0  # that threads asked for, in any memory
    sectors: int = 0
    least: int = 0
    passes: int = 0
    fewest: int = 0

    @property
    def efficiency(self) -> float:
        """Of global memory: the part of the moved sectors that was needed."""
        return self.least / self.sectors if self.sectors else 1.0

    @property
    def conflicts(self) -> float:
        """Passes through shared or constant memory, of the fewest possible; 1 is best."""
        return self.passes / self.fewest if self.fewest else 1.0

    @property
    def active(self) -> float:
        """The part of the lanes of executing warps that took part: below 1 by divergence and part-filled warps."""
        return self.lanes / (32 * self.warps) if self.warps else 1.0

    def add(self, other: "Count"):
        for f in fields(self)[2:]:
            setattr(self, f.name, getattr(self, f.name) + getattr(other, f.name))

    def __str__(self) -> str:
        parts = [f"{self.line or '':>5}  {self.what:32.32s} {self.lanes:>10,} threads, {self.active:4.0%} of lanes"]
        if self.sectors:
            parts.append(f"{self.sectors:,} sectors, efficiency {self.efficiency:.2f}")
        if self.passes:
            parts.append(f"{self.passes:,} passes, {self.conflicts:.2f} of the fewest")
        return "; ".join(parts)


def total(counts: Iterable[Count], what: str = "total") -> Count:
    """Their sum: of all rows but the look-ups, say, to gate those apart."""
    result = Count(what)
    for count in counts:
        result.add(count)
    return result


@dataclass
class Summary:
    """Of a launch. weights: what the figures "a weight" are divided by."""

    weights: int
    count: Count
    dram_bytes: int
    by_name: dict[str, int] = field(default_factory=dict)  # thread instructions

    @property
    def instructions(self) -> float:
        """Thread instructions a weight."""
        return self.count.lanes / self.weights

    @property
    def bytes(self) -> float:
        """Bytes of memory a weight, each sector counted once."""
        return self.dram_bytes / self.weights

    @property
    def moved(self) -> float:
        """Bytes a weight between multiprocessors and the second-level cache, were there no cache before it."""
        return SECTOR * self.count.sectors / self.weights

    def __str__(self) -> str:
        most = sorted(self.by_name.items(), key=lambda item: -item[1])[:6]
        return (
            f"{self.instructions:.2f} thread instructions a weight ({', '.join(f'{n} {k:,}' for n, k in most)})\n"
            f"{self.bytes:.3f} bytes a weight, each sector once; {self.moved:.3f} moved\n"
            f"sector efficiency {self.count.efficiency:.3f}, passes {self.count.conflicts:.3f} of the fewest, "
            f"{self.count.active:.1%} of lanes active"
        )


class Counters:
    """Give it to simt.launch. kernel: that which is launched, to name instructions and lines. Counts add up."""

    def __init__(self, kernel: Kernel | None = None):
        self.kernel = kernel
        self.counts: dict[int, Count] = {}  # by index of the instruction
        self.touched = {False: np.zeros(0, bool), True: np.zeros(0, bool)}  # sectors read, written

    # The machine calls these

    def issue(self, index: int, lanes: int, warps: int):
        """Count one instruction, executed once by so many lanes of so many warps."""
        count = self._count(index)
        count.lanes += lanes
        count.warps += warps

    def access(self, index: int, space: str, write: bool, addresses, nbytes: int, warps, lanes):
        """addresses, warps, lanes: of each active lane. An access is aligned to its size."""
        count = self._count(index)
        count.requests += len(np.unique(warps))
        count.bytes += nbytes * len(addresses)
        atomic = count.what.startswith(("atom.", "red."))
        if space == "shared" or count.what.startswith("ld.const."):
            self._banks(count, addresses, nbytes, warps, lanes, space == "shared", atomic)
        elif space == "global":
            self._sectors(count, addresses, nbytes, warps)
            for written in {write, write and not atomic}:  # an atomic reads too
                self._touch(written, addresses // SECTOR)

    def _sectors(self, count: Count, addresses, nbytes: int, warps):
        count.sectors += len(_unique(warps, addresses // SECTOR))  # aligned, so each lane's access lies in one
        _, each = np.unique(_unique(warps, addresses // nbytes) >> 32, return_counts=True)  # of each warp
        count.least += int((-(-each * nbytes // SECTOR)).sum())

    def _touch(self, written: bool, sectors):
        room = int(sectors.max()) + 1 - len(self.touched[written])
        if room > 0:
            self.touched[written] = np.append(self.touched[written], np.zeros(room, bool))
        self.touched[written][sectors] = True

    def _banks(self, count: Count, addresses, nbytes: int, warps, lanes, shared: bool, atomic: bool):
        words = max(nbytes // WORD, 1)
        together = 32 // words if shared else 32  # lanes that are served together
        group = np.repeat(warps * 32 + lanes // together, words)
        word = (addresses[:, None] // WORD + np.arange(words)).reshape(-1)
        if not atomic:
            pairs = _unique(group, word)
            group, word = pairs >> 32, pairs & 0xFFFFFFFF
        served, times = np.unique(group * BANKS + (word % BANKS if shared else 0), return_counts=True)
        first = np.flatnonzero(np.diff(served // BANKS, prepend=-1))  # of each group
        count.passes += int(np.maximum.reduceat(times, first).sum())
        count.fewest += len(first)

    # Afterwards

    def by_instruction(self) -> list[Count]:
        """One row for each instruction that was executed, in the program's order."""
        return [self.counts[index] for index in sorted(self.counts)]

    def by_line(self) -> list[Count]:
        """One row for each line of the CUDA source, where it was compiled with -lineinfo. Needs `kernel`."""
        rows: dict[int | None, Count] = {}
        for count in self.by_instruction():
            row = rows.setdefault(count.line, Count("", count.line))
            row.add(count)
            if count.requests and count.what not in row.what.split():
                row.what = f"{row.what} {count.what}".strip()
        return [rows[line] for line in sorted(rows, key=lambda line: line or 0)]

    def summary(self, weights: int = 1) -> Summary:
        """All together. weights: how many the kernel worked on, for the figures "a weight"."""
        by_name: dict[str, int] = {}
        for count in self.counts.values():
            name = count.what.split(".")[0]
            by_name[name] = by_name.get(name, 0) + count.lanes
        dram = SECTOR * int(self.touched[False].sum() + self.touched[True].sum())
        return Summary(weights, total(self.counts.values()), dram, by_name)

    def _count(self, index: int) -> Count:
        if index not in self.counts:
            instruction = self.kernel.instructions[index] if self.kernel else None
            self.counts[index] = Count(instruction.opcode, instruction.line) if instruction else Count(f"#{index}")
        return self.counts[index]


def _unique(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The different pairs, sorted, as a 2^32 + b."""
    return np.unique(a.astype(np.int64) << 32 | b)
