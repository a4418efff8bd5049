"""Forgetting: an adapter that is off is not there, rows answer as alone, bits a byte by their definition, the page."""

import copy
from pathlib import Path

import numpy as np
import pytest

from minilora.autograd import no_grad
from minilora.cli import main
from minilora.data.tasks import Example, Task
from minilora.experiments import forgetting as experiment
from minilora.experiments.study import page_lacks
from minilora.lora import LoraConfig, get_peft_model
from minilora.models.registry import load_model
from minilora.nn import CausalLM, TransformerConfig

DOCS = Path(__file__).parents[2] / "docs/experiments"
TEXT = np.random.default_rng(0).integers(0, 64, 300).astype(np.uint16)


@pytest.fixture(scope="module")
def base():
    return CausalLM(TransformerConfig(64, 32, 48, 2, 2, num_key_value_heads=2), seed=0)


def moved(base, *names):
    """Adapters with B's that are not zero, as after training."""
    config = LoraConfig(r=2, lora_alpha=2, target_modules="all-linear")
    model = get_peft_model(copy.deepcopy(base), config, names[0])
    for name in names[1:]:
        model.add_adapter(name, config, seed=1)
    rng = np.random.default_rng(1)
    for name in names:
        for p in model.adapter_parameters(name):
            p.data = rng.standard_normal(p.shape).astype(np.float32) / 4
    return model


def test_the_page_says_what_was_measured():
    assert page_lacks(DOCS / "forgetting", DOCS / "forgetting.md") == []


def test_an_adapter_that_is_off_leaves_every_bit_of_the_model(base):
    model = moved(base, "default")
    assert not experiment.same_logits(model, base, TEXT)
    with model.disable_adapter():
        assert experiment.same_logits(model, base, TEXT)
    assert not experiment.same_logits(model, base, TEXT)
    nudged = copy.deepcopy(base)
    weight = next(iter(nudged.parameters()))
    weight.data = weight.data + np.float32(1e-6)
    assert not experiment.same_logits(nudged, base, TEXT)


def test_rows_of_a_batch_answer_as_alone(base):
    model = moved(base, "old", "new")
    assert experiment.rows_difference(model, TEXT) < 1e-5
    ids = TEXT[:64].reshape(1, 64).astype(int)
    with no_grad():
        one, other = (model(ids, adapter_names=[name]).data for name in ("old", "new"))
    assert np.abs(one - other).max() > 0.1  # so that a row with the wrong adapter would show


def test_text_is_measured_in_bits_a_byte():
    model, tokenizer = load_model("embedded")
    text = np.array([tokenizer.eos_token_id, *tokenizer.encode(Path(experiment.__file__).read_text())][:257])
    task = Task("two", [], [], [Example(f"def f{i}(a):\n>>> ", f'{{"name": "f{i}"}}', "none") for i in range(2)])
    bench = experiment.Bench(tokenizer, task, task, text, steps=1, examples=4)
    with no_grad():
        logits = model(text[None]).data[0, :-1].astype(float)
    of_right = logits[np.arange(256), text[1:]] - np.log(np.exp(logits).sum(-1))
    bits = -of_right.sum() / np.log(2) / len(tokenizer.decode(text[1:].tolist()).encode())
    found = bench.figures(model)
    assert found["text"] == pytest.approx(bits, rel=1e-4) and set(found) == set(experiment.FIGURES)
    assert found["old"] == found["new"] == 0 and 0 < found["old_tokens"] == found["new_tokens"] < 1


def test_the_arms_compared_are_those_of_one_seed():
    runs = {f: [0.5, 0.7] for f in experiment.FIGURES}
    arms = {arm: dict(runs) for arm in experiment.ARMS} | {"full": {f: [0.4, 0.6] for f in experiment.FIGURES}}
    row = {"same": 35, "prompts": 36, "difference": 2e-6, "mixed": 0.5, "swapped": 0.0}
    tried = {"full": [{"rate": 0.1, "loss": 2.0}, {"rate": 0.01, "loss": 1.0}]}
    data = {"base": dict.fromkeys(experiment.FIGURES, 0.0), "arms": arms, "same": [True, False], "rows": [row, row],
            "tried": tried, "rates": {"full": 0.01}}  # fmt: skip
    shown = dict(experiment.tables(data))
    changes = shown["Differences, in pairs of a seed (*: 95 % interval without zero)"]
    assert changes[1] == ("full less the old model", *["-0.100 ± 0.000 *"] * 5)
    assert changes[2] == ("LoRA less the old model", *["0.000 ± 0.000"] * 5)
    off = shown["An adapter switched off, and two adapters by row of a batch"]
    assert off[1] == (0, "yes", "35 of 36", "2e-06", "0.500", "0.000") and off[2][1] == "no"
    assert shown["Learning rates, first seed"][2] == ("full", "0.01 (chosen)", "1.000")
    assert set(experiment.draw(data)) == {"tasks.svg", "text.svg"}


@pytest.mark.slow
def test_quick_as_a_user(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["experiment", "forgetting", "--quick"]) == 0
    assert "LoRA, off" in capsys.readouterr().out and (tmp_path / "forgetting/tasks.svg").exists()
