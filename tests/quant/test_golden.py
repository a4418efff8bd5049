"""Every array of tests/golden reproduced, and where bitsandbytes' CPU code does something odd, what it is."""

import numpy as np
import pytest
from quant import golden_checks
from quant.golden_checks import FOLDER, Golden, table
from quant.laws import nibbles

from minilora import quantize
from minilora.backend import numpy as kernels
from minilora.errors import QuantizationError
from minilora.quant import CODES, DYNAMIC_MAP

NAMES = sorted(path.stem for path in FOLDER.glob("*.npz"))


@pytest.mark.parametrize("name", NAMES)
def test_golden(name):
    golden_checks.check(name)


def test_no_golden_file_is_left_out():
    """All thirty are of a kind that is checked, every kind occurs, and the one safetensors file is checked with its
    arrays; golden_checks.check fails for an array that is not compared."""
    assert len(NAMES) == 30
    kinds = {function for name, function in vars(golden_checks).items() if name.startswith("check_")}
    assert {golden_checks.checker_of(name) for name in NAMES} == kinds
    assert [path.stem for path in FOLDER.glob("*.safetensors")] == ["linear4bit_128x192"]
    assert "linear4bit_128x192" in NAMES


def test_a_golden_array_that_nobody_reads_is_noticed(monkeypatch):
    monkeypatch.setattr(golden_checks, "check_four_bits", lambda g: g["x"])
    with pytest.raises(AssertionError, match=r"not compared: .*'packed'"):
        golden_checks.check("edge_len2")


def test_quirk_wrong_block_index():
    """bitsandbytes' CPU dequantize_4bit reads absmax[row · (C // B) + column // B], right only where the blocksize B
    divides the row length C. (128, 192) in blocks of 128: its error is 1.8 times that of its own codes and absmax."""
    g = Golden(golden_checks.WRONG_BLOCK)
    theirs = np.abs(g["dequantized"] - g["x"]).mean()
    right = np.abs(CODES["nf4"][_codes(g)] * g["absmax"].repeat(128).reshape(128, 192) - g["x"]).mean()
    assert theirs / right == pytest.approx(1.818, abs=0.001)


def test_quirk_table_instead_of_nearest():
    """bitsandbytes' CPU 8-bit quantizer rounds to a grid of 65,536 points first: of 4,096 codes three are not the
    nearest, and none is further from its number than the nearest by more than a step of the grid."""
    g = Golden("dyn8_s0_4096_b256")
    different = np.flatnonzero(g["codes"] != g["codes_nearest"])
    assert len(different) == 3
    scaled = (g["x"].astype(float) / g["absmax"].repeat(256))[different]
    table_error = np.abs(DYNAMIC_MAP[g["codes"][different]] - scaled)
    nearest_error = np.abs(DYNAMIC_MAP[g["codes_nearest"][different]] - scaled)
    assert (nearest_error <= table_error).all() and (table_error - nearest_error < 2 / 65535).all()


@pytest.mark.parametrize("name", ["dyn8_zeros512", "edge_zeros128_dq"])
def test_quirk_code_of_an_all_zero_block(name):
    """absmax 0: bitsandbytes' CPU code stores 0, whose level is -0.993; nearest is 127, whose level is 0. Times absmax
    both are zero."""
    g = Golden(name)
    codes = g["codes"] if "codes" in g.arrays else g["absmax_codes"]
    assert not codes.any() and DYNAMIC_MAP[127] == 0
    ours, absmax = kernels.quantize_8bit(np.zeros(codes.size, np.float32), DYNAMIC_MAP, 256)
    assert (ours == 127).all() and not kernels.dequantize_8bit(codes, absmax, DYNAMIC_MAP, 256).any()
    np.testing.assert_array_equal(table(np.zeros(codes.size, np.float32), absmax, 256), codes)


def test_quirk_absmax_is_at_least_1e_38():
    """A block is multiplied by 1 / max(absmax, 1e-38): one of smaller numbers comes back as zeros. A partial last block
    stores the clamped absmax too, a full one does not. We do the same."""
    g = Golden("edge_denormal256")
    assert 0 < g["absmax"].max() < 1e-38 and g["x"].any() and not g["dequantized"].any()
    g = Golden("edge_zeros70_partial")
    np.testing.assert_array_equal(g["absmax"], np.array([0, 1e-38], np.float32))


def test_quirk_nan():
    """One NaN: every code of its block is 15, and absmax NaN. Here it is refused, with its index."""
    g = Golden("edge_nan256")
    np.testing.assert_array_equal(np.flatnonzero(np.isnan(g["x"])), [5])
    assert (_codes(g)[:64] == 15).all() and np.isnan(g["dequantized"][:64]).all()
    with pytest.raises(QuantizationError, match=r"x\[5\] is nan.*propagate"):
        quantize(g["x"])


def test_quirk_infinity():
    """-inf comes back as +inf, and the finite entries of its block as NaN (0 · inf). Here it is refused."""
    g = Golden("edge_inf256")
    np.testing.assert_array_equal(np.flatnonzero(np.isinf(g["x"])), [5, 70])
    assert g["x"][70] == -np.inf and g["dequantized"][70] == np.inf
    finite = np.isfinite(g["x"])
    finite[128:] = False
    assert (_codes(g)[finite] == 7).all() and np.isnan(g["dequantized"][finite]).all()
    with pytest.raises(QuantizationError, match=r"x\[5\] is inf.*propagate"):
        quantize(g["x"])
    with pytest.raises(QuantizationError, match=r"x\[65\] is -inf"):
        quantize(np.delete(g["x"], range(5, 10)))


def test_golden_ties_lie_on_the_borders():
    """The tie files hold every border exactly, in three blocks; codes are the lower ones."""
    for code, order in (("nf4", np.arange(16)), ("fp4", np.argsort(CODES["fp4"], kind="stable"))):
        g = Golden(f"edge_ties_{code}")
        borders = kernels.midpoints(CODES[code][order])
        hit = np.isin(g["x"], borders)
        assert set(g["x"][hit]) == set(borders)
        np.testing.assert_array_equal(_codes(g)[hit], order[np.searchsorted(borders, g["x"][hit])])


def _codes(g) -> np.ndarray:
    return nibbles(g["packed"])[: g["x"].size].reshape(g["x"].shape)
