"""Training in 16 bits, simulated: every op's value and every gradient is rounded to bfloat16 or float16.

    with autocast("bfloat16"):
        loss = model.loss(ids, labels)
        loss.backward()

Numbers stay float32 arrays that hold only values of the narrow type, as if each op computed in float32 and stored in 16
bits, which is what a GPU's tensor cores do (QLoRA, arXiv:2305.14314, equation 5: compute in BF16). Parameters are not
touched: adapters and an optimizer's state stay float32. Nothing becomes faster or smaller here; what becomes visible is
what 16 bits do to training: bfloat16 has 8 bits of fraction, float16 11, and a largest number of 65,504.
"""

from contextlib import contextmanager

import numpy as np

from minilora.autograd import tensor
from minilora.errors import unknown_name


def to_bfloat16(x: np.ndarray) -> np.ndarray:
    """float32 values rounded to the nearest bfloat16, ties to even, as float32. NaN stays NaN."""
    bits = x.view(np.uint32)
    rounded = bits + (np.uint32(0x7FFF) + ((bits >> 16) & np.uint32(1)))
    rounded &= np.uint32(0xFFFF0000)
    y = rounded.view(np.float32)
    spoilt = np.isnan(x)
    if spoilt.any():
        y[spoilt] = np.nan
    return y


def to_float16(x: np.ndarray) -> np.ndarray:
    """float32 values rounded to the nearest float16, as float32; beyond ±65,504 they become infinite."""
    with np.errstate(over="ignore"):
        return x.astype(np.float16).astype(np.float32)


ROUNDINGS = {"bfloat16": to_bfloat16, "float16": to_float16}


@contextmanager
def autocast(dtype: str | None):
    """Within it float32 values of ops and gradients are rounded. dtype: "bfloat16", "float16", or None for neither."""
    if dtype is not None and dtype not in ROUNDINGS:
        raise unknown_name("dtype", dtype, ROUNDINGS)
    before, tensor._rounding = tensor._rounding, ROUNDINGS.get(dtype)
    try:
        yield
    finally:
        tensor._rounding = before
