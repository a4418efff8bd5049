"""Reductions: a sum's transpose is a broadcast."""

import numpy as np

from minilora.autograd import primitive
from minilora.backend import array_namespace


def _spread(g, shape, axis, keepdims):
    """Broadcast a reduction's gradient back over the axes it removed (a view, no copy)."""
    if axis is not None and not keepdims:
        g = np.expand_dims(g, axis)
    return np.broadcast_to(g, shape)


@primitive
def sum(x, axis=None, keepdims=False):
    """The sum over axis (all axes without one)."""
    shape = x.shape
    return array_namespace(x).asarray(x.sum(axis, keepdims=keepdims)), (lambda g: _spread(g, shape, axis, keepdims),)


@primitive
def mean(x, axis=None, keepdims=False):
    """The mean over axis (an int, a tuple, or None for all); of no elements it is an error."""
    shape = x.shape
    y = array_namespace(x).asarray(x.sum(axis, keepdims=keepdims))
    if not x.size:
        raise ValueError("the mean of an empty array is undefined")
    n = x.size // y.size
    return y / n, (lambda g: _spread(g / n, shape, axis, keepdims),)


@primitive(analytic=False)
def max(x, axis=None, keepdims=False):
    """The largest over axis; where several are equal they share the gradient."""
    y = x.max(axis, keepdims=True)
    largest = x == y

    def dx(g):
        g = _spread(g, x.shape, axis, keepdims)
        return g * largest / largest.sum(axis, keepdims=True)

    return array_namespace(x).asarray(y if keepdims else y.squeeze(axis)), (dx,)
