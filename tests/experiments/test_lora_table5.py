"""Which matrices at one budget: one budget it is, arms differ in their matrices only, the quick run, the page."""

from pathlib import Path

import numpy as np
import pytest

from minilora.cli import main
from minilora.experiments import lora_table5 as experiment
from minilora.experiments.study import page_lacks
from minilora.models.registry import load_model
from minilora.nn import CausalLM, TransformerConfig

DOCS = Path(__file__).parents[2] / "docs/experiments"


@pytest.fixture(scope="module")
def base():
    return CausalLM(TransformerConfig(64, 32, 48, 2, 2, num_key_value_heads=2), seed=0)


def test_the_page_says_what_was_measured():
    assert page_lacks(DOCS / "lora-table5", DOCS / "lora-table5.md") == []


def test_all_arms_have_one_budget():
    """2 L n d r, as the embedded model's four matrices are square."""
    base, _ = load_model("embedded")
    layers, d = base.config.num_hidden_layers, base.config.hidden_size
    counts = set()
    for matrices, r in experiment.ARMS.items():
        model = experiment.starter(base, matrices, r)(seed=0)
        counts.add(sum(p.size for p in model.trainable().values()))
        assert counts == {2 * layers * len(matrices.split(", ")) * d * r}
    papers = {2 * 96 * len(m.split(", ")) * 12288 * r for m, r in experiment.ARMS.items()}  # GPT-3's shape
    assert papers == {18_874_368}  # its "18M"


@pytest.mark.parametrize("matrices", experiment.ARMS)
def test_an_arm_adapts_its_matrices_and_starts_as_the_base(base, matrices):
    start = experiment.starter(base, matrices, 2)
    model, same, other = start(0), start(0), start(1)
    adapted = {path.split(".")[-4] for path in model.trainable()}
    assert adapted == {experiment.MATRICES[name] for name in matrices.split(", ")}
    a, b, c = (np.concatenate([p.data.ravel() for p in m.trainable().values()]) for m in (model, same, other))
    assert np.array_equal(a, b) and not np.array_equal(a, c)
    ids = np.arange(10)[None]
    assert np.array_equal(model(ids).data, base(ids).data)
    assert not any("lora" in path for path, _ in base.named_parameters())  # a copy was adapted


@pytest.mark.slow
def test_quick_as_a_user(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["experiment", "lora-table5", "--quick"]) == 0
    assert "W_q, W_k, W_v, W_o" in capsys.readouterr().out and (tmp_path / "lora-table5/loss.svg").exists()
