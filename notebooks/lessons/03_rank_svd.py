# %% [markdown]
# # 3. Rank and SVD: how many numbers does a matrix need?
#
# A matrix of 512 × 512 has 262,144 numbers. LoRA trains a change of it with 1,024 and calls that "rank 1". **What is
# a rank, how is it found, and what is the best that a matrix of low rank can do in place of another?**
#
# *About 13 minutes. Before it: matrix products; eigenvectors by name.*

# %%
from fractions import Fraction

import numpy as np

import minilora as ml
from minilora import lowrank
from minilora.viz.ellipse import circle_to_ellipse
from minilora.viz.intervals import curves
from minilora.viz.pixels import pixels

rng = np.random.default_rng(0)

# %% [markdown]
# ## Rank, exactly
#
# The rank is the number of rows that are left when rows that are combinations of the others have been removed, one
# after another. Row reduction finds it: exchange rows, multiply one by a number that is not 0, add a multiple of one to another.
# None of these changes what the rows can be combined to.
#
# **Before you run:** what is the rank of M? (Its third row is no accident.)

# %%
my_guess = None

M = [[2, 4, 1, 5], [1, 2, 3, 5], [3, 6, 4, 10]]


def reduced(matrix):
    """Reduced row echelon form in fractions, and the columns of the leading ones."""
    rows, pivots = [[Fraction(a) for a in row] for row in matrix], []
    for column in range(len(rows[0])):
        top = len(pivots)
        found = next((i for i in range(top, len(rows)) if rows[i][column] != 0), None)
        if found is None:
            continue  # nothing to lead with in this column
        rows[top], rows[found] = rows[found], rows[top]
        rows[top] = [a / rows[top][column] for a in rows[top]]
        for i in range(len(rows)):
            if i != top:
                rows[i] = [a - rows[i][column] * b for a, b in zip(rows[i], rows[top], strict=True)]
        pivots.append(column)
    return rows, pivots


rows, pivots = reduced(M)
print("your guess:", my_guess, "   rank:", len(pivots))

# %% [markdown]
# minilora's does the same, and keeps the steps for reading. (The order of the steps differs; the reduced form does
# not.)

# %%
steps = lowrank.row_reduce(M)
assert [list(row) for row in steps.reduced] == rows and steps.rank == len(pivots)
steps

# %% [markdown]
# ## A matrix of rank r *is* a product B A
#
# Look at the reduced form: its columns at the pivots are the unit vectors. So every column of M is a combination of
# M's columns at the pivots, and the entries of the reduced form say which. That is a product of two thin matrices:
#
# - B: the columns of M at the pivots, m × r
# - A: the rows of the reduced form that are not zero, r × n

# %%
B = np.array(M)[:, pivots]  # (3, r)
A = np.array(rows[: len(pivots)], int)  # (r, 4)
print("B =", B.tolist(), "   A =", A.tolist(), "   B A = M:", bool((B @ A == M).all()))

# %% [markdown]
# The converse holds too: whatever B and A are, the rows of B A are combinations of A's r rows, so the rank is at most
# r. *LoRA's B A is exactly "any change of rank r at most".* It needs r(m + n) numbers in place of mn.
#
# ## With floats, rank is a question of how near
#
# **Before you run:** [[0.1, 1], [0.3, 3]] has a second row three times the first. What is its rank, as the computer
# has it?

# %%
my_guess = None
print("your guess:", my_guess, "   exact rank:", lowrank.rank([[0.1, 1], [0.3, 3]]))
print("and of ten times the matrix, in integers:", lowrank.rank([[1, 10], [3, 30]]))

# %% [markdown]
# The number stored for 0.3 is not three times the one for 0.1: it differs in the last bit, and that suffices. Nearly
# every float matrix has full rank. The useful question is: **how near is it to a matrix of low rank?** That is what
# the singular value decomposition answers.
#
# ## The SVD
#
# (From here on A is any matrix, not LoRA's factor.)
#
# Every matrix A turns some orthogonal directions v into orthogonal directions again, each stretched by a σ ≥ 0:
#
# $$A v_i = \sigma_i u_i, \qquad A = U S V^T = \sigma_1 u_1 v_1^T + \sigma_2 u_2 v_2^T + \dots$$
#
# The second form is the one to remember: a sum of matrices of rank 1, the largest first. The rank is the number of σ
# that are not 0.

# %%
circle_to_ellipse([[1.5, 1.0], [0.2, 0.8]])

# %% [markdown]
# ## From an eigenproblem
#
# AᵀA = V S Uᵀ U S Vᵀ = V S² Vᵀ: so the columns of V are eigenvectors of AᵀA, and σ² its eigenvalues. In the same way
# those of U are eigenvectors of AAᵀ. (Many pages have it that both come from AᵀA. U does not, as its size shows.)
#
# **Before you run:** we take V from AᵀA, U from AAᵀ, each by its own eigenproblem. Is U S Vᵀ = A then? An eigenvector
# times -1 is one too.

# %%
my_guess = None


def eigen(symmetric):
    """Eigenvalues from the largest, and eigenvectors as columns."""
    values, vectors = np.linalg.eigh(symmetric)
    return values[::-1], vectors[:, ::-1]


A = rng.standard_normal((6, 4))
squares, V = eigen(A.T @ A)  # (4,), (4, 4)
S = np.sqrt(squares)
U_apart = eigen(A @ A.T)[1][:, :4]  # (6, 4)
U = A @ V / S  # (6, 4): u = A v / σ
print("your guess:", my_guess)
print("two eigenproblems: U S Vᵀ = A is", np.allclose((U_apart * S) @ V.T, A))
print("one, then u = Av/σ: U S Vᵀ = A is", np.allclose((U * S) @ V.T, A))
theirs = lowrank.svd(A)
assert np.allclose(S, theirs.S) and np.allclose((U * S) @ V.T, theirs.matrix())
assert np.allclose(lowrank.svd_from_eigen(A).matrix(), A)

# %% [markdown]
# Each u must be made from its v; then the signs fit. (Programs avoid AᵀA altogether: squaring loses half of the
# digits, so a σ below 10⁻⁸ of the largest is lost. `svd` calls LAPACK, which works on A itself.)
#
# ## The best approximation
#
# Keep the first r terms of the sum: the first r *columns* of U, r entries of S, r *rows* of Vᵀ. Eckart and Young
# proved in 1936 that no matrix of rank r is nearer to A, and how near this one is:
#
# $$\min_{\text{rank } X \le r} \|A - X\|_F = \sqrt{\sigma_{r+1}^2 + \sigma_{r+2}^2 + \dots}$$
#
# A picture is a matrix. This one is drawn by five lines of NumPy.
#
# **Before you run:** the sky, the ground and the walls are boxes along the axes. The roof has slanting edges, the sun
# is round. Which will be there first, at rank 1, 2, 4?

# %%
my_guess = None

y, x = np.mgrid[:128, :128]
house = np.where(y < 96, 0.9 - y / 400, 0.35)  # sky and ground
house[(x - 104) ** 2 + (y - 22) ** 2 < 150] = 1.0  # sun
house[(y >= 40) & (y < 64) & (abs(x - 48) < 1.6 * (y - 40))] = 0.15  # roof
house[64:108, 20:76] = 0.65  # walls
house[84:108, 30:42] = house[72:88, 54:68] = 0.25  # door and window


def truncated(A, r):
    U, S, Vt = np.linalg.svd(A, full_matrices=False)
    return (U[:, :r] * S[:r]) @ Vt[:r]


shown = {f"rank {r}": truncated(house, r) for r in (1, 2, 4, 8, 16, 32)} | {"the picture": house}
pixels(shown, "A picture from few terms", span=(0, 1), across=4)

# %% [markdown]
# A box is one column times one row: rank 1. The ground's edge is there at rank 1, door and window at 4. A slanting or
# round edge has another row at every height and needs many terms: the sun is a square up to rank 16. *Low rank is not
# "blurred": it is "few kinds of rows".*
#
# Can another matrix of rank 8 do better? We search, for X = L R with 8 columns in L and 8 rows in R: hold R and solve
# for the best L (least squares), hold L and solve for the best R, and so on, from random numbers.

# %%
S = np.linalg.svd(house, compute_uv=False)
R, found = rng.standard_normal((8, 128)), []
for _ in range(24):
    L = np.linalg.lstsq(R.T, house.T)[0].T  # (128, 8): the best for this R
    R = np.linalg.lstsq(L, house)[0]  # (8, 128): the best for this L
    found.append(np.linalg.norm(house - L @ R))
formula = np.sqrt((S[8:] ** 2).sum())
print(f"rank 8: {8 * (128 + 128):,} numbers in place of {house.size:,}")
assert min(found) > formula - 1e-9 and np.isclose(formula, lowrank.eckart_young(house, 8).frobenius)
assert np.allclose(truncated(house, 8), lowrank.truncate(house, 8).matrix())
line = {"searched": [(i + 1, e, np.nan) for i, e in enumerate(found)]}
curves(line, "sweep", "‖house - X‖", "A search for rank 8", levels={"Eckart and Young": formula})

# %% [markdown]
# ## Do singular values always fall fast?
#
# It is often said that they "decrease exponentially". Three matrices of 128 × 128: the picture, a trained weight of
# minilora's small model, and normal random numbers.
#
# **Before you run:** sort the three by how fast their σ fall.

# %%
my_guess = None

model, _ = ml.load_model("embedded")
W = model.get_submodule("model.layers.2.self_attn.q_proj").weight.data  # (128, 128)
subjects = {"the picture": house, "a trained W_q": W, "random numbers": rng.standard_normal((128, 128))}
lines = {}
for name, matrix in subjects.items():
    S = lowrank.singular_values(matrix)
    S = S / S[0]
    lines[name] = [(i + 1, S[i], np.nan) for i in range(0, 120, 4) if S[i] > 1e-3]
    print(f"{name:<15} rank for 99 % of ‖·‖²: {lowrank.rank_for_energy(matrix, 0.99):>3}")
curves(lines, "i", "σᵢ / σ₁", "Singular values", log_y=True)

# %% [markdown]
# It depends on the matrix. Those of random numbers follow a law of their own (Marchenko and Pastur, 1967), and those
# of this trained *weight* fall hardly faster: there is nothing to be saved on it. But LoRA does not say that weights
# have low rank. It says so of their *change* in fine-tuning, and lesson 6 measures whether that is true.
#
# **Exercise.** The best B (m × r) and A (r × n) for a given W, as an adapter would have them: B A is nearest to W.

# %%
from minilora.course.checks import lesson03 as checks


def best_factors(W, r):
    ...  # yours: return B, A


checks.best_factors.check(best_factors)

# %% [markdown]
# **Exercise.** The least r for which the best approximation has a relative error ‖W - X‖ / ‖W‖ of at most `share`. It
# may be 0.

# %%
def least_rank(W, share):
    ...  # yours


checks.least_rank.check(least_rank)

# %% [markdown]
# **To take along**
# - Rank r means: a product of m × r with r × n, and no thinner one. B A of LoRA is any matrix of rank r at most.
# - Exact rank is for fractions. For floats ask for the singular values.
# - V from AᵀA, then u = A v / σ. Two separate eigenproblems lose the signs.
# - The first r terms of the SVD are the best of rank r, and the error is what the other σ add up to.
# - How fast σ falls depends on the matrix. It is to be measured, not assumed.
#
# *C. Eckart, G. Young, The approximation of one matrix by another of lower rank, Psychometrika 1, 1936; G. Golub, C.
# Van Loan, Matrix Computations, sections 2.4 and 8.6. In minilora: `minilora/lowrank/rank.py`, `svd.py`;
# `lowrank.extract_lora` makes an adapter of what a full fine-tuning changed, by the first exercise.*
