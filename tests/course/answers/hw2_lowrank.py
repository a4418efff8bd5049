# ruff: noqa: F811  (each answer has the name that the notebook calls)
from fractions import Fraction

import numpy as np
from course.answers import collections

WRONG, RIGHT, wrong, right = collections()
USED_BY = {}  # checks of other answers that fail with it


@wrong("rank", "by floats' singular values")
def rank(rows):
    return np.linalg.matrix_rank(np.array(rows, float))


@wrong("rank", "floats")
def rank(rows):
    rows, found = [[float(a) for a in row] for row in rows], 0
    for column in range(len(rows[0])):
        top = next((i for i in range(found, len(rows)) if rows[i][column]), None)
        if top is not None:
            rows[found], rows[top] = rows[top], rows[found]
            for i in range(found + 1, len(rows)):
                factor = rows[i][column] / rows[found][column]
                rows[i] = [a - factor * b for a, b in zip(rows[i], rows[found], strict=True)]
            found += 1
    return found


@wrong("rank", "no rows are exchanged")
def rank(rows):
    rows, found = [[Fraction(a) for a in row] for row in rows], 0
    for column in range(len(rows[0])):
        if found < len(rows) and rows[found][column]:
            for i in range(found + 1, len(rows)):
                factor = rows[i][column] / rows[found][column]
                rows[i] = [a - factor * b for a, b in zip(rows[i], rows[found], strict=True)]
            found += 1
    return found


@wrong("rank", "the diagonal alone")
def rank(rows):
    rows, found = [[Fraction(a) for a in row] for row in rows], 0
    for k in range(min(len(rows), len(rows[0]))):
        top = next((i for i in range(k, len(rows)) if rows[i][k]), None)
        if top is not None:
            rows[k], rows[top] = rows[top], rows[k]
            for i in range(k + 1, len(rows)):
                factor = rows[i][k] / rows[k][k]
                rows[i] = [a - factor * b for a, b in zip(rows[i], rows[k], strict=True)]
            found += 1
    return found


@wrong("rank", "rows that are not zero, as they come")
def rank(rows):
    return sum(any(row) for row in rows)


@wrong("rank", "in the lists that came in")
def rank(rows):
    found = 0
    for column in range(len(rows[0])):
        top = next((i for i in range(found, len(rows)) if rows[i][column]), None)
        if top is not None:
            rows[found], rows[top] = rows[top], rows[found]
            for i in range(found + 1, len(rows)):
                factor = Fraction(rows[i][column]) / rows[found][column]
                rows[i] = [a - factor * b for a, b in zip(rows[i], rows[found], strict=True)]
            found += 1
    return found


@wrong("svd", "two eigenproblems")
def svd_by_eigen(A):
    squares, V = np.linalg.eigh(A.T @ A)
    _, U = np.linalg.eigh(A @ A.T)
    n = A.shape[1]
    return U[:, ::-1][:, :n], np.sqrt(np.abs(squares[::-1])), V[:, ::-1].T


@wrong("svd", "two eigenproblems, signs made to fit")
def svd_by_eigen(A):
    squares, V = np.linalg.eigh(A.T @ A)
    U = np.linalg.eigh(A @ A.T)[1][:, ::-1][:, : A.shape[1]]
    V = V[:, ::-1]
    signs = np.sign(np.sum(U * (A @ V), axis=0))
    return U * np.where(signs, signs, 1), np.sqrt(np.abs(squares[::-1])), V.T


@wrong("svd", "from the smallest")
def svd_by_eigen(A):
    squares, V = np.linalg.eigh(A.T @ A)
    S = np.sqrt(np.abs(squares))
    return A @ V / S, S, V.T


@wrong("svd", "eigenvalues in place of singular values")
def svd_by_eigen(A):
    squares, V = np.linalg.eigh(A.T @ A)
    S, V = squares[::-1], V[:, ::-1]
    return A @ V / S, S, V.T


@wrong("svd", "V, not its transpose")
def svd_by_eigen(A):
    squares, V = np.linalg.eigh(A.T @ A)
    S, V = np.sqrt(np.abs(squares[::-1])), V[:, ::-1]
    return A @ V / S, S, V


@wrong("svd", "U not divided")
def svd_by_eigen(A):
    squares, V = np.linalg.eigh(A.T @ A)
    S, V = np.sqrt(np.abs(squares[::-1])), V[:, ::-1]
    return A @ V, S, V.T


@wrong("svd", "NumPy's")
def svd_by_eigen(A):
    return np.linalg.svd(A, full_matrices=False)


@wrong("nearest", "the first r rows and columns of U and V")
def nearest(A, r):
    U, S, Vt = np.linalg.svd(A, full_matrices=False)
    return U[:r, :r] * S[:r] @ Vt[:r, :r]


@wrong("nearest", "the smallest ones")
def nearest(A, r):
    U, S, Vt = np.linalg.svd(A, full_matrices=False)
    return U[:, -r:] * S[-r:] @ Vt[-r:]


@wrong("nearest", "one too many")
def nearest(A, r):
    U, S, Vt = np.linalg.svd(A, full_matrices=False)
    S[r + 1 :] = 0
    return U * S @ Vt


@wrong("nearest", "A's first rows")
def nearest(A, r):
    X = np.zeros(A.shape)
    X[:r] = A[:r]
    return X


@wrong("energy", "singular values not squared")
def rank_for_energy(S, share):
    return int(np.argmax(np.cumsum(S) >= share * S.sum())) + 1 if S.any() else 0


@wrong("energy", "one too small")
def rank_for_energy(S, share):
    return int(np.argmax(np.cumsum(S**2) >= share * (S**2).sum()))


@wrong("energy", "more than the share")
def rank_for_energy(S, share):
    if not S.any():
        return 0
    above = np.cumsum(S**2) > share * (S**2).sum()
    return int(np.argmax(above)) + 1 if above.any() else np.count_nonzero(S)


@wrong("energy", "a zero matrix has rank 1")
def rank_for_energy(S, share):
    return int(np.argmax(np.cumsum(S**2) >= share * (S**2).sum())) + 1


@wrong("energy", "the part of the ranks")
def rank_for_energy(S, share):
    return int(np.ceil(share * np.count_nonzero(S)))


@wrong("extract", "alpha / r forgotten")
def extract_lora(tuned, base, r, alpha):
    U, S, Vt = np.linalg.svd(tuned - base, full_matrices=False)
    return np.sqrt(S[:r])[:, None] * Vt[:r], U[:, :r] * np.sqrt(S[:r])


@wrong("extract", "of the tuned weight")
def extract_lora(tuned, base, r, alpha):
    U, S, Vt = np.linalg.svd(tuned, full_matrices=False)
    root = np.sqrt(S[:r] * r / alpha)
    return root[:, None] * Vt[:r], U[:, :r] * root


@wrong("extract", "base minus tuned")
def extract_lora(tuned, base, r, alpha):
    U, S, Vt = np.linalg.svd(base - tuned, full_matrices=False)
    root = np.sqrt(S[:r] * r / alpha)
    return root[:, None] * Vt[:r], U[:, :r] * root


@wrong("extract", "the other way round")
def extract_lora(tuned, base, r, alpha):
    U, S, Vt = np.linalg.svd(tuned - base, full_matrices=False)
    root = np.sqrt(S[:r] * r / alpha)
    return U[:, :r] * root, root[:, None] * Vt[:r]


@wrong("extract", "all the size in B")
def extract_lora(tuned, base, r, alpha):
    U, S, Vt = np.linalg.svd(tuned - base, full_matrices=False)
    return Vt[:r], U[:, :r] * S[:r] * r / alpha


@wrong("similarity", "rows that are not orthonormal")
def similarity(A, B, i, j):
    return np.sum((A[:i] @ B[:j].T) ** 2) / min(i, j)


@wrong("similarity", "the left singular vectors")
def similarity(A, B, i, j):
    U, V = np.linalg.svd(A.T @ A)[0], np.linalg.svd(B @ B.T)[0]
    n = min(len(U), len(V))
    return np.sum((U[:n, :i].T @ V[:n, :j]) ** 2) / min(i, j)


@wrong("similarity", "divided by the larger")
def similarity(A, B, i, j):
    V, W = np.linalg.svd(A, full_matrices=False)[2], np.linalg.svd(B, full_matrices=False)[2]
    return np.sum((V[:i] @ W[:j].T) ** 2) / max(i, j)


@wrong("similarity", "the norm not squared")
def similarity(A, B, i, j):
    V, W = np.linalg.svd(A, full_matrices=False)[2], np.linalg.svd(B, full_matrices=False)[2]
    return np.linalg.norm(V[:i] @ W[:j].T) / min(i, j)


@wrong("similarity", "the largest singular value")
def similarity(A, B, i, j):
    V, W = np.linalg.svd(A, full_matrices=False)[2], np.linalg.svd(B, full_matrices=False)[2]
    return np.linalg.norm(V[:i] @ W[:j].T, 2) ** 2


@wrong("similarity", "columns of Vt")
def similarity(A, B, i, j):
    V, W = np.linalg.svd(A)[2], np.linalg.svd(B)[2]
    return np.sum((V[:, :i].T @ W[:, :j]) ** 2) / min(i, j)


@wrong("hadamard", "the matrix")
def walsh_hadamard(x):
    H = np.ones((1, 1))
    while len(H) < len(x):
        H = np.block([[H, H], [H, -H]])
    return H @ x


@wrong("hadamard", "divided by the root of n")
def walsh_hadamard(x):
    y, h = np.array(x, float), 1
    while h < len(y):
        y = y.reshape(-1, 2, h)
        y = np.stack([y[:, 0] + y[:, 1], y[:, 0] - y[:, 1]], axis=1).ravel()
        h *= 2
    return y / np.sqrt(len(y))


@wrong("hadamard", "in x itself")
def walsh_hadamard(x):
    h = 1
    while h < len(x):
        for i in range(0, len(x), 2 * h):
            for j in range(i, i + h):
                x[j], x[j + h] = x[j] + x[j + h], x[j] - x[j + h]
        h *= 2
    return x


@wrong("hadamard", "even and odd, not put back in place")
def walsh_hadamard(x):
    if len(x) == 1:
        return np.array(x)
    a, b = walsh_hadamard(x[::2]), walsh_hadamard(x[1::2])
    return np.concatenate([a + b, a - b])


@wrong("hadamard", "views of the half that has been written")
def walsh_hadamard(x):
    y, h = np.array(x, float), 1
    while h < len(y):
        for i in range(0, len(y), 2 * h):
            a, b = y[i : i + h], y[i + h : i + 2 * h]
            y[i : i + h] = a + b
            y[i + h : i + 2 * h] = a - b
        h *= 2
    return y


@right("rank", "to reduced form, rows with pivots taken out")
def rank(rows):
    left = [[Fraction(a) for a in row] for row in rows]
    found = 0
    while left:
        row = left.pop()
        column = next((i for i, a in enumerate(row) if a != 0), None)
        if column is None:
            continue
        found += 1
        left = [[a - other[column] / row[column] * b for a, b in zip(other, row, strict=True)] for other in left]
    return found


@right("rank", "whole numbers alone, without division")
def rank(rows):
    rows = [[Fraction(a) for a in row] for row in rows]
    for row in rows:
        for a in list(row):
            row[:] = [b * a.denominator for b in row]
    rows, found = [[int(a) for a in row] for row in rows], 0
    for c in range(len(rows[0])):
        at = [i for i in range(found, len(rows)) if rows[i][c] != 0]
        if at:
            rows.insert(found, rows.pop(at[0]))
            p = rows[found]
            rows[found + 1 :] = [[p[c] * a - q[c] * b for a, b in zip(q, p, strict=True)] for q in rows[found + 1 :]]
            found += 1
    return found


@right("svd", "one vector at a time")
def svd_by_eigen(A):
    values, vectors = np.linalg.eigh(A.T @ A)
    triples = []
    for square, v in sorted(zip(values, vectors.T, strict=True), key=lambda pair: -pair[0]):
        sigma = np.sqrt(square)
        triples.append((A @ v / sigma, sigma, v))
    U, S, V = zip(*triples, strict=True)
    return np.stack(U, axis=1), np.array(S), np.stack(V)


@right("svd", "the lengths of A V, and V from AAᵀ")
def svd_by_eigen(A):
    n = A.shape[1]
    U = np.linalg.eigh(A @ A.T)[1][:, ::-1][:, :n]
    S = np.linalg.norm(A.T @ U, axis=0)
    return U, S, (A.T @ U / S).T


@right("nearest", "a sum of r outer products")
def nearest(A, r):
    U, S, Vt = np.linalg.svd(A)
    return sum(S[k] * np.outer(U[:, k], Vt[k]) for k in range(r))


@right("nearest", "a projection on the first directions")
def nearest(A, r):
    V = np.linalg.eigh(A.T @ A)[1][:, -r:]
    return A @ V @ V.T


@right("energy", "a loop from the end")
def rank_for_energy(S, share):
    k, left = len(S), float(np.sum(S**2))
    total = left
    while k > 0 and left - S[k - 1] ** 2 >= share * total:
        k -= 1
        left -= S[k] ** 2
    return k


@right("energy", "searchsorted of shares")
def rank_for_energy(S, share):
    sums = np.cumsum(S * S)
    return 0 if sums[-1] == 0 else np.searchsorted(sums / sums[-1], share) + 1


@right("extract", "with the matrix of roots")
def extract_lora(tuned, base, r, alpha):
    delta = (tuned - base) / (alpha / r)
    U, S, Vt = np.linalg.svd(delta)
    root = np.diag(S[:r]) ** 0.5
    return root @ Vt[:r, :], U[:, :r] @ root


@right("similarity", "by QR where all directions are taken, else by eigenvectors")
def similarity(A, B, i, j):
    V = np.linalg.eigh(A.T @ A)[1][:, ::-1][:, :i]
    W = np.linalg.eigh(B.T @ B)[1][:, ::-1][:, :j]
    return np.trace(V.T @ W @ W.T @ V) / min(i, j)


@right("hadamard", "by halves")
def walsh_hadamard(x):
    if len(x) == 1:
        return x.copy()
    half = len(x) // 2
    a, b = walsh_hadamard(x[:half]), walsh_hadamard(x[half:])
    return np.concatenate([a + b, a - b])


@right("hadamard", "loops")
def walsh_hadamard(x):
    y, h = [float(a) for a in x], 1
    while h < len(y):
        for i in range(0, len(y), 2 * h):
            for j in range(i, i + h):
                y[j], y[j + h] = y[j] + y[j + h], y[j] - y[j + h]
        h *= 2
    return np.array(y)
