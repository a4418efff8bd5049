"""Lesson 13's exercises."""

import numpy as np

from minilora.course.check import Problem, Wrong, equal

interval = Problem("interval", 2)
exact_match = Problem("exact_match", 2)


def _share(rng, size):
    n = int(rng.integers(1, 30 * size))
    return {"k": int(rng.integers(0, n + 1)), "n": n}


def _ends(answer, k, n):
    got = answer(k, n)
    if not isinstance(got, tuple | list | np.ndarray) or len(got) != 2:
        raise Wrong(f"return two numbers, low and high; got {got!r:.60}")
    return [float(end) for end in got]


@interval.law(
    "both ends are 1.96 standard deviations from the share", draw=_share,
    means="square both sides: it is a quadratic equation in p. The standard deviation is that of the end p, not of the "
    "share: with no right answer among 5 the interval is not of length 0",
)  # fmt: skip
def _(answer, k, n):
    for p in _ends(answer, k, n):
        equal((k / n - p) ** 2, 1.96**2 * p * (1 - p) / n, 1e-6)


@interval.law("the low end comes first, and the share lies between", draw=_share, means="the two roots of the equation")
def _(answer, k, n):
    low, high = _ends(answer, k, n)
    if not -1e-9 <= low <= k / n + 1e-9 or not k / n - 1e-9 <= high <= 1 + 1e-9 or high - low < 1e-9:
        raise Wrong(f"the share is {k / n:.4f}, the interval from {low:.4f} to {high:.4f}")


def _rows(rng, size):
    n, length = int(rng.integers(1, 5)), int(rng.integers(2, 3 + size))
    labels = rng.integers(0, 5, (n, length))
    labels[np.arange(length) < rng.integers(1, length, (n, 1))] = -100  # a prompt of one token or more
    likeliest = rng.integers(0, 5, (n, length))
    right = np.where(labels[:, 1:] == -100, likeliest[:, :-1], labels[:, 1:])
    likeliest[:, :-1] = np.where(rng.random((n, 1)) < 0.7, right, likeliest[:, :-1])
    return {"likeliest": likeliest, "labels": labels}


@exact_match.law(
    "a row counts when each target is the likeliest token after those before it", draw=_rows,
    means="the token at t + 1 is predicted at t: compare likeliest[:, :-1] with labels[:, 1:]. Places of -100 are no "
    "targets; what is likeliest there does not matter",
)  # fmt: skip
def _(answer, likeliest, labels):
    right = [
        all(labels[i, t] in (-100, likeliest[i, t - 1]) for t in range(1, labels.shape[1])) for i in range(len(labels))
    ]
    equal(answer(likeliest, labels), sum(right) / len(right))
