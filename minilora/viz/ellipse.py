"""What a 2 x 2 matrix does to the unit circle: an ellipse, whose half axes are the singular values.

    circle_to_ellipse([[2, 1], [0, 1]])

A V = U S: the directions v1 and v2, orthogonal, go to σ1 u1 and σ2 u2, orthogonal again.
"""

import numpy as np

from minilora.errors import DataError
from minilora.viz.charts import BLUE, FAINT, INK, ORANGE, document, text
from minilora.viz.picture import Picture

SIDE, GAP, TOP = 240.0, 60.0, 30.0  # pixels of a panel, between the two, above


def circle_to_ellipse(A, title: str = "The unit circle, and what A makes of it") -> Picture:
    """A (2, 2), finite. Left the circle with v1 and v2, right its image with σ1 u1 and σ2 u2. Raises DataError."""
    A = np.asarray(A, float)
    if A.shape != (2, 2) or not np.isfinite(A).all():
        raise DataError(f"circle_to_ellipse takes a finite matrix (2, 2), not of shape {A.shape}")
    U, S, Vt = np.linalg.svd(A)
    turn = np.linspace(0, 2 * np.pi, 97)
    circle = np.array([np.cos(turn), np.sin(turn)])  # (2, 97)
    reach = 1.15 * max(1.0, float(S[0]))
    unit = SIDE / 2 / reach
    parts = []
    for i, (points, axes, names) in enumerate(
        ((circle, Vt.T, ("v₁", "v₂")), (A @ circle, U * S, (f"σ₁ = {S[0]:.2f}", f"σ₂ = {S[1]:.2f}")))
    ):
        x, y = 20 + SIDE / 2 + i * (SIDE + GAP), TOP + SIDE / 2
        for dx, dy in ((SIDE / 2, 0), (0, SIDE / 2)):
            parts.append(_line(x - dx, y - dy, x + dx, y + dy, FAINT, 1))
        path = " ".join(f"{x + unit * px:.1f},{y - unit * py:.1f}" for px, py in points.T)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{INK}"/>')
        for axis, name, colour in zip(axes.T, names, (BLUE, ORANGE), strict=True):
            tip = x + unit * axis[0], y - unit * axis[1]
            parts.append(_line(x, y, *tip, colour, 2.5))
            anchor = "start" if tip[0] >= x else "end"
            parts.append(
                text(tip[0] + (6 if tip[0] >= x else -6), tip[1] + (14 if tip[1] > y else -4), name, anchor, colour)
            )
    parts.append(text(20, 16, "unit circle"))
    parts.append(text(20 + SIDE + GAP, 16, "its image under A"))
    said = f"A circle becomes an ellipse with half axes {S[0]:.3g} and {S[1]:.3g}."
    return document(title, TOP + SIDE + 12, parts, said)


def _line(x1: float, y1: float, x2: float, y2: float, colour: str, width: float) -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{colour}" stroke-width="{width:g}"/>'
