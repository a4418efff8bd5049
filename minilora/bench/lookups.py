"""Which loads of a kernel take their address from data: the looking up of a code's level, or of a place in a search.

    lookups(program.kernels["gemv_4bit_v4"])          # {index of the instruction, ...}

Where threads go in such a load is up to the weights, and so is how many of them meet in one bank of shared memory; of
any other load the kernel alone decides. They are found by following registers through the PTX: what is loaded from an
array is data, and so is what is computed from data; a load is a look-up if its address is.
"""

import re

from minilora.simt import Kernel
from minilora.simt.ptx import Instruction

NO_RESULT = ("st", "red", "bra", "bar", "ret", "cp", "membar", "fence")
_WORD = re.compile(r"[%\w$.]+")


def lookups(kernel: Kernel) -> frozenset[int]:
    """Indices of the loads and atomics in kernel.instructions whose address depends on what the kernel has loaded."""
    steps = [_step(instruction, kernel) for instruction in kernel.instructions]
    data, before = set(), -1
    while len(data) != before:  # once more while a turn of a loop hands something on
        before = len(data)
        for results, sources, loads in steps:
            if loads or not data.isdisjoint(sources):
                data.update(results)
    return frozenset(
        i
        for i, instruction in enumerate(kernel.instructions)
        if steps[i][2] and not data.isdisjoint(_registers(instruction.operands[1:2], kernel))
    )


def _step(instruction: Instruction, kernel: Kernel) -> tuple[set[str], set[str], bool]:
    """(registers that it sets, registers that it reads, whether it loads from an array)."""
    loads = instruction.name in ("ld", "ldu", "ldmatrix", "atom") and "param" not in instruction.modifiers
    split = 0 if instruction.name in NO_RESULT else 1
    sources = _registers(instruction.operands[split:], kernel)
    if instruction.predicate:
        sources.add(instruction.predicate[1])
    return _registers(instruction.operands[:split], kernel), sources, loads


def _registers(operands, kernel: Kernel) -> set[str]:
    return {word for operand in operands for word in _WORD.findall(operand) if word in kernel.registers}
