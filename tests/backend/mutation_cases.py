"""Small cases of every kernel in minilora/backend/cuda, chosen to notice a change of any of its instructions.

    for case in CASES["quantize_4bit_v1"]:
        case(device)                            # raises AssertionError where the result is not NumPy's

A compiler unrolls loops and gives each part of a tail code of its own, so that the lengths have to end in every one of
them; and each copy of a multiplication has to meet a product that is rounded, a subnormal one and one beyond the
largest float16. In the simulator more threads cost little, more steps of a thread much: there are many blocks, and
short ones. The sums are compared by kernel_checks.py, whose bounds they are held to everywhere.
"""

from functools import cache, partial

import numpy as np

try:
    from backend import kernel_checks as checks
except ImportError:  # run as a program
    import kernel_checks as checks

from minilora.backend import numpy as reference
from minilora.backend.cuda import gemm, quantize, rows
from minilora.quant import CODES, DYNAMIC_MAP, double

f32 = np.float32
SUBNORMAL = np.concatenate([np.arange(-7, 8) * 3e-40, [1]]).astype(f32)  # 14 of the 15 borders are subnormal, too
LEVELS = CODES | {"subnormal": SUBNORMAL}  # the borders of linear16 have a zero among them
SCALES = f32([1, 0.7, 0.3, 1e5, 3e38, 1e-38, 4e-39, 1e-42, 2e-37, 0, np.inf, np.nan])
LAST = f32([0.7, 1e-39, 3e38, 1e5])  # of the last entries: products to be rounded, subnormal, infinite, too large
THIRD = f32(1 / 127)


def cases(check, version, sizes: list[dict]) -> list:
    return [partial(check, version=version, **some) for some in sizes]


# Quantize


def near(borders, n: int, blocksize: int, seed: int) -> np.ndarray:
    """Entries that, divided by their block's absmax, are a border or a few units in the last place from one. The
    largest is anywhere in its block."""
    rng = np.random.default_rng(seed)
    largest = rng.choice(f32([1, 1, -1, 0.77, 1.9, 3e-30, 2e-37, 1e-39]), -(-n // blocksize))
    x, step = f32(rng.choice(borders, n) * largest.repeat(blocksize)[:n]), rng.integers(-2, 3, n)
    for _ in range(2):
        x = np.where(step == 0, x, np.nextafter(x, f32(9e9) * np.sign(step))).astype(f32)
        step -= np.sign(step)
    start = np.arange(largest.size) * blocksize
    x[rng.integers(start, np.minimum(start + blocksize, n))] = largest
    return x


def quantize_4bit(device, version, n, blocksize, code="nf4", seed=0):
    levels = LEVELS[code]
    x = near(reference.midpoints(np.sort(levels)), n, blocksize, seed)
    got = quantize.quantize_4bit(device, x, levels, blocksize, version)
    expected = reference.quantize_4bit(x, levels, blocksize)
    checks.same(got[1], expected[1])
    checks.same(got[0], expected[0])


def quantize_int8(device, version, n, blocksize, seed=0):
    x = near((np.arange(-127, 127) + 0.5) / 127, n, blocksize, seed)
    got = quantize.quantize_int8(device, x, blocksize, version)
    expected = reference.quantize_int8(x, blocksize)
    checks.same(got[1], expected[1])
    checks.same(got[0], expected[0])


def quantize_8bit(device, version, n, blocksize, seed=0):
    x = near(reference.midpoints(DYNAMIC_MAP), n, blocksize, seed)
    got = quantize.quantize_8bit(device, x, DYNAMIC_MAP, blocksize, version)
    expected = reference.quantize_8bit(x, DYNAMIC_MAP, blocksize)
    checks.same(got[1], expected[1])
    checks.same(got[0], expected[0])


def _quantize_4bit(version: int) -> list:
    mixed = [dict(n=2803, blocksize=4), dict(n=1502, blocksize=64, code="fp4"), dict(n=60, blocksize=256)]
    exact = [dict(n=4107, blocksize=16), dict(n=2049, blocksize=16, code="subnormal"), dict(n=1502, blocksize=64)]
    exact += [dict(n=n, blocksize=256, seed=n) for n in (201, 202, 203, 204, 4, 8)]  # a partial block
    exact += [dict(n=n, blocksize=256, code="subnormal") for n in (201, 204)]
    exact += [dict(n=n, blocksize=32, code="linear16") for n in (1025, 31, 2)]
    if version < 2:
        mixed += [dict(n=999, blocksize=1), dict(n=606, blocksize=3)]
        exact += [dict(n=n, blocksize=7, seed=n) for n in (703, 704, 711, 712, 706, 709)]
        exact += [dict(n=n, blocksize=5, seed=n) for n in (2503, 2504, 2509)]
        exact += [
            dict(n=33 * 20 + rest, blocksize=33, seed=rest, code=c)
            for rest, c in ((8, "nf4"), (31, "nf4"), (15, "subnormal"), (48, "subnormal"), (48, "nf4"))
        ]
    if version == 1:
        exact += [dict(n=n, blocksize=301, seed=n, code=c) for n in (601, 500, 602) for c in ("nf4", "subnormal")]
        exact += [dict(n=1204, blocksize=301, seed=k) for k in range(3)]
    if version == 3:
        exact += [dict(n=4099, blocksize=1024), dict(n=9001, blocksize=4096), dict(n=700, blocksize=128)]
        exact += [dict(n=9001, blocksize=4096, seed=k) for k in range(4)]
    if version in (1, 2):
        exact += [dict(n=1300, blocksize=576), dict(n=901, blocksize=300), dict(n=9001, blocksize=160)]
    return cases(checks.quantize_4bit, version, mixed) + cases(quantize_4bit, version, exact)


def _slice_absmax() -> list:
    sizes = [dict(n=4003, blocksize=64), dict(n=20_001, blocksize=17_000), dict(n=80, blocksize=4)]
    sizes += [dict(n=60_000, blocksize=300, seed=k) for k in range(2)]
    sizes += [dict(n=90_000, blocksize=90_000, seed=k) for k in range(4)] + [dict(n=200_000, blocksize=40_000)]
    return cases(quantize_int8, 2, sizes)


def _quantize_8bit(version: int, sizes: list[tuple[int, int]]) -> list:
    return cases(quantize_8bit, version, [dict(n=n, blocksize=b, seed=n) for n, b in sizes])


# Dequantize


@cache
def ties(kind: str) -> tuple[np.ndarray, np.ndarray]:
    """(codes, scales): a float32 product of a level and a scale so near to the middle between two float16 that its own
    rounding decides. kind: "4bit", "int8" (the product with 1/127 decides) or "int8 first" (the one before it)."""
    scales = f32(np.random.default_rng(0).uniform(0.5, 2, 1 << 15))
    levels = CODES["nf4"] if kind == "4bit" else f32(np.arange(-127, 128, 2))
    nearest = levels[:, None] * scales
    cut = _cut_off(levels[:, None].astype(float) * scales, nearest)
    if kind == "int8":
        nearest, cut = nearest * THIRD, _cut_off(nearest.astype(float) * THIRD, nearest * THIRD)
    elif kind == "int8 first":
        nearest, cut = nearest * THIRD, cut * THIRD
    level, scale = np.nonzero(nearest.astype(np.float16) != cut.astype(np.float16))
    return (level if kind == "4bit" else levels[level].astype(np.int8)), scales[scale]


def _cut_off(exact: np.ndarray, nearest: np.ndarray) -> np.ndarray:
    return np.where(np.abs(nearest) > np.abs(exact), np.nextafter(nearest, f32(0)), nearest)


def _scales(rng, blocks: int, kind: str, last) -> np.ndarray:
    scales = np.where(rng.random(blocks) < 0.5, rng.choice(SCALES, blocks), rng.choice(ties(kind)[1], blocks))
    if last is not None:
        scales[-1] = last
    return scales.astype(f32)


def dequantize_4bit(device, version, n, blocksize, start=0, dtype="float32", last=None, code="nf4", seed=0):
    """last: the scale of the last block; "tie", one that makes the last entries all ties."""
    rng = np.random.default_rng(seed)
    packed = rng.integers(0, 256, -(-n // 2)).astype(np.uint8)
    if last == "tie":
        packed[-8:], last = 17 * ties("4bit")[0][seed], ties("4bit")[1][seed]
    args = (packed, _scales(rng, -(-n // blocksize), "4bit", last), LEVELS[code], blocksize, start, n)
    got = quantize.dequantize_4bit(device, *args, dtype=checks.DTYPES[dtype], version=version)
    with np.errstate(all="ignore"):
        checks.same(got, checks.rounded(reference.dequantize_4bit(*args), dtype))


def dequantize_4bit_double(
    device, version, n, blocksize, start=0, dtype="float32", last=None, code="nf4", kind="dynamic", seed=0
):
    """last: about the size of all scales; "tie", the one of a single block."""
    rng = np.random.default_rng(seed)
    packed = rng.integers(0, 256, -(-n // 2)).astype(np.uint8)
    absmax = rng.exponential(size=-(-n // blocksize)) * (
        0.7 if last is None or last == "tie" else float(min(last, 1e37))
    )
    codes, absmax2, offset = double.compress(absmax.astype(f32), kind)
    if last == "tie":
        packed[-8:], codes[-1] = 17 * ties("4bit")[0][seed], double.LEVELS[kind].argmin() * 0 + 7
        offset = f32(ties("4bit")[1][seed] - double.LEVELS[kind][7] * absmax2[-1])
    args = (packed, codes, double.LEVELS.get(kind), absmax2, offset, LEVELS[code], blocksize, start, n)
    got = quantize.dequantize_4bit_double(device, *args, dtype=checks.DTYPES[dtype], version=version)
    with np.errstate(all="ignore"):
        absmax = double.expand(codes, absmax2, offset, kind)
        expected = reference.dequantize_4bit(packed, absmax, LEVELS[code], blocksize, start, n)
        checks.same(got, checks.rounded(expected, dtype))


def dequantize_int8(device, version, n, blocksize, start=0, dtype="float32", last=None, seed=0):
    rng = np.random.default_rng(seed)
    codes = rng.integers(-128, 128, n).astype(np.int8)
    kind = ("int8", "int8 first")[seed % 2]
    if last == "tie":
        codes[-8:], last = ties(kind)[0][seed], ties(kind)[1][seed]
    absmax = _scales(rng, -(-n // blocksize), kind, last)
    got = quantize.dequantize_int8(
        device, codes, absmax, blocksize, start, n, dtype=checks.DTYPES[dtype], version=version
    )
    with np.errstate(all="ignore"):
        checks.same(got, checks.rounded(reference.dequantize_int8(codes, absmax, blocksize, start, n), dtype))


def dequantize_8bit(device, version, n, blocksize):
    rng = np.random.default_rng(0)
    codes, absmax = rng.integers(0, 256, n).astype(np.uint8), _scales(rng, -(-n // blocksize), "4bit", None)
    got = quantize.dequantize_8bit(device, codes, absmax, DYNAMIC_MAP, blocksize, version)
    with np.errstate(all="ignore"):
        checks.same(got, reference.dequantize_8bit(codes, absmax, DYNAMIC_MAP, blocksize))


def _dequantize(check, version: int, stores: int) -> list:
    """stores: of 16 bytes a thread; 0 where a thread has one or two entries. The last one to have work ends at each of
    its stores, with each number of entries, and each kind of product."""
    sizes = []
    for dtype, width in (("float32", 4), ("float16", 8)):
        sizes += [dict(n=6000, blocksize=64, start=16), dict(n=1203, blocksize=24), dict(n=60_000, blocksize=32)]
        sizes += [
            dict(n=1300 + rest, blocksize=b, start=start, seed=rest)
            for rest, b, start in ((0, 7, 3), (1, 5, 4), (2, 64, 1), (3, 1, 2))
        ] * (not stores)
        if check is not dequantize_int8:
            sizes += [dict(n=n, blocksize=64, code="subnormal", last=3e38) for n in (1300, 1303)]
        for step in range(stores):
            n = 8 + (step * 256 + 6) * width
            kinds = [*LAST, "tie", "tie"] if width == 8 else LAST
            sizes += [dict(n=n + width - 1, start=8, blocksize=64, last=last, seed=i) for i, last in enumerate(kinds)]
            if check is not dequantize_int8:
                sizes += [dict(n=n + width - 1, start=8, blocksize=64, last=3e38, code="subnormal")]
            sizes += [
                dict(n=n + rest, start=8, blocksize=64, last=0.7) for rest in {0, 1, 2, width // 2, width // 2 + 1}
            ]
        for some in sizes:
            some.setdefault("dtype", dtype)
    return cases(check, version, sizes)


def _dequantize_double(version: int) -> list:
    more = [dict(n=9000, blocksize=16), dict(n=600, blocksize=32, kind="int8"), dict(n=5000, blocksize=8, start=4096)]
    more += [dict(n=900, blocksize=64, last=1e-38), dict(n=900, blocksize=64, last=1e-38, kind="int8")]
    more += [dict(n=60_000, blocksize=8, kind="int8", dtype="float16")]
    return _dequantize(dequantize_4bit_double, version, {2: 1, 3: 4}.get(version, 0)) + cases(
        dequantize_4bit_double, version, more
    )


def _quantize_int8(version: int) -> list:
    mixed = [dict(n=133, blocksize=16), dict(n=1003, blocksize=64, seed=1), dict(n=45, blocksize=200)]
    exact = [dict(n=8000, blocksize=20), dict(n=3, blocksize=8), dict(n=2, blocksize=8), dict(n=1, blocksize=8)]
    exact += [dict(n=4000 + rest, blocksize=20, seed=rest) for rest in (1, 2, 3, 5, 6, 7)]
    exact += [dict(n=n, blocksize=256, seed=n) for n in (201, 202, 203, 204)]
    if version < 2:
        exact += [
            dict(n=2503, blocksize=5),
            dict(n=702, blocksize=7),
            dict(n=606, blocksize=3),
            dict(n=606, blocksize=1),
        ]
    return cases(checks.quantize_int8, version, mixed) + cases(quantize_int8, version, exact)


# Rows


def softmax_far(device, version, R, n, seed=0):
    """Exponents that are far below the smallest float32, whose exponentials are zero."""
    x = np.random.default_rng(seed).normal(0, 300, (R, n)).astype(f32)
    e = np.exp(x.astype(float) - x.max(-1, keepdims=True))
    y = rows.softmax(device, x, version)
    np.testing.assert_allclose(y, e / e.sum(-1, keepdims=True), rtol=1e-4, atol=2.0**-120)


def _lengths(version: int) -> list[dict]:
    """A loop is unrolled by four; a thread begins at each row, each entry or each 32nd."""
    lengths = {0: (1, 2, 3, 4, 5, 39), 1: (5, 70, 301, 1000, 1029, 1400), 2: (5, 39, 70, 100, 128, 301)}[version]
    return [dict(R=9, n=n) for n in lengths] + [dict(R=300, n=3)] * (version == 0) + [dict(R=9, n=300)]


# Products


def _gemv(version: int) -> list:
    if version < 2:
        sizes = [dict(M=4, N=11, K=K, blocksize=b) for K, b in ((41, 7), (70, 64), (3, 1), (128, 32), (191, 64))]
        sizes += [dict(M=4, N=300, K=6, blocksize=5)]
    else:
        sizes = [dict(M=4, N=11, K=96, blocksize=32), dict(M=4, N=35, K=1056, blocksize=64), dict(M=4, N=3, K=4192)]
        sizes += [dict(M=4, N=70, K=32, blocksize=256)]
    nested = dict(M=5, dtype="float16", scales="dynamic")
    both = [some | nested | dict(rank=rank) for some, rank in zip(sizes, (5, 40, 70, 2, 3, 200), strict=False)]
    return cases(checks.gemv_4bit, version, sizes + both)


def _gemm(version: int, forward: list[dict], backward: list[dict], adapter: str = "float16") -> list:
    """Both directions, the second with an adapter and in 16 bits."""
    ranks = (5, 11, 1, 16, 3, 9, 2, 8)
    back = [dict(dtype=adapter, transpose=True, rank=r) | some for some, r in zip(backward, ranks, strict=False)]
    return cases(checks.gemm_4bit, version, forward + back)


def gemm_with_infinity(device, version, M, N, K, transpose=False, rank=0):
    """What is infinite stays in its row: zeros that fill up a tile are multiplied by zeros, not by entries of x."""
    blocksize = 64 if transpose else 32
    _, packed, absmax, w, lora = checks._product(M, N, K, blocksize, rank, K if transpose else N, 0)
    x = (
        np.random.default_rng(0)
        .standard_normal((M, N if transpose else K))
        .astype(checks.DTYPES["bfloat16" if transpose else "float16"])
    )
    x[0] = np.inf
    splits = None if transpose else 2  # as compiled for the other cases
    y = gemm.gemm_4bit(
        device, x, packed, absmax, CODES["nf4"], blocksize, (N, K), transpose, version, lora, splits=splits
    )
    w, lora = w.astype(x.dtype), lora and (lora[0][1:], *lora[1:])
    checks._check_product(y[1:], x[1:], w if transpose else w.T, lora)


SMALL = [
    dict(M=5, N=20, K=37, blocksize=16),
    dict(M=17, N=18, K=70),
    dict(M=17, N=37, K=19, blocksize=7),
    dict(M=3, N=34, K=33, blocksize=64),
    dict(M=2, N=67, K=9, blocksize=1),
]
FORWARD = [
    dict(M=20, N=40, K=96, blocksize=32),
    dict(M=31, N=71, K=224, blocksize=32),
    dict(M=17, N=130, K=320),
    *(dict(M=32, N=N, K=128) for N in (69, 81, 82, 97, 98, 99, 115)),
]
BACKWARD = [dict(M=20, N=40, K=96), dict(M=31, N=72, K=224), dict(M=17, N=136, K=32)]
ODD = [
    dict(M=5, N=37, K=19, blocksize=7),
    dict(M=31, N=70, K=83),
    dict(M=30, N=66, K=68),
    dict(M=32, N=20, K=98),
    dict(M=32, N=6, K=69),
    dict(M=32, N=5, K=97),
]
WIDE = dict(M=40, N=83, K=19)
IN_PARTS = [dict(dtype="float16", splits=2) | sizes for sizes in FORWARD]

ADDED = [dict(M=4, N=64 * k, K=9, splits=k) for k in (2, 3, 4, 5, 6, 7)]

CASES = {
    **{f"quantize_4bit_v{v}": _quantize_4bit(v) for v in range(4)},
    **{f"dequantize_4bit_v{v}": _dequantize(dequantize_4bit, v, {2: 1, 3: 4}.get(v, 0)) for v in range(4)},
    **{f"dequantize_4bit_double_v{v}": _dequantize_double(v) for v in range(4)},
    **{f"quantize_int8_v{v}": _quantize_int8(v) for v in range(3)},
    "slice_absmax": _slice_absmax(),
    **{f"dequantize_int8_v{v}": _dequantize(dequantize_int8, v, v) for v in range(2)},
    "quantize_8bit_v0": _quantize_8bit(0, [(2000, 4), (9, 5), (2, 7), (700, 3), (39, 13)]),
    "quantize_8bit_v1": _quantize_8bit(1, [(2003, 33), (1003, 256), (300, 700), (1300, 650), (6000, 300)]),
    "dequantize_8bit_v0": cases(checks.quantize_8bit, 1, [dict(n=133, blocksize=33), dict(n=1003, blocksize=256)])
    + cases(dequantize_8bit, 0, [dict(n=3001, blocksize=100)]),
    **{f"gemv_4bit_v{v}": _gemv(v) for v in range(5)},
    **{f"gemm_4bit_v{v}": _gemm(v, [*SMALL, dict(M=4, N=20, K=150, splits=2)], SMALL) for v in range(2)},
    "gemm_4bit_v2": _gemm(2, [*FORWARD[:7], dict(M=64, N=70, K=32), dict(M=33, N=20, K=160, splits=2)], [WIDE, *ODD]),
    "gemm_4bit_add": _gemm(0, [dict(M=2, N=5, K=64 * k, splits=k) for k in (2, 3, 4, 5, 6, 7)], [*ADDED, *ADDED[:2]]),
    "gemm_4bit_tensor_v3": _gemm(3, IN_PARTS, ODD, "bfloat16")
    + cases(gemm_with_infinity, 3, [dict(M=20, N=40, K=96), dict(M=20, N=37, K=9, transpose=True, rank=3)]),
    "gemm_4bit_tensor_v4": _gemm(4, IN_PARTS, BACKWARD, "bfloat16")
    + cases(gemm_with_infinity, 4, [dict(M=20, N=40, K=96), dict(M=20, N=40, K=96, transpose=True, rank=3)]),
    **{
        f"softmax_v{v}": cases(checks.softmax, v, _lengths(v)) + cases(softmax_far, v, _lengths(v)[1:])
        for v in range(3)
    },
    **{f"rms_norm_v{v}": cases(checks.rms_norm, v, _lengths(v)) for v in range(3)},
}
