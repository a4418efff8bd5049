"""Double quantization: the blocks' absmax values, one float32 for every 64 weights, are quantized too.

    codes, absmax2, offset = compress(absmax, "dynamic")
    absmax ≈ expand(codes, absmax2, offset, "dynamic")

Their mean is subtracted (they are all positive) and the rest stored in 8 bits, in blocks of 256: 32/64 bits a weight
become 8/64 + 32/(64·256) (QLoRA, arXiv:2305.14314, section 3). What the 8 bits mean is one of

    "dynamic"   the signed dynamic map: what bitsandbytes stores
    "fp8"       FP8 E4M3, as in the paper
    "int8"      round(127 x / absmax2), as for weights
"""

import numpy as np

from minilora.backend import kernels_for, to_numpy
from minilora.quant.codebooks import DYNAMIC_MAP, E4M3

BLOCKSIZE = 256
LEVELS = {"dynamic": DYNAMIC_MAP, "fp8": E4M3}
KINDS = (*LEVELS, "int8")


def compress(absmax: np.ndarray, kind: str = "dynamic") -> tuple[np.ndarray, np.ndarray, np.float32]:
    """absmax (n,) float32 -> codes (n,) uint8 (int8 for "int8"), absmax2 (ceil(n/256),) float32, and the mean that was
    subtracted. Each rest is divided by its block's absmax2 and takes the nearest level."""
    offset = np.float32(to_numpy(absmax).mean(dtype=np.float64))  # by NumPy: a GPU adds in another order
    kernels = kernels_for(absmax)
    if kind == "int8":
        codes, absmax2 = kernels.quantize_int8(absmax - offset, BLOCKSIZE)
    else:
        codes, absmax2 = kernels.quantize_8bit(absmax - offset, LEVELS[kind], BLOCKSIZE)
    return codes, absmax2, offset


def expand(codes: np.ndarray, absmax2: np.ndarray, offset: np.float32, kind: str = "dynamic") -> np.ndarray:
    """The inverse: level[code] · absmax2 + offset, two roundings (no fused multiply-add)."""
    kernels = kernels_for(codes)
    if kind == "int8":
        absmax = kernels.dequantize_int8(codes, absmax2, BLOCKSIZE)
    else:
        absmax = kernels.dequantize_8bit(codes, absmax2, LEVELS[kind], BLOCKSIZE)
    absmax += offset
    return absmax
