"""Matrix products of a warp: mma.sync m16n8k16 and ldmatrix, whose matrices lie spread over the lanes' registers.

    mma(instruction, a, b, c)        D = A B + C: A (16, 16), B (16, 8), C and D (16, 8)
    ldmatrix(instruction, rows)      8 x 8 matrices of 16-bit numbers, from rows in shared memory to registers

Lane i holds of each 8 x 8 part of A, C and D two neighbours in row i // 4, columns 2 (i % 4) and one more; of B, which
is stored by columns, two neighbours in column i // 4. A register of 16-bit numbers has both, the first in its lower
half. Which register has which part is in A_PARTS and its kin (PTX ISA, section 9.7.14.5 on mma, "Matrix Fragments").

Products of 16-bit numbers are exact in float64, and so nearly is their sum here, rounded once. In what order a tensor
core adds, and how it rounds on the way, is not said; its last bits differ.
"""

import numpy as np

from minilora.errors import SimulationError
from minilora.simt.floats import bfloat16_values, narrow

LANE = np.arange(32)
ROW, PAIR = LANE // 4, LANE % 4 * 2  # of an 8 x 8 part
A_PARTS = ((0, 0), (8, 0), (0, 8), (8, 8))  # (first row, first column) of each register's part
B_PARTS = (0, 8)  # first row
C_PARTS = (0, 8)  # first row; float32 takes two registers for each, float16 one


def mma(instruction, a, b, c) -> list[np.ndarray]:
    """The registers of D. a, b, c: lists of registers, each (warps, 32) uint32, of float32 accumulators float32."""
    _, _, shape, layout_a, layout_b, type_d, type_a, type_b, type_c = _modifiers(instruction)
    depth = {"m16n8k16": 16, "m16n8k8": 8}.get(shape)
    if depth is None or (layout_a, layout_b) != ("row", "col") or type_a != type_b or type_a not in ("f16", "bf16"):
        raise SimulationError(f"{instruction.opcode}: supported are m16n8k16 and m16n8k8 of f16 and bf16, .row.col")
    warps = len(a[0])
    left = np.empty((warps, 16, depth))
    right = np.empty((warps, depth, 8))
    for register, (row, column) in zip(a, A_PARTS, strict=False):
        left[:, (row + ROW)[:, None], (column + PAIR)[:, None] + np.arange(2)] = _pair(register, type_a)
    for register, row in zip(b, B_PARTS, strict=False):
        right[:, (row + PAIR)[:, None] + np.arange(2), ROW[:, None]] = _pair(register, type_b)
    accumulator = np.empty((warps, 16, 8))
    for pair, row in zip(_accumulators(c, type_c), C_PARTS, strict=True):
        accumulator[:, (row + ROW)[:, None], PAIR[:, None] + np.arange(2)] = pair
    product = narrow(left @ right + accumulator, type_d)  # (warps, 16, 8)
    pairs = [product[:, (row + ROW)[:, None], PAIR[:, None] + np.arange(2)] for row in C_PARTS]  # (warps, 32, 2)
    if type_d == "f32":
        return [np.ascontiguousarray(pair[..., i]) for pair in pairs for i in range(2)]
    return [np.ascontiguousarray(pair).view(np.uint32)[..., 0] for pair in pairs]


def _modifiers(instruction):
    modifiers = instruction.modifiers
    if len(modifiers) != 9:
        raise SimulationError(f"{instruction.opcode} is not supported")
    return modifiers


def _pair(register: np.ndarray, type: str) -> np.ndarray:
    """(warps, 32, 2) float64: the two numbers of each lane's register."""
    halves = np.ascontiguousarray(register).view(np.uint16).reshape(*register.shape, 2)
    return (bfloat16_values(halves) if type == "bf16" else halves.view(np.float16)).astype(np.float64)


def _accumulators(registers, type: str) -> list[np.ndarray]:
    if type == "f32":
        return [np.stack(registers[i : i + 2], axis=-1).astype(np.float64) for i in (0, 2)]
    return [_pair(register, type) for register in registers]


def ldmatrix(instruction, rows: np.ndarray) -> list[np.ndarray]:
    """rows: (warps, 8 m, 8) uint16, those that lanes 0, 1, ... name. The m registers, each (warps, 32) uint32.

    Lane i gets of each matrix elements 2 (i % 4) and one more of row i // 4; with .trans of its transpose.
    """
    if "m8n8" not in instruction.modifiers or instruction.modifiers[-1] != "b16":
        raise SimulationError(f"{instruction.opcode} is not supported")
    matrices = rows.reshape(len(rows), -1, 8, 8)
    if "trans" in instruction.modifiers:
        matrices = matrices.swapaxes(2, 3)
    return [
        np.ascontiguousarray(matrices[:, m, ROW[:, None], PAIR[:, None] + np.arange(2)]).view(np.uint32)[..., 0]
        for m in range(matrices.shape[1])
    ]
