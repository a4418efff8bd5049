"""cp.async: a pipeline that is right, and each way to get it wrong beside it."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minilora import simt
from minilora.errors import SimulationError

SOURCE = r"""
typedef unsigned u32;
#define ASYNC(text, ...) asm volatile(text :: __VA_ARGS__ : "memory")
__device__ __forceinline__ u32 shared(const void* p) { return (u32)__cvta_generic_to_shared(p); }
__device__ __forceinline__ void copy16(void* to, const void* from, int bytes) {
  ASYNC("cp.async.cg.shared.global [%0], [%1], 16, %2;", "r"(shared(to)), "l"(from), "r"(bytes));
}
__device__ __forceinline__ void commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int N> __device__ __forceinline__ void wait() { ASYNC("cp.async.wait_group %0;", "n"(N)); }
#ifndef PENDING
#define PENDING 1
#endif
#ifndef AFTER_WAIT
#define AFTER_WAIT __syncthreads()
#endif
#ifndef AFTER_USE
#define AFTER_USE __syncthreads()
#endif
extern "C" {
// y[i] = x[i + 1] within each tile of 128, two tiles under way: while one is used the next is copied
__global__ void pipeline(const float* x, float* y, int n) {
  __shared__ __align__(16) float tile[2][128];
  int tiles = (n + 127) / 128, t = threadIdx.x;
  auto start = [&](int k) {
    int left = 4 * (n - 128 * k - 4 * t);
    const float* from = left > 0 ? x + 128 * k + 4 * t : x;
    if (k < tiles) copy16(&tile[k % 2][4 * t], from, left < 0 ? 0 : left > 16 ? 16 : left);
    commit();
  };
  start(0);
  for (int k = 0; k < tiles; ++k) {
    start(k + 1);
    wait<PENDING>();
    AFTER_WAIT;
    for (int i = t; i < 128; i += 32)
      if (128 * k + i < n) y[128 * k + i] = tile[k % 2][(i + 1) % 128];
    AFTER_USE;
  }
}
__global__ void sizes(const char* x, char* y) {
  __shared__ __align__(16) char tile[32];
  if (threadIdx.x < 32) tile[threadIdx.x] = 1;
  __syncthreads();
  if (threadIdx.x == 0) {
    ASYNC("cp.async.ca.shared.global [%0], [%1], 4;", "r"(shared(tile)), "l"(x));
    ASYNC("cp.async.ca.shared.global [%0], [%1], 8, %2;", "r"(shared(tile + 8)), "l"(x + 8), "r"(3));
    ASYNC("cp.async.cg.shared.global [%0], [%1], 16, %2;", "r"(shared(tile + 16)), "l"(x + 16), "r"(0));
    asm volatile("cp.async.wait_all;" ::: "memory");
  }
  __syncthreads();
  if (threadIdx.x < 32) y[threadIdx.x] = tile[threadIdx.x];
}
__global__ void alone(float* x, float* y, int what) {
  __shared__ __align__(16) float tile[4];
  copy16(tile, x, 16);
  if (what == 1) x[1] = 5;                  // changes what is being copied
  if (what == 2) tile[2] = 5;               // writes where it will arrive
  if (what == 3) y[0] = tile[2];            // does not wait
  if (what == 4) copy16(tile, x, 16);       // copies there twice
  if (what == 5) copy16((char*)tile + 4, x, 16);
  if (what == 6) copy16(tile, x, 20);
  asm volatile("cp.async.wait_all;" ::: "memory");
  if (what != 3) y[0] = tile[2];
}
__global__ void each_for_itself(const float* x, float* y, int waiting) {   // its own copies, not another thread's
  __shared__ __align__(16) float tile[2][4];
  copy16(tile[threadIdx.x], x, 16);
  if (threadIdx.x < waiting) asm volatile("cp.async.wait_all;" ::: "memory");
  __syncthreads();
  y[threadIdx.x] = tile[1 - threadIdx.x][2];
}
__global__ void groups(const float* x, float* y, int at) {   // four groups; wait_group 1: all but the last have arrived
  __shared__ __align__(16) float tile[16];
  for (int k = 0; k < 4; ++k) { copy16(tile + 4 * k, x + 4 * k, 16); commit(); }
  wait<1>();
  y[0] = tile[at];
}
}
"""


def run(cuda, name, block, *args, options=(), **more):
    args = [simt.Buffer(a) if isinstance(a, np.ndarray) else a for a in args]
    simt.launch(cuda(SOURCE, 80, *options), name, 1, block, args, **more)


def shifted(x):
    n = len(x)
    full = np.zeros(-(-n // 128) * 128, np.float32)
    full[:n] = x  # what is copied beyond the end is zeros
    return np.roll(full.reshape(-1, 128), -1, axis=1).reshape(-1)[:n]


@given(st.integers(1, 600), st.booleans())
def test_pipeline(cuda, n, check):
    x, y = np.arange(1, n + 1, dtype=np.float32), np.full(n, np.nan, np.float32)
    run(cuda, "pipeline", 32, x, y, np.int32(n), check=check)
    assert np.array_equal(y, shifted(x))


@pytest.mark.parametrize(
    "options, what",
    [
        (("-DPENDING=2",), "still being copied for thread .* by cp.async.cg"),  # waits for nothing
        (("-DAFTER_WAIT=;",), "race: shared read of .* write by thread .* at cp.async.wait_group"),
        (("-DAFTER_USE=;",), "race: shared copy of .* and read by thread"),  # the next copy overtakes the readers
        (("-DPENDING=0",), None),  # waits for too much, which is only slow
    ],
)
def test_wrong_pipelines(cuda, options, what):
    x, y = np.arange(512, dtype=np.float32), np.zeros(512, np.float32)
    if what is None:
        run(cuda, "pipeline", 32, x, y, np.int32(512), options=options)
        assert np.array_equal(y, shifted(x))
        return
    with pytest.raises(SimulationError, match=what):
        run(cuda, "pipeline", 32, x, y, np.int32(512), options=options)


def test_bytes_arrive_late_without_checks_too(cuda):
    x, y = np.arange(512, dtype=np.float32), np.zeros(512, np.float32)
    run(cuda, "pipeline", 32, x, y, np.int32(512), options=("-DPENDING=2",), check=False)
    assert not np.array_equal(y, shifted(x))


def test_sizes_and_zeros(cuda):
    x, y = np.arange(2, 34, dtype=np.int8), np.zeros(32, np.int8)
    run(cuda, "sizes", 32, x, y)
    assert y.tolist() == [2, 3, 4, 5, 1, 1, 1, 1, 10, 11, 12, 0, 0, 0, 0, 0] + [0] * 16


def test_only_the_bytes_asked_for_are_read(cuda):
    y = np.zeros(32, np.int8)
    run(cuda, "sizes", 32, np.arange(11, dtype=np.int8), y)
    with pytest.raises(SimulationError, match=r"out of bounds: .* byte 10 of argument 0"):
        run(cuda, "sizes", 32, np.arange(10, dtype=np.int8), y)


@pytest.mark.parametrize(
    "what, message",
    [
        (0, None),
        (1, r"race: argument 0\[0\] of 4 was written while cp.async was copying it"),
        (2, "shared write of byte 8 of tile .16 bytes., still being copied"),
        (3, "shared read of byte 8 of tile .16 bytes., still being copied"),
        (4, "shared copy of byte 0 of tile .16 bytes., still being copied"),
        (5, "misaligned|out of bounds"),
        (6, "the source has 20 bytes, the copy 16"),
    ],
)
def test_one_thread(cuda, what, message):
    x, y = np.arange(4, dtype=np.float32), np.zeros(1, np.float32)
    if message is None:
        run(cuda, "alone", 1, x, y, np.int32(what))
        assert y[0] == 2
    else:
        with pytest.raises(SimulationError, match=message):
            run(cuda, "alone", 1, x, y, np.int32(what))


@pytest.mark.parametrize("waiting", [2, 1])
def test_a_thread_waits_for_its_own_copies(cuda, waiting):
    x, y = np.arange(4, dtype=np.float32), np.zeros(2, np.float32)
    if waiting == 2:
        run(cuda, "each_for_itself", 2, x, y, np.int32(2))
        assert y.tolist() == [2, 2]
    else:
        with pytest.raises(SimulationError, match=r"copied for thread \(1, 0, 0\)"):
            run(cuda, "each_for_itself", 2, x, y, np.int32(1))


@pytest.mark.parametrize("at", [0, 7, 11, 12, 15])
def test_wait_group_leaves_the_last_groups(cuda, at):
    x, y = np.arange(16, dtype=np.float32), np.zeros(1, np.float32)
    if at < 12:
        run(cuda, "groups", 1, x, y, np.int32(at))
        assert y[0] == at
    else:
        with pytest.raises(SimulationError, match="still being copied"):
            run(cuda, "groups", 1, x, y, np.int32(at))


def test_other_asynchronous_copies_are_refused(cuda):
    source = """extern "C" __global__ void k(long long* p) {
      asm volatile("cp.async.mbarrier.arrive.shared.b64 [%0];" :: "r"((unsigned)(size_t)p)); }"""
    with pytest.raises(SimulationError, match=r"only cp\.async with commit_group"):
        simt.launch(cuda(source), "k", 1, 1, [simt.Buffer(np.zeros(1, np.int64))])
