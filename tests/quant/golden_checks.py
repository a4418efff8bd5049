"""tests/golden, arrays that bitsandbytes 0.50.2 made on a CPU, against ours: one function for each kind of file.

They are plain functions that raise AssertionError, so that test_planted_bugs.py can call them too. Each must read every
array of its file: `check` fails when one is left over.
"""

import functools
import json
from pathlib import Path

import numpy as np
from quant.laws import f32, unpack

from minilora import quantize
from minilora.backend import numpy as kernels
from minilora.quant import CODES, DYNAMIC_MAP, QuantizedArray, double, load
from minilora.quant.files import to_tensors

FOLDER = Path(__file__).parents[1] / "golden"
WRONG_BLOCK = "nf4_s1_128x192_b128"  # its `dequantized` is
NONFINITE = ("edge_nan256", "edge_inf256")
NOT_OURS = ("af4", "dynamic8_unsigned")  # in tables.npz: another paper's code, and the map of an optimizer's variances


class Golden:
    """A file's arrays by name; `unread` are the names not asked for yet."""

    def __init__(self, name: str):
        self.name, self.arrays = name, dict(np.load(FOLDER / f"{name}.npz"))
        self.unread = set(self.arrays)

    def __getitem__(self, key: str) -> np.ndarray:
        self.unread.discard(key)
        return self.arrays[key]


def check(name: str):
    g = Golden(name)
    checker_of(name)(g)
    assert not g.unread, f"{name}: not compared: {sorted(g.unread)}"


def checker_of(name: str):
    """The function that a golden file is checked by, or KeyError."""
    if name in NONFINITE:
        return check_nonfinite
    if "_dq" in name:
        return check_double_quantized
    kinds = {"nf4": check_four_bits, "fp4": check_four_bits, "edge": check_four_bits, "dyn8": check_dynamic,
             "int8": check_int8_rows, "linear4bit": check_linear, "tables": check_tables}  # fmt: skip
    return kinds[name.split("_")[0]]


def check_four_bits(g):
    """Codes, absmax and values, all bit for bit."""
    code, blocksize = str(g["quant_type"]), int(g["blocksize"])
    np.testing.assert_array_equal(CODES[code], g["code"])
    q = quantize(g["x"], code, blocksize)
    np.testing.assert_array_equal(q.packed, g["packed"])
    np.testing.assert_array_equal(to_tensors("w", q)["w"].shape, g["packed_shape"])
    np.testing.assert_array_equal(q.absmax, g["absmax"])
    if g.name == WRONG_BLOCK:
        np.testing.assert_array_equal(_dequantize_with_their_block_index(q), g["dequantized"])
    else:
        np.testing.assert_array_equal(q.dequantize(), g["dequantized"])


def _dequantize_with_their_block_index(q) -> np.ndarray:
    """bitsandbytes' CPU kernel takes blocks to lie within rows: it reads absmax[row · (C // B) + column // B]."""
    rows, columns = np.indices(q.shape)
    levels = CODES[q.code][unpack(q)].reshape(q.shape)
    return levels * q.absmax[rows * (q.shape[1] // q.blocksize) + columns // q.blocksize]


def check_double_quantized(g):
    """Everything bit for bit once the mean is theirs: ours may differ in the last bit, as sums in another order do.

    Their nested codes are a table's (see `table`); ours are nearest, and differ by one step at most, in few places.
    """
    code, blocksize, nested = str(g["quant_type"]), int(g["blocksize"]), int(g["nested_blocksize"])
    np.testing.assert_array_equal(CODES[code], g["code"])
    np.testing.assert_array_equal(DYNAMIC_MAP, g["nested_code"])
    assert nested == double.BLOCKSIZE
    np.testing.assert_array_equal(quantize(g["x"], code, blocksize).absmax, g["absmax"])

    rest = g["absmax"] - g["offset"]
    nearest, absmax2 = kernels.quantize_8bit(rest, DYNAMIC_MAP, nested)
    np.testing.assert_array_equal(absmax2, g["nested_absmax"])
    np.testing.assert_array_equal(table(rest, absmax2, nested), g["absmax_codes"])
    scales = double.expand(g["absmax_codes"], g["nested_absmax"], g["offset"][()], "dynamic")
    np.testing.assert_array_equal(scales, g["absmax_dequantized"])
    theirs = QuantizedArray(code, g["packed"], g["x"].shape, g["x"].dtype, blocksize, None, "dynamic",
                            g["absmax_codes"], g["nested_absmax"], g["offset"][()])  # fmt: skip
    np.testing.assert_array_equal(theirs.dequantize(), g["dequantized"])

    q = quantize(g["x"], code, blocksize, double_quant=True)
    np.testing.assert_array_equal(q.packed, g["packed"])
    np.testing.assert_array_equal(to_tensors("w", q)["w"].shape, g["packed_shape"])
    np.testing.assert_array_max_ulp(q.offset, g["offset"][()], 1)
    np.testing.assert_allclose(q.absmax2, g["nested_absmax"], rtol=1e-6)
    if g["nested_absmax"].any():  # of all-zero rests the code of zero is stored by us, and 0 by them
        steps = np.abs(q.absmax_codes.astype(int) - g["absmax_codes"])
        assert steps.max() <= 1 and steps.mean() < 0.01
        assert (q.absmax_codes != nearest).mean() < 0.01
    np.testing.assert_allclose(q.dequantize(), g["dequantized"], atol=2 * 0.0071 * q.absmax2.max(), rtol=0)


def table(x: np.ndarray, absmax: np.ndarray, blocksize: int) -> np.ndarray:
    """bitsandbytes' 8-bit quantizer on a CPU: not the nearest level, but a table over the grid 2i/65535 - 1, whose
    entry floor((s + 1) · 32767.5 + 1/2) is the level nearest to that point. An all-zero block has code 0."""
    scale = absmax.repeat(blocksize)[: x.size]
    scaled = x / np.where(scale > 0, scale, f32(1))
    i = np.floor((scaled + f32(1)) * f32(32767.5) + f32(0.5)).astype(int)
    return np.where(scale > 0, _entries()[np.clip(i, 0, 65535)], 0).astype(np.uint8)


@functools.cache
def _entries() -> np.ndarray:
    grid = 2 * np.arange(65536) / 65535 - 1
    return np.abs(grid[:, None] - DYNAMIC_MAP.astype(float)).argmin(1).astype(np.uint8)


def check_dynamic(g):
    """codes_nearest, the rule of bitsandbytes' GPU kernel, is ours; codes, of its CPU kernel, the table's."""
    blocksize = int(g["blocksize"])
    np.testing.assert_array_equal(DYNAMIC_MAP, g["code"])
    codes, absmax = kernels.quantize_8bit(g["x"], DYNAMIC_MAP, blocksize)
    np.testing.assert_array_equal(codes, g["codes_nearest"])
    np.testing.assert_array_equal(absmax, g["absmax"])
    np.testing.assert_array_equal(table(g["x"], absmax, blocksize), g["codes"])
    np.testing.assert_array_equal(
        kernels.dequantize_8bit(g["codes"], g["absmax"], DYNAMIC_MAP, blocksize), g["dequantized"]
    )


def check_int8_rows(g):
    q = quantize(g["x"], "int8", "row")
    np.testing.assert_array_equal(q.packed.reshape(q.shape), g["q"])
    np.testing.assert_array_equal(q.absmax, g["row_absmax"])
    np.testing.assert_array_equal(q.dequantize(), g["dequantized"])


def check_nonfinite(g):
    """The blocks that hold neither NaN nor an infinity are theirs bit for bit; the others come back whole as NaN, where
    bitsandbytes stores codes that mean something else (see test_golden.py)."""
    x, code, blocksize = g["x"], str(g["quant_type"]), int(g["blocksize"])
    np.testing.assert_array_equal(CODES[code], g["code"])
    q = quantize(x, code, blocksize, nonfinite="propagate")
    np.testing.assert_array_equal(to_tensors("w", q)["w"].shape, g["packed_shape"])
    good = np.isfinite(x.reshape(-1, blocksize)).all(1)
    assert not good.all()
    np.testing.assert_array_equal(q.packed.reshape(len(good), -1)[good], g["packed"].reshape(len(good), -1)[good])
    np.testing.assert_array_equal(q.absmax[good], g["absmax"][good])
    y = q.dequantize().reshape(len(good), -1)
    np.testing.assert_array_equal(y[good], g["dequantized"].reshape(len(good), -1)[good])
    assert np.isnan(y[~good]).all() and np.isnan(q.absmax[~good]).all()


def check_linear(g):
    """A Linear4bit's file: read, dequantized, multiplied, and written again byte for byte."""
    stored = load(FOLDER / f"{g.name}.safetensors")
    q = stored["weight"]
    np.testing.assert_array_equal(q.dequantize(), g["W_dequantized"])
    np.testing.assert_array_equal(stored["bias"], g["bias"])
    np.testing.assert_array_equal(stored["bias"], g["sd:bias"])
    for key, array in to_tensors("weight", q).items():
        assert array.tobytes() == g[f"sd:{key}"].tobytes(), key
    state = json.loads(g["sd:weight.quant_state.bitsandbytes__nf4"].tobytes())
    ours = quantize(g["W"], "nf4", state["blocksize"], double_quant=True)
    np.testing.assert_array_equal(ours.packed, q.packed)
    np.testing.assert_array_max_ulp(ours.offset, q.offset, 1)
    y = q.matmul(g["x"]) + g["bias"]
    np.testing.assert_allclose(y, g["y_train_f32"], atol=1e-5)
    np.testing.assert_allclose(y, g["y_eval_bf16"], atol=2.0**-7 * np.abs(y).max())  # rounded to bfloat16 on the way
    ones = np.ones((len(g["x"]), q.shape[0]), f32)
    np.testing.assert_allclose(q.matmul(ones, transpose=True), g["dx_for_ones"], atol=1e-5)


def check_tables(g):
    for code in ("nf4", "fp4"):
        assert CODES[code].tobytes() == g[code].tobytes()
    np.testing.assert_array_equal(kernels.midpoints(CODES["nf4"]), g["nf4_midpoints"])
    np.testing.assert_array_equal(kernels.midpoints(np.sort(CODES["fp4"])), g["fp4_sorted_midpoints"])
    assert DYNAMIC_MAP.tobytes() == g["dynamic8"].tobytes()
    g.unread -= set(NOT_OURS)
