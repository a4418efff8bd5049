"""Would the suite notice? Wrong but plausible quantizers, each caught by a law or a golden array; a right one by none.

A bug is a deviation of `Quantizer`, a plain second implementation of the kernels, from its defaults. With its defaults
it passes everything, so that what a bug is caught by, it is caught by for that bug.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from statistics import NormalDist

import numpy as np
import pytest
from quant import golden_checks, laws

from minilora.backend import numpy as kernels
from minilora.quant import CODES, double

f32 = np.float32
LAWS = [laws.check_dequantize, laws.check_zero_is_exact, laws.check_absmax_is_exact, laws.check_fixed_point,
        laws.check_error_bound, laws.check_monotone, laws.check_negation]  # fmt: skip


@dataclass(frozen=True)
class Quantizer:
    """quantize_4bit and dequantize_4bit, with a choice for everything that one may get wrong."""

    high_first: bool = True  # of two codes in a byte
    tie: str = "left"  # as np.searchsorted has it: "left" is the lower level
    borders: Callable = kernels.midpoints
    largest: Callable = lambda block: np.abs(block).max()
    quantize_shift: int = 0  # entries by which blocks start too late
    dequantize_shift: int = 0
    sort: bool = True  # levels before borders are taken
    odd_end: int | None = None  # the code that pads an odd end, if not that of zero
    tail_divides: bool = True  # a partial last block; a full one is multiplied by the reciprocal

    def quantize(self, x, levels, blocksize):
        order = np.argsort(levels, kind="stable") if self.sort else np.arange(len(levels))
        borders = self.borders(levels[order])
        block = np.maximum(np.arange(x.size) - self.quantize_shift, 0) // blocksize
        blocks = -(-x.size // blocksize)
        absmax = np.array([self.largest(x[block == b]) if (block == b).any() else 0 for b in range(blocks)], f32)
        if x.size % blocksize:
            absmax[-1] = max(absmax[-1], kernels.TINY)
        scale = np.maximum(absmax, kernels.TINY)[block]
        scaled = x * (f32(1) / scale)
        tail = slice(x.size // blocksize * blocksize, None)
        if self.tail_divides:
            scaled[tail] = x[tail] / scale[tail]
        codes = order[np.searchsorted(borders, scaled, self.tie)].astype(np.uint8)
        if x.size % 2:
            zero = order[np.searchsorted(borders, f32(0), self.tie)] if self.odd_end is None else self.odd_end
            codes = np.append(codes, np.uint8(zero))
        first, second = (codes[::2], codes[1::2]) if self.high_first else (codes[1::2], codes[::2])
        return first << 4 | second, absmax

    def dequantize(self, packed, absmax, levels, blocksize, start, stop):
        codes = np.stack([packed >> 4, packed & 15] if self.high_first else [packed & 15, packed >> 4], 1).ravel()
        i = np.arange(start, stop)
        block = np.minimum((i + self.dequantize_shift) // blocksize, len(absmax) - 1)
        return levels[codes[i]] * absmax[block]


def quantile_borders(levels):
    """NF4's levels are quantiles; so one may think that its borders are, halfway between them in probability."""
    normal = NormalDist(0, 1 / 1.848)  # 1.848 is the quantile of NF4's outermost level
    p = np.array([normal.cdf(float(level)) for level in levels])
    return np.array([normal.inv_cdf(v) for v in (p[1:] + p[:-1]) / 2], f32)


def all_but_the_last(block):
    return np.abs(block[:-1]).max(initial=0)


def one_ulp_off(levels):
    borders = kernels.midpoints(levels)
    borders[9] = np.nextafter(borders[9], f32(2))
    return borders


# Each with the check that catches it, by the first words of its name; others may as well.
QUANTIZERS = {
    "nibbles swapped, in both directions": (Quantizer(high_first=False), "golden edge_len2"),
    "a tie goes up": (Quantizer(tie="right"), "ties nf4"),
    "borders halfway in probability": (Quantizer(borders=quantile_borders), "check_error_bound nf4"),
    "one border an ulp too high": (Quantizer(borders=one_ulp_off), "golden edge_ties_nf4"),
    "borders are the upper levels": (Quantizer(borders=lambda levels: levels[1:]), "check_error_bound nf4"),
    "borders of unsorted levels": (Quantizer(sort=False), "check_error_bound fp4"),
    "absmax of the signed maximum": (Quantizer(largest=np.max), "check_absmax_is_exact nf4"),
    "absmax misses a block's last entry": (Quantizer(largest=all_but_the_last), "golden nf4_s1_128x192_b32"),
    "quantize: blocks an entry late": (Quantizer(quantize_shift=1), "blocks nf4"),
    "dequantize: blocks an entry early": (Quantizer(dequantize_shift=1), "check_dequantize nf4"),
    "dequantize: the next block": (Quantizer(dequantize_shift=64), "check_fixed_point nf4"),
    "an odd end padded with code 0": (Quantizer(odd_end=0), "check_definition nf4"),
    "a partial block multiplies": (Quantizer(tail_divides=False), "rounding nf4"),
}


def nested(offset_of):
    """double.compress with another offset than the mean."""

    def compress(absmax, kind="dynamic"):
        offset = offset_of(absmax)
        if kind == "int8":
            return *kernels.quantize_int8(absmax - offset, 256), offset
        return *kernels.quantize_8bit(absmax - offset, double.LEVELS[kind], 256), offset

    return compress


def int8(rounded=np.rint, scaled=lambda codes, absmax: codes * absmax * f32(1 / 127)):
    """quantize_int8 and dequantize_int8, with a choice of how they round and scale."""

    def quantize_int8(x, blocksize):
        absmax = laws.block_absmax(x, blocksize)
        scale = laws.each(f32(127) / np.maximum(absmax, f32(1e-36)), blocksize, x.size)
        return rounded(x * scale).astype(np.int8), absmax

    def dequantize_int8(codes, absmax, blocksize):
        return scaled(codes, laws.each(absmax, blocksize, codes.size))

    return quantize_int8, dequantize_int8


INT8 = {
    "truncated": (int8(np.trunc), "check_error_bound int8"),
    "a half goes up": (int8(lambda v: np.floor(v + f32(0.5))), "check_negation int8"),
    "a half goes away from zero": (int8(lambda v: np.copysign(np.floor(np.abs(v) + f32(0.5)), v)), "int8 ties"),
    "128 steps": (int8(scaled=lambda codes, absmax: codes * absmax * f32(1 / 128)), "check_absmax_is_exact int8"),
    "absmax divided first": (int8(scaled=lambda codes, absmax: codes * (absmax / f32(127))), "golden int8_rowwise"),
}
NESTED = {
    "no mean offset": (lambda absmax: f32(0), ("golden nf4_dq_s0", "double fp8")),
    "the smallest for the mean": (lambda absmax: absmax.min(), ("golden nf4_dq_s0", "double fp8")),
    "half the mean": (lambda absmax: absmax.mean(dtype=f32) / f32(2), ("golden nf4_dq_s0", "double fp8")),
}


def arrays():
    """Odd and even lengths, partial blocks, a zero block, negative maxima, ties, blocks of different magnitude."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal(64 * 5 + 19).astype(f32) * np.repeat(np.exp2(np.arange(6)), 64)[: 64 * 5 + 19].astype(f32)
    x[64:128] = 0
    yield x
    yield np.concatenate([-np.abs(x), [0]]).astype(f32)
    yield np.array([1, 0.5, 0.25, -0.75, 0, -1, 1 / 384], f32)


def suite():
    """Every check as (name, function without arguments)."""
    for name in sorted(path.stem for path in golden_checks.FOLDER.glob("*.npz")):
        yield f"golden {name}", partial(golden_checks.check, name)
    for code in (*CODES, "int8"):
        for x in arrays():
            for law in LAWS:
                yield f"{law.__name__} {code}", partial(law, x, code, 64)
            yield f"scale {code}", partial(laws.check_power_of_two_scale, x, code, 64, 5)
            order = np.arange(len(x) // 64)[::-1]
            yield f"blocks {code}", partial(laws.check_blocks_are_independent, x, code, 64, order)
        if code != "int8":
            for x in arrays():
                yield f"check_definition {code}", partial(laws.check_definition, x, code, 64)
            yield f"ties {code}", partial(laws.check_definition, ties(code), code, 16)
            yield f"rounding {code}", partial(laws.check_rounding, code)
    yield "int8 ties", laws.check_int8_ties
    absmax = np.abs(np.random.default_rng(1).standard_normal((600, 64))).max(1).astype(f32)
    for kind in double.KINDS:
        yield f"double {kind}", partial(laws.check_double, absmax, kind)


def ties(code: str) -> np.ndarray:
    """Each border of the code in a full block of 16 whose absmax is 1."""
    borders = kernels.midpoints(laws.levels_of(code))
    x = np.zeros((len(borders), 16), f32)
    x[:, 0], x[:, 1] = 1, borders
    return x.ravel()


def fails(*prefixes: str) -> list[str]:
    """The names of the checks that fail, of those whose names begin so."""
    names = []
    for name, check in suite():
        if name.startswith(prefixes):
            try:
                check()
            except AssertionError:
                names.append(name)
    return names


@pytest.fixture
def plant(monkeypatch):
    def put(quantizer=None, int8=None, compress=None):
        if quantizer:
            monkeypatch.setattr(kernels, "quantize_4bit", quantizer.quantize)
            monkeypatch.setattr(kernels, "dequantize_4bit", quantizer.dequantize)
        if int8:
            monkeypatch.setattr(kernels, "quantize_int8", int8[0])
            monkeypatch.setattr(kernels, "dequantize_int8", int8[1])
        if compress:
            monkeypatch.setattr(double, "compress", compress)

    return put


def test_nothing_fails_where_nothing_is_wrong():
    assert fails("") == []


def test_the_second_implementation_has_no_bug(plant):
    plant(Quantizer(), int8(), nested(lambda absmax: absmax.mean(dtype=f32)))
    assert fails("") == []


@pytest.mark.parametrize("bug", QUANTIZERS)
def test_a_bug_in_4_bits_is_caught(plant, bug):
    quantizer, check = QUANTIZERS[bug]
    plant(quantizer)
    assert fails(check)


@pytest.mark.parametrize("bug", INT8)
def test_a_bug_in_int8_is_caught(plant, bug):
    kernels, check = INT8[bug]
    plant(int8=kernels)
    assert fails(check)


@pytest.mark.parametrize("bug", NESTED)
def test_a_bug_in_double_quantization_is_caught(plant, bug):
    """By the golden arrays, and by the law, which asks that the offset is the mean."""
    offset_of, checks = NESTED[bug]
    plant(compress=nested(offset_of))
    for check in checks:
        assert fails(check)
