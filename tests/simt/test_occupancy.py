"""Occupancy against counting: fill a multiprocessor block by block until something runs out."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minilora.errors import SimulationError
from minilora.simt.occupancy import LIMITS, occupancy


def blocks_by_filling(arch, threads, registers, shared):
    warps_free, blocks_free, kib = LIMITS[arch]
    schedulers = [16384] * 4  # each has its own registers and gives them out in units of 256 to a warp
    shared_free, resident, placed = kib * 1024, 0, 0
    need = -(-threads // 32)
    unit = -(-registers * 32 // 256) * 256
    while True:
        shared_free -= shared + (1024 if arch >= 80 else 0)
        warps_free, blocks_free = warps_free - need, blocks_free - 1
        for _ in range(need):
            schedulers[placed % 4] -= unit
            placed += 1
        if min(shared_free, warps_free, blocks_free, *schedulers) < 0:
            return resident
        resident += 1


@given(
    st.sampled_from(sorted(LIMITS)), st.integers(1, 32), st.integers(1, 255), st.integers(0, 48 * 1024)
)  # fmt: skip
def test_as_many_blocks_as_fit(arch, warps, registers, shared):
    found = occupancy(arch, 32 * warps, registers, shared)
    assert found.blocks == blocks_by_filling(arch, 32 * warps, registers, shared)
    assert found.share == found.blocks * warps / LIMITS[arch][0] <= 1


def test_published_example():
    """An H100 holds 19 blocks of one warp and 12 KB of shared memory without the system's share, 17 with it."""
    assert occupancy(90, 32, 8, 12 * 1024).blocks == 228 // 13
    assert occupancy(90, 32, 8, 12 * 1024).limit == "shared memory"


def test_unknown_architecture_is_named():
    with pytest.raises(SimulationError, match="70"):
        occupancy(70, 128, 32, 0)
