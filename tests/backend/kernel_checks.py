"""One call of each launcher in minilora/backend/cuda on random data, held to NumPy: what any Device must pass.

    y = quantize_4bit(device, version=3, n=1001, blocksize=64)       # raises AssertionError where NumPy has other bits

Quantize and dequantize give NumPy's bits. A sum of n products, in any order, is within γ Σ|w x| of float64's, with
γ = n u / (1 - n u) and u = 2⁻²³ (Higham, Accuracy and Stability of Numerical Algorithms, section 3.1; u is twice
float32's, as tensor cores may cut off). Each returns what the kernels gave, so that two devices can be compared.
"""

import ml_dtypes
import numpy as np

from minilora.backend import numpy as reference
from minilora.backend.cuda import gemm, matmul, quantize, rows
from minilora.quant import CODES, DYNAMIC_MAP, double

f32 = np.float32
DTYPES = {"float32": f32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}
ROUNDING = {"float32": (0, 0), "float16": (2.0**-11, 2.0**-25), "bfloat16": (2.0**-8, 2.0**-134)}  # relative, absolute
LEVELS = CODES | {"few": np.array([0.5, -1, 0.25], f32)}
SCALES = np.array([0, 1, 0.7, 3e4, 1e5, 3e38, np.inf, np.nan, 1e-38, 4e-39, 1e-42, 1e-45, 2e-37], f32)


def same(a: np.ndarray, b: np.ndarray):
    """Equal in type, shape and every bit; only NaN may be written in different ways."""
    assert (a.dtype, a.shape) == (b.dtype, b.shape)
    differ = a.view(f"u{a.itemsize}") != b.view(f"u{a.itemsize}")
    if a.dtype.kind not in "iu":
        differ &= ~(np.isnan(a) & np.isnan(b))
    assert not differ.any(), (
        f"{differ.sum()} of {a.size} differ, first {np.argwhere(differ)[0]}: {a[differ][0]} {b[differ][0]}"
    )


def random_weights(n: int, blocksize: int, levels: np.ndarray, seed: int, kind: str = "mixed") -> np.ndarray:
    """kind: "normal"; "ties", levels and the borders between them; "mixed", both, blocks of any magnitude, zeros."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal(n).astype(f32)
    if kind == "normal":
        return x
    borders = reference.midpoints(np.sort(levels[np.isfinite(levels)]))
    near = [borders, np.nextafter(borders, f32(-2)), np.nextafter(borders, f32(2)), levels[np.isfinite(levels)]]
    x = np.where(rng.random(n) < (kind == "mixed") * 0.5, x / 4, rng.choice(np.concatenate(near), n)).astype(f32)
    x[::blocksize] = rng.choice([1, -1])
    if kind == "ties":
        return x
    exponent = rng.choice([0, 0, 5, 120, -60, -126, -149], -(-n // blocksize)).repeat(blocksize)[:n]
    x *= rng.choice(f32([1, 1, 0.77]), -(-n // blocksize)).repeat(blocksize)[:n]
    x = np.ldexp(x.astype(float), exponent).clip(-3e38, 3e38).astype(f32)
    x[(rng.random(-(-n // blocksize)) < 0.1).repeat(blocksize)[:n]] = 0
    return x


def rounded(x: np.ndarray, dtype: str) -> np.ndarray:
    """As dequantize gives it: float16 ends at 65504."""
    with np.errstate(all="ignore"):
        return (np.clip(x, -65504, 65504) if dtype == "float16" else x).astype(DTYPES[dtype])


# Quantize and dequantize


def quantize_4bit(device, version, n, blocksize, code="nf4", seed=0, kind="mixed"):
    x = random_weights(n, blocksize, LEVELS[code], seed, kind)
    got = quantize.quantize_4bit(device, x, LEVELS[code], blocksize, version)
    with np.errstate(all="ignore"):
        expected = reference.quantize_4bit(x, LEVELS[code], blocksize)
    same(got[1], expected[1])
    same(got[0], expected[0])
    return got


def dequantize_4bit(device, version, n, blocksize, start=0, dtype="float32", code="nf4", seed=0):
    rng = np.random.default_rng(seed)
    packed, absmax = rng.integers(0, 256, -(-n // 2)).astype(np.uint8), rng.choice(SCALES, -(-n // blocksize))
    args = (packed, absmax, LEVELS[code], blocksize, start, n)
    got = quantize.dequantize_4bit(device, *args, dtype=DTYPES[dtype], version=version)
    with np.errstate(all="ignore"):
        same(got, rounded(reference.dequantize_4bit(*args), dtype))
    return (got,)


def dequantize_4bit_double(device, version, n, blocksize, start=0, dtype="float32", scales="dynamic", seed=0):
    rng = np.random.default_rng(seed)
    packed = rng.integers(0, 256, -(-n // 2)).astype(np.uint8)
    codes, absmax2, offset = double.compress(rng.exponential(size=-(-n // blocksize)).astype(f32), scales)
    args = (packed, codes, double.LEVELS.get(scales), absmax2, offset, CODES["nf4"], blocksize, start, n)
    got = quantize.dequantize_4bit_double(device, *args, dtype=DTYPES[dtype], version=version)
    absmax = double.expand(codes, absmax2, offset, scales)
    same(got, rounded(reference.dequantize_4bit(packed, absmax, CODES["nf4"], blocksize, start, n), dtype))
    return (got,)


def quantize_int8(device, version, n, blocksize, seed=0):
    x = random_weights(n, blocksize, CODES["linear16"], seed).clip(-1e36, 1e36)
    got = quantize.quantize_int8(device, x, blocksize, version)
    expected = reference.quantize_int8(x, blocksize)
    same(got[1], expected[1])
    same(got[0], expected[0])
    return got


def dequantize_int8(device, version, n, blocksize, start=0, dtype="float32", seed=0):
    rng = np.random.default_rng(seed)
    codes, absmax = rng.integers(-128, 128, n).astype(np.int8), rng.choice(SCALES, -(-n // blocksize))
    got = quantize.dequantize_int8(device, codes, absmax, blocksize, start, n, dtype=DTYPES[dtype], version=version)
    with np.errstate(all="ignore"):
        same(got, rounded(reference.dequantize_int8(codes, absmax, blocksize, start, n), dtype))
    return (got,)


def quantize_8bit(device, version, n, blocksize, seed=0):
    x = random_weights(n, blocksize, DYNAMIC_MAP, seed)
    got = quantize.quantize_8bit(device, x, DYNAMIC_MAP, blocksize, version)
    expected = reference.quantize_8bit(x, DYNAMIC_MAP, blocksize)
    same(got[1], expected[1])
    same(got[0], expected[0])
    back = quantize.dequantize_8bit(device, *expected, DYNAMIC_MAP, blocksize)
    same(back, reference.dequantize_8bit(*expected, DYNAMIC_MAP, blocksize))
    return (*got, back)


# Products


def gemv_4bit(device, version, M, N, K, blocksize=64, dtype="float32", scales=None, rank=0, seed=0):
    """scales: None, or a kind of double quantization."""
    rng, packed, absmax, w, lora = _product(M, N, K, blocksize, rank, N, seed)
    nested = None
    if scales is not None:
        kept = double.compress(absmax, scales)
        w = _weight(packed, double.expand(*kept, scales), blocksize, N, K)
        nested, absmax = (kept[0], double.LEVELS.get(scales), *kept[1:]), None
    x = rng.standard_normal((M, K)).astype(DTYPES[dtype])
    y = matmul.gemv_4bit(device, x, packed, absmax, CODES["nf4"], blocksize, (N, K), version, nested, lora)
    _check_product(y, x, w.T, lora)
    return (y,)


def gemm_4bit(
    device, version, M, N, K, blocksize=64, dtype="float32", transpose=False, rank=0, splits=None, seed=0
):  # fmt: skip
    rng, packed, absmax, w, lora = _product(M, N, K, blocksize, rank, K if transpose else N, seed)
    x = rng.standard_normal((M, N if transpose else K)).astype(DTYPES[dtype])
    arrays = (packed, absmax, CODES["nf4"], blocksize, (N, K))
    y = gemm.gemm_4bit(device, x, *arrays, transpose, version, lora, splits=splits)
    w = w.astype(x.dtype)
    _check_product(y, x, w if transpose else w.T, lora)
    return (y,)


def _product(M, N, K, blocksize, rank, columns, seed):
    rng = np.random.default_rng(seed)
    packed, absmax = reference.quantize_4bit(rng.standard_normal(N * K).astype(f32), CODES["nf4"], blocksize)
    lora = (rng.standard_normal((M, rank)).astype(f32), rng.standard_normal((columns, rank)).astype(f32), 0.3)
    return rng, packed, absmax, _weight(packed, absmax, blocksize, N, K), lora if rank else None


def _weight(packed, absmax, blocksize, N, K):
    return reference.dequantize_4bit(packed, absmax, CODES["nf4"], blocksize, 0, N * K).reshape(N, K)


def _check_product(y, x, w, lora):
    """w: (R, C), so that y = x w."""
    x, w, n = x.astype(float), w.astype(float), len(w) + 60  # 60: sums of lanes and of parts, scales
    exact, size = x @ w, np.abs(x) @ np.abs(w)
    if lora is not None:
        u, B, scaling = (np.asarray(a, float) for a in lora)
        exact, size, n = exact + scaling * u @ B.T, size + scaling * np.abs(u) @ np.abs(B).T, n + B.shape[1]
    bound = n * 2.0**-23 / (1 - n * 2.0**-23) * size + 2.0**-120
    relative, absolute = ROUNDING[y.dtype.name]
    bound += relative * (np.abs(exact) + bound) + absolute
    wrong = ~(np.abs(y.astype(float) - exact) <= bound)
    assert y.shape == exact.shape and not wrong.any(), (
        f"{wrong.sum()} of {y.size} are off by more than rounding explains"
    )


# Rows


def softmax(device, version, R, n, seed=0):
    x = np.random.default_rng(seed).normal(0, 10, (R, n)).astype(f32)
    y = rows.softmax(device, x, version)
    e = np.exp(x.astype(float) - x.max(-1, keepdims=True))
    np.testing.assert_allclose(y, e / e.sum(-1, keepdims=True), rtol=(8 * n + 300) * 2.0**-24, atol=2.0**-125)
    return (y,)


def rms_norm(device, version, R, n, seed=0):
    rng = np.random.default_rng(seed)
    x = (rng.standard_normal((R, n)) * 2.0 ** rng.integers(-12, 5, (R, 1))).astype(f32)
    weight = rng.standard_normal(n).astype(f32)
    y = rows.rms_norm(device, x, weight, 1e-5, version)
    exact = weight * x.astype(float) / np.sqrt((x.astype(float) ** 2).mean(-1, keepdims=True) + 1e-5)
    np.testing.assert_allclose(y, exact, rtol=(n / 2 + 8) * 2.0**-24, atol=2.0**-125)
    return (y,)
