"""The memory of the simulated GPU: one array of bytes, in it every buffer, with forbidden zones between them.

    | zone | constants | zone | argument 0 | zone | ... | shared memory of block 0, 1, ... | local of thread 0, 1, ...

An address that a kernel computes is an index into that array ("generic" address; PTX ISA, section 5.1 State Spaces and
6.4.1 on addressing). In the shared and the local space an address counts from the start of the block's or thread's own
window. A zone of 256 bytes around each array turns an index that is a little too large into an error instead of a
neighbour's value. An access must be aligned to its own size, of vectors too (section 6.4.1).
"""

import re
from bisect import bisect_right
from dataclasses import dataclass

import numpy as np

from minilora.errors import SimulationError

ZONE = 256  # bytes between arrays, and the alignment of each, as cudaMalloc's
FREE = 0xFF  # what memory holds before it is written: NaN in every float type


class Buffer:
    """An array of global memory: copied in before a launch, written back after it.

    array: C-contiguous, of any dtype. read_only: a write is an error, as of const T*; always so where the array is not
    writeable. initialized=False: what the host has there is meaningless, reading it before it was written is an error.
    offset: bytes by which its start misses the alignment of an allocation, as that of a slice does.
    """

    def __init__(self, array: np.ndarray, read_only: bool = False, initialized: bool = True, offset: int = 0):
        if not isinstance(array, np.ndarray) or not array.flags.c_contiguous:
            raise SimulationError("a Buffer holds a C-contiguous NumPy array; call np.ascontiguousarray first")
        self.array, self.initialized, self.offset = array, initialized, offset
        self.read_only = read_only or not array.flags.writeable

    @property
    def bytes(self) -> np.ndarray:
        """The array's memory, uint8, flat."""
        return self.array.reshape(-1).view(np.uint8)


@dataclass
class Segment:
    """One array: bytes start to end of its region. itemsize: of its elements, to name one by its index."""

    name: str
    start: int
    size: int
    itemsize: int = 1
    read_only: bool = False
    initialized: bool = True
    shadow: object = None

    def describe(self, offset: int) -> str:
        """offset: of a byte, from the region's start."""
        at = offset - self.start
        if self.itemsize == 1:
            return f"byte {at} of {self.name} ({self.size} bytes)"
        rest = f" + {at % self.itemsize} bytes" if at % self.itemsize else ""
        return f"{self.name}[{at // self.itemsize}]{rest} of {self.size // self.itemsize}"


class Region:
    """Segments of one kind, in order; `slots` windows of `stride` bytes that all have the same segments."""

    def __init__(self, space: str, start: int):
        self.space, self.start, self.slots, self.stride = space, start, 1, ZONE
        self.segments: list[Segment] = []
        self.shadow = None  # of all windows, where there are windows

    def add(self, name: str, size: int, offset: int = 0, **options) -> Segment:
        segment = Segment(name, self.stride + offset, size, **options)
        self.segments.append(segment)
        self.stride = -(-(segment.start + size) // ZONE) * ZONE + ZONE
        return segment

    def close(self, slots: int = 1):
        """No more segments: there are `slots` windows."""
        self.slots = slots if self.segments else 0
        self.starts = [s.start for s in self.segments]
        self.ends = [s.start + s.size for s in self.segments]

    @property
    def end(self) -> int:
        return self.start + self.slots * self.stride

    def segment_of(self, offsets: np.ndarray, nbytes: int) -> Segment | np.ndarray:
        """The segment that all accesses fall in, or the index of each one's, -1 out of bounds."""
        low, high = int(offsets.min()), int(offsets.max()) + nbytes
        i = bisect_right(self.starts, low) - 1
        if i >= 0 and high <= self.ends[i]:
            return self.segments[i]
        if not self.segments:
            return np.full(len(offsets), -1)
        index = np.searchsorted(self.starts, offsets, "right") - 1
        return np.where((index >= 0) & (offsets + nbytes <= np.array(self.ends)[index]), index, -1)

    def describe(self, offset: int) -> str:
        """Words for a byte in the region."""
        return self.segments[int(np.searchsorted(self.starts, offset, "right")) - 1].describe(offset)

    def nearest(self, offset: int) -> str:
        """Words for an address that is in no segment."""
        if not self.segments:
            return f"this kernel has no {self.space} memory"
        segment = min(self.segments, key=lambda s: max(s.start - offset, offset - s.start - s.size))
        if not segment.start - ZONE <= offset < segment.start + segment.size + ZONE:
            return f"address {offset} is far from any array"
        return f"the nearest array is {segment.describe(offset)}"


class Memory:
    """Bytes, and where the arrays are. Regions: "global" (with constants), "shared" (windows by block), "local"."""

    def __init__(self, variables, buffers: list[tuple[str, Buffer]], kernel, dynamic: int, blocks: int, lanes: int):
        self.base = {}  # what the name of a variable stands for in the program
        self.contents = []  # (Segment, its bytes on the host, whether they are written back)
        glob = Region("global", 0)
        for v in variables:
            if v.space in ("const", "global"):
                segment = glob.add(readable(v.name), v.size, read_only=v.space == "const")
                self.base[v.name] = segment.start
                self.contents.append((segment, v.data, v.space == "global"))
        self.buffers = []
        for name, buffer in buffers:
            itemsize = buffer.array.dtype.itemsize
            segment = glob.add(
                name,
                buffer.array.nbytes,
                buffer.offset,
                itemsize=itemsize,
                read_only=buffer.read_only,
                initialized=buffer.initialized,
            )
            self.buffers.append(segment.start)
            self.contents.append((segment, buffer.bytes, not buffer.read_only))
        glob.close()
        self.shared = self._windows("shared", glob.end, [*kernel.variables, *variables], dynamic, blocks)
        self.local = self._windows("local", self.shared.end, kernel.variables, 0, lanes)
        self.global_ = glob
        self.region = {"global": glob, "const": glob, "shared": self.shared, "local": self.local}
        self.bytes = np.full(self.local.end, FREE, np.uint8)
        self.views = {}
        for segment, data, _ in self.contents:
            self.bytes[segment.start : segment.start + segment.size] = data

    def _windows(self, space: str, start: int, variables, dynamic: int, slots: int) -> Region:
        region = Region(space, start)
        for v in variables:
            if v.space == space and v.size is not None:
                self.base[v.name] = region.add(readable(v.name), v.size).start
        extern = [v for v in variables if v.space == space and v.size is None]
        if extern:  # all extern arrays are the same memory (CUDA C++ Programming Guide, "__shared__")
            first = region.add(readable(extern[0].name), dynamic).start
            self.base |= {v.name: first for v in extern}
        region.close(slots)
        return region

    def write_back(self):
        """Copy what the kernel may have written to the host's arrays."""
        for segment, data, back in self.contents:
            if back:
                data[:] = self.bytes[segment.start : segment.start + segment.size]

    def typed(self, dtype: np.dtype) -> np.ndarray:
        """All memory as an array of this dtype."""
        if dtype not in self.views:
            self.views[dtype] = self.bytes.view(dtype)
        return self.views[dtype]

    def regions_of(self, addresses: np.ndarray) -> list[tuple[Region, np.ndarray | None]]:
        """Where generic addresses lead: each region with the positions of those in it, None for all."""
        low, high = int(addresses.min()), int(addresses.max())
        windows = [r for r in (self.shared, self.local) if r.slots]
        for region in (self.global_, *windows):
            if region.start <= low and high < region.end:
                return [(region, None)]
        inside = [(r, np.flatnonzero((addresses >= r.start) & (addresses < r.end))) for r in windows]
        rest = np.setdiff1d(np.arange(len(addresses)), np.concatenate([[], *(some for _, some in inside)]))
        return [(region, some) for region, some in [(self.global_, rest), *inside] if len(some)]


def readable(name: str) -> str:
    """The variable's name in CUDA C: "tile" of _ZZ4gemmE4tile_$_0."""
    match = re.search(r".*E(\d+)([A-Za-z_]\w*?)(?:_?\$_\d+)?$", name)
    return match[2][: int(match[1])] if name.startswith("_Z") and match else name
