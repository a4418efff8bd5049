"""The studies' sweep: the validation split chooses the rate; figures are those of held-out examples, seed by seed."""

import copy
from math import isinf

import numpy as np
import pytest

from minilora.data.tasks import Example, Task
from minilora.experiments.tuning import score, sweep, train
from minilora.lora import LoraConfig, get_peft_model
from minilora.models.registry import load_model

ANSWERS = ["yes", "no"]


@pytest.fixture(scope="module")
def found():
    """What sweep says, and the same by train and score, for one arm."""
    base, tokenizer = load_model("embedded")
    examples = [Example(f"{i} >>> ", ANSWERS[i % 2], "none") for i in range(60)]
    task = Task("parity", examples[:24], examples[24:40], examples[40:])

    def start(seed):
        return get_peft_model(copy.deepcopy(base), LoraConfig(r=2, target_modules=["q_proj", "v_proj"]), seed=seed)

    options = {"steps": 6, "batch": 4}
    said = []
    swept = sweep({"arm": start}, tokenizer, task, rates=(1e-4, 3e-2), seeds=[0, 1], say=said.append, **options)["arm"]

    def run(rate, seed, on):
        model = start(seed)
        train(model, tokenizer, task.train, learning_rate=rate, seed=seed, **options)
        return score(model, tokenizer, on)

    return swept, run, task, said


def test_the_rate_has_the_least_validation_loss(found):
    swept, run, task, said = found
    assert [t["rate"] for t in swept["tried"]] == [1e-4, 3e-2]
    assert [t["loss"] for t in swept["tried"]] == [run(rate, 0, task.validation)["loss"] for rate in (1e-4, 3e-2)]
    assert swept["rate"] == min(swept["tried"], key=lambda t: t["loss"])["rate"] == 3e-2
    assert len(said) == 1 and "learning rate 0.03" in said[0]


def test_the_figures_are_those_of_the_held_out_examples(found):
    swept, run, task, _ = found
    runs = [run(swept["rate"], seed, task.held_out) for seed in (0, 1)]
    assert swept["loss"] == [r["loss"] for r in runs] and swept["exact_match"] == [r["exact_match"] for r in runs]
    assert swept["loss"][0] != swept["loss"][1] and swept["trainable"] == 4 * 2 * 2 * (128 + 128)


def test_a_rate_at_which_training_stops_is_not_chosen(found):
    _, _, task, _ = found
    base, tokenizer = load_model("embedded")
    options = {"steps": 6, "batch": 4, "seeds": [0], "say": lambda line: None}
    arms = {"full": lambda seed: copy.deepcopy(base)}
    with np.errstate(over="ignore"):
        swept = sweep(arms, tokenizer, task, rates=(1e25, 1e-4), **options)["full"]
    assert isinf(swept["tried"][0]["loss"]) and swept["rate"] == 1e-4
