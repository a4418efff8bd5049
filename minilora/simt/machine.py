"""A CUDA machine in NumPy: it executes PTX for all threads of many blocks at once, one array element a thread.

    launch(program, "scale", grid=(4,), block=(128,), args=(Buffer(x, read_only=True), Buffer(y), np.int32(n)))

Each thread ("lane") has a program counter. One step executes one instruction for all lanes that are at it. Lanes that
are ahead wait for those behind, so that they go on together where branches meet (order.py). bar.sync holds lanes until
their whole block is there (barrier.py), a warp instruction until the lanes of its mask are (warp.py). The blocks of a
wave run side by side; waves follow each other.

What a kernel does wrong raises SimulationError: check.py, races.py, barrier.py, warp.py, async_copy.py find it. The
machine counts instructions and knows no time.
"""

from collections.abc import Callable

import numpy as np

from minilora.errors import SimulationError
from minilora.simt import access, async_copy, barrier, compute, warp
from minilora.simt.arguments import check_arguments, parameter_bytes
from minilora.simt.check import add_shadows
from minilora.simt.memory import FREE, Memory, Region
from minilora.simt.operands import Lanes, Registers
from minilora.simt.ptx import Instruction, Program
from minilora.simt.races import Clock
from minilora.simt.threads import Threads
from minilora.simt.warp import AT_BARRIER, RUNNING

MAX_LANES = 8192  # of a wave: more amortise Python's cost for each instruction, fewer stay in the CPU's cache
MAX_STEPS = 5_000_000
NO_EFFECT = ("nanosleep", "discard", "applypriority", "prefetch", "prefetchu", "membar", "fence", "griddepcontrol")


def launch(program: Program, name: str, grid, block, args, **options):
    """Run a kernel to its end; the arrays of the Buffers in `args` then hold what it wrote. Options: see Machine."""
    Machine(program, name, grid, block, args, **options).run()


class Machine:
    """One launch. step() executes an instruction, run() all of them.

    grid, block: one to three sizes. args: a Buffer for each pointer, a NumPy scalar of the parameter's size for
    anything else, a structured scalar for a struct. shared: bytes of dynamic shared memory. check=False leaves out
    races and uninitialised memory, and keeps bounds, alignment, barriers. counters: issue(index, lanes, warps) is
    called for each step with the numbers of active lanes and of warps that have any, access(index, space, write,
    addresses, nbytes, warps, lanes) for each access with arrays that have an entry for each active lane.

    To look at between steps: kernel, threads, registers.arrays, memory, pc and waiting (of each lane), group (the lanes
    that go on) and at (their instruction); these are None and stale where the next step has to choose.

    Raises LaunchError for arguments that do not fit the kernel, SimulationError for what the kernel does wrong.
    """

    def __init__(
        self,
        program: Program,
        name: str,
        grid,
        block,
        args,
        shared: int = 0,
        check: bool = True,
        counters=None,
        max_lanes: int = MAX_LANES,
        max_steps: int = MAX_STEPS,
    ):
        self.kernel = program.kernel(name)
        self.counters, self.max_steps, self.steps = counters, max_steps, 0
        self.threads = Threads(grid, block, max_lanes)
        buffers = check_arguments(self.kernel, args)
        self.memory = Memory(program.variables, buffers, self.kernel, shared, self.threads.wave, self.threads.lanes)
        self.parameters = parameter_bytes(self.kernel, args, self.memory.buffers)
        self.registers = Registers(self.kernel, self.threads.lanes, self.threads.special, self.memory.base)
        self.clock = Clock(self.threads.block_lanes, exact=warp.has_partial_masks(self.kernel))
        self.copies = async_copy.Copies(self)
        if check:
            add_shadows(self)
        self.barriers = {}  # index of a barrier -> what happens when a block is there
        self.end = len(self.kernel.instructions)
        self.code = [self._decode(i, instruction) for i, instruction in enumerate(self.kernel.instructions)]
        rank = np.array([*self.kernel.ranks, self.end], np.int64)
        self.place_of = rank * (self.end + 1) + np.arange(self.end + 1)  # instructions in the order of their blocks
        self.places = self.place_of.tolist()
        self.pc = np.full(self.threads.lanes, self.end, np.int32)
        self.waiting = np.full(self.threads.lanes, RUNNING, np.int8)
        self.group: Lanes | None = None
        self.finished = False

    def run(self):
        """Execute to the end."""
        while self.step():
            pass

    def step(self) -> bool:
        """Execute one instruction for one group of lanes. False when nothing is left to execute."""
        if self.group is None and not self.schedule():
            return False
        self.steps += 1
        if self.steps > self.max_steps:
            self.fail(f"after {self.max_steps} steps the kernel has not ended; is a loop endless?", self.group.ids[0])
        lanes = self.group
        guard, execute = self.code[self.at]
        active = lanes if guard is None or (taken := guard(lanes)).all() else lanes.where(taken)
        at, done = self.at, None
        if active.count:
            with np.errstate(all="ignore"):
                done = execute(active)
        if self.counters is not None:
            executed = active if done is None else done
            self.counters.issue(at, executed.count, executed.warp_count())
        if done is None:
            self.go_to(at + 1)
        return True

    def schedule(self) -> bool:
        """Choose the lanes that go on: those that are farthest behind. False at the end of the launch."""
        while not (runs := (self.pc < self.end) & (self.waiting == RUNNING)).any():
            if (self.pc < self.end).any():
                warp.fail_if_waiting(self)
                barrier.release(self)
            elif not self._start_wave():
                return False
        self.at = int(self.place_of[self.pc[runs]].min() % (self.end + 1))
        ready = (self.pc < self.end) & (self.waiting != AT_BARRIER)  # with those that wait for others of their warp
        here = ready & (self.pc == self.at)
        others = self.place_of[self.pc[ready & ~here]]
        self.next_place = int(others.min(initial=self.places[-1]))  # of the others
        self.waiting[here] = RUNNING
        self.group = Lanes(np.flatnonzero(here))
        return True

    def _start_wave(self) -> bool:
        if not self.threads.next_wave():
            if not self.finished:
                self.memory.write_back()
            self.finished = True
            return False
        self.pc[:] = np.where(self.threads.exists, 0, self.end)
        self.waiting[:] = RUNNING
        self.left_at = np.full_like(self.pc, -1)  # where a lane left the kernel, or jumped to a return
        self.warp_exists = warp.bits(self.threads.exists)  # (warps,)
        self.mask = np.full(self.threads.lanes, warp.FULL)  # of the warp instruction that a lane waits at
        self.clock.start(int(self.threads.number[0]), self.threads.lanes)
        self.copies.start()
        for region in (self.memory.shared, self.memory.local):
            self.memory.bytes[region.start : region.end] = FREE
            if region.shadow is not None:
                region.shadow.clear()
        return True

    def go_to(self, pc: int):
        """The group is at `pc`; where others are, or are behind, who goes on is to be chosen anew."""
        if self.places[pc] >= self.next_place:
            self.place(self.group, pc)
        self.at = pc

    def place(self, lanes: Lanes, pc: int):
        """These lanes are at `pc`; who goes on is to be chosen anew."""
        self.pc[lanes.index] = pc
        self.group = None

    # Instructions

    def _decode(self, index: int, instruction: Instruction) -> tuple[Callable | None, Callable]:
        """(reader of the predicate or None, function that executes the instruction for some lanes).

        The function gives None where all lanes then go on to the next instruction. Otherwise it has said itself where
        each lane of the group is, and gives those that executed the instruction, the others having to wait.
        """
        self.at = index
        try:
            guard = None
            if instruction.predicate:
                negated, register = instruction.predicate
                guard = self.registers.reader("!" * negated + register, "pred")
            for decode in (_control, access.decode, barrier.decode, warp.decode, async_copy.decode, compute.decode):
                if (execute := decode(self, instruction)) is not None:
                    return guard, execute
        except SimulationError as error:
            where = f", line {instruction.line}" if instruction.line else ""
            raise SimulationError(f"{self.kernel.name}{where}: {instruction}: {error}") from None

    def branch(self, taken: Lanes, target: int, leaves: bool):
        """These lanes of the group jump, the others do not. leaves: to a return."""
        if leaves:
            self.left_at[taken.index] = self.at
        if taken.count == self.group.count:
            self.go_to(target)
        else:
            self.pc[self.group.index] = self.at + 1
            self.place(taken, target)
        return taken

    def leave(self, leaving: Lanes):
        """These lanes of the group have come to an end."""
        self.pc[self.group.index] = self.at + 1
        at = self.left_at[leaving.index]
        self.left_at[leaving.index] = np.where(at < 0, self.at, at)
        self.waiting[self.waiting == warp.IN_WARP] = RUNNING  # which may have waited for these
        self.place(leaving, self.end)
        return leaving

    def window(self, region: Region, lanes: Lanes) -> np.ndarray:
        """Where each lane's own part of the region starts."""
        slot = {"shared": self.threads.slot, "local": np.arange(self.threads.lanes)}.get(region.space)
        if slot is None:
            return np.zeros(lanes.count, np.int64)
        return region.start + slot[lanes.index] * region.stride

    # Words

    def who(self, lane: int) -> str:
        """Words for the thread in a lane."""
        return self.threads.who(self.threads.number[lane])

    def line_of(self, pc: int) -> str:
        """Words for the line of source of an instruction, if -lineinfo gave one."""
        line = self.kernel.instructions[pc].line
        return f" (line {line})" if line else ""

    def fail(self, message: str, lane: int):
        """Raise SimulationError: kernel, line, thread and block, what is wrong, the instruction."""
        instruction = self.kernel.instructions[self.at]
        line = f", line {instruction.line}" if instruction.line else ""
        raise SimulationError(f"{self.kernel.name}{line}, {self.who(lane)}: {message}\n  {instruction}")


def _control(machine: Machine, instruction: Instruction) -> Callable | None:
    """Branches, returns, and what has no effect."""
    if instruction.name == "bra":
        label = instruction.operands[0]
        if label not in machine.kernel.labels:
            raise SimulationError(f"label {label} is not in this kernel")
        target = machine.kernel.labels[label]
        leaves = target < machine.end and machine.kernel.instructions[target].name in ("ret", "exit")
        return lambda taken: machine.branch(taken, target, leaves)
    if instruction.name in ("ret", "exit"):
        return machine.leave
    if instruction.name == "trap":
        return lambda lanes: machine.fail("the kernel called trap", lanes.ids[0])
    if instruction.name == "call":
        raise SimulationError("calls are not supported: make the device function __forceinline__")
    return (lambda lanes: None) if instruction.name in NO_EFFECT else None
