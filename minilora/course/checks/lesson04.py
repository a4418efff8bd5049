"""Lesson 4's exercises."""

import numpy as np

from minilora.course.check import Problem, Wrong, equal
from minilora.lowrank import smallest_d

said_gradients = Problem("said_gradients", 1)
d90 = Problem("d90", 1)


def _layer(rng, size):
    D, d = size + int(rng.integers(1, 4)), size
    g, P, theta_d = (rng.integers(-2, 3, shape).astype(float) for shape in (D, (D, d), d))
    return {"g": g, "P": P, "theta_d": theta_d, "scale": float(rng.integers(-3, 4))}


def _both(answer, g, P, theta_d, scale):
    found = answer(g, P, theta_d, scale)
    if not isinstance(found, (tuple, list)) or len(found) != 2:
        raise Wrong(f"expected two gradients, of theta_d and of the factor; got {found!r:.80}")
    return found


def _change(g, P, theta_d, scale, step_d, step):
    """The change of <g, θ> along (step_d, step), by a complex step: exact to rounding."""
    h = 1e-30
    return float((g @ ((scale + 1j * h * step) * (P @ (theta_d + 1j * h * step_d)))).imag / h)


@said_gradients.law(
    "the first is the gradient of theta_d", draw=_layer,
    means="Pᵀ g, times λ: what theta_d does to θ goes through the factor",
)  # fmt: skip
def _(answer, g, P, theta_d, scale):
    wanted = [_change(g, P, theta_d, scale, e, 0) for e in np.eye(len(theta_d))]
    equal(_both(answer, g, P, theta_d, scale)[0], wanted)


@said_gradients.law(
    "the second is the gradient of the factor", draw=_layer,
    means="λ multiplies the vector P θ_d: its gradient is the product of that vector with g, one number",
)  # fmt: skip
def _(answer, g, P, theta_d, scale):
    equal(_both(answer, g, P, theta_d, scale)[1], _change(g, P, theta_d, scale, 0 * theta_d, 1))


def _grid(rng, size):
    """Metrics that rise with d, but not always; in an order of their own."""
    ds = rng.permutation(2 ** np.arange(1, size + 1))
    noise = rng.random(size) * 0.3
    return {"reached": {int(d): float(1 - 1 / d - e) for d, e in zip(ds, noise, strict=True)}, "full": 1.0}


@d90.law(
    "it is the smallest d that has 90 % of full", draw=_grid,
    means="0.9 · full, not 0.9; and the smallest such d, not the first in the dict, nor the best",
)  # fmt: skip
def _(answer, reached, full):
    for level in (full, 0.9 * full, 0.5 * full):
        wanted, found = smallest_d(reached, level), answer(reached, level)
        if wanted is not None and found != wanted:
            raise Wrong(f"full = {level:.3g}: expected {wanted}, got {found!r:.80}")


@d90.law("None where no d has it", draw=_grid, means="min of nothing raises: min(..., default=None)")
def _(answer, reached, full):
    found = answer(reached, 5 * full)
    if found is not None:
        raise Wrong(f"full = {5 * full:g}, which no d reaches: expected None, got {found!r:.80}")
    if answer({4: full}, full) != 4:
        raise Wrong("and of {4: full} it is 4")
