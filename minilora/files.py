"""Model files: safetensors in and out, writes that are whole or not at all, checksums.

    save_safetensors(path, {"weight": array}, {"format": "pt"})
    tensors, metadata = load_safetensors(path)

The format (huggingface/safetensors): 8 bytes, the header's length as a little-endian integer; the header, JSON with
dtype, shape and the first and last byte of each tensor; the tensors' bytes. Nothing in it is executed.
"""

import contextlib
import hashlib
import itertools
import json
import math
import os
import stat
import tempfile
from pathlib import Path

import numpy as np

from minilora.errors import FileFormatError, MiniloraError

DTYPES = {
    "F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2", "I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "|i1",
    "U8": "|u1", "BOOL": "|b1",
}  # fmt: skip
_NAMES = {np.dtype(code): name for name, code in DTYPES.items() if name != "BF16"}
_MAX_HEADER = 100_000_000


def load_safetensors(path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Tensors by name and the file's metadata. BF16 becomes float32. Raises FileFormatError naming what is wrong."""
    path = Path(path)
    try:
        data = np.fromfile(path, np.uint8)
    except OSError as error:
        raise FileFormatError(f"{path} cannot be read: {error.strerror}") from error

    def refuse(why: str):
        raise FileFormatError(f"{path} is not a whole safetensors file: {why}")

    length = int.from_bytes(data[:8].tobytes(), "little")
    if data.size < 8 or length > min(data.size - 8, _MAX_HEADER):
        refuse(f"it has {data.size} bytes, and its header would need {length}")
    try:
        header = json.loads(data[8 : 8 + length].tobytes())
    except (ValueError, RecursionError) as error:
        refuse(f"its header is not JSON ({error})")
    if not isinstance(header, dict):
        refuse("its header is not a JSON object")
    metadata = header.pop("__metadata__", {})
    body, tensors, spans = data[8 + length :], {}, []
    for name, entry in header.items():
        try:
            dtype, shape, (start, stop) = entry["dtype"], entry["shape"], entry["data_offsets"]
        except (KeyError, TypeError, ValueError):
            refuse(f"tensor {name!r} lacks dtype, shape or data_offsets")
        if not isinstance(dtype, str) or dtype not in DTYPES:
            refuse(f"tensor {name!r} has dtype {dtype!r}; known are {', '.join(DTYPES)}")
        if not isinstance(shape, list) or not all(type(n) is int and n >= 0 for n in [*shape, start, stop]):
            refuse(f"tensor {name!r} has shape {shape!r} and offsets {start!r} to {stop!r}")
        kind = np.dtype(DTYPES[dtype])
        if stop - start != math.prod(shape) * kind.itemsize or stop > body.size:
            refuse(f"tensor {name!r} {dtype}{shape} at bytes {start} to {stop} of {body.size} does not fit")
        spans.append((start, stop, name))
        array = np.frombuffer(bytearray(body[start:stop]), kind).reshape(shape)
        if dtype == "BF16":  # the upper half of a float32
            array = (array.astype(np.uint32) << 16).view(np.float32)
        tensors[name] = array
    spans.sort()
    for (_, stop, a), (start, _, b) in itertools.pairwise(spans):
        if start < stop:
            refuse(f"tensors {a!r} and {b!r} overlap")
    return tensors, metadata if isinstance(metadata, dict) else {}


def save_safetensors(path, tensors: dict[str, np.ndarray], metadata: dict[str, str] | None = None):
    """Write tensors (sorted by name), atomically. Raises FileFormatError for a dtype that the format lacks."""
    header, parts, offset = ({"__metadata__": metadata} if metadata else {}), [], 0
    for name, array in sorted(tensors.items()):
        array = np.ascontiguousarray(array).reshape(array.shape)
        if array.dtype not in _NAMES:
            raise FileFormatError(f"{name!r} is {array.dtype}; safetensors has {', '.join(map(str, _NAMES))}")
        header[name] = {
            "dtype": _NAMES[array.dtype],
            "shape": list(array.shape),
            "data_offsets": [offset, offset + array.nbytes],
        }
        parts.append(array.tobytes())
        offset += array.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    atomic_write(path, b"".join([len(text).to_bytes(8, "little"), text, *parts]))


def atomic_write(path, data: bytes | str):
    """Write a file whole or not at all: aside, to the disk (fsync), then renamed over the old one.

    Raises MiniloraError where that fails (a full disk, no permission); the old file is then still there.
    """
    path = Path(path)
    data = data.encode() if isinstance(data, str) else data
    aside = None
    try:
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=path.name + ".", suffix=".part", delete=False) as file:
            aside = file.name
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(aside, _mode(path))  # the temporary file is its owner's alone
        os.replace(aside, path)
    except BaseException as error:
        if aside is not None:
            with contextlib.suppress(OSError):
                os.unlink(aside)
        if isinstance(error, OSError):
            raise MiniloraError(
                f"{path} could not be written: {error.strerror}; what was there is unchanged"
            ) from error
        raise
    _sync_folder(path.parent)


def _mode(path: Path) -> int:
    """The permissions of the file that is replaced, or those that a new file gets."""
    if path.exists():
        return stat.S_IMODE(path.stat().st_mode)
    mask = os.umask(0)
    os.umask(mask)
    return 0o666 & ~mask


def _sync_folder(folder: Path):
    """Make the rename itself durable, where folders can be opened and synced (not on Windows)."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def sha256(path) -> str:
    """The file's SHA-256, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
