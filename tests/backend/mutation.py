"""Would the tests notice? One PTX instruction of a shipped kernel is changed at a time, and its test cases run again.

    python tests/backend/mutation.py                        # a sample of 20 mutants of every kernel
    python tests/backend/mutation.py gemv_4bit_v4 --each 200
    python tests/backend/mutation.py --each 60 --markdown docs/mutation.md

A mutant is killed where the simulated GPU reports an error ("trap"), where a result is not NumPy's ("difference"), or
where the kernel takes eight times the steps that it should ("endless"). One that survives either computes the same as
the kernel (equivalent_mutants.py says why, for each) or shows that a case is missing. The score is the share of the
killed among those that are not equivalent (R. DeMillo, R. Lipton, F. Sayward, "Hints on test data selection", 1978).

The sample is drawn with a seed. It takes kinds of change by turns, so that rare ones (a barrier, a wait) are all tried.
"""

import argparse
import random
import re
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np

try:
    from backend import equivalent_mutants, mutation_cases
    from backend.mutants import mutants
except ImportError:  # run as a program
    import equivalent_mutants
    import mutation_cases
    from mutants import mutants

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
    def program(self) -> simt.Program:
        kernel = self.variant.kernel
        instructions = list(kernel.instructions)
        instructions[self.index] = self.instruction
        changed = replace(kernel, instructions=instructions)
        return replace(self.variant.program, kernels={self.variant.function: changed})

    def __str__(self) -> str:
        return f"{self.kind}: {self.original}  ->  {self.instruction}"


class MutantDevice(backend.SimulatedDevice):
    """The simulated GPU, on which one kernel is the mutant. Without one it notes the steps of each kernel."""

    def __init__(self, mutant: Mutant | None = None, steps: dict[Variant, int] | None = None):
        super().__init__()
        self.mutant, self.steps = mutant, {} if steps is None else steps
        self.program = mutant and mutant.program

    def execute(self, launch: Launch):
        variant = Variant(launch.source, launch.options, launch.function)
        mutated = self.mutant is not None and variant == self.mutant.variant
        limit = {"max_steps": SLOWER * self.steps[variant] + MORE} if mutated else {}
        args = tuple(backend._argument(arg) for arg in launch.args)
        program = self.program if mutated else variant.program
        try:
            machine = simt.Machine(
                program, launch.function, launch.grid, launch.block, args, launch.shared, **limit
            )
        except SimulationError as error:
            raise Stillborn(str(error)) from error
        self.machine = machine
        machine.run()
        self.steps[variant] = max(self.steps.get(variant, 0), machine.steps)


@dataclass
class Subject:
    """A kernel as compiled with some options, and its cases with the steps that each takes of it, fewest first."""

    variant: Variant
    cases: list[tuple[Callable, int]] = field(default_factory=list)

    def outcome(self, mutant: Mutant) -> tuple[str, str]:
        """What becomes of a mutant: one of KILLED, "survived", "stillborn" or "crash" (of the simulator); and why."""
        for case, steps in self.cases:
            device = MutantDevice(mutant, {self.variant: steps})
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
        device = MutantDevice()
        case(device)
        for variant, steps in device.steps.items():
            if variant.function == kernel:
                found.setdefault(variant, Subject(variant)).cases.append((case, steps))
    for subject in found.values():
        subject.cases.sort(key=lambda pair: pair[1])
    return list(found.values())


def sample(subject: Subject, count: int, seed: int) -> list[Mutant]:
    """`count` mutants, kinds by turns."""
    rng = random.Random(f"{subject.variant} {seed}")
    by_kind = defaultdict(list)
    for index, kind, instruction in mutants(subject.variant.kernel, subject.variant.exact):
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
