"""LoRA on a quantized base: what an arm starts from, losses by example, the quick run as a user's, the page."""

import copy
from pathlib import Path

import numpy as np
import pytest

from minilora.cli import main
from minilora.data.tasks import Example, encode
from minilora.experiments import qlora_table3 as experiment
from minilora.experiments.study import page_lacks
from minilora.models.registry import load_model
from minilora.nn import CausalLM, Linear, TransformerConfig
from minilora.quant import quantize
from minilora.train.evaluate import evaluate

DOCS = Path(__file__).parents[2] / "docs/experiments"
EXAMPLES = [Example(f"def f{i}({name}):\n>>> ", f'{{"name": "f{i}"}}', "x.py") for i, name in enumerate("abc")]


@pytest.fixture(scope="module")
def base():
    return CausalLM(TransformerConfig(64, 64, 48, 2, 2), seed=0)


def linear(model) -> dict[str, np.ndarray]:
    return {path: m.weight.data for path, m in model.named_modules() if isinstance(m, Linear) and "lm_head" not in path}


def is_bfloat16(x: np.ndarray) -> bool:
    return not (x.view(np.uint32) & 0xFFFF).any()


def test_the_page_says_what_was_measured():
    assert page_lacks(DOCS / "qlora-table3", DOCS / "qlora-table3.md") == []


@pytest.mark.parametrize("storage", experiment.STORAGES)
def test_a_storage_quantizes_the_linear_weights_and_rounds_the_rest(base, storage):
    model = experiment.stored(copy.deepcopy(base), storage)
    assert all(is_bfloat16(p.data) for p in model.parameters())
    found = model.quantized()
    if not experiment.STORAGES[storage]:
        assert not found
        return
    code, blocksize, double = experiment.STORAGES[storage]
    assert len(found) == len(linear(base)) == 2 * 7
    for q, w in zip(found.values(), linear(base).values(), strict=True):
        expected = quantize(w, code, blocksize, double_quant=double)
        assert np.array_equal(q.dequantize(), expected.dequantize()) and q.nbytes == expected.nbytes


def test_the_arms_of_a_seed_differ_in_storage_only(base):
    models = {arm: experiment.start(copy.deepcopy(base), arm, 3) for arm in experiment.ARMS}
    full = models.pop(experiment.FULL)
    assert sum(p.size for p in full.trainable().values()) == full.num_parameters()
    first = models[experiment.LORA].trainable()
    for model in models.values():
        assert model.trainable().keys() == first.keys()
        assert all(np.array_equal(p.data, first[name].data) for name, p in model.trainable().items())
    other = experiment.start(copy.deepcopy(base), experiment.LORA, 4).trainable()
    assert any(not np.array_equal(p.data, first[name].data) for name, p in other.items())


def test_losses_by_example_are_those_of_all_together():
    model, tokenizer = load_model("embedded")
    found = experiment.by_example(model, tokenizer, EXAMPLES)
    rows = encode(tokenizer, EXAMPLES, 320)
    tokens = [sum(label >= 0 for label in row["labels"]) for row in rows]
    together = evaluate(model, rows)
    assert np.average(found["loss"], weights=tokens) == pytest.approx(together["loss"], rel=1e-4)
    assert np.mean(found["exact_match"]) == together["exact_match"]


def test_before_tuning_four_bits_cost_more_than_eight():
    """Also on two texts and three examples: the first question's order, where it is large."""
    model, tokenizer = load_model("embedded")
    ids = experiment.documents(tokenizer, 2, 128, "files")
    found = experiment.zero_shot(lambda: copy.deepcopy(model), ids, tokenizer, EXAMPLES, lambda line: None)
    assert list(found) == list(experiment.STORAGES)
    mean = {storage: np.mean(losses["text"]) for storage, losses in found.items()}
    cost = {storage: mean[storage] - mean["bfloat16"] for storage in mean}
    assert abs(cost["int8"]) < 0.01 < cost["nf4 + double"] < cost["fp4"]
    assert all(len(losses["text"]) == 2 and len(losses["task"]) == 3 for losses in found.values())


@pytest.mark.slow
def test_quick_as_a_user(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["experiment", "qlora-table3", "--quick"]) == 0
    assert "before tuning" in capsys.readouterr().out and (tmp_path / "qlora-table3/cost-embedded.svg").exists()
