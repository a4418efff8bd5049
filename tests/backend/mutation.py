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
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

from backend import mutation_page
from backend.equivalent_mutants import EQUIVALENT, judge
from backend.mutation_cases import CASES
from backend.mutation_subjects import Case, Mutant, Reached, Subject, Variant

from minilora import simt
from minilora.backend.cuda.launch import Launch
from minilora.backend.simt import SimulatedDevice
from minilora.errors import SimulationError

SLOWER, MORE = 8, 2000  # a mutant may take SLOWER times the kernel's steps, and MORE
KILLED = ("trap", "difference", "endless")


class Stillborn(Exception):
    """The change gives an instruction that there is not."""


class Watch(SimulatedDevice):
    """The simulated GPU, which notes of each kernel the steps that it takes and the instructions that it reaches."""

    def __init__(self):
        super().__init__()
        self.steps, self.reached = Counter(), defaultdict(Reached)

    def execute(self, launch: Launch):
        variant = Variant.of(launch)
        machine = self.machine(launch, variant.program, counters=self.reached[variant])
        machine.run()
        self.steps[variant] = max(self.steps[variant], machine.steps)


class MutantDevice(SimulatedDevice):
    """The simulated GPU, on which one kernel is the mutant."""

    def __init__(self, mutant: Mutant, program: simt.Program, max_steps: int):
        super().__init__()
        self.mutant, self.mutated, self.max_steps, self.running = mutant, program, max_steps, None

    def execute(self, launch: Launch):
        if Variant.of(launch) != self.mutant.variant:
            super().execute(launch)
            return
        try:
            self.running = self.machine(launch, self.mutated, max_steps=self.max_steps)
        except SimulationError as error:
            raise Stillborn(str(error)) from error
        self.running.run()


def outcome_of(mutant: Mutant, subject: Subject) -> tuple[str, str]:
    """What becomes of a mutant: one of KILLED, "survived", "stillborn" or "crash" (of the simulator); and why. A
    case that does not come to the instruction cannot notice it."""
    program = mutant.program
    for case in (case for case in subject.cases if mutant.index in case.reached):
        device = MutantDevice(mutant, program, SLOWER * case.steps + MORE)
        try:
            case.run(device)
        except Stillborn as error:
            return "stillborn", str(error)
        except SimulationError as error:
            endless = device.running.steps > device.running.max_steps
            return "endless" if endless else "trap", str(error)
        except AssertionError as error:
            return "difference", str(error).strip()
        except Exception as error:
            return "crash", f"{type(error).__name__}: {error}"
    return "survived", ""


def subjects(kernel: str) -> list[Subject]:
    """Run the cases of a kernel as it is, which must pass, and sort them by how it was compiled for them."""
    found = defaultdict(list)
    for run in CASES[kernel]:
        device = Watch()
        run(device)
        for variant, steps in device.steps.items():
            if variant.function == kernel:
                found[variant].append(Case(run, steps, device.reached[variant]))
    return [Subject(variant, sorted(cases, key=lambda case: case.steps)) for variant, cases in found.items()]


def sample(subject: Subject, count: int, seed: int) -> list[Mutant]:
    """`count` mutants, kinds by turns."""
    rng = random.Random(f"{subject.variant} {seed}")
    by_kind = defaultdict(list)
    for mutant in subject.mutants:
        by_kind[mutant.kind].append(mutant)
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


@dataclass(frozen=True)
class Result:
    """why: why a mutant that survived is equivalent, or why it does; None where neither is known. equivalent: also of a
    mutant that was killed, of which a reason says so; the reason is then wrong."""

    mutant: Mutant
    outcome: str
    equivalent: bool
    why: str | None

    @property
    def killed(self) -> bool:
        return self.outcome in KILLED

    @property
    def survived(self) -> bool:
        return self.outcome == "survived" and not self.equivalent

    @property
    def wrong(self) -> bool:
        """Of a simulator that crashed, and of a reason that is stretched too far."""
        return self.outcome == "crash" or (self.killed and self.equivalent)


def campaign(found: list[Subject], each: int, seed: int = 0) -> Iterator[Result]:
    """Try about `each` mutants of a kernel, as many of each way that it is compiled."""
    for subject in found:
        for mutant in sample(subject, -(-each // len(found)), seed):
            verdict, why = judge(mutant, subject) or (None, None)
            yield Result(mutant, outcome_of(mutant, subject)[0], verdict == EQUIVALENT, why)


def main():
    parser = argparse.ArgumentParser(description="Try mutants of the kernels; print those that no case notices.")
    parser.add_argument("kernels", nargs="*", help="names such as gemv_4bit_v4 (default: all)")
    parser.add_argument("--each", type=int, default=24, help="mutants of a kernel (default 24)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", help="a file for the figures")
    parser.add_argument("--markdown", help="a page, whose tables are renewed")
    args = parser.parse_args()
    rows, all_results = [], []
    for kernel in args.kernels or CASES:
        found = subjects(kernel)
        results = list(campaign(found, args.each, args.seed))
        rows.append(mutation_page.kernel_row(kernel, sum(len(subject.mutants) for subject in found), results))
        all_results += results
        print(mutation_page.line(rows[-1]), flush=True)
        for result in results:
            if result.survived or result.wrong:
                print(f"  {result.outcome}: {result.mutant}    | {result.mutant.line} | {result.why}")
        for place in (place for subject in found for place in subject.unproven):
            print(f"  no case comes here: {place.variant}, {place.original}    | {place.line}")
    print(mutation_page.line(mutation_page.total(rows)))
    mutation_page.write(mutation_page.found(rows, all_results, args.each, args.seed), args.json, args.markdown)
    wrong = sum(result.wrong for result in all_results)
    if wrong:
        raise SystemExit(f"{wrong} of these mutants crash the simulator, or are killed and said to be equivalent")


if __name__ == "__main__":
    main()
