"""The best code there can be for a distribution: Lloyd's and Max's iteration, with some levels held.

    x, absmax = scaled_normal(64)
    lloyd_max(x, fixed=(-1, 0, 1), weights=absmax)      # its mean absolute error: NF4's, less 0.02 %

Given borders, the level with the least error in its cell is the cell's mean (squared error) or median (absolute error);
given levels, the best border is halfway between. Alternate until nothing moves (Lloyd, 1982; Max, 1960).
"""

import numpy as np

from minilora.errors import QuantizationError


def scaled_normal(blocksize: int = 64, size: int = 1 << 20, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """A sample of what a 4-bit code sees, normal numbers divided by their block's absmax, and that absmax for each:
    an error in the first counts for as much in the weight. Both (about size,) float64."""
    x = np.random.default_rng(seed).standard_normal((max(1, size // blocksize), blocksize))
    absmax = np.abs(x).max(1, keepdims=True)
    return (x / absmax).ravel(), np.broadcast_to(absmax, x.shape).ravel()


def lloyd_max(
    distribution, fixed=(-1, 0, 1), levels: int = 16, power: int = 1, weights=None, iterations: int = 10_000
) -> np.ndarray:
    """Levels (levels,), sorted float64, that locally minimise E w |x - nearest level|^power over a distribution.

    distribution: a sample (1-D array), or anything with `.ppf` (the inverse of the distribution function, as SciPy's
    frozen distributions have), which is read at 2^16 evenly spaced probabilities. fixed: levels that stay. power: 1 or
    2. weights: w of each number of a sample, positive; 1 unless given. iterations: at most so many; it ends sooner when
    no level moves. Raises QuantizationError.
    """
    if power not in (1, 2):
        raise QuantizationError(f"power is 1 (absolute error) or 2 (squared error), not {power!r}")
    if not isinstance(levels, (int, np.integer)) or levels < 1:
        raise QuantizationError(f"levels is the number of levels, a positive integer, not {levels!r}")
    if hasattr(distribution, "ppf"):
        distribution = distribution.ppf((np.arange(1 << 16) + 0.5) / (1 << 16))
    x, fixed = np.asarray(distribution, float).ravel(), np.unique(np.asarray(fixed, float))
    weights = np.ones(x.size) if weights is None else np.asarray(weights, float).ravel()
    if weights.shape != x.shape or not (np.isfinite(weights) & (weights > 0)).all():
        raise QuantizationError(f"weights are positive, one for each of {x.size} numbers; got {weights.shape}")
    if not x.size or not np.isfinite(x).all() or not np.isfinite(fixed).all() or len(fixed) > levels:
        raise QuantizationError(
            f"lloyd_max takes finite numbers, at least one, and at most `levels` fixed levels; got {x.size} numbers "
            f"and {len(fixed)} fixed of {levels} levels"
        )
    free = np.quantile(x, (np.arange(levels - len(fixed)) + 0.5) / max(1, levels - len(fixed)))
    code = np.sort(np.concatenate([fixed, free]))
    held = np.zeros(levels, bool)
    held[np.searchsorted(code, fixed)] = True  # a free level that begins at the same place may leave
    order = np.argsort(x)
    x, weights = x[order], weights[order]
    mass = np.concatenate([[0.0], np.cumsum(weights)])
    moment = np.concatenate([[0.0], np.cumsum(weights * x)])
    for _ in range(iterations):
        ends = np.concatenate([[0], np.searchsorted(x, (code[1:] + code[:-1]) / 2), [x.size]])
        start, stop = ends[:-1], ends[1:]
        if power == 1:  # the cell's median: half of its mass on either side
            best = x[np.minimum(np.searchsorted(mass, (mass[start] + mass[stop]) / 2), x.size) - 1]
        else:
            best = (moment[stop] - moment[start]) / np.maximum(mass[stop] - mass[start], np.finfo(float).tiny)
            best = np.clip(best, x[np.minimum(start, x.size - 1)], x[stop - 1])  # differences of sums are rounded
        moved = np.where(held | (start == stop), code, best)
        if np.array_equal(moved, code):
            break
        code = moved
    return code
