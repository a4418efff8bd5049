"""Lesson 3's exercises."""

import numpy as np

from minilora.course.check import Problem, Wrong, equal, show
from minilora.lowrank import eckart_young, singular_values

best_factors = Problem("best_factors", 1)
least_rank = Problem("least_rank", 1)


def _matrix(rng, size):
    """No square one, and r from 1 to the smaller side."""
    m = int(rng.integers(1, size + 1))
    n = m + int(rng.integers(1, 3))
    W = rng.integers(-3, 4, (m, n)).astype(float)
    return {"W": W if rng.random() < 0.5 else W.T, "r": int(rng.integers(1, m + 1))}


def _share(rng, size):
    """A share halfway between two ranks' errors, so that rounding does not decide, or above 1; W is not zero."""
    W = _matrix(rng, size)["W"]
    W[0, 0] += 4.0
    S = singular_values(W)
    errors = np.sqrt(np.append((S[::-1] ** 2).cumsum()[::-1], 0)) / np.linalg.norm(S)  # of rank 0, 1, ..
    bounds = np.append(errors, 0) + np.append(2, errors)  # rank 0 has the error 1
    return {"W": W, "share": float(bounds[rng.integers(len(S) + 1)] / 2)}


def _factors(answer, W, r):
    found = answer(W, r)
    if not isinstance(found, (tuple, list)) or len(found) != 2:
        raise Wrong(f"expected two arrays, B and A; got {found!r:.80}")
    B, A = (np.asarray(part, float) for part in found)
    if B.shape != (len(W), r) or A.shape != (r, W.shape[1]):
        raise Wrong(f"expected B {(len(W), r)} and A {(r, W.shape[1])}, got {B.shape} and {A.shape}")
    return B, A


@best_factors.law(
    "B is m × r and A is r × n", draw=_matrix,
    means="the first r columns of U and rows of Vᵀ; np.linalg.svd returns Vᵀ itself",
)  # fmt: skip
def _(answer, W, r):
    _factors(answer, W, r)


@best_factors.law(
    "with r as large as it can be, B A is W",
    draw=_matrix,
    means="S is missing: it belongs to B, or to A, or √S to both",
)
def _(answer, W, r):
    B, A = _factors(answer, W, min(W.shape))
    equal(B @ A, W)


@best_factors.law(
    "‖W - B A‖ is √(σ²_{r+1} + σ²_{r+2} + ..)", draw=_matrix, means="other terms than the first r, or S twice"
)
def _(answer, W, r):
    B, A = _factors(answer, W, r)
    least, error = eckart_young(W, r).frobenius, float(np.linalg.norm(W - B @ A))
    if abs(error - least) > 1e-9 * max(1.0, np.linalg.norm(W)):
        raise Wrong(f"expected an error of {least:.6g}, got {error:.6g}")


@least_rank.law(
    "the error of its result is at most the share", draw=_share,
    means="what is lost is S[r:], not S[r + 1:], and the error is the root of the sum of its squares",
)  # fmt: skip
def _(answer, W, share):
    r = _whole(answer(W, share), W)
    error = eckart_young(W, r).frobenius / np.linalg.norm(W)
    if error > share:
        raise Wrong(f"rank {r} has the error {error:.4g}, more than {show(share)}")


@least_rank.law(
    "and no lower rank's is", draw=_share,
    means="compare the squares with share², or take both roots; and r begins at 0",
)  # fmt: skip
def _(answer, W, share):
    r = _whole(answer(W, share), W)
    if r and (error := eckart_young(W, r - 1).frobenius / np.linalg.norm(W)) <= share:
        raise Wrong(f"got {r}, but rank {r - 1} has the error {error:.4g} already")


def _whole(r, W) -> int:
    if not isinstance(r, (int, np.integer)) or isinstance(r, bool) or not 0 <= r <= min(W.shape):
        raise Wrong(f"expected an integer from 0 to {min(W.shape)}, got {r!r:.80}")
    return int(r)
