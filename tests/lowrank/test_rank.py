"""Rank: the reduction's steps and laws over fractions, and the rank of floats."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minilora.errors import ShapeError
from minilora.lowrank import numerical_rank, rank, row_reduce, svd

MATRIX = [[1, 2, 1], [-2, -3, 1], [3, 5, 0]]
entries = st.one_of(st.integers(-4, 4), st.fractions(-3, 3, max_denominator=5))


@st.composite
def matrices(draw, most=5):
    m, n = draw(st.integers(1, most)), draw(st.integers(1, most))
    return [[draw(entries) for _ in range(n)] for _ in range(m)]


@st.composite
def products(draw, most=5):
    """An integer matrix of rank at most r, and r."""
    m, n, r = draw(st.integers(1, most)), draw(st.integers(1, most)), draw(st.integers(0, 3))
    numbers = st.integers(-3, 3)
    B = [[draw(numbers) for _ in range(r)] for _ in range(m)]
    A = [[draw(numbers) for _ in range(n)] for _ in range(r)]
    return np.array(B).reshape(m, r) @ np.array(A).reshape(r, n), r


def test_the_example_step_by_step():
    reduction = row_reduce(MATRIX)
    assert [(step.operation, [list(map(int, row)) for row in step.matrix]) for step in reduction.steps] == [
        ("2R1 + R2 → R2", [[1, 2, 1], [0, 1, 3], [3, 5, 0]]),
        ("-3R1 + R3 → R3", [[1, 2, 1], [0, 1, 3], [0, -1, -3]]),
        ("R2 + R3 → R3", [[1, 2, 1], [0, 1, 3], [0, 0, 0]]),
        ("-2R2 + R1 → R1", [[1, 0, -5], [0, 1, 3], [0, 0, 0]]),
    ]
    assert reduction.reduced == ((1, 0, -5), (0, 1, 3), (0, 0, 0))
    assert reduction.rank == rank(MATRIX) == numerical_rank(MATRIX) == 2 and reduction.pivots == (0, 1)


def test_the_example_as_text_and_as_html():
    text = str(row_reduce(MATRIX))
    assert text.startswith("[ 1   2  1]\n[-2  -3  1]\n[ 3   5  0]\n2R1 + R2 → R2\n[1  2  1]\n")
    assert text.endswith("[1  0  -5]\n[0  1   3]\n[0  0   0]\nrank 2")
    html = row_reduce(MATRIX)._repr_html_()
    assert html.count("<table>") == 5 and "<tr><td>1</td><td>0</td><td>-5</td></tr>" in html
    assert html.endswith("<p>rank 2</p>")


def test_exchanging_and_dividing_rows():
    steps = row_reduce([[0, 3], ["1/2", 1]]).steps
    assert [step.operation for step in steps] == ["R1 ↔ R2", "2R1 → R1", "(1/3)R2 → R2", "-2R2 + R1 → R1"]
    assert [step.operation for step in row_reduce([[-1, 1]]).steps] == ["-R1 → R1"]


@given(matrices())
def test_each_step_is_the_operation_that_it_names(matrix):
    """Read from the text, and carried out by other code, each operation gives the next matrix."""
    reduction = row_reduce(matrix)
    rows = [list(map(Fraction, row)) for row in matrix]
    for step in reduction.steps:
        if "↔" in step.operation:
            i, j = (int(part.strip()[1:]) - 1 for part in step.operation.split("↔"))
            rows[i], rows[j] = rows[j], rows[i]
        else:
            left, target = step.operation.split(" → R")
            total = [Fraction(0)] * len(rows[0])
            for term in left.split(" + "):
                factor, row = term.split("R")
                number = Fraction({"": "1", "-": "-1"}.get(factor, factor.strip("()")))
                total = [t + number * a for t, a in zip(total, rows[int(row) - 1], strict=True)]
            assert not left.endswith("R" + target) or number  # a row is never multiplied by 0
            rows[int(target) - 1] = total
        assert rows == [list(row) for row in step.matrix]


@given(matrices())
def test_the_end_is_the_reduced_row_echelon_form(matrix):
    reduction = row_reduce(matrix)
    assert list(reduction.pivots) == sorted(set(reduction.pivots))
    for i, row in enumerate(reduction.reduced):
        leading = next((j for j, a in enumerate(row) if a), None)
        assert leading == (reduction.pivots[i] if i < reduction.rank else None)
        if leading is not None:
            assert [other[leading] for other in reduction.reduced] == [int(k == i) for k in range(len(matrix))]
    assert row_reduce(reduction.reduced).steps == ()  # nothing is left to do
    assert row_reduce(matrix[::-1]).reduced == reduction.reduced  # the form is the row space's own


@given(products())
def test_exact_and_numerical_rank_agree_on_small_integers(case):
    matrix, r = case
    assert rank(matrix) == numerical_rank(matrix) == rank(matrix.T) <= r
    assert numerical_rank(matrix.astype(np.float32)) == rank(matrix)


@given(matrices())
def test_rank_one_more_row(matrix):
    combination = [sum(column) for column in zip(*map(lambda row: map(Fraction, row), matrix), strict=True)]
    assert rank([*matrix, combination]) == rank(matrix)


@given(st.integers(1, 30), st.integers(1, 30), st.integers(0, 8), st.integers(0, 99), st.sampled_from("fd"))
def test_products_of_floats_have_the_rank_of_their_inner_size(m, n, r, seed, kind):
    rng = np.random.default_rng(seed)
    product = (rng.standard_normal((m, r)) @ rng.standard_normal((r, n))).astype(kind)
    assert numerical_rank(product) == min(m, n, r)
    if min(m, n) > r > 0 and m * n < 100:
        assert rank(product) == min(m, n)  # exactly, rounding has made it full: hence the tolerance


def test_why_floats_need_a_tolerance():
    matrix = [[0.1, 1], [0.3, 3]]
    assert rank(matrix) == 2 and numerical_rank(matrix) == 1 and rank([["0.1", 1], ["0.3", 3]]) == 1
    assert numerical_rank(np.eye(3) * [1, 1e-3, 1e-9], tolerance=1e-6) == 2


@pytest.mark.parametrize("matrix", [[], [[]], [[0, 0], [0, 0]], np.zeros((0, 3), int), np.zeros((2, 3))])
def test_empty_and_zero_matrices_have_rank_0(matrix):
    reduction = row_reduce(matrix)
    assert reduction.rank == 0 and reduction.steps == () and str(reduction).endswith("rank 0")


def test_numpy_s_numbers_and_svd_of_the_example():
    assert row_reduce(np.array(MATRIX)) == row_reduce([[np.int8(a) for a in row] for row in MATRIX])
    assert row_reduce(np.float32([[0.5, 1]])).reduced == ((1, 2),)
    U, S, Vt = svd(MATRIX)
    assert S[2] < 1e-15 < S[1]
    np.testing.assert_allclose((U * S) @ Vt, MATRIX, atol=1e-14)


@pytest.mark.parametrize("matrix", [[[1, 2], [3]], [[1, "x"]], [[float("nan")]], [[np.inf]], [1, 2], [[1j]], [["1/0"]]])
def test_what_is_no_matrix_of_numbers_is_refused(matrix):
    with pytest.raises(ShapeError):
        row_reduce(matrix)
