"""The bits of floating-point numbers, format above format: sign, exponent and fraction.

float_bits([("float16", "0010111001100110", 5, "0.09997559"), ...], "0.1")
"""

from minilora.errors import DataError
from minilora.viz.charts import BLUE, INK, ORANGE, WIDTH, document, text
from minilora.viz.picture import Picture

LEFT, CELL, ROW, TOP = 86, 13, 34, 32  # pixels: the margin, a bit's width, a format's height, and what is above it
_SIGN = "var(--green,#2f855a)"


def float_bits(rows: list[tuple[str, str, int, str]], title: str) -> Picture:
    """A row for each (name, bits, how many of them are the exponent's, its value in words). The first is the sign, the
    exponent's follow, the rest is the fraction. A 1 is filled, a 0 is a frame. Raises DataError for bits that are not 0
    and 1, more than 32, or fewer than a sign and an exponent."""
    parts = [text(LEFT, 16, title, bold=True)]
    for i, (name, bits, exponent, value) in enumerate(rows):
        if set(bits) - {"0", "1"} or not 1 + exponent <= len(bits) <= 32:
            raise DataError(f"{name!r}: a sign, {exponent} bits of exponent and a fraction, 32 in all; not {bits!r}")
        y = TOP + i * ROW
        parts.append(text(LEFT - 8, y + 16, name, "end"))
        for k, bit in enumerate(bits):
            colour = _SIGN if k == 0 else ORANGE if k <= exponent else BLUE
            x = LEFT + k * CELL + 3 * ((k > 0) + (k > exponent))
            parts.append(
                f'<rect x="{x}" y="{y}" width="{CELL - 2}" height="22" fill="{colour}" stroke="{colour}" class="bit" '
                f'fill-opacity="{1 if bit == "1" else 0}"/>'
            )
            parts.append(text(x + CELL / 2 - 1, y + 15, bit, "middle", "var(--ground,#fff)" if bit == "1" else INK))
        parts.append(text(LEFT + len(bits) * CELL + 14, y + 16, value))
    y, x = TOP + len(rows) * ROW + 6, LEFT
    for colour, words in ((_SIGN, "sign"), (ORANGE, "exponent"), (BLUE, "fraction")):
        parts.append(f'<rect x="{x}" y="{y}" width="10" height="10" fill="{colour}"/>')
        parts.append(text(x + 15, y + 9, words))
        x += 34 + 7 * len(words)
    said = "; ".join(
        f"{name}: sign {bits[0]}, exponent {bits[1 : 1 + exponent]}, fraction {bits[1 + exponent :]}, {value}"
        for name, bits, exponent, value in rows
    )
    return document(f"Bits: {title}", y + 20, parts, said, WIDTH)
