"""Quantized arrays in files: what is written, and that it comes back. Damaged files: test_damaged_files.py."""

import json
import os

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minilora import quantize
from minilora.errors import FileFormatError, QuantizationError
from minilora.quant import CODES, DYNAMIC_MAP, double, load, save
from minilora.quant.files import to_tensors

ALL = [*CODES, "int8"]
NESTED = [False, *double.KINDS]


@pytest.fixture(scope="module", autouse=True)
def no_waiting_for_the_disk():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda handle: None)
        yield


@pytest.fixture
def path(tmp_path):
    return tmp_path / "x.safetensors"


def dtype_of(name: str) -> np.dtype:
    return np.dtype(pytest.importorskip("ml_dtypes").bfloat16 if name == "bfloat16" else name)


def state_of(tensors: dict) -> tuple[str, dict]:
    """The key of quant_state, and what it says."""
    (key,) = [key for key in tensors if ".quant_state." in key]
    return key, json.loads(tensors[key].tobytes())


# there and back


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
@pytest.mark.parametrize("double_quant", NESTED)
@pytest.mark.parametrize("code", ALL)
def test_round_trip(path, code, double_quant, dtype, rng):
    arrays = {
        f"{name}.weight": quantize(rng.standard_normal(shape).astype(dtype_of(dtype)), code, blocksize, double_quant)
        for name, shape, blocksize in [("a", (5, 64), 64), ("b", (7, 9), "row"), ("c", (), 16), ("d", (300, 16), 16)]
    }
    save(path, arrays)
    loaded = load(path)
    assert loaded.keys() == arrays.keys()
    for name, q in arrays.items():
        assert loaded[name] == q and loaded[name].dtype == q.dtype
        np.testing.assert_array_equal(loaded[name].dequantize(), q.dequantize())


@given(data=st.data())
def test_round_trip_of_any_name_and_shape(tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp() / "any.safetensors"
    shape = tuple(data.draw(st.lists(st.integers(1, 9), max_size=4)))
    name = data.draw(st.text('ab._ /"é漢\U0001f600', max_size=8))
    q = quantize(np.ones(shape), data.draw(st.sampled_from(ALL)), "row", data.draw(st.sampled_from(NESTED)))
    save(path, {name: q})
    assert load(path) == {name: q}


def test_plain_arrays_keep_company(path, rng):
    arrays = {"layer.weight": quantize(rng.standard_normal((4, 64))), "layer.bias": np.ones(4, np.float32),
              "norm": np.arange(3)}  # fmt: skip
    save(path, arrays)
    loaded = load(path)
    assert loaded.keys() == arrays.keys() and loaded["layer.weight"] == arrays["layer.weight"]
    np.testing.assert_array_equal(loaded["layer.bias"], 1)
    np.testing.assert_array_equal(loaded["norm"], [0, 1, 2])


def test_a_file_without_quantized_arrays(path):
    save(path, {"x": np.arange(3)})
    np.testing.assert_array_equal(load(path)["x"], [0, 1, 2])


@pytest.mark.parametrize("kind", double.KINDS)
def test_slices_are_saved_too(path, kind, rng):
    q = quantize(rng.standard_normal((600, 16), np.float32), "nf4", 16, kind)
    save(path, {"a": q[256:600], "b": q[3:5]})
    assert load(path) == {"a": q[256:600], "b": q[3:5]}


def test_nan_blocks_return_as_nan(path):
    x = np.ones(128, np.float32)
    x[3] = np.nan
    save(path, {"x": quantize(x, nonfinite="propagate")})
    y = load(path)["x"].dequantize()
    assert np.isnan(y[:64]).all() and (y[64:] == 1).all()


# the layout


def test_the_layout_is_bitsandbytes(rng):
    """As Linear4bit's state_dict has it; tests/golden holds one that bitsandbytes wrote, reproduced byte for byte."""
    q = quantize(rng.standard_normal((4, 96), np.float32), "nf4", 64, double_quant=True)
    tensors = to_tensors("w", q)
    found = {key: (array.dtype, array.shape) for key, array in tensors.items()}
    u8, f32 = np.dtype(np.uint8), np.dtype(np.float32)
    key, state = state_of(tensors)
    assert found == {
        "w": (u8, (192, 1)),
        "w.absmax": (u8, (6,)),
        "w.quant_map": (f32, (16,)),
        "w.nested_absmax": (f32, (1,)),
        "w.nested_quant_map": (f32, (256,)),
        "w.quant_state.bitsandbytes__nf4": (u8, tensors[key].shape),
    }
    assert state == {"quant_type": "nf4", "blocksize": 64, "dtype": "float32", "shape": [4, 96],
                     "nested_blocksize": 256, "nested_dtype": "float32", "nested_offset": float(q.offset)}  # fmt: skip
    np.testing.assert_array_equal(tensors["w.nested_quant_map"], DYNAMIC_MAP)
    plain = to_tensors("w", quantize(np.ones((4, 96), np.float32)))
    assert plain.keys() == {"w", "w.absmax", "w.quant_map", "w.quant_state.bitsandbytes__nf4"}
    assert plain["w.absmax"].dtype == f32


@pytest.mark.parametrize(
    ("code", "blocksize", "double_quant", "owner"),
    [
        ("nf4", 64, False, "bitsandbytes"),
        ("fp4", 4096, True, "bitsandbytes"),
        ("nf4", 16, False, "minilora"),
        ("nf4", 64, "fp8", "minilora"),
        ("nf4", 64, "int8", "minilora"),
        ("nf4", "row", False, "minilora"),
        ("e2m1", 64, False, "minilora"),
        ("int8", 64, True, "minilora"),
        ("int8", None, False, "minilora"),
        pytest.param("nf4", "long row", False, "minilora"),
        pytest.param("nf4", "float64", False, "minilora"),
    ],
)  # fmt: skip
def test_what_bitsandbytes_lacks_is_not_called_its_own(code, blocksize, double_quant, owner):
    x = np.ones((2, 8192 if blocksize == "long row" else 96), "float64" if blocksize == "float64" else "float32")
    blocksize = {"long row": "row", "float64": 64}.get(blocksize, blocksize)
    key, _ = state_of(to_tensors("w", quantize(x, code, blocksize, double_quant)))
    assert key == f"w.quant_state.{owner}__{code}"


def test_a_code_of_ones_own_is_registered_before_it_is_loaded(path, monkeypatch):
    monkeypatch.setitem(CODES, "gone", np.array([-1, 0, 1], np.float32))
    q = quantize(np.array([1.0, -1, 0.1]), "gone")
    save(path, {"x": q})
    assert load(path)["x"] == q
    monkeypatch.delitem(CODES, "gone")
    with pytest.raises(FileFormatError, match=r"x\.quant_state\.minilora__gone.*'gone'.*register_code first"):
        load(path)
    monkeypatch.setitem(CODES, "gone", np.array([-1, 0.5, 1], np.float32))
    with pytest.raises(FileFormatError, match=r"x\.quant_map holds other levels than the code of that name: \[-1"):
        load(path)


def test_no_array_is_lost(path):
    save(path, {"a": quantize(np.ones(4, np.float32)), "a.b": np.ones(3)})
    assert load(path).keys() == {"a", "a.b"}


def test_names_that_collide_are_refused(path):
    with pytest.raises((FileFormatError, QuantizationError), match=r"a\.absmax"):
        save(path, {"a": quantize(np.ones(4, np.float32)), "a.absmax": np.full(1, 7, np.float32)})
