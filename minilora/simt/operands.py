"""Registers and operands: each register is an array with one element a thread ("lane"), an operand a way to read it.

    read, write = registers.reader("%r1", "s32"), registers.writer("%f2", "f32")
    write(lanes, read(lanes).astype(np.float32))

An instruction's operands are turned into such functions once, before the launch, so that executing it does no work on
text. A register is typed by its width mostly: an instruction may take its bits for another type of that width, and
load, store and convert may use a wider register than their type (PTX ISA, section 9.4.1 Operand Size Exceeding
Instruction-Type Size).
"""

import re
from collections.abc import Callable

import numpy as np

from minilora.errors import SimulationError
from minilora.simt.instructions import TYPES
from minilora.simt.ptx import Kernel, nbytes

UNSIGNED = {1: np.dtype(np.uint8), 2: np.dtype(np.uint16), 4: np.dtype(np.uint32), 8: np.dtype(np.uint64)}


class Lanes:
    """Some of the wave's lanes, ascending. index: what selects them from a register, a slice where they adjoin."""

    __slots__ = ("count", "ids", "index", "warps")

    def __init__(self, ids: np.ndarray):
        self.ids, self.count = ids, len(ids)
        first, last = (int(ids[0]), int(ids[-1]) + 1) if len(ids) else (0, 0)
        self.index = slice(first, last) if last - first == len(ids) else ids
        self.warps = None

    def __len__(self) -> int:
        return self.count

    def where(self, mask: np.ndarray) -> "Lanes":
        return Lanes(self.ids[mask])

    def warp_count(self) -> int:
        """How many warps have one of these lanes."""
        if self.warps is None:
            warps = self.ids >> 5
            self.warps = int((warps[1:] != warps[:-1]).sum()) + 1 if self.count else 0
        return self.warps


class Registers:
    """special: %tid.x and its kin, arrays. symbols: what the name of a variable stands for, an address."""

    def __init__(self, kernel: Kernel, lanes: int, special: dict[str, np.ndarray], symbols: dict[str, int]):
        self.types, self.lanes, self.special, self.symbols = kernel.registers, lanes, special, symbols
        self.arrays: dict[str, np.ndarray] = {}

    def array(self, name: str) -> np.ndarray:
        """The register itself; it is made when the first instruction names it."""
        if name not in self.arrays:
            if name not in self.types:
                raise SimulationError(f"operand {name!r} is not a register of this kernel")
            self.arrays[name] = np.zeros(self.lanes, TYPES[self.types[name]])
        return self.arrays[name]

    def reader(self, operand: str, type: str) -> Callable[[Lanes], np.ndarray]:
        """A function that gives the operand's value in `lanes` as `type`."""
        if operand.startswith("!"):
            register = self.array(operand[1:])
            return lambda lanes: ~register[lanes.index]
        dtype = np.dtype(TYPES[type])
        if operand in self.types or operand in self.special:
            register = self.array(operand) if operand in self.types else self.special[operand]
            if register.dtype == dtype:
                return lambda lanes: register[lanes.index]
            if (register.dtype.kind == "b") != (dtype.kind == "b"):
                raise SimulationError(f"operand {operand}: a predicate is not a number")
            if register.itemsize == dtype.itemsize:
                view = register.view(dtype)
                return lambda lanes: view[lanes.index]
            width = UNSIGNED[dtype.itemsize]
            bits = register.view(UNSIGNED[register.itemsize])
            return lambda lanes: bits[lanes.index].astype(width).view(dtype)
        constant = np.broadcast_to(self._constant(operand, dtype), self.lanes)
        return lambda lanes: constant[: lanes.count]

    def _constant(self, operand: str, dtype: np.dtype) -> np.ndarray:
        if match := re.fullmatch(r"0[fF]([0-9a-fA-F]{8})|0[dD]([0-9a-fA-F]{16})", operand):
            size = 4 if match[1] else 8
            number = np.array(int(match[1] or match[2], 16), f"u{size}").view(f"f{size}")
            if dtype.kind == "f":
                return number.astype(dtype)
            value = int(number.view(UNSIGNED[number.itemsize]))
        elif match := re.fullmatch(r"([A-Za-z_$][\w$]*)(?:\+(-?\d+))?", operand):
            if match[1] not in self.symbols:
                raise SimulationError(f"operand {operand!r} is not known")
            value = self.symbols[match[1]] + int(match[2] or 0)
        else:
            try:
                value = _integer(operand)
            except ValueError:
                raise SimulationError(f"operand {operand!r} is not understood") from None
        if dtype.kind == "b":
            return np.array(bool(value))
        bits = value & (1 << 8 * dtype.itemsize) - 1
        return np.array(bits, UNSIGNED[dtype.itemsize]).view(dtype)

    def writer(self, operand: str, type: str) -> Callable[[Lanes, np.ndarray], None]:
        """A function that stores values of `type`; into a wider register, extended by sign or by zeros."""
        if operand == "_":
            return lambda lanes, values: None
        register = self.array(operand)
        dtype = np.dtype(TYPES[type])
        if register.dtype == dtype:

            def store(lanes, values):
                register[lanes.index] = values

        elif "b" in (register.dtype.kind, dtype.kind) or register.itemsize < dtype.itemsize:
            raise SimulationError(f"operand {operand}: a .{self.types[operand]} register cannot hold a .{type}")

        elif register.itemsize == dtype.itemsize:
            view = register.view(dtype)

            def store(lanes, values):
                view[lanes.index] = values

        else:
            wide = register.view(UNSIGNED[register.itemsize])
            bits = dtype if dtype.kind == "i" else UNSIGNED[dtype.itemsize]

            def store(lanes, values):
                wide[lanes.index] = values.view(bits)  # NumPy extends signed numbers by their sign

        return store


def vector(operand: str) -> list[str] | None:
    """The parts of "{%r1, %r2}"; None for an operand that is no vector."""
    return [part.strip() for part in operand[1:-1].split(",")] if operand.startswith("{") else None


def pack(parts: list[np.ndarray], dtype: np.dtype) -> np.ndarray:
    """One number from its parts, the first lowest: mov.b32 %r1, {%rs1, %rs2}."""
    return np.stack(parts, axis=-1).reshape(-1).view(dtype)


def unpack(values: np.ndarray, dtype: np.dtype) -> list[np.ndarray]:
    """The parts of each number, the lowest first: mov.b32 {%rs1, %rs2}, %r1."""
    parts = np.ascontiguousarray(values).view(dtype).reshape(len(values), -1)
    return [parts[:, i] for i in range(parts.shape[1])]


def part_type(type: str, parts: int) -> str:
    """Of a register of `type` split in `parts`: "b16" of "b32" in two."""
    return f"b{8 * nbytes(type) // parts}"


def _integer(text: str) -> int:
    text = text.rstrip("U")
    if re.fullmatch(r"-?0[0-7]+", text):  # octal, as in C (PTX ISA, section 4.5.1 Integer Constants)
        return int(text, 8)
    return 32 if text == "WARP_SZ" else int(text, 0)
