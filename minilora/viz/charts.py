"""Two charts as SVG text: a loss curve, and a histogram of weights with the levels they are rounded to.

Colours are CSS variables with a fallback, so that a page can give dark ones.
"""

from html import escape

import numpy as np

WIDTH, HEIGHT, LEFT, BOTTOM, TOP, RIGHT = 640, 300, 56, 44, 16, 16
INK, FAINT, BLUE, ORANGE = (
    "var(--ink,#222)", "var(--faint,#ddd)", "var(--blue,#2b6cb0)", "var(--orange,#c05621)",
)  # fmt: skip


class _Frame:
    """Maps data to the plot's area and draws its axes."""

    def __init__(self, x: tuple[float, float], y: tuple[float, float], x_label: str, y_label: str, title: str):
        self.x, self.y, self.title = x, y, title
        self.parts = []
        for value in _ticks(*y):
            at = self.py(value)
            self.parts.append(f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{at:.1f}" y2="{at:.1f}" stroke="{FAINT}"/>')
            self.text(LEFT - 6, at + 4, f"{value:g}", "end")
        for value in _ticks(*x):
            self.text(self.px(value), HEIGHT - BOTTOM + 16, f"{value:g}", "middle")
        self.text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 8, x_label, "middle")
        middle = (TOP + HEIGHT - BOTTOM) / 2
        self.parts.append(
            f'<text x="14" y="{middle}" text-anchor="middle" transform="rotate(-90 14 {middle})">'
            f"{escape(y_label)}</text>"
        )

    def px(self, x: float) -> float:
        return LEFT + (x - self.x[0]) / (self.x[1] - self.x[0]) * (WIDTH - LEFT - RIGHT)

    def py(self, y: float) -> float:
        return HEIGHT - BOTTOM - (y - self.y[0]) / (self.y[1] - self.y[0]) * (HEIGHT - BOTTOM - TOP)

    def text(self, x: float, y: float, text: str, anchor: str = "start", fill: str = INK):
        self.parts.append(f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{fill}">{escape(text)}</text>')

    def line(self, points, colour: str, width: float = 1.5):
        path = " ".join(f"{self.px(x):.1f},{self.py(y):.1f}" for x, y in points)
        self.parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="{width}"/>')

    def svg(self) -> str:
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
            f'aria-label="{escape(self.title, quote=True)}" font-family="sans-serif" font-size="12" fill="{INK}">'
            f"<title>{escape(self.title)}</title>{''.join(self.parts)}</svg>"
        )


def _ticks(low: float, high: float) -> list[float]:
    """Four to eight round numbers from low to high."""
    raw = (high - low) / 5
    power = 10.0 ** np.floor(np.log10(raw))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= raw * 0.8)
    return [round(float(v), 10) for v in np.arange(np.ceil(low / step), np.floor(high / step) + 1) * step]


def loss_curve(log: list[dict]) -> str:
    """Training loss per step, and validation loss where it was measured. log: entries as in metrics.jsonl."""
    train = [(e["step"], e["loss"]) for e in log]
    validation = [(e["step"], e["eval_loss"]) for e in log if "eval_loss" in e]
    top = max(loss for _, loss in train + validation) * 1.05 or 1.0
    frame = _Frame((0, max(2, len(log))), (0, top), "step", "loss (nats per token)", "Loss while training")
    frame.line(train, BLUE)
    for step, loss in validation:
        frame.parts.append(f'<circle cx="{frame.px(step):.1f}" cy="{frame.py(loss):.1f}" r="4" fill="{ORANGE}"/>')
    frame.text(WIDTH - RIGHT - 150, TOP + 14, "training", fill=BLUE)
    if validation:
        frame.text(WIDTH - RIGHT - 80, TOP + 14, "validation", fill=ORANGE)
    return frame.svg()


def weight_histogram(scaled: np.ndarray, levels: np.ndarray, bins: int = 96) -> str:
    """How often weights divided by their block's absmax take each value in [-1, 1], and a line at every level."""
    count, edges = np.histogram(scaled, bins, (-1, 1))
    density = count / max(1, count.sum()) * bins / 2
    frame = _Frame((-1.03, 1.03), (0, float(density.max()) * 1.08 or 1.0), "weight / absmax of its block", "density",
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
    frame.text(LEFT + 8, TOP + 14, "levels", fill=ORANGE)
    return frame.svg()
