"""The codes equal the published ones bit for bit (tests/golden/tables.npz, made by bitsandbytes 0.50.2)."""

from pathlib import Path

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


@pytest.mark.parametrize(
    ("name", "levels", "message"),
    [
        ("x", [1], "2 to 16"),
        ("x", range(17), "2 to 16"),
        ("x", [[0, 1]], "2 to 16"),
        ("x", [0, 2], r"\[-1, 1\]"),
        ("x", [0, np.nan], r"\[-1, 1\]"),
        ("x", [0, 1, 1], "repeat"),
        ("nf4", [0, 1], "taken"),
        ("int8", [0, 1], "taken"),
    ],
)
def test_register_code_refuses(codes, name, levels, message):
    with pytest.raises(QuantizationError, match=message):
        register_code(name, levels)


def test_levels_cannot_be_changed_by_accident():
    with pytest.raises(ValueError, match="read-only"):
        CODES["nf4"][0] = 0
