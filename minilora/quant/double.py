"""Double quantization: the blocks' absmax values, one float32 for every 64 weights, are quantized too.

Their mean is subtracted (they are all positive) and the rest stored in 8 bits with the signed dynamic map, in blocks of
256: 32/64 bits a weight become 8/64 + 32/(64·256) (QLoRA, arXiv:2305.14314, section 3; the format is bitsandbytes').
"""

import numpy as np

from minilora.backend import numpy as kernels
from minilora.quant.codebooks import DYNAMIC_MAP

BLOCKSIZE = 256


def compress(absmax: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.float32]:
    """absmax (n,) float32 -> codes (n,) uint8, absmax2 (ceil(n/256),) float32, and the offset that was subtracted."""
    offset = absmax.mean(dtype=np.float32) if absmax.size else np.float32(0)
    codes, absmax2 = kernels.quantize_8bit(absmax - offset, DYNAMIC_MAP, BLOCKSIZE)
    return codes, absmax2, offset


def expand(codes: np.ndarray, absmax2: np.ndarray, offset: np.float32) -> np.ndarray:
    """The inverse: map[code] · absmax2 + offset, two roundings (no fused multiply-add)."""
    return kernels.dequantize_8bit(codes, absmax2, DYNAMIC_MAP, BLOCKSIZE) + offset
