"""Pictures of codes: where their levels lie, where their error comes from, and what more bits buy.

    levels_under_histogram(density, {"nf4": levels}, title)
    error_by_level({"nf4": {"levels": levels, "error": shares, "mse": mse}}, title)
    bits_against({"nf4": [(4.5, 0.094, "64"), ...]}, "relative weight error", title)

Each returns an SVG as text.
"""

import math
from html import escape
from itertools import pairwise

from minilora.viz.charts import BLUE, FAINT, HEIGHT, ORANGE, RIGHT, SHADES, TOP, WIDTH, Frame, document, number

LEFT = 66
_SPAN = WIDTH - LEFT - RIGHT
_PANEL = 62  # height of a code's panel


def _at(x: float) -> float:
    """Where x in [-1, 1] is drawn."""
    return LEFT + (x + 1.01) / 2.02 * _SPAN


def _text(x: float, y: float, text: str, anchor: str = "start") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _short(name: str, letters: int) -> str:
    return name if len(name) <= letters else name[: letters - 1] + "…"


def _box(left: float, right: float, base: float, height: float, colour: str, title: str = "") -> str:
    box = (
        f'<rect x="{left:.1f}" y="{base - height:.1f}" width="{max(right - left - 0.5, 0.5):.1f}" '
        f'height="{height:.1f}" fill="{colour}" opacity="0.6"'
    )
    return f"{box}><title>{escape(title)}</title></rect>" if title else f"{box}/>"


def _tick(x: float, top: float, height: float, title: str = "") -> str:
    return (
        f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{top:.1f}" y2="{top + height:.1f}" stroke="{ORANGE}" stroke-width="2">'
        f"<title>{escape(title)}</title></line>"
    )


def _axis(y: float) -> list[str]:
    """Numbers from -1 to 1, and beneath them what they are."""
    numbers = [_text(_at(x), y, number(x), "middle") for x in (-1, -0.5, 0, 0.5, 1)]
    return [*numbers, _text(LEFT + _SPAN / 2, y + 20, "weight / absmax of its block", "middle")]


def levels_under_histogram(density: list[float], codes: dict[str, list[float]], title: str) -> str:
    """The density of weights / absmax in equal bins from -1 to 1, and beneath it a row of ticks: each code's levels."""
    base, top = 180.0, max(density) * 1.04
    edges = [_at(-1 + 2 * i / len(density)) for i in range(len(density) + 1)]
    parts = [
        _box(left, right, base, height / top * (base - TOP), BLUE)
        for (left, right), height in zip(pairwise(edges), density, strict=True)
    ]
    parts += [_text(LEFT, 16, _short(title, 82)), _text(LEFT, TOP + 10, f"density, up to {max(density):.2f}")]
    y = base + 10
    for name, levels in codes.items():
        parts.append(_text(LEFT - 6, y + 11, _short(name, 8), "end"))
        parts += [_tick(_at(level), y, 14, f"{name}: {level:.4f}") for level in levels]
        y += 22
    parts += _axis(y + 14)
    described = f"A histogram of the weights; beneath it, on the same axis, the levels of {', '.join(codes)}."
    return document(f"Levels under a histogram: {title}", y + 42, parts, described)


def error_by_level(codes: dict[str, dict], title: str) -> str:
    """A panel for each code: over a level's cell a box whose area is its part of the squared error, all to one scale.

    codes: name -> levels (sorted), error (each level's share of the squared error; they sum to 1), mse (all of it).
    """
    panels = {}
    for name, code in codes.items():
        levels = code["levels"]
        borders = [-1, *((a + b) / 2 for a, b in pairwise(levels)), 1]
        panels[name] = [
            (left, right, share, share * code["mse"] / (right - left))
            for (left, right), share in zip(pairwise(borders), code["error"], strict=True)
        ]
    top = max((height for boxes in panels.values() for *_, height in boxes), default=0) or 1
    parts, base = [_text(LEFT, 16, _short(title, 82))], 22.0
    for name, boxes in panels.items():
        base += _PANEL + 26
        shown = f"{_short(name, 40)}: mean squared error {codes[name]['mse']:.3g} of the weights' mean square"
        parts.append(_text(LEFT, base - _PANEL - 6, shown))
        for left, right, share, height in boxes:
            shown = f"{name}, {left:.3f} to {right:.3f}: {share:.1%} of its squared error"
            parts.append(_box(_at(left), _at(right), base, height / top * _PANEL, BLUE, shown))
        parts.append(f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{base}" y2="{base}" stroke="{FAINT}"/>')
        parts += [_tick(_at(level), base, 6, f"{level:.4f}") for level in codes[name]["levels"]]
    parts += _axis(base + 24)
    described = "The larger a box, the more squared error comes from the weights in that cell. " + "; ".join(
        f"{name}: most ({share:.0%}) from {left:.2f} to {right:.2f}"
        for name, boxes in panels.items()
        for left, right, share, _ in [max(boxes, key=lambda box: box[2])]
    )
    return document(f"Squared error by level: {title}", base + 54, parts, described)


def bits_against(series: dict[str, list[tuple]], y_label: str, title: str) -> str:
    """A line for each quantizer through its (bits per weight, y, blocksize) points; bits None: a dotted line at y.

    Quantizers of more than 7 bits have a plot of their own beside the others'. y is on a logarithmic scale; points that
    are not positive and finite cannot be drawn and are left out.
    """
    drawn = {name: sorted((p for p in line if 0 < p[1] < math.inf), key=lambda p: p[0] or 0)
             for name, line in series.items()}  # fmt: skip
    wide = {name for name, line in drawn.items() if all((bits or 0) > 7 for bits, *_ in line)}
    few = [name for name in drawn if name not in wide]
    style = {name: (i, SHADES[i % len(SHADES)]) for i, name in enumerate([*few, *sorted(wide)])}
    parts = [_text(LEFT, 16, _short(title, 82))]
    for names, left, right in ((few, LEFT, 430.0), (sorted(wide), 486.0, WIDTH - RIGHT)):
        if lines := {name: drawn[name] for name in names if drawn[name]}:
            parts += _lines(lines, style, y_label if left == LEFT else "", left, right)
    x, y = LEFT, HEIGHT + 14.0
    for name, (i, colour) in style.items():
        shown = _short(name, 40)
        width = 30 + 7.6 * len(shown)
        if x > LEFT and x + width > WIDTH:
            x, y = LEFT, y + 18
        parts += [_marker(i, x + 5, y - 4, colour, name), _text(x + 14, y, shown)]
        x += width
    described = f"For each quantizer, {y_label}, smaller being better, over the bits that a weight takes."
    return document(f"{y_label} against bits: {title}", y + 12, parts, described)


def _lines(lines: dict[str, list[tuple]], style: dict, y_label: str, left: float, right: float) -> list[str]:
    """One plot; the blocksizes are written above the line that reaches highest."""
    bits = [b for line in lines.values() for b, *_ in line if b is not None] or [4, 5]
    values = [y for line in lines.values() for _, y, _ in line]
    margin = 0.06 * (max(bits) - min(bits)) or 0.5
    frame = Frame((min(bits) - margin, max(bits) + margin), (min(values) / 1.1, max(values) * 1.25), "bits per weight",
                  y_label, "", True, left, right)  # fmt: skip
    for name, line in lines.items():
        i, colour = style[name]
        dash = ' stroke-dasharray="5 4"' if i >= len(SHADES) else ""  # a colour's second turn
        path = " ".join(f"{frame.px(b):.1f},{frame.py(y):.1f}" for b, y, _ in line if b is not None)
        frame.parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.5"{dash}/>')
        for b, y, blocks in line:
            if b is None:
                ends = f'x1="{left}" x2="{right}" y1="{frame.py(y):.1f}" y2="{frame.py(y):.1f}"'
                frame.parts.append(f'<line {ends} stroke="{colour}" stroke-dasharray="2 3"/>')
            else:
                shown = f"{name}, blocks {blocks}: {b:.4g} bits, {y:.4g}"
                frame.parts.append(_marker(i, frame.px(b), frame.py(y), colour, shown))
    free = math.inf
    for b, y, blocks in reversed(max(lines.values(), key=lambda line: max(y for _, y, _ in line))):
        if b is None or frame.px(b) + 4 * len(blocks) > free:
            break
        frame.text(frame.px(b), frame.py(y) - 8, blocks, "middle")
        free = frame.px(b) - 4 * len(blocks) - 4
    return frame.parts


def _marker(i: int, x: float, y: float, colour: str, title: str) -> str:
    """A circle, square, triangle or diamond: told apart without their colour."""
    shapes = (
        f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4"',
        f'<rect x="{x - 3.5:.1f}" y="{y - 3.5:.1f}" width="7" height="7"',
        f'<path d="M{x:.1f} {y - 4.5:.1f}l4.5 8h-9z"',
        f'<path d="M{x:.1f} {y - 5:.1f}l5 5l-5 5l-5 -5z"',
    )
    shape = shapes[i % 4]
    return f'{shape} fill="{colour}"><title>{escape(title)}</title></{shape[1:].partition(" ")[0]}>'
