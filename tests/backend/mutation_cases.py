"""Small cases of every kernel in minilora/backend/cuda, chosen to notice a change of any of its instructions.

Those of a kernel are compiled in as few ways as show what its options do. The checks are those of kernel_checks.py:
lengths that fill no block, no warp and no tile; starts within a byte, a block, a second-level block; zeros, ties,
subnormal and huge numbers; sums over several tiles, and their tails.
"""

from functools import partial

try:
    from backend import kernel_checks as checks
except ImportError:  # run as a program
    import kernel_checks as checks


def cases(check, version, *sizes: dict) -> list:
    return [partial(check, version=version, **some) for some in sizes]


def _quantize(version):
    return cases(
        checks.quantize_4bit, version,
        dict(n=133, blocksize=16),
        dict(n=200, blocksize=64, kind="ties"),
        *[dict(n=1003, blocksize=33, seed=1)] * (version in (0, 1)),
        *[dict(n=1102, blocksize=64, seed=2, code="fp4")] * (version > 0),
        *[dict(n=301, blocksize=300, seed=1)] * (version in (1, 2)),
        *[dict(n=4099, blocksize=1024, seed=3), dict(n=37, blocksize=4)] * (version == 3),
    )  # fmt: skip


def _dequantize(check, version, **more):
    return cases(
        check, version,
        dict(n=70, blocksize=16, dtype="float16", **more),
        dict(n=1001, blocksize=64, start=16, **more),
        dict(n=701, blocksize=32, start=8, dtype="float16", **more),
        *[dict(n=93, blocksize=7, start=3, **more), dict(n=66, blocksize=5, start=4, seed=1, **more)] * (version < 2),
    )  # fmt: skip


CASES = {
    **{f"quantize_4bit_v{v}": _quantize(v) for v in range(4)},
    **{f"dequantize_4bit_v{v}": _dequantize(checks.dequantize_4bit, v) for v in range(4)},
    **{f"dequantize_4bit_double_v{v}": _dequantize(checks.dequantize_4bit_double, v)
       + cases(checks.dequantize_4bit_double, v, dict(n=9000, blocksize=16), dict(n=600, blocksize=32, scales="int8"))
       for v in range(4)},
    **{f"quantize_int8_v{v}": cases(
        checks.quantize_int8, v, dict(n=133, blocksize=16), dict(n=1003, blocksize=64, seed=1), dict(n=45, blocksize=200))
       for v in range(3)},
    "slice_absmax": cases(
        checks.quantize_int8, 2, dict(n=1003, blocksize=64), dict(n=20_001, blocksize=17_000), dict(n=40_001, blocksize=50_000)),
    **{f"dequantize_int8_v{v}": _dequantize(checks.dequantize_int8, v) for v in range(2)},
    "quantize_8bit_v0": cases(checks.quantize_8bit, 0, dict(n=20, blocksize=4), dict(n=9, blocksize=5, seed=1)),
    "quantize_8bit_v1": cases(checks.quantize_8bit, 1, dict(n=133, blocksize=33), dict(n=1003, blocksize=256, seed=1)),
    "dequantize_8bit_v0": cases(checks.quantize_8bit, 1, dict(n=133, blocksize=33), dict(n=1003, blocksize=256, seed=1)),
    **{f"gemv_4bit_v{v}": cases(
        checks.gemv_4bit, v,
        dict(M=4, N=11, K=96 if v > 1 else 41, blocksize=32 if v > 1 else 7),
        dict(M=4, N=35, K=1056 if v > 1 else 70, blocksize=64),
        dict(M=5, N=37, K=96 if v > 1 else 37, blocksize=32, dtype="float16", scales="dynamic", rank=5),
        dict(M=5, N=3, K=2080 if v > 1 else 133, blocksize=64, dtype="float16", scales="dynamic", rank=40))
       for v in range(5)},
    **{f"gemm_4bit_v{v}": cases(
        checks.gemm_4bit, v,
        dict(M=5, N=20, K=37, blocksize=16),
        dict(M=17, N=18, K=70, blocksize=64),
        dict(M=4, N=20, K=150, splits=2, dtype="float16"),
        dict(M=17, N=37, K=19, blocksize=7, dtype="float16", transpose=True, rank=5),
        dict(M=3, N=70, K=33, blocksize=64, dtype="float16", transpose=True, rank=11))
       for v in range(2)},
    "gemm_4bit_v2": cases(
        checks.gemm_4bit, 2,
        dict(M=5, N=20, K=96, blocksize=32),
        dict(M=65, N=70, K=160),
        dict(M=5, N=37, K=19, blocksize=7, dtype="float16", transpose=True, rank=5),
        dict(M=66, N=70, K=83, dtype="float16", transpose=True, rank=11)),
    "gemm_4bit_add": cases(
        checks.gemm_4bit, 0, dict(M=4, N=20, K=150, splits=2), dict(M=3, N=87, K=650, splits=9),
        dict(M=4, N=20, K=150, splits=2, dtype="float16", rank=5), dict(M=3, N=87, K=450, splits=6, dtype="float16", rank=11)),
    "gemm_4bit_tensor_v3": cases(
        checks.gemm_4bit, 3,
        dict(M=20, N=40, K=96, blocksize=32, dtype="float16"),
        dict(M=5, N=70, K=160, dtype="float16"),
        dict(M=20, N=37, K=19, blocksize=7, dtype="bfloat16", transpose=True, rank=5),
        dict(M=9, N=70, K=83, dtype="bfloat16", transpose=True, rank=11)),
    "gemm_4bit_tensor_v4": cases(
        checks.gemm_4bit, 4,
        dict(M=20, N=40, K=96, blocksize=32, dtype="float16"),
        dict(M=5, N=70, K=224, dtype="float16"),
        dict(M=20, N=40, K=96, blocksize=32, dtype="bfloat16", transpose=True, rank=5),
        dict(M=35, N=136, K=160, dtype="bfloat16", transpose=True, rank=11)),
    **{f"softmax_v{v}": cases(checks.softmax, v, dict(R=3, n=70), dict(R=9, n=301)) for v in range(3)},
    **{f"rms_norm_v{v}": cases(checks.rms_norm, v, dict(R=3, n=70), dict(R=9, n=301)) for v in range(3)},
}  # fmt: skip
