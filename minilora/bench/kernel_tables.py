"""The kernel report as Markdown tables, and as a picture; and where in a page they go.

    page = fill(page, sections(machine, runs, gates))

What stands between <!-- kernels report: NAME --> and <!-- end --> is replaced by the section of that name.
"""

import json
import math
import re
from html import escape
from pathlib import Path

from minilora.bench.kernels import GPUS, Gate, MachineRow, RunRow, clocks_per_byte, instructions_per_byte, rows_of
from minilora.bench.ladders import LADDERS
from minilora.errors import DataError
from minilora.files import atomic_write
from minilora.simt.nvrtc import INSTALL
from minilora.tables import markdown_table
from minilora.viz.charts import BLUE, FAINT, INK, ORANGE, WIDTH, document, standalone


def fill(page: str, sections: dict[str, str], report: str = "kernels report") -> str:
    """The page with its tables replaced. report: the words before NAME. Raises DataError for a table that is not."""

    def replaced(match):
        if match[2] not in sections:
            raise DataError(f"the page asks for {match[2]!r}; this report has: {', '.join(sections)}")
        return f"{match[1]}\n{sections[match[2]]}\n\n{match[3]}"

    return re.sub(rf"(<!-- {report}: (.+?) -->\n).*?(<!-- end -->)", replaced, page, flags=re.DOTALL)


def report(found: dict, json_file=None, markdown=None, svg=None, say=print) -> bool:
    """Print what kernels.results found, and write what is asked for: all figures, the tables of a page (fill), the
    picture. Whether all gates hold."""
    rows = rows_of(found)
    tables = sections(*rows)
    for name, text in tables.items():
        say(f"{name}\n\n{aligned(text)}\n")
    if not rows[0]:
        say(f"nothing about machine code: nvdisasm or cuobjdump is not here; {INSTALL}")
    if json_file:
        atomic_write(json_file, as_json(found))
    if markdown:
        atomic_write(markdown, fill(Path(markdown).read_text(encoding="utf-8"), tables))
    if svg:
        atomic_write(svg, standalone(roofline(rows[1])))
    return all(gate.passed for gate in rows[2])


def sections(machine: list[MachineRow], runs: list[RunRow], gates: list[Gate]) -> dict[str, str]:
    """Markdown by name: each ladder's, "bounds", "gpus", "gates"; of machine code "loops" and "machine code"."""
    found = {}
    for name in dict.fromkeys(row.ladder for row in runs):
        found[name] = run_table([row for row in runs if row.ladder == name])
    found |= {"bounds": bounds_table(runs), "gpus": gpus_table()}
    if machine:
        found |= {"loops": loops_table(machine), "machine code": machine_table(machine)}
    return found | {"gates": gates_table(gates)}


def aligned(text: str) -> str:
    """The same table with columns of equal width, for a terminal."""
    lines = [line[2:-2].split(" | ") if line.startswith("|") else [line] for line in text.splitlines()]
    cells = [line for line in lines if len(line) > 1]
    widths = [max(len(line[i]) for line in cells if i < len(line)) for i in range(max(map(len, cells)))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=False)).rstrip()
        if len(line) > 1
        else line[0]
        for line in lines
        if not line[0].startswith("---")
    )


def gates_table(gates: list[Gate]) -> str:
    rows = [(g.name, g.limit, g.found, g.where, "holds" if g.passed else "**fails**") for g in gates]
    return markdown_table(["gate", "limit", "found", "at worst in", ""], rows, "llll")


def gpus_table() -> str:
    """What a GPU may spend on a byte, and on a weight of half a byte with double-quantized scales, while it arrives."""
    rows = []
    for gpu, (processors, ghz, bandwidth) in GPUS.items():
        instructions, passes = instructions_per_byte(gpu), clocks_per_byte(gpu)
        rows.append((gpu, processors, ghz, bandwidth, f"{instructions:.1f}", f"{instructions * 0.516:.1f}",
                     f"{passes:.3f}", f"{passes * 0.516:.4f}"))  # fmt: skip
    heads = ["", "multiprocessors", "GHz", "GB/s", "instructions a byte", "a weight (0.516 bytes)",
             "passes a byte", "a weight"]  # fmt: skip
    return markdown_table(heads, rows)


def bounds_table(runs: list[RunRow]) -> str:
    """What each GPU is busiest with, and how much longer than its memory at the least. Not of the products of many
    rows: what these are bound by, the rate of the tensor cores, is not counted."""
    rows = []
    for row in (row for row in runs if row.unit != "product"):
        cells = []
        for gpu in GPUS:
            what, busy = row.bound(gpu)
            cells.append("memory" if what == "memory" else f"{what} {busy:.2f}x")
        rows.append((f"{row.ladder} v{row.version}", *cells))
    return markdown_table(["", *GPUS], rows, "l" * len(GPUS))


def run_table(runs: list[RunRow]) -> str:
    """A ladder: one row for each step."""
    rows = []
    for r in runs:
        rows.append((f"v{r.version}", f"{r.instructions:.4g}", f"{r.moved:.4g}", f"{r.memory:.4g}",
                     _share(r.efficiency), _share(r.lookup_efficiency), f"{r.passes:.4f}", _factor(r.conflicts),
                     _factor(r.lookup_conflicts), _share(r.active)))  # fmt: skip
    heads = [f"per {runs[0].unit}", "instructions", "bytes moved", "bytes of memory", "sector efficiency", "look-ups'",
             "passes", "conflicts", "look-ups'", "lanes active"]  # fmt: skip
    return f"{runs[0].sizes}:\n\n" + markdown_table(heads, rows)


def machine_table(machine: list[MachineRow]) -> str:
    """Shared memory of a block; on each architecture the registers of a thread, the blocks that are resident on a
    multiprocessor, and the part of its warps that they are. Only of the ladders."""
    order, archs = [ladder.name for ladder in LADDERS], list(dict.fromkeys(row.arch for row in machine))
    rows = sorted((row for row in machine if row.ladder in order), key=lambda r: (order.index(r.ladder), r.version))
    cells = {}
    for row in rows:
        name = row.function + (" (transposed)" if "transposed" in row.ladder else "")
        found = cells.setdefault(name, {"shared": row.shared + row.dynamic})
        found[row.arch] = f"{row.registers} · {row.blocks} x {row.threads} · {row.share:.0%}"
    lines = [(name, found["shared"], *(found.get(arch, "-") for arch in archs)) for name, found in cells.items()]
    return markdown_table(["", "shared memory", *(f"sm_{arch}" for arch in archs)], lines)


def loops_table(machine: list[MachineRow]) -> str:
    """Machine instructions a weight in the loop over W, of the GEMVs that load 16 bytes of it at a time."""
    archs, steps = list(dict.fromkeys(row.arch for row in machine)), {}
    for row in machine:
        if row.ladder == "gemv_4bit" and row.instructions is not None:
            steps.setdefault(row.function, {})[row.arch] = f"{row.instructions:.2f}"
    rows = [(step, *(found.get(arch, "-") for arch in archs)) for step, found in steps.items()]
    return markdown_table(["", *(f"sm_{arch}" for arch in archs)], rows)


def as_json(found: dict) -> str:
    """A line for each row."""
    parts = []
    for name, value in found.items():
        rows = ",\n  ".join(map(json.dumps, value)) if isinstance(value, list) else None
        parts.append(f'"{name}": ' + (json.dumps(value) if rows is None else f"[\n  {rows}\n ]"))
    return "{\n " + ",\n ".join(parts) + "\n}\n"


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"


def _factor(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}x"


def roofline(
    runs: list[RunRow], names: tuple[str, ...] = ("gemv_4bit", "dequantize_4bit_double", "quantize_4bit")
) -> str:
    """SVG: steps by the instructions that they spend on a byte of memory; right of a GPU's line, issuing them takes
    longer than the memory."""
    left, right, low, high = 170, 20, 4.0, 100.0

    def at(value: float) -> float:
        return left + (math.log(value) - math.log(low)) / math.log(high / low) * (WIDTH - left - right)

    height, parts = 60 + 44 * len(names), []
    for tick in (4, 5, 7, 10, 15, 20, 30, 50, 70, 100):
        parts.append(f'<line x1="{at(tick):.1f}" x2="{at(tick):.1f}" y1="36" y2="{height - 4}" stroke="{FAINT}"/>')
        parts.append(f'<text x="{at(tick):.1f}" y="{height + 12}" text-anchor="middle">{tick:g}</text>')
    for i, gpu in enumerate(sorted(GPUS, key=instructions_per_byte)):
        x = at(instructions_per_byte(gpu))
        parts.append(f'<line x1="{x:.1f}" x2="{x:.1f}" y1="30" y2="{height - 4}" stroke="{ORANGE}"/>')
        parts.append(f'<text x="{x:.1f}" y="{26 if i % 2 else 12}" text-anchor="middle" fill="{ORANGE}">{gpu}</text>')
    for i, name in enumerate(names):
        y = 66 + 44 * i
        parts.append(f'<text x="{left - 10}" y="{y + 4}" text-anchor="end">{escape(name)}</text>')
        for row in (row for row in runs if row.ladder == name):
            x = at(min(max(row.instructions / row.memory, low), high))
            parts.append(f'<circle cx="{x:.1f}" cy="{y}" r="4" fill="{BLUE}"/>')
            label = y + 17 if row.version % 2 else y - 8  # neighbours may lie at the same place
            parts.append(f'<text x="{x:.1f}" y="{label}" text-anchor="middle" fill="{INK}">v{row.version}</text>')
    parts.append(f'<text x="{(left + WIDTH - right) / 2}" y="{height + 30}" text-anchor="middle">'
                 "thread instructions for a byte of memory</text>")  # fmt: skip
    said = "Steps right of a GPU's line spend more instructions on a byte than that GPU issues while it arrives."
    return document("Instructions against memory", height + 40, parts, said)
