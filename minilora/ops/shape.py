"""Ops that move elements and compute nothing: each one's vjp is its inverse, or a scatter."""

import numpy as np

from minilora.autograd import Tensor, primitive
from minilora.backend import array_namespace


@primitive
def reshape(x, shape):
    """The same entries in another shape; one size may be -1."""
    before = x.shape
    return x.reshape(shape), (lambda g: g.reshape(before), None)


@primitive
def transpose(x, axes=None):
    """Reorder the axes (all reversed when None)."""
    inverse = None if axes is None else np.argsort(axes).tolist()
    return x.transpose(axes), (lambda g: g.transpose(inverse), None)


@primitive
def broadcast_to(x, shape):
    """Repeated along new axes and those of size 1; the engine sums the gradient over them."""
    return np.broadcast_to(x, shape), (lambda g: g, None)  # the engine sums it back


@primitive
def getitem(x, index):
    """x[index], basic or advanced; entries taken several times add their gradients (on a GPU in no fixed order)."""
    xp, shape, dtype = array_namespace(x), x.shape, x.dtype
    parts = index if isinstance(index, tuple) else (index,)
    once = all(isinstance(i, (int, slice, type(None), type(...))) for i in parts)  # no entry is taken twice

    def dx(g):
        d = xp.zeros(shape, dtype)
        if once:
            d[index] = g
        else:
            xp.add.at(d, index, g)
        return d

    return xp.asarray(x[index]), (dx, None)


def concatenate(tensors, axis: int = 0) -> Tensor:
    """Join a sequence of tensors along an axis."""
    return _concatenate(*tensors, axis=axis)


@primitive
def _concatenate(*arrays, axis):
    ends = np.cumsum([a.shape[axis] for a in arrays])

    def part(i):
        n = arrays[i].shape[axis]
        where = slice(ends[i] - n, ends[i])
        return lambda g: g[(slice(None),) * (axis % g.ndim) + (where,)]

    return np.concatenate(arrays, axis), tuple(part(i) for i in range(len(arrays)))


@primitive
def split_heads(x, heads: int):
    """(B, T, H·hd) -> (B, H, T, hd), a view."""
    B, T, d = x.shape
    return x.reshape(B, T, heads, d // heads).transpose(0, 2, 1, 3), (
        lambda g: g.transpose(0, 2, 1, 3).reshape(B, T, d),
        None,
    )


@primitive
def merge_heads(x):
    """(B, H, T, hd) -> (B, T, H·hd)."""
    B, H, T, hd = x.shape
    return x.transpose(0, 2, 1, 3).reshape(B, T, H * hd), (lambda g: g.reshape(B, T, H, hd).transpose(0, 2, 1, 3),)
