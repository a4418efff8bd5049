"""Lesson 14's exercises."""

import numpy as np

from minilora.course.check import Problem, Wrong, equal

is_right = Problem("is_right", 2)
labels_of = Problem("labels_of", 1)

RIGHT = {
    "127 / max(|x|)": lambda x: 127 / abs(x).max(),
    "127 / max(x.max(), -x.min())": lambda x: 127 / max(x.max(), -x.min()),
    "1 / (max(|x|) / 127)": lambda x: 1 / (abs(x).max() / 127),
}
WRONG = {
    "127 / max(x)": lambda x: 127 / x.max(),
    "127 / -min(x)": lambda x: -127 / x.min(),
    "max(|x|) / 127": lambda x: abs(x).max() / 127,
    "127 / |max(x)|": lambda x: 127 / abs(x.max()),
    "128 / max(|x|)": lambda x: 128 / abs(x).max(),
    "127 / |x[0]|": lambda x: 127 / abs(x.ravel()[0]),
    "127 / (max(x) - min(x))": lambda x: 127 / np.ptp(x),
    "127 / sqrt(sum(x²))": lambda x: 127 / (x * x).sum() ** 0.5,
    "127": lambda x: 127.0,
    "100 / max(|x|)": lambda x: 100 / abs(x).max(),
}


def _judged(answer, kind, functions):
    got = answer(functions[kind])
    if not isinstance(got, bool | np.bool_):
        raise Wrong(f"return True or False, got {type(got).__name__}: {got!r:.60}")
    return bool(got)


def _one_of(functions):
    return lambda rng, size: {"scale": str(rng.choice(list(functions)))}


@is_right.law(
    "right functions are not accused", draw=_one_of(RIGHT),
    means="allow for rounding: 127 / max(|x|) times that maximum may be 126.99999999999999 before rint",
)  # fmt: skip
def _(answer, scale):
    if not _judged(answer, scale, RIGHT):
        raise Wrong("this one is right, and the law accuses it")


@is_right.law(
    "wrong functions are caught", draw=_one_of(WRONG),
    means="try x whose largest absolute value is negative, x whose largest is positive, x of many sizes, and both "
    "halves of the law: no code too large, and one that reaches 127",
)  # fmt: skip
def _(answer, scale):
    if _judged(answer, scale, WRONG):
        raise Wrong("this one is wrong, and the law does not see it")


def _padded(rng, size):
    lengths = rng.integers(1, size + 2, rng.integers(1, size + 1))
    ids = np.zeros((len(lengths), lengths.max() + rng.integers(0, 2)), int)
    for row, length in zip(ids, lengths, strict=True):
        row[: length - 1] = rng.integers(0, 5, length - 1)
    return {"ids": ids, "lengths": lengths}


@labels_of.law(
    "what is within a text's length stays, and the rest is -100", draw=_padded,
    means="compare positions, np.arange(T), with each row's length; a token's number says nothing",
)  # fmt: skip
def _(answer, ids, lengths):
    expected = ids.copy()
    for row, length in zip(expected, lengths, strict=True):
        row[length:] = -100
    equal(answer(ids, lengths), expected)
