"""Codebooks: which real numbers the 4-bit codes and the 8-bit dynamic map stand for.

    CODES["nf4"]        # 16 float32 levels in [-1, 1]; the index is the stored code
    dynamic_map()       # 256 float32 levels, the second level of double quantization

NF4 ("NormalFloat", QLoRA, arXiv:2305.14314, section 3) puts its levels at quantiles of the normal distribution, so
that a normal weight falls into each with similar probability. Taken literally, the paper's equation 4 gives a symmetric
code of 15 levels; the published one has 8 positive and 7 negative levels and an exact zero, as computed here.
"""

from statistics import NormalDist

import numpy as np

f32 = np.float32


def _linspace(start: float, stop: float, n: int) -> np.ndarray:
    """n float32 points from start to stop, each half reckoned from its own end (as torch.linspace does).

    NumPy's linspace rounds differently, by up to 5 units in the last place: enough to lose bit-exactness.
    """
    a, b, i = f32(start), f32(stop), np.arange(n, dtype=f32)
    step = (b - a) / f32(n - 1)
    return np.where(i < n // 2, a + i * step, b - (f32(n - 1) - i) * step)


def normal_float4() -> np.ndarray:
    """The 16 levels of NF4, float32, bit for bit those of bitsandbytes.

    The outermost quantile 0.9677083 = 1 - (1/30 + 1/32)/2 lies halfway between those of 15 and 16 equal bins.
    """
    quantile, outermost = NormalDist().inv_cdf, 0.9677083
    positive = [quantile(float(p)) for p in _linspace(outermost, 0.5, 9)[:-1]]
    negative = [-quantile(float(p)) for p in _linspace(outermost, 0.5, 8)[:-1]]
    levels = np.sort(np.array([*negative, 0.0, *positive], f32))
    return levels / levels.max()


def dynamic_map() -> np.ndarray:
    """The 256 levels of the signed dynamic 8-bit map, float32, sorted, bit for bit those of bitsandbytes.

    Seven decades, the i-th split into 2^i bins whose midpoints are the levels: fine where numbers are large, and
    reaching down to 5.5e-7 ("8-bit Optimizers via Block-wise Quantization", arXiv:2110.02861, section 1.3).
    """
    positive = []
    for i in range(7):
        n = 2**i + 1
        k, step = np.arange(n), np.float64((f32(1) - f32(0.1)) / f32(n - 1))
        # Each point is rounded once, from float64: torch's loop is compiled to fused multiply-adds.
        edges = np.where(k < n // 2, np.float64(f32(0.1)) + k * step, 1 - (n - 1 - k) * step).astype(f32)
        positive.append(f32(10.0 ** (i - 6)) * ((edges[:-1] + edges[1:]) / f32(2)))
    positive = np.concatenate(positive)
    return np.sort(np.concatenate([-positive, positive, np.array([0, 1], f32)]))


CODES: dict[str, np.ndarray] = {"nf4": normal_float4()}
DYNAMIC_MAP = dynamic_map()
