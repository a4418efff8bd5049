"""GGUF, llama.cpp's model file, versions 2 and 3: metadata, and tensors dequantized to float32.

    metadata, tensors = read_gguf("model.gguf")      # tensors[name]() -> float32 array, read when called

Every length is held against the file's size before anything is allocated, so that a damaged file gives an error and
nothing else. Formats (ggml): blocks of 32 values; Q8_0 d·q; Q4_0 d·(q - 8); Q4_1 d·q + m, with d, m float16 and the 16
low halves of the bytes before the 16 high ones.
"""

import math
import struct
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

from minilora.errors import FileFormatError
from minilora.files import atomic_write

_SCALARS = {
    0: "<u1",
    1: "<i1",
    2: "<u2",
    3: "<i2",
    4: "<u4",
    5: "<i4",
    6: "<f4",
    7: "?",
    10: "<u8",
    11: "<i8",
    12: "<f8",
}
_STRING, _ARRAY = 8, 9


def _q8_0(raw: np.ndarray) -> np.ndarray:
    blocks = raw.reshape(-1, 34)
    return blocks[:, :2].copy().view("<f2").astype(np.float32) * blocks[:, 2:].view(np.int8)


def _halves(packed: np.ndarray) -> np.ndarray:
    return np.concatenate([packed & 15, packed >> 4], axis=1).astype(np.float32)


def _q4_0(raw: np.ndarray) -> np.ndarray:
    blocks = raw.reshape(-1, 18)
    return blocks[:, :2].copy().view("<f2").astype(np.float32) * (_halves(blocks[:, 2:]) - np.float32(8))


def _q4_1(raw: np.ndarray) -> np.ndarray:
    blocks = raw.reshape(-1, 20)
    scale = blocks[:, :4].copy().view("<f2").astype(np.float32)  # d, m
    return _halves(blocks[:, 4:]) * scale[:, :1] + scale[:, 1:]


# number -> (name, values a block, bytes a block, dequantize)
TENSOR_TYPES = {
    0: ("F32", 1, 4, lambda raw: raw.view("<f4").copy()),
    1: ("F16", 1, 2, lambda raw: raw.view("<f2").astype(np.float32)),
    30: ("BF16", 1, 2, lambda raw: (raw.view("<u2").astype(np.uint32) << 16).view(np.float32)),
    2: ("Q4_0", 32, 18, _q4_0),
    3: ("Q4_1", 32, 20, _q4_1),
    8: ("Q8_0", 32, 34, _q8_0),
}


class _Reader:
    """Takes values from the front of the file's bytes, and refuses to go past their end."""

    def __init__(self, path: Path, data: np.ndarray):
        self.path, self.data, self.at = path, data, 0

    def refuse(self, why: str):
        raise FileFormatError(f"{self.path} is not a whole GGUF file: {why} (at byte {self.at} of {self.data.size})")

    def take(self, size: int) -> np.ndarray:
        if size > self.data.size - self.at:
            self.refuse(f"{size} more bytes were expected")
        self.at += size
        return self.data[self.at - size : self.at]

    def number(self, kind: str):
        dtype = np.dtype(kind)
        return self.take(dtype.itemsize).view(dtype)[0].item() if kind != "?" else bool(self.take(1)[0])

    def string(self) -> str:
        raw = self.take(self.number("<u8")).tobytes()
        return raw.decode("utf-8", errors="replace")

    def value(self, kind: int, depth: int = 0):
        if kind in _SCALARS:
            return self.number(_SCALARS[kind])
        if kind == _STRING:
            return self.string()
        if kind != _ARRAY or depth > 2:
            self.refuse(f"metadata of unknown type {kind}")
        inner, count = self.number("<u4"), self.number("<u8")
        if inner in _SCALARS:
            dtype = np.dtype(_SCALARS[inner])
            return self.take(count * dtype.itemsize).view(dtype).tolist()
        if count > self.data.size - self.at:
            self.refuse(f"an array of {count} values cannot fit")
        return [self.value(inner, depth + 1) for _ in range(count)]


def read_gguf(path) -> tuple[dict, dict[str, Callable[[], np.ndarray]]]:
    """The metadata by key, and for each tensor a function that reads it as float32, in NumPy's axis order.

    Raises FileFormatError naming what is wrong and where.
    """
    path = Path(path)
    try:
        data = np.memmap(path, np.uint8, "r") if path.stat().st_size else np.empty(0, np.uint8)
    except OSError as error:
        raise FileFormatError(f"{path} cannot be read: {error.strerror}") from error
    reader = _Reader(path, data)
    if reader.take(4).tobytes() != b"GGUF":
        reader.refuse("it does not begin with 'GGUF'")
    version = reader.number("<u4")
    if version not in (2, 3):
        reader.refuse(f"version {version}; 2 and 3 can be read")
    tensor_count, key_count = reader.number("<u8"), reader.number("<u8")
    for count, least, what in ((tensor_count, 24, "tensors"), (key_count, 13, "metadata entries")):
        if count > data.size // least:
            reader.refuse(f"it claims {count} {what}, more than its size allows")
    metadata = {}
    for _ in range(key_count):
        key = reader.string()
        metadata[key] = reader.value(reader.number("<u4"))
    infos = [_tensor_info(reader) for _ in range(tensor_count)]
    alignment = metadata.get("general.alignment", 32)
    if type(alignment) is not int or not 0 < alignment <= 1 << 16:
        reader.refuse(f"general.alignment is {alignment!r}")
    start = -(-reader.at // alignment) * alignment
    tensors = {}
    for name, shape, kind, offset in infos:
        label, values, size, dequantize = TENSOR_TYPES[kind]
        n = math.prod(shape)
        if shape[-1] % values:
            reader.refuse(f"tensor {name!r}: rows of {shape[-1]} values do not divide into {label} blocks of {values}")
        nbytes = n // values * size
        if start + offset + nbytes > data.size:
            reader.refuse(f"tensor {name!r} needs bytes {start + offset} to {start + offset + nbytes}")
        raw = data[start + offset : start + offset + nbytes]
        tensors[name] = partial(_load, raw, dequantize, shape)
    return metadata, tensors


def _load(raw, dequantize, shape) -> np.ndarray:
    return dequantize(np.ascontiguousarray(raw)).reshape(shape)


def _tensor_info(reader: _Reader) -> tuple[str, tuple[int, ...], int, int]:
    name, dims = reader.string(), reader.number("<u4")
    if not 1 <= dims <= 4:
        reader.refuse(f"tensor {name!r} has {dims} dimensions")
    shape = tuple(reader.number("<u8") for _ in range(dims))[::-1]  # ggml counts from the fastest axis
    kind, offset = reader.number("<u4"), reader.number("<u8")
    if kind not in TENSOR_TYPES:
        known = ", ".join(name for name, *_ in TENSOR_TYPES.values())
        reader.refuse(f"tensor {name!r} is of type {kind}; {known} can be read")
    if min(shape) < 1 or math.prod(shape) > 64 * reader.data.size:
        reader.refuse(f"tensor {name!r} has shape {shape}")
    return name, shape, kind, offset


def write_gguf(path, metadata: dict[str, int | float | str | list[str]], tensors: dict[str, np.ndarray]):
    """A version 3 file of float32 tensors; enough to exchange small models and to test the reader."""

    def string(s: str) -> bytes:
        raw = s.encode()
        return struct.pack("<Q", len(raw)) + raw

    def value(v) -> bytes:
        if isinstance(v, str):
            return struct.pack("<I", _STRING) + string(v)
        if isinstance(v, list):
            return struct.pack("<IIQ", _ARRAY, _STRING, len(v)) + b"".join(map(string, v))
        return struct.pack("<If", 6, v) if isinstance(v, float) else struct.pack("<II", 4, v)

    head = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(metadata))
    head += b"".join(string(k) + value(v) for k, v in metadata.items())
    offset, body = 0, b""
    for name, array in tensors.items():
        raw = np.ascontiguousarray(array, "<f4").tobytes()
        head += string(name) + struct.pack("<I", array.ndim)
        head += struct.pack(f"<{array.ndim}Q", *array.shape[::-1]) + struct.pack("<IQ", 0, offset)
        body += raw + b"\0" * (-len(raw) % 32)
        offset = len(body)
    atomic_write(path, head + b"\0" * (-len(head) % 32) + body)
