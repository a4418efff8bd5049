"""Small cases of every kernel in minilora/backend/cuda, chosen to notice a change of any of its instructions.

    for case in CASES["quantize_4bit_v1"]:
        case(device)                            # raises AssertionError where the result is not NumPy's

A compiler unrolls loops and gives each part of a tail code of its own, so that the lengths have to end in every one of
them; and each copy of a multiplication has to meet a product that is rounded, a subnormal one and one beyond the
largest float16. In the simulator more threads cost little, more steps of a thread much: there are many blocks, and
short ones. The sums are compared by kernel_checks.py, whose bounds they are held to everywhere.
"""

from functools import partial

import numpy as np

try:
    from backend import kernel_checks as checks
except ImportError:  # run as a program
    import kernel_checks as checks

from minilora.backend import numpy as reference
from minilora.backend.cuda import quantize
from minilora.quant import CODES, DYNAMIC_MAP, double

f32 = np.float32
SUBNORMAL = np.concatenate([np.arange(-7, 8) * 3e-40, [1]]).astype(f32)  # 14 of the 15 borders are subnormal, too
LEVELS = CODES | {"subnormal": SUBNORMAL}
SCALES = f32([1, 0.7, 0.3, 1e5, 3e38, 1e-38, 4e-39, 1e-42, 2e-37, 0, np.inf, np.nan])
LAST = f32([0.7, 1e-39, 3e38, 1e5])  # of the last entries: products to be rounded, subnormal, infinite, too large


def cases(check, version, sizes: list[dict]) -> list:
    return [partial(check, version=version, **some) for some in sizes]


# Quantize


def near(borders, n: int, blocksize: int, seed: int) -> np.ndarray:
    """Entries that, divided by their block's absmax, are a border or a few units in the last place from one."""
    rng = np.random.default_rng(seed)
    absmax = rng.choice(f32([1, 1, -1, 0.77, 1.9, 3e-30, 1e-39]), -(-n // blocksize)).repeat(blocksize)[:n]
    x = f32(rng.choice(borders, n) * absmax)
    step = rng.integers(-2, 3, n)
    for _ in range(2):
        x = np.where(step == 0, x, np.nextafter(x, f32(9e9) * np.sign(step))).astype(f32)
        step -= np.sign(step)
    x[::blocksize] = absmax[::blocksize]
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
    exact += [dict(n=n, blocksize=256, seed=n) for n in (201, 202, 203, 204)]  # a partial block
    exact += [dict(n=n, blocksize=256, code="subnormal") for n in (201, 204)]
    if version < 2:
        mixed += [
            dict(n=703, blocksize=7),
            dict(n=2503, blocksize=5),
            dict(n=999, blocksize=1),
            dict(n=606, blocksize=3),
        ]
        exact += [
            dict(n=33 * 20 + rest, blocksize=33, seed=rest, code=c)
            for rest, c in ((8, "nf4"), (31, "nf4"), (15, "subnormal"))
        ]
    if version == 1:
        exact += [dict(n=n, blocksize=301, seed=n, code=c) for n in (601, 500, 602) for c in ("nf4", "subnormal")]
    if version == 3:
        mixed += [dict(n=4099, blocksize=1024), dict(n=9001, blocksize=4096), dict(n=700, blocksize=128)]
    if version in (1, 2):
        mixed += [dict(n=1300, blocksize=576), dict(n=901, blocksize=300)]
    return cases(checks.quantize_4bit, version, mixed) + cases(quantize_4bit, version, exact)


# Dequantize


def dequantize_4bit(device, version, n, blocksize, start=0, dtype="float32", last=None, seed=0):
    """last: the scale of the last block."""
    rng = np.random.default_rng(seed)
    packed, absmax = rng.integers(0, 256, -(-n // 2)).astype(np.uint8), rng.choice(SCALES, -(-n // blocksize))
    absmax[-1] = absmax[-1] if last is None else last
    args = (packed, absmax, CODES["nf4"], blocksize, start, n)
    got = quantize.dequantize_4bit(device, *args, dtype=checks.DTYPES[dtype], version=version)
    with np.errstate(all="ignore"):
        checks.same(got, checks.rounded(reference.dequantize_4bit(*args), dtype))


def dequantize_4bit_double(device, version, n, blocksize, start=0, dtype="float32", last=None, kind="dynamic", seed=0):
    """last: about the size of all scales."""
    rng = np.random.default_rng(seed)
    packed = rng.integers(0, 256, -(-n // 2)).astype(np.uint8)
    absmax = (rng.exponential(size=-(-n // blocksize)) * float(0.7 if last is None else min(last, 1e37))).astype(f32)
    codes, absmax2, offset = double.compress(absmax, kind)
    args = (packed, codes, double.LEVELS.get(kind), absmax2, offset, CODES["nf4"], blocksize, start, n)
    got = quantize.dequantize_4bit_double(device, *args, dtype=checks.DTYPES[dtype], version=version)
    absmax = double.expand(codes, absmax2, offset, kind)
    expected = reference.dequantize_4bit(packed, absmax, CODES["nf4"], blocksize, start, n)
    checks.same(got, checks.rounded(expected, dtype))


def dequantize_int8(device, version, n, blocksize, start=0, dtype="float32", last=None, seed=0):
    rng = np.random.default_rng(seed)
    codes, absmax = rng.integers(-128, 128, n).astype(np.int8), rng.choice(SCALES, -(-n // blocksize))
    absmax[-1] = absmax[-1] if last is None else last
    got = quantize.dequantize_int8(
        device, codes, absmax, blocksize, start, n, dtype=checks.DTYPES[dtype], version=version
    )
    with np.errstate(all="ignore"):
        checks.same(got, checks.rounded(reference.dequantize_int8(codes, absmax, blocksize, start, n), dtype))


def _ends(version: int, dtype: str, stores: int) -> list[dict]:
    """The last entries of a thread that stores 16 bytes: at each of its `stores`, in each number, of every kind."""
    width = {"float32": 4, "float16": 8}[dtype]
    found = []
    for step in range(stores):
        n = 8 + (step * 256 + 6) * width
        found += [dict(n=n + width - 1, blocksize=64, last=last) for last in LAST]
        found += [dict(n=n + rest, blocksize=64, last=0.7) for rest in {1, 2, width // 2 + 1, width // 2}]
        found += [dict(n=n, blocksize=64, last=1e-39)]
    return [dict(start=8, dtype=dtype, seed=i, **each) for i, each in enumerate(found)]


def _dequantize(check, version: int, stores: int) -> list:
    sizes = []
    for dtype in ("float32", "float16"):
        sizes += [dict(n=6000, blocksize=64, start=16, dtype=dtype), dict(n=1203, blocksize=24, dtype=dtype)]
        if stores:
            sizes += _ends(version, dtype, stores)
        else:
            sizes += [
                dict(n=1300 + rest, blocksize=b, start=start, dtype=dtype, seed=rest)
                for rest, b, start in ((0, 7, 3), (1, 5, 4), (2, 64, 1), (3, 1, 2))
            ]
    return cases(check, version, sizes)


def _dequantize_double(version: int) -> list:
    more = [dict(n=9000, blocksize=16), dict(n=600, blocksize=32, kind="int8"), dict(n=5000, blocksize=8, start=4096)]
    more += [dict(n=900, blocksize=64, last=1e-38), dict(n=900, blocksize=64, last=1e-38, kind="int8")]
    return _dequantize(dequantize_4bit_double, version, {2: 1, 3: 4}.get(version, 0)) + cases(
        dequantize_4bit_double, version, more
    )


def _quantize_int8(version: int) -> list:
    mixed = [dict(n=133, blocksize=16), dict(n=1003, blocksize=64, seed=1), dict(n=45, blocksize=200)]
    exact = [dict(n=4000, blocksize=20)]
    exact += [dict(n=4000 + rest, blocksize=20, seed=rest) for rest in (1, 2, 3, 5, 6, 7)]
    exact += [dict(n=n, blocksize=256, seed=n) for n in (201, 202, 203, 204)]
    if version < 2:
        mixed += [
            dict(n=2503, blocksize=5),
            dict(n=702, blocksize=7),
            dict(n=606, blocksize=3),
            dict(n=606, blocksize=1),
        ]
    return cases(checks.quantize_int8, version, mixed) + cases(quantize_int8, version, exact)


# Products


def _gemv(version: int) -> list:
    if version < 2:
        sizes = [dict(M=4, N=11, K=K, blocksize=b) for K, b in ((41, 7), (70, 64), (3, 1), (128, 32), (191, 64))]
        sizes += [dict(M=4, N=300, K=6, blocksize=5)]
    else:
        sizes = [dict(M=4, N=11, K=96, blocksize=32), dict(M=4, N=35, K=1056, blocksize=64), dict(M=4, N=3, K=4192)]
        sizes += [dict(M=4, N=70, K=32, blocksize=256)]
    nested = dict(M=5, dtype="float16", scales="dynamic")
    both = [some | nested | dict(rank=rank) for some, rank in zip(sizes, (5, 40, 70, 1, 3, 200), strict=False)]
    return cases(checks.gemv_4bit, version, sizes + both)


def _gemm(version: int, forward: list[dict], backward: list[dict], adapter: str = "float16") -> list:
    """Both directions, the second with an adapter and in 16 bits."""
    ranks = (5, 11, 1, 16, 3, 9, 2)
    back = [dict(dtype=adapter, transpose=True, rank=r) | some for some, r in zip(backward, ranks, strict=False)]
    return cases(checks.gemm_4bit, version, forward + back)


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
IN_PARTS = [dict(dtype="float16", splits=2) | sizes for sizes in FORWARD]

CASES = {
    **{f"quantize_4bit_v{v}": _quantize_4bit(v) for v in range(4)},
    **{f"dequantize_4bit_v{v}": _dequantize(dequantize_4bit, v, {2: 1, 3: 4}.get(v, 0)) for v in range(4)},
    **{f"dequantize_4bit_double_v{v}": _dequantize_double(v) for v in range(4)},
    **{f"quantize_int8_v{v}": _quantize_int8(v) for v in range(3)},
    "slice_absmax": cases(
        checks.quantize_int8,
        2,
        [
            dict(n=1003, blocksize=64),
            dict(n=20_001, blocksize=17_000),
            dict(n=40_001, blocksize=50_000, seed=1),
            dict(n=90_000, blocksize=90_000, seed=1),
        ],
    ),
    **{f"dequantize_int8_v{v}": _dequantize(dequantize_int8, v, v) for v in range(2)},
    "quantize_8bit_v0": cases(
        quantize_8bit, 0, [dict(n=2000, blocksize=4), dict(n=9, blocksize=5), dict(n=2, blocksize=7)]
    ),
    "quantize_8bit_v1": cases(
        quantize_8bit,
        1,
        [
            dict(n=2003, blocksize=33),
            dict(n=1003, blocksize=256),
            dict(n=300, blocksize=700),
            dict(n=1300, blocksize=650),
        ],
    ),
    "dequantize_8bit_v0": cases(
        checks.quantize_8bit, 1, [dict(n=133, blocksize=33), dict(n=1003, blocksize=256, seed=1)]
    ),
    **{f"gemv_4bit_v{v}": _gemv(v) for v in range(5)},
    **{f"gemm_4bit_v{v}": _gemm(v, [*SMALL, dict(M=4, N=20, K=150, splits=2)], SMALL) for v in range(2)},
    "gemm_4bit_v2": _gemm(
        2, [*FORWARD[:7], dict(M=64, N=70, K=32), dict(M=33, N=20, K=160, splits=2)], [dict(M=40, N=83, K=19), *ODD]
    ),
    "gemm_4bit_add": [
        *cases(checks.gemm_4bit, 0, [dict(M=4, N=20, K=150, splits=2), dict(M=3, N=87, K=450, splits=7)]),
        *_gemm(0, [], [dict(M=4, N=150, K=20, splits=2), dict(M=3, N=450, K=87, splits=7)]),
    ],
    "gemm_4bit_tensor_v3": _gemm(3, IN_PARTS, ODD, "bfloat16"),
    "gemm_4bit_tensor_v4": _gemm(4, IN_PARTS, BACKWARD, "bfloat16"),
    **{
        f"softmax_v{v}": cases(checks.softmax, v, [dict(R=3, n=n) for n in (70, 5, 301, 39, *[1400, 1029] * (v == 1))])
        for v in range(3)
    },
    **{
        f"rms_norm_v{v}": cases(
            checks.rms_norm, v, [dict(R=9, n=n) for n in (70, 5, 301, 39, *[1400, 1029] * (v == 1))]
        )
        for v in range(3)
    },
}
