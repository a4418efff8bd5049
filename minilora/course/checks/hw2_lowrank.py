"""Homework 2, low rank: rank, the singular value decomposition, what few directions hold, and a fast transform."""

import contextlib
import tracemalloc
from fractions import Fraction

import numpy as np

from minilora.course.check import Problem, Wrong, equal
from minilora.lowrank import subspace_similarity


def _whole(rng, *shape):
    return rng.integers(-3, 4, shape).astype(float)


def _of_rank(rng, m, n, r):
    """Whole numbers: a product whose factors have a triangle of ones within, rows and columns in any order."""
    left, right = np.tril(_whole(rng, m, r), -1), np.triu(_whole(rng, r, n), 1)
    np.fill_diagonal(left, 1)
    np.fill_diagonal(right, 1)
    return (left @ right)[rng.permutation(m)][:, rng.permutation(n)]


def _rows(A) -> list[list[int]]:
    return [[int(a) for a in row] for row in A]


# rank(rows): a list of lists of integers and Fractions

rank = Problem("rank", 4)


def _known_rank(rng, size):
    m, n = (int(k) for k in rng.integers(1, 2 + size // 2, 2))
    r = int(rng.integers(0, 1 + min(m, n)))
    return {"rows": _rows(_of_rank(rng, m, n, r)), "r": r}


@rank.law(
    "it is the number of rows that do not follow from the others", draw=_known_rank,
    means="from every row below a pivot, that multiple of the pivot's row is taken which makes its column 0",
)  # fmt: skip
def _(answer, rows, r):
    equal(answer(rows), r, 0)


def _stairs(rng, size):
    r = 1 + size // 2
    columns = np.sort(rng.choice(r + 2, r, replace=False))
    A = _whole(rng, r, r + 2)
    for i, column in enumerate(columns):
        A[i, :column], A[i, column] = 0, 2
    return {"rows": _rows(A[rng.permutation(r)]), "r": r}


@rank.law(
    "zeros where a pivot is looked for do no harm", draw=_stairs,
    means="look further down for a row whose number is not 0 and exchange the two; if there is none, the next column "
    "has the same row for its pivot",
)  # fmt: skip
def _(answer, rows, r):
    equal(answer(rows), r, 0)


def _close(rng, size):
    n = 10 ** (2 * size)
    if size % 2:
        return {"rows": [[n, n + 1], [n - 1, n]], "r": 2}
    return {"rows": [[Fraction(1, 10), 1], [Fraction(3 * size, 10), 3 * size]], "r": 1}


@rank.law(
    "it is exact: [[n, n + 1], [n - 1, n]] has rank 2 for any n, and [[1/10, 1], [3/10, 3]] has rank 1", draw=_close,
    means="floats are rounded; calculate with fractions.Fraction",
)  # fmt: skip
def _(answer, rows, r):
    equal(answer(rows), r, 0)


@rank.law("the rows that were handed in are as they were", draw=_known_rank, means="work on a copy of each row")
def _(answer, rows, r):
    before = [list(row) for row in rows]
    answer(rows)
    if rows != before:
        raise Wrong(f"they were {before} and now are {rows}")


# svd_by_eigen(A) -> U, S, Vt for A (m, n) of rank n, without np.linalg.svd

svd_by_eigen = Problem("svd_by_eigen", 5)


def _tall(rng, size):
    n = 1 + size // 2
    m = n + int(rng.integers(0, 3))
    return {"A": _of_rank(rng, m, n, n)}


def _turned(rng, size):
    n = 1 + size // 2
    A = np.zeros((n + size % 2, n))
    A[rng.permutation(len(A))[:n], np.arange(n)] = rng.choice([-1, 1], n)
    return {"A": A * int(rng.integers(1, 4))}


def _singular_values(A):
    return np.linalg.svd(A, compute_uv=False)


def _asked(A) -> bool:
    """Whether A is of rank n, and well so: AᵀA has the square of A's spread."""
    S = _singular_values(A)
    return len(A) >= A.shape[1] and S[-1] > 1e-3 * S[0]


def _decomposed(answer, A):
    def forbidden(*_, **__):
        raise Wrong("np.linalg.svd is what you are to write here: use np.linalg.eigh")

    svd, np.linalg.svd = np.linalg.svd, forbidden
    try:
        U, S, Vt = answer(A)
    finally:
        np.linalg.svd = svd
    for name, array, shape in (("U", U, A.shape), ("S", S, A.shape[1:]), ("Vt", Vt, A.shape[1:] * 2)):
        if np.shape(array) != shape:
            raise Wrong(f"expected {name} of shape {shape}, got {np.shape(array)}")
    return U, S, Vt


@svd_by_eigen.law(
    "S has the singular values, from the largest", draw=_tall,
    means="the eigenvalues of AᵀA are the squares of the singular values, and eigh gives them from the smallest",
)  # fmt: skip
def _(answer, A):
    if _asked(A):
        equal(_decomposed(answer, A)[1], _singular_values(A), 1e-7)


@svd_by_eigen.law(
    "U's columns and Vt's rows have length 1 and are orthogonal", draw=_tall,
    means="A v has the length σ: divide by it",
)  # fmt: skip
def _(answer, A):
    if _asked(A):
        U, _, Vt = _decomposed(answer, A)
        equal(np.transpose(U) @ U, np.eye(A.shape[1]), 1e-7)
        equal(Vt @ np.transpose(Vt), np.eye(A.shape[1]), 1e-7)


for words, draw in (("U S Vᵀ is A", _tall), ("U S Vᵀ is A also where singular values are equal", _turned)):

    @svd_by_eigen.law(
        words, draw=draw,
        means="an eigenvector may have either sign, and those of one eigenvalue may be turned: V from AᵀA and U from "
        "AAᵀ do not fit together. Solve one of them, and get U from A V. (eigh's eigenvectors are columns.)",
    )  # fmt: skip
    def _(answer, A):
        if _asked(A):
            U, S, Vt = _decomposed(answer, A)
            equal(np.asarray(U) * S @ Vt, A, 1e-7)


# nearest(A, r): the best approximation of rank r

nearest = Problem("nearest", 3)


def _matrix(rng, size):
    m, n = (int(k) for k in rng.integers(1, 2 + size, 2))
    return {"A": _whole(rng, m, n), "r": int(rng.integers(1, 1 + min(m, n)))}


@nearest.law(
    "it has A's shape and rank r at most", draw=_matrix,
    means="the first r columns of U, the first r singular values and the first r rows of Vᵀ",
)  # fmt: skip
def _(answer, A, r):
    X = np.asarray(answer(A, r))
    if X.shape != A.shape:
        raise Wrong(f"expected shape {A.shape}, got {X.shape}")
    S = _singular_values(X)
    if r < len(S) and S[r] > 1e-9 * (1 + S[0]):
        raise Wrong(f"it has the singular values {S}: more than {r} of them are not 0")


@nearest.law(
    "no matrix of rank r is nearer: the distance is √(σ² of what is left out)", draw=_matrix,
    means="what is to be left out are the smallest singular values",
)  # fmt: skip
def _(answer, A, r):
    least, distance = np.linalg.norm(_singular_values(A)[r:]), np.linalg.norm(A - np.asarray(answer(A, r)))
    if not distance <= least + 1e-9 * (1 + np.linalg.norm(A)):
        raise Wrong(f"the distance ‖A - X‖ is {distance:.6g}; the least is {least:.6g}")


@nearest.law(
    "a matrix of rank r is found again",
    draw=lambda rng, size: {"A": _of_rank(rng, 1 + size, 2 + size // 2, 1 + size // 3), "r": 1 + size // 3},
    means="all that such a matrix has is in its first r singular values: is one more or one less taken?",
)  # fmt: skip
def _(answer, A, r):
    if np.linalg.matrix_rank(A) <= r:
        equal(answer(A, r), A)


# rank_for_energy(S, share)

rank_for_energy = Problem("rank_for_energy", 3)


def _spectrum(rng, size):
    S = np.sort(rng.integers(0, 5, size).astype(float))[::-1].copy()
    S[0] = max(S[0], 1)
    return {"S": S, "share": float(rng.choice([0.123, 0.321, 0.517, 0.749, 0.917]))}


def _ordered(S) -> bool:
    return bool(S[0] > 0 and (S[:-1] >= S[1:]).all() and S[-1] >= 0)


@rank_for_energy.law(
    "it is the least k whose first k singular values have the share of the energy", draw=_spectrum,
    means="energy is the sum of squares; and is k one too small or too large? k = 1 means the first alone",
)  # fmt: skip
def _(answer, S, share):
    if _ordered(S):
        least = next(k for k in range(1, len(S) + 1) if (S[:k] ** 2).sum() >= share * (S**2).sum())
        equal(answer(S, share), least, 0)


@rank_for_energy.law(
    "just the share is enough", draw=lambda rng, size: {"S": np.full(4 ** (1 + size % 2), 2.0**-size), "share": 0.25},
    means="at least, not more than: >=",
)  # fmt: skip
def _(answer, S, share):
    if _ordered(S) and (S[0] == S).all():
        equal(answer(S, share), len(S) // 4, 0)


@rank_for_energy.law(
    "all of it is the rank, and a zero matrix needs nothing",
    draw=lambda rng, size: {"S": np.append(np.arange(size // 2, 0, -1.0), np.zeros(1 + size % 3))},
    means="zeros at the end add nothing; and beware of dividing by an energy of 0",
)  # fmt: skip
def _(answer, S):
    if not S.any() or _ordered(S):
        equal(answer(S, 1.0), np.count_nonzero(S), 0)


# extract_lora(tuned, base, r, alpha) -> A, B

extract_lora = Problem("extract_lora", 4)


def _two_weights(rng, size, exact=False):
    d_in, d_out = (int(k) for k in rng.integers(1, 2 + size, 2))
    r = int(rng.integers(1, 1 + min(d_in, d_out)))
    base = _whole(rng, d_out, d_in)
    change = _of_rank(rng, d_out, d_in, r) if exact else _whole(rng, d_out, d_in)
    return {"tuned": base + change, "base": base, "r": r, "alpha": int(rng.integers(1, 9))}


@extract_lora.law(
    "A is (r, d_in) and B is (d_out, r)", draw=_two_weights,
    means="B comes from the columns of U, A from the rows of Vᵀ; only the first r of them",
)  # fmt: skip
def _(answer, tuned, base, r, alpha):
    A, B = answer(tuned, base, r, alpha)
    for name, found, shape in (("A", A, (r, base.shape[1])), ("B", B, (len(base), r))):
        if np.shape(found) != shape:
            raise Wrong(f"expected {name} of shape {shape}, got {np.shape(found)}")


@extract_lora.law(
    "a change of rank r is found again: base + (alpha / r) B A is what was tuned",
    draw=lambda rng, size: _two_weights(rng, size, exact=True),
    means="the adapter is of tuned - base, not of one of them; and its layer will multiply B A by alpha / r",
)  # fmt: skip
def _(answer, tuned, base, r, alpha):
    if np.linalg.matrix_rank(tuned - base) <= r:
        A, B = answer(tuned, base, r, alpha)
        equal(base + alpha / r * np.asarray(B) @ A, tuned)


@extract_lora.law(
    "of any other change the best part is found", draw=_two_weights,
    means="Eckart and Young: the r largest singular values",
)  # fmt: skip
def _(answer, tuned, base, r, alpha):
    A, B = answer(tuned, base, r, alpha)
    least = np.linalg.norm(_singular_values(tuned - base)[r:])
    distance = np.linalg.norm(tuned - base - alpha / r * np.asarray(B) @ A)
    if not distance <= least + 1e-9 * (1 + np.linalg.norm(tuned - base)):
        raise Wrong(f"‖tuned - base - (alpha / r) B A‖ is {distance:.6g}; the least is {least:.6g}")


@extract_lora.law(
    "the sizes are shared: each row of A is as long as B's column", draw=_two_weights,
    means="each of the two gets the root of the singular value, and of r / alpha",
)  # fmt: skip
def _(answer, tuned, base, r, alpha):
    A, B = (np.asarray(x) for x in answer(tuned, base, r, alpha))
    equal((B**2).sum(0), (A**2).sum(1))


# similarity(A, B, i, j), A (a, d), B (b, d)

similarity = Problem("similarity", 4)


def _pair(rng, size):
    d = 2 + size // 2
    a, b = (int(k) for k in rng.integers(1, 1 + d, 2))
    A, B = _whole(rng, a, d), _whole(rng, b, d)
    return {"A": A, "B": B, "i": int(rng.integers(1, 1 + a)), "j": int(rng.integers(1, 1 + b))}


def _determined(A, k) -> bool:
    """Whether A's first k directions are: a gap after the k-th singular value."""
    S = np.append(_singular_values(A), 0)
    return bool(S[k - 1] - S[k] > 1e-3 * S[0])


@similarity.law(
    "the same directions have 1, whatever combines them",
    draw=lambda rng, size: {"A": _of_rank(rng, 1 + size // 3, 2 + size // 2, 1 + size // 3),
                            "M": _of_rank(rng, 1 + size // 3, 1 + size // 3, 1 + size // 3)},
    means="rows are no orthonormal basis of what they span: take the right singular vectors",
)  # fmt: skip
def _(answer, A, M):
    k = len(A)
    if _determined(A, k) and _determined(M @ A, k):
        equal(answer(A, M @ A, k, k), 1, 1e-6)


@similarity.law(
    "orthogonal directions have 0",
    draw=lambda rng, size: {"A": _of_rank(rng, 1, size, 1), "B": _of_rank(rng, 1 + size // 2, 1 + size, 1)},
    means="directions of the input are the right singular vectors, rows of Vᵀ, not the left ones",
)  # fmt: skip
def _(answer, A, B):
    if A.any() and B.any():
        A, B = np.pad(A, ((0, 0), (0, B.shape[1]))), np.pad(B, ((0, 0), (A.shape[1], 0)))
        equal(answer(A, B, 1, 1), 0, 1e-6)


@similarity.law(
    "a subspace of the other one has 1",
    draw=lambda rng, size: {"A": np.diag(np.arange(2.0 + size, 0, -1)), "i": 1 + size // 2, "j": 1 + size},
    means="the sum of squares goes up to min(i, j): divide by that",
)  # fmt: skip
def _(answer, A, i, j):
    if _determined(A, i) and _determined(A, j):
        equal(answer(A[:j], A, i, j), 1, 1e-6)
        equal(answer(A, A[:j], j, i), 1, 1e-6)


@similarity.law(
    "it is ‖V_A(i)ᵀ V_B(j)‖² / min(i, j), with the Frobenius norm", draw=_pair,
    means="the square of the norm, of the first i and the first j directions only",
)  # fmt: skip
def _(answer, A, B, i, j):
    if _determined(A, i) and _determined(B, j):
        equal(answer(A, B, i, j), subspace_similarity(A, B, i, j), 1e-6)


# walsh_hadamard(x): H x in n log n steps

walsh_hadamard = Problem("walsh_hadamard", 4)


def _power_of_two(rng, size):
    return {"x": _whole(rng, 2 ** (size // 2))}


@walsh_hadamard.law(
    "it is H x", draw=_power_of_two,
    means="with a and b the halves of x, H x is H a + H b above H a - H b; nothing is divided",
)  # fmt: skip
def _(answer, x):
    n = np.arange(len(x))
    ones = [[(int(i) & int(j)).bit_count() for j in n] for i in n]  # H's entry is (-1) to the number of common ones
    equal(answer(x.copy()), (-1.0) ** np.array(ones) @ x)


@walsh_hadamard.law("H H x is n x", draw=_power_of_two, means="H is its own inverse but for the factor n")
def _(answer, x):
    equal(answer(np.array(answer(x.copy()))), len(x) * x)


@walsh_hadamard.law("x itself is as it was", draw=_power_of_two, means="work on a copy")
def _(answer, x):
    before = x.copy()
    answer(x)
    equal(x, before, 0)


@walsh_hadamard.law(
    "4,096 numbers need no matrix of 4,096 rows", draw=lambda rng, size: {"n": 2 ** (size + 4)},
    means="n log n additions: log n rounds of n sums and differences. H itself has n² numbers and is never formed",
)  # fmt: skip
def _(answer, n):
    x = np.arange(float(n))
    with _traced() as peak:
        answer(x)
    if peak[0] > 100_000 + 1000 * n:
        raise Wrong(f"for {n} numbers it took {peak[0]:,} bytes: {peak[0] // n:,} for each")


@contextlib.contextmanager
def _traced():
    """A list that gets the largest number of bytes in use within."""
    peak, before = [], tracemalloc.is_tracing()
    tracemalloc.start()
    tracemalloc.reset_peak()
    start = tracemalloc.get_traced_memory()[0]
    try:
        yield peak
        peak.append(tracemalloc.get_traced_memory()[1] - start)
    finally:
        if not before:
            tracemalloc.stop()
