"""Occupancy: how many warps a multiprocessor can hold of a kernel, as a share of the most that it can hold at all.

    occupancy(arch=90, threads=128, registers=40, shared=2048).share      # 0.75: 12 blocks of 4 warps, of 64 warps

A multiprocessor hides the latency of memory by switching between its resident warps. How many fit is arithmetic on
four limits: warps, blocks, registers, shared memory (NVIDIA, CUDA C++ Programming Guide, "Technical Specifications per
Compute Capability"). A warp's registers come in units of 256 from one of four schedulers, each with a quarter of them;
from compute capability 8.0 the system keeps 1 KiB of shared memory a block for itself.
"""

from dataclasses import dataclass

from minilora.errors import SimulationError

REGISTERS = 65536  # 32-bit, of every multiprocessor below
# compute capability: resident warps, resident blocks, KiB of shared memory
LIMITS = {
    75: (32, 16, 64),
    80: (64, 32, 164),
    86: (48, 16, 100),
    89: (48, 24, 100),
    90: (64, 32, 228),
    120: (48, 24, 100),
}


@dataclass(frozen=True)
class Occupancy:
    """blocks: resident on one multiprocessor. share: resident warps over the most possible. limit: what stops more."""

    blocks: int
    share: float
    limit: str


def occupancy(arch: int, threads: int, registers: int, shared: int) -> Occupancy:
    """threads: of a block. registers: 32-bit, of a thread. shared: bytes of a block, static and dynamic.

    Raises SimulationError for an architecture that is not in LIMITS.
    """
    if arch not in LIMITS:
        raise SimulationError(f"no limits are known for compute capability {arch}; there are: {sorted(LIMITS)}")
    most_warps, most_blocks, kib = LIMITS[arch]
    warps = -(-threads // 32)
    warp_registers = -(-registers * 32 // 256) * 256
    block_shared = shared + (1024 if arch >= 80 else 0)
    by = {
        "warps": most_warps // warps,
        "blocks": most_blocks,
        "registers": REGISTERS // 4 // max(warp_registers, 1) * 4 // warps,
        "shared memory": 1024 * kib // max(block_shared, 1),
    }
    limit = min(by, key=by.get)
    return Occupancy(by[limit], by[limit] * warps / most_warps, limit)
