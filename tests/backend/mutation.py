"""Would the tests notice? One PTX instruction of a shipped kernel is changed at a time, and its test cases run again.

    PYTHONPATH=tests:tests/simt python -m backend.mutation                      # a sample of 24 mutants of every kernel
    PYTHONPATH=tests:tests/simt python -m backend.mutation gemv_4bit_v4 --each 200

A mutant is killed where the simulated GPU reports an error ("trap"), where a result is not NumPy's ("difference"), or
where the kernel takes eight times the steps that it should ("endless"). One that survives either computes the same as
the kernel, or shows that a case is missing: it is printed, and which of the two it is has to be judged (R. DeMillo,
R. Lipton, F. Sayward, "Hints on test data selection", 1978).

The sample is drawn with a seed. It takes kinds of change by turns, so that rare ones (a barrier, a wait) are all tried.
"""

import argparse
import random
import re
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property

from backend import mutation_cases
from backend.mutants import constants_of, mutants

from minilora import simt
from minilora.backend import simt as backend
from minilora.backend.cuda.launch import Launch, source
from minilora.errors import SimulationError

SLOWER, MORE = 8, 2000  # a mutant may take SLOWER times the kernel's steps, and MORE
KILLED = ("trap", "difference", "endless")


class Stillborn(Exception):
    """The change gives an instruction that there is not."""


@dataclass(frozen=True)
class Variant:
    """A kernel as compiled with some options."""

    source: str
    options: tuple[str, ...]
    function: str

    @cached_property
    def program(self) -> simt.Program:
        return backend._program(source(self.source), self.options, 80, self.source)

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
        number = self.original.line
        return source(self.variant.source).splitlines()[number - 1].strip() if number else ""

    @property
    def resolved(self) -> str:
        """The instruction, with the numbers that registers stand for: "fma.rn.ftz.f32 %f2, %f1, 0f3BBB989D, 0f3F0"."""
        numbers = self.variant.constants
        return re.sub(r"(?<=[ {])%\w+", lambda match: numbers.get(match[0], match[0]), str(self.original))

    @property
    def program(self) -> simt.Program:
        kernel = self.variant.kernel
        instructions = list(kernel.instructions)
        instructions[self.index] = self.instruction
        changed = replace(kernel, instructions=instructions)
        return replace(self.variant.program, kernels={self.variant.function: changed})

    def __str__(self) -> str:
        return f"{self.kind}: {self.original}  ->  {self.instruction}"


class Reached(set):
    """The instructions that some thread came to; simt's counter of a launch."""

    def issue(self, index, lanes, warps):
        self.add(index)

    def access(self, *what):
        pass


class Watch(backend.SimulatedDevice):
    """The simulated GPU, which notes of each kernel the steps that it takes and the instructions that it reaches."""

    def __init__(self):
        super().__init__()
        self.steps, self.reached = Counter(), defaultdict(Reached)

    def execute(self, launch: Launch):
        variant = Variant(launch.source, launch.options, launch.function)
        machine = _machine(variant.program, launch, counters=self.reached[variant])
        machine.run()
        self.steps[variant] = max(self.steps[variant], machine.steps)


class MutantDevice(backend.SimulatedDevice):
    """The simulated GPU, on which one kernel is the mutant."""

    def __init__(self, mutant: Mutant, program: simt.Program, max_steps: int):
        super().__init__()
        self.mutant, self.program, self.max_steps, self.machine = mutant, program, max_steps, None

    def execute(self, launch: Launch):
        if Variant(launch.source, launch.options, launch.function) != self.mutant.variant:
            super().execute(launch)
            return
        try:
            self.machine = _machine(self.program, launch, max_steps=self.max_steps)
        except SimulationError as error:
            raise Stillborn(str(error)) from error
        self.machine.run()


def _machine(program: simt.Program, launch: Launch, **options) -> simt.Machine:
    args = tuple(backend._argument(arg) for arg in launch.args)
    return simt.Machine(program, launch.function, launch.grid, launch.block, args, launch.shared, **options)


@dataclass
class Subject:
    """A kernel as compiled with some options, its cases with the steps that each takes of it, fewest first, and the
    instructions that they reach."""

    variant: Variant
    cases: list[tuple[Callable, int]] = field(default_factory=list)
    reached: set[int] = field(default_factory=set)

    def outcome(self, mutant: Mutant) -> tuple[str, str]:
        """What becomes of a mutant: one of KILLED, "survived", "stillborn" or "crash" (of the simulator); and why."""
        program = mutant.program
        for case, steps in self.cases:
            device = MutantDevice(mutant, program, SLOWER * steps + MORE)
            try:
                case(device)
            except Stillborn as error:
                return "stillborn", str(error)
            except SimulationError as error:
                endless = device.machine.steps > device.machine.max_steps
                return "endless" if endless else "trap", str(error)
            except AssertionError as error:
                return "difference", str(error).strip()
            except Exception as error:
                return "crash", f"{type(error).__name__}: {error}"
        return "survived", ""


def subjects(kernel: str) -> list[Subject]:
    """Run the cases of a kernel as it is, which must pass, and sort them by how it was compiled for them."""
    found = {}
    for case in mutation_cases.CASES[kernel]:
        device = Watch()
        case(device)
        for variant, steps in device.steps.items():
            if variant.function == kernel:
                subject = found.setdefault(variant, Subject(variant))
                subject.cases.append((case, steps))
                subject.reached |= device.reached[variant]
    for subject in found.values():
        subject.cases.sort(key=lambda pair: pair[1])
    return list(found.values())


def sample(subject: Subject, count: int, seed: int) -> list[Mutant]:
    """`count` mutants, kinds by turns."""
    rng = random.Random(f"{subject.variant} {seed}")
    by_kind = defaultdict(list)
    for index, kind, instruction in mutants(subject.variant.kernel, subject.variant.exact):
        if index not in subject.reached:
            continue
        by_kind[kind].append(Mutant(subject.variant, index, kind, instruction))
    for some in by_kind.values():
        rng.shuffle(some)
    chosen, kinds = [], list(by_kind)
    rng.shuffle(kinds)
    while by_kind and len(chosen) < count:
        for kind in [kind for kind in kinds if kind in by_kind]:
            chosen.append(by_kind[kind].pop())
            if not by_kind[kind]:
                del by_kind[kind]
    return chosen[:count]


def main():
    parser = argparse.ArgumentParser(description="Try mutants of the kernels; print those that no case notices.")
    parser.add_argument("kernels", nargs="*", help="names such as gemv_4bit_v4 (default: all)")
    parser.add_argument("--each", type=int, default=24, help="mutants of a kernel (default 24)")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    total = Counter()
    for kernel in args.kernels or mutation_cases.CASES:
        counts, found = Counter(), subjects(kernel)
        for subject in found:
            for mutant in sample(subject, max(3, args.each // len(found)), args.seed):
                outcome, _ = subject.outcome(mutant)
                counts[outcome] += 1
                if outcome == "survived":
                    print(f"  {mutant}    | {mutant.line}")
        print(kernel, dict(counts), flush=True)
        total += counts
    killed = sum(total[kind] for kind in KILLED)
    print(f"killed {killed} of {killed + total['survived']}: {killed / (killed + total['survived']):.1%}", dict(total))


if __name__ == "__main__":
    main()
