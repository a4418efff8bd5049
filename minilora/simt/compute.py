"""From registers to registers: arithmetic, and mov.

What an instruction computes is a function of arrays (instructions.py); here it is joined to its operands.
"""

import numpy as np

from minilora.errors import SimulationError
from minilora.simt.instructions import operation
from minilora.simt.operands import pack, part_type, unpack, vector
from minilora.simt.ptx import nbytes


def decode(machine, instruction):
    """A function that executes the instruction for some lanes."""
    if instruction.name == "mov":
        return _move(machine.registers, instruction)
    what = operation(instruction)
    reads = [machine.registers.reader(o, t) for o, t in zip(instruction.operands[1:], what.sources, strict=False)]
    writes = [machine.registers.writer(target, what.result) for target in instruction.operands[0].split("|")]
    compute = what.compute
    if len(writes) > 1:  # setp.lt.s32 %p1|%p2

        def execute(lanes):
            for write, values in zip(writes, compute(*(read(lanes) for read in reads)), strict=True):
                write(lanes, values)

        return execute
    write = writes[0]
    if len(reads) == 2:  # most are of this kind
        first, second = reads
        return lambda lanes: write(lanes, compute(first(lanes), second(lanes)))
    return lambda lanes: write(lanes, compute(*(read(lanes) for read in reads)))


def _move(registers, instruction):
    """mov, also of an address, and between a register and a vector of its parts (PTX ISA, section 9.7.9.2)."""
    type = instruction.modifiers[-1]
    target, source = instruction.operands
    if source in ("%clock", "%clock64", "%clock_hi", "%globaltimer"):
        raise SimulationError(f"{source} is a time, and nothing here has one")
    if parts := vector(target):
        each = part_type(type, len(parts))
        dtype = np.dtype(f"u{nbytes(each)}")
        read = registers.reader(source, type)
        writes = [registers.writer(part, each) for part in parts]

        def execute(lanes):
            for write, values in zip(writes, unpack(read(lanes), dtype), strict=True):
                write(lanes, values)

        return execute
    write = registers.writer(target, type)
    if parts := vector(source):
        dtype = np.dtype(f"u{nbytes(type)}")
        reads = [registers.reader(part, part_type(type, len(parts))) for part in parts]
        return lambda lanes: write(lanes, pack([read(lanes) for read in reads], dtype))
    read = registers.reader(source, type)
    return lambda lanes: write(lanes, read(lanes))
