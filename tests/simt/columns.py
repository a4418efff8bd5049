"""Running one instruction on columns of numbers, and drawing them."""

import numpy as np
from hypothesis import strategies as st

from minilora.simt import Instruction
from minilora.simt.instructions import TYPES, operation


def numbers(type):
    width = int(type[1:])
    low, high = (-(1 << width - 1), (1 << width - 1) - 1) if type[0] == "s" else (0, (1 << width) - 1)
    special = [
        n for n in (0, 1, 2, 3, 7, 8, 31, 32, 33, -1, -2, low, low + 1, high, high - 1, high // 2) if low <= n <= high
    ]
    powers = st.builds(lambda i, d: min(max((1 << i) + d, low), high), st.integers(0, width - 1), st.integers(-1, 1))
    return st.integers(low, high) | st.sampled_from(special) | powers


def rows(*types):
    return st.lists(st.tuples(*(st.booleans() if t == "pred" else numbers(t) for t in types)), min_size=1, max_size=8)


def run(opcode, cases, *immediates, targets="%d"):
    """The instruction on columns of numbers (of floats: of bits); a list of numbers (bits)."""
    names = ("%a", "%b", "%c", "%e")[: len(cases[0])]
    what = operation(Instruction(opcode, (targets, *names, *immediates)))
    assert len(what.sources) == len(names)
    columns = []
    for column, type in zip(zip(*cases, strict=True), what.sources, strict=True):
        dtype = np.dtype(TYPES[type])
        bits = [int(n) & (1 << 8 * dtype.itemsize) - 1 for n in column]
        columns.append(np.array(bits, bool if type == "pred" else f"u{dtype.itemsize}").view(dtype))
    kept = [c.copy() for c in columns]
    for column in columns:
        column.flags.writeable = False
    with np.errstate(all="ignore"):
        results = what.compute(*columns)
    assert all(np.array_equal(c.view(np.uint8), k.view(np.uint8)) for c, k in zip(columns, kept, strict=True))
    for result in results if isinstance(results, tuple) else (results,):
        assert result.dtype == TYPES[what.result] and result.shape == (len(cases),)
    if isinstance(results, tuple):
        return [tuple(bool(x) for x in pair) for pair in zip(*results, strict=True)]
    return [int(x) for x in (results.view(f"u{results.itemsize}") if results.dtype.kind == "f" else results)]


def clamp(x, type):
    width = int(type[1:])
    return min(max(x, -(1 << width - 1)), (1 << width - 1) - 1) if type[0] == "s" else min(max(x, 0), (1 << width) - 1)
