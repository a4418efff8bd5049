"""Blocks of quantized numbers as a heat map: a row for each block, with its absmax and what it makes of its codes.

    block_map(q.dequantize().reshape(-1, 64) / q.absmax[:, None], q.absmax, "Blocks of 64")

A cell's strength is the size of the level that its code stands for: in a block with an outlier, the rest is pale.
"""

import numpy as np

from minilora.errors import DataError
from minilora.viz.charts import BLUE, FAINT, INK, ORANGE, RIGHT, WIDTH, document, number, text
from minilora.viz.picture import Picture

LEFT, MAP, TOP = 40, 380, 40  # pixels: the margin, the map's width, and what is above it
_GREY = "var(--grey,#718096)"


def block_map(values, absmax, title: str, error=None) -> Picture:
    """A row is a block. Each cell is a number's level in [-1, 1], blue where positive and orange where negative, the
    stronger the larger; the largest of a row is framed. To the right a bar for its absmax; where error is given, a bar
    for that; and how many different values its numbers have taken.

    values: (blocks, size), what codes stand for; NaN where a last block has no more. absmax, error: (blocks,), not
    negative; their bars are each to one scale. Raises DataError where these do not fit.
    """
    values, absmax = np.asarray(values, float), np.asarray(absmax, float)
    columns = {"absmax": absmax} | ({} if error is None else {"error": np.asarray(error, float)})
    fits = values.ndim == 2 and values.size and all(c.shape == values.shape[:1] for c in columns.values())
    if not fits or not all((np.isfinite(c) & (c >= 0)).all() for c in columns.values()):
        raise DataError(
            f"block_map takes values (blocks, size) and for each block an absmax and an error, finite and not "
            f"negative; got shapes {values.shape}, {', '.join(f'{name} {c.shape}' for name, c in columns.items())}"
        )
    blocks, size = values.shape
    wide, high = MAP / size, float(np.clip(440 / blocks, 3, 20))
    parts = [text(LEFT, 16, title, bold=True), text(LEFT, TOP - 6, f"codes of {size} numbers in each block")]
    for row, block in enumerate(values):
        parts += _row(block, row, TOP + row * high, wide, high)
    bottom = TOP + blocks * high
    parts.append(f'<rect x="{LEFT}" y="{TOP}" width="{MAP}" height="{bottom - TOP:.1f}" fill="none" stroke="{FAINT}"/>')
    every = max(1, int(np.ceil(13 / high)))  # rows whose numbers have room
    x, room = LEFT + MAP + 12, WIDTH - RIGHT - LEFT - MAP - 12 - 62
    for name, column in columns.items():
        width = room / len(columns) - 46
        parts.append(text(x, TOP - 6, name))
        parts += _bars(column, x, width, high, every, _GREY if name == "absmax" else ORANGE, name)
        x += width + 46
    parts.append(text(x, TOP - 6, "codes used"))
    used = [int(np.unique(block[np.isfinite(block)]).size) for block in values]
    parts += [text(x, _middle(row, high), str(used[row])) for row in range(0, blocks, every)]
    parts += _legend(bottom + 12)
    low, top = int(absmax.argmin()), int(absmax.argmax())
    said = (
        f"{blocks} blocks of {size}. Block {top} has the largest absmax, {number(absmax[top].round(4))}, and "
        f"{used[top]} different values; block {low} the smallest, {number(absmax[low].round(4))}, and {used[low]}."
    )
    return document(f"Blocks: {title}", bottom + 36, parts, said)


def _middle(row: int, high: float) -> float:
    return TOP + row * high + max(high / 2 + 4, 9)


def _row(block: np.ndarray, row: int, y: float, wide: float, high: float) -> list[str]:
    parts = []
    for i, value in enumerate(block):
        if np.isfinite(value) and abs(value) >= 0.005:  # what is paler is not seen
            parts.append(
                f'<rect x="{LEFT + i * wide:.2f}" y="{y:.1f}" width="{wide:.2f}" height="{high:.1f}" '
                f'fill="{BLUE if value > 0 else ORANGE}" opacity="{min(abs(value), 1):.2f}" class="cell">'
                f"<title>block {row}, number {i}: {value:.3f}</title></rect>"
            )
    if np.isfinite(block).any():
        i = int(np.nanargmax(np.abs(block)))
        parts.append(
            f'<rect x="{LEFT + i * wide:.2f}" y="{y:.1f}" width="{wide:.2f}" height="{high:.1f}" fill="none" '
            f'stroke="{INK}" class="largest"/>'
        )
    return parts


def _bars(column: np.ndarray, x: float, width: float, high: float, every: int, colour: str, name: str) -> list[str]:
    parts, most = [], column.max() or 1
    for row, size in enumerate(column):
        long, y = size / most * width, TOP + row * high
        parts.append(
            f'<rect x="{x:.1f}" y="{y + high * 0.15:.1f}" width="{long:.1f}" height="{high * 0.7:.1f}" fill="{colour}">'
            f"<title>block {row}: {name} {size:.4g}</title></rect>"
        )
        if row % every == 0:
            parts.append(text(x + long + 4, _middle(row, high), f"{size:.2g}"))
    return parts


def _legend(y: float) -> list[str]:
    parts, x = [], LEFT + 24.0
    for i, value in enumerate(np.linspace(-1, 1, 21)):
        colour = BLUE if value > 0 else ORANGE
        parts.append(
            f'<rect x="{x + 9 * i:.1f}" y="{y:.1f}" width="9" height="10" fill="{colour}" opacity="{abs(value):.2f}"/>'
        )
    parts += [text(x - 5, y + 9, "−1", "end"), text(x + 194, y + 9, "1 (of absmax)")]
    frame = f'<rect x="{x + 290:.1f}" y="{y:.1f}" width="10" height="10" fill="none" stroke="{INK}"/>'
    return [*parts, frame, text(x + 305, y + 9, "the largest of its block")]
