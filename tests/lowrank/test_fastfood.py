"""Random projections: Fastfood by the matrices that it stands for, lengths, the adjoint, bytes and time."""

import time
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.linalg import hadamard

from minilora.errors import ConfigError, ShapeError
from minilora.lowrank.fastfood import DenseProjection, Fastfood, SparseProjection, walsh_hadamard

CLASSES = DenseProjection, SparseProjection, Fastfood
kinds = st.sampled_from(CLASSES)
rows, columns, seeds = st.integers(1, 300), st.integers(1, 70), st.integers(0, 2**32)


def matrix(P) -> np.ndarray:
    return np.stack([P @ e for e in np.eye(P.shape[1])], axis=1)


def best_of(repeats: int, function) -> float:
    times = []
    for _ in range(repeats):
        start = time.process_time()
        function()
        times.append(time.process_time() - start)
    return min(times)


# The Walsh-Hadamard transform.


@pytest.mark.parametrize("dtype", [np.int64, np.float32, np.float64, np.complex128])
@pytest.mark.parametrize("power", range(12))
def test_the_transform_is_scipys_matrix_exactly(power, dtype, rng):
    x = rng.integers(-999, 1000, (3, 2**power))
    expected = x @ hadamard(2**power)
    got = walsh_hadamard(x.astype(dtype))
    assert got.dtype == dtype and np.array_equal(got, expected)


@given(st.integers(0, 8), st.integers(0, 2), st.booleans(), seeds)
def test_twice_is_n_times_once_along_any_axis_and_of_any_layout(power, axis, transposed, seed):
    shape = [2, 3]
    shape.insert(axis, 2**power)
    x = np.random.default_rng(seed).integers(-9, 10, shape)
    x = np.asfortranarray(x)[..., ::-1] if transposed else x
    before = x.copy()
    once = walsh_hadamard(x, axis)
    assert np.array_equal(walsh_hadamard(once, axis), 2**power * x)
    assert np.array_equal(once, np.moveaxis(np.moveaxis(x, axis, -1) @ hadamard(2**power), -1, axis))
    assert np.array_equal(x, before) and not np.shares_memory(once, x)


def test_the_transform_of_floats_keeps_lengths(rng):
    x = rng.standard_normal(4096).astype(np.float32)
    assert np.linalg.norm(walsh_hadamard(x)) == pytest.approx(64 * np.linalg.norm(x), rel=1e-5)


@pytest.mark.parametrize("shape", [(0,), (3,), (4, 12), ()])
def test_other_lengths_are_refused(shape):
    with pytest.raises(ShapeError, match="1, 2, 4, 8"):
        walsh_hadamard(np.zeros(shape))


# Projections.


@given(rows, columns, seeds)
def test_fastfood_is_the_product_of_its_matrices(D, d, seed):
    P = Fastfood(D, d, seed)
    n, H, blocks = P.signs.shape[1], hadamard(P.signs.shape[1]).astype(float), []
    assert d <= n < 2 * d and len(P.signs) == -(-D // n)
    for signs, order, gauss in zip(P.signs, P.order, P.gauss, strict=True):
        assert set(signs) <= {-1, 1} and sorted(order) == list(range(n))
        assert np.linalg.norm(gauss) == pytest.approx(D**-0.5, rel=1e-5)
        blocks.append(H @ np.diag(gauss.astype(float)) @ np.eye(n)[order] @ H @ np.diag(signs))
    np.testing.assert_allclose(matrix(P), np.concatenate(blocks)[:D, :d], atol=1e-12)


@given(kinds, rows, columns, seeds)
def test_linear_and_adjoint(kind, D, d, seed):
    P, rng = kind(D, d, seed), np.random.default_rng(seed)
    x, y, g = rng.standard_normal(d), rng.standard_normal(d), rng.standard_normal(D)
    np.testing.assert_allclose(P @ (2 * x - 3 * y), 2 * (P @ x) - 3 * (P @ y), atol=1e-11)
    assert g @ (P @ x) == pytest.approx((P.T @ g) @ x, abs=1e-10)
    np.testing.assert_allclose(P.T @ g, matrix(P).T @ g, atol=1e-10)
    z = x + 1j * y
    np.testing.assert_allclose(P @ z, (P @ x) + 1j * (P @ y), atol=1e-11)
    assert P.T.T is P and P.T.shape == (d, D)
    for kind_of, got in ((np.float32, P @ x.astype(np.float32)), (np.float32, P.T @ g.astype(np.float32))):
        assert got.dtype == kind_of
    np.testing.assert_allclose(P @ x.astype(np.float32), P @ x, atol=1e-5 * np.linalg.norm(x))


@given(kinds, rows, columns, seeds)
def test_columns_have_length_one(kind, D, d, seed):
    if kind is Fastfood:
        D *= 1 << (d - 1).bit_length()  # where n divides D it is exact
    np.testing.assert_allclose(np.linalg.norm(matrix(kind(D, d, seed)), axis=0), 1, rtol=1e-5)


@given(st.integers(0, 6), st.integers(1, 5), seeds)
def test_a_block_of_fastfood_has_equal_rows_too(power, blocks, seed):
    n = 2**power
    lengths = np.linalg.norm(matrix(Fastfood(n * blocks, n, seed)), axis=1)
    np.testing.assert_allclose(lengths, blocks**-0.5, rtol=1e-5)


@pytest.mark.parametrize("kind", CLASSES)
@pytest.mark.parametrize(("D", "d"), [(60, 10), (37, 30), (5, 9)])
def test_lengths_are_kept_in_expectation(kind, D, d):
    """The mean of ‖P x‖² over seeds is ‖x‖², to four times the error of a mean of so many."""
    x = np.random.default_rng(1).standard_normal(d)
    squares = np.array([np.sum((kind(D, d, seed) @ x) ** 2) for seed in range(2000)])
    error = squares.std() / np.sqrt(len(squares))
    assert abs(squares.mean() - x @ x) < 4 * error and error < 0.05 * (x @ x)


@pytest.mark.parametrize("kind", CLASSES)
def test_many_rows_make_columns_nearly_orthogonal(kind):
    P = matrix(kind(32768, 16, 0))
    assert np.abs(P.T @ P - np.eye(16)).max() < 0.05


@given(kinds, rows, columns, seeds)
def test_a_seed_gives_the_same_matrix_each_time(kind, D, d, seed):
    x = np.random.default_rng(seed).standard_normal(d).astype(np.float32)
    assert (kind(D, d, seed) @ x).tobytes() == (kind(D, d, seed) @ x).tobytes()
    assert (kind(D, d, [seed, 1]) @ x).tobytes() == (kind(D, d, [seed, 1]) @ x).tobytes()


@pytest.mark.parametrize("kind", CLASSES)
def test_seeds_differ(kind):
    assert not np.array_equal(matrix(kind(40, 6, 0)), matrix(kind(40, 6, 1)))


def test_sparse_columns_have_the_root_of_d_entries():
    P = SparseProjection(10_000, 20, 3)
    assert (np.count_nonzero(matrix(P), axis=0) == 100).all()
    assert set(np.unique(np.abs(P.matrix.data))) == {np.float32(0.1)}


@pytest.mark.parametrize("kind", CLASSES)
def test_what_does_not_fit_is_refused(kind):
    for D, d in ((0, 1), (3, 0), (-2, 1), (2.5, 1), (3, True)):
        with pytest.raises(ConfigError, match="positive integer"):
            kind(D, d)
    P = kind(6, 3)
    for product in (lambda: P @ np.zeros(4), lambda: P @ np.zeros((3, 1)), lambda: P.T @ np.zeros(3)):
        with pytest.raises(ShapeError, match=r"takes \("):
            product()


# Bytes and time.


def stored(P) -> int:
    """Bytes of all arrays that P holds, those of a sparse matrix too."""
    held = [*vars(P).values(), *(vars(P.matrix).values() if isinstance(P, SparseProjection) else ())]
    return sum(a.nbytes for a in held if isinstance(a, np.ndarray))


@pytest.mark.parametrize("kind", CLASSES)
def test_nbytes_counts_what_is_stored(kind):
    P = kind(1000, 33)
    assert P.nbytes == stored(P)
    if kind is DenseProjection:
        assert P.nbytes == 4 * 1000 * 33


def test_a_million_rows_take_a_twentieth_of_the_dense_bytes_and_no_such_temporary(rng):
    D, d = 1_000_000, 1000
    P, x = Fastfood(D, d), rng.standard_normal(d).astype(np.float32)
    g = P @ x
    assert 20 * P.nbytes < 4 * D * d and P.nbytes < 10 * D
    tracemalloc.start()
    P @ x, P.T @ g
    assert tracemalloc.get_traced_memory()[1] < 40 * D
    tracemalloc.stop()
    assert 20 * Fastfood(D, 128).nbytes < 4 * D * 128


def test_time_grows_as_the_logarithm_of_d_and_not_as_d(rng):
    D, times = 2**18, []
    for d in (16, 4096):  # 256 times d, three times its logarithm
        P, x = Fastfood(D, d), rng.standard_normal(d).astype(np.float32)
        times.append(best_of(7, lambda P=P, x=x: P @ x))
    assert times[1] < 8 * times[0]


def test_a_projection_costs_some_hundred_copies_of_its_result(rng):
    P, x = Fastfood(2**18, 1000), rng.standard_normal(1000).astype(np.float32)
    theta = P @ x
    assert best_of(9, lambda: P @ x) < 1000 * best_of(9, theta.copy)


@pytest.mark.slow
def test_a_million_rows_in_fifty_milliseconds(rng):
    """Of one thread, the best of twenty: other processes may hold the core."""
    from threadpoolctl import threadpool_limits

    P, x = Fastfood(1_000_000, 1000), rng.standard_normal(1000).astype(np.float32)
    g = P @ x
    with threadpool_limits(1):
        assert best_of(20, lambda: P @ x) < 0.05 and best_of(20, lambda: P.T @ g) < 0.05
