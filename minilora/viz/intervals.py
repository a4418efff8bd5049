"""Figures with their uncertainty as SVG text: dots with whiskers in rows, and curves with whiskers.

    dots({"WikiSQL": {"full": (.81, .02), "LoRA": (.80, .03)}}, "exact match", "Methods at one budget")
    curves({"LoRA": [(1, .70, .02), (8, .74, .02)]}, "rank r", "exact match", "Rank", log_x=True)

A figure is (mean, half width of its interval); a half width that is NaN is none.
"""

import math
from html import escape

from minilora.viz.charts import FAINT, INK, RIGHT, SHADES, TOP, WIDTH, Frame, document, number, text, ticks
from minilora.viz.picture import Picture

ROW, GAP, LABEL = 18, 12, 190  # pixels: of a row, between groups, and for the rows' labels


def dots(groups: dict[str, dict[str, tuple[float, float]]], x_label: str, title: str) -> Picture:
    """A row for each figure, under its group's name, on one scale. A label has one colour in all groups."""
    figures = [figure for rows in groups.values() for figure in rows.values()]
    low, high = _span(figures)
    labels = list(dict.fromkeys(label for rows in groups.values() for label in rows))
    bottom = TOP + sum(ROW * (len(rows) + 1) + GAP for rows in groups.values())

    def px(value: float) -> float:
        return LABEL + (value - low) / (high - low) * (WIDTH - 2 * RIGHT - LABEL)

    parts, y = [text(RIGHT, 16, title, bold=True)], TOP
    for tick in ticks(low, high):
        parts.append(_line(px(tick), TOP, px(tick), bottom, FAINT))
        parts.append(text(px(tick), bottom + 14, number(tick), "middle"))
    parts.append(text((LABEL + WIDTH) / 2, bottom + 32, x_label, "middle"))
    for group, rows in groups.items():
        parts.append(text(RIGHT, y + 12, group, bold=True))
        for label, (mean, half) in rows.items():
            y += ROW
            colour = SHADES[labels.index(label) % len(SHADES)]
            parts += [text(LABEL - 12, y + 12, label, "end"), _dot(px(mean), y + 8, colour, _words(label, mean, half))]
            if half == half:
                parts.append(_line(px(mean - half), y + 8, px(mean + half), y + 8, colour))
        y += ROW + GAP
    described = "; ".join(
        f"{group}: {', '.join(_words(label, *figure) for label, figure in rows.items())}"
        for group, rows in groups.items()
    )
    return document(title, bottom + 40, parts, described)


def curves(
    series: dict[str, list[tuple[float, float, float]]], x_label: str, y_label: str, title: str, log_x: bool = False,
    levels: dict[str, float] | None = None, log_y: bool = False,
) -> Picture:  # fmt: skip
    """A curve for each series of (x, mean, half width). levels: heights to compare with, dashed, by their label.

    log_x: equal distances are equal factors, and the x of the data are the ticks; x > 0. log_y: the same for heights;
    all are positive then, and a whisker that reaches below half of its figure is cut there.
    """
    scale = math.log2 if log_x else float
    levels = levels or {}
    points = [point for curve in series.values() for point in curve]
    xs = sorted({x for x, _, _ in points})
    margin = 0.04 * (scale(xs[-1]) - scale(xs[0])) or 1
    x_span = scale(xs[0]) - margin, scale(xs[-1]) + margin
    shown, room = [], (x_span[1] - x_span[0]) / 12
    for x in xs if log_x else []:
        if not shown or scale(x) - shown[-1][0] > room:
            shown.append((scale(x), number(x)))
    low, high = _span([(mean, half) for _, mean, half in points] + [(level, math.nan) for level in levels.values()])
    if log_y:
        low = min([*(mean / 2 for _, mean, _ in points), *levels.values()])
    frame = Frame(x_span, (low, high), x_label, y_label, title, log_y, x_ticks=shown if log_x else None)
    for label, level in levels.items():
        frame.parts.append(_line(frame.left, frame.py(level), frame.right, frame.py(level), INK, "4 3"))
        frame.text(frame.right, frame.py(level) - 4, label, "end")
    for i, (label, curve) in enumerate(series.items()):
        colour = SHADES[i % len(SHADES)]
        frame.line([(scale(x), mean) for x, mean, _ in curve], colour)
        for x, mean, half in curve:
            at = frame.px(scale(x))
            frame.parts.append(_dot(at, frame.py(mean), colour, f"{number(x)}: {_words(label, mean, half)}"))
            if half == half:
                bottom = max(mean - half, mean / 2) if log_y else mean - half
                frame.parts.append(_line(at, frame.py(bottom), at, frame.py(mean + half), colour))
    frame.legend([(label, SHADES[i % len(SHADES)]) for i, label in enumerate(series)])
    return frame.svg()


def _span(figures: list[tuple[float, float]]) -> tuple[float, float]:
    """What the figures with their whiskers cover, and a twentieth more."""
    reach = [value for mean, half in figures for value in ((mean - half, mean + half) if half == half else (mean,))]
    low, high = min(reach), max(reach)
    margin = 0.05 * (high - low) or 0.1 * abs(high) or 1
    return low - margin, high + margin


def _words(label: str, mean: float, half: float) -> str:
    return f"{label} {mean:.3g}" + (f" ± {half:.2g}" if half == half else "")


def _dot(x: float, y: float, colour: str, title: str) -> str:
    return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5" fill="{colour}"><title>{escape(title)}</title></circle>'


def _line(x1: float, y1: float, x2: float, y2: float, colour: str, dashes: str = "none") -> str:
    return (
        f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{colour}" stroke-width="1.5" '
        f'stroke-dasharray="{dashes}"/>'
    )
