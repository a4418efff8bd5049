"""Lesson 10's exercises."""

import numpy as np

from minilora.course.check import Problem, Wrong, equal, pulled_back

first_adapter = Problem("first_adapter", 1)
input_gradient = Problem("input_gradient", 1)


def _whole(rng, *shape):
    return rng.integers(-2, 3, shape).astype(float)


def _two_layers(rng, size):
    b, h, m, o, r = 1 + size // 4, size, size + 1, size + 2, 1 + size // 3
    return {"G": _whole(rng, b, o), "X": _whole(rng, b, h), "L1": _whole(rng, h, r), "L2": _whole(rng, r, m),
            "W2": _whole(rng, m, o), "M1": _whole(rng, m, r), "M2": _whole(rng, r, o),
            "s": int(rng.integers(1, 4))}  # fmt: skip


def _pair(got):
    if not (isinstance(got, tuple | list) and len(got) == 2):
        raise Wrong(f"expected a pair, of L1's and L2's gradients, got {type(got).__name__}")
    return got


def _second(Y, W2, M1, M2, s):
    return Y @ W2 + s * Y @ M1 @ M2


_MEANS = "first take G down through layer 2, G W2ᵀ + s G M2ᵀ M1ᵀ; then this layer's formulas"


@first_adapter.law("the first is L1's gradient", draw=_two_layers, means=_MEANS)
def _(answer, G, X, L1, L2, W2, M1, M2, s):
    gradient = pulled_back(lambda L1: _second(s * X @ L1 @ L2, W2, M1, M2, s), G, L1, i=0)
    equal(_pair(answer(G, X, L1, L2, W2, M1, M2, s))[0], gradient)


@first_adapter.law("the second is L2's gradient", draw=_two_layers, means=_MEANS)
def _(answer, G, X, L1, L2, W2, M1, M2, s):
    gradient = pulled_back(lambda L2: _second(s * X @ L1 @ L2, W2, M1, M2, s), G, L2, i=0)
    equal(_pair(answer(G, X, L1, L2, W2, M1, M2, s))[1], gradient)


def _stored(rng, size):
    b, h, o, r = 1 + size // 4, size, 1 + int(rng.integers(1, size + 1)), 1 + size // 3
    return {"G": _whole(rng, b, o), "codes": rng.integers(0, 5, (h, o)),
            "absmax": rng.integers(1, 5, -(-h * o // 4)) / 2.0, "levels": np.array([-1.0, -0.5, 0.0, 0.5, 1.0]),
            "L1": _whole(rng, h, r), "L2": _whole(rng, r, o), "s": int(rng.integers(1, 4))}  # fmt: skip


@input_gradient.law(
    "it is the gradient of X", draw=_stored,
    means="W[i] of the flat W is levels[code] · absmax[i // 4]; then G Wᵀ + s G L2ᵀ L1ᵀ",
)  # fmt: skip
def _(answer, G, codes, absmax, levels, L1, L2, s):
    flat = [levels[code] * absmax[i // 4] for i, code in enumerate(codes.ravel())]
    W = np.array(flat).reshape(codes.shape)
    X = np.zeros((len(G), len(codes)))
    equal(answer(G, codes, absmax, levels, L1, L2, s), pulled_back(lambda X: X @ W + s * X @ L1 @ L2, G, X, i=0))
