"""Which registers of a kernel are still to be read, given where its threads go.

    live = live_after(kernel, reached)          # live[i]: the registers that are read after instruction i, before they
                                                # are written again

reached: instruction -> how often it was executed, for a branch how often it was taken. Paths that no thread takes are
left out: the end of a branch that is always taken, the target of one that never is. (A. Aho, M. Lam, R. Sethi, J.
Ullman, Compilers, section 9.2.5, live-variable analysis; here what is only read for a result that is not read does not
count.)
"""

import re
from collections.abc import Mapping

from minilora.simt import Instruction, Kernel

NO_RESULT = ("st", "bra", "bar", "ret", "exit", "cp", "red", "membar")
EFFECTS = (*NO_RESULT, "ld", "shfl", "mma", "ldmatrix")  # may fail, or do something for other threads
REGISTER = re.compile(r"%\w+|\bp\.\d+")


def written(i: Instruction) -> set[str]:
    return set() if i.name in NO_RESULT or not i.operands else set(REGISTER.findall(i.operands[0]))


def read(i: Instruction) -> set[str]:
    operands = i.operands if i.name in NO_RESULT else i.operands[1:]
    predicate = {i.predicate[1]} if i.predicate else set()
    return predicate.union(*(REGISTER.findall(operand) for operand in operands))


def following(kernel: Kernel, reached: Mapping[int, int], index: int) -> list[int]:
    """The instructions that threads go to from this one."""
    i = kernel.instructions[index]
    if i.name in ("ret", "exit") and not i.predicate:
        return []
    after = []
    if i.name == "bra" and reached[index]:
        after.append(kernel.labels[i.operands[0]])
    if i.name != "bra" or (i.predicate and index + 1 in reached):
        after.append(index + 1)
    return [index for index in after if index in reached]


def live_after(kernel: Kernel, reached: Mapping[int, int]) -> dict[int, frozenset[str]]:
    after = {index: following(kernel, reached, index) for index in reached}
    before, live = dict.fromkeys(reached, frozenset()), {}
    changed = True
    while changed:
        changed = False
        for index in sorted(reached, reverse=True):
            i = kernel.instructions[index]
            live[index] = frozenset().union(*(before[next] for next in after[index]))
            needed = i.name in EFFECTS or not i.operands or written(i) & live[index]
            now = (live[index] - (set() if i.predicate else written(i))) | (read(i) if needed else set())
            if now != before[index]:
                before[index], changed = now, True
    return live
