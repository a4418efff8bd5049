"""Arrays as pictures: where their numbers lie in memory, and what broadcasting copies. SVG text.

in_memory(x.T, "x.T")                       # the block of memory, and the array as a grid of places in it
broadcasting(np.ones((3, 1)), np.ones(4))   # both operands as they are stretched, and the sum
"""

import numpy as np

from minilora.errors import DataError
from minilora.viz.charts import BLUE, FAINT, INK, SHADES, WIDTH, document, number, text
from minilora.viz.picture import Picture

CELL, MOST = 30, 20  # pixels of a cell; cells in a row of memory
GREY = SHADES[4]


def in_memory(array: np.ndarray, title: str) -> Picture:
    """The memory that `array` is a view of, place by place; beneath it the array, each number with its place.

    Raises DataError for more than two dimensions, and for what does not fit in the picture.
    """
    grid = _grid(array)
    owner = array
    while isinstance(owner.base, np.ndarray):
        owner = owner.base
    start = owner.__array_interface__["data"][0]
    offset = (array.__array_interface__["data"][0] - start) // array.itemsize
    steps = [stride // array.itemsize for stride in np.atleast_2d(array).strides]
    places = offset + np.arange(grid.shape[0])[:, None] * steps[0] + np.arange(grid.shape[1]) * steps[1]
    memory = owner.ravel(order="K")
    if memory.size > 2 * MOST:
        raise DataError(f"in_memory draws at most {2 * MOST} numbers of memory; this block has {memory.size}")
    parts = [text(12, 16, title, bold=True), text(12, 40, f"memory: {memory.size} numbers of {array.itemsize} bytes")]
    used = set(places.ravel().tolist())
    for place, value in enumerate(memory.tolist()):
        x, y = 12 + CELL * (place % MOST), 50 + 52 * (place // MOST)
        parts += _cell(x, y, value, BLUE if place in used else FAINT)
        parts.append(text(x + CELL / 2, y + CELL + 12, str(place), "middle"))
    top = 50 + 52 * -(-memory.size // MOST) + 24
    shown = f"shape {array.shape}, strides {array.strides} bytes; below each number, its place in memory"
    parts.append(text(12, top - 8, shown))
    for (row, column), value in np.ndenumerate(grid):
        x, y = 12 + (CELL + 6) * column, top + 46 * row
        parts += _cell(x, y, value.item(), BLUE)
        parts.append(text(x + CELL / 2, y + CELL + 11, str(places[row, column]), "middle"))
    said = f"{shown}: {places.tolist()}"
    return document(f"{title} in memory", top + 46 * grid.shape[0] + 4, parts, said)


def broadcasting(a: np.ndarray, b: np.ndarray) -> Picture:
    """a + b, at most two dimensions: both stretched to the sum's shape, copies faint. Raises ValueError, as NumPy does,
    for shapes that do not fit, and DataError for what does not fit in the picture."""
    whole = a + b
    grids = [np.broadcast_to(_grid(x), _grid(whole).shape) for x in (a, b, whole)]
    rows, columns = grids[2].shape
    size = min(CELL, (WIDTH - 24 - 2 * 40) / 3 / columns)
    parts, x0 = [text(12, 16, f"{a.shape} + {b.shape} gives {whole.shape}", bold=True)], 12.0
    for grid, source, sign in zip(grids, (_grid(a), _grid(b), grids[2]), ("+", "=", ""), strict=True):
        for (row, column), value in np.ndenumerate(grid):
            own = row < source.shape[0] and column < source.shape[1]
            x, y = x0 + size * column, 28 + CELL * row
            parts += _cell(x, y, value.item(), BLUE if own else FAINT, size)
        x0 += size * columns
        parts.append(text(x0 + 20, 28 + CELL * rows / 2 + 4, sign, "middle", bold=True))
        x0 += 40
    said = "copied numbers are faint" if (a.shape, b.shape) != (whole.shape,) * 2 else "nothing is copied"
    return document(f"{a.shape} + {b.shape}", 28 + CELL * rows + 12, parts, said)


def _grid(array: np.ndarray) -> np.ndarray:
    """As two dimensions. Raises DataError where it has more, or more numbers than can be read."""
    if array.ndim > 2 or array.size > 2 * MOST * MOST or max(array.shape, default=0) > MOST - 4:
        raise DataError(
            f"an array of shape {array.shape} is too large for this picture: at most 2-D, {MOST - 4} a side"
        )
    return np.atleast_2d(array)


def _cell(x: float, y: float, value: float, colour: str, size: float = CELL) -> list[str]:
    look = f'fill="{colour}" opacity="0.35"' if colour == BLUE else f'fill="none" stroke="{colour}"'
    box = f'<rect x="{x:.1f}" y="{y}" width="{size - 2:.1f}" height="{CELL - 2}" rx="3" {look}/>'
    ink = INK if colour == BLUE else GREY
    return [box, text(x + (size - 2) / 2, y + CELL / 2 + 3, number(value), "middle", ink)]
