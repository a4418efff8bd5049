"""The threads of a launch: which block and which place in it each lane of the machine stands for.

Thread (x, y, z) of a block of size (X, Y, Z) has the number x + X (y + Y z); each 32 numbers are a warp (CUDA C++
Programming Guide, "Thread Hierarchy"). The machine runs a wave of blocks at once. A block's lanes are filled up to
whole warps by lanes that never run, so that an array over lanes is an array (warps, 32).
"""

import math

import numpy as np

from minilora.errors import LaunchError

MAX_THREADS = 1024  # of a block


class Threads:
    """grid, block: one to three sizes. max_lanes: of a wave.

    wave: blocks of a wave. lanes: of a wave. Of each lane: slot (which block of the wave), thread (its number in the
    block), number (in the launch, counting the lanes that never run), exists.
    """

    def __init__(self, grid, block, max_lanes: int):
        self.grid, self.block = _three(grid), _three(block)
        self.size, self.blocks = math.prod(self.block), math.prod(self.grid)
        if min(*self.grid, *self.block) < 1 or self.size > MAX_THREADS:
            raise LaunchError(f"grid {grid}, block {block}: all sizes are at least 1, a block has 1 to 1024 threads")
        self.block_lanes = -(-self.size // 32) * 32
        self.wave = min(self.blocks, max(1, max_lanes // self.block_lanes))
        self.lanes = self.wave * self.block_lanes
        lane = np.arange(self.lanes)
        self.slot, self.thread = lane // self.block_lanes, lane % self.block_lanes
        self.first_block = -self.wave
        self.special = self._special()

    def next_wave(self) -> bool:
        """The blocks that follow; False after the last."""
        if self.first_block + self.wave >= self.blocks:
            return False
        self.first_block += self.wave
        block = self.first_block + self.slot
        for axis, position in zip("xyz", _position(block, self.grid), strict=True):
            self.special[f"%ctaid.{axis}"][:] = position
        self.exists = (block < self.blocks) & (self.thread < self.size)
        self.number = block * self.block_lanes + self.thread
        return True

    def _special(self) -> dict[str, np.ndarray]:
        """%tid.x and its kin, uint32 (PTX ISA, section 10 Special Registers)."""
        lane = (self.thread % 32).astype(np.uint32)
        bit = np.uint32(1) << lane
        values = {
            "%laneid": lane,
            "%warpid": self.thread // 32,
            "%nwarpid": self.block_lanes // 32,
            "%lanemask_eq": bit,
            "%lanemask_lt": bit - np.uint32(1),
            "%lanemask_le": bit | (bit - np.uint32(1)),
            "%lanemask_gt": ~(bit | (bit - np.uint32(1))),
            "%lanemask_ge": ~(bit - np.uint32(1)),
        }
        for i, (axis, position) in enumerate(zip("xyz", _position(self.thread, self.block), strict=True)):
            values[f"%tid.{axis}"] = position
            values |= {f"%ntid.{axis}": self.block[i], f"%nctaid.{axis}": self.grid[i], f"%ctaid.{axis}": 0}
        return {name: np.broadcast_to(v, self.lanes).astype(np.uint32) for name, v in values.items()}

    def who(self, number: int) -> str:
        """Words for a thread of the launch."""
        block, thread = divmod(int(number), self.block_lanes)
        t = tuple(int(n) for n in _position(thread, self.block))
        b = tuple(int(n) for n in _position(block, self.grid))
        return f"thread {t} of block {b}"


def _three(sizes) -> tuple[int, int, int]:
    sizes = (sizes,) if isinstance(sizes, int) else tuple(int(n) for n in sizes)
    return (*sizes, *(1,) * (3 - len(sizes)))


def _position(number, sizes):
    """(x, y, z) of a number, or of an array of them."""
    return number % sizes[0], number // sizes[0] % sizes[1], number // (sizes[0] * sizes[1])
