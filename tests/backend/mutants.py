"""The mutants of a kernel: every way to change one of its PTX instructions that is tried.

    for index, kind, instruction in mutants(kernel, exact=True):
        ...                                     # kernel.instructions[index] may become `instruction`; kind: in words

Each is a slip that one could make in CUDA C (a barrier forgotten, < for <=, an index one too far, operands swapped) or
that a compiler or a simulator could make (a rounding mode, a fragment's register). A kind is a rule in RULES.
"""

import re
from collections.abc import Iterator
from dataclasses import replace

from backend.liveness import written

from minilora.simt import Instruction, Kernel
from minilora.simt.operands import vector
from minilora.simt.ptx import nbytes

NOTHING = Instruction("membar.cta", ())  # has no effect on the simulated GPU
BOUNDARY = {"lt": "le", "le": "lt", "gt": "ge", "ge": "gt", "eq": "ne", "ne": "eq", "lo": "ls", "hi": "hs"}
BOUNDARY |= {"ltu": "leu", "leu": "ltu", "gtu": "geu", "geu": "gtu", "equ": "neu", "neu": "equ"}
OTHER = {  # an operation -> the one that it may be confused with
    "add": "sub",
    "sub": "add",
    "min": "max",
    "max": "min",
    "and": "or",
    "or": "and",
    "xor": "or",
    "shl": "shr",
    "shr": "shl",
    "div": "rem",
    "rem": "div",
}
PLACES = {
    "%tid.x": "%ctaid.x",
    "%ctaid.x": "%tid.x",
    "%tid.y": "%tid.x",
    "%ctaid.y": "%ctaid.x",
    "%ctaid.z": "%ctaid.x",
    "%ntid.x": "%nctaid.x",
    "%nctaid.y": "%nctaid.x",
    "%ntid.y": "%ntid.x",
}
WITH_NUMBERS = {
    "add",
    "sub",
    "and",
    "or",
    "xor",
    "shl",
    "shr",
    "mul",
    "mad",
    "mov",
    "bfi",
    "bfe",
    "prmt",
    "shf",
    "dp4a",
    "selp",
    "min",
    "max",
    "setp",
    "lop3",
    "div",
    "rem",
}
NARROWER = {"u16": "u8", "u32": "u16", "s32": "s16", "b32": "b16", "u64": "u32", "b64": "b32"}


def mutants(kernel: Kernel, exact: bool) -> Iterator[tuple[int, str, Instruction]]:
    """(index, kind, what the instruction becomes). exact: also changes of a last bit, and of subnormal numbers."""
    constants = constants_of(kernel)
    set_somewhere = set().union(*map(written, kernel.instructions))
    predicates = [name for name, type in kernel.registers.items() if type == "pred" and name in set_somewhere]
    for index, i in enumerate(kernel.instructions):
        rules = [*RULES, *(EXACT if exact else ROUGH)]
        changed = [(kind, new) for kind, rule in rules for new in rule(i)]
        if i.name == "shfl":
            changed.append(
                ("another lane", _with(i, 2, "2" if constants.get(i.operands[2], i.operands[2]) == "1" else "1"))
            )
        if i.predicate and i.predicate[1] in predicates[1:]:
            before = predicates[predicates.index(i.predicate[1]) - 1]
            changed.append(("another predicate", replace(i, predicate=(i.predicate[0], before))))
        if i.opcode.startswith("ld.param"):
            changed += [("another parameter", new) for new in _other_parameter(i, kernel)]
        if i.name in ("ret", "exit") and index < len(kernel.instructions) - 1:
            changed.append(("drop return", NOTHING))
        for kind, new in changed:
            if new != i:
                yield index, kind, new


def constants_of(kernel: Kernel) -> dict[str, str]:
    """Registers that are only ever set to one number, and that number."""
    values = {}
    for i in kernel.instructions:
        for register in (
            (vector(i.operands[0]) or i.operands[:1]) if i.operands and i.name not in ("st", "bra", "bar") else ()
        ):
            is_number = i.name == "mov" and re.fullmatch(r"-?\d+|0[fF]\w{8}", i.operands[1])
            values.setdefault(register, set()).add(i.operands[1] if is_number else None)
    return {register: next(iter(some)) for register, some in values.items() if len(some) == 1 and None not in some}


def _with(i: Instruction, position: int, operand: str) -> Instruction:
    operands = list(i.operands)
    operands[position] = operand
    return replace(i, operands=tuple(operands))


def _swapped(i: Instruction, a: int, b: int) -> Instruction:
    return _with(_with(i, a, i.operands[b]), b, i.operands[a])


def _opcode(i: Instruction, name: str | None = None, **modifiers: str) -> Instruction:
    """With another name, and modifiers replaced (by "" they are dropped)."""
    parts = [name or i.name, *(modifiers.get(m, m) for m in i.modifiers)]
    return replace(i, opcode=".".join(part for part in parts if part))


def _is_number(operand: str) -> bool:
    return re.fullmatch(r"-?\d+|0x[0-9a-fA-F]+", operand) is not None


def _type(i: Instruction) -> str:
    return i.modifiers[-1] if i.modifiers else ""


# Drop


def _drop(*starts: str):
    return lambda i: [NOTHING] if i.opcode.startswith(starts) else []


def _drop_shuffle(i):
    if i.opcode.startswith("shfl"):
        yield Instruction("mov.b32", (i.operands[0].split("|")[0], i.operands[1]), i.predicate, i.line)


def _drop_operation(i):
    """A function of one number left out."""
    if i.name in ("neg", "not", "abs", "sqrt", "rsqrt", "rcp", "ex2", "lg2"):
        yield Instruction(f"mov.{_type(i)}", i.operands, i.predicate, i.line)


def _drop_product(i):
    if i.name in ("fma", "mad", "dp4a"):
        yield Instruction(
            f"mov.{'b64' if 'wide' in i.modifiers else _type(i)}", (i.operands[0], i.operands[3]), i.predicate, i.line
        )


def _drop_addend(i):
    if i.name in ("fma", "mad"):
        yield replace(_opcode(i, "mul"), operands=i.operands[:3])


def _drop_factor(i):
    if i.name in ("mul", "div") and "wide" not in i.modifiers:
        yield Instruction(f"mov.{_type(i)}", i.operands[:2], i.predicate, i.line)


# Control


def _negate(i):
    if i.predicate:
        yield replace(i, predicate=(not i.predicate[0], i.predicate[1]))


def _always(i):
    if i.predicate:
        yield replace(i, predicate=None)


def _never(i):
    if i.name == "bra":
        yield NOTHING


def _boundary(i):
    if i.name == "setp" and i.modifiers[0] in BOUNDARY:
        yield replace(i, opcode=i.opcode.replace(f".{i.modifiers[0]}.", f".{BOUNDARY[i.modifiers[0]]}.", 1))


# Operations and operands


def _other_operation(i):
    if i.name in OTHER and not (_type(i) == "b16" and i.name in ("shl", "shr")):
        name, type = OTHER[i.name], _type(i)
        if i.name in ("shl", "shr"):
            type = "b" + type[1:] if name == "shl" else "u" + type[1:]
        yield replace(i, opcode=".".join([name, *(m for m in i.modifiers[:-1] if m not in ("lo",)), type]))


def _swapped_operands(i):
    symmetric = i.name == "setp" and i.modifiers[0] in ("eq", "ne", "equ", "neu")
    if (
        i.name in ("sub", "shl", "shr", "div", "rem", "setp", "prmt")
        and i.operands[1] != i.operands[2]
        and not symmetric
    ):
        yield _swapped(i, 1, 2)


def _selp(i):
    if i.name == "selp":
        yield _swapped(i, 1, 2)


def _number(i):
    """A whole number one larger; a mask without its lowest bit."""
    if i.name in WITH_NUMBERS:
        for position in range(1, len(i.operands)):
            if _is_number(i.operands[position]):
                n = int(i.operands[position], 0)
                yield _with(i, position, str(n & n - 1 if i.name == "and" else n + 1))


def _selector(i):
    """The lowest two bytes that a prmt chooses, swapped."""
    if i.name == "prmt" and _is_number(i.operands[3]):
        n = int(i.operands[3], 0)
        yield _with(i, 3, str(n & ~0xFF | (n & 15) << 4 | n >> 4 & 15))


def _place(i):
    """Another of the numbers that a thread knows itself by."""
    for position, operand in enumerate(i.operands):
        if operand in PLACES:
            yield _with(i, position, PLACES[operand])


def _other_parameter(i, kernel):
    """The next parameter of the same type."""
    match = re.match(r"\[([\w$]+)", i.operands[1])
    types = dict(kernel.parameters)
    if match and match[1] in types:
        alike = [name for name, type in kernel.parameters if type == types[match[1]]]
        yield _with(i, 1, f"[{alike[(alike.index(match[1]) + 1) % len(alike)]}]")


# Memory


def _at(i) -> int | None:
    """The position of the operand that is an address, of a load or a store."""
    if i.name in ("ld", "st") and "param" not in i.modifiers:
        return 1 if i.name == "ld" else 0
    return None


def _further(i):
    """One element further on."""
    if (at := _at(i)) is not None:
        base, plus = re.fullmatch(r"\[([\w$%.]+)(?:\+(-?\d+))?\]", i.operands[at]).groups()
        yield _with(i, at, f"[{base}+{int(plus or 0) + nbytes(_type(i))}]")


def _narrower(i):
    """Half as wide, or half of a vector."""
    if (at := _at(i)) is None:
        return
    type, registers = _type(i), vector(i.operands[1 - at])
    if registers:
        half = registers[: len(registers) // 2]
        modifier = {"v4": "v2", "v2": ""}
        operand = half[0] if len(half) == 1 else "{" + ", ".join(half) + "}"
        yield _with(_opcode(i, **modifier), 1 - at, operand)
    elif type in NARROWER:
        yield _opcode(i, **{type: NARROWER[type]})


def _vector_order(i):
    """The first two registers of a vector swapped: of a load, a store, a matrix fragment."""
    for position, operand in enumerate(i.operands):
        registers = vector(operand)
        if registers and len(registers) > 1 and i.name != "mma":
            yield _with(i, position, "{" + ", ".join([registers[1], registers[0], *registers[2:]]) + "}")


def _fragment(i):
    """Two registers of a fragment of an mma swapped."""
    if i.name == "mma":
        for position in (1, 2):
            registers = vector(i.operands[position])
            yield _with(i, position, "{" + ", ".join([registers[1], registers[0], *registers[2:]]) + "}")


def _transpose(i):
    if i.name == "ldmatrix":
        opcode = (
            i.opcode.replace(".trans", "") if "trans" in i.modifiers else i.opcode.replace(".shared", ".trans.shared")
        )
        yield replace(i, opcode=opcode)


def _later(i):
    if i.opcode.startswith("cp.async.wait_group"):
        yield _with(i, 0, str(int(i.operands[0]) + 1))


def _ignored_size(i):
    """A copy that takes all its bytes from the source, where it should fill up with zeros."""
    if i.opcode.startswith("cp.async.c") and len(i.operands) == 4:
        yield replace(i, operands=i.operands[:3])


# Lanes


def _mask(i):
    if i.name == "shfl" and i.operands[-1] == "-1":
        yield _with(i, len(i.operands) - 1, "2147483647")


# Numbers


def _rounding(i):
    """Of a conversion: cut off instead of to the nearest, or the nearest instead of cut off."""
    if i.name == "cvt":
        for a, b in (("rni", "rzi"), ("rzi", "rni")):
            if a in i.modifiers:
                yield _opcode(i, **{a: b})
        if "rn" in i.modifiers and i.modifiers[-2:] in (("f16", "f32"), ("bf16", "f32")):
            yield _opcode(i, rn="rz")


def _sign(i):
    """Of a conversion from a byte: as if it had none, or had one."""
    if i.name == "cvt" and i.modifiers[-1] in ("s8", "u8"):
        other = {"s8": "u8", "u8": "s8"}[i.modifiers[-1]]
        yield _opcode(i, **{i.modifiers[-1]: other})


def _saturation(i):
    if i.name == "cvt" and "sat" in i.modifiers:
        yield _opcode(i, sat="")


def _directed(i):
    if "rn" in i.modifiers and _type(i) == "f32" and i.name in ("add", "sub", "mul", "div", "fma"):
        yield _opcode(i, rn="rz")


def _flush(i):
    if (
        i.name in ("add", "sub", "mul", "div", "fma", "setp", "max", "min")
        and _type(i) == "f32"
        and "ftz" not in i.modifiers
    ):
        yield replace(i, opcode=i.opcode.replace(".f32", ".ftz.f32"))


def _real(step):
    def rule(i):
        for position, operand in enumerate(i.operands):
            if match := re.fullmatch(r"0[fF]([0-9a-fA-F]{8})", operand):
                yield _with(i, position, f"0f{step(int(match[1], 16)):08X}")

    return rule


def _doubled(bits: int) -> int:
    """Of a float32: zero becomes one."""
    return 0x3F800000 if bits & 0x7FFFFFFF == 0 else (bits + (1 << 23)) & 0xFFFFFFFF


RULES = [
    ("drop barrier", _drop("bar.sync", "bar.warp", "barrier")),
    ("drop store", _drop("st.")),
    ("drop load", _drop("ld.global", "ld.shared", "ld.const", "ld.local")),
    ("drop copy", _drop("cp.async.c", "cp.async.bulk")),
    ("drop commit", _drop("cp.async.commit")),
    ("drop wait", _drop("cp.async.wait")),
    ("wait for one less", _later),
    ("copy not filled up", _ignored_size),
    ("drop mma", _drop("mma")),
    ("drop ldmatrix", _drop("ldmatrix")),
    ("drop shuffle", _drop_shuffle),
    ("drop function", _drop_operation),
    ("drop product", _drop_product),
    ("drop addend", _drop_addend),
    ("drop factor", _drop_factor),
    ("negate predicate", _negate),
    ("always", _always),
    ("never branch", _never),
    ("boundary", _boundary),
    ("another operation", _other_operation),
    ("operands swapped", _swapped_operands),
    ("selp swapped", _selp),
    ("number + 1", _number),
    ("selector", _selector),
    ("another place", _place),
    ("an element further", _further),
    ("narrower", _narrower),
    ("vector order", _vector_order),
    ("fragment order", _fragment),
    ("ldmatrix transposed", _transpose),
    ("lane 31 left out", _mask),
    ("rounding of a conversion", _rounding),
    ("sign of a byte", _sign),
    ("no saturation", _saturation),
]
EXACT = [("rounding", _directed), ("subnormals flushed", _flush), ("real number + 1 ulp", _real(lambda bits: bits + 1))]
ROUGH = [("real number doubled", _real(_doubled))]
