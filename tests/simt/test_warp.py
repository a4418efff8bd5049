"""Warp instructions against their definitions, lane by lane; each mistake with masks beside code that is right."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minilora import simt
from minilora.errors import SimulationError

SOURCE = r"""
typedef unsigned u32;
#define FULL 0xffffffffu
#define SHUFFLE(kind) extern "C" __global__ void kind(const int* x, const int* by, int* out, int n) { \
  int i = blockIdx.x * blockDim.x + threadIdx.x; \
  int a = __shfl_##kind##sync(FULL, x[i], by[i]), b = __shfl_##kind##sync(FULL, x[i], by[i], 8); \
  out[2 * i] = a; out[2 * i + 1] = b; }
#define __shfl__sync __shfl_sync
SHUFFLE(_) SHUFFLE(up_) SHUFFLE(down_) SHUFFLE(xor_)
extern "C" {
__global__ void votes(const int* x, u32* out) {
  int i = blockIdx.x * blockDim.x + threadIdx.x, v = x[i];
  u32* mine = out + 8 * i;
  mine[0] = __ballot_sync(FULL, v > 3); mine[1] = __any_sync(FULL, v > 8); mine[2] = __all_sync(FULL, v > 0);
  mine[3] = __match_any_sync(FULL, v); int same; mine[4] = __match_all_sync(FULL, v / 10, &same); mine[5] = same;
  mine[6] = 0; mine[7] = __activemask();
}
#if __CUDA_ARCH__ >= 800
__global__ void product(const u32* a, const u32* b, float* out, int n) {   // 16 x 16 times 16 x 8, float16
  __shared__ __align__(16) u32 left[16][8], right[16][4];
  int t = threadIdx.x % 32;
  if (threadIdx.x < 32) {
    for (int i = t; i < 128; i += 32) left[i / 8][i % 8] = a[i];
    for (int i = t; i < 64; i += 32) right[i / 4][i % 4] = b[i];
  }
  __syncthreads();
  if (threadIdx.x >= n) return;
  u32 x[4], y[2];
  u32 at = (u32)__cvta_generic_to_shared(&left[t % 16][t / 16 * 4]);
  u32 bt = (u32)__cvta_generic_to_shared(&right[t % 16][0]);
  float d[4] = {0, 0, 0, 0};
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(x[0]), "=r"(x[1]), "=r"(x[2]), "=r"(x[3]) : "r"(at));
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0, %1}, [%2];" : "=r"(y[0]), "=r"(y[1]) : "r"(bt));
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
               "{%0, %1, %2, %3};" : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
               : "r"(x[0]), "r"(x[1]), "r"(x[2]), "r"(x[3]), "r"(y[0]), "r"(y[1]));
  out += threadIdx.x / 32 * 128;
  for (int i = 0; i < 4; ++i) out[(t / 4 + i / 2 * 8) * 8 + t % 4 * 2 + i % 2] = d[i];
}
__global__ void reductions(const int* x, int* out) {
  int i = blockIdx.x * blockDim.x + threadIdx.x, v = x[i];
  u32 mask = threadIdx.x % 32 < 10 ? 0x3ffu : ~0x3ffu;
  int* mine = out + 6 * i;
  if (threadIdx.x % 32 < 10) {
    mine[0] = __reduce_add_sync(mask, v); mine[1] = __reduce_min_sync(mask, v); mine[2] = __reduce_max_sync(mask, v);
  } else {
    mine[0] = __reduce_add_sync(mask, v); mine[1] = __reduce_min_sync(mask, v); mine[2] = __reduce_max_sync(mask, v);
  }
  mine[3] = __reduce_and_sync(mask, v); mine[4] = __reduce_or_sync(mask, v); mine[5] = __reduce_xor_sync(mask, v);
}
#endif
__global__ void sum_of_halves(const int* x, int* out) {   // two masks in one instruction
  int v = x[threadIdx.x];
  u32 mask = threadIdx.x % 32 < 16 ? 0xffffu : 0xffff0000u;
  for (int by = 8; by; by /= 2) v += __shfl_xor_sync(mask, v, by);
  out[threadIdx.x] = v;
}
__global__ void left(int* out, int n) {
  if (threadIdx.x >= n) return;
  out[threadIdx.x] = __shfl_xor_sync(FULL, threadIdx.x, 1);
}
__global__ void left_before_barrier(int* out, int n) {
  if (threadIdx.x >= n) return;
  __syncwarp();
  out[threadIdx.x] = 1;
}
__global__ void vote_of_those_left(u32* out, int n) {
  if (threadIdx.x >= n) return;
  out[2 * threadIdx.x] = __ballot_sync(FULL, 1);
  out[2 * threadIdx.x + 1] = __all_sync(FULL, threadIdx.x < n);
}
__global__ void elsewhere(int* out, int n) {
  if (threadIdx.x >= n) __syncthreads();
  else { out[threadIdx.x] = __shfl_xor_sync(FULL, threadIdx.x, 1); __syncthreads(); }
}
__global__ void masked(int* out, u32 mask, int from) {
  if (mask >> threadIdx.x & 1) out[threadIdx.x] = __shfl_sync(mask, threadIdx.x, from);
}
__global__ void not_in_mask(int* out, u32 mask) { out[threadIdx.x] = __shfl_sync(mask, threadIdx.x, 0); }
__global__ void different_masks(int* out, int same) {
  out[threadIdx.x] = __ballot_sync(same || threadIdx.x ? FULL : 0xffu, 1);
}
__global__ void exchange(const float* x, float* out, int n) {   // through shared memory, within a warp
  __shared__ float tile[96];
  tile[threadIdx.x] = x[threadIdx.x];
#ifdef SYNC
  SYNC;
#endif
  out[threadIdx.x] = tile[threadIdx.x ^ n];
}
__global__ void late(int* out) {      // odd lanes come to the shuffle three turns of the loop later
  int v = threadIdx.x, done = 0;
  for (int k = 0; done < 2; ++k)
    if (k >= (threadIdx.x & 1) * 3) { v = __shfl_xor_sync(FULL, v, 1) + 10; ++done; }
  out[threadIdx.x] = v;
}
__global__ void meet(int* out) {      // lanes that part for long meet at the shuffle
  int v = threadIdx.x;
  for (int k = 0; k < threadIdx.x % 7; ++k) v += k;
  if (threadIdx.x % 3 == 0) { v *= 2; if (threadIdx.x % 2) v += 100; }
  __syncwarp();
  out[threadIdx.x] = __shfl_down_sync(FULL, v, 1);
}
}
"""


def run(cuda, name, grid, block, *args, options=(), arch=80, **more):
    args = [simt.Buffer(a) if isinstance(a, np.ndarray) else a for a in args]
    simt.launch(cuda(SOURCE, arch, *options), name, grid, block, args, **more)


def shuffled(kind: str, x: np.ndarray, by: np.ndarray, width: int) -> list[int]:
    """CUDA C++ Programming Guide, "Warp Shuffle Functions"; x, by: of one warp."""
    result = []
    for lane in range(32):
        first, b = lane // width * width, int(by[lane])
        source = {"_": first + b % width, "up_": lane - b, "down_": lane + b, "xor_": lane ^ b}[kind]
        if (kind == "up_" and source < first) or (kind in ("down_", "xor_") and source >= first + width):
            source = lane
        result.append(int(x[source]))
    return result


@pytest.mark.parametrize("kind", ["_", "up_", "down_", "xor_"])
@given(st.integers(0, 2**32), st.sampled_from([32, 64]))
def test_shuffles(cuda, kind, seed, block):
    rng = np.random.default_rng(seed)
    x, by = (rng.integers(0, high, 128).astype(np.int32) for high in (1000, 32))
    out = np.zeros(256, np.int32)
    run(cuda, kind, 128 // block, block, x, by, out, np.int32(0))
    for w in range(4):
        part = slice(32 * w, 32 * w + 32)
        assert out[0::2][part].tolist() == shuffled(kind, x[part], by[part], 32)
        assert out[1::2][part].tolist() == shuffled(kind, x[part], by[part], 8)


@pytest.mark.parametrize("arch", [75, 120])
@given(st.lists(st.integers(0, 12), min_size=96, max_size=96), st.sampled_from([32, 96]))
def test_votes(cuda, arch, values, block):
    x, out = np.array(values, np.int32), np.zeros((96, 8), np.uint32)
    run(cuda, "votes", 96 // block, block, x, out, arch=arch)
    for i in range(96):
        warp = x[i // 32 * 32 : i // 32 * 32 + 32]
        bits = lambda flags: sum(1 << k for k, flag in enumerate(flags) if flag)  # noqa: E731
        same = len(set(warp // 10)) == 1
        expected = [bits(warp > 3), (warp > 8).any(), (warp > 0).all(), bits(warp == x[i])]
        expected += [2**32 - 1 if same else 0, same, 0, 2**32 - 1]
        assert out[i].tolist() == [int(e) for e in expected]


@given(st.lists(st.integers(-(2**31), 2**31 - 1), min_size=64, max_size=64))
def test_reductions_with_masks(cuda, values):
    x, out = np.array(values, np.int32), np.zeros((64, 6), np.int32)
    run(cuda, "reductions", 1, 64, x, out)
    for i in range(64):
        warp, lane = x[i // 32 * 32 : i // 32 * 32 + 32], i % 32
        part = warp[:10] if lane < 10 else warp[10:]
        assert out[i, 0] == part.sum(dtype=np.int32) and (out[i, 1], out[i, 2]) == (part.min(), part.max())
        assert out[i, 3:].tolist() == [f.reduce(part) for f in (np.bitwise_and, np.bitwise_or, np.bitwise_xor)]


@pytest.mark.parametrize("arch", [80, 90, 120])
def test_matrix_product(cuda, arch, rng):
    """Through ldmatrix and mma.sync, by both warps of each block."""
    a, b = (rng.integers(-9, 10, shape).astype(np.float16) for shape in ((16, 16), (16, 8)))
    out = np.zeros((2, 16, 8), np.float32)
    run(cuda, "product", 1, 64, a, b, out, np.int32(64), arch=arch)
    assert np.array_equal(out, [a.astype(np.float32) @ b.astype(np.float32)] * 2)
    with pytest.raises(SimulationError, match=r"needs all 32 lanes; lane 16 left the kernel \(line 27\)"):
        run(cuda, "product", 1, 64, a, b, out, np.int32(48), arch=arch)
    with pytest.raises(SimulationError, match="needs all 32 lanes; lane 8 is not there"):
        run(cuda, "product", 1, 40, a, b, out, np.int32(64), arch=arch)


@pytest.mark.parametrize("arch", [75, 80, 120])
def test_two_masks_in_one_instruction(cuda, arch, rng):
    x, out = rng.integers(0, 100, 64).astype(np.int32), np.zeros(64, np.int32)
    run(cuda, "sum_of_halves", 1, 64, x, out, arch=arch)
    assert np.array_equal(out, np.repeat(x.reshape(4, 16).sum(1), 16))


@pytest.mark.parametrize("n", [64, 32, 40, 31, 1])
def test_lanes_that_are_not_there(cuda, n):
    """Whole warps may leave; a lane that a barrier waits for or a shuffle reads from may not."""
    out = np.full(64, -1, np.int32)
    if n % 32 == 0:
        run(cuda, "left", 1, 64, out, np.int32(n))
        assert np.array_equal(out[:n], np.arange(n) ^ 1)
    else:
        if n % 2:
            with pytest.raises(SimulationError, match=f"shuffle from lane {n % 32}, which left the kernel"):
                run(cuda, "left", 1, 64, out, np.int32(n))
        else:  # both of a pair are there, or both have left: the ISA waits for "non-exited threads"
            run(cuda, "left", 1, 64, out, np.int32(n))
        with pytest.raises(SimulationError, match=f"waits for lane {n % 32} of its warp, which left the kernel"):
            run(cuda, "left_before_barrier", 1, 64, out, np.int32(n))
    if n < 64 and n % 32:
        with pytest.raises(SimulationError, match=f"waits for lane {n % 32} of its warp, which waits elsewhere"):
            run(cuda, "elsewhere", 1, 64, out, np.int32(n))


def test_votes_of_the_lanes_that_are_left(cuda):
    out = np.zeros((32, 2), np.uint32)
    run(cuda, "vote_of_those_left", 1, 32, out, np.int32(5))
    assert out[:5].tolist() == [[0x1F, 1]] * 5 and not out[5:].any()


def test_a_warp_that_is_not_full(cuda):
    """Lanes beyond the block's threads need not come, but there is nothing to read from them."""
    x, out = np.arange(40, dtype=np.int32), np.zeros((40, 8), np.uint32)
    run(cuda, "votes", 1, 40, x, out)
    assert out[:, 0].tolist() == [(2**32 - 1) & ~0xF] * 32 + [0xFF] * 8
    with pytest.raises(SimulationError, match="shuffle from lane 9"):
        run(cuda, "masked", 1, 9, np.zeros(9, np.int32), np.uint32(0xFFFFFFFF), np.int32(9))


@given(st.integers(1, 2**32 - 1), st.integers(0, 31))
def test_shuffle_from_a_lane_outside_the_mask(cuda, mask, source):
    out = np.full(32, -1, np.int32)
    if mask >> source & 1:
        run(cuda, "masked", 1, 32, out, np.uint32(mask), np.int32(source))
        assert out.tolist() == [source if mask >> lane & 1 else -1 for lane in range(32)]
    else:
        with pytest.raises(SimulationError, match=f"shuffle from lane {source}, which is not in the mask"):
            run(cuda, "masked", 1, 32, out, np.uint32(mask), np.int32(source))


def test_a_lane_that_is_not_in_its_own_mask(cuda):
    out = np.zeros(32, np.int32)
    run(cuda, "not_in_mask", 1, 32, out, np.uint32(0xFFFFFFFF))
    with pytest.raises(SimulationError, match=r"thread \(3, 0, 0\).*not in the mask"):
        run(cuda, "not_in_mask", 1, 32, out, np.uint32(0xFFFFFFF7))


def test_masks_that_differ(cuda):
    out = np.zeros(32, np.int32)
    run(cuda, "different_masks", 1, 32, out, np.int32(1))
    assert (out == -1).all()
    with pytest.raises(SimulationError, match="with other masks"):
        run(cuda, "different_masks", 1, 32, out, np.int32(0))


@pytest.mark.parametrize(
    "sync, across, right",
    [
        (None, 31, False),
        ("__syncwarp()", 31, True),
        ("__syncwarp()", 32, False),  # another warp
        ("__syncthreads()", 32, True),
        ("__syncwarp(threadIdx.x % 32 < 16 ? 0xffffu : 0xffff0000u)", 15, True),
        ("__syncwarp(threadIdx.x % 32 < 16 ? 0xffffu : 0xffff0000u)", 16, False),  # the other half
        ("__any_sync(~0u, n)", 31, False),  # waits for the lanes, and orders nothing
        ("if (__shfl_sync(~0u, n, 0) < 0) return", 31, False),
        ("__threadfence_block()", 31, False),
    ],
)
def test_what_orders_the_lanes_of_a_warp(cuda, sync, across, right):
    x, out = np.arange(64, dtype=np.float32), np.zeros(64, np.float32)
    options = (f"-DSYNC={sync}",) if sync else ()
    if right:
        run(cuda, "exchange", 1, 64, x, out, np.int32(across), options=options)
        assert np.array_equal(out, np.arange(64) ^ across)
    else:
        with pytest.raises(SimulationError, match="race: shared read of byte"):
            run(cuda, "exchange", 1, 64, x, out, np.int32(across), options=options)


@pytest.mark.parametrize("arch", [75, 80, 90, 120])
def test_lanes_wait_for_those_that_come_later(cuda, arch):
    out = np.zeros(64, np.int32)
    run(cuda, "late", 1, 64, out, arch=arch)
    assert np.array_equal(out, np.arange(64) + 20)


@pytest.mark.parametrize("arch", [75, 80, 90, 120])
def test_lanes_that_parted_meet_again(cuda, arch):
    out = np.zeros(64, np.int32)
    run(cuda, "meet", 1, 64, out, arch=arch)
    values = []
    for t in range(64):
        v = t + sum(range(t % 7))
        values.append((2 * v + 100 * (t % 2)) if t % 3 == 0 else v)
    assert out.tolist() == [values[t + 1 if t % 32 < 31 else t] for t in range(64)]
