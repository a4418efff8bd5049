"""How do LoRA and its rivals compare where they train as many numbers? Three generated tasks, two budgets.

    minilora experiment lora-table4            # about 11 minutes of one core; offline

The LoRA paper's table 4 (arXiv:2106.09685) at the scale of the embedded model: full fine-tuning, BitFit, PreEmbed,
PreLayer, Adapter-H and LoRA (lora/baselines.py), on tasks in the form of WikiSQL, MultiNLI and SAMSum
(data/grammar.py). What 4 layers of width 128 have to train:

    about 2,000    PreEmbed of 16 vectors, Adapter-H r = 1, LoRA r = 1 (W_q, W_v)
    about 16,000   PreLayer of 32 vectors, Adapter-H r = 8, LoRA r = 8
    5,376          BitFit: every linear layer's bias. The embedded model has none, so BitFit's starts with zeros
"""

import copy
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from minilora.data.grammar import GRAMMARS, load_grammar_task
from minilora.data.tasks import Example
from minilora.experiments.study import Interval, paired
from minilora.experiments.tuning import sweep
from minilora.lora import LoraConfig, get_peft_model
from minilora.lora.baselines import tune
from minilora.models.generate import generate_batch
from minilora.models.registry import load_model
from minilora.nn import CausalLM
from minilora.train.rouge import rouge
from minilora.viz.charts import standalone
from minilora.viz.intervals import dots

TITLE = "LoRA and other ways to tune, at two budgets (LoRA, table 4)"
SEEDS = 3
BEST = "LoRA, r = 8"  # what the others are compared with
ARMS = {  # name -> tune's arguments, or LoRA's rank
    "full": {"method": "full"}, "BitFit": {"method": "bitfit"},
    "PreEmbed, 16": {"method": "preembed", "length": 16}, "PreLayer, 32": {"method": "prelayer", "length": 32},
    "Adapter-H, r = 1": {"method": "adapter", "r": 1}, "Adapter-H, r = 8": {"method": "adapter", "r": 8},
    "LoRA, r = 1": {"r": 1}, BEST: {"r": 8},
}  # fmt: skip
ALPHA = 8  # as in the other two tables
RATES = (1e-3, 4e-3, 1.6e-2, 6.4e-2)
BATCH, EXAMPLES = 8, 128
STEPS = {"wikisql": 80, "multinli": 120, "samsum": 80}
FIGURES = {"wikisql": ("exact_match",), "multinli": ("exact_match",), "samsum": ("rouge1", "rouge2", "rougeL")}
WORDS = {"exact_match": "exact match", "rouge1": "ROUGE-1", "rouge2": "ROUGE-2", "rougeL": "ROUGE-L", "loss": "loss"}


def measure(seeds: list[int], quick: bool, say) -> dict:
    base, tokenizer = load_model("embedded")
    starts = {name: starter(base, **arm) for name, arm in ARMS.items()}
    out = {"batch": BATCH, "examples": 64 if quick else EXAMPLES, "rates": list(RATES[1:2] if quick else RATES)}
    out["tasks"] = {}
    for name in list(GRAMMARS)[:1] if quick else GRAMMARS:
        steps = 20 if quick else STEPS[name]
        task = load_grammar_task(name, train=steps * BATCH, validation=EXAMPLES, held_out=EXAMPLES)
        arms = sweep(
            starts, tokenizer, task, rates=out["rates"], steps=steps, seeds=seeds, say=say, batch=BATCH,
            examples=out["examples"], also=summaries if name == "samsum" else None,
        )  # fmt: skip
        rules = {figure: task.trivial_rules(_figure(figure)) for figure in FIGURES[name]}
        out["tasks"][name] = {"steps": steps, "rules": rules, "arms": arms}
    return out


def starter(base, r: int | None = None, **method) -> Callable:
    """seed -> a copy of base that is tuned so; method: as tune's; without it LoRA of rank r."""

    def start(seed: int):
        model = with_biases(base) if method.get("method") == "bitfit" else copy.deepcopy(base)
        if method:
            return tune(model, **method, **({"r": r} if r else {}), seed=seed)
        return get_peft_model(model, LoraConfig(r=r, lora_alpha=ALPHA, target_modules=["q_proj", "v_proj"]), seed=seed)

    return start


def with_biases(base: CausalLM) -> CausalLM:
    """The same function, with a bias of zero in every linear layer but the output head."""
    model = CausalLM(replace(base.config, bias=True), seed=None)
    model.load_state_dict(model.state_dict() | {name: p.copy() for name, p in base.state_dict().items()})
    return model.eval()


def summaries(model, tokenizer, examples: Sequence[Example]) -> dict[str, float]:
    """ROUGE of the likeliest answers. Prompts of one length go together: vectors before the text allow no padding."""
    groups = {}
    for e in examples:
        groups.setdefault(len(tokenizer.encode(e.prompt)), []).append(e)
    new = max(len(tokenizer.encode(e.response)) for e in examples) + 1
    scores = []
    for group in groups.values():
        answers = generate_batch(model, tokenizer, [e.prompt for e in group], new)
        scores += [rouge(answer, e.response) for answer, e in zip(answers, group, strict=True)]
    return {name: float(np.mean([score[name] for score in scores])) for name in scores[0]}


def _figure(name: str) -> Callable[[str, str], float]:
    return (lambda a, b: a == b) if name == "exact_match" else (lambda a, b: rouge(a, b)[name])


# What is shown.


def tables(data: dict) -> list[tuple[str, list[tuple]]]:
    tasks = data["tasks"]
    shown = [(task, figure) for task in tasks for figure in FIGURES[task]]
    rows = [("", "trained parameters", *(f"{task}, {WORDS[figure]}" for task, figure in shown))]
    for name in ARMS:
        cells = (Interval.of(tasks[task]["arms"][name][figure]).text() for task, figure in shown)
        rows.append((name, f"{_trained(tasks, name):,}", *cells))
    out = [("Held-out figures", rows)]
    rows = [("", *tasks)]
    for name in ARMS:
        rows.append((name, *(Interval.of(found["arms"][name]["loss"]).text() for found in tasks.values())))
    out.append(("Held-out loss, nats a token", rows))
    compared = [(task, figure) for task in tasks for figure in (FIGURES[task][-1], "loss")]
    rows = [("", *(f"{task}, {WORDS[figure]}" for task, figure in compared))]
    for name in ARMS:
        if name != BEST:
            rows.append((name, *(_less(tasks[task]["arms"], name, figure) for task, figure in compared)))
    out.append((f"Less those of {BEST}, in pairs of a seed (*: 95 % interval without zero)", rows))
    rows = [("", *tasks)]
    rows += [(name, *(f"{found['arms'][name]['rate']:g}" for found in tasks.values())) for name in ARMS]
    out.append(("Learning rates", rows))
    for task, found in tasks.items():
        rules = list(next(iter(found["rules"].values())))
        rows = [("", *(WORDS[figure] for figure in found["rules"]))]
        rows += [(rule, *(f"{values[rule]:.3f}" for values in found["rules"].values())) for rule in rules]
        out.append((f"{task}, by rules that learn nothing or see too little", rows))
    return out


def _trained(tasks: dict, name: str) -> int:
    return next(iter(tasks.values()))["arms"][name]["trainable"]


def _less(arms: dict, name: str, figure: str) -> str:
    difference = Interval.of(paired(arms[name][figure], arms[BEST][figure]))
    return difference.text() + " *" * difference.excludes_zero


def draw(data: dict) -> dict[str, str]:
    groups = {}
    for task, found in data["tasks"].items():
        figure = FIGURES[task][-1]
        means = {name: Interval.of(arm[figure]) for name, arm in found["arms"].items()}
        groups[f"{task}, {WORDS[figure]}"] = {
            f"{name} ({_trained(data['tasks'], name):,})": (f.mean, f.half) for name, f in means.items()
        }
    return {"figures.svg": standalone(dots(groups, "held-out figure", "Ways to tune, by trained parameters"))}
