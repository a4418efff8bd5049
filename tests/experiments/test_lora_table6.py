"""Which rank: the planted teacher's law, its arms, the quick run as a user's, the committed page."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minilora.cli import main
from minilora.experiments import lora_table6 as experiment
from minilora.experiments.planted import D_IN, D_OUT, Planted
from minilora.experiments.study import page_lacks
from minilora.lowrank import truncate

DOCS = Path(__file__).parents[2] / "docs/experiments"
ranks, seeds = st.integers(1, 6), st.integers(0, 10**6)


def test_the_page_says_what_was_measured():
    assert page_lacks(DOCS / "lora-table6", DOCS / "lora-table6.md") == []


@settings(max_examples=12)
@given(ranks, ranks, seeds)
def test_training_ends_at_the_closed_form_and_at_zero_from_the_teachers_rank_on(k, r, seed):
    teacher = Planted(k, seed)
    trained = teacher.train(r)
    assert trained == pytest.approx(teacher.best(r), abs=1e-9)
    assert (trained < 1e-9) == (r >= k)


@settings(max_examples=6)
@given(ranks, ranks, seeds)
def test_what_is_learnt_is_the_nearest_output_of_that_rank(k, r, seed):
    teacher = Planted(k, seed)
    learnt = teacher.learnt(r)
    assert learnt.shape == (D_OUT, D_IN) and np.linalg.matrix_rank(learnt, tol=1e-6) == min(k, r)
    nearest = truncate(teacher.X @ teacher.dW.T, r).matrix()
    np.testing.assert_allclose(teacher.X @ learnt.T, nearest, atol=1e-5)


@given(st.integers(2, 12), seeds)
def test_errors_fall_with_r_and_truncating_the_change_itself_does_no_better(k, seed):
    teacher = Planted(k, seed)
    errors = [teacher.best(r) for r in range(1, k + 1)]
    assert all(a > b for a, b in pairwise(errors)) and errors[0] < 1 and errors[-1] < 1e-12
    for r in range(1, k):
        missed = teacher.X @ (teacher.dW - truncate(teacher.dW, r).matrix()).T
        assert np.linalg.norm(missed) / teacher.scale > teacher.best(r)


def test_the_plan_has_the_papers_ranks_and_each_cell_its_arm():
    assert experiment.RANKS == (1, 2, 4, 8, 64)  # of its table 6
    arm = {"trainable": 1, "tried": [], "rate": 0.1, "exact_match": [0.5, 0.7], "loss": [1.0, 0.8]}
    other = arm | {"exact_match": [0.25, 0.25], "loss": [0.9, 0.7], "trainable": 2}
    planted = [
        {"k": k, "r": r, "best": [0.0, 0.0], "trained": [1e-12, 0.0 if r >= k else 0.5]}
        for k in experiment.PLANTED_K for r in experiment.PLANTED_R
    ]  # fmt: skip
    data = {"planted": planted, "targets": ["W_q"], "ranks": [1, 8],
            "tasks": {experiment.TASK: {"W_q; 1": arm, "W_q; 8": other}}}  # fmt: skip
    shown = dict(experiment.tables(data))
    errors = shown["Planted teachers: error after training, in proportion to that without an adapter"]
    for k, row in zip(experiment.PLANTED_K, errors[1:], strict=True):
        assert [cell == "< 1e-10" for cell in row[1:]] == [r >= k for r in experiment.PLANTED_R]
    assert [row[1:] for row in shown["Loss less that of r = 1, in pairs of a seed (*: 95 % interval without zero)"]] \
        == [("r = 8",), ("-0.100 ± 0.000 *",)]  # fmt: skip
    assert shown["Trained parameters"][1] == ("W_q", "1", "2")
    assert set(experiment.draw(data)) == {"planted.svg", "exact-match.svg", "loss.svg"}


@pytest.mark.slow
def test_quick_as_a_user(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["experiment", "lora-table6", "--quick"]) == 0
    assert "Planted teachers" in capsys.readouterr().out and (tmp_path / "lora-table6/planted.svg").exists()
