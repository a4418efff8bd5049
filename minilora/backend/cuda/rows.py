"""Softmax and RMSNorm over the last axis: launches of rows.cu, whose steps show how a GPU reduces.

    softmax(device, x)                        # exp(x_i) / Σ_j exp(x_j)
    rms_norm(device, x, weight, eps=1e-5)     # w x / √(mean(x²) + eps), arXiv:1910.07467

version: 0, a thread a row; 1, a block a row with a tree in shared memory; 2 (the default), a warp a row with shuffles.
"""

import numpy as np

from minilora.backend.cuda.launch import Device, In, Launch, Out
from minilora.errors import LaunchError, ShapeError

THREADS = 256


def softmax(device: Device, x, version: int | None = None):
    """softmax over the last axis of a float32 x, a new array. A row of -inf only, or with NaN or +inf, gives NaN."""
    return _run(device, "softmax", x, (), (), version)


def rms_norm(device: Device, x, weight, eps: float = 1e-5, version: int | None = None):
    """w x / √(mean(x²) + eps) over the last axis of a float32 x; weight (d,) float32. Raises ShapeError."""
    if weight.shape != x.shape[-1:]:
        raise ShapeError(f"rms_norm of x {tuple(x.shape)} needs a weight of its last axis, not {tuple(weight.shape)}")
    return _run(device, "rms_norm", x, (In(weight),), (np.float32(eps),), version)


def _run(device: Device, name: str, x, inputs: tuple, scalars: tuple, version: int | None):
    version = 2 if version is None else version
    if version not in (0, 1, 2):
        raise LaunchError(f"{name} has versions 0, 1 and 2, not {version!r}")
    y = device.empty(x.shape, np.float32)
    if x.size:
        n = x.shape[-1]
        rows = x.size // n
        if max(rows, n) >= 1 << 31:
            raise LaunchError(f"{name} counts to 2^31, x has {rows} rows of {n}; give it some at a time")
        blocks = {0: -(-rows // THREADS), 1: rows, 2: -(-rows // (THREADS // 32))}[version]
        args = (In(x), *inputs, Out(y), np.int32(rows), np.int32(n), *scalars)
        device.run(Launch("rows.cu", f"{name}_v{version}", (blocks,), (THREADS,), args))
    return y
