"""Lesson 0's exercises."""

import numpy as np

from minilora.course.check import Problem, Wrong, show

broadcast_shape = Problem("broadcast_shape", 2)
row_strides = Problem("row_strides", 1)


def _same(got, expected):
    """Tuples; a list is one too. None only where None is expected."""
    found = tuple(int(n) for n in got) if isinstance(got, tuple | list) else got
    if found != expected:
        raise Wrong(f"expected {expected}\ngot      {show(got)}")


def _fitting(rng, size):
    full = rng.integers(1, 4, rng.integers(0, 2 + size // 2))
    a, b = (tuple(int(n) if rng.random() < 0.6 else 1 for n in full)[rng.integers(0, len(full) + 1) :] for _ in "ab")
    return {"a": a, "b": b}


@broadcast_shape.law(
    "1 and missing axes are stretched", draw=_fitting,
    means="align from the right: the shorter shape gets 1s in front; of each pair take the one that is not 1",
)  # fmt: skip
def _(answer, a, b):
    _same(answer(a, b), np.broadcast_shapes(a, b))


@broadcast_shape.law(
    "an axis of length 0 is an axis like any other", means="0 and 1 give 0: it is not the larger that counts",
    draw=lambda rng, size: {"a": (1,) * int(rng.integers(1, 3)), "b": (int(rng.integers(1, 3)), 0)[: 1 + size % 2]},
)  # fmt: skip
def _(answer, a, b):
    b = (*b[:-1], 0)
    _same(answer(a, b), np.broadcast_shapes(a, b))


def _unfit(rng, size):
    a, b = (tuple(int(n) for n in rng.integers(1, 4, rng.integers(1, 2 + size // 2))) for _ in "ab")
    axis = int(rng.integers(1, min(len(a), len(b)) + 1))
    n = int(rng.integers(2, 4))
    put = lambda shape, n: (*shape[: len(shape) - axis], n, *shape[len(shape) - axis + 1 :])  # noqa: E731
    return {"a": put(a, n), "b": put(b, n + 1)}


@broadcast_shape.law(
    "shapes that do not fit give None", draw=_unfit, means="two lengths that differ fit only if one of them is 1"
)
def _(answer, a, b):
    _same(answer(a, b), None)


@row_strides.law(
    "NumPy's strides of a new array", means="an axis's stride is the product of the lengths after it, times itemsize",
    draw=lambda rng, size: {
        "shape": tuple(int(n) for n in rng.integers(1, 6, rng.integers(1, 2 + size // 2))),
        "itemsize": int(rng.choice([1, 2, 4, 8])),
    },
)  # fmt: skip
def _(answer, shape, itemsize):
    _same(answer(shape, itemsize), tuple(itemsize * int(np.prod(shape[i + 1 :])) for i in range(len(shape))))
