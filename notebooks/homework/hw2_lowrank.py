# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown] nbgrader={"grade_id": "intro", "locked": true}
# # Homework 2: low rank
#
# LoRA rests on one idea: a matrix that is large need not say much. You write what measures that. First the rank, as
# it is defined, in exact fractions. Then the singular value decomposition, which tells how *nearly* a matrix has a low
# rank; what of a fine-tuning fits into an adapter; and whether two adapters learnt the same. At the end a matrix of
# full rank that is nevertheless cheap.
#
# You need NumPy alone. Each problem ends in a cell that checks your answer by laws that it must obey; run it as
# often as you like. Where a law fails it shows a small case. Grading runs the same laws on other cases. Change
# the seed to see other cases yourself.
#
# | problem | points | about |
# |---|---|---|
# | rank | 4 | 30 min |
# | svd_by_eigen | 5 | 35 min |
# | nearest | 3 | 10 min |
# | rank_for_energy | 3 | 15 min |
# | extract_lora | 4 | 20 min |
# | similarity | 4 | 20 min |
# | walsh_hadamard | 4 | 25 min |

# %% nbgrader={"grade_id": "setup", "locked": true}
from fractions import Fraction

import numpy as np

from minilora.course.checks import hw2_lowrank as checks

seed = 0

# %% [markdown] nbgrader={"grade_id": "rank-text", "locked": true}
# ## Rank
#
# The rank is the number of rows that do not follow from the others: what row reduction leaves that is not zero. Taking
# a multiple of one row from another does not change it, nor does exchanging two rows.
#
# `rows` is a list of lists, of integers and of `Fraction`s. Return the rank, exactly: floats would round, and a matrix
# of rank 1 would seem to have rank 2. Leave `rows` as it is.

# %% nbgrader={"grade_id": "rank", "solution": true}
def rank(rows):
    ### BEGIN SOLUTION
    rows, found = [[Fraction(a) for a in row] for row in rows], 0
    for column in range(len(rows[0])):
        top = next((i for i in range(found, len(rows)) if rows[i][column]), None)
        if top is None:
            continue
        rows[found], rows[top] = rows[top], rows[found]
        for i in range(found + 1, len(rows)):
            factor = rows[i][column] / rows[found][column]
            rows[i] = [a - factor * b for a, b in zip(rows[i], rows[found], strict=True)]
        found += 1
    return found
    ### END SOLUTION


# %% nbgrader={"grade_id": "rank-check", "grade": true, "points": 4}
checks.rank.score(rank, seed)

# %% [markdown] nbgrader={"grade_id": "svd-text", "locked": true}
# ## The singular value decomposition
#
# A = U S Vᵀ: the columns of U (m × n) and the rows of Vᵀ (n × n) have length 1 and are orthogonal, and S has the
# singular values, from the largest, none negative. It follows that AᵀA = V S² Vᵀ: the columns of V are eigenvectors of
# AᵀA.
#
# Return `U, S, Vt` of A (m × n) with m ≥ n and of rank n, S as an array of n numbers. Use `np.linalg.eigh`, which
# decomposes a symmetric matrix, and not `np.linalg.svd`. It is often said that U comes from AAᵀ in the same way. Why is
# that not enough?

# %% nbgrader={"grade_id": "svd", "solution": true}
def svd_by_eigen(A):
    ### BEGIN SOLUTION
    squares, V = np.linalg.eigh(A.T @ A)
    S, V = np.sqrt(squares[::-1]), V[:, ::-1]
    return A @ V / S, S, V.T
    ### END SOLUTION


# %% nbgrader={"grade_id": "svd-check", "grade": true, "points": 5}
checks.svd_by_eigen.score(svd_by_eigen, seed)

# %% [markdown] nbgrader={"grade_id": "nearest-text", "locked": true}
# ## The nearest matrix of rank r
#
# Eckart and Young (1936): of all matrices of rank r, none is nearer to A than what A's r largest singular values make.
# Return that matrix. From here on `np.linalg.svd` is allowed.

# %% nbgrader={"grade_id": "nearest", "solution": true}
def nearest(A, r):
    ### BEGIN SOLUTION
    U, S, Vt = np.linalg.svd(A, full_matrices=False)
    return U[:, :r] * S[:r] @ Vt[:r]
    ### END SOLUTION


# %% nbgrader={"grade_id": "nearest-check", "grade": true, "points": 3}
checks.nearest.score(nearest, seed)

# %% [markdown] nbgrader={"grade_id": "energy-text", "locked": true}
# ## How many directions are enough
#
# The energy of a matrix, the sum of the squares of its numbers, is also the sum of the squares of its singular values.
# Return the least k such that the first k singular values have at least the part `share` (above 0, at most 1) of it.
# `S` comes sorted, the largest first, and may end in zeros. A matrix of zeros needs k = 0. (Compare sums of squares:
# where you divide first, a share that is just enough may be lost to rounding.)

# %% nbgrader={"grade_id": "energy", "solution": true}
def rank_for_energy(S, share):
    ### BEGIN SOLUTION
    sums = np.cumsum(S**2)
    return int((sums < share * sums[-1]).sum()) + 1 if S.any() else 0
    ### END SOLUTION


# %% nbgrader={"grade_id": "energy-check", "grade": true, "points": 3}
checks.rank_for_energy.score(rank_for_energy, seed)

# %% [markdown] nbgrader={"grade_id": "extract-text", "locked": true}
# ## An adapter out of two checkpoints
#
# Somebody fine-tuned all of a weight: `base` became `tuned`, both (d_out, d_in). Return the adapter `A, B`, A of shape
# (r, d_in) and B of shape (d_out, r), whose layer comes nearest to it. Its layer will use the weight
# base + (alpha / r) B A. Let the two share the size: column k of B is as long as row k of A.

# %% nbgrader={"grade_id": "extract", "solution": true}
def extract_lora(tuned, base, r, alpha):
    ### BEGIN SOLUTION
    U, S, Vt = np.linalg.svd(tuned - base, full_matrices=False)
    root = np.sqrt(S[:r] * r / alpha)
    return root[:, None] * Vt[:r], U[:, :r] * root
    ### END SOLUTION


# %% nbgrader={"grade_id": "extract-check", "grade": true, "points": 4}
checks.extract_lora.score(extract_lora, seed)

# %% [markdown] nbgrader={"grade_id": "similarity-text", "locked": true}
# ## Did two adapters learn the same?
#
# Two trainings give two matrices A (a × d) and B (b × d), whose numbers differ and mean little by themselves. What can
# be compared are directions of the input. Let V_A(i), of shape (d, i), be A's first i right singular vectors, and
# V_B(j) those of B. The LoRA paper (section 7.2) takes
#
# $$\varphi = \frac{\lVert V_A(i)^\top V_B(j) \rVert_F^2}{\min(i, j)}$$
#
# which is 0 where all of them are orthogonal and 1 where one set lies within what the other spans. Return it.

# %% nbgrader={"grade_id": "similarity", "solution": true}
def similarity(A, B, i, j):
    ### BEGIN SOLUTION
    V, W = (np.linalg.svd(M, full_matrices=False)[2] for M in (A, B))
    return np.sum((V[:i] @ W[:j].T) ** 2) / min(i, j)
    ### END SOLUTION


# %% nbgrader={"grade_id": "similarity-check", "grade": true, "points": 4}
checks.similarity.score(similarity, seed)

# %% [markdown] nbgrader={"grade_id": "hadamard-text", "locked": true}
# ## Full rank, and nearly free
#
# To measure the intrinsic dimension of a task, a few numbers are spread over millions of weights by a random matrix
# that is far too large to store. Fastfood (Q. Le et al., 2013) makes it of factors that need no storage. The main one
# is the Walsh-Hadamard matrix:
#
# $$H_1 = 1 \qquad H_{2n} = \begin{pmatrix} H_n & H_n \\ H_n & -H_n \end{pmatrix}$$
#
# Return H x for an array x of n = 1, 2, 4, 8, ... numbers, in about n log n steps and without forming H. Leave x as it
# is.

# %% nbgrader={"grade_id": "hadamard", "solution": true}
def walsh_hadamard(x):
    ### BEGIN SOLUTION
    y, h = np.array(x), 1
    while h < len(y):
        pairs = y.reshape(-1, 2, h)
        y = np.stack([pairs[:, 0] + pairs[:, 1], pairs[:, 0] - pairs[:, 1]], axis=1).ravel()
        h *= 2
    return y
    ### END SOLUTION


# %% nbgrader={"grade_id": "hadamard-check", "grade": true, "points": 4}
checks.walsh_hadamard.score(walsh_hadamard, seed)
