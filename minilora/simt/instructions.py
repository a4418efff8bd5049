"""What each instruction computes, as a function of arrays with one element a thread.

    what = operation(instruction)            add.ftz.f32 %f3, %f1, %f2
    what.sources, what.result                ("f32", "f32"), "f32"
    what.compute(a, b)                       float32 array

The tables are in integers.py, bits.py, arithmetic.py (floats), comparisons.py, conversions.py. Instructions that need
more than their operands (memory, other lanes, control) are the machine's own. The ISA that is meant throughout is
NVIDIA, "Parallel Thread Execution ISA", version 8.8.
"""

import numpy as np

from minilora.errors import SimulationError
from minilora.simt import arithmetic, comparisons
from minilora.simt.bits import BITS, PERMUTE_MODES, look_up, permute
from minilora.simt.conversions import convert
from minilora.simt.integers import DOT_PRODUCTS, INTEGERS, on_halves
from minilora.simt.signature import FLOATS, TYPES, Operation, from_row

__all__ = ["TYPES", "Operation", "operation"]


def operation(instruction) -> Operation:
    """Of an instruction (ptx.Instruction). Raises SimulationError, naming it, where it is not known."""
    found = _find(instruction.name, list(instruction.modifiers), instruction.operands)
    if found is None:
        raise SimulationError(f"the instruction {instruction.opcode} is not supported")
    return found


def _find(name: str, modifiers: list[str], operands: tuple[str, ...]) -> Operation | None:
    *rest, type = modifiers or [""]
    if name == "cvt":
        return convert(modifiers)
    if name == "setp":
        return comparisons.set_predicate(modifiers, operands)
    if name == "set":
        return comparisons.set_value(modifiers)
    if name == "selp":
        return Operation(type, (type, type, "pred"), lambda a, b, c: np.where(c, a, b))
    if name == "slct":
        return comparisons.select_by_sign(modifiers)
    if name == "testp":
        return comparisons.float_property(modifiers)
    if name == "prmt":
        mode = type if type in PERMUTE_MODES else ""
        return Operation("b32", ("b32", "b32", "b32"), permute(mode))
    if name == "lop3" and modifiers == ["b32"]:
        return Operation("b32", ("b32", "b32", "b32"), look_up(int(operands[4], 0)))
    key = ".".join([name, *rest])
    if name in ("dp4a", "dp2a"):
        key, (first, second) = ".".join([name, *rest[:-1]]), (rest[-1], type)
        result = "s32" if "s32" in (first, second) else "u32"
        signs = "".join("i" if t == "s32" else "u" for t in (first, second))
        return Operation(result, (first, second, result), DOT_PRODUCTS[key](signs))
    if type in FLOATS:
        return arithmetic.operation(name, rest, type, len(operands) - 1)
    if type in ("u16x2", "s16x2") and key in INTEGERS:
        return Operation(type, (type, type), on_halves(INTEGERS[key][2], type))
    row = BITS.get(key) or INTEGERS.get(key)
    return from_row(row, type) if row and type in TYPES else None
