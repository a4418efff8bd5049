"""Lesson 1's exercises."""

import numpy as np

from minilora.course.check import Problem, equal, pulled_back

sigmoid_vjp = Problem("sigmoid_vjp", 1)
row_mean_vjp = Problem("row_mean_vjp", 1)


def _sigmoid(x):
    return 1 / (1 + np.exp(-x))


def _numbers(rng, size):
    return {"x": rng.integers(-2, 3, size).astype(float), "g": rng.integers(-2, 3, size).astype(float)}


def _rows(rng, size):
    n, k = (int(i) for i in rng.integers(1, size + 1, 2))
    return {"x": rng.integers(-2, 3, (n, k)).astype(float), "g": rng.integers(-2, 3, n).astype(float)}


@sigmoid_vjp.law("it is the sigmoid's gradient", draw=_numbers, means="the derivative is y (1 - y), times g")
def _(answer, x, g):
    equal(answer(_sigmoid(x), g), pulled_back(_sigmoid, g, x, i=0))


@row_mean_vjp.law(
    "it is the gradient of each row's mean", draw=_rows,
    means="each number of a row has a share of 1/k in its mean: g, stretched over the row and divided by k",
)  # fmt: skip
def _(answer, x, g):
    equal(answer(x, g), pulled_back(lambda x: x.mean(-1), g, x, i=0))
