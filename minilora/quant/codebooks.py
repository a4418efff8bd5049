"""Codebooks: which real numbers the 4-bit codes and the 8-bit dynamic map stand for.

    CODES["nf4"]             # 16 float32 levels in [-1, 1]; the index is the stored code
    normal_float(3)          # the same recipe at 3 bits
    register_code("mine", levels)
    DYNAMIC_MAP, E4M3        # 256 float32 levels each: what 8 bits stand for, for the second level of quantization
    UNSIGNED_DYNAMIC_MAP     # and for what is never negative: an optimizer's second moment

NF4 ("NormalFloat", QLoRA, arXiv:2305.14314, section 3) puts its levels at quantiles of the normal distribution, so
that a normal weight falls into each with similar probability. Taken literally, the paper's equation 4 gives a symmetric
code of 15 levels; the published one has 8 positive and 7 negative levels and an exact zero, as computed here.
"""

from statistics import NormalDist

import numpy as np

from minilora.errors import QuantizationError

f32 = np.float32


def _linspace(start: float, stop: float, n: int) -> np.ndarray:
    """n float32 points from start to stop, each half reckoned from its own end (as torch.linspace does).

    NumPy's linspace rounds differently, by up to 5 units in the last place: enough to lose bit-exactness.
    """
    a, b, i = f32(start), f32(stop), np.arange(n, dtype=f32)
    step = (b - a) / f32(n - 1)
    return np.where(i < n // 2, a + i * step, b - (f32(n - 1) - i) * step)


def normal_float(bits: int) -> np.ndarray:
    """The 2**bits levels of NormalFloat, float32, for 2 to 8 bits; those of 4 are bitsandbytes' NF4 bit for bit.

    2**(bits-1) positive levels and one fewer negative ones, with an exact zero between. The outermost quantile lies
    halfway between those of 2**bits - 1 and 2**bits equal bins; its seven decimals are bitsandbytes'.
    """
    if bits not in range(2, 9):
        raise QuantizationError(f"NormalFloat is defined here for 2 to 8 bits, not {bits!r}")
    n, quantile = 2**bits, NormalDist().inv_cdf
    outermost = round(1 - (1 / (2 * (n - 1)) + 1 / (2 * n)) / 2, 7)
    positive = [quantile(float(p)) for p in _linspace(outermost, 0.5, n // 2 + 1)[:-1]]
    negative = [-quantile(float(p)) for p in _linspace(outermost, 0.5, n // 2)[:-1]]
    levels = np.sort(np.array([*negative, 0.0, *positive], f32))
    return levels / levels.max()


def _signed(magnitudes: list[float]) -> np.ndarray:
    """A sign bit above a magnitude, as floats have it: code 8 + i is minus code i, and code 8 a second zero (+0.0)."""
    positive = np.array(magnitudes, f32) / f32(max(magnitudes))
    return np.concatenate([positive, 0 - positive])


def register_code(name: str, levels) -> None:
    """Add a 4-bit code of your own to CODES: 2 to 16 distinct levels in [-1, 1], whose index is the stored code.

    A block's largest entry becomes ±1 before the nearest level is taken. Raises QuantizationError where a level is
    missing, repeated, not finite or outside [-1, 1], and where the name is taken by other levels.
    """
    try:
        levels = np.array(levels, f32)
    except (ValueError, TypeError) as error:
        raise QuantizationError(f"the levels of {name!r} are not numbers: {error}") from error
    if levels.ndim != 1 or not 2 <= levels.size <= 16:
        raise QuantizationError(f"a 4-bit code has 2 to 16 levels in one row, not an array of shape {levels.shape}")
    if not (np.abs(levels) <= 1).all():
        raise QuantizationError(
            f"the levels of a code lie in [-1, 1], where a block is scaled to; {name!r} has {levels}"
        )
    if np.unique(levels).size < levels.size:
        raise QuantizationError(f"the levels of {name!r} repeat: {np.sort(levels)}")
    if name == "int8" or (name in CODES and not np.array_equal(CODES[name], levels)):
        raise QuantizationError(f"the name {name!r} is taken by another code; choose a new one")
    levels.flags.writeable = False
    CODES[name] = levels


def dynamic_map(signed: bool = True) -> np.ndarray:
    """The 256 levels of the dynamic 8-bit map, float32, sorted, bit for bit those of bitsandbytes.

    Seven decades, the i-th split into 2^i bins whose midpoints are the levels: fine where numbers are large, and
    reaching down to 5.5e-7 ("8-bit Optimizers via Block-wise Quantization", arXiv:2110.02861, section 1.3). The
    unsigned map has no negative levels, and twice as many bins.
    """
    positive = []
    for i in range(7):
        n = 2**i + 1 if signed else 2 ** (i + 1) + 1
        k, step = np.arange(n), np.float64((f32(1) - f32(0.1)) / f32(n - 1))
        # Each point is rounded once, from float64: torch's loop is compiled to fused multiply-adds.
        edges = np.where(k < n // 2, np.float64(f32(0.1)) + k * step, 1 - (n - 1 - k) * step).astype(f32)
        positive.append(f32(10.0 ** (i - 6)) * ((edges[:-1] + edges[1:]) / f32(2)))
    positive = np.concatenate(positive)
    return np.sort(np.concatenate([-positive[: signed * positive.size], positive, np.array([0, 1], f32)]))


def e4m3() -> np.ndarray:
    """FP8 E4M3 divided by its largest number, 448; float32, the index is the bit pattern (OCP OFP8, arXiv:2209.05433).

    A sign, four bits of exponent (bias 7) and three of fraction; exponent 0 is subnormal. All bits set but the sign is
    NaN, so that 254 levels remain, two of them zeros.
    """
    exponent, fraction = np.arange(128) >> 3, np.arange(128) & 7
    value = np.where(exponent > 0, (8 + fraction) * 2.0 ** (exponent - 10), fraction * 2.0**-9)
    value[127] = np.nan
    return np.concatenate([value, -value]).astype(f32) / f32(448)


CODES: dict[str, np.ndarray] = {
    "nf4": normal_float(4),
    "fp4": _signed([0, 0.0625, 8, 12, 4, 6, 2, 3]),  # bitsandbytes' own 4-bit float; it is not E2M1
    "e2m1": _signed([0, 0.5, 1, 1.5, 2, 3, 4, 6]),  # OCP microscaling formats (MX), version 1.0, FP4
    "int4": np.arange(-7, 8, dtype=f32) / f32(7),
    "linear16": np.linspace(-1, 1, 16, dtype=f32),  # the even grid that some explanations call NF4; it has no zero
}
DYNAMIC_MAP, UNSIGNED_DYNAMIC_MAP, E4M3 = dynamic_map(), dynamic_map(signed=False), e4m3()
for _levels in (*CODES.values(), DYNAMIC_MAP, UNSIGNED_DYNAMIC_MAP, E4M3):
    _levels.flags.writeable = False  # shared by every array that is quantized with them
