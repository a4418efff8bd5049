"""A kernel with its cases, and one changed instruction of it, as a campaign (mutation.py) looks at them.

subject = Subject(variant, cases)
for mutant in subject.mutants: ...          # mutant.program has the changed instruction
subject.unproven                            # what no case reaches, and nobody knows why
"""

import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

from backend.equivalent_mutants import is_gap, why_dead
from backend.liveness import EFFECTS, live_after, read, written
from backend.mutants import constants_of, mutants

from minilora import simt
from minilora.backend.cuda.launch import Launch, source
from minilora.backend.simt import compiled


@dataclass(frozen=True)
class Variant:
    """A kernel as compiled with some options."""

    source: str
    options: tuple[str, ...]
    function: str

    @classmethod
    def of(cls, launch: Launch) -> "Variant":
        return cls(launch.source, launch.options, launch.function)

    @cached_property
    def program(self) -> simt.Program:
        return compiled(source(self.source), self.options, 80, self.source)

    @property
    def kernel(self) -> simt.Kernel:
        return self.program.kernel(self.function)

    @cached_property
    def constants(self) -> dict[str, str]:
        return constants_of(self.kernel)

    @property
    def exact(self) -> bool:
        """Whether results are NumPy's bit for bit, so that even a last bit matters."""
        return self.source in ("quantize_4bit.cu", "dequantize_4bit.cu", "int8.cu")

    def __str__(self) -> str:
        return " ".join([self.function, *(o for o in self.options if not o.startswith(("-DHEADER", "-DLARGEST")))])


@dataclass(frozen=True)
class Mutant:
    variant: Variant
    index: int
    kind: str
    instruction: simt.Instruction

    @property
    def original(self) -> simt.Instruction:
        return self.variant.kernel.instructions[self.index]

    @property
    def line(self) -> str:
        """The line of CUDA C that the instruction belongs to."""
        return self._line(0)

    @property
    def line_before(self) -> str:
        return self._line(-1)

    def _line(self, plus: int) -> str:
        number = self.original.line
        return source(self.variant.source).splitlines()[number - 1 + plus].strip() if number else ""

    @property
    def resolved(self) -> str:
        """The instruction, with the numbers that registers stand for: "fma.rn.ftz.f32 %f2, %f1, 0f3BBB989D, 0f3F0"; and
        what its predicate is: "@%p7 bra $L__BB3_10    setp.eq.s64 %p7, %rd39, 0"."""
        kernel, numbers = self.variant.kernel, self.variant.constants
        text = re.sub(r"(?<=[ {])%\w+", lambda match: numbers.get(match[0], match[0]), str(self.original))
        predicate = self.original.predicate and self.original.predicate[1]
        return "    ".join([text, *(str(i) for i in kernel.instructions if predicate and predicate in written(i))])

    @property
    def used_by(self) -> set[str]:
        """The names of the instructions that read the register which it sets."""
        return {i.name for i in self.variant.kernel.instructions if written(self.original) & read(i)}

    @property
    def arrays(self) -> set[int]:
        """The numbers of the parameters that are pointers and that its operands come from, other than by a load."""
        names = [name for name, _ in self.variant.kernel.parameters]
        seen, found, left = set(), set(), list(read(self.original))
        while left:
            if (register := left.pop()) not in seen:
                seen.add(register)
                for i in self.variant.kernel.instructions:
                    if register in written(i):
                        if i.opcode == "ld.param.u64":
                            found.add(names.index(i.operands[1].strip("[]")))
                        elif i.name != "ld":
                            left += read(i)
        return found

    def at(self, index: int) -> "Mutant":
        """The same, had it happened to another instruction."""
        return replace(self, index=index)

    @property
    def program(self) -> simt.Program:
        kernel = self.variant.kernel
        instructions = list(kernel.instructions)
        instructions[self.index] = self.instruction
        changed = replace(kernel, instructions=instructions)
        return replace(self.variant.program, kernels={self.variant.function: changed})

    def __str__(self) -> str:
        return f"{self.kind}: {self.original}  ->  {self.instruction}"


class Reached(Counter):
    """instruction -> how often a thread executed it, of those that some thread came to; simt's counter of a launch. A
    branch counts those that take it."""

    def issue(self, index, lanes, warps):
        self[index] += lanes

    def access(self, *what):
        pass


@dataclass(frozen=True)
class Case:
    """A case as it runs on the kernel itself: the steps of its longest launch, and the instructions that it reaches."""

    run: Callable
    steps: int
    reached: Reached


@dataclass
class Subject:
    """A kernel as compiled with some options, and its cases, the shortest first."""

    variant: Variant
    cases: list[Case]

    @cached_property
    def gaps(self) -> set[int]:
        """Instructions that no case reaches, but a launch could (GAPS)."""
        unreached = set(range(len(self.variant.kernel.instructions))).difference(*(case.reached for case in self.cases))
        return {index for index in unreached if is_gap(self.place(index), self)}

    @cached_property
    def reached(self) -> Reached:
        """What the cases reach, and what a launch could."""
        every = Reached(dict.fromkeys(self.gaps, 1))
        for case in self.cases:
            every.update(case.reached)
        return every

    def place(self, index: int) -> Mutant:
        """An instruction, as a mutant of no kind."""
        return Mutant(self.variant, index, "", self.variant.kernel.instructions[index])

    @property
    def unproven(self) -> list[Mutant]:
        """Instructions that are not reached and branches never taken, of which it is not known why."""
        indices = range(len(self.variant.kernel.instructions))
        idle = [self.place(i) for i in indices if i not in self.reached or self.one_way(i) is False]
        return [place for place in idle if not why_dead(place, self)]

    def one_way(self, index: int) -> bool | None:
        """Of a branch that is always taken, or never: True or False."""
        i = self.variant.kernel.instructions[index]
        if i.name != "bra" or not i.predicate or index not in self.reached:
            return None
        return False if not self.reached[index] else True if index + 1 not in self.reached else None

    def branches(self, predicate: str) -> list[tuple[int, bool]]:
        """(index, negated) of the branches that a predicate decides; none where something else reads it."""
        users = [index for index in self.reached if predicate in read(self.variant.kernel.instructions[index])]
        found = [(index, self.variant.kernel.instructions[index]) for index in users]
        return [(index, i.predicate[0]) for index, i in found] if all(i.name == "bra" for _, i in found) else []

    def never_holds(self, predicate: str, at: int) -> bool:
        """Whether no thread comes here with this predicate: its branch is never taken, leads out of the kernel, past
        this place, or back to the start of a loop before."""
        kernel = self.variant.kernel
        for index, negated in self.branches(predicate):
            target = kernel.labels[kernel.instructions[index].operands[0]]
            leaves = target == len(kernel.instructions) or kernel.instructions[target].name in ("ret", "exit")
            past = index < at < target or target <= index < at
            if not negated and (leaves or past or self.one_way(index) is False):
                return True
        return False

    def of_a_shuffle(self, predicate: str) -> bool:
        """Whether a predicate says that the lane which a shuffle asks for exists, as it always does here."""
        setters = [i for i in self.variant.kernel.instructions if predicate in written(i)]
        return all(i.name == "shfl" and i.modifiers[1] in ("idx", "bfly") for i in setters)

    def decided(self, index: int) -> int | None:
        """A branch that goes one way, if an instruction is one or the comparison for one (or several, all the same)."""
        i = self.variant.kernel.instructions[index]
        branches = [index] if i.name == "bra" else []
        if i.name == "setp":
            branches = [branch for branch, _ in self.branches(i.operands[0])]
        ways = {self.one_way(branch) for branch in branches}
        return branches[0] if len(ways) == 1 and ways != {None} else None

    def first_of_its_line(self, index: int) -> bool:
        instructions = self.variant.kernel.instructions
        i = instructions[index]
        return not any(other.opcode == i.opcode and other.line == i.line for other in instructions[:index])

    @cached_property
    def live(self) -> dict[int, frozenset[str]]:
        return live_after(self.variant.kernel, self.reached)

    def unread(self, index: int) -> bool:
        """Whether an instruction only computes something, and nothing reads it."""
        i = self.variant.kernel.instructions[index]
        return i.name not in EFFECTS and bool(i.operands) and not written(i) & self.live[index]

    @cached_property
    def mutants(self) -> list[Mutant]:
        return [Mutant(self.variant, *change) for change in mutants(self.variant.kernel, self.variant.exact)]
