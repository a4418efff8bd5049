"""Small cases of every kernel in minilora/backend/cuda, chosen to notice a change of any of its instructions.

    for case in CASES["quantize_4bit_v1"]:
        case(device)                            # raises AssertionError where the result is not NumPy's

A compiler unrolls loops and gives each part of a tail code of its own, so that lengths have to end in every one of
them, and each copy of a multiplication has to meet products of every kind (exact_cases.py). In the simulator more
threads cost little, more steps of a thread much: there are many blocks, and short ones.
"""

from functools import partial
from itertools import cycle

import numpy as np
from backend import exact_cases as exact
from backend import kernel_checks as checks

from minilora.backend.cuda import gemm, rows
from minilora.quant import CODES

f32 = np.float32
LAST = (0.7, 1e-39, 1e5, "low", "high")  # scales of the last entries: rounded, subnormal, beyond float16


def cases(check, version, sizes: list[dict]) -> list:
    return [partial(check, version=version, **some) for some in sizes]


def sized(n, blocksize, **more) -> dict:
    return {"n": n, "blocksize": blocksize, **more}


# Quantize


def _quantize_4bit(version: int) -> list:
    mixed = [sized(2803, 4), sized(1502, 64, code="fp4"), sized(60, 256)]
    near = [sized(4107, 16), sized(2049, 16, code="subnormal"), sized(1502, 64)]
    near += [sized(n, 256, seed=n) for n in (201, 202, 203, 204, 4, 8)]  # a partial block
    near += [sized(n, 256, code="subnormal") for n in (201, 204)] + [sized(99, 32, code="negative")]
    near += [sized(n, 32, code="linear16") for n in (1025, 31, 2)]
    near += [sized(63, 64, code=code, seed=k) for k in range(5) for code in ("nf4", "subnormal")]
    near += [sized(3, 64, code=f"zero {k}") for k in range(16)] * (version == 0)  # an odd end
    alike = [(n, 16) for n in (13, 14, 31)]
    if version < 2:
        mixed += [sized(999, 1), sized(1000, 1), sized(606, 3)]
        near += [sized(n, 7, seed=n) for n in (701, 703, 704, 706, 708, 709, 711, 712)]
        near += [sized(n, 5, seed=n) for n in (2501, 2503, 2504, 2509)]
        near += [sized(660 + n, 33, seed=n, code=c) for n in (8, 31, 48) for c in ("nf4", "subnormal")]
        near += [sized(n, 33, code=c) for n in (693, 675, 709) for c in ("linear16", "negative")]
        alike = [(n, 5) for n in (8, 9, 14)]
    if version == 1:
        near += [sized(n, 301, seed=n, code=c) for n in (601, 500, 602) for c in ("nf4", "subnormal")]
        near += [sized(1204, 301, seed=k) for k in range(3)]
        alike += [(13, 16), (14, 16)]
    if version in (1, 2):
        near += [sized(1300, 576), sized(1000, 600), sized(901, 300), sized(9001, 160)]
    if version == 3:
        near += [sized(700, b) for b in (4, 8, 32, 64, 128, 256, 512)] + [sized(4099, 1024)]
        near += [sized(9001, 4096, seed=k) for k in range(5)]
    all_alike = [sized(n, b, border=k, code=c) for k in range(14) for n, b in alike for c in ("nf4", "subnormal")]
    return (
        cases(checks.quantize_4bit, version, mixed)
        + cases(exact.quantize_4bit, version, near)
        + cases(exact.alike_4bit, version, all_alike)
    )


def _quantize_int8(version: int) -> list:
    mixed = [sized(133, 16), sized(1003, 64, seed=1), sized(45, 200)]
    near = [sized(8000, 20), sized(3, 8), sized(2, 8), sized(1, 8)]
    near += [sized(4000 + rest, 20, seed=rest) for rest in (1, 2, 3, 5, 6, 7)]
    near += [sized(n, 256, seed=n) for n in (201, 202, 203, 204)]
    if version < 2:
        near += [sized(2503, 5), sized(702, 7), sized(606, 3), sized(606, 1)]
    if version == 1:
        near += [sized(30_000, 160), sized(30_000, 300)]
    return (
        cases(checks.quantize_int8, version, mixed)
        + cases(exact.quantize_int8, version, near)
        + cases(exact.alike_int8, version, [sized(n, 8) for n in (4, 5, 6, 7, 8, 15)])
    )


def _slice_absmax() -> list:
    sizes = [sized(4003, 64), sized(20_001, 17_000), sized(80, 4), sized(200_000, 40_000)]
    sizes += [sized(60_000, 300, seed=k) for k in range(2)] + [sized(90_000, 90_000, seed=k) for k in range(4)]
    return cases(exact.quantize_int8, 2, sizes)


def _quantize_8bit(version: int) -> list:
    sizes = [(2000, 4), (9, 5), (2, 7), (700, 3), (39, 13)]
    if version == 1:
        sizes = [(2003, 33), (1003, 256), (300, 700), (1300, 650), (6000, 300), (90_000, 300)]
    near = [sized(n, b, seed=n) for n, b in sizes] + [sized(2000, 8, table="subnormal")]
    return cases(exact.quantize_8bit, version, near) + cases(
        checks.quantize_8bit, version, [sized(300, 5), sized(200, 3)]
    )


# Dequantize


def _dequantize(check, version: int, stores: int) -> list:
    """stores: of 16 bytes a thread; 0 where a thread has one or two entries. The last one to have work ends at each of
    its stores, with each number of entries, and each kind of product."""
    levels = check is not exact.dequantize_int8
    found = []
    for dtype, width in (("float32", 4), ("float16", 8)):
        sizes = [sized(6000, 64, start=16), sized(1203, 24), sized(60_000, 32)]
        if levels:
            sizes += [sized(n, 64, code="subnormal", last=3e38) for n in (1300, 1303)]
        if not stores:
            odd = ((1300, 7, 3), (1301, 5, 4), (1302, 64, 1), (1303, 1, 2), (60_000, 9, 0))
            sizes += [sized(n, b, start=start, seed=n) for n, b, start in odd if levels or n < 60_000]
        if stores == 4:
            sizes += [sized(9003, width), sized(9008, width)]  # as many scales as a CUDA block has room for
        for step in range(stores):
            n = 8 + (step * 256 + 6) * width
            kinds = [*LAST, "tie", "tie"] if width == 8 else LAST
            sizes += [sized(n + width - 1, 64, start=8, last=last, seed=i) for i, last in enumerate(kinds)]
            sizes += [sized(n + width - 1, 64, start=8, last=3e38, code="subnormal")] * levels
            sizes += [sized(n + rest, 64, start=8, last=0.7) for rest in range(width - 1)]
        found += [{**some, "seed": some.get("seed", 0) % 50, "dtype": dtype} for some in sizes]
    return cases(check, version, found)


def _dequantize_double(version: int) -> list:
    more = [sized(9000, 16), sized(600, 32, kind="int8"), sized(5000, 8, start=4096)]
    more += [sized(900, 64, last=1e-38, kind=kind) for kind in ("dynamic", "int8")]
    more += [sized(60_000, 8, kind="int8", dtype="float16")]
    if version < 2:
        more += [sized(20_000, 9, kind="int8"), sized(200_000, 1, kind="int8", dtype="float16")]
        more += [sized(900, 9, last=1e-38, kind=kind) for kind in ("dynamic", "int8")]
    basic = _dequantize(exact.dequantize_4bit_double, version, {2: 1, 3: 4}.get(version, 0))
    return basic + cases(exact.dequantize_4bit_double, version, more)


# Rows


def softmax_far(device, version, R, n, seed=0):
    """Exponents that are far below the smallest float32, whose exponentials are zero."""
    x = np.random.default_rng(seed).normal(0, 300, (R, n)).astype(f32)
    e = np.exp(x.astype(float) - x.max(-1, keepdims=True))
    y = rows.softmax(device, x, version)
    np.testing.assert_allclose(y, e / e.sum(-1, keepdims=True), rtol=1e-4, atol=2.0**-120)


def softmax_peak(device, version, n):
    """Each entry is the only large one of its row, so that a maximum which misses it overflows."""
    x = np.where(np.eye(n, dtype=bool), f32(200), f32(0))
    np.testing.assert_allclose(rows.softmax(device, x, version), np.eye(n), atol=2.0**-120)


def _softmax(version: int) -> list:
    peaks = [(4, 39), (70, 770, 1029), (39, 128, 301)][version]
    return (
        cases(checks.softmax, version, _lengths(version))
        + cases(softmax_far, version, [*_lengths(version)[1:], dict(R=300, n=70)])
        + cases(softmax_peak, version, [dict(n=n) for n in peaks])
    )


def _lengths(version: int) -> list[dict]:
    """A loop is unrolled by four; a thread begins at each row, each entry or each 32nd."""
    lengths = [(1, 2, 3, 4, 5, 39), (5, 70, 301, 1000, 1029, 1400, 2100), (5, 39, 70, 100, 128, 301)][version]
    return [dict(R=9, n=n) for n in lengths] + [dict(R=300, n=3)] * (version == 0) + [dict(R=9, n=300)]


# Products


def _gemv(version: int) -> list:
    sizes = [(11, 96, 32), (35, 1056, 64), (3, 4192, 64), (70, 32, 256), (300, 96, 32)]
    if version < 2:
        sizes = [(11, 41, 7), (35, 70, 5), (5, 3, 1), (20, 128, 4), (11, 191, 64), (300, 6, 5), (3, 300, 64), (4, 1, 9)]
        sizes += [(5, 4, 3)]
    plain = [dict(M=4, N=N, K=K, blocksize=b) for N, K, b in sizes]
    ranks = (5, 40, 70, 2, 3, 4, 1, 130, 8)
    nested = [
        dict(M=5, N=N, K=K, blocksize=b, dtype="float16", scales="int8" if N == 11 else "dynamic", rank=rank)
        for (N, K, b), rank in zip(sizes, ranks, strict=False)
    ]
    return cases(checks.gemv_4bit, version, plain + nested)


def _gemm(version: int, forward: list[dict], backward: list[dict], adapter: str = "float16") -> list:
    """Both directions, the second with an adapter and in 16 bits."""
    ranks = cycle((5, 11, 1, 16, 3, 4, 8, 2))
    back = [dict(dtype=adapter, transpose=True, rank=r) | some for some, r in zip(backward, ranks, strict=False)]
    return cases(checks.gemm_4bit, version, forward + back)


def gemm_with_infinity(device, version, M, N, K, transpose=False, rank=0):
    """What is infinite stays in its row: zeros that fill up a tile are multiplied by zeros, not by entries of x."""
    blocksize, splits = (64, None) if transpose else (32, 2)  # as compiled for the other cases
    _, packed, absmax, w, lora = checks._product(M, N, K, blocksize, rank, K if transpose else N, 0)
    x = np.random.default_rng(0).standard_normal((M, N if transpose else K))
    x[0] = np.inf
    x = x.astype(checks.DTYPES["bfloat16" if transpose else "float16"])
    arrays = (packed, absmax, CODES["nf4"], blocksize, (N, K))
    y = gemm.gemm_4bit(device, x, *arrays, transpose, version, lora, splits=splits)
    w, lora = w.astype(x.dtype), lora and (lora[0][1:], *lora[1:])
    checks._check_product(y[1:], x[1:], w if transpose else w.T, lora)


def shapes(*sizes) -> list[dict]:
    """(M, N, K) or (M, N, K, blocksize)."""
    return [dict(zip(("M", "N", "K", "blocksize"), some, strict=False)) for some in sizes]


BACK = {"transpose": True, "rank": 3}
SMALL = shapes(
    (5, 20, 37, 16), (17, 18, 70), (17, 37, 19, 7), (3, 34, 33, 64), (2, 67, 9, 1), (2, 2, 3), (2, 9, 2), (3, 1, 7)
)
FORWARD = shapes(
    (20, 40, 96, 32), (31, 71, 224, 32), (17, 130, 320), *((32, N, 128) for N in (69, 81, 82, 97, 98, 99, 115))
)
BACKWARD = shapes((20, 40, 96), (31, 72, 224), (17, 136, 32))
ODD = shapes(  # with each rest of N by 8, and of K by 4 in each half of a tile
    (5, 37, 19, 7), (31, 70, 83), (30, 66, 68), (32, 20, 98), (32, 9, 69), (32, 11, 81), (32, 15, 82), (32, 8, 97),
    (32, 5, 99),
)  # fmt: skip
IN_PARTS = [{"dtype": "float16", "splits": 2} | some for some in FORWARD]
ADDED = [dict(M=2, N=5, K=64 * k, splits=k) for k in (2, 3, 4, 5, 6, 9)] + [dict(M=9, N=87, K=128, splits=2)]
ADDED_BACK = [dict(M=4, N=64 * k, K=9, splits=k) for k in (2, 3, 4, 5, 6, 9)] + [dict(M=9, N=128, K=87, splits=2)]

CASES = {
    **{f"quantize_4bit_v{v}": _quantize_4bit(v) for v in range(4)},
    **{f"dequantize_4bit_v{v}": _dequantize(exact.dequantize_4bit, v, {2: 1, 3: 4}.get(v, 0)) for v in range(4)},
    **{f"dequantize_4bit_double_v{v}": _dequantize_double(v) for v in range(4)},
    **{f"quantize_int8_v{v}": _quantize_int8(v) for v in range(3)},
    "slice_absmax": _slice_absmax(),
    **{f"dequantize_int8_v{v}": _dequantize(exact.dequantize_int8, v, v) for v in range(2)},
    **{f"quantize_8bit_v{v}": _quantize_8bit(v) for v in range(2)},
    "dequantize_8bit_v0": cases(exact.dequantize_8bit, 0, [sized(3001, 100), sized(133, 33)]),
    **{f"gemv_4bit_v{v}": _gemv(v) for v in range(5)},
    **{f"gemm_4bit_v{v}": _gemm(v, [*SMALL, dict(M=4, N=20, K=150, splits=2)], SMALL) for v in range(2)},
    "gemm_4bit_v2": _gemm(
        2, [*FORWARD, *shapes((64, 70, 32)), dict(M=33, N=20, K=160, splits=2)], [dict(M=40, N=83, K=19), *ODD]
    ),
    "gemm_4bit_add": _gemm(0, ADDED, ADDED_BACK),
    "gemm_4bit_tensor_v3": _gemm(3, IN_PARTS, ODD, "bfloat16")
    + cases(gemm_with_infinity, 3, [*shapes((20, 40, 96)), dict(M=20, N=37, K=9) | BACK]),
    "gemm_4bit_tensor_v4": _gemm(4, IN_PARTS, BACKWARD, "bfloat16")
    + cases(
        gemm_with_infinity, 4, shapes((20, 40, 96), (20, 40, 224)) + [dict(M=20, N=N, K=96) | BACK for N in (40, 104)]
    ),
    **{f"softmax_v{v}": _softmax(v) for v in range(3)},
    **{f"rms_norm_v{v}": cases(checks.rms_norm, v, _lengths(v)) for v in range(3)},
}
