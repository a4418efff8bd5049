"""A model as a tree, drawn from plain data: what is frozen, what is trained, what is quantized.

    svg([Row(0, "lm_head", "Linear(576, 49152)", "frozen", 28_311_552, 0), ...], "model")

Each row is a line with its depth, a square in the colour of its state, and its number of parameters.
"""

from dataclasses import dataclass
from html import escape

from minilora.viz.charts import BLUE, FAINT, INK, ORANGE, WIDTH

GREY = "var(--grey,#718096)"
STATES = {"frozen": GREY, "quantized": BLUE, "trainable": ORANGE}
LINE, INDENT, TOP, CHARACTER = 18, 16, 34, 7.0


@dataclass(frozen=True)
class Row:
    """depth from 0; state: one of STATES, or "" for a module whose parts differ; parameters, and the trained ones."""

    depth: int
    name: str
    text: str
    state: str
    parameters: int
    trainable: int


def svg(rows: list[Row], title: str) -> str:
    """The tree as SVG text, with a legend; `title` and a summary are there for screen readers."""
    total, trained = (sum(getattr(r, part) for r in rows if r.depth == 0) for part in ("parameters", "trainable"))
    summary = f"{total:,} parameters, of which {trained:,} are trained"
    height, parts = TOP + LINE * len(rows) + 8, []
    x = 8
    for state, colour in STATES.items():
        parts.append(_square(x, 8, colour) + _text(x + 15, 17, state))
        x += 30 + CHARACTER * len(state)
    parts.append(_text(WIDTH - 8, 17, summary, "end"))
    for i, row in enumerate(rows):
        x, y = 8 + INDENT * row.depth, TOP + LINE * i
        if row.depth:
            parent = max(j for j in range(i) if rows[j].depth < row.depth)
            corner = f"M{x - 11} {TOP + LINE * parent + 11}V{y + 5}H{x - 3}"
            parts.append(f'<path d="{corner}" fill="none" stroke="{FAINT}"/>')
        parts.append(_square(x, y, STATES.get(row.state)))
        number = f"{row.parameters:,}"
        room = int((WIDTH - 40 - x) / CHARACTER) - len(row.name) - len(number)
        text = row.text if len(row.text) <= room else row.text[: max(0, room - 1)] + "…"
        parts.append(_text(x + 15, y + 9, row.name, bold=bool(row.trainable), after=text))
        parts.append(_text(WIDTH - 8, y + 9, number, "end"))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img" '
        f'aria-label="{escape(title, quote=True)}: {summary}" font-family="sans-serif" font-size="12" fill="{INK}">'
        f"<title>{escape(title)}</title><desc>{escape(summary)}</desc>{''.join(parts)}</svg>"
    )


def _square(x: float, y: float, colour: str | None) -> str:
    paint = f'fill="{colour}"' if colour else f'fill="none" stroke="{GREY}"'
    return f'<rect x="{x}" y="{y}" width="10" height="10" rx="2" {paint}/>'


def _text(x: float, y: float, text: str, anchor: str = "start", bold: bool = False, after: str = "") -> str:
    weight = ' font-weight="bold"' if bold else ""
    more = f'<tspan dx="8" fill="{GREY}">{escape(after)}</tspan>' if after else ""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"><tspan{weight}>{escape(text)}</tspan>{more}</text>'
