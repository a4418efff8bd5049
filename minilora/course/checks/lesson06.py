"""Lesson 6's exercises."""

import numpy as np

from minilora.course.check import Problem, Wrong, equal

rank_for_budget = Problem("rank_for_budget", 1)
joined = Problem("joined", 1)


def _budget(rng, size):
    shapes = [(int(m), int(n)) for m, n in rng.integers(1, 6, (size, 2))]
    one = sum(m + n for m, n in shapes)
    return {"shapes": shapes, "budget": max(0, int(rng.integers(0, 6)) * one + int(rng.integers(-1, one)))}


def _adapters(rng, size):
    d_out, d_in = size + 1, size + int(rng.integers(0, 3))
    ranks = rng.integers(1, size + 1, 2)
    B1, B2 = (rng.integers(-2, 3, (d_out, r)).astype(float) for r in ranks)
    A1, A2 = (rng.integers(-2, 3, (r, d_in)).astype(float) for r in ranks)
    return {"B1": B1, "A1": A1, "B2": B2, "A2": A2}


def _rank(answer, shapes, budget):
    r = answer(shapes, budget)
    if not isinstance(r, (int, np.integer)) or isinstance(r, bool) or r < 0:
        raise Wrong(f"expected an integer from 0 on, got {r!r:.80}")
    return int(r), sum(m + n for m, n in shapes)


@rank_for_budget.law(
    "with it, the adapters are within the budget", draw=_budget,
    means="B has d_out · r numbers, A has r · d_in: r · Σ (d_out + d_in). Rounding goes down",
)  # fmt: skip
def _(answer, shapes, budget):
    r, one = _rank(answer, shapes, budget)
    if r * one > budget:
        raise Wrong(f"r = {r} takes {r * one} numbers")


@rank_for_budget.law(
    "one more would be beyond it", draw=_budget, means="d_out + d_in, not d_out · d_in: the product BA is not stored"
)
def _(answer, shapes, budget):
    r, one = _rank(answer, shapes, budget)
    if (r + 1) * one <= budget:
        raise Wrong(f"got {r}, but r = {r + 1} takes {(r + 1) * one} numbers")


@joined.law(
    "B A is B1 A1 + B2 A2", draw=_adapters,
    means="(B1 + B2)(A1 + A2) has cross terms; put B1's columns beside B2's, and A1's rows above A2's",
)  # fmt: skip
def _(answer, B1, A1, B2, A2):
    B, A = _pair(answer, B1, A1, B2, A2)
    equal(np.asarray(B) @ np.asarray(A), B1 @ A1 + B2 @ A2)


@joined.law("they are of rank r1 + r2 at most", draw=_adapters, means="B is d_out × (r1 + r2), A is (r1 + r2) × d_in")
def _(answer, B1, A1, B2, A2):
    B, A = (np.shape(part) for part in _pair(answer, B1, A1, B2, A2))
    most = len(A1) + len(A2)
    if len(B) != 2 or len(A) != 2 or B[1] != A[0] or A[0] > most:
        raise Wrong(f"expected B ({len(B1)}, r) and A (r, {A1.shape[1]}) with r of {most} at most, got {B} and {A}")


def _pair(answer, *arguments):
    found = answer(*arguments)
    if not isinstance(found, (tuple, list)) or len(found) != 2:
        raise Wrong(f"expected two arrays, B and A; got {found!r:.80}")
    return found
