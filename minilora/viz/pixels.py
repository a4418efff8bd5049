"""Matrices as pictures of their entries, beside each other: the smallest black, the largest white.

    pixels({"rank 1": first, "rank 8": second}, "Fewer and more")     # arrays of two dimensions, on one scale

Each is a PNG within the SVG, of one pixel an entry: a matrix of a million entries would be too many rectangles.
"""

import base64
import struct
import zlib
from collections.abc import Mapping

import numpy as np

from minilora.errors import DataError
from minilora.viz.charts import FAINT, WIDTH, document, number, text
from minilora.viz.picture import Picture

LEFT, TOP, GAP, MOST = 16.0, 26.0, 12.0, 5  # pixels at the left, above each, between two; matrices in a row
LARGEST = 200.0  # pixels of the longest side


def pixels(
    matrices: Mapping[str, np.ndarray], title: str, span: tuple[float, float] | None = None, across: int = MOST
) -> Picture:
    """matrices: name -> (rows, columns), finite. span: the values that are black and white; the least and the largest
    of all entries unless given, what is beyond is cut off. across: how many in a row.

    Raises DataError for no matrix, another number of dimensions, an empty one, or what is not finite.
    """
    arrays = {name: np.asarray(m, np.float64) for name, m in matrices.items()}
    for name, array in arrays.items():
        if array.ndim != 2 or not array.size or not np.isfinite(array).all():
            raise DataError(
                f"pixels draws finite matrices; {name!r} has the shape {array.shape}, or an entry that is not"
            )
    if not arrays:
        raise DataError("pixels needs a matrix at least")
    low, high = span or (min(a.min() for a in arrays.values()), max(a.max() for a in arrays.values()))
    across = min(across, len(arrays))
    room = min(LARGEST, (WIDTH - 2 * LEFT - GAP * (across - 1)) / across)
    unit = room / max(max(a.shape) for a in arrays.values())
    tallest = unit * max(len(a) for a in arrays.values())
    parts = []
    for i, (name, array) in enumerate(arrays.items()):
        x, y = LEFT + i % across * (room + GAP), TOP + i // across * (tallest + TOP)
        grey = np.clip((array - low) / ((high - low) or 1), 0, 1)
        height, width = (max(1.0, unit * n) for n in array.shape)
        box = f'x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}"'
        parts += [
            text(x, y - 7, name),
            f'<image {box} preserveAspectRatio="none" style="image-rendering:pixelated" '
            f'href="data:image/png;base64,{_png(np.round(grey * 255).astype(np.uint8))}"/>',
            f'<rect {box} fill="none" stroke="{FAINT}"/>',
        ]
    rows = -(-len(arrays) // across)
    said = f"Matrices as grey pixels, {number(low)} black and {number(high)} white: {', '.join(arrays)}."
    return document(title, rows * (tallest + TOP) + 12, parts, said)


def _png(grey: np.ndarray) -> str:
    """uint8 (rows, columns) as a PNG in base64 (ISO/IEC 15948: 8 bits of grey, no filter)."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    lines = np.concatenate([np.zeros((len(grey), 1), np.uint8), grey], axis=1)  # each begins with its filter: none
    header = struct.pack(">IIBBBBB", grey.shape[1], grey.shape[0], 8, 0, 0, 0, 0)
    parts = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(lines.tobytes(), 9)) + chunk(b"IEND", b"")
    return base64.b64encode(b"\x89PNG\r\n\x1a\n" + parts).decode()
