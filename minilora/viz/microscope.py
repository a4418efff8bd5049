"""A number line under the microscope: weights, the levels they are rounded to, and the error that each level makes.

    microscope(scaled, CODES["nf4"], "NF4")
    microscope(scaled, CODES["nf4"], "NF4 around zero", window=(-0.2, 0.2))

Every number takes its nearest level (QLoRA, arXiv:2305.14314, section 2). The cell of a level ends halfway to the next.
"""

import numpy as np

from minilora.errors import DataError
from minilora.viz.charts import BLUE, FAINT, INK, ORANGE, RIGHT, WIDTH, document, number, text, ticks
from minilora.viz.picture import Picture

LEFT, LENS, HIGH, SAW, BARS = 64, 40, 120, 44, 70  # pixels: the margin, and the heights of the four panels
CROWDED = 5  # pixels: the level of a narrower cell is a tick, or it would hide the histogram
_SPAN = WIDTH - LEFT - RIGHT


def microscope(scaled, levels, title: str, window: tuple[float, float] = (-1, 1), bins: int = 180) -> Picture:
    """From above: all of [-1, 1] with a lens where the window is smaller; the numbers' histogram in the window, cell by
    cell, with each level's code; the distance to the nearest level; for each level its share of all numbers and of all
    squared error.

    scaled: any shape, numbers divided by their block's absmax. levels: one dimension, the index is the stored code; of
    two equal levels the first is named. Raises DataError for no numbers or levels, or an empty window.
    """
    scaled, levels = np.asarray(scaled, float).ravel(), np.asarray(levels, float).ravel()
    low, high = map(float, window)
    if not (scaled.size and np.isfinite(scaled).all() and levels.size and np.isfinite(levels).all() and low < high):
        raise DataError(
            f"microscope takes finite numbers and levels, at least one of each, and a window (low, high); got "
            f"{scaled.size} numbers, {levels.size} levels, window {window}"
        )
    codes = np.unique(levels, return_index=True)[1]  # sorted by level
    levels = levels[codes]
    borders = (levels[1:] + levels[:-1]) / 2
    cell = np.searchsorted(borders, scaled)
    squared = np.bincount(cell, (scaled - levels[cell]) ** 2, levels.size)
    mass, error = np.bincount(cell, minlength=levels.size) / scaled.size, squared / (squared.sum() or 1)

    def px(x):
        return LEFT + (np.clip(x, low, high) - low) / (high - low) * _SPAN

    parts, top = [text(LEFT, 16, title, bold=True)], 26.0
    if low > -1 or high < 1:
        parts += _lens(scaled, levels, low, high, top)
        top += LENS + 30
    seen = [i for i, level in enumerate(levels) if low <= level <= high]
    edges = np.clip(np.concatenate([[low], borders, [high]]), low, high)
    named = -np.inf  # where the last code was written
    base = top + 16 + HIGH
    parts += _histogram(scaled, borders, px, low, high, base, bins)
    saw = base + 14 + SAW
    bars = saw + 34 + BARS
    for x, before, after in zip(borders, np.diff(px(edges)), np.diff(px(edges))[1:], strict=False):
        if low < x < high and min(before, after) > CROWDED:
            parts.append(_line(px(x), base - HIGH, px(x), bars, FAINT, "3 3"))
    for i in seen:
        crowded = px(edges[i + 1]) - px(edges[i]) < CROWDED and low < edges[i] and edges[i + 1] < high
        ends = (base, base + 9) if crowded else (base - HIGH, saw)
        parts.append(_line(px(levels[i]), ends[0], px(levels[i]), ends[1], ORANGE))
        if px(levels[i]) - named > 8 + 5 * len(str(codes[i])):
            named = px(levels[i])
            parts.append(text(named, base - HIGH - 5, str(codes[i]), "middle", ORANGE))
    parts += [text(LEFT - 14, base - HIGH - 5, "code", "end"), *_label(base - HIGH / 2, "how", "many")]
    reach = [max(edges[i + 1] - levels[i], levels[i] - edges[i]) for i in range(levels.size) if edges[i] < edges[i + 1]]
    stops = np.unique(np.clip(np.concatenate([edges, levels]), low, high))
    heights = np.abs(stops[:, None] - levels).min(1) / max([*reach, 1e-30])
    path = " ".join(f"{px(x):.1f},{saw - SAW * h:.1f}" for x, h in zip(stops, heights, strict=True))
    parts.append(_line(LEFT, saw, WIDTH - RIGHT, saw, FAINT))
    parts += _label(saw - SAW / 2, "distance", f"≤ {max(reach, default=0):.2g}")
    parts.append(f'<polyline points="{path}" fill="none" stroke="{INK}"/>')
    parts += [text(px(x), saw + 14, number(x), "middle") for x in ticks(low, high, 7)]
    parts += _bars(px, edges, {BLUE: mass, ORANGE: error}, bars, codes, levels)
    parts.append(_line(LEFT, bars, WIDTH - RIGHT, bars, FAINT))
    for x, colour, words in ((LEFT, BLUE, "share of all numbers"), (LEFT + 160, ORANGE, "share of all squared error")):
        parts.append(f'<rect x="{x}" y="{bars + 9:.1f}" width="10" height="10" fill="{colour}"/>')
        parts.append(text(x + 15, bars + 18, words))
    worst = int(error.argmax())
    said = (
        f"{levels.size} levels; the cell of code {codes[worst]} at {levels[worst]:.3f} holds {mass[worst]:.1%} of the "
        f"numbers and makes {error[worst]:.1%} of the squared error."
    )
    return document(f"Levels under the microscope: {title}", bars + 28, parts, said)


def _lens(scaled, levels, low: float, high: float, top: float) -> list[str]:
    """The whole line, small, and what of it is enlarged below."""
    at = lambda x: LEFT + (x + 1) / 2 * _SPAN  # noqa: E731
    base = top + LENS
    left, right = at(max(low, -1)), at(min(high, 1))
    return [
        *_steps(scaled, np.linspace(-1, 1, 121), at, base, LENS),
        *[_line(at(x), base, at(x), base + 5, ORANGE) for x in levels if -1 <= x <= 1],
        *[text(at(x), top + 10, number(x), anchor) for x, anchor in ((-1, "start"), (1, "end"))],
        f'<rect x="{left:.1f}" y="{top:.1f}" width="{right - left:.1f}" height="{LENS + 6}" fill="none" stroke="{INK}" '
        'stroke-width="1.5"/>',
        _line(left, base + 6, LEFT, base + 32, INK, "2 3"),
        _line(right, base + 6, WIDTH - RIGHT, base + 32, INK, "2 3"),
    ]


def _histogram(scaled, borders, px, low: float, high: float, base: float, bins: int) -> list[str]:
    """Bars that begin and end where cells do, so that each is within one; neighbouring cells differ in strength."""
    inside = borders[(low < borders) & (borders < high)]
    if inside.size > bins:  # cells too thin to see
        return _steps(scaled, np.linspace(low, high, bins + 1), px, base, HIGH)
    ends = np.array([low, *inside, high])
    many = np.maximum(1, np.round(np.diff(ends) / (high - low) * bins)).astype(int)
    edges = np.unique(np.concatenate([np.linspace(a, b, n + 1) for a, b, n in zip(ends, ends[1:], many, strict=False)]))
    return _steps(scaled, edges, px, base, HIGH, inside)


def _steps(scaled, edges, px, base: float, high: float, borders=()) -> list[str]:
    density = np.histogram(scaled, edges)[0] / np.diff(edges)
    heights = density / (density.max() or 1) * high
    odd = np.searchsorted(borders, (edges[1:] + edges[:-1]) / 2) % 2
    return [
        f'<rect x="{px(a):.1f}" y="{base - h:.1f}" width="{max(px(b) - px(a), 0.1):.1f}" height="{h:.1f}" '
        f'fill="{BLUE}" opacity="{0.4 if strong else 0.75}"/>'
        for a, b, h, strong in zip(edges, edges[1:], heights, odd, strict=False)
        if h >= 0.05
    ]


def _bars(px, edges, shares: dict, base: float, codes, levels) -> list[str]:
    """Side by side in the part of each cell that is in the window, where there is room for them."""
    parts, wide = [], len(shares)
    tallest = max(float(share.max()) for share in shares.values()) or 1
    for i, level in enumerate(levels):
        left, right = px(edges[i]), px(edges[i + 1])
        width = min((right - left) * 0.8 / wide, 22)
        for k, (colour, share) in enumerate(shares.items()):
            if width < 0.5:
                continue
            x, h = (left + right) / 2 + (k - wide / 2) * width, share[i] / tallest * BARS
            what = "the squared error" if k else "the numbers"
            parts.append(
                f'<rect x="{x:.1f}" y="{base - h:.1f}" width="{width:.1f}" height="{h:.1f}" fill="{colour}" '
                f'class="share"><title>code {codes[i]} at {level:.4f}: {share[i]:.1%} of {what}</title></rect>'
            )
    return [*parts, text(LEFT - 6, base - BARS + 10, f"{tallest:.0%}", "end"), text(LEFT - 6, base, "0", "end")]


def _label(y: float, *lines: str) -> list[str]:
    return [text(LEFT - 6, y + 13 * i, line, "end") for i, line in enumerate(lines)]


def _line(x1: float, y1: float, x2: float, y2: float, colour: str, dashes: str = "none") -> str:
    return (
        f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{colour}" stroke-dasharray="{dashes}"/>'
    )
