"""Read PTX, the assembly language that NVIDIA's compiler writes for a GPU that does not exist.

    program = load(ptx)
    kernel = program.kernels["scale"]
    for instruction in kernel.instructions:
        print(instruction)                          # @%p1 bra $L__BB0_2

PTX has as many typed registers as one likes; each thread has its own. What is read here is what NVRTC 12 emits
(NVIDIA, "PTX ISA 8.8", sections 4 Syntax, 5 State spaces, 10 Special registers, 11 Directives). A directive that is
not known is refused by name when the text is loaded, an instruction when a kernel that has it is launched.
"""

import re
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np

from minilora.errors import SimulationError, unknown_name
from minilora.simt.order import ranks


@dataclass(frozen=True)
class Instruction:
    """`@!%p1 ld.global.f32 %f1, [%rd2+4];` in parts.

    opcode: "ld.global.f32". operands: as written, a vector "{%r1, %r2}" being one. predicate: (negated, register).
    line: of the CUDA source, where it was compiled with -lineinfo; of an inlined header, the line that called it.
    """

    opcode: str
    operands: tuple[str, ...]
    predicate: tuple[bool, str] | None = None
    line: int | None = None

    @cached_property
    def name(self) -> str:
        return self.opcode.split(".", 1)[0]

    @cached_property
    def modifiers(self) -> tuple[str, ...]:
        return tuple(self.opcode.split(".")[1:])

    def __str__(self) -> str:
        guard = f"@{'!' * self.predicate[0]}{self.predicate[1]} " if self.predicate else ""
        return f"{guard}{self.opcode} {', '.join(self.operands)}".rstrip()


@dataclass
class Variable:
    """An array in a state space ("const", "global", "shared", "local"). size: bytes, None for extern shared memory.

    data: its bytes, uint8; a __device__ variable keeps what a kernel wrote there.
    """

    name: str
    space: str
    align: int
    size: int | None
    data: np.ndarray | None = None


@dataclass
class Kernel:
    """parameters: (name, PTX type), a struct of n bytes having the type "b8[n]". registers: name -> PTX type.

    shared: the __shared__ variables, dynamic ones with size None. labels: name -> index into instructions.
    """

    name: str
    parameters: list[tuple[str, str]]
    registers: dict[str, str] = field(default_factory=dict)
    variables: list[Variable] = field(default_factory=list)
    instructions: list[Instruction] = field(default_factory=list)
    labels: dict[str, int] = field(default_factory=dict)

    @cached_property
    def ranks(self) -> list[int]:
        """Of each instruction, where its block of code stands in the order of execution (order.py)."""
        jumps = []
        for i in self.instructions:
            target = self.labels.get(i.operands[0]) if i.name == "bra" else None
            jumps.append((target, i.predicate is not None or i.name not in ("bra", "ret", "exit")))
        return ranks(jumps)

    @property
    def shared(self) -> int:
        """Bytes of static shared memory, packed as the compiler's assembler would."""
        end = 0
        for variable in self.variables:
            if variable.space == "shared" and variable.size is not None:
                end = -(-end // variable.align) * variable.align + variable.size
        return end


@dataclass
class Program:
    """kernels: name -> Kernel. variables: the module's, "const", "global" and extern "shared". target: "sm_80"."""

    kernels: dict[str, Kernel]
    variables: list[Variable]
    target: str

    def kernel(self, name: str) -> Kernel:
        """The kernel of that name. Raises UnknownNameError."""
        if name not in self.kernels:
            raise unknown_name("kernel", name, self.kernels)
        return self.kernels[name]


def nbytes(type: str) -> int:
    """Bytes of a PTX type: 4 of "f32" and of "f16x2", 12 of "b8[12]"."""
    if match := re.fullmatch(r"(\w+)\[(\d+)\]", type):
        return nbytes(match[1]) * int(match[2])
    if not (match := re.fullmatch(r"[a-z]+(8|16|32|64)(x2)?", type)):
        raise SimulationError(f"PTX type .{type} is not supported")
    return int(match[1]) // 8 * (2 if match[2] else 1)


# What can begin at the start of a statement. The order matters: the first that fits is taken.
_STATEMENT = re.compile(
    r"""\s*(?:
      (?P<line>\.(?:loc|file|version|target|address_size)\b[^\n]*)
    | (?P<section>\.section\b[^{]*\{[^}]*\})
    | (?P<head>(?:\.(?:visible|extern|weak)\s+)*\.(?:entry|func)\b[^{;]*)
    | (?P<brace>[{}])
    | (?P<label>[\w$%]+)\s*:(?!:)
    | (?P<statement>[^;]*);
    )""",
    re.VERBOSE,
)
_VARIABLE = re.compile(
    r"(?P<extern>\.extern\s+)?(?:\.(?:visible|weak)\s+)?\.(?P<space>const|global|shared|local)\s+(?:\.align\s+(?P<align>\d+)\s+)?"
    r"\.(?P<type>\w+)\s+(?P<name>[\w$]+)(?P<array>\[\d*\])?(?:\s*=\s*(?P<value>.*))?",
    re.DOTALL,
)
_PARAMETER = re.compile(
    r"\.param\s+(?:\.align\s+\d+\s+)?\.(\w+)\s+(?:\.ptr\b(?:\s*\.(?:global|const|shared|local))?(?:\s+\.align\s+\d+)?\s+)?"
    r"([\w$]+)(\[\d+\])?"
)
_REGISTERS = re.compile(r"\.reg\s*\.(\w+)\s+(.*)", re.DOTALL)  # cuda_fp16.h writes .reg.b32
_LOC = re.compile(r"\.loc\s+(\d+)\s+(\d+)\s+(\d+)(?:.*inlined_at\s+(\d+)\s+(\d+)\s+(\d+))?.*")
_INSTRUCTION = re.compile(r"(?:@(!?)\s*([\w$%.]+)\s+)?([a-z][\w.:]*)\s*(.*)", re.DOTALL)
_NAME = re.compile(r"(?<![\w$%.])[%$]?[A-Za-z_][\w$]*")
_IGNORED = (".pragma", ".maxntid", ".minnctapersm", ".reqntid", ".maxnreg")  # hints that do not change results


def load(ptx: str) -> Program:
    """Parse PTX. Raises SimulationError naming a directive that is not supported."""
    text = re.sub(r"//[^\n]*|/\*.*?\*/", "", ptx.rstrip("\0"), flags=re.DOTALL)
    program = Program({}, [], "")
    body = None  # of the function that is being read
    at = 0
    while match := _STATEMENT.match(text, at):
        at = match.end()
        kind, part = match.lastgroup, match[match.lastgroup].strip()
        if kind == "head":
            body = _Body(part) if text[at : at + 1] == "{" else None  # a declaration has no body
        elif body is not None and kind != "section":
            if body.take(kind, part):
                if body.is_kernel:
                    program.kernels[body.kernel.name] = body.finish()
                body = None
        elif kind == "line" and part.startswith(".target"):
            program.target = part.removeprefix(".target").split(",")[0].strip()
        elif kind == "statement" and part:
            program.variables.append(_variable(part))
    if body is not None or text[at:].strip():
        raise _not_understood(text[at:] or "the end of the text within a function")
    return program


class _Body:
    """Reads a function statement by statement. Names declared within inner braces are made unique."""

    def __init__(self, head: str):
        self.is_kernel = ".entry" in head
        (name,) = _groups(re.compile(r".*\.(?:entry|func)\s+(?:\([^)]*\)\s*)?([\w$]+).*", re.DOTALL), head)
        parameters = [(n, t + (array or "")) for t, n, array in _PARAMETER.findall(head)]
        self.kernel = Kernel(name, parameters)
        self.scopes: list[dict[str, str]] = []  # declared name -> unique name, innermost last
        self.opened = 0
        self.jumps = []  # (index, the scopes it is in): a label may come after the jump to it
        self.line = None
        self.file = None  # the file of the kernel's own first line
        self.inlined = {}  # (file, line, column) -> where that was inlined

    def take(self, kind: str, part: str) -> bool:
        """Read one statement; True at the function's last brace."""
        if part == "{":
            self.scopes.append({})
            self.opened += 1
        elif part == "}":
            self.scopes.pop()
            return not self.scopes
        elif kind == "label":
            if len(self.scopes) > 1:
                self.scopes[-1][part] = f"{part}.{self.opened}"
            self.kernel.labels[self.scopes[-1].get(part, part)] = len(self.kernel.instructions)
        elif kind == "line" and part.startswith(".loc"):
            self.locate(*(int(n) if n else None for n in _groups(_LOC, part)))
        elif kind == "statement" and part.startswith(".reg"):
            self.declare(*_groups(_REGISTERS, part))
        elif kind == "statement" and part.startswith("."):
            if not part.startswith((*_IGNORED, ".param")):
                self.kernel.variables.append(_variable(part))
        elif part:
            self.instruction(part)
        return False

    def declare(self, type: str, names: str):
        for name in names.split(","):
            name = name.strip()
            run = re.fullmatch(r"(.*)<(\d+)>", name)
            for each in [f"{run[1]}{i}" for i in range(int(run[2]))] if run else [name]:
                unique = f"{each}.{self.opened}" if len(self.scopes) > 1 else each
                self.scopes[-1][each] = unique
                self.kernel.registers[unique] = type

    def locate(self, file, line, column, *at):
        self.file = self.file or file
        if at[0] is not None:
            self.inlined[file, line, column] = at
        here = (file, line, column)
        for _ in range(100):  # a header's line is less use than the line that called it
            if here[0] == self.file or here not in self.inlined:
                break
            here = self.inlined[here]
        if here[1]:
            self.line = here[1]

    def instruction(self, text: str):
        negated, predicate, opcode, rest = _groups(_INSTRUCTION, text)
        if len(self.scopes) > 1:
            rest = _NAME.sub(lambda m: self.unique(m[0]), rest)
        operands = tuple(re.sub(r"\s+", " ", o.strip()) for o in re.split(r",(?![^{(\[]*[})\]])", rest)) if rest else ()
        guard = (bool(negated), self.unique(predicate)) if predicate else None
        if opcode.startswith("bra") and len(self.scopes) > 1:
            self.jumps.append((len(self.kernel.instructions), list(self.scopes)))
        self.kernel.instructions.append(Instruction(opcode, operands, guard, self.line))

    def unique(self, name: str, scopes=None) -> str:
        return next((scope[name] for scope in reversed(scopes or self.scopes) if name in scope), name)

    def finish(self) -> Kernel:
        for index, scopes in self.jumps:
            jump = self.kernel.instructions[index]
            target = tuple(self.unique(name, scopes) for name in jump.operands)
            self.kernel.instructions[index] = replace(jump, operands=target)
        return self.kernel


def _groups(pattern: re.Pattern, text: str) -> tuple:
    """What the pattern's groups matched in `text`. Raises SimulationError where it does not match."""
    if not (match := pattern.fullmatch(text)):
        raise _not_understood(text)
    return match.groups()


def _not_understood(text: str) -> SimulationError:
    return SimulationError(f"PTX is not understood: {text.strip().splitlines()[0][:80]!r}")


def _variable(text: str) -> Variable:
    """`.const .align 4 .b8 levels[64] = {0, 0, 128, 191, ...}`"""
    match = _VARIABLE.fullmatch(text)
    if not match:
        raise SimulationError(f"PTX directive is not supported: {text.split('=')[0].strip()}")
    name, space, array, value = match["name"], match["space"], match["array"], match["value"]
    each = nbytes(match["type"])
    align = int(match["align"] or each)
    if match["extern"]:
        if space != "shared":
            raise SimulationError(f"extern .{space} variable {name} has no definition in this program")
        return Variable(name, space, align, None)
    size = each * (int(array[1:-1]) if array else 1)
    if space in ("shared", "local"):
        return Variable(name, space, align, size)
    return Variable(name, space, align, size, _initial(name, size, match["type"], value))


def _initial(name: str, size: int, type: str, value: str | None) -> np.ndarray:
    each = nbytes(type)
    data = bytearray(size)
    for i, item in enumerate(re.findall(r"[^{},\s]+", value or "")):
        try:
            number = int(item[2:], 16) if item[:2].lower() in ("0f", "0d") else int(item, 0)
        except ValueError:
            raise SimulationError(f"initial value {item!r} of variable {name} is not supported: give numbers") from None
        data[i * each : (i + 1) * each] = (number & (1 << 8 * each) - 1).to_bytes(each, "little")
    return np.frombuffer(data, np.uint8).copy()
