"""CUDA C, compiled by NVIDIA's compiler and run by our instructions, against Python: what it means must come out."""

import math

import ml_dtypes
import numpy as np
import pytest

from minilora import simt

ARCHITECTURES = [75, 80, 90, 120]
INTEGERS = r"""
typedef TYPE T;
extern "C" __global__ void constants(const T* a, T* out, int n) {
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= n) return;
  T x = a[i];
  T* o = out + (long long)i * 8;
  o[0] = x / 7; o[1] = x % 7; o[2] = x / 64; o[3] = x % 64; o[4] = x / 1000003; o[5] = x * 11; o[6] = x >> 3;
  o[7] = x == 0 ? 1 : x / 3;
}
extern "C" __global__ void variables(const T* a, const T* b, T* out, int n) {
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= n) return;
  T x = a[i], y = b[i];
  T* o = out + (long long)i * 8;
  o[0] = x / y; o[1] = x % y; o[2] = x * y; o[3] = x < y ? x : y; o[4] = x > y ? x : y;
  o[5] = x & ~y; o[6] = x ^ y; o[7] = x - y;
}
"""


def quotient(x, y):
    return (abs(x) // abs(y)) * (1 if (x < 0) == (y < 0) else -1)


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize(("c", "dtype"), [("int", np.int32), ("unsigned", np.uint32), ("long long", np.int64)])
def test_integers(cuda, rng, arch, c, dtype):
    """Division by a constant becomes a product's upper half and shifts."""
    limits, n = np.iinfo(dtype), 500
    special = [limits.min, limits.min + 1, limits.max, limits.max - 1, 0, 1, 2, 6, 7, 8, 1000002, 1000003]
    a = np.r_[rng.integers(limits.min, limits.max, n - len(special), dtype), np.array(special, dtype)]
    b = rng.integers(limits.min, limits.max, n, dtype) >> rng.integers(0, limits.bits, n).astype(dtype)
    b[b == 0] = 3
    b[(b == dtype(-1 if limits.min else 1)) & (a == limits.min)] = 5
    program = cuda(INTEGERS, arch, f"-DTYPE={c}")
    out = np.empty((n, 8), dtype)
    simt.launch(program, "constants", 4, 128, [simt.Buffer(a), simt.Buffer(out), np.int32(n)])
    wrap = lambda x: (x - int(limits.min)) % 2**limits.bits + int(limits.min)  # noqa: E731
    for x, row in zip(a.tolist(), out.tolist(), strict=True):
        q = lambda y, x=x: quotient(x, y)  # noqa: E731
        assert row == [
            q(7),
            x - 7 * q(7),
            q(64),
            x - 64 * q(64),
            q(1000003),
            wrap(x * 11),
            x >> 3,
            1 if x == 0 else q(3),
        ]
    simt.launch(program, "variables", 4, 128, [simt.Buffer(a), simt.Buffer(b), simt.Buffer(out), np.int32(n)])
    for x, y, row in zip(a.tolist(), b.tolist(), out.tolist(), strict=True):
        q = quotient(x, y)
        assert row == [q, x - y * q, wrap(x * y), min(x, y), max(x, y), x & ~y, x ^ y, wrap(x - y)]


FLOATS = r"""
extern "C" __global__ void functions(const float* a, float* out, int n) {
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= n) return;
  float x = a[i], *o = out + i * 12;
  o[0] = expf(x); o[1] = logf(fabsf(x)); o[2] = sqrtf(fabsf(x)); o[3] = 1.0f / x; o[4] = tanhf(x); o[5] = sinf(x);
  o[6] = rintf(x); o[7] = floorf(x); o[8] = erff(x); o[9] = rsqrtf(fabsf(x)); o[10] = cbrtf(x);
  o[11] = __fdiv_rn(x, 3.0f);                   // x / 3.0f is a product with 1/3 from sm_100 on with -ftz=true
}
"""
# (function, most units in the last place by CUDA C++ Programming Guide, "Mathematical Functions", single precision)
FUNCTIONS = [
    (math.exp, 2),
    (lambda x: math.log(abs(x)), 1),
    (lambda x: math.sqrt(abs(x)), 0),
    (lambda x: 1 / x, 0),
    (math.tanh, 2),
    (math.sin, 2),
    (round, 0),
    (math.floor, 0),
    (math.erf, 2),
    (lambda x: 1 / math.sqrt(abs(x)), 2),
    (math.cbrt, 1),
    (lambda x: x / 3, 0),
]


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_functions_of_the_library(cuda, rng, arch):
    """exp, log, sin, ... as NVIDIA's library computes them with our instructions: within the documented error."""
    a = np.r_[rng.normal(0, 3, 300), rng.normal(0, 30, 100), 0.5, 1.5, 2.5, -0.5, 1.0, 88.0].astype(np.float32)
    out = np.empty((len(a), 12), np.float32)
    simt.launch(cuda(FLOATS, arch), "functions", 2, 256, [simt.Buffer(a), simt.Buffer(out), np.int32(len(a))])
    for j, (function, allowed) in enumerate(FUNCTIONS):
        expected = np.array([function(x) for x in a.tolist()])
        unit = np.spacing(np.maximum(np.abs(expected), 2.0**-126).astype(np.float32)).astype(np.float64)
        error = (np.abs(out[:, j] - expected) / unit).max()
        assert error <= allowed + 0.5, (j, error)


HALVES = r"""
#include <cuda_fp16.h>
#include <cuda_bf16.h>
extern "C" __global__ void halves(const T* a, const T* b, const float* f, T* out, float* back, int* integers, int n) {
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= n) return;
  T x = a[i], y = b[i], *o = out + i * 8;
  o[0] = x + y; o[1] = x - y; o[2] = x * y; o[3] = x / y; o[4] = __hmax(x, y); o[5] = __habs(x); o[6] = -x;
  o[7] = T(f[i]);
  T2 p = __halves2(x, y);
  T2 q = __hfma2(p, p, __halves2(y, x));
  back[2 * i] = float(__lo(q)); back[2 * i + 1] = float(__hi(q));
  integers[i] = int(x) + 2 * (x < y) + 4 * __hisnan(x);
}
"""
MACROS = ("T", "T2", "__halves2", "__lo", "__hi")
NAMES = {
    np.float16: ("__half", "__half2", "__halves2half2", "__low2half", "__high2half"),
    ml_dtypes.bfloat16: (
        "__nv_bfloat16",
        "__nv_bfloat162",
        "__halves2bfloat162",
        "__low2bfloat16",
        "__high2bfloat16",
    ),
}


@pytest.mark.parametrize(
    ("dtype", "arch"), [(d, a) for d in NAMES for a in ARCHITECTURES if a >= 80 or d is np.float16]
)
def test_sixteen_bits(cuda, rng, arch, dtype):
    """sm_80 has of bfloat16 arithmetic only the FMA: the compiler makes sums and products of it, and so they round."""
    n = 400
    a, b = (rng.normal(0, 1, n) * 2.0 ** rng.integers(-12, 10, n) for _ in range(2))
    a, b = a.astype(dtype), b.astype(dtype)
    f = (rng.normal(0, 1, n) * 2.0 ** rng.integers(-20, 15, n)).astype(np.float32)
    f[:3] = np.inf, -0.0, 2.0**-20
    options = [f"-D{name}={value}" for name, value in zip(MACROS, NAMES[dtype], strict=True)]
    out, back, integers = np.empty((n, 8), dtype), np.empty((n, 2), np.float32), np.empty(n, np.int32)
    args = [*map(simt.Buffer, (a, b, f, out, back, integers)), np.int32(n)]
    simt.launch(cuda(HALVES, arch, *options), "halves", 2, 256, args)
    x, y = a.astype(np.float64), b.astype(np.float64)
    with np.errstate(over="ignore", invalid="ignore"):
        exact = np.stack([x + y, x - y, x * y, x / y, np.maximum(x, y), np.abs(x), -x, f.astype(np.float64)], 1)
        expected = exact.astype(np.float32).astype(dtype)
        fused = np.stack([x * x + y, y * y + x], 1).astype(dtype).astype(np.float32)
    assert np.array_equal(np.delete(out, 3, 1), np.delete(expected, 3, 1))
    ratio = out[:, 3].astype(np.float64) / exact[:, 3]  # of bfloat16: a product with the rounded reciprocal
    usual = (np.abs(exact[:, 3]) > 2.0**-14) & (np.abs(exact[:, 3]) < 65504)
    assert np.abs(ratio[usual] - 1).max() < (2**-10 if dtype is np.float16 else 2**-7)
    assert np.array_equal(back, fused)
    assert np.array_equal(integers, np.trunc(x).astype(np.int32) + 2 * (x < y))


FLUSH = r"""
extern "C" __global__ void subnormal(const float* a, float* out, double* wide) {
  int i = threadIdx.x;
  out[4 * i] = a[i] * 1.0f; out[4 * i + 1] = a[i] + 0.0f;
  out[4 * i + 2] = fmaxf(a[i], 0.0f); out[4 * i + 3] = a[i] > 0.0f;
  wide[i] = (double)a[i] * 2.0;
}
"""


def test_ftz_is_in_the_instruction(cuda):
    """With CuPy's -ftz=true subnormal numbers are zeros in float32 arithmetic, without it they are not."""
    a = np.array([1e-45, 1e-39, 2.0**-126, 1.0], np.float32)
    for option, kept in (("-ftz=true", False), ("-ftz=false", True)):
        out, wide = np.empty((4, 4), np.float32), np.empty(4)
        simt.launch(cuda(FLUSH, 80, option), "subnormal", 1, 4, [*map(simt.Buffer, (a, out, wide))])
        x = a if kept else np.where(a < 2.0**-126, np.float32(0), a)
        assert np.array_equal(out[:, 1:], np.stack([x, x, x > 0], 1))
        assert np.array_equal(out[:, 0], a)  # the compiler drops a factor of one
        assert np.array_equal(wide, x.astype(np.float64) * 2)
