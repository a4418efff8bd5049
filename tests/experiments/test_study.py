"""What all experiments share: intervals, records, and the registry."""

import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minilora.cli import main
from minilora.errors import ConfigError, TrainingError, UnknownNameError
from minilora.experiments import EXPERIMENTS, study
from minilora.experiments.study import Interval, load, page_lacks, paired
from minilora.tables import markdown_table

values = st.lists(st.floats(-1e3, 1e3), min_size=2, max_size=8)


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_each_experiment_has_the_common_form(name):
    experiment = load(name)
    assert experiment.TITLE and experiment.SEEDS >= 1
    assert all(callable(getattr(experiment, part)) for part in ("measure", "tables", "draw"))


@given(values, st.floats(-100, 100), st.floats(0.1, 10))
def test_an_interval_moves_and_scales_with_its_values(x, shift, scale):
    a, b = Interval.of(x), Interval.of(scale * np.array(x) + shift)
    assert b.mean == pytest.approx(scale * a.mean + shift, abs=1e-6)
    assert b.half == pytest.approx(scale * a.half, abs=1e-6)


def test_nothing_is_printed_as_minus_zero():
    assert Interval.of([-1e-5, -2e-5, 1e-5]).text().startswith("0.000 ±")


def test_intervals_hold_the_mean_in_95_of_100_draws():
    """Of three normal numbers: Student's t makes up for so few. (With 1.96 in its place, it would be 81.)"""
    draws = np.random.default_rng(0).normal(5, 2, (4000, 3))
    held = np.mean([abs(i.mean - 5) <= i.half for i in map(Interval.of, draws)])
    assert 0.94 < held < 0.96


def test_one_value_has_no_interval():
    one = Interval.of([0.5])
    assert math.isnan(one.half) and str(one) == "0.500" and not one.excludes_zero
    with pytest.raises(ConfigError, match="at least one"):
        Interval.of([])


@given(values, st.integers(0, 10))
def test_pairs_cancel_what_both_owe_to_the_seed(x, gain):
    difference = Interval.of(paired([v + gain for v in x], x))
    assert difference.mean == pytest.approx(gain) and difference.half == pytest.approx(0, abs=1e-9)


@pytest.fixture
def small(monkeypatch):
    """An experiment of two arms, whose figure is the seed."""
    monkeypatch.setitem(EXPERIMENTS, "small", "nothing")
    experiment = SimpleNamespace(
        SEEDS=3,
        measure=lambda seeds, quick, say: {"a": seeds, "quick": quick},
        tables=lambda data: [("Arms", [("arm", "figure"), ("a", str(Interval.of(data["a"])))])],
        draw=lambda data: {"a.svg": "<svg/>"},
    )
    monkeypatch.setattr(study, "load", lambda name: experiment)


def test_a_run_is_recorded(small, tmp_path):
    said = []
    results = study.run("small", tmp_path / "out", say=said.append, command="minilora experiment small")
    assert results == json.loads((tmp_path / "out/results.json").read_text())
    assert results["data"] == {"a": [0, 1, 2], "quick": False} and results["command"].endswith("small")
    assert {"cpu", "blas", "numpy", "python", "minilora"} <= results["environment"].keys()
    assert "1.000 ± 2.484" in said[0] and (tmp_path / "out/a.svg").exists()
    with pytest.raises(TrainingError, match="not empty"):
        study.run("small", tmp_path / "out", say=said.append)
    assert study.run("small", tmp_path / "quick", quick=True, say=said.append)["data"]["a"] == [0]
    with pytest.raises(ConfigError, match="at least one seed, not 0"):
        study.run("small", tmp_path / "none", seeds=0)


def test_a_page_is_held_to_its_results(small, tmp_path):
    study.run("small", tmp_path / "small", say=lambda line: None)
    page, table = tmp_path / "small.md", markdown_table(("arm", "figure"), [("a", "1.000 ± 2.484")])
    page.write_text(f"{table}\n\n![](small/a.svg)\n")
    assert page_lacks(tmp_path / "small", page) == []
    page.write_text(table.replace("1.000", "2.000"))
    assert page_lacks(tmp_path / "small", page) == ["Arms", "a.svg"]
    (tmp_path / "small/a.svg").write_text("<svg>an old one</svg>")
    assert page_lacks(tmp_path / "small", page) == ["Arms", "a.svg", "a.svg"]


def test_names_and_options_that_do_not_fit(capsys):
    with pytest.raises(UnknownNameError, match="intrinsic-dimension"):
        load("intrinsic-dimensions")
    with pytest.raises(SystemExit):
        main(["experiment", "intrinsic-dimensions"])
    assert "intrinsic-dimension" in capsys.readouterr().err
    assert main(["experiment", "intrinsic-dimension", "--seed", "1"]) == 1
    assert "--seeds" in capsys.readouterr().err
    assert main(["experiment", "quant-error", "--seeds", "1"]) == 1
