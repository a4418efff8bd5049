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
@pytest.mark.parametrize("code", [*CODES, "int8", "short"])
def test_monte_carlo_agrees_within_four_and_a_half_standard_errors(code, blocksize):
    x = np.random.default_rng(blocksize).standard_normal(1 << 18, np.float32)
    error = (quantize(x, code, blocksize).dequantize().astype(float) - x).reshape(-1, blocksize)
    theory = expected_error(code, blocksize)
    for measured, expected in ((np.abs(error).mean(1), theory.mae), ((error**2).mean(1), theory.mse)):
        standard_error = measured.std(ddof=1) / len(measured) ** 0.5  # blocks are independent, their entries are not
        assert abs(measured.mean() - expected) < 4.5 * standard_error


@pytest.mark.parametrize("width", [2, 3, 48, 1000])
@pytest.mark.parametrize("code", ["nf4", "int8"])
def test_rows_of_any_length(code, width):
    x = np.random.default_rng(width).standard_normal((200_000 // width, width), np.float32)
    error = np.abs(quantize(x, code, "row").dequantize() - x).mean(1, dtype=float)
    assert abs(error.mean() - expected_error(code, width).mae) < 4.5 * error.std(ddof=1) / len(error) ** 0.5


# Mean absolute error, mean squared error and signal-to-noise ratio in dB, in blocks of 32, 64, 128 and 4096. Computed
# by another program, which integrated numerically where ours has partial moments.
TABLE = """
nf4      .06775/.00762/21.18  .07280/.00846/20.73  .07683/.00914/20.39  .09253/.01208/19.18
fp4      .08892/.01303/18.85  .09655/.01487/18.28  .10295/.01653/17.82  .12956/.02486/16.04
e2m1     .07550/.01022/19.91  .08028/.01117/19.52  .08382/.01185/19.26  .09615/.01413/18.50
int4     .08123/.00941/20.26  .09129/.01158/19.36  .10021/.01375/18.62  .13577/.02474/16.07
linear16 .07581/.00820/20.86  .08520/.01009/19.96  .09353/.01198/19.22  .12671/.02155/16.66
"""


@pytest.mark.parametrize("row", TABLE.split("\n")[1:-1], ids=lambda row: row.split()[0])
def test_the_table(row):
    code, *figures = row.split()
    for blocksize, entry in zip((32, 64, 128, 4096), figures, strict=True):
        mae, mse, sqnr = map(float, entry.split("/"))
        e = expected_error(code, blocksize)
        assert abs(e.mae - mae) < 6e-6 and abs(e.mse - mse) < 6e-6 and abs(e.sqnr - sqnr) < 0.006


@pytest.mark.parametrize(("blocksize", "mae", "mse"), [(64, 0.00503, 3.52e-5), (4096, 0.00748, 7.52e-5)])
def test_the_table_of_int8(blocksize, mae, mse):
    e = expected_error("int8", blocksize)
    assert abs(e.mae - mae) < 6e-6 and abs(e.mse - mse) < 6e-8


def test_what_the_table_does_and_does_not_say():
    """On normal weights int4 has a lower squared error than fp4 (of models' perplexity the QLoRA paper, table 2, finds
    the reverse); and in blocks of 16 the even grid has a lower one than NF4, though not a lower absolute one."""
    assert expected_error("int4", 64).mse < expected_error("fp4", 64).mse
    assert expected_error("linear16", 16).mse < expected_error("nf4", 16).mse
    assert expected_error("linear16", 16).mae > expected_error("nf4", 16).mae


@pytest.mark.parametrize("code", list(CODES))
def test_errors_grow_with_the_blocksize(code):
    errors = [expected_error(code, b) for b in BLOCKSIZES]
    assert (np.diff([e.mae for e in errors]) > 0).all() and (np.diff([e.mse for e in errors]) > 0).all()


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
