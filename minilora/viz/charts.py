"""Charts as SVG text: a loss curve, weights with the levels they are rounded to, and bars of memory by part.

Colours are CSS variables with a fallback, so that a page can give dark ones; `standalone` gives a picture its own.
"""

import math
from html import escape

import numpy as np

from minilora.errors import DataError
from minilora.viz.picture import Picture

WIDTH, HEIGHT, LEFT, BOTTOM, TOP, RIGHT = 640, 300, 56, 44, 30, 16
INK, FAINT, BLUE, ORANGE = "var(--ink,#222)", "var(--faint,#ddd)", "var(--blue,#2b6cb0)", "var(--orange,#c05621)"
GROUND = "var(--ground,#fff)"  # of a box that hides the lines behind it
SHADES = BLUE, ORANGE, "var(--green,#2f855a)", "var(--violet,#6b46c1)", "var(--grey,#718096)"
PARTS = *SHADES, "var(--teal,#319795)", "var(--pink,#d53f8c)"  # of bars with more parts
_LIGHT = (
    "--ground:#fff;--ink:#1a202c;--faint:#e2e8f0;--blue:#2b6cb0;--orange:#c05621;--green:#2f855a;--violet:#6b46c1;"
    "--grey:#718096"
)
_DARK = (
    "--ground:#171923;--ink:#e2e8f0;--faint:#2d3748;--blue:#63b3ed;--orange:#f6ad55;--green:#68d391;--violet:#b794f4;"
    "--grey:#a0aec0"
)


class Frame:
    """Maps data to the plot's area and draws its axes. log_y: equal distances up are equal factors; y > 0.

    left, right: where the area begins and ends, for more than one frame beside each other. x_ticks: (x, text) pairs in
    place of round numbers.
    """

    def __init__(
        self, x: tuple[float, float], y: tuple[float, float], x_label: str, y_label: str, title: str,
        log_y: bool = False, left: float = LEFT, right: float = WIDTH - RIGHT,
        x_ticks: list[tuple[float, str]] | None = None,
    ):  # fmt: skip
        self.x, self.y, self.title, self.log_y, self.left, self.right = x, y, title, log_y, left, right
        self.parts = []
        for value in _log_ticks(*y) if log_y else ticks(*y):
            at = self.py(value)
            self.parts.append(f'<line x1="{left}" x2="{right}" y1="{at:.1f}" y2="{at:.1f}" stroke="{FAINT}"/>')
            self.text(left - 6, at + 4, number(value), "end")
        if x_ticks is None:
            x_ticks = [(value, number(value)) for value in ticks(*x, max(2, (right - left) / 110))]
        for value, words in x_ticks:
            self.text(self.px(value), HEIGHT - BOTTOM + 16, words, "middle")
        self.text((left + right) / 2, HEIGHT - 8, x_label, "middle")
        middle = (TOP + HEIGHT - BOTTOM) / 2
        self.parts.append(
            f'<text x="{left - 42}" y="{middle}" text-anchor="middle" transform="rotate(-90 {left - 42} {middle})">'
            f"{escape(y_label)}</text>"
        )

    def px(self, x: float) -> float:
        return self.left + (x - self.x[0]) / (self.x[1] - self.x[0]) * (self.right - self.left)

    def py(self, y: float) -> float:
        (low, high), scale = self.y, math.log if self.log_y else float
        return HEIGHT - BOTTOM - (scale(y) - scale(low)) / (scale(high) - scale(low)) * (HEIGHT - BOTTOM - TOP)

    def text(self, x: float, y: float, words: str, anchor: str = "start", fill: str = INK):
        self.parts.append(text(x, y, words, anchor, fill))

    def line(self, points, colour: str, width: float = 1.5):
        path = " ".join(f"{self.px(x):.1f},{self.py(y):.1f}" for x, y in points)
        self.parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="{width}"/>')

    def legend(self, entries: list[tuple[str, str]]):
        """(text, colour) pairs above the plot, from the left: clear of whatever is drawn in it."""
        x = LEFT
        for text, colour in entries:
            self.parts.append(f'<rect x="{x}" y="8" width="10" height="10" rx="2" fill="{colour}"/>')
            self.text(x + 15, 17, text)
            x += 34 + 7 * len(text)

    def svg(self) -> Picture:
        return document(self.title, HEIGHT, self.parts)


def text(x: float, y: float, words: str, anchor: str = "start", fill: str = INK, bold: bool = False) -> str:
    weight = ' font-weight="bold"' if bold else ""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{fill}"{weight}>{escape(words)}</text>'


def document(title: str, height: float, parts: list[str], description: str = "", width: float = WIDTH) -> Picture:
    """An SVG of this size. title: its name for those who do not see it; description: what there is to see in it."""
    desc = f"<desc>{escape(description)}</desc>" if description else ""
    return Picture(
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" role="img" '
        f'aria-label="{escape(title, quote=True)}" font-family="sans-serif" font-size="12" fill="{INK}">'
        f"<title>{escape(title)}</title>{desc}{''.join(parts)}</svg>"
    )


def standalone(svg: str) -> str:
    """The same picture with light and dark colours of its own, for a file that no page gives any."""
    style = f":root{{{_LIGHT};background:var(--ground)}}@media(prefers-color-scheme:dark){{:root{{{_DARK}}}}}"
    return svg.replace("</svg>", f"<style>{style}</style></svg>")


def number(value: float) -> str:
    return f"{value + 0.0:g}".replace("-", "−")


def ticks(low: float, high: float, about: float = 5) -> list[float]:
    """Round numbers from low to high, `about` so many (at least 2): from half to a little more than that."""
    raw = (high - low) / about
    power = 10.0 ** np.floor(np.log10(raw))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= raw * 0.8)
    return [round(float(v), 10) for v in np.arange(np.ceil(low / step), np.floor(high / step) + 1) * step]


def _log_ticks(low: float, high: float) -> list[float]:
    """At most nine round numbers from low to high, in equal proportions as far as round numbers are."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for digits in ((1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 8), (1, 1.5, 2, 3, 5, 7), (1, 2, 5), (1,)):
        found = [tick for power in powers for d in digits if low <= (tick := float(f"{d}e{power}")) <= high]
        if len(found) <= 9:
            break
    return found[:: max(1, -(-len(found) // 9))]  # every second or third power of ten, where there are many


def loss_curve(log: list[dict]) -> Picture:
    """Training loss per step, and validation loss where it was measured. log: entries as in metrics.jsonl."""
    train = [(e["step"], e["loss"]) for e in log]
    validation = [(e["step"], e["eval_loss"]) for e in log if "eval_loss" in e]
    top = max((loss for _, loss in train + validation), default=0.0) * 1.05 or 1.0
    last = max((step for step, _ in train), default=0)
    frame = Frame((0, max(2, last)), (0, top), "step", "loss (nats per token)", "Loss while training")
    frame.line(train, BLUE)
    for step, loss in validation:
        frame.parts.append(f'<circle cx="{frame.px(step):.1f}" cy="{frame.py(loss):.1f}" r="4" fill="{ORANGE}"/>')
    frame.legend([("training", BLUE), *([("validation", ORANGE)] if validation else [])])
    return frame.svg()


def weight_histogram(scaled: np.ndarray, levels: np.ndarray, bins: int = 96) -> str:
    """How often weights divided by their block's absmax take each value in [-1, 1], and a line at every level."""
    count, edges = np.histogram(scaled, bins, (-1, 1))
    density = count / max(1, count.sum()) * bins / 2
    frame = Frame((-1.03, 1.03), (0, float(density.max()) * 1.08 or 1.0), "weight / absmax of its block", "density",
                   "Weights and the levels they are rounded to")  # fmt: skip
    base = frame.py(0)
    for height, left, right in zip(density, edges, edges[1:], strict=False):
        x, y = frame.px(left), frame.py(height)
        frame.parts.append(
            f'<rect x="{x:.1f}" y="{y:.1f}" width="{frame.px(right) - x - 0.5:.1f}" height="{base - y:.1f}" '
            f'fill="{BLUE}" opacity="0.6"/>'
        )
    for level in levels:
        at = frame.px(float(level))
        frame.parts.append(f'<line x1="{at:.1f}" x2="{at:.1f}" y1="{TOP}" y2="{base:.1f}" stroke="{ORANGE}"/>')
    frame.legend([("weights", BLUE), (f"the {len(levels)} levels", ORANGE)])
    return frame.svg()


def memory_bars(rows: dict[str, dict[str, float]], title: str = "Memory") -> str:
    """One bar for each row, its parts end to end. rows: {"float32": {"linear layers": bytes, ...}, ...}, all on one
    scale; a part has the same colour in each row. Raises DataError for a negative or non-finite number of bytes."""
    names = list(dict.fromkeys(part for parts in rows.values() for part in parts))
    for row, parts in rows.items():
        for name, size in parts.items():
            if not 0 <= size < float("inf"):
                raise DataError(f"memory_bars: {row!r}, {name!r} has {size} bytes; give a finite number >= 0")
    largest = max((sum(parts.values()) for parts in rows.values()), default=0) or 1
    colours = {name: PARTS[i % len(PARTS)] for i, name in enumerate(names)}
    left, right, out = 110, 90, []
    for i, (row, parts) in enumerate(rows.items()):
        x, y = float(left), 14 + 34 * i
        out.append(f'<text x="{left - 8}" y="{y + 16}" text-anchor="end">{escape(row)}</text>')
        for name, size in parts.items():
            width = size / largest * (WIDTH - left - right)
            out.append(
                f'<rect x="{x:.2f}" y="{y}" width="{width:.2f}" height="24" fill="{colours[name]}" opacity="0.8">'
                f"<title>{escape(name)}: {megabytes(size)}</title></rect>"
            )
            x += width
        out.append(f'<text x="{x + 8:.1f}" y="{y + 16}">{megabytes(sum(parts.values()))}</text>')
    x, y = float(left), 14 + 34 * len(rows) + 8
    for name in names:
        if x > left and x + 24 + 7 * len(name) > WIDTH:
            x, y = float(left), y + 18
        out.append(f'<rect x="{x:.1f}" y="{y}" width="10" height="10" rx="2" fill="{colours[name]}" opacity="0.8"/>')
        out.append(f'<text x="{x + 15:.1f}" y="{y + 9}">{escape(name)}</text>')
        x += 34 + 7 * len(name)
    return document(title, y + 20, out)


def megabytes(size: float) -> str:
    """A number of bytes as text, in decimal units: 1,870,080 -> "1.87 MB"."""
    for power, unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if size >= power:
            return f"{size / power:.3g} {unit}" if size < 999.5 * power else f"{size / power:,.0f} {unit}"
    return f"{size:g} B"
