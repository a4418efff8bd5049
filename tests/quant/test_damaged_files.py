"""A damaged file of quantized arrays is refused, whatever the damage: by FileFormatError, soon, in little memory."""

import json
import os
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minilora import quantize
from minilora.errors import FileFormatError
from minilora.files import save_safetensors
from minilora.quant import CODES, DYNAMIC_MAP, QuantizedArray, load
from minilora.quant.files import to_tensors

BASES = {
    "nf4": lambda x: quantize(x),
    "nf4, one block": lambda x: quantize(x[:1]),
    "nf4 double": lambda x: quantize(x, "nf4", 64, True),
    "e2m1 fp8": lambda x: quantize(x, "e2m1", 64, "fp8"),
    "e2m1 dynamic": lambda x: quantize(x, "e2m1", 64, "dynamic"),
    "int8": lambda x: quantize(x, "int8", None),
    "int8 int8": lambda x: quantize(x, "int8", 64, "int8"),
}
DOUBLE = [name for name in BASES if " " in name and "," not in name]
bases = pytest.mark.parametrize("name", BASES)
NONSENSE = [None, True, False, -1, 0, 1, 1.5, 64.0, "", "x", "64", "nf4", "fp4", "int8", "float16", "fp8", [], [[]], {},
            [0], [-1], [1.5], ["8", "64"], [8, 64, 2], [True, 512], [8, -64], [2**40, 2**40], [0, 10**30], 10**400,
            [10**400], float("nan"), float("inf"), {"a": 1}, [None], list(range(1000))]  # fmt: skip
NUMBERS = [-1, 0, 1, 1.5, 64.0]


@pytest.fixture(scope="module", autouse=True)
def no_waiting_for_the_disk():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda handle: None)
        yield


@pytest.fixture
def path(tmp_path):
    return tmp_path / "x.safetensors"


def base(name: str) -> dict[str, np.ndarray]:
    return to_tensors("w", BASES[name](np.random.default_rng(0).standard_normal((8, 64), np.float32)))


def state_of(tensors: dict) -> tuple[str, dict]:
    """The key of quant_state, and what it says."""
    (key,) = [key for key in tensors if ".quant_state." in key]
    return key, json.loads(tensors[key].tobytes())


def with_state(tensors: dict, state) -> dict:
    return tensors | {state_of(tensors)[0]: np.frombuffer(json.dumps(state).encode(), np.uint8)}


def refused(path, tensors: dict) -> bool:
    """Whether the file is refused; if not, what it holds must be sound. Neither takes more than a megabyte."""
    save_safetensors(path, tensors)
    tracemalloc.start()
    try:
        q = load(path)["w"]
        assert isinstance(q, QuantizedArray) and repr(q)
        y = q.dequantize()
        assert y.shape == q.shape and y.dtype == q.dtype
    except FileFormatError as error:
        assert path.name in str(error)
        return True
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < 1 << 20
    return False


@bases
def test_the_undamaged_file_is_not_refused(path, name):
    assert not refused(path, base(name))


@bases
def test_a_part_that_is_missing_or_of_another_type_or_size(path, name):
    tensors = base(name)
    parts = {key: part for key, part in tensors.items() if ".quant_state." not in key}
    for key, part in parts.items():
        damaged = {
            "longer": np.concatenate([part, part[:1]]),
            "shorter": part[:-1],
            "empty": part[:0],
            "dtype": part.astype(np.float64 if part.dtype == np.float32 else np.int32),
            "sign": np.nan_to_num(part.astype(np.float32)).astype(np.int8 if part.dtype == np.uint8 else np.uint8),
        }
        for what, array in damaged.items():
            assert refused(path, tensors | {key: array}), (key, what)
        assert refused(path, {k: v for k, v in tensors.items() if k != key}), key


def test_what_does_not_fit_is_named(path):
    tensors = base("nf4 double")
    key = "w.quant_state.bitsandbytes__nf4"
    for damaged, message in [
        ({k: v for k, v in tensors.items() if k != "w"}, "w is missing"),
        ({k: v for k, v in tensors.items() if k != "w.absmax"}, r"w\.absmax is missing"),
        (tensors | {"w": tensors["w"][:-1]}, "w has 255 entries of uint8; 256 of uint8 are needed"),
        (tensors | {"w.absmax": np.ones(8, np.float32)}, r"w\.absmax has 8 entries of float32; 8 of uint8"),
        (tensors | {"w.quant_map": np.sort(CODES["fp4"])}, r"w\.quant_map holds other levels"),
        (tensors | {"w.nested_quant_map": DYNAMIC_MAP[::-1]}, r"w\.nested_quant_map holds other levels"),
        (tensors | {"w.nested_absmax": np.full(1, np.nan, np.float32)}, "nested_absmax is not finite"),
        (
            with_state(tensors, state_of(tensors)[1] | {"nested_offset": float("inf")}),
            "nested_offset is inf; it is a finite number",
        ),
        (tensors | {"w.quant_state.minilora__nf4": np.ones(1, np.uint8)}, r"needs one w\.quant_state.*, and has 2"),
        (with_state(tensors, [1, 2]), f"{key} does not describe a quantized array"),
        (with_state(tensors, "nf4"), "does not describe"),
        (tensors | {key: np.ones(9, np.uint8)}, "does not describe"),
        (tensors | {key: np.full(9, 255, np.uint8)}, "does not describe"),
        (tensors | {key: np.empty(0, np.uint8)}, "does not describe"),
        (tensors | {key: np.full(50_000, ord("["), np.uint8)}, "does not describe"),
        (with_state(tensors, state_of(tensors)[1] | {"quant_type": "nf5"}), "there are nf4, fp4.*register_code"),
    ]:
        save_safetensors(path, damaged)
        with pytest.raises(FileFormatError, match=rf"x\.safetensors: .*{message}"):
            load(path)


@bases
def test_a_field_that_is_missing(path, name):
    """Only nested_quant_type has a default, "dynamic"."""
    tensors = base(name)
    _, state = state_of(tensors)
    optional = {"nested_quant_type"} if state.get("nested_quant_type") in (None, "dynamic") else set()
    for field in state:
        damaged = with_state(tensors, {k: v for k, v in state.items() if k != field})
        assert refused(path, damaged) != (field in optional), field


@bases
def test_nonsense_in_a_field(path, name):
    """Refused, but for what makes sense after all: another dtype, or another offset."""
    tensors = base(name)
    _, state = state_of(tensors)
    harmless = {"dtype": ["float16"], "nested_offset": NUMBERS}
    for field in state:
        for value in NONSENSE:
            same = type(value) is type(state[field]) and value == state[field]
            expected = not (same or (type(value), value) in [(type(v), v) for v in harmless.get(field, [])])
            assert refused(path, with_state(tensors, state | {field: value})) == expected, (field, value)


@pytest.mark.parametrize(
    "value", [10**400, [10**400], [0.5, 0.5], [0.5], [], [[]], True, "64"], ids=lambda v: str(v)[:9]
)
@pytest.mark.parametrize("name", DOUBLE)
def test_an_offset_that_is_not_a_number(path, name, value):
    tensors = base(name)
    assert refused(path, with_state(tensors, state_of(tensors)[1] | {"nested_offset": value}))


@pytest.mark.parametrize("value", [False, 0, "", [], {}], ids=repr)
@pytest.mark.parametrize("name", ["e2m1 fp8", "e2m1 dynamic"])
def test_a_kind_that_is_false(path, name, value):
    tensors = base(name)
    assert refused(path, with_state(tensors, state_of(tensors)[1] | {"nested_quant_type": value}))


def test_a_shape_of_65_dimensions(path):
    tensors = base("nf4, one block")
    assert refused(path, with_state(tensors, state_of(tensors)[1] | {"shape": [1] * 64 + [64]}))


@pytest.mark.parametrize(("name", "value"), [("nf4, one block", 10**30), ("int8", 10**30), ("int8", 10**15)])
def test_a_blocksize_far_beyond_the_array(path, name, value):
    tensors = base(name)
    refused(path, with_state(tensors, state_of(tensors)[1] | {"blocksize": value}))


def test_a_shape_without_entries(path):
    tensors = base("nf4")
    empty = {"w": tensors["w"][:0], "w.absmax": tensors["w.absmax"][:0]}
    assert refused(path, with_state(tensors, state_of(tensors)[1] | {"shape": [0, 64]}) | empty)


@given(data=st.data())
def test_damaged_bytes(tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp() / "damaged.safetensors"
    save_safetensors(path, base(data.draw(st.sampled_from(sorted(BASES)))))
    raw = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    raw = raw[: data.draw(st.integers(0, len(raw)))] if data.draw(st.booleans()) else raw
    path.write_bytes(raw)
    try:
        loaded = load(path)
    except FileFormatError as error:
        assert path.name in str(error)
    else:
        for q in loaded.values():
            with np.errstate(all="ignore"):
                assert not isinstance(q, QuantizedArray) or q.dequantize().shape == q.shape
