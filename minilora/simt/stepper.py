"""Walk through a kernel: one instruction, or to the next barrier; registers and shared memory as tables.

    stepper = Stepper(program, "reverse", grid=1, block=64, args=(Buffer(x), Buffer(y)), source=source)
    stepper.next_instruction()                     # 12  tile[i] = x[i];    ld.global.f32 %f1, [%rd6]    64 of 64 lanes
    stepper.registers(block=0, warp=1)["%f1"]      # float32 (32,): a value for each lane
    stepper.next_barrier()                         # every thread waits at __syncthreads, or the kernel has ended
    stepper.shared(block=0)["tile"]

In a notebook each of these shows itself as an HTML table. What is shown as executed is the instruction just done. The
arrays of `args` hold the results once `finished` is true.
"""

from dataclasses import dataclass
from html import escape

import numpy as np

from minilora.errors import SimulationError
from minilora.simt.machine import Machine
from minilora.simt.memory import readable
from minilora.simt.ptx import Instruction
from minilora.simt.signature import TYPES

SHOWN = {"b8": "s8", "b16": "u16", "b32": "s32", "b64": "s64"}  # how registers without a kind of number are read
WARPS, COLUMNS = 8, 32  # shown of a step; of a table


@dataclass(frozen=True)
class Step:
    """An instruction that was executed. lanes: (block, warp) -> 32 bools, of the warps that took part."""

    instruction: Instruction
    text: str  # of the source line, where it is known
    lanes: dict[tuple[int, int], np.ndarray]

    @property
    def line(self) -> int | None:
        return self.instruction.line

    def __str__(self) -> str:
        active = sum(int(mask.sum()) for mask in self.lanes.values())
        return f"{self.line or '':>4}  {self.text.strip():40}  {self.instruction}    {active} lanes"

    def _repr_html_(self) -> str:
        rows = {
            f"block {block}, warp {warp}": ["1" if lane else "." for lane in mask]
            for (block, warp), mask in list(self.lanes.items())[:WARPS]
        }
        more = f"; {len(self.lanes) - WARPS} more warps" if len(self.lanes) > WARPS else ""
        where = f"line {self.line}: {self.text.strip()}" if self.line else "no line"
        return _html(f"{self.instruction} ({where}). Lanes that executed it{more}", rows)


class Table(dict):
    """Name -> array. Shows itself as text and as HTML: a row for each, or for each 32 numbers of it."""

    caption = ""

    def __str__(self) -> str:
        return "\n".join([self.caption, *(f"{name:>12}  {' '.join(map(_text, v.flat))}" for name, v in self.items())])

    def _repr_html_(self) -> str:
        rows = {}
        for name, values in self.items():
            flat = values.reshape(-1)
            for start in range(0, len(flat), COLUMNS):
                label = name if len(flat) <= COLUMNS else f"{name}[{start}...]"
                rows[label] = [_text(v) for v in flat[start : start + COLUMNS]]
        return _html(self.caption, rows)


class Stepper:
    """source: the CUDA C, to show its lines. options: as Machine's. Raises what running the kernel would raise."""

    def __init__(self, program, name: str, grid, block, args, source: str = "", **options):
        self.machine = Machine(program, name, grid, block, args, **options)
        self.lines = source.split("\n")
        self.step: Step | None = None
        self.written: list[str] = []  # registers, the last written at the end

    @property
    def finished(self) -> bool:
        """Whether every thread has ended."""
        return self.machine.finished

    def next_instruction(self) -> Step | None:
        """Execute one instruction for the lanes that are farthest behind; None at the end."""
        machine = self.machine
        if machine.group is None and not machine.schedule():
            return None
        instruction, group = machine.kernel.instructions[machine.at], machine.group.ids
        if instruction.predicate:
            negated, register = instruction.predicate
            group = group[machine.registers.array(register)[group] != negated]
        masks = np.zeros((machine.threads.lanes // 32, 32), bool)
        masks.reshape(-1)[group] = True
        machine.step()
        for name in machine.registers.arrays:  # of the destination, "%r1", "%p1|%p2" or "{%r1, %r2}"
            if instruction.operands and name in instruction.operands[0].strip("{}").replace("|", ", ").split(", "):
                self.written = [n for n in self.written if n != name] + [name]
        warps_of_block = machine.threads.block_lanes // 32
        lanes = {self._place(w, warps_of_block): masks[w] for w in np.flatnonzero(masks.any(axis=1))}
        self.step = Step(instruction, self._source(instruction.line), lanes)
        return self.step

    def next_barrier(self) -> Step | None:
        """Execute until every thread that has not ended waits at a barrier, or all have ended; the last step."""
        last = None
        while (step := self.next_instruction()) is not None:
            last = step
            machine = self.machine
            if machine.group is None and not ((machine.pc < machine.end) & (machine.waiting == 0)).any():
                break
        return last

    def registers(self, block: int = 0, warp: int = 0, names=None) -> Table:
        """Name -> (32,) of the warp's lanes. names: which; by default those written so far, the last at the end."""
        first = self._slot(block) * self.machine.threads.block_lanes + 32 * warp
        if not 0 <= 32 * warp < self.machine.threads.block_lanes:
            raise SimulationError(f"warp {warp}: a block has {self.machine.threads.block_lanes // 32}")
        types, table = self.machine.kernel.registers, Table()
        for name in self.written if names is None else names:
            if name not in types:
                raise SimulationError(f"{name} is not a register of {self.machine.kernel.name}")
            values = self.machine.registers.array(name)[first : first + 32]
            table[name] = values.view(TYPES[SHOWN.get(types[name], types[name])]).copy()
        table.caption = f"Registers of block {block}, warp {warp}, by lane"
        return table

    def shared(self, block: int = 0, dtype=np.float32) -> Table:
        """Name -> what each __shared__ variable of the block holds, flat, its bytes read as `dtype`."""
        memory, table, itemsize = self.machine.memory, Table(), np.dtype(dtype).itemsize
        start = memory.shared.start + self._slot(block) * memory.shared.stride
        for segment in memory.shared.segments:
            size = segment.size // itemsize * itemsize
            data = memory.bytes[start + segment.start : start + segment.start + size]
            table[readable(segment.name)] = data.copy().view(dtype)
        table.caption = f"Shared memory of block {block} as {np.dtype(dtype).name}"
        return table

    def _repr_html_(self) -> str:
        return self.step._repr_html_() if self.step else "<p>Nothing has been executed.</p>"

    def _place(self, warp: int, warps_of_block: int) -> tuple[int, int]:
        """(block, warp in it) of a warp of the wave."""
        return self.machine.threads.first_block + int(warp) // warps_of_block, int(warp) % warps_of_block

    def _slot(self, block: int) -> int:
        """The block's place in the wave, whose blocks alone are there to be looked at."""
        threads = self.machine.threads
        first = max(threads.first_block, 0)
        if not first <= block < min(first + threads.wave, threads.blocks):
            last = min(first + threads.wave, threads.blocks) - 1
            raise SimulationError(f"block {block} does not run now; blocks {first} to {last} do")
        return block - first

    def _source(self, line: int | None) -> str:
        return self.lines[line - 1] if line and line <= len(self.lines) else ""


def _text(value) -> str:
    if isinstance(value, np.bool_):
        return "1" if value else "0"
    return f"{value:.6g}" if isinstance(value, np.floating) else str(value)


def _html(caption: str, rows: dict[str, list[str]]) -> str:
    """A table with a heading for each row and column, for screen readers too."""
    columns = max((len(cells) for cells in rows.values()), default=0)
    head = "".join(f'<th scope="col">{i}</th>' for i in range(columns))
    body = "".join(
        f'<tr><th scope="row">{escape(name)}</th>{"".join(f"<td>{escape(cell)}</td>" for cell in cells)}</tr>'
        for name, cells in rows.items()
    )
    return f"<table><caption>{escape(caption)}</caption><tr><td></td>{head}</tr>{body}</table>"
