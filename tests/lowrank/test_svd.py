"""The SVD's laws: what it is, that its truncation is best, that the randomized one is within its bound."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minilora.errors import ConfigError, MiniloraError, ShapeError
from minilora.lowrank import (
    eckart_young,
    effective_rank,
    energy,
    numerical_rank,
    randomized_svd,
    range_basis,
    rank_for_energy,
    singular_values,
    stable_rank,
    svd,
    svd_from_eigen,
    truncate,
)

KINDS = ("normal", "low rank", "ties", "zeros", "one entry", "integers", "orthogonal", "steep", "large", "small")


def make(kind: str, m: int, n: int, rng: np.random.Generator) -> np.ndarray:
    A, k = rng.standard_normal((m, n)), min(m, n)
    U, _, Vt = np.linalg.svd(A, full_matrices=False)
    match kind:
        case "low rank":
            r = max(1, k // 2)
            return rng.standard_normal((m, r)) @ rng.standard_normal((r, n))
        case "ties":
            return (U * np.array([3.0, 3, 1, 1, 1] * k)[:k]) @ Vt
        case "zeros":
            return np.zeros((m, n))
        case "one entry":
            A[:] = 0
            A[rng.integers(m), rng.integers(n)] = -2
        case "integers":
            return rng.integers(-3, 4, (m, n))
        case "orthogonal":
            return U @ Vt
        case "steep":
            return (U * 10.0 ** -np.arange(k)) @ Vt
        case "large":
            return A * 1e30
        case "small":
            return A * 1e-30
    return A


matrices = st.builds(
    lambda kind, m, n, seed, dtype: make(kind, m, n, np.random.default_rng(seed)).astype(dtype),
    st.sampled_from(KINDS), st.integers(1, 12), st.integers(1, 12), st.integers(0, 999), st.sampled_from(["f", "d"]),
)  # fmt: skip


def norm(A) -> float:
    return float(np.linalg.norm(np.asarray(A, np.float64)))


def assert_orthonormal(columns, rtol):
    np.testing.assert_allclose(columns.T @ columns, np.eye(columns.shape[1]), atol=rtol)


@given(matrices)
def test_svd_is_one(A):
    (m, n), (U, S, Vt), eps = A.shape, svd(A), np.finfo(A.dtype).eps
    assert (U.shape, S.shape, Vt.shape) == ((m, min(m, n)), (min(m, n),), (min(m, n), n))
    assert {a.dtype for a in (U, S, Vt)} == {A.dtype}
    assert (np.diff(S) <= 0).all() and (S >= 0).all()
    assert_orthonormal(U, 50 * eps)
    assert_orthonormal(Vt.T, 50 * eps)
    assert norm(svd(A).matrix() - A) <= 50 * eps * norm(A)
    np.testing.assert_allclose(singular_values(A), S, rtol=1e-5, atol=50 * eps * S[0])


@given(matrices)
def test_from_the_eigenproblem_too(A):
    """Orthonormal always; the matrix, and singular values, to √ε of the largest."""
    (U, S, Vt), eps, k = svd_from_eigen(A), np.finfo(A.dtype).eps, min(A.shape)
    exact = svd(A)
    assert [a.shape for a in (U, S, Vt)] == [a.shape for a in exact] and {a.dtype for a in (U, S, Vt)} == {A.dtype}
    assert (np.diff(S) <= 0).all() and (S >= 0).all()
    assert_orthonormal(U, 50 * eps)
    assert_orthonormal(Vt.T, 50 * eps)
    lost = math.sqrt(k * eps) * exact.S[0]
    np.testing.assert_allclose(S, exact.S, atol=2 * lost)
    assert norm((U * S) @ Vt - A) <= 2 * k * lost
    assert numerical_rank(A) != k or S[-1] == 0 or S[-1] > lost / 2


@given(st.integers(1, 12), st.integers(1, 12), st.integers(0, 999))
def test_from_the_eigenproblem_is_exact_where_no_singular_value_is_small(m, n, seed):
    rng = np.random.default_rng(seed)
    U, _, Vt = svd(rng.standard_normal((m, n)))
    S = np.sort(rng.integers(1, 5, min(m, n)))[::-1]  # with ties
    found = svd_from_eigen((U * S) @ Vt)
    np.testing.assert_allclose(found.S, S, rtol=1e-13)
    np.testing.assert_allclose(found.matrix(), (U * S) @ Vt, atol=1e-13)


def test_what_the_eigenproblem_loses():
    """σ = 1e-10 of the largest: LAPACK finds it to six digits, the eigenproblem of AᵀA sees rounding only."""
    rng = np.random.default_rng(0)
    U, _, Vt = svd(rng.standard_normal((9, 4)))
    S = np.array([1, 1e-3, 1e-6, 1e-10])
    A = (U * S) @ Vt
    np.testing.assert_allclose(svd(A).S, S, rtol=1e-5)
    found = svd_from_eigen(A)
    np.testing.assert_allclose(found.S[:3], S[:3], rtol=1e-3)
    assert found.S[3] == 0 and abs(found.S[2] / S[2] - 1) > 1e-9
    eigenvalues = np.linalg.eigvalsh(A.T @ A)
    assert abs(eigenvalues[0]) > 100 * S[3] ** 2  # where S[3]² = 1e-20 should stand


def test_scipy_agrees():
    linalg = pytest.importorskip("scipy.linalg")
    rng = np.random.default_rng(1)
    for shape in ((7, 4), (4, 7), (1, 5)):
        A = rng.standard_normal(shape)
        U, S, Vt = linalg.svd(A, full_matrices=False, lapack_driver="gesvd")  # not NumPy's gesdd
        for ours in (svd(A), svd_from_eigen(A)):
            np.testing.assert_allclose(ours.S, S, rtol=1e-12)
            signs = np.sign((ours.U * U).sum(0))
            np.testing.assert_allclose(ours.U * signs, U, atol=1e-10)
            np.testing.assert_allclose(ours.Vt * signs[:, None], Vt, atol=1e-10)


# Facts that are often stated otherwise.


def test_U_has_eigenvectors_of_AAt_not_of_AtA():
    A = np.random.default_rng(0).standard_normal((4, 4))
    U, S, Vt = svd(A)
    np.testing.assert_allclose(A @ A.T @ U, U * S**2, atol=1e-12)
    np.testing.assert_allclose(A.T @ A @ Vt.T, Vt.T * S**2, atol=1e-12)
    assert norm(A.T @ A @ U - U * S**2) > 1
    assert svd(np.ones((5, 2))).U.shape[0] == 5  # AᵀA is 2 x 2: its eigenvectors have not even the length


def test_two_separate_eigenproblems_give_no_svd():
    A = np.random.default_rng(0).standard_normal((6, 6))
    squares, V = np.linalg.eigh(A.T @ A)
    _, U = np.linalg.eigh(A @ A.T)
    wrong = (U * np.sqrt(squares)) @ V.T
    assert norm(wrong - A) > 0.5 * norm(A)
    np.testing.assert_allclose(svd_from_eigen(A).matrix(), A, atol=1e-13)
    assert norm(np.linalg.eigh(np.eye(3))[1] - np.eye(3)) == 0
    Q = svd(A).matrix() @ np.linalg.inv(A)  # = I; of an orthogonal matrix all σ = 1, and any basis will do for V
    orthogonal = np.linalg.qr(A)[0] @ Q
    np.testing.assert_allclose(svd_from_eigen(orthogonal).matrix(), orthogonal, atol=1e-13)


def test_truncation_takes_columns_of_U_and_rows_of_Vt():
    """Not the first k rows of U: that product is not even near."""
    A = np.random.default_rng(0).standard_normal((8, 8))
    U, S, Vt = svd(A)
    np.testing.assert_allclose(truncate(A, 3).matrix(), U[:, :3] @ np.diag(S[:3]) @ Vt[:3], atol=1e-14)


def test_singular_values_of_a_random_matrix_do_not_fall_exponentially():
    """Those of a Gaussian matrix fall nearly evenly: the ratio of neighbours approaches 1 with its size, and half of
    them hold no more than nine tenths of the energy. An exponential spectrum has one ratio, and all in a few."""
    S = singular_values(np.random.default_rng(0).standard_normal((256, 256)))
    ratios = S[1:200] / S[:199]
    assert ratios.min() > 0.95
    assert 0.8 < energy(S, 128) < 0.93
    exponential = 0.8 ** np.arange(256)
    assert energy(exponential, 10) > 0.98 > 0.2 > energy(S, 10)
    edge = 2 * math.sqrt(256)  # Marchenko and Pastur: a square matrix's lie between 0 and 2 √n
    assert S[0] == pytest.approx(edge, rel=0.05)


# Truncation.


@given(matrices, st.data())
def test_truncation_is_best_and_its_error_the_tail(A, data):
    A = A.astype(np.float64)
    (m, n), k, S = A.shape, min(A.shape), svd(A).S
    r = data.draw(st.integers(0, k))
    best, error = truncate(A, r).matrix(), eckart_young(A, r)
    assert best.shape == A.shape and numerical_rank(best) <= r
    tiny = 1e-13 * norm(A)
    assert norm(A - best) == pytest.approx(error.frobenius, rel=1e-9, abs=tiny)
    assert np.linalg.norm(A - best, 2) == pytest.approx(error.spectral, rel=1e-9, abs=tiny)
    assert error.frobenius == pytest.approx(float(np.linalg.norm(S[r:])), rel=1e-12)
    assert error.spectral == pytest.approx(S[r] if r < k else 0, rel=1e-12, abs=tiny)
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    for _ in range(5):  # best X of rank r with given columns, near to A's and anywhere
        near = best + rng.standard_normal((m, n)) * 0.1 * np.abs(A).max()
        basis, _ = np.linalg.qr(truncate(near, r).U if rng.random() < 0.7 else rng.standard_normal((m, r)))
        rival = basis @ (basis.T @ A)
        assert norm(A - rival) >= error.frobenius - tiny
        assert np.linalg.norm(A - rival, 2) >= error.spectral - tiny


@pytest.mark.parametrize("power", [0, 1])
@pytest.mark.parametrize("decay", [0.0, 0.5, 1.0])
def test_the_randomized_error_is_within_the_theorem_s_bound(power, decay):
    """Halko, Martinsson and Tropp: theorems 10.5 and 10.6 and corollary 10.10, for the mean over random matrices."""
    rng, r, p = np.random.default_rng(0), 6, 4
    U, _, Vt = svd(rng.standard_normal((40, 30)))
    S = np.arange(1, 31.0) ** -decay
    A, tail = (U * S) @ Vt, S[r:]
    frobenius, spectral = [], []
    for seed in range(40):
        Q = range_basis(A, r + p, power, seed)
        assert_orthonormal(Q, 1e-12)
        rest = A - Q @ (Q.T @ A)
        frobenius.append(norm(rest))
        spectral.append(np.linalg.norm(rest, 2))
    s, e = tail ** (2 * power + 1), math.e
    bound = (1 + math.sqrt(r / (p - 1))) * s[0] + e * math.sqrt(r + p) / p * np.linalg.norm(s)
    assert np.mean(spectral) <= bound ** (1 / (2 * power + 1))
    assert np.mean(frobenius) <= math.sqrt(1 + r / (p - 1)) * np.linalg.norm(tail)
    assert min(frobenius) >= np.linalg.norm(S[r + p :]) * (1 - 1e-12)  # nothing of rank r + p is nearer


def test_the_randomized_svd_is_nearly_the_truncated():
    rng = np.random.default_rng(3)
    U, _, Vt = svd(rng.standard_normal((60, 45)))
    A = ((U * np.arange(1, 46.0) ** -1) @ Vt).astype(np.float32)
    best = eckart_young(A, 8).frobenius
    errors = [norm(A - randomized_svd(A, 8, 8, q, seed=1).matrix()) / best for q in (0, 1, 2, 4)]
    assert errors[0] < 1.5 and errors[2] < 1.01 and errors[3] < 1.001 and all(e >= 1 - 1e-6 for e in errors)
    found = randomized_svd(A, 8, power_iterations=4)
    assert {a.dtype for a in found} == {np.dtype(np.float32)} and found.U.shape == (60, 8)
    np.testing.assert_allclose(found.S, svd(A).S[:8], rtol=1e-3)
    low = A[:, :5].astype(np.float64) @ A[:5].astype(np.float64)
    np.testing.assert_allclose(randomized_svd(low, 5).matrix(), low, atol=1e-12)  # exact where the rank is no more


def test_the_generator_decides():
    A = np.random.default_rng(0).standard_normal((20, 20))
    a, b, c = (randomized_svd(A, 3, 2, 0, seed) for seed in (5, np.random.default_rng(5), 6))
    assert np.array_equal(a.U, b.U) and not np.array_equal(a.U, c.U)


# How a spectrum falls.


@given(st.integers(1, 30), st.floats(1e-300, 1e300), st.integers(0, 30))
def test_k_equal_singular_values_have_rank_k_by_every_measure(k, size, zeros):
    S = np.array([size] * k + [0.0] * zeros)
    assert effective_rank(S) == pytest.approx(k) == pytest.approx(stable_rank(S))
    assert energy(S, 1) == pytest.approx(1 / k) and rank_for_energy(S, 1) == k
    assert rank_for_energy(S, (k - 0.5) / k) == k and energy(S, k) == pytest.approx(1)


@given(matrices)
def test_measures_of_a_matrix(A):
    S, r = svd(A).S.astype(np.float64), numerical_rank(A)
    for measure in (effective_rank, stable_rank):
        assert measure(A) == pytest.approx(measure(S), rel=1e-5, abs=1e-6)
        assert measure(A) == pytest.approx(measure(2 * A), rel=1e-5)
        assert measure(A) <= r * (1 + 1e-5) + (measure is effective_rank) * 1e-3
        assert measure(A) >= (r > 0) * (1 - 1e-5)
    assert stable_rank(A) <= effective_rank(A) * (1 + 1e-5)
    shares = [energy(A, k) for k in range(len(S) + 1)]
    assert shares == sorted(shares) and shares[-1] == pytest.approx(1) and shares[0] == (0 if S.any() else 1)
    for share in (0.3, 0.9, 1.0):
        k = rank_for_energy(A, share)
        assert k == 0 if not S.any() else energy(A, k) >= share > energy(A, k - 1) - 1e-12
        if S.any():
            left = eckart_young(A, k).frobenius ** 2 / norm(A) ** 2 if norm(A) ** 2 else 0
            assert left == pytest.approx(1 - energy(A, k), abs=1e-5)


def test_roy_and_vetterli_s_measure_on_two_values():
    p = np.array([0.75, 0.25])
    assert effective_rank(np.diag([3.0, 1.0])) == pytest.approx(np.prod(p**-p))
    assert stable_rank(np.diag([3.0, 1.0])) == pytest.approx(10 / 9)


# What is refused; dtypes.


def test_dtypes():
    A = np.random.default_rng(0).standard_normal((5, 3))
    for dtype, out in (("f2", "f2"), ("f4", "f4"), ("f8", "f8"), ("i4", "f8"), ("?", "f8")):
        for function in (svd, svd_from_eigen, lambda a: truncate(a, 2), lambda a: randomized_svd(a, 2)):
            assert {a.dtype for a in function((A * 9).astype(dtype))} == {np.dtype(out)}
    half = svd(A.astype(np.float16))
    np.testing.assert_allclose(half.matrix(), A, atol=0.01)
    for empty in (np.zeros((0, 3)), np.zeros((3, 0))):
        for function in (svd, svd_from_eigen, lambda a: randomized_svd(a, 0)):
            assert function(empty).matrix().shape == empty.shape
        assert eckart_young(empty, 0) == (0, 0) and effective_rank(empty) == stable_rank(empty) == 0


def test_what_is_refused():
    A = np.eye(3)
    for wrong in (np.ones(3), np.ones((2, 2, 2)), np.ones((2, 2), complex), np.array([["a"]])):
        with pytest.raises(ShapeError, match="a matrix"):
            svd(wrong)
    A[1, 2] = np.nan
    with pytest.raises(MiniloraError, match=r"entry \(1, 2\) of the matrix is nan"):
        svd_from_eigen(A)
    for r in (-1, 4, 1.0, True):
        for function in (truncate, eckart_young, energy, randomized_svd):
            with pytest.raises(ConfigError, match="from 0 to 3"):
                function(np.eye(3), r)
    for options in ({"oversampling": -1}, {"power_iterations": -1}):
        with pytest.raises(ConfigError, match="zero or more"):
            randomized_svd(np.eye(3), 1, **options)
    for share in (0, 1.1, float("nan")):
        with pytest.raises(ConfigError, match="share"):
            rank_for_energy(np.eye(3), share)
