"""Rank: by row reduction in exact fractions, with every step to read; and of floats, by singular values.

    reduction = row_reduce([[1, 2, 1], [-2, -3, 1], [3, 5, 0]])
    print(reduction)                           # the matrix after each step: 2R1 + R2 → R2, ...
    reduction.rank, reduction.reduced          # 2, the reduced row echelon form
    numerical_rank(W)                          # how many singular values are not just rounding

Three row operations keep the space that the rows span: exchange two rows, multiply one by a number other than 0, add a
multiple of one to another. In reduced form the rank is the number of rows that are not zero.

Floats need a tolerance, because a float matrix of low rank nearly always has full rank to the last bit:
[[0.1, 1], [0.3, 3]] has rank 2 exactly, for the number stored for 0.3 is not three times the one for 0.1. Rounding an
m x n matrix moves its singular values by about ε σ1, so that those below max(m, n) ε σ1 count as zero (the tolerance of
LINPACK, MATLAB and numpy.linalg.matrix_rank; Golub & Van Loan, Matrix Computations, section 5.4).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from html import escape

import numpy as np

from minilora.errors import ShapeError
from minilora.lowrank.svd import singular_values

Rows = tuple[tuple[Fraction, ...], ...]


@dataclass(frozen=True)
class Step:
    """operation: as "2R1 + R2 → R2", rows counted from 1; matrix: after it."""

    operation: str
    matrix: Rows


@dataclass(frozen=True)
class Reduction:
    """A matrix on its way to reduced row echelon form. pivots: the columns of the leading ones, counted from 0."""

    start: Rows
    steps: tuple[Step, ...]
    pivots: tuple[int, ...]

    @property
    def reduced(self) -> Rows:
        return self.steps[-1].matrix if self.steps else self.start

    @property
    def rank(self) -> int:
        return len(self.pivots)

    def __str__(self) -> str:
        lines = [_text(self.start)]
        for step in self.steps:
            lines += [step.operation, _text(step.matrix)]
        return "\n".join([*lines, f"rank {self.rank}"])

    def _repr_html_(self) -> str:
        parts = [_table(self.start)]
        for step in self.steps:
            parts += [f"<p>{escape(step.operation)}</p>", _table(step.matrix)]
        return "".join([*parts, f"<p>rank {self.rank}</p>"])


def row_reduce(matrix: Sequence[Sequence] | np.ndarray) -> Reduction:
    """Gauss-Jordan elimination: down from each leading one, then up. Entries: integers, fractions, texts as "1/3"; a
    float counts as the binary fraction that it is. Raises ShapeError for rows of unequal length or no number.
    """
    rows = _fractions(matrix)
    start, steps, pivots = _frozen(rows), [], []

    def record(operation: str):
        steps.append(Step(operation, _frozen(rows)))

    def add(factor: Fraction, source: int, target: int):
        rows[target] = [factor * a + b for a, b in zip(rows[source], rows[target], strict=True)]
        record(f"{_factor(factor)}R{source + 1} + R{target + 1} → R{target + 1}")

    for column in range(len(start[0]) if start else 0):
        top = len(pivots)
        found = next((i for i in range(top, len(rows)) if rows[i][column]), None)
        if found is None:
            continue
        if found != top:
            rows[top], rows[found] = rows[found], rows[top]
            record(f"R{top + 1} ↔ R{found + 1}")
        if (pivot := rows[top][column]) != 1:
            rows[top] = [a / pivot for a in rows[top]]
            record(f"{_factor(1 / pivot)}R{top + 1} → R{top + 1}")
        for below in range(top + 1, len(rows)):
            if rows[below][column]:
                add(-rows[below][column], top, below)
        pivots.append(column)
    for row, column in reversed(list(enumerate(pivots))):
        for above in range(row):
            if rows[above][column]:
                add(-rows[above][column], row, above)
    return Reduction(start, tuple(steps), tuple(pivots))


def rank(matrix: Sequence[Sequence] | np.ndarray) -> int:
    """The exact rank, by row reduction. Raises ShapeError."""
    return row_reduce(matrix).rank


def numerical_rank(A, tolerance: float | None = None) -> int:
    """How many singular values of A (m, n) exceed `tolerance`: by default max(m, n) ε σ1, ε that of A's dtype."""
    sigma = singular_values(A)
    if tolerance is None:
        tolerance = max(np.shape(A)) * np.finfo(sigma.dtype).eps * sigma.max(initial=0)
    return int((sigma > tolerance).sum())


def _fractions(matrix) -> list[list[Fraction]]:
    listed = matrix.tolist() if isinstance(matrix, np.ndarray) else matrix
    try:
        rows = [[Fraction(a.item() if isinstance(a, np.generic) else a) for a in row] for row in listed]
    except (TypeError, ValueError, OverflowError, ZeroDivisionError) as error:
        raise ShapeError(f"row reduction takes rows of numbers such as 2, 0.5 or '1/3': {error}") from error
    if len({len(row) for row in rows}) > 1:
        raise ShapeError(f"the rows have {', '.join(str(len(row)) for row in rows)} entries; give them equally many")
    return rows


def _frozen(rows: list[list[Fraction]]) -> Rows:
    return tuple(map(tuple, rows))


def _factor(number: Fraction) -> str:
    if abs(number) == 1:
        return "-" if number < 0 else ""
    return str(number) if number.denominator == 1 else f"({number})"


def _text(matrix: Rows) -> str:
    cells = [[str(a) for a in row] for row in matrix]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return "\n".join(f"[{'  '.join(c.rjust(w) for c, w in zip(row, widths, strict=True))}]" for row in cells)


def _table(matrix: Rows) -> str:
    rows = "".join(f"<tr>{''.join(f'<td>{a}</td>' for a in row)}</tr>" for row in matrix)
    return f"<table>{rows}</table>"
