"""LoRA and its rivals: budgets, starts, summaries, the quick run as a user's, the committed page."""

from pathlib import Path

import numpy as np
import pytest

from minilora.autograd import no_grad
from minilora.cli import main
from minilora.data.grammar import load_grammar_task
from minilora.experiments import lora_table4 as experiment
from minilora.experiments.study import page_lacks
from minilora.models.registry import load_model
from minilora.train.evaluate import evaluate_answers

DOCS = Path(__file__).parents[2] / "docs/experiments"
IDS = np.arange(24).reshape(2, 12)
L, D, FF = 4, 128, 352  # layers and widths of the embedded model


@pytest.fixture(scope="module")
def embedded():
    return load_model("embedded")


def start(embedded, arm, seed=0):
    return experiment.starter(embedded[0], **experiment.ARMS[arm])(seed)


def logits(model):
    with no_grad():
        return model(IDS).data


def test_the_page_says_what_was_measured():
    assert page_lacks(DOCS / "lora-table4", DOCS / "lora-table4.md") == []


def test_arms_train_what_their_formulas_say(embedded):
    counts = {
        "full": embedded[0].num_parameters(),
        "BitFit": L * (4 * D + 2 * FF + D),  # q, k, v, o; gate and up; down
        "PreEmbed, 16": 16 * D,
        "PreLayer, 32": L * 32 * D,
        "Adapter-H, r = 1": 2 * L * (2 * D + 1 + D),
        "Adapter-H, r = 8": 2 * L * (2 * D * 8 + 8 + D),
        "LoRA, r = 1": 2 * L * 2 * D,
        "LoRA, r = 8": 2 * L * 2 * D * 8,
    }
    for arm, expected in counts.items():
        assert sum(p.size for p in start(embedded, arm).trainable().values()) == expected, arm
    assert counts.keys() == experiment.ARMS.keys()
    small, large = ([n for n in counts.values() if low < n < 1.6 * low] for low in (2_000, 16_000))
    assert len(small) == len(large) == 3


@pytest.mark.parametrize("arm", [arm for arm in experiment.ARMS if not arm.startswith("Pre")])
def test_arms_begin_where_the_base_is(embedded, arm):
    before = {name: p.data.copy() for name, p in embedded[0].named_parameters()}
    assert np.array_equal(logits(start(embedded, arm)), logits(embedded[0]))
    for name, p in embedded[0].named_parameters():
        assert np.array_equal(p.data, before[name])


@pytest.mark.parametrize("arm", ["PreEmbed, 16", "LoRA, r = 8", "Adapter-H, r = 1"])
def test_a_seed_draws_what_is_new(embedded, arm):
    a, b, other = (start(embedded, arm, seed).trainable() for seed in (3, 3, 4))
    assert all(np.array_equal(p.data, b[name].data) for name, p in a.items())
    assert any(not np.array_equal(p.data, other[name].data) for name, p in a.items())


def test_summaries_are_those_of_any_batches(embedded):
    """Grouped by length, the answers are as good as in batches with padding."""
    model, tokenizer = embedded
    task = load_grammar_task("samsum", train=1, validation=1, held_out=6)
    found = experiment.summaries(model, tokenizer, task.held_out)
    new = max(len(tokenizer.encode(e.response)) for e in task.held_out) + 1
    prompts, references = [e.prompt for e in task.held_out], [[e.response] for e in task.held_out]
    expected = evaluate_answers(model, tokenizer, prompts, references, new)
    assert found == pytest.approx({name: expected[name] for name in found})
    assert experiment.summaries(start(embedded, "PreLayer, 32"), tokenizer, task.held_out).keys() == found.keys()


@pytest.mark.slow
def test_quick_as_a_user(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["experiment", "lora-table4", "--quick"]) == 0
    assert "Learning rates" in capsys.readouterr().out and (tmp_path / "lora-table4/figures.svg").exists()
