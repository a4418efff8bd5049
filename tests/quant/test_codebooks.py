"""The codes equal the published ones bit for bit (tests/golden/tables.npz, made by bitsandbytes 0.50.2)."""

from pathlib import Path
from statistics import NormalDist

import numpy as np
import pytest

from minilora import quantize
from minilora.errors import QuantizationError
from minilora.quant import CODES, normal_float, register_code
from minilora.quant.codebooks import dynamic_map

TABLES = np.load(Path(__file__).parents[1] / "golden" / "tables.npz")


def test_nf4_is_bit_for_bit_the_published_code():
    assert CODES["nf4"].dtype == np.float32
    assert CODES["nf4"].tobytes() == TABLES["nf4"].tobytes()


def test_dynamic_map_is_bit_for_bit_the_published_one():
    assert dynamic_map().tobytes() == TABLES["dynamic8"].tobytes()
    assert dynamic_map(signed=False).tobytes() == TABLES["dynamic8_unsigned"].tobytes()


def test_fp4_is_bit_for_bit_the_published_code():
    assert CODES["fp4"].tobytes() == TABLES["fp4"].tobytes()


def test_e2m1_int4_and_linear16_are_their_definitions():
    magnitudes = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6])
    np.testing.assert_array_equal(CODES["e2m1"], (np.concatenate([magnitudes, -magnitudes]) / 6).astype(np.float32))
    np.testing.assert_array_equal(CODES["int4"], (np.arange(-7, 8) / 7).astype(np.float32))
    np.testing.assert_array_equal(CODES["linear16"], np.linspace(-1, 1, 16).astype(np.float32))
    assert 0 not in CODES["linear16"]


@pytest.mark.parametrize("bits", range(2, 9))
def test_normal_float_of_every_width(bits):
    levels = normal_float(bits)
    assert len(np.unique(levels)) == 2**bits
    assert (levels[0], levels[2 ** (bits - 1) - 1], levels[-1]) == (-1, 0, 1)
    assert (np.diff(levels) > 0).all()


@pytest.mark.parametrize("bits", [1, 9, 4.5, "4"])
def test_normal_float_refuses_other_widths(bits):
    with pytest.raises(QuantizationError, match="2 to 8"):
        normal_float(bits)


def test_normal_float_of_4_bits_is_nf4():
    np.testing.assert_array_equal(normal_float(4), CODES["nf4"])


def test_the_paper_s_equation_gives_another_code():
    """Equation 4 of QLoRA taken literally averages neighbours among the 17 quantiles of i/17, i = 0 to 16. The quantile
    of 0 is -inf, and takes one level with it: 15 are left, symmetric about a zero. NF4 has 16, and is not symmetric."""
    quantile = NormalDist().inv_cdf
    literal = np.array([(quantile(i / 17) + quantile((i + 1) / 17)) / 2 for i in range(1, 16)])
    np.testing.assert_allclose(literal, -literal[::-1], atol=1e-12)
    assert len(literal) == 15 and round(literal[-2] / literal[-1], 3) == 0.769
    assert (round(float(CODES["nf4"][-2]), 3), round(float(CODES["nf4"][1]), 3)) == (0.723, -0.696)


def test_float64_is_not_how_nf4_was_computed():
    """The recipe's linspace in float64, and the rest as it is: levels differ in their last bits, by up to 5 ulp."""
    quantile = np.vectorize(NormalDist().inv_cdf)
    positive, negative = (np.linspace(0.9677083, 0.5, n)[:-1].astype(np.float32).astype(float) for n in (9, 8))
    levels = np.sort(np.concatenate([-quantile(negative), [0], quantile(positive)]).astype(np.float32))
    levels /= levels.max()
    np.testing.assert_allclose(levels, CODES["nf4"], rtol=1e-6)
    assert (levels != CODES["nf4"]).any()


@pytest.fixture
def codes():
    known = set(CODES)
    yield CODES
    for name in set(CODES) - known:
        del CODES[name]


def test_a_code_of_your_own_quantizes(codes):
    register_code("ternary", [0, 1, -1])
    x = np.array([3, -3, 0.1, 1.6, -1.4], np.float32)
    q = quantize(x, "ternary")
    np.testing.assert_array_equal(q.dequantize(), [3, -3, 0, 3, 0])
    np.testing.assert_array_equal(
        q.packed, [0x12, 0x01, 0x00]
    )  # the index is the stored code; the odd end holds zero's
    register_code("ternary", [0, 1, -1])  # again, the same: nothing to refuse


def test_a_code_of_your_own_is_copied_and_read_only(codes):
    levels = np.array([-1, 0, 0.5, 1])
    register_code("mine", levels)
    levels[0] = 7
    np.testing.assert_array_equal(CODES["mine"], [-1, 0, 0.5, 1])
    with pytest.raises(ValueError, match="read-only"):
        CODES["mine"][0] = 0


def test_every_float_code_of_2_to_4_bits_registers(codes):
    for bits in (2, 3, 4):
        register_code(f"nf{bits}", normal_float(bits))
    assert quantize(np.ones(4), "nf3").dequantize().tolist() == [1, 1, 1, 1]


@pytest.mark.parametrize(
    ("name", "levels", "message"),
    [
        ("x", [1], "2 to 16"),
        ("x", [], r"2 to 16 .*shape \(0,\)"),
        ("x", 1, r"2 to 16 .*shape \(\)"),
        ("x", range(17), r"2 to 16 .*shape \(17,\)"),
        ("x", [[0, 1]], "2 to 16"),
        ("x", [0, 2], r"\[-1, 1\]"),
        ("x", [0, np.nan], r"\[-1, 1\]"),
        ("x", [0, -np.inf], r"\[-1, 1\]"),
        ("x", [0, 1, 1], "'x' repeat: .*0. 1. 1."),
        ("x", [0, 1, 1 - 1e-12], "repeat"),  # in float32
        ("x", [0.0, -0.0], "repeat"),
        ("nf4", [0, 1], "'nf4' is taken.*choose a new one"),
        ("int8", [0, 1], "'int8' is taken"),
    ],
)
def test_register_code_refuses(codes, name, levels, message):
    before = dict(CODES)
    with pytest.raises(QuantizationError, match=message):
        register_code(name, levels)
    assert CODES.keys() == before.keys() and all(CODES[name] is before[name] for name in before)


def test_levels_cannot_be_changed_by_accident():
    with pytest.raises(ValueError, match="read-only"):
        CODES["nf4"][0] = 0
