"""The singular value decomposition A = U S Vᵀ: how many directions a matrix has, and how few nearly suffice.

    U, S, Vt = svd(W)                            # U (m, k), S (k,) from the largest, Vt (k, n), k = min(m, n)
    truncate(W, 8).matrix()                      # of all matrices of rank 8 the nearest to W (Eckart & Young 1936)
    eckart_young(W, 8).frobenius                 # √(σ9² + σ10² + ..): how near that is
    randomized_svd(W, 8, seed=0)                 # nearly the same, from a few products with W
    effective_rank(W), stable_rank(W), energy(W, 8), rank_for_energy(W, 0.9)

The columns of V are orthonormal eigenvectors of AᵀA, those of U of AAᵀ, and σ² the eigenvalues of both. Two separate
eigenproblems give no SVD: the sign of an eigenvector is anybody's guess, and where σ's are equal so is the basis.
`svd_from_eigen` solves one, and gets U from it.

Figures of a floating dtype have that dtype; those of integers are float64; float16 is computed in float32.
"""

import math
from typing import NamedTuple

import numpy as np

from minilora.errors import ConfigError, MiniloraError, ShapeError


class SVD(NamedTuple):
    """U (m, k) and Vt (k, n) with orthonormal columns and rows, S (k,) from the largest."""

    U: np.ndarray
    S: np.ndarray
    Vt: np.ndarray

    def matrix(self) -> np.ndarray:
        """U S Vᵀ (m, n)."""
        return (self.U * self.S) @ self.Vt


class OptimalError(NamedTuple):
    frobenius: float
    spectral: float


def svd(A) -> SVD:
    """The SVD of any real matrix, by LAPACK through NumPy. Raises ShapeError, MiniloraError for what is not finite."""
    A, dtype = _prepare(A)
    return SVD(*(a.astype(dtype, copy=False) for a in np.linalg.svd(A, full_matrices=False)))


def svd_from_eigen(A) -> SVD:
    """The SVD from the symmetric eigenproblem of AᵀA (or AAᵀ, whichever is smaller): AᵀA v = σ² v, u = A v / σ.

    Signs fit, and so do bases of equal σ, as each u is made from its v. It is less accurate than `svd`: the eigenvalues
    of AᵀA have rounding errors of about ε σ1², so that a σ below √ε σ1 (1e-8 of the largest in float64, 3e-4 in
    float32) is lost. Such σ are given as 0, and their u complete an orthonormal basis.
    """
    A, dtype = _prepare(A)
    m, n = A.shape
    if m < n:
        U, S, Vt = svd_from_eigen(A.T)
        return SVD(Vt.T.astype(dtype), S.astype(dtype), U.T.astype(dtype))
    scale = np.abs(A).max(initial=0) or A.dtype.type(1)  # else squares may overflow
    A = A / scale
    squares, V = np.linalg.eigh(A.T @ A)
    squares, V = squares[::-1], V[:, ::-1]  # from the largest
    S = np.sqrt(np.where(squares > n * np.finfo(A.dtype).eps * squares.max(initial=0), squares, 0))
    U = A @ V / np.where(S > 0, S, 1) * (S > 0)  # (m, n)
    # QR leaves orthonormal columns as they are but for signs, straightens those that cancellation has bent, and puts
    # unit vectors orthogonal to the rest in place of the zero ones.
    Q, R = np.linalg.qr(U)
    U = Q * np.where(np.diag(R) < 0, -1, 1).astype(Q.dtype)
    return SVD(*(a.astype(dtype, copy=False) for a in (U, S * scale, V.T)))


def singular_values(A) -> np.ndarray:
    """S (min(m, n),) alone, from the largest."""
    A, dtype = _prepare(A)
    return np.linalg.svd(A, compute_uv=False).astype(dtype, copy=False)


def truncate(A, r: int) -> SVD:
    """The first r columns of U, entries of S and rows of Vᵀ; their product is the best approximation of rank r."""
    U, S, Vt = svd(A)
    r = _rank(r, len(S))
    return SVD(U[:, :r], S[:r], Vt[:r])


def eckart_young(A, r: int) -> OptimalError:
    """The least ‖A - X‖ over all X of rank r: √(Σ_{i>r} σi²) in the Frobenius norm, σ_{r+1} in the spectral norm."""
    S = _spectrum(A)
    r = _rank(r, len(S))
    return OptimalError(math.hypot(*S[r:]), float(S[r]) if r < len(S) else 0.0)


def randomized_svd(A, r: int, oversampling: int = 10, power_iterations: int = 2, seed=0) -> SVD:
    """The r largest singular values and vectors, nearly (Halko, Martinsson & Tropp, arXiv:0909.4061, algorithm 5.1).

    seed: of numpy.random.default_rng, or a Generator. Raises ConfigError, ShapeError.
    """
    A, dtype = _prepare(A)
    r = _rank(r, min(A.shape))
    if oversampling < 0 or power_iterations < 0:
        raise ConfigError(f"oversampling={oversampling} and power_iterations={power_iterations} are zero or more")
    Q = range_basis(A, min(r + oversampling, *A.shape), power_iterations, seed)  # (m, r + oversampling)
    U, S, Vt = np.linalg.svd(Q.T @ A, full_matrices=False)
    return SVD(*(a.astype(dtype, copy=False) for a in (Q @ U[:, :r], S[:r], Vt[:r])))


def range_basis(A, size: int, power_iterations: int = 0, seed=0) -> np.ndarray:
    """Q (m, size), an orthonormal basis of the span of (AAᵀ)^q A Ω, Ω (n, size) normal (there, algorithm 4.4).

    With size = r + p and p ≥ 2, E ‖A - QQᵀA‖_F is at most √(1 + r / (p - 1)) times the least error of rank r (theorem
    10.5). (AAᵀ)^q A has the singular vectors of A and singular values σ^(2q+1): where σ falls slowly, those fall fast.
    """
    A, dtype = _prepare(A)
    Q = A @ np.random.default_rng(seed).standard_normal((A.shape[1], _rank(size, min(A.shape)))).astype(A.dtype)
    Q, _ = np.linalg.qr(Q)
    for _ in range(power_iterations):
        Q, _ = np.linalg.qr(A.T @ Q)  # orthonormal in between: else all columns turn to the first direction
        Q, _ = np.linalg.qr(A @ Q)
    return Q.astype(dtype, copy=False)


# How a spectrum falls. Each takes a matrix, or its singular values (one dimension) where they are there already.


def effective_rank(A) -> float:
    """exp(-Σ p ln p), p = σ / Σσ: k for k equal singular values (Roy & Vetterli, EUSIPCO 2007). 0 for a zero matrix."""
    S = _spectrum(A)
    p = S / (S.sum() or 1)
    return math.exp(-float((p * np.log(np.where(p > 0, p, 1))).sum())) if p.any() else 0.0


def stable_rank(A) -> float:
    """‖A‖_F² / σ1²: at most the rank, and moved little by small changes of A. 0 for a zero matrix."""
    S = _spectrum(A)
    return float(((S / S.max()) ** 2).sum()) if S.any() else 0.0


def energy(A, k: int) -> float:
    """Σ_{i≤k} σi² / Σ σi²: the part of ‖A‖_F² that the best approximation of rank k has. 1 for a zero matrix."""
    sums = _energies(_spectrum(A))
    k = _rank(k, len(sums))
    return float(sums[k - 1]) if k and sums.any() else float(not sums.any())


def rank_for_energy(A, share: float) -> int:
    """The least k with energy(A, k) ≥ share, for a share of more than 0 up to 1; 0 for a zero matrix."""
    if not 0 < share <= 1:
        raise ConfigError(f"a share of energy is above 0 and at most 1, not {share!r}")
    sums = _energies(_spectrum(A))
    return int(np.searchsorted(sums, share)) + 1 if sums.any() else 0


def marchenko_pastur(m: int, n: int, count: int) -> np.ndarray:
    """Singular values of a large m x n matrix of independent numbers of mean 0 and variance 1, divided by √max(m, n):
    `count` quantiles, from the largest. With γ = min / max, σ² = x has the density √((b - x)(x - a)) / (2πγx) between
    a = (1 - √γ)² and b = (1 + √γ)² (Marchenko & Pastur 1967); its mean is 1.
    """
    gamma = min(m, n) / max(m, n)
    t = (np.arange(4096) + 0.5) * np.pi / 4096
    x = 1 + gamma + 2 * math.sqrt(gamma) * np.cos(t)  # from b to a; dx cancels the roots at both ends
    above = np.cumsum(np.sin(t) ** 2 / x)
    return np.sqrt(np.interp((np.arange(count) + 0.5) / count, above / above[-1], x))


def _energies(S: np.ndarray) -> np.ndarray:
    """energy at 1, 2, .. ranks; zeros for a zero matrix."""
    sums = np.cumsum((S / (S.max(initial=0) or 1)) ** 2)  # squares of large numbers may overflow
    return sums / (sums.max(initial=0) or 1)


def _spectrum(A) -> np.ndarray:
    """Singular values in float64."""
    return (np.sort(np.asarray(A))[::-1] if np.ndim(A) == 1 else singular_values(A)).astype(np.float64)


def _prepare(A) -> tuple[np.ndarray, np.dtype]:
    """A as float32 or float64 (m, n), and the dtype that its figures get."""
    A = np.asarray(A)
    if A.ndim != 2 or A.dtype.kind not in "fiub":
        raise ShapeError(f"a decomposition takes a matrix (m, n) of real numbers, not {A.dtype} of shape {A.shape}")
    dtype = A.dtype if A.dtype.kind == "f" else np.dtype(np.float64)
    if not np.isfinite(A).all():
        index = tuple(int(i) for i in np.argwhere(~np.isfinite(A))[0])
        raise MiniloraError(f"entry {index} of the matrix is {A[index]}: a decomposition needs finite numbers")
    return A.astype(np.float32 if dtype.itemsize <= 4 else np.float64, copy=False), dtype


def _rank(r, most: int) -> int:
    if not isinstance(r, (int, np.integer)) or isinstance(r, bool) or not 0 <= r <= most:
        raise ConfigError(f"the rank is an integer from 0 to {most} for this matrix, not {r!r}")
    return int(r)
