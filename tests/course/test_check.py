"""The checker: what it shows, and that no answer can upset it."""

import sys
import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from minilora.course import check
from minilora.course.check import Problem, Wrong, equal


def doubling(points=4):
    problem = Problem("double", points)
    draw = lambda rng, size: {"x": rng.standard_normal(size)}  # noqa: E731
    law = problem.law("it doubles", draw, "add x to itself")
    law(lambda answer, x: equal(answer(x), 2 * x))
    law = problem.law("it keeps the shape", draw, "no sums")
    law(lambda answer, x: equal(np.shape(answer(x)), x.shape))
    return problem


def test_a_right_answer_has_all_points(capsys):
    assert doubling().score(lambda x: x + x) == 4.0
    assert "4 of 4" in capsys.readouterr().out


def test_points_are_shared_by_the_laws_and_the_smallest_case_is_shown(capsys):
    assert doubling().score(lambda x: 3 * x) == 2.0
    said = capsys.readouterr().out
    assert "x = [1.]" in said and "expected [2.]" in said and "got      [3.]" in said and "add x to itself" in said


def test_a_case_becomes_as_simple_as_the_fault_allows(capsys):
    """Wrong only beyond two numbers, for negative ones: one such number is left, the others are 0 or 1."""
    doubling().score(lambda x: x + abs(x) if x.size > 2 else 2 * x)
    shown = capsys.readouterr().out.split("x = ")[1].split("\n")[0]
    x = np.fromstring(shown.strip("[]"), sep=" ")
    assert x.size == 3 and (x < 0).sum() == 1 and x[x >= 0].tolist() in ([0, 0],)


def endless(x):
    while True:
        pass


def deep(x):
    return deep(x)


@pytest.mark.parametrize(
    "answer, words",
    [
        (lambda x: sys.exit(), "ends the program"),
        (lambda x: 1 / 0, "ZeroDivisionError"),
        (deep, "calls itself too deeply"),
        (lambda x: x.sort(), "NoneType"),
        (lambda x: [[1], [1, 2]], "uneven"),
        (lambda x: "2", "str"),
        (3, "not callable"),
    ],
)
def test_answers_that_fail(answer, words, capsys):
    assert doubling().score(answer) == 0.0
    assert words in capsys.readouterr().out


def test_a_function_without_a_statement_is_said_to_be_unwritten(capsys):
    def described(x):
        """As a lesson leaves it."""

    def dots(x): ...

    for answer in (described, dots):
        assert doubling().score(answer) == 0.0
        out = capsys.readouterr().out
        assert "nothing is written here yet" in out and len(out.splitlines()) == 2


def test_a_loop_without_end(monkeypatch, capsys):
    monkeypatch.setattr(check, "SECONDS", 0.2)
    assert doubling().score(endless) == 0.0
    assert "stopped after 0.2 s" in capsys.readouterr().out


def test_nothing_comes_to_stderr_and_a_score_is_a_float(capsys):
    def noisy(x):
        print("help", file=sys.stderr)
        warnings.warn("careful", stacklevel=1)
        np.log(-1.0)
        return x + x

    score = doubling(np.float64(4)).score(noisy)
    assert type(score) is float and repr(score) == "4.0" and capsys.readouterr().err == ""


def test_an_answer_cannot_change_the_case():
    def greedy(x):
        x *= 2
        return x

    problem = Problem("p", 1)
    problem.law("", lambda rng, n: {"x": rng.standard_normal(n)}, "")(lambda answer, x: equal(answer(x.copy()), 2 * x))
    assert problem.score(greedy) == 1.0


@given(arrays.arrays(float, arrays.array_shapes(max_dims=2, max_side=3), elements=st.floats(-1e6, 1e6)))
def test_equal(x):
    equal(x, x)
    equal(x.tolist(), x, 0)
    with pytest.raises(Wrong, match="shape"):
        equal(x[None], x)
    moved = x.copy()
    moved.flat[0] += 1e-6 * max(1, abs(x).max())
    with pytest.raises(Wrong, match="expected"):
        equal(moved, x)
    with pytest.raises(Wrong):
        equal(np.full_like(x, np.nan), x)


def test_equal_with_infinities():
    equal(np.array([np.inf, 1.0]), np.array([np.inf, 1.0]))
    with pytest.raises(Wrong):
        equal(np.array([1.0, 1.0]), np.array([np.inf, 1.0]))
