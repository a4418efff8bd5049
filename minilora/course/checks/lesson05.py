"""Lesson 5's exercise."""

import numpy as np

from minilora.course.check import Problem, equal

merged_weight = Problem("merged_weight", 1)


def _layer(rng, size):
    d_in, d_out, r = size, size + 1, 1 + size // 3
    W, A, B = (rng.integers(-2, 3, shape).astype(float) for shape in ((d_out, d_in), (r, d_in), (d_out, r)))
    return {"W": W, "A": A, "B": B, "alpha": int(rng.integers(1, 9))}


@merged_weight.law(
    "one product with it is the layer's output", draw=_layer,
    means="the update is (alpha / r) B A, with r the number of A's rows",
)  # fmt: skip
def _(answer, W, A, B, alpha):
    X = np.eye(W.shape[1])
    equal(X @ np.asarray(answer(W, A, B, alpha)).T, X @ W.T + alpha / len(A) * X @ A.T @ B.T)
