"""Lesson 9's exercises."""

import numpy as np

from minilora import quant
from minilora.course.check import Problem, Wrong, equal

stored_bytes = Problem("stored_bytes", 1)
expand = Problem("expand", 1)


def _n(rng, size):
    """Small ones, then some around a block of 64 and a group of 256 blocks."""
    edge = 1 if size < 4 else 64 if size < 6 else 64 * 256
    return {"n": max(1, int(edge * rng.integers(1, 4) + rng.integers(-2, 3)))}


@stored_bytes.law(
    "it is what the arrays take", draw=_n,
    means="round up each time: a byte for two codes, one a block, 4 a group of blocks; 4 more",
)  # fmt: skip
def _(answer, n):
    q = quant.quantize(np.ones(n, np.float32), "nf4", 64, double_quant=True)
    got = answer(n)
    if got != q.nbytes:
        sizes = ", ".join(f"{name} {array.nbytes}" for name, array in q.arrays.items())
        raise Wrong(f"expected {q.nbytes} ({sizes}), got {got!r}")


def _groups(rng, size):
    n = int(rng.integers(1, 5)) if size < 4 else int(256 * rng.integers(0, 3) + rng.integers(1, 256))
    return {
        "codes": rng.integers(-127, 128, n).astype(np.int8),
        "absmax2": rng.integers(1, 9, -(-n // 256)) / 4,
        "offset": float(rng.integers(1, 5)),
    }


@expand.law(
    "there is one for each code", draw=_groups, means="np.repeat(absmax2, 256) may be too long: cut it to len(codes)"
)
def _(answer, codes, absmax2, offset):
    if (shape := np.shape(answer(codes, absmax2, offset))) != codes.shape:
        raise Wrong(f"expected shape {codes.shape}, got {shape}")


@expand.law(
    "each is code / 127 · absmax2 of its group + offset", draw=_groups,
    means="compute in float, not int8; the group of code i is i // 256; the mean is added last",
)  # fmt: skip
def _(answer, codes, absmax2, offset):
    expected = [float(c) / 127 * absmax2[i // 256] + offset for i, c in enumerate(codes)]
    equal(answer(codes, absmax2, offset), expected, 1e-6)
