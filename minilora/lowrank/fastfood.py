"""Random projections of few numbers to many: dense, sparse, and Fastfood, which stores no matrix.

    P = Fastfood(D=1_000_000, d=1000, seed=0)
    theta = P @ theta_d            # (d,) -> (D,) in O(D log d) time
    grad_d = P.T @ grad            # (D,) -> (d,), the transpose: <P x, g> = <x, Pᵀ g>
    P.nbytes                       # 7 MB; DenseProjection(D, d) would hold 4 GB

Fastfood (Le, Sarlos and Smola, ICML 2013) multiplies by a random matrix that is a product of quick ones,

    M = H G Π H B,

with H the n x n Walsh-Hadamard matrix of entries ±1, n the power of two from d on, G diagonal of normal numbers, Π a
permutation, B diagonal of random signs. HᵀH = nI and |entries of HB| = 1, so that every column of M, and every row, has
the norm √n ‖G‖ exactly. ⌈D / n⌉ independent blocks M / (‖G‖ √D) are stacked, the last cut off at D rows, and the first
d columns taken: P.

Normalisation, of all three classes: columns have length one, so that E‖P x‖² = ‖x‖² over the seeds. Dense and sparse
columns have it exactly, Fastfood's where n divides D, else in expectation. Nothing here is trained.
"""

import math
from functools import cache

import numpy as np

from minilora.errors import ConfigError, ShapeError

_RADIX = 32  # H_n = H_r ⊗ H_s: products with so small an H_r go through BLAS, which beats additions by twos tenfold


def walsh_hadamard(x: np.ndarray, axis: int = -1) -> np.ndarray:
    """H x along an axis of n = 2^k entries, in O(n log n): a new array of x's dtype.

    H₁ = 1, H₂ₙ = [[Hₙ, Hₙ], [Hₙ, -Hₙ]] (scipy.linalg.hadamard), not divided by √n: H H = n I. Exact for integers, and
    for floats that hold integers. Raises ShapeError for another length.
    """
    x = np.asarray(x)
    n = x.shape[axis] if x.ndim else 0
    if n < 1 or n & (n - 1):
        raise ShapeError(f"walsh_hadamard takes an axis of 1, 2, 4, 8, .. entries; axis {axis} of {x.shape} has {n}")
    moved = np.moveaxis(x, axis, -1)
    y, done = np.ascontiguousarray(moved), 1
    while done < n:
        r = min(_RADIX, n // done)
        h = _sylvester(r, y.dtype)
        y = y.reshape(-1, r) @ h if done == 1 else h @ y.reshape(-1, r, done)
        done *= r
    return np.moveaxis(y.reshape(moved.shape), -1, axis) if n > 1 else x.copy()


@cache
def _sylvester(n: int, dtype: np.dtype) -> np.ndarray:
    h = np.ones((1, 1), dtype)
    while len(h) < n:
        h = np.block([[h, h], [h, -h]])
    h.flags.writeable = False
    return h


class Projection:
    """A fixed random matrix P (D, d), of which there are two products. float32 unless x or g is wider."""

    def __init__(self, D: int, d: int, seed=0):
        """seed: what np.random.default_rng takes. Raises ConfigError for sizes that are not positive integers."""
        for name, size in (("D", D), ("d", d)):
            if not isinstance(size, (int, np.integer)) or isinstance(size, bool) or size < 1:
                raise ConfigError(f"{type(self).__name__}: {name} must be a positive integer, not {size!r}")
        self.shape = int(D), int(d)
        self._draw(np.random.default_rng(seed))

    def _draw(self, rng: np.random.Generator):
        raise NotImplementedError

    def _times(self, x: np.ndarray) -> np.ndarray:
        raise NotImplementedError

    def _transposed_times(self, g: np.ndarray) -> np.ndarray:
        raise NotImplementedError

    def __matmul__(self, x) -> np.ndarray:
        """P x: (d,) -> (D,). Raises ShapeError."""
        return self._times(self._vector(x, self.shape[1], "P @ x"))

    @property
    def T(self) -> "Transposed":
        """The transpose: P.T @ g, for the gradient."""
        return Transposed(self)

    @property
    def nbytes(self) -> int:
        """Bytes of all that is stored of P."""
        raise NotImplementedError

    def _vector(self, x, size: int, what: str) -> np.ndarray:
        x = np.asarray(x)
        if x.shape != (size,):
            raise ShapeError(f"{what} of a {type(self).__name__} {self.shape} takes ({size},), not {x.shape}")
        return x.astype(np.result_type(x, np.float32), copy=False)


class Transposed:
    """Pᵀ (d, D) of a projection."""

    def __init__(self, P: Projection):
        self.T, self.shape = P, P.shape[::-1]

    def __matmul__(self, g) -> np.ndarray:
        """Pᵀ g: (D,) -> (d,). Raises ShapeError."""
        return self.T._transposed_times(self.T._vector(g, self.shape[1], "P.T @ g"))


class Fastfood(Projection):
    """O(D log d) time; 6 to 9 bytes for each row of P, whatever d."""

    def _draw(self, rng):
        D, d = self.shape
        n = 1 << (d - 1).bit_length()
        blocks = -(-D // n)
        self.signs = rng.integers(0, 2, (blocks, n), np.int8) * np.int8(2) - np.int8(1)  # B
        order = rng.permuted(np.broadcast_to(np.arange(n), (blocks, n)), axis=1)  # Π
        self.order = order.astype(np.min_scalar_type(n - 1))
        self.gauss = rng.standard_normal((blocks, n), np.float32)  # G / (‖G‖ √D)
        self.gauss /= np.linalg.norm(self.gauss, axis=1, keepdims=True) * np.float32(math.sqrt(D))

    @property
    def nbytes(self) -> int:
        return self.signs.nbytes + self.order.nbytes + self.gauss.nbytes

    def _places(self) -> np.ndarray:
        """Where Π takes each entry of all blocks from, in one row: np.take is then a single call."""
        blocks, n = self.order.shape
        return self.order + (np.arange(blocks) * n)[:, None]

    def _times(self, x):
        D, d = self.shape
        y = np.zeros(self.signs.shape, x.dtype)
        np.multiply(self.signs[:, :d], x, out=y[:, :d])  # B x, in every block
        y = np.take(walsh_hadamard(y), self._places())  # Π H
        y *= self.gauss
        return walsh_hadamard(y).reshape(-1)[:D]

    def _transposed_times(self, g):
        D, d = self.shape
        y = np.zeros(self.signs.size, g.dtype)
        y[:D] = g
        y = walsh_hadamard(y.reshape(self.signs.shape))  # Hᵀ = H, and so on from the right
        y *= self.gauss
        back = np.empty_like(y)
        back.reshape(-1)[self._places()] = y
        return np.einsum("kd,kd->d", walsh_hadamard(back)[:, :d], self.signs[:, :d])


class DenseProjection(Projection):
    """Normal numbers, each column divided by its length (Li et al., arXiv:1804.08838): 4 D d bytes, O(D d) time."""

    def _draw(self, rng):
        self.matrix = rng.standard_normal(self.shape, np.float32)
        self.matrix /= np.linalg.norm(self.matrix, axis=0)

    @property
    def nbytes(self) -> int:
        return self.matrix.nbytes

    def _times(self, x):
        return self.matrix @ x

    def _transposed_times(self, g):
        return self.matrix.T @ g


class SparseProjection(Projection):
    """√D entries ±1 in each column, at random rows, divided by their root (arXiv:1804.08838, section S7): of density
    1/√D. O(d √D) bytes and time; a row may be empty, and its parameter is then not moved. Needs SciPy."""

    def _draw(self, rng):
        from scipy.sparse import csc_array

        D, d = self.shape
        k = max(1, round(math.sqrt(D)))
        rows = np.concatenate([np.sort(rng.choice(D, k, replace=False, shuffle=False)) for _ in range(d)])
        values = rng.choice(np.array([-1, 1], np.float32), d * k) / np.float32(math.sqrt(k))
        starts = np.arange(0, d * k + 1, k)
        self.matrix = csc_array((values, rows.astype(np.int32), starts.astype(np.int32)), self.shape)

    @property
    def nbytes(self) -> int:
        return self.matrix.data.nbytes + self.matrix.indices.nbytes + self.matrix.indptr.nbytes

    def _times(self, x):
        return self.matrix @ x

    def _transposed_times(self, g):
        return self.matrix.T @ g
