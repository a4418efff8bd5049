"""Quantized arrays in safetensors files, in the layout of bitsandbytes' Linear4bit, both ways.

    save("layer.safetensors", {"weight": q, "bias": b})
    load("layer.safetensors")["weight"] == q

One QuantizedArray `weight` becomes

    weight                                  (ceil(n/2), 1) uint8, the packed codes; (n, 1) int8 for int8
    weight.absmax                           float32, or the 8-bit codes of a double-quantized one
    weight.quant_map                        the code's levels, float32
    weight.nested_absmax, .nested_quant_map absmax2 and the levels of the 8 bits, where double quantized
    weight.quant_state.bitsandbytes__nf4    JSON as bytes: code, blocksize, shape, dtype, offset

What bitsandbytes does not have (other codes, other 8 bits, other blocksizes) has the same layout under
quant_state.minilora__<code>, so that it is not taken for what it is not.
"""

import json
import math

import numpy as np

from minilora.errors import FileFormatError, QuantizationError
from minilora.files import load_safetensors, save_safetensors
from minilora.quant import double
from minilora.quant.array import QuantizedArray
from minilora.quant.codebooks import CODES

_STATE = ".quant_state."
_DTYPES = ("float16", "bfloat16", "float32", "float64")


def save(path, arrays: dict[str, QuantizedArray | np.ndarray]):
    """Write quantized and plain arrays to one file, atomically. Raises FileFormatError, MiniloraError."""
    tensors = {}
    for name, array in arrays.items():
        tensors |= to_tensors(name, array) if isinstance(array, QuantizedArray) else {name: array}
    save_safetensors(path, tensors, {"format": "pt"})


def load(path) -> dict[str, QuantizedArray | np.ndarray]:
    """The arrays of a file by name, those with a quant_state as QuantizedArray. Raises FileFormatError for a file that
    is damaged or whose parts do not fit together."""
    tensors, _ = load_safetensors(path)
    names = [key.partition(_STATE)[0] for key in tensors if _STATE in key]
    try:
        quantized = {name: from_tensors(name, tensors) for name in names}
    except QuantizationError as error:
        raise FileFormatError(f"{path}: {error}") from error
    parts = tuple(f"{name}." for name in names)
    return quantized | {k: v for k, v in tensors.items() if k not in quantized and not k.startswith(parts)}


def to_tensors(name: str, q: QuantizedArray) -> dict[str, np.ndarray]:
    """The plain arrays that stand for `q` in a file, by their names there."""
    state = {"quant_type": q.code, "blocksize": q.blocksize, "dtype": np.dtype(q.dtype).name, "shape": list(q.shape)}
    tensors = {name: q.packed[:, None]}
    if q.code != "int8":
        tensors[f"{name}.quant_map"] = CODES[q.code]
    if q.double_quant is None:
        tensors[f"{name}.absmax"] = q.absmax
    else:
        state |= {"nested_blocksize": double.BLOCKSIZE, "nested_dtype": "float32", "nested_offset": float(q.offset)}
        tensors |= {f"{name}.absmax": q.absmax_codes, f"{name}.nested_absmax": q.absmax2}
        if q.double_quant in double.LEVELS:
            tensors[f"{name}.nested_quant_map"] = double.LEVELS[q.double_quant]
    theirs = q.code in ("nf4", "fp4") and q.double_quant in (None, "dynamic") and q.blocksize >= 32
    if not theirs or q.blocksize & (q.blocksize - 1):
        state["nested_quant_type"] = q.double_quant
        tensors[f"{name}{_STATE}minilora__{q.code}"] = _bytes(state)
    else:
        tensors[f"{name}{_STATE}bitsandbytes__{q.code}"] = _bytes(state)
    return tensors


def from_tensors(name: str, tensors: dict[str, np.ndarray]) -> QuantizedArray:
    """The inverse. Raises QuantizationError, saying what does not fit."""
    keys = [key for key in tensors if key.startswith(name + _STATE)]
    if len(keys) != 1:
        raise QuantizationError(f"{name!r} needs one {name}{_STATE}..., and has {len(keys)}")
    try:
        state = json.loads(tensors[keys[0]].tobytes())
        code, blocksize, shape = state["quant_type"], state["blocksize"], tuple(state["shape"])
        nested = "dynamic" if "nested_offset" in state else None
        nested = state.get("nested_quant_type", nested)
        numbers_fit = type(blocksize) is int and blocksize > 0 and all(type(n) is int and n >= 0 for n in shape)
        offset = np.float32(state["nested_offset"]) if nested else None
        fits = numbers_fit and state["dtype"] in _DTYPES and (code == "int8" or code in CODES)
        if not fits or (nested and (nested not in double.KINDS or state["nested_blocksize"] != double.BLOCKSIZE)):
            raise ValueError(f"{state}")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise QuantizationError(
            f"{keys[0]} is not a description of a quantized array that we know ({error!r}); codes are "
            f"{', '.join(CODES)} and int8 (add your own with register_code first)"
        ) from error
    size = math.prod(shape)
    blocks = -(-size // blocksize)
    groups = -(-blocks // double.BLOCKSIZE)
    int8, byte = np.dtype(np.int8), np.dtype(np.uint8)
    packed = _part(tensors, name, int8 if code == "int8" else byte, size if code == "int8" else -(-size // 2))
    if code != "int8":
        _same_levels(tensors, f"{name}.quant_map", CODES[code])
    dtype = np.dtype(state["dtype"]) if state["dtype"] != "bfloat16" else _bfloat16()
    if nested is None:
        absmax = _part(tensors, f"{name}.absmax", np.dtype(np.float32), blocks)
        return QuantizedArray(code, packed, shape, dtype, blocksize, absmax)
    codes = _part(tensors, f"{name}.absmax", int8 if nested == "int8" else byte, blocks)
    absmax2 = _part(tensors, f"{name}.nested_absmax", np.dtype(np.float32), groups)
    if not (np.isfinite(absmax2).all() and np.isfinite(offset)):
        raise QuantizationError(f"{name}.nested_absmax or its offset is not finite")
    if nested in double.LEVELS:
        _same_levels(tensors, f"{name}.nested_quant_map", double.LEVELS[nested])
    return QuantizedArray(code, packed, shape, dtype, blocksize, None, nested, codes, absmax2, offset)


def _bytes(state: dict) -> np.ndarray:
    return np.frombuffer(json.dumps(state).encode(), np.uint8)


def _part(tensors, key: str, dtype: np.dtype, size: int) -> np.ndarray:
    array = tensors.get(key)
    if array is None:
        raise QuantizationError(f"{key} is missing")
    if array.dtype != dtype or array.size != size:
        raise QuantizationError(f"{key} has {array.size} entries of {array.dtype}; {size} of {dtype} are needed")
    return array.ravel()


def _same_levels(tensors, key: str, levels: np.ndarray):
    found = _part(tensors, key, levels.dtype, levels.size)
    if not np.array_equal(found, levels, equal_nan=True):
        raise QuantizationError(f"{key} holds other levels than the code of that name: {found}")


def _bfloat16() -> np.dtype:
    try:
        import ml_dtypes
    except ImportError:
        raise QuantizationError("this array is of bfloat16; pip install ml-dtypes") from None
    return np.dtype(ml_dtypes.bfloat16)
