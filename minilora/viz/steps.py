"""A kernel's steps as pictures: who takes part, what registers and shared memory hold, the two parties of a race.

moments = record(simt.Stepper(program, "absmax", 2, 8, args, source=source))
walk(moments, source)                  # line by line, with next and previous: tables, a column for each thread
over_time(moments, source, "...")      # all lines in one picture: a row for each, a cell for each thread
race(error, source)                    # of the SimulationError that a launch has raised
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import numpy as np

from minilora.errors import DataError
from minilora.viz.charts import BLUE, FAINT, INK, ORANGE, WIDTH, document, text
from minilora.viz.picture import Picture, pages

CELLS = 32  # columns of a table
_HIDDEN = "cvta", "bra", "ret", "exit", "mov"
_PARTY = re.compile(
    r"line (?P<line>\d+), thread \((?P<thread>\d+).*?\) of block \((?P<block>\d+).*?race: (?P<kind>\w+ \w+) of "
    r"(?P<cell>.+?), and (?P<kind2>\w+) by thread \((?P<thread2>\d+).*?\) of block \((?P<block2>\d+).*?\)"
    r"(?: at .*?\(line (?P<line2>\d+)\)| in the (?P<same>same) instruction)",
    re.DOTALL,
)
_CHANGED = f";color:{ORANGE};font-weight:bold"


@dataclass(frozen=True)
class Moment:
    """A source line as far as some threads of one block went together. active: (threads,) bool. registers: what the
    line computed, "%f5 = max.f32 %f3, %f4" -> (threads,). shared: name -> what each variable then held, flat."""

    line: int
    active: np.ndarray
    registers: dict[str, np.ndarray]
    shared: dict[str, np.ndarray]


def record(stepper, block: int = 0, dtype=np.float32) -> list[Moment]:
    """Run a simt.Stepper to its end. Instructions that only make addresses, or jump, are left out. dtype: of shared
    memory. Raises what the kernel does wrong, as the stepper does."""
    moments, before, threads = [], None, stepper.machine.threads.size
    while (step := stepper.next_instruction()) is not None:
        instruction, warps = step.instruction, {w: lanes for (b, w), lanes in step.lanes.items() if b == block}
        to = instruction.operands[0] if instruction.operands else ""
        if not warps or not step.line or instruction.name in _HIDDEN or to.startswith("%rd"):
            continue
        if instruction.opcode.startswith("ld.param"):
            continue
        active = np.zeros(-(-threads // 32) * 32, bool)
        registers = {}
        for warp, lanes in warps.items():
            active[32 * warp : 32 * warp + 32] = lanes
        if re.fullmatch(r"%\w+", to) and instruction.name not in ("bar", "barrier", "st", "red"):
            values = [stepper.registers(block, w, [to])[to] for w in range(len(active) // 32)]
            registers[f"{to} = {instruction.opcode} {', '.join(instruction.operands[1:])}"] = np.concatenate(values)
        registers = {name: values[:threads] for name, values in registers.items()}
        if step.line == before and instruction.name not in ("bar", "barrier"):
            registers = moments.pop().registers | registers
        moments.append(Moment(step.line, active[:threads], registers, dict(stepper.shared(block, dtype))))
        before = step.line
    return moments


def walk(moments: Sequence[Moment], source: str) -> Picture:
    """HTML: a page for each moment, the source with the line that was executed, and beneath it tables with a column
    for each thread, or each number of shared memory. Raises DataError for more columns than CELLS."""
    widest = max((len(m.active) for m in moments), default=0)
    if widest > CELLS:
        raise DataError(f"walk shows blocks of at most {CELLS} threads, this one has {widest}; see over_time")
    seen, shared = [], {}
    for moment in moments:
        seen.append(_listing(source, moment.line) + _table(moment, shared))
        shared = moment.shared
    return pages(seen)


def over_time(moments: Sequence[Moment], source: str, title: str) -> Picture:
    """SVG: a row for each moment, a cell for each thread of the block, filled where it took part."""
    lines, parts, left = source.split("\n"), [], 330
    threads = max((len(m.active) for m in moments), default=1)
    size = min(20.0, (WIDTH - left - 12) / threads)
    parts.append(text(left, 30, "thread 0 to " + str(threads - 1)))
    for row, moment in enumerate(moments):
        y = 38 + 18 * row
        parts.append(text(12, y + 12, f"{moment.line:>2}  {_short(lines[moment.line - 1].strip(), 46)}"))
        for thread, active in enumerate(moment.active):
            look = f'fill="{BLUE}"' if active else f'fill="none" stroke="{FAINT}"'
            x = left + size * thread
            parts.append(f'<rect x="{x:.1f}" y="{y}" width="{0.88 * size:.2f}" height="14" {look}/>')
    said = "; ".join(f"line {m.line}: {int(m.active.sum())} of {len(m.active)} threads" for m in moments)
    return document(title, 38 + 18 * len(moments) + 8, [text(12, 14, title, bold=True), *parts], said)


def race(error: Exception, source: str) -> Picture:
    """SVG: two threads, what each does at which line, and the byte between them. error: a SimulationError that tells
    of a race. Raises DataError for any other."""
    found = _PARTY.search(str(error))
    if found is None:
        raise DataError(f"this tells of no race: {str(error)[:80]!r}")
    lines, first, second = source.split("\n"), found["kind"], found["kind2"]
    line2 = found["line2"] or found["line"]
    parts, said = [], []
    for y, thread, block, line, kind in (
        (40, found["thread2"], found["block2"], line2, second.split()[-1]),
        (120, found["thread"], found["block"], found["line"], first.split()[-1]),
    ):
        said.append(f"thread {thread} of block {block}: {kind} at line {line}")
        colour = ORANGE if kind == "write" else BLUE
        parts.append(f'<rect x="12" y="{y}" width="430" height="56" rx="6" fill="none" stroke="{colour}"/>')
        parts.append(text(24, y + 22, f"thread {thread} of block {block}: {kind}", bold=True))
        parts.append(text(24, y + 42, f"line {line}:  {_short(lines[int(line) - 1].strip(), 58)}"))
        parts.append(f'<line x1="442" y1="{y + 28}" x2="492" y2="108" stroke="{colour}" stroke-width="2"/>')
    where = f"{first.split()[0]} memory"
    parts.append(f'<rect x="492" y="84" width="136" height="48" rx="6" fill="{FAINT}" stroke="{INK}"/>')
    parts += [text(560, 104, where, "middle"), text(560, 122, _short(found["cell"].split(" (")[0], 20), "middle")]
    parts.append(text(12, 200, "No barrier lies between the two: either may come first."))
    return document("A data race", 214, [text(12, 18, "A data race", bold=True), *parts], "; ".join(said))


def _listing(source: str, line: int) -> str:
    rows = []
    for number, words in enumerate(source.split("\n"), 1):
        mark = f"border-left:4px solid {ORANGE};font-weight:bold" if number == line else "border-left:4px solid #0000"
        rows.append(f'<div style="{mark};padding-left:6px;white-space:pre">{number:>2}  {escape(words)}</div>')
    return f'<div style="font-family:monospace;font-size:12px;overflow-x:auto">{"".join(rows)}</div>'


def _table(moment: Moment, before: dict[str, np.ndarray]) -> str:
    rows = [("takes part", ["yes" if a else "" for a in moment.active], moment.active)]
    for name, values in moment.registers.items():
        shown = [_number(v) if a else "" for v, a in zip(values, moment.active, strict=True)]
        rows.append((name, shown, np.zeros(len(shown), bool)))
    for name, values in moment.shared.items():
        changed = np.array([_number(v) for v in values]) != [_number(v) for v in before.get(name, values * np.nan)]
        for start in range(0, len(values), CELLS):
            part = slice(start, start + CELLS)
            label = f"shared {name}" + (f"[{start}...]" if len(values) > CELLS else "")
            rows.append((label, [_number(v) for v in values[part]], changed[part]))
    columns = max(len(cells) for _, cells, _ in rows)
    head = "".join(f'<th scope="col">{i}</th>' for i in range(columns))
    body = "".join(
        f'<tr><th scope="row" style="text-align:left">{escape(name)}</th>'
        + "".join(
            f'<td style="padding:1px 5px;text-align:right{_CHANGED * bool(bold)}">{escape(cell)}</td>'
            for cell, bold in zip(cells, marked, strict=True)
        )
        + "</tr>"
        for name, cells, marked in rows
    )
    caption = "A column for each thread, and for each number of shared memory; what has changed is bold"
    return (
        '<div style="overflow-x:auto"><table style="font-size:12px;min-width:600px">'
        f'<caption style="text-align:left">{caption}</caption>'
        f"<tr><td></td>{head}</tr>{body}</table></div>"
    )


def _number(value) -> str:
    """Short; memory that was never written holds NaN."""
    if isinstance(value, np.floating):
        return "?" if np.isnan(value) else f"{value:.3g}"
    return str(int(value))


def _short(words: str, letters: int) -> str:
    return words if len(words) <= letters else words[: letters - 1] + "…"
