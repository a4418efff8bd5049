"""Memory: each kind of load and store moves the right bytes; each kind of mistake is found, what is right is not."""

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minilora import simt
from minilora.errors import SimulationError

SOURCE = r"""
#include <cuda_fp16.h>
#include <cuda_bf16.h>
typedef unsigned char u8; typedef unsigned short u16; typedef unsigned u32; typedef unsigned long long u64;
#define COPY(T) extern "C" __global__ void copy_##T(const T* x, T* y, int n) { \
  int i = blockIdx.x * blockDim.x + threadIdx.x; if (i < n) y[i] = x[i]; }
COPY(u8) COPY(u16) COPY(u32) COPY(u64) COPY(float) COPY(double) COPY(float2) COPY(uint4) COPY(double2) COPY(char)
extern "C" {
__global__ void widen(const signed char* a, const u8* b, const short* c, long long* out) {
  int i = threadIdx.x; out[3 * i] = a[i]; out[3 * i + 1] = b[i]; out[3 * i + 2] = c[i];
}
__global__ void read_at(const int* x, int* out, long long i) { *out = x[i]; }
__global__ void write_at(int* x, long long i) { x[i] = 7; }
__global__ void add_at(int* x, long long i) { atomicAdd(x + i, 7); }
__global__ void sum4(const u8* x, u32* out) {
  uint4 v = *reinterpret_cast<const uint4*>(x); *out = v.x + v.y + v.z + v.w;
}
__global__ void store4(u8* x) { *reinterpret_cast<u32*>(x) = 0x04030201; }
__global__ void tile(int* out, int written, int read) {
  __shared__ int before[32], tile[32], after[32];
  before[threadIdx.x] = 1000; after[threadIdx.x] = 2000;
  if (threadIdx.x < written) tile[threadIdx.x] = threadIdx.x;
  __syncthreads();
  out[threadIdx.x] = tile[read] + before[31 - threadIdx.x] + after[31 - threadIdx.x];
}
__global__ void either(int* out, int n) {            // a pointer into shared or global memory, as the thread decides
  __shared__ int tile[64];
  tile[threadIdx.x] = -1;
  int* p = threadIdx.x < n ? tile : out;
  p[threadIdx.x] = threadIdx.x;
  __syncthreads();
  if (threadIdx.x < n) out[threadIdx.x] = 100 + tile[threadIdx.x];
}
__global__ void neighbour(int** where, int* out) {   // the shared memory of another block
  __shared__ int mine;
  mine = 5;
  if (blockIdx.x == 0) { *where = &mine; *out = 0; }
  else *out = **where;
}
__global__ void addresses(u32* out) {       // of 32 bits, with an offset
  __shared__ u32 tile[4];
  u32 at = (u32)__cvta_generic_to_shared(tile), v;
  for (u32 i = 0; i < 4; ++i) tile[i] = 10 + i;
  asm volatile("ld.shared.u32 %0, [%1+8];" : "=r"(v) : "r"(at) : "memory");
  asm volatile("st.shared.v2.u32 [%0+0], {%1, %1};" :: "r"(at), "r"(v) : "memory");
  for (u32 i = 0; i < 4; ++i) out[i] = tile[i];
}
__global__ void accumulate(float* y, const float* x) { y[threadIdx.x] += x[threadIdx.x]; }
__global__ void atomics(const u32* x, u32* y, float* f, u64* l, int n) {
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= n) return;
  u32 v = x[i];
  atomicAdd(y, v); atomicMin(y + 1, v); atomicMax(y + 2, v); atomicAnd(y + 3, v); atomicOr(y + 4, v);
  atomicXor(y + 5, v); atomicMin((int*)y + 6, (int)v); atomicMax((int*)y + 7, (int)v);
  atomicInc(y + 8, 6); atomicDec(y + 9, 6);
  atomicExch(y + 10, 77); atomicCAS(y + 11, 0u, 5u); atomicSub(y + 12, v);
  atomicAdd(f, (float)(v % 8)); atomicAdd(l, (u64)v << 20); atomicMax(l + 1, (u64)v << 30);
}
__global__ void tickets(u32* next, u32* mine) { mine[blockIdx.x * blockDim.x + threadIdx.x] = atomicAdd(next, 1u); }
__global__ void tickets_of_a_block(u32* mine) {
  __shared__ u32 next;
  if (threadIdx.x == 0) next = 0;
  __syncthreads();
  mine[blockIdx.x * blockDim.x + threadIdx.x] = atomicAdd(&next, 1u);
}
__global__ void multiply(float* y, const float* x, int n) {   // an atomic that CUDA has not, by compare-and-swap
  int i = threadIdx.x;
  if (i >= n) return;
  u32 *at = (u32*)y, old = atomicAdd(at, 0u), seen;
  do { seen = old; old = atomicCAS(at, seen, __float_as_uint(__uint_as_float(seen) * x[i])); } while (old != seen);
}
__global__ void add_halves(__half2* y, __half h, int times) {
  for (int i = 0; i < times; ++i) atomicAdd(y, __half2half2(h));
}
__global__ void add_bfloat16(__nv_bfloat16* y, const __nv_bfloat16* x) { atomicAdd(y, x[threadIdx.x]); }
__global__ void add_small(float* y, float v) {
  __shared__ float t;
  t = v;
  atomicAdd(&t, v);
  *y = t;
  atomicAdd(y + 1, v);
}
}
"""

TYPES = {
    "u8": "u1", "u16": "u2", "u32": "u4", "u64": "u8", "float": "f4", "double": "f8", "char": "i1",
    "float2": "c8", "uint4": "V16", "double2": "c16",
}  # fmt: skip


def run(cuda, name, grid, block, *args, arch=80, **options):
    args = [simt.Buffer(a) if isinstance(a, np.ndarray) else a for a in args]
    simt.launch(cuda(SOURCE, arch), name, grid, block, args, **options)


@pytest.mark.parametrize("type", TYPES)
@given(st.integers(1, 130), st.sampled_from([1, 32, 45]))
def test_copies_of_every_width(cuda, type, n, block):
    dtype = np.dtype(TYPES[type])
    x = np.random.default_rng(n).integers(0, 256, n * dtype.itemsize).astype(np.uint8).view(dtype)
    y = np.zeros_like(x)
    run(cuda, f"copy_{type}", -(-n // block), block, x, y, np.int32(n))
    assert x.tobytes() == y.tobytes()


@pytest.mark.parametrize("arch", [75, 80, 90, 120])
def test_narrow_loads_extend(cuda, arch):
    a, b = np.array([-128, -1, 127], np.int8), np.array([255, 0, 128], np.uint8)
    c, out = np.array([-32768, -1, 32767], np.int16), np.zeros((3, 3), np.int64)
    run(cuda, "widen", 1, 3, a, b, c, out, arch=arch)
    assert np.array_equal(out.T, [a, b, c])


@pytest.mark.parametrize("type", ["u8", "s8", "b8", "u16", "s16", "u32", "s32"])
@given(st.integers(0, 2**32 - 1))
def test_loads_into_wider_registers(type, value):
    """PTX ISA, section 9.4.1: extended by sign for .s, by zeros for .u and .b."""
    text = f"""
    .entry k(.param .u64 in, .param .u64 out) {{
      .reg .b64 %a, %b, %wide;
      ld.param.u64 %a, [in]; ld.param.u64 %b, [out];
      ld.global.{type} %wide, [%a];
      st.global.b64 [%b], %wide;
      st.global.{type} [%b+8], %wide;
      ret;
    }}"""
    given, out = np.array([value], np.uint32), np.zeros(2, np.uint64)
    simt.launch(simt.load(text), "k", 1, 1, [simt.Buffer(given), simt.Buffer(out)])
    narrow = given.view(f"{'i' if type[0] == 's' else 'u'}{int(type[1:]) // 8}")[0]
    assert int(out[0]) == int(narrow) % 2**64
    assert out[1:].view(narrow.dtype)[0] == narrow


@given(st.integers(1, 9), st.integers(-70, 70), st.sampled_from(["read_at", "write_at", "add_at"]))
def test_bounds(cuda, n, i, name):
    """A buffer of n numbers: indices 0 to n - 1 are right, all others an error that names the buffer and the index."""
    args = [np.zeros(n, np.int32), *([np.zeros(1, np.int32)] if name == "read_at" else []), np.int64(i)]
    if 0 <= i < n:
        run(cuda, name, 1, 1, *args)
        return
    with pytest.raises(SimulationError) as error:
        run(cuda, name, 1, 1, *args)
    assert f"out of bounds: the nearest array is argument 0[{i}]" in str(error.value) or not -64 <= i < n + 64


def test_far_and_null(cuda):
    for i in (10**9, -(10**9), -64):
        with pytest.raises(SimulationError, match="out of bounds"):
            run(cuda, "write_at", 1, 1, np.zeros(1, np.int32), np.int64(i))


@given(st.integers(0, 40))
def test_alignment(cuda, offset):
    buffer = simt.Buffer(np.arange(16, dtype=np.uint8), offset=offset)
    out = np.zeros(1, np.uint32)
    total = np.arange(16, dtype=np.uint8).view(np.uint32).sum()
    for name, nbytes, args in (("sum4", 16, [buffer, simt.Buffer(out)]), ("store4", 4, [buffer])):
        if offset % nbytes == 0:
            simt.launch(cuda(SOURCE), name, 1, 1, args)
        else:
            with pytest.raises(SimulationError, match=f"misaligned.*{offset % nbytes} after a multiple of {nbytes}"):
                simt.launch(cuda(SOURCE), name, 1, 1, args)
    assert out[0] == (0 if offset % 16 else total)


@pytest.mark.parametrize("name", ["write_at", "add_at"])
def test_read_only(cuda, name):
    x = np.zeros(4, np.int32)
    run(cuda, name, 1, 1, x, np.int64(2))
    assert x.tolist() == [0, 0, 7, 0]
    with pytest.raises(SimulationError, match=r"to read-only memory: argument 0\[2\]"):
        simt.launch(cuda(SOURCE), name, 1, 1, [simt.Buffer(x, read_only=True), np.int64(2)])
    x.flags.writeable = False
    with pytest.raises(SimulationError, match="to read-only memory"):
        simt.launch(cuda(SOURCE), name, 1, 1, [simt.Buffer(x), np.int64(2)])
    assert x.tolist() == [0, 0, 7, 0]


@pytest.mark.parametrize("written, read", [(32, 31), (32, 32), (32, -1), (31, 31), (31, 30)])
def test_shared_arrays(cuda, written, read):
    """Arrays that a GPU would put side by side are apart here: one past the end is not the next one's first."""
    out = np.zeros(32, np.int32)
    args = (out, np.int32(written), np.int32(read))
    if 0 <= read < written:
        run(cuda, "tile", 1, 32, *args)
        assert (out == 3000 + read).all()
    else:
        with pytest.raises(SimulationError, match="not written before" if 0 <= read < 32 else "out of bounds"):
            run(cuda, "tile", 1, 32, *args)


@given(st.integers(0, 64))
def test_generic_addresses(cuda, n):
    out = np.full(64, -7, np.int32)
    run(cuda, "either", 1, 64, out, np.int32(n))
    assert out.tolist() == [100 + i if i < n else i for i in range(64)]


def test_addresses_of_32_bits(cuda):
    out = np.zeros(4, np.uint32)
    run(cuda, "addresses", 1, 1, out)
    assert out.tolist() == [12, 12, 12, 13]


def test_shared_memory_of_another_block(cuda):
    where, out = np.zeros(1, np.uint64), np.zeros(1, np.int32)
    run(cuda, "neighbour", 1, 1, where, out)
    with pytest.raises(SimulationError, match="out of bounds"):
        run(cuda, "neighbour", 2, 1, where, out, check=False)


def test_meaningless_buffers(cuda):
    x, y = np.ones(8, np.float32), np.zeros(8, np.float32)
    run(cuda, "accumulate", 1, 8, y, x)
    assert (y == 1).all()
    with pytest.raises(SimulationError, match=r"global read of argument 0\[0\] of 8, which was not written before"):
        simt.launch(cuda(SOURCE), "accumulate", 1, 8, [simt.Buffer(y, initialized=False), simt.Buffer(x)])
    simt.launch(cuda(SOURCE), "copy_float", 1, 8, [simt.Buffer(x), simt.Buffer(y, initialized=False), np.int32(8)])


def test_a_buffer_is_contiguous():
    with pytest.raises(SimulationError, match="contiguous"):
        simt.Buffer(np.zeros((4, 4))[:, 1])


@pytest.mark.parametrize("arch", [75, 90])
@given(st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=100), st.sampled_from([64, 8192]))
def test_atomics(cuda, arch, values, max_lanes):
    x = np.array(values, np.uint32)
    n = len(x)
    start = np.array([0, 2**32 - 1, 0, 2**32 - 1, 0, 0, 2**31 - 1, 2**31, 0, 20, 0, 0, 0], np.uint32)
    y, f, long = start.copy(), np.zeros(1, np.float32), np.zeros(2, np.uint64)
    run(cuda, "atomics", -(-n // 40), 40, x, y, f, long, np.int32(n), arch=arch, max_lanes=max_lanes)
    reduced = [g.reduce(x) for g in (np.add, np.minimum, np.maximum, np.bitwise_and, np.bitwise_or, np.bitwise_xor)]
    signed = x.view(np.int32)
    assert y[:6].tolist() == [int(r) % 2**32 for r in reduced]
    assert y[6:8].view(np.int32).tolist() == [signed.min(), signed.max()]
    assert y[8:].tolist() == [n % 7, -n % 7, 77, 5, -int(x.sum(dtype=np.uint64)) % 2**32]
    assert f[0] == (x % 8).sum()
    assert long.tolist() == [sum(v << 20 for v in values) % 2**64, max(values) << 30]


@given(st.integers(1, 4), st.integers(1, 70), st.sampled_from([32, 8192]))
def test_each_ticket_is_drawn_once(cuda, grid, block, max_lanes):
    next, mine = np.zeros(1, np.uint32), np.zeros(grid * block, np.uint32)
    run(cuda, "tickets", grid, block, next, mine, max_lanes=max_lanes)
    assert sorted(mine) == list(range(grid * block)) and next[0] == grid * block
    run(cuda, "tickets_of_a_block", grid, block, mine, max_lanes=max_lanes)
    assert np.array_equal(np.sort(mine.reshape(grid, block)), np.tile(np.arange(block), (grid, 1)))


@pytest.mark.parametrize("arch", [75, 120])
def test_compare_and_swap_loop(cuda, arch):
    x, y = np.full(40, 2, np.float32), np.ones(1, np.float32)
    x[7] = 3
    run(cuda, "multiply", 1, 64, y, x, np.int32(40), arch=arch)
    assert y[0] == 3 * 2.0**39


def test_atomics_of_half_precision(cuda):
    y = np.zeros(2, np.float16)
    run(cuda, "add_halves", 1, 32, y, np.float16(0.1), np.int32(3))
    expected = np.float16(0)
    for _ in range(96):
        expected += np.float16(0.1)
    assert y.tolist() == [expected] * 2
    x, total = np.arange(1, 33).astype(ml_dtypes.bfloat16), np.zeros(2, ml_dtypes.bfloat16)
    run(cuda, "add_bfloat16", 1, 32, total, x, arch=90)
    expected = ml_dtypes.bfloat16(0)
    for v in x:
        expected = ml_dtypes.bfloat16(np.float32(expected) + np.float32(v))
    assert total[0] == expected


def test_atomic_add_flushes_subnormal_numbers_in_global_memory_only(cuda):
    """PTX ISA, section 9.7.13.3: atom.add.f32 flushes on global memory, and not on shared memory."""
    tiny = np.float32(1e-40)
    y = np.array([0, 0], np.float32)
    run(cuda, "add_small", 1, 1, y, tiny)
    assert y[0] == tiny + tiny and y[1] == 0
