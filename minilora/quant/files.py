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

from minilora.backend import to_numpy
from minilora.errors import FileFormatError, QuantizationError
from minilora.files import load_safetensors, save_safetensors
from minilora.quant import double
from minilora.quant.array import QuantizedArray
from minilora.quant.codebooks import CODES

_STATE = ".quant_state."
_PARTS = (".absmax", ".quant_map", ".nested_absmax", ".nested_quant_map")
_DTYPES = ("float16", "bfloat16", "float32", "float64")
_MAX_DIMENSIONS = 32  # NumPy 1's limit; a weight has two


def save(path, arrays: dict[str, QuantizedArray | np.ndarray]):
    """Write quantized and plain arrays to one file, atomically. Raises FileFormatError for names that stand for two
    arrays, and MiniloraError where the file cannot be written."""
    tensors = {}
    for name, array in arrays.items():
        parts = to_tensors(name, array.to("cpu")) if isinstance(array, QuantizedArray) else {name: to_numpy(array)}
        if twice := sorted(parts.keys() & tensors.keys()):
            raise FileFormatError(
                f"{twice[0]} is an array of its own and a part of a quantized one; rename one of them"
            )
        tensors |= parts
    save_safetensors(path, tensors, {"format": "pt"})


def load(path) -> dict[str, QuantizedArray | np.ndarray]:
    """The arrays of a file by name, those with a quant_state as QuantizedArray. Raises FileFormatError for a file that
    is damaged or whose parts do not fit together."""
    try:
        return gather(load_safetensors(path)[0])
    except QuantizationError as error:
        raise FileFormatError(f"{path}: {error}") from error


def gather(tensors: dict[str, np.ndarray], dtype=None) -> dict[str, QuantizedArray | np.ndarray]:
    """A file's tensors with those that have a quant_state put together. dtype: what these are to dequantize to, where
    it is not what the file says. Raises QuantizationError."""
    arrays = dict(tensors)
    for name in {key.partition(_STATE)[0] for key in tensors if _STATE in key}:
        arrays[name] = from_tensors(name, tensors, dtype)
        for key in tensors:
            if key.startswith(name + _STATE) or (key.startswith(name) and key[len(name) :] in _PARTS):
                del arrays[key]
    return arrays


def to_tensors(name: str, q: QuantizedArray) -> dict[str, np.ndarray]:
    """The plain arrays that stand for `q` in a file, by their names there."""
    dtype = np.dtype(q.dtype).name
    state = {"quant_type": q.code, "blocksize": q.blocksize, "dtype": dtype, "shape": list(q.shape)}
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
    theirs = q.code in ("nf4", "fp4") and q.double_quant in (None, "dynamic") and dtype != "float64"
    owner = "bitsandbytes" if theirs and q.blocksize in [2**i for i in range(5, 13)] else "minilora"
    if owner == "minilora":
        state["nested_quant_type"] = q.double_quant
    tensors[f"{name}{_STATE}{owner}__{q.code}"] = np.frombuffer(json.dumps(state).encode(), np.uint8)
    return tensors


def from_tensors(name: str, tensors: dict[str, np.ndarray], dtype=None) -> QuantizedArray:
    """The inverse. Raises QuantizationError, saying what does not fit. dtype: see gather."""
    keys = [key for key in tensors if key.startswith(name + _STATE)]
    if len(keys) != 1:
        raise QuantizationError(f"{name!r} needs one {name}{_STATE}..., and has {len(keys)}")
    state = _read_state(keys[0], tensors[keys[0]].tobytes())
    code, blocksize, shape, nested = (state[k] for k in ("quant_type", "blocksize", "shape", "nested_quant_type"))
    size = math.prod(shape)
    blocks = -(-size // blocksize)
    packed = _part(tensors, name, np.int8 if code == "int8" else np.uint8, size if code == "int8" else -(-size // 2))
    if code != "int8":
        _same_levels(tensors, f"{name}.quant_map", CODES[code])
    if dtype is None:
        dtype = _bfloat16() if state["dtype"] == "bfloat16" else state["dtype"]
    dtype = np.dtype(dtype)
    if nested is None:
        absmax = _part(tensors, f"{name}.absmax", np.float32, blocks)
        return QuantizedArray(code, packed, tuple(shape), dtype, blocksize, absmax)
    codes = _part(tensors, f"{name}.absmax", np.int8 if nested == "int8" else np.uint8, blocks)
    absmax2 = _part(tensors, f"{name}.nested_absmax", np.float32, -(-blocks // double.BLOCKSIZE))
    if not np.isfinite(absmax2).all():
        raise QuantizationError(f"{name}.nested_absmax is not finite")
    if nested in double.LEVELS:
        _same_levels(tensors, f"{name}.nested_quant_map", double.LEVELS[nested])
    offset = np.float32(state["nested_offset"])
    return QuantizedArray(code, packed, tuple(shape), dtype, blocksize, None, nested, codes, absmax2, offset)


def _read_state(key: str, text: bytes) -> dict:
    """The fields of a quant_state, each one checked; nested_quant_type is None where absmax is not double quantized."""

    def refuse(why: str):
        raise QuantizationError(f"{key} does not describe a quantized array that we know: {why}")

    try:
        state = json.loads(text)
    except (ValueError, RecursionError) as error:
        refuse(f"it is not JSON ({error})")
    if not isinstance(state, dict):
        refuse("it is not a JSON object")
    code, shape, blocksize = (state.get(name) for name in ("quant_type", "shape", "blocksize"))
    if code not in [*CODES, "int8"]:
        refuse(f"quant_type is {code!r}; there are {', '.join(CODES)} and int8. Add your own with register_code first")
    if not isinstance(shape, list) or len(shape) > _MAX_DIMENSIONS or not all(type(n) is int and n > 0 for n in shape):
        refuse(f"shape is {str(shape)[:80]}; it is a list of at most {_MAX_DIMENSIONS} positive integers")
    widths = (
        range(1, math.prod(shape) + 1) if code == "int8" else [*(2**i for i in range(4, 13)), shape[-1] if shape else 1]
    )
    if type(blocksize) is not int or blocksize not in widths:
        refuse(f"blocksize is {str(blocksize)[:80]}, which {code} does not have at shape {shape}")
    if state.get("dtype") not in _DTYPES:
        refuse(f"dtype is {state.get('dtype')!r}; there are {', '.join(_DTYPES)}")
    nested = state.setdefault("nested_quant_type", "dynamic" if "nested_offset" in state else None)
    if nested is None:
        return state
    if nested not in double.KINDS:
        refuse(f"nested_quant_type is {nested!r}; there are {', '.join(double.KINDS)}")
    if (state.get("nested_blocksize"), state.get("nested_dtype")) != (double.BLOCKSIZE, "float32"):
        refuse(f"absmax is double quantized in blocks of {double.BLOCKSIZE} of float32 only")
    offset = state.get("nested_offset")
    if type(offset) not in (int, float) or not abs(offset) <= float(np.finfo(np.float32).max):
        refuse(f"nested_offset is {str(offset)[:80]}; it is a finite number")
    return state


def _part(tensors, key: str, dtype, size: int) -> np.ndarray:
    array = tensors.get(key)
    if array is None:
        raise QuantizationError(f"{key} is missing")
    if array.dtype != dtype or array.size != size:
        needed = f"{size} of {np.dtype(dtype)} are needed"
        raise QuantizationError(f"{key} has {array.size} entries of {array.dtype}; {needed}")
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
