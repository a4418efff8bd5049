"""Measured errors are those of theory: every code, every blocksize."""

import numpy as np
import pytest

from minilora.errors import QuantizationError, UnknownNameError
from minilora.quant import CODES, expected_error, quantize

BLOCKSIZES = [16, 32, 64, 128, 256, 512, 1024, 2048, 4096]
# Means that bitsandbytes' tests/test_functional.py expects on N(0, 1), for blocks of 32 to 4096.
PUBLISHED = {
    "nf4": [0.067746, 0.072798, 0.076831, 0.080337, 0.083547, 0.086610, 0.089592, 0.092547],
    "fp4": [0.088925, 0.096543, 0.102969, 0.108684, 0.114115, 0.119333, 0.124556, 0.129536],
}


@pytest.fixture
def short_code(monkeypatch):
    """A code that reaches neither end: the block's largest entry has an error too."""
    monkeypatch.setitem(CODES, "short", np.array([0.7, -0.5, 0.1], np.float32))


@pytest.mark.usefixtures("short_code")
@pytest.mark.parametrize("blocksize", BLOCKSIZES)
@pytest.mark.parametrize("code", ["nf4", "fp4", "e2m1", "int4", "linear16", "int8", "short"])
def test_monte_carlo_agrees_within_four_and_a_half_standard_errors(code, blocksize):
    x = np.random.default_rng(blocksize).standard_normal(1 << 18, np.float32)
    error = (quantize(x, code, blocksize).dequantize().astype(float) - x).reshape(-1, blocksize)
    theory = expected_error(code, blocksize)
    for measured, expected in ((np.abs(error).mean(1), theory.mae), ((error**2).mean(1), theory.mse)):
        standard_error = measured.std(ddof=1) / len(measured) ** 0.5  # blocks are independent, their entries are not
        assert abs(measured.mean() - expected) < 4.5 * standard_error


@pytest.mark.parametrize("code", PUBLISHED)
def test_published_means(code):
    """They are sample means themselves. One of the sixteen, fp4's at 2048, lies 9e-5 from the closed form, which does
    not move when the integral is taken on forty times as many points; the others are within 5e-5."""
    for blocksize, published in zip(BLOCKSIZES[1:], PUBLISHED[code], strict=True):
        tolerance = 1e-4 if (code, blocksize) == ("fp4", 2048) else 5e-5
        assert abs(expected_error(code, blocksize).mae - published) < tolerance


def test_signal_to_noise_ratio():
    assert expected_error("nf4", 64).sqnr == pytest.approx(20.73, abs=0.005)


@pytest.mark.parametrize("blocksize", [0, 1, -64, 64.0, "row", None, True])
def test_blocksizes_without_a_theory_are_refused(blocksize):
    with pytest.raises(QuantizationError, match="at least 2"):
        expected_error("nf4", blocksize)


def test_unknown_codes_are_refused():
    with pytest.raises(UnknownNameError, match="nf4"):
        expected_error("nf5")
