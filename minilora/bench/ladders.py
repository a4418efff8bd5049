"""What the kernel report runs: each kernel's ladder, a call of its launcher on normal weights of a stated size.

    for ladder in LADDERS:
        for version in ladder.versions:
            ladder.call(device, version)          # any Device; what it launches is what a program would launch

Weights are normal, as those of trained layers nearly are; how often two lanes of a warp look up entries of a table that
lie in one bank of shared memory depends on them.
"""

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial

import numpy as np

from minilora.backend import numpy as reference
from minilora.backend.cuda import gemm, matmul, quantize, rows
from minilora.quant import CODES, double

SEED = 0
NF4 = CODES["nf4"]
BLOCKSIZE = 64
N = 1 << 18  # weights that are quantized or dequantized
GEMV = (256, 4096)  # W: K is the width of LLaMA 7B, N enough for every version to have whole blocks
GEMM = (128, 128, 512)  # rows of x, rows of W, columns of W
ROWS = (64, 1024)


@dataclass(frozen=True)
class Ladder:
    """name: as in the tables. versions: its steps. work: how many `unit` a call computes. call(device, version)."""

    name: str
    versions: range
    sizes: str
    unit: str
    work: int
    call: Callable


@cache
def weights(n: int) -> tuple[np.ndarray, ...]:
    """x, packed, absmax of n normal weights, float32, in NF4."""
    x = np.random.default_rng(SEED).standard_normal(n, np.float32)
    return x, *reference.quantize_4bit(x, NF4, BLOCKSIZE)


@cache
def nested(n: int) -> tuple:
    """Their absmax in eight bits: codes, the 256 levels, absmax2, offset."""
    codes, absmax2, offset = double.compress(weights(n)[2])
    return codes, double.LEVELS["dynamic"], absmax2, offset


@cache
def normal(shape: tuple[int, ...], dtype=np.float32) -> np.ndarray:
    return np.random.default_rng(SEED + 1).standard_normal(shape, np.float32).astype(dtype)


def forget():
    """Draw anew: SEED or a size was changed."""
    for made in (weights, nested, normal, int8):
        made.cache_clear()


def quantize_4bit(device, version):
    quantize.quantize_4bit(device, weights(N)[0], NF4, BLOCKSIZE, version)


def dequantize_4bit(device, version, dtype=np.float16):
    _, packed, absmax = weights(N)
    quantize.dequantize_4bit(device, packed, absmax, NF4, BLOCKSIZE, 0, N, dtype=dtype, version=version)


def dequantize_4bit_double(device, version, dtype=np.float16):
    packed = weights(N)[1]
    quantize.dequantize_4bit_double(
        device, packed, *nested(N), NF4, BLOCKSIZE, 0, N, dtype=dtype, version=version
    )  # fmt: skip


def quantize_int8(device, version):
    quantize.quantize_int8(device, weights(N)[0], GEMV[1], version)


@cache
def int8() -> tuple[np.ndarray, np.ndarray]:
    return reference.quantize_int8(weights(N)[0], GEMV[1])


def dequantize_int8(device, version, dtype=np.float16):
    quantize.dequantize_int8(device, *int8(), GEMV[1], dtype=dtype, version=version)


def quantize_8bit(device, version):
    rest = weights(N)[2] - nested(N)[3]  # what double quantization stores, once the mean is subtracted
    quantize.quantize_8bit(device, rest, double.LEVELS["dynamic"], double.BLOCKSIZE, version)


def dequantize_8bit(device, version):
    codes, levels256, absmax2, _ = nested(N)
    quantize.dequantize_8bit(device, codes, absmax2, levels256, double.BLOCKSIZE, version)


def gemv_4bit(device, version, dtype=np.float16, second_level=True, m=1, lora=False):
    n, k = GEMV
    _, packed, absmax = weights(n * k)
    scales = {"nested": nested(n * k)} if second_level else {}
    adapter = (normal((m, 8)), normal((n, 8)), 2.0) if lora else None
    absmax = None if second_level else absmax
    matmul.gemv_4bit(
        device, normal((m, k), dtype), packed, absmax, NF4, BLOCKSIZE, GEMV, version, lora=adapter, **scales
    )


def gemm_4bit(device, version, dtype=np.float16, transpose=False, m=GEMM[0], lora=False, odd=0, **options):
    n, k = GEMM[1], GEMM[2] + odd
    _, packed, absmax = weights(n * k)
    x = normal((m, n if transpose else k), dtype)
    adapter = (normal((m, 8)), normal((k if transpose else n, 8)), 2.0) if lora else None
    gemm.gemm_4bit(device, x, packed, absmax, NF4, BLOCKSIZE, (n, k), transpose, version, adapter, **options)


def softmax(device, version):
    rows.softmax(device, normal(ROWS), version)


def rms_norm(device, version):
    rows.rms_norm(device, normal(ROWS), normal(ROWS[1:]), version=version)


_flat = f"{N:,} weights in blocks of {BLOCKSIZE}"
_int8 = f"{N:,} weights in rows of {GEMV[1]:,}"
_second = f"{N // BLOCKSIZE:,} absmax in blocks of {double.BLOCKSIZE}"
_gemv = f"W {GEMV[0]:,} x {GEMV[1]:,}, one row of x in float16"
_gemm = "x {} x {}, W {} x {}, x in float16".format(GEMM[0], GEMM[2], *GEMM[1:])
_gemm_t = "g {} x {}, W {} x {}, g in float16".format(*GEMM[:2], *GEMM[1:])
_rows = f"{ROWS[0]} rows of {ROWS[1]:,} float32"
_weights, _products = GEMV[0] * GEMV[1], GEMM[0] * GEMM[1] * GEMM[2]

LADDERS = (
    Ladder("quantize_4bit", range(4), _flat, "weight", N, quantize_4bit),
    Ladder("dequantize_4bit", range(4), f"{_flat}, to float16", "weight", N, dequantize_4bit),
    Ladder("dequantize_4bit_double", range(4), f"{_flat}, to float16", "weight", N, dequantize_4bit_double),
    Ladder("gemv_4bit", range(5), f"{_gemv}, double-quantized", "weight", _weights, gemv_4bit),
    Ladder("gemm_4bit", range(5), _gemm, "product", _products, gemm_4bit),
    Ladder("gemm_4bit, transposed", range(5), _gemm_t, "product", _products, partial(gemm_4bit, transpose=True)),
    Ladder("quantize_int8", range(3), _int8, "weight", N, quantize_int8),
    Ladder("dequantize_int8", range(2), f"{_int8}, to float16", "weight", N, dequantize_int8),
    Ladder("quantize_8bit", range(2), _second, "absmax", N // BLOCKSIZE, quantize_8bit),
    Ladder("dequantize_8bit", range(1), _second, "absmax", N // BLOCKSIZE, dequantize_8bit),
    Ladder("softmax", range(3), _rows, "entry", ROWS[0] * ROWS[1], softmax),
    Ladder("rms_norm", range(3), _rows, "entry", ROWS[0] * ROWS[1], rms_norm),
)


def _variants() -> tuple[Ladder, ...]:
    """Other types and shapes that kernels are compiled for; they are only compiled, not run."""
    dtypes = {"float32": np.float32}
    if importlib.util.find_spec("ml_dtypes"):
        import ml_dtypes

        dtypes["bfloat16"] = ml_dtypes.bfloat16
    found = []
    for name, dtype in dtypes.items():
        found += [
            (f"dequantize_4bit, {name}", 4, partial(dequantize_4bit, dtype=dtype)),
            (f"dequantize_4bit_double, {name}", 4, partial(dequantize_4bit_double, dtype=dtype)),
            (f"dequantize_int8, {name}", 2, partial(dequantize_int8, dtype=dtype)),
            (f"gemv_4bit, {name}", 5, partial(gemv_4bit, dtype=dtype)),
            (f"gemm_4bit, {name}", 3 if name == "float32" else 5, partial(gemm_4bit, dtype=dtype)),
        ]
    for m in (1, 2, 3):
        call = partial(gemv_4bit, m=m, lora=True, second_level=m != 2)
        found.append((f"gemv_4bit, {m} rows, LoRA", 5, call))
    for direction, transpose in (("", False), (", transposed", True)):
        for m in (32, 128):
            call = partial(gemm_4bit, m=m, lora=True, transpose=transpose, splits=1)
            found.append((f"gemm_4bit{direction}, {m} rows, LoRA", 5, call))
        call = partial(gemm_4bit, odd=1, transpose=transpose)
        found.append((f"gemm_4bit{direction}, unaligned", 4, call))
    return tuple(Ladder(name, range(steps), "", "", 0, call) for name, steps, call in found)


VARIANTS = _variants()
