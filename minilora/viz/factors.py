"""A matrix beside two thin factors of its shape, drawn to scale: why B A has fewer numbers than W, and the same shape.

low_rank(512, 512, 8)
"""

from minilora.errors import DataError
from minilora.viz.charts import BLUE, FAINT, INK, ORANGE, document, text
from minilora.viz.picture import Picture

ROOM, LEFT, TOP = 190.0, 50.0, 40.0  # pixels: for the longest side, and around


def low_rank(d_out: int, d_in: int, r: int) -> Picture:
    """W (d_out, d_in), B (d_out, r) and A (r, d_in) on one scale, with their numbers of entries.

    Raises DataError unless all are at least 1. A rank above min(d_out, d_in) is drawn, and said to save nothing.
    """
    if min(d_out, d_in, r) < 1:
        raise DataError(f"sizes are at least 1, not d_out={d_out}, d_in={d_in}, r={r}")
    unit = ROOM / max(d_out, d_in, r)
    high, wide, thin = (max(2.0, n * unit) for n in (d_out, d_in, r))
    full, factors = d_out * d_in, r * (d_out + d_in)
    parts, x = [], LEFT
    boxes = (
        ("W", wide, high, FAINT, (d_out, d_in)),
        ("B", thin, high, BLUE, (d_out, r)),
        ("A", wide, thin, ORANGE, (r, d_in)),
    )
    for name, w, h, colour, shape in boxes:
        if name == "B":
            parts.append(text(x + 12, TOP + high / 2 + 5, "+", bold=True))
            x += 44
        label = f"{name}  {shape[0]:,} × {shape[1]:,}"
        parts.append(
            f'<rect x="{x:.1f}" y="{TOP:g}" width="{w:.1f}" height="{h:.1f}" fill="{colour}" stroke="{INK}">'
            f"<title>{label}: {shape[0] * shape[1]:,} numbers</title></rect>"
        )
        parts.append(text(x, TOP - 8, label))
        x += max(w, 8.0 * len(label)) + 22
    height = TOP + max(high, thin) + 34
    percent = f"{factors / full:.2%}" if factors < full else "no saving: r is too large"
    parts.append(text(LEFT, height - 10, f"W has {full:,} numbers, B and A together {factors:,} ({percent})"))
    title = f"W and its update B A of rank {r}"
    said = f"W is {d_out} by {d_in}; B is {d_out} by {r}; A is {r} by {d_in}; the product B A has W's shape."
    return document(title, height, parts, said)
