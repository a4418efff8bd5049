"""The experiment on intrinsic dimension: its parts by definition, its quick run as a user's, its committed page."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from minilora.cli import main
from minilora.data.tasks import encode, load_task
from minilora.experiments import intrinsic_dimension as experiment
from minilora.experiments.study import page_lacks
from minilora.models.registry import load_model
from minilora.train.evaluate import evaluate

DOCS = Path(__file__).parents[2] / "docs/experiments"


def test_the_page_says_what_was_measured():
    assert page_lacks(DOCS / "intrinsic-dimension", DOCS / "intrinsic-dimension.md") == []


@pytest.mark.slow
def test_ten_directions_solve_ten_equations_and_nine_do_not():
    rows = experiment._toy([0], (9, 10), lambda line: None)
    assert {row["projection"] for row in rows} == {"dense", "sparse", "Fastfood"}
    for row in rows:
        assert (row["least_squares"][0] < 1e-10) == (row["d"] == 10)
        assert row["d"] == 10 or row["descent"][0] > 1e-3


def test_figures_are_those_of_evaluate():
    model, tokenizer = load_model("embedded")
    rows = encode(tokenizer, load_task("header_json").validation[:40], 320)
    ours, theirs = experiment.figures(model, rows), evaluate(model, rows)
    assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-5) and ours["exact_match"] == theirs["exact_match"]
    assert ours["exact_match"] <= ours["token_accuracy"] <= 1


def test_the_mlp_has_the_parameters_that_the_page_counts():
    sizes = (64, 64, 64, 10)
    assert experiment.mlp(0).num_parameters() == sum(a * b + b for a, b in pairwise(sizes)) == 8970
    a, b = (np.concatenate([p.data.ravel() for p in experiment.mlp(s).parameters()]) for s in (0, 1))
    assert not np.array_equal(a, b)


@pytest.mark.slow
def test_quick_as_a_user(tmp_path, monkeypatch, capsys):
    pytest.importorskip("sklearn", reason="scikit-learn is missing: pip install 'minilora[experiments]'")
    monkeypatch.chdir(tmp_path)
    assert main(["experiment", "intrinsic-dimension", "--quick"]) == 0
    assert (tmp_path / "intrinsic-dimension/results.json").exists() and "d90" in capsys.readouterr().out
