"""Which of the attention matrices should be adapted, the number of trained parameters being the same?

    minilora experiment lora-table5            # about 9 minutes of one core; offline

The LoRA paper's table 5 (arXiv:2106.09685) at the scale of the embedded model. With square W_q, W_k, W_v and W_o, twice
the matrices at half the rank cost the same: 2 L n d r parameters for n matrices of width d in each of L layers.
"""

import copy
from collections.abc import Callable

from minilora.data.tasks import load_task
from minilora.experiments.study import Interval, paired
from minilora.experiments.tuning import sweep
from minilora.lora import LoraConfig, get_peft_model
from minilora.models.registry import load_model
from minilora.viz.charts import standalone
from minilora.viz.intervals import dots

TITLE = "Which attention matrices to adapt, at one budget (LoRA, table 5)"
SEEDS = 3
MATRICES = {"W_q": "q_proj", "W_k": "k_proj", "W_v": "v_proj", "W_o": "o_proj"}
ARMS = {
    "W_q": 8, "W_k": 8, "W_v": 8, "W_o": 8, "W_q, W_k": 4, "W_q, W_v": 4, "W_q, W_k, W_v, W_o": 2,
}  # fmt: skip
TASKS = ("header_json", "docstring_json")
PAPERS_CHOICE = "W_q, W_v"
ALPHA = 8  # as in the paper it is not tuned: the first r tried, kept for all
RATES = (1e-2, 3e-2, 1e-1)
STEPS, EXAMPLES = 100, 256


def measure(seeds: list[int], quick: bool, say) -> dict:
    return on_tasks({name: (name, r) for name, r in ARMS.items()}, seeds, quick, say)


def on_tasks(
    arms: dict[str, tuple[str, int]], seeds: list[int], quick: bool, say, tasks=TASKS, rates=RATES
) -> dict:  # fmt: skip
    """arms: name -> (matrices, r). {"steps", "rates", "tasks": {task: what `sweep` returns}}."""
    base, tokenizer = load_model("embedded")
    steps, examples = STEPS, EXAMPLES
    if quick:
        tasks, rates, steps, examples = tasks[:1], rates[:1], 20, 64
    starts = {name: starter(base, *arm) for name, arm in arms.items()}
    options = {"rates": rates, "steps": steps, "seeds": seeds, "say": say, "examples": examples}
    found = {name: sweep(starts, tokenizer, load_task(name), **options) for name in tasks}
    return {"steps": steps, "rates": list(rates), "tasks": found}


def starter(base, matrices: str, r: int) -> Callable:
    """seed -> a copy of base with an adapter at the matrices, named as in ARMS."""
    config = LoraConfig(r=r, lora_alpha=ALPHA, target_modules=[MATRICES[name] for name in matrices.split(", ")])
    return lambda seed: get_peft_model(copy.deepcopy(base), config, seed=seed)


# What is shown.


def tables(data: dict) -> list[tuple[str, list[tuple]]]:
    tasks = data["tasks"]
    head = ["", "r", "trained parameters"]
    for task in tasks:
        head += [f"{task}, exact match", f"{task}, loss", f"{task}, learning rate"]
    rows, pairs = [tuple(head)], [("", *(f"{task}, {what}" for task in tasks for what in ("exact match", "loss")))]
    for name, r in ARMS.items():
        found = [arms[name] for arms in tasks.values()]
        cells, differences = [name, r, f"{found[0]['trainable']:,}"], [name]
        for arm, arms in zip(found, tasks.values(), strict=True):
            cells += [Interval.of(arm["exact_match"]).text(), Interval.of(arm["loss"]).text(), f"{arm['rate']:g}"]
            for figure in ("exact_match", "loss"):
                difference = Interval.of(paired(arm[figure], arms[PAPERS_CHOICE][figure]))
                differences.append(difference.text() + " *" * difference.excludes_zero)
        rows.append(tuple(cells))
        if name != PAPERS_CHOICE:
            pairs.append(tuple(differences))
    return [
        ("Held-out figures", rows),
        (f"Less those of {PAPERS_CHOICE}, in pairs of a seed (*: 95 % interval without zero)", pairs),
    ]


def draw(data: dict) -> dict[str, str]:
    svgs = {}
    for figure, words in (("exact_match", "exact match"), ("loss", "loss, nats a token")):
        groups = {}
        for task, arms in data["tasks"].items():
            found = {f"{name} (r = {ARMS[name]})": Interval.of(arm[figure]) for name, arm in arms.items()}
            groups[task] = {name: (f.mean, f.half) for name, f in found.items()}
        picture = dots(groups, f"{words}, held-out", "Which matrices, at one budget")
        svgs[f"{figure.replace('_', '-')}.svg"] = standalone(picture)
    return svgs
