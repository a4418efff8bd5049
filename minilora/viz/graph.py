"""A graph of computations as SVG text: boxes from left to right, each after those it comes from.

draw([Box("w", "3 × 2"), Box("sum", "a number", (0,))], "A graph")
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from minilora.viz.charts import BLUE, FAINT, GROUND, INK, ORANGE, WIDTH, document, text
from minilora.viz.picture import Picture

BOX, HIGH, ACROSS, DOWN = 104, 44, 148, 64  # pixels: a box, and from one to the next


@dataclass(frozen=True)
class Box:
    """parents: numbers of earlier boxes; a box without any is a leaf."""

    label: str
    shape: str
    parents: tuple[int, ...] = ()


def draw(
    boxes: Sequence[Box], title: str, lines: Sequence[str] = (), current: int | None = None,
    done: Collection[int] = (), sent: Collection[int] = (),
) -> Picture:  # fmt: skip
    """lines: text beneath. current: the box that is looked at; done: those passed before; sent: those it sends to."""
    places = _places(boxes)
    height = max(y for _, y in places) + HIGH + 12
    width = max(WIDTH, max(x for x, _ in places) + BOX + 12)
    parts = []
    for i, box in enumerate(boxes):
        x, y = places[i]
        colour, thick = (ORANGE, 2.5) if i == current else (INK, 1)
        for parent in box.parents:
            px, py = places[parent]
            parts.append(
                f'<line x1="{px + BOX}" y1="{py + HIGH / 2}" x2="{x}" y2="{y + HIGH / 2}" stroke="{colour}" '
                f'stroke-width="{thick}"/>'
            )
    for i, box in enumerate(boxes):
        x, y = places[i]
        colour = ORANGE if i == current or i in sent else BLUE if i in done else INK
        parts.append(
            f'<rect x="{x}" y="{y}" width="{BOX}" height="{HIGH}" rx="6" fill="{GROUND if box.parents else FAINT}" '
            f'stroke="{colour}" stroke-width="{2.5 if i == current else 1.2}"/>'
        )
        parts.append(text(x + BOX / 2, y + 18, box.label[:15], "middle", bold=True))
        parts.append(text(x + BOX / 2, y + 35, box.shape, "middle"))
    for line in lines:
        parts.append(text(12, height + 8, line))
        height += 19
    described = "; ".join(
        f"{box.label} {box.shape}" + f" from {', '.join(boxes[p].label for p in box.parents)}" * bool(box.parents)
        for box in boxes
    )
    return document(title, height, parts, described, width)


def _places(boxes: Sequence[Box]) -> list[tuple[int, int]]:
    """The upper left corners. A box's column is the longest way from a leaf; a leaf's is beside its first use. Rows are
    filled from above, leaves last."""
    columns, filled, places = [], {}, {}
    for box in boxes:
        columns.append(max((columns[parent] + 1 for parent in box.parents), default=0))
    for i, box in enumerate(boxes):
        if not box.parents:
            columns[i] = min((columns[n] for n, other in enumerate(boxes) if i in other.parents), default=1) - 1
    for i in sorted(range(len(boxes)), key=lambda i: (not boxes[i].parents, i)):
        filled[columns[i]] = row = filled.get(columns[i], -1) + 1
        places[i] = 12 + columns[i] * ACROSS, 12 + row * DOWN
    return [places[i] for i in range(len(boxes))]
