"""Sectors, bank conflicts, divergence: by sets, one warp at a time; and on kernels whose figures are known."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minilora import simt
from minilora.simt.counters import Counters, total

SIZES = [1, 2, 4, 8, 16]


@st.composite
def accesses(draw):
    """(bytes of each access, {warp: {lane: address}}), some lanes idle, addresses dense enough to meet."""
    nbytes = draw(st.sampled_from(SIZES))
    highest = draw(st.sampled_from([3, 40, 400]))
    lanes = st.dictionaries(st.integers(0, 31), st.integers(0, highest).map(lambda i: i * nbytes), min_size=1)
    return nbytes, draw(st.dictionaries(st.integers(0, 2000), lanes, min_size=1, max_size=4))


def record(counters, space, nbytes, by_warp, write=False, index=0):
    flat = [(warp, lane, address) for warp in sorted(by_warp) for lane, address in sorted(by_warp[warp].items())]
    warps, lanes, addresses = (np.array(column) for column in zip(*flat, strict=True))
    counters.access(index, space, write, addresses, nbytes, warps, lanes)


@given(accesses(), accesses(), st.booleans())
def test_sectors(first, second, write):
    counters = Counters()
    record(counters, "global", *first)
    record(counters, "global", *second, write=write, index=1)
    read, written = set(), set()
    into = (read, written if write else read)
    for (nbytes, by_warp), count, touched_before in zip((first, second), counters.by_instruction(), into, strict=True):
        bytes_of = [{a + i for a in lanes.values() for i in range(nbytes)} for lanes in by_warp.values()]
        sectors = [{b // 32 for b in touched} for touched in bytes_of]
        assert count.sectors == sum(map(len, sectors))
        assert count.least == sum(-(-len(touched) // 32) for touched in bytes_of)
        assert count.requests == len(by_warp)
        assert count.bytes == nbytes * sum(map(len, by_warp.values()))
        assert 0 < count.efficiency <= 1
        touched_before.update(*sectors)
    assert counters.summary().dram_bytes == 32 * (len(read) + len(written))


@given(accesses())
def test_banks(access):
    nbytes, by_warp = access
    counters = Counters()
    record(counters, "shared", nbytes, by_warp)
    (count,) = counters.by_instruction()
    passes = fewest = 0
    together = {1: 32, 2: 32, 4: 32, 8: 16, 16: 8}[nbytes]
    for lanes in by_warp.values():
        for start in range(0, 32, together):
            part = [a for lane, a in lanes.items() if start <= lane < start + together]
            words = {b // 4 for a in part for b in range(a, a + nbytes)}
            banks = [sum(word % 32 == bank for word in words) for bank in range(32)]
            passes += max(banks)
            fewest += bool(part)
    assert (count.passes, count.fewest) == (passes, fewest)
    assert count.conflicts >= 1


SOURCE = r"""
__constant__ float table[64];
extern "C" __global__ void kernel(const float* x, float* y, const float4* v, int* sum) {
  __shared__ __align__(16) float s[32 * 33];
  __shared__ int n;
  int i = threadIdx.x;
  float a = x[i];                              // LINE neighbours
  a += x[2 * i];                               // LINE every second
  a += x[i + 1];                               // LINE off by one
  a += x[7];                                   // LINE one for all
  float4 b = v[i];                             // LINE sixteen bytes
  s[32 * (i & 31)] = a;                        // LINE one bank
  s[33 * (i & 31) + 1] = b.x;                  // LINE padded
  __syncwarp();
  a += s[2 * (i & 31)];                        // LINE two in a bank
  float4 c = ((float4*)s)[i & 31];             // LINE quarters
  a += c.x + c.y + c.z + c.w;
  a += table[3] + table[(i & 3) + 1];          // LINE constants
  if (i == 0) n = 0;
  __syncwarp();
  atomicAdd(&n, 1);                            // LINE atomic in shared memory
  if (i < 8) a += b.y;                         // LINE divergent
  y[i] = a;                                    // LINE result
  atomicAdd(sum, n);                           // LINE atomic in global memory
}
"""


@pytest.fixture(scope="module")
def rows(cuda):
    """{what a line is called: its row}, and the summary, of one warp."""
    program = cuda(SOURCE)
    counters = Counters(program.kernels["kernel"])
    arrays = [np.zeros(n, t) for n, t in ((66, np.float32), (32, np.float32), (128, np.float32), (1, np.int32))]
    simt.launch(program, "kernel", 1, 32, [simt.Buffer(a) for a in arrays], counters=counters, check=False)
    lines = {row.line: row for row in counters.by_line()}
    names = {i: line.split("// LINE ")[1] for i, line in enumerate(SOURCE.split("\n"), 1) if "// LINE " in line}
    assert set(names) <= set(lines)
    return {name: lines[i] for i, name in names.items()}, counters


@pytest.mark.parametrize(
    ("name", "sectors", "least"),
    [
        ("neighbours", 4, 4),
        ("every second", 8, 4),
        ("off by one", 5, 4),
        ("one for all", 1, 1),
        ("sixteen bytes", 16, 16),
        ("result", 4, 4),
        ("atomic in global memory", 1, 1),
    ],
)
def test_sectors_of_a_kernel(rows, name, sectors, least):
    row = rows[0][name]
    assert (row.sectors, row.least) == (sectors, least), row.what


@pytest.mark.parametrize(
    ("name", "passes", "fewest"),
    [
        ("one bank", 32, 1),
        ("padded", 1, 1),
        ("two in a bank", 2, 1),
        ("quarters", 4, 4),
        ("atomic in shared memory", 32, 1),
    ],
)
def test_bank_conflicts_of_a_kernel(rows, name, passes, fewest):
    row = rows[0][name]
    assert (row.passes, row.fewest) == (passes, fewest), row.what


def test_constants_are_served_word_by_word(rows):
    row = rows[0]["constants"]
    assert row.sectors == 0 and row.passes == 1 + 4 and row.fewest == 2


def test_totals(rows):
    by_name, counters = rows
    summary = counters.summary(weights=64)
    everything = total(counters.by_instruction())
    assert everything.lanes == total(counters.by_line()).lanes == summary.count.lanes == 64 * summary.instructions
    assert sum(summary.by_name.values()) == everything.lanes
    assert summary.by_name["bar"] == 64
    read = (63 * 4 + 31) // 32 + 128 * 4 // 32 + 1  # x[0] to x[62], v, sum
    assert summary.dram_bytes == 32 * (read + 32 * 4 // 32 + 1) == 64 * summary.bytes
    assert summary.moved * 64 == 32 * sum(row.sectors for row in by_name.values())
    apart = total(row for row in counters.by_line() if row.line != by_name["one bank"].line)
    assert apart.passes == everything.passes - 32
    assert "a weight" in str(summary) and "efficiency" in str(by_name["neighbours"])


def test_idle_lanes(cuda):
    source = r"""extern "C" __global__ void k(float* y) {
      if (threadIdx.x % 4 == 0) y[threadIdx.x] = 1.0f / y[threadIdx.x];
    }"""
    counters = Counters()
    program = cuda(source)
    simt.launch(program, "k", 3, 48, [simt.Buffer(np.ones(48, np.float32))], counters=counters, check=False)
    store = next(c for i, c in counters.counts.items() if program.kernels["k"].instructions[i].name == "st")
    assert store.lanes == 3 * 12 and store.warps == 3 * 2
    assert store.active == 36 / (32 * 6)
    assert all(count.what.startswith("#") and count.line is None for count in counters.by_instruction())


def test_nothing_was_run():
    counters = Counters()
    assert counters.by_instruction() == counters.by_line() == []
    summary = counters.summary()
    assert (
        summary.dram_bytes == 0 and summary.count.efficiency == summary.count.conflicts == summary.count.active == 1.0
    )
