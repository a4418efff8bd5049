"""What an instruction takes and gives: PTX types, and how the tables of instructions write them.

A table has one row for each instruction, its name without the type:

    "mul.wide": ("W", "T T", function)        mul.wide.s32: two s32 give one s64

T is the type at the instruction's end, W the same at twice its width; any other word is a PTX type itself. The function
takes arrays with one element a thread and gives a new one; it must not change what it is given.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

TYPES = {
    **{f"u{8 * n}": t for n, t in ((1, np.uint8), (2, np.uint16), (4, np.uint32), (8, np.uint64))},
    **{f"s{8 * n}": t for n, t in ((1, np.int8), (2, np.int16), (4, np.int32), (8, np.int64))},
    **{f"b{8 * n}": t for n, t in ((1, np.uint8), (2, np.uint16), (4, np.uint32), (8, np.uint64))},
    **{"f16": np.float16, "f32": np.float32, "f64": np.float64},
    **{"bf16": np.uint16, "f16x2": np.uint32, "bf16x2": np.uint32, "u16x2": np.uint32, "s16x2": np.uint32},
    "pred": np.bool_,
}
FLOATS = ("f16", "bf16", "f32", "f64", "f16x2", "bf16x2")


@dataclass(frozen=True)
class Operation:
    """compute(*arrays of `sources`) -> array of `result`; with a second destination ("%p1|%p2"), a pair of arrays."""

    result: str
    sources: tuple[str, ...]
    compute: Callable


def from_row(row: tuple[str, str, Callable], type: str) -> Operation:
    """The row of a table for an instruction that ends in `type`."""
    result, sources, compute = row
    meaning = {"T": type, "W": f"{type[0]}{2 * int(type[1:])}"} if type[1:].isdigit() else {"T": type}
    return Operation(meaning.get(result, result), tuple(meaning.get(s, s) for s in sources.split()), compute)
