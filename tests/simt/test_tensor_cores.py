"""mma.sync and ldmatrix: where each lane's numbers lie, by the formulas of the PTX ISA, one number at a time."""

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minilora import simt
from minilora.errors import SimulationError
from minilora.simt import Instruction
from minilora.simt.tensor_cores import ldmatrix, mma

DTYPES = {"f16": np.float16, "bf16": ml_dtypes.bfloat16, "f32": np.float32}


# "Matrix Fragments for mma.m16n8k16 with floating point type": (row, column) of a_i, b_i, c_i in a lane. m16n8k8 has
# half of a's and b's.
def place_a(lane, i):
    group, thread = lane >> 2, lane % 4
    row = group if 0 <= i < 2 or 4 <= i < 6 else group + 8
    return row, thread * 2 + (i & 1) + (8 if i >= 4 else 0)


def place_b(lane, i):
    group, thread = lane >> 2, lane % 4
    return thread * 2 + (i & 1) + (8 if i >= 2 else 0), group


def place_c(lane, i):
    group, thread = lane >> 2, lane % 4
    return group if i < 2 else group + 8, thread * 2 + (i & 1)


def spread(matrices, place, count):
    """(warps, rows, columns) -> registers (warps, 32): of 16-bit numbers two in one, the first lower."""
    bits = matrices.view(f"u{matrices.itemsize}")
    each = np.array([[[m[place(lane, i)] for lane in range(32)] for m in bits] for i in range(count)])
    if matrices.itemsize == 4:
        return [np.ascontiguousarray(n).view(np.float32) for n in each]
    return [each[i].astype(np.uint32) | each[i + 1].astype(np.uint32) << np.uint32(16) for i in range(0, count, 2)]


def numbers(rng, shape, dtype):
    """Some with few digits, so that sums are exact; some zero, some subnormal."""
    x = rng.integers(-8, 9, shape) * 2.0 ** rng.integers(-3, 3, shape)
    return np.where(rng.random(shape) < 0.02, 2.0**-24, x).astype(dtype)


@pytest.mark.parametrize("depth", [16, 8])
@pytest.mark.parametrize(
    ("type", "type_c", "type_d"), [("f16", "f32", "f32"), ("bf16", "f32", "f32"), ("f16", "f16", "f16")]
)
@given(seed=st.integers(0, 2**32 - 1), warps=st.integers(1, 3))
def test_product(depth, type, type_c, type_d, seed, warps):
    rng = np.random.default_rng(seed)
    a, b = numbers(rng, (warps, 16, depth), DTYPES[type]), numbers(rng, (warps, depth, 8), DTYPES[type])
    c = numbers(rng, (warps, 16, 8), DTYPES[type_c])
    instruction = Instruction(f"mma.sync.aligned.m16n8k{depth}.row.col.{type_d}.{type}.{type}.{type_c}", ())
    found = mma(instruction, spread(a, place_a, depth // 2), spread(b, place_b, depth // 4), spread(c, place_c, 4))
    exact = np.einsum("wik,wkj->wij", a.astype(np.float64), b.astype(np.float64)) + c.astype(np.float64)
    expected = spread(exact.astype(DTYPES[type_d]), place_c, 4)
    assert len(found) == len(expected)
    for x, y in zip(found, expected, strict=True):
        assert x.dtype == y.dtype and np.array_equal(x, y)


def test_every_place_is_taken_once():
    for place, count, shape in ((place_a, 8, (16, 16)), (place_b, 4, (16, 8)), (place_c, 4, (16, 8))):
        places = {place(lane, i) for lane in range(32) for i in range(count)}
        assert places == {(row, column) for row in range(shape[0]) for column in range(shape[1])}


@pytest.mark.parametrize("count", [1, 2, 4])
@pytest.mark.parametrize("transposed", [False, True])
@given(seed=st.integers(0, 2**32 - 1), warps=st.integers(1, 3))
def test_ldmatrix(count, transposed, seed, warps):
    """Thread 4 r + j holds elements 2 j and 2 j + 1 of row r; with .trans of column r (the ISA's figures)."""
    rows = np.random.default_rng(seed).integers(0, 2**16, (warps, 8 * count, 8)).astype(np.uint16)
    found = ldmatrix(Instruction(f"ldmatrix.sync.aligned.m8n8.x{count}{'.trans' * transposed}.shared.b16", ()), rows)
    assert len(found) == count
    for m, register in enumerate(found):
        assert register.dtype == np.uint32 and register.shape == (warps, 32)
        for lane in range(32):
            r, j = divmod(lane, 4)
            matrix = rows[:, 8 * m : 8 * m + 8].astype(np.uint32)
            pair = [matrix[:, k, r] if transposed else matrix[:, r, k] for k in (2 * j, 2 * j + 1)]
            assert np.array_equal(register[:, lane], pair[0] | pair[1] << 16)


@pytest.mark.parametrize(
    "opcode",
    [
        "mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32",
        "mma.sync.aligned.m16n8k16.col.col.f32.f16.f16.f32",
        "mma.sync.aligned.m8n8k4.row.col.f64.f64.f64.f64",
        "mma.sync.aligned.m16n8k16.row.col.satfinite.s32.s8.s8.s32",
    ],
)
def test_other_shapes_are_refused(opcode):
    with pytest.raises(SimulationError, match="supported"):
        mma(Instruction(opcode, ()), [np.zeros((1, 32), np.uint32)] * 4, [np.zeros((1, 32), np.uint32)] * 2, [])
    with pytest.raises(SimulationError, match="not supported"):
        ldmatrix(Instruction("ldmatrix.sync.aligned.m8n16.x1.shared.b8", ()), np.zeros((1, 8, 8), np.uint16))


KERNEL = r"""
#include <cuda_fp16.h>
extern "C" __global__ void product(const __half* a, const __half* b, float* d) {   // A (16, 16), B (16, 8) by rows
  __shared__ __half tile_a[16][24], tile_b[16][8];                                 // 48 bytes a row: no conflicts
  for (int i = threadIdx.x; i < 256; i += 32) tile_a[i / 16][i % 16] = a[i];
  for (int i = threadIdx.x; i < 128; i += 32) tile_b[i / 8][i % 8] = b[i];
  __syncwarp();
  unsigned fa[4], fb[2], pa, pb;
  float c[4] = {0, 0, 0, 0};
  pa = __cvta_generic_to_shared(&tile_a[threadIdx.x % 16][threadIdx.x / 16 * 8]);
  pb = __cvta_generic_to_shared(&tile_b[threadIdx.x % 16][0]);
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(fa[0]), "=r"(fa[1]), "=r"(fa[2]), "=r"(fa[3]) : "r"(pa));
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0,%1}, [%2];" : "=r"(fb[0]), "=r"(fb[1]) : "r"(pb));
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
               : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
               : "r"(fa[0]), "r"(fa[1]), "r"(fa[2]), "r"(fa[3]), "r"(fb[0]), "r"(fb[1]));
  int row = threadIdx.x / 4, column = threadIdx.x % 4 * 2;
  d[row * 8 + column] = c[0];
  d[row * 8 + column + 1] = c[1];
  d[(row + 8) * 8 + column] = c[2];
  d[(row + 8) * 8 + column + 1] = c[3];
}
"""


def test_a_warp_multiplies_two_matrices(cuda, rng):
    """From arrays by rows through shared memory, ldmatrix, mma and back: the product."""
    a, b = (rng.integers(-4, 5, shape).astype(np.float16) for shape in ((16, 16), (16, 8)))
    d = np.full((16, 8), np.nan, np.float32)
    simt.launch(cuda(KERNEL), "product", 1, 32, [simt.Buffer(a), simt.Buffer(b), simt.Buffer(d)])
    assert np.array_equal(d, a.astype(np.float32) @ b.astype(np.float32))
