"""What does a model lose of its old task by learning a new one: all weights trained, LoRA, LoRA with its adapter off?

    minilora experiment forgetting            # about 5 minutes of one core; offline

All weights of the embedded model learn an old task; from there a new one is learnt. Measured before and after: exact
match and token accuracy on both, and the bits for a byte of Python source, for which the model was pretrained. An
adapter that is switched off must give the old model back bit for bit: its W0 was never written to. And adapters are
modules: two beside one base, chosen row by row in a mixed batch, must answer as each does alone.
"""

import copy
import math
from contextlib import nullcontext

import numpy as np

from minilora.autograd import no_grad
from minilora.data.pretrain import token_stream
from minilora.data.tasks import Task, encode, load_task
from minilora.experiments.intrinsic_dimension import figures
from minilora.experiments.study import Interval, paired
from minilora.experiments.tuning import MAX_LENGTH, sweep, train
from minilora.lora import LoraConfig, get_peft_model
from minilora.lora.rows import BASE
from minilora.models.generate import generate_batch
from minilora.models.registry import load_model
from minilora.train.pretrain import bits_per_byte
from minilora.viz.charts import standalone
from minilora.viz.intervals import dots

TITLE = "Forgetting: what a model loses of its old task by learning a new one"
SEEDS = 3
OLD, NEW = "header_json", "docstring_json"
LORA = LoraConfig(r=8, lora_alpha=8, target_modules="all-linear")
RATES = {"full": (3e-4, 1e-3, 3e-3), "LoRA": (3e-3, 1e-2, 3e-2)}
ARMS = ("the old model", "full", "LoRA", "LoRA, off")
STEPS, BATCH, EXAMPLES, TEXT_TOKENS = 100, 8, 256, 8193
FIGURES = {
    "old": "old task, exact match", "old_tokens": "old task, token accuracy", "new": "new task, exact match",
    "new_tokens": "new task, token accuracy", "text": "text, bits a byte",
}  # fmt: skip


class Bench:
    """The two tasks and a text, and how a model learns and does them."""

    def __init__(self, tokenizer, old: Task, new: Task, text: np.ndarray, steps: int, examples: int):
        """text: token numbers, of which the first only begins it. examples: of each split that a figure is from."""
        self.tokenizer, self.old, self.new, self.text = tokenizer, old, new, text
        self.steps, self.examples = steps, examples
        self.text_bytes = len(tokenizer.decode(text[1:].tolist()).encode())

    def learn(self, model, task: Task, rate: float, seed: int):
        examples = task.train[: self.steps * BATCH]
        train(model, self.tokenizer, examples, steps=self.steps, learning_rate=rate, seed=seed, batch=BATCH)
        return model

    def figures(self, model) -> dict[str, float]:
        """FIGURES, held-out. Token accuracy: the share of target tokens that are right, given the right ones before."""
        from threadpoolctl import threadpool_limits

        with threadpool_limits(1, user_api="blas"):
            old, new = (
                figures(model, encode(self.tokenizer, task.held_out[: self.examples], MAX_LENGTH))
                for task in (self.old, self.new)
            )
            text = bits_per_byte(model, self.text, self.text_bytes, 256)
        return {
            "old": old["exact_match"], "old_tokens": old["token_accuracy"], "new": new["exact_match"],
            "new_tokens": new["token_accuracy"], "text": text,
        }  # fmt: skip


def measure(seeds: list[int], quick: bool, say) -> dict:
    """{"base": figures, "arms": {arm: figures of each seed}, "same": of each seed, whether with the adapter off all
    logits are the old model's, "rows": of each seed, see mixed_rows, "tried": {what is learnt: its rates}, "rates"}."""
    base, tokenizer = load_model("embedded")
    steps, examples, tokens = (20, 48, 1025) if quick else (STEPS, EXAMPLES, TEXT_TOKENS)
    text = token_stream(tokenizer, "held-out")[0][:tokens]
    bench = Bench(tokenizer, load_task(OLD), load_task(NEW), text, steps, examples)
    tried, rates = {}, {}

    def choose(what: str, start, task: Task):
        grid = RATES["LoRA" if "LoRA" in what else "full"]
        options = {"steps": steps, "seeds": seeds[:1], "say": say, "batch": BATCH, "examples": examples}
        found = sweep({what: start}, tokenizer, task, rates=grid[1:2] if quick else grid, **options)[what]
        tried[what], rates[what] = found["tried"], found["rate"]

    choose("old task, full", lambda seed: copy.deepcopy(base), bench.old)
    arms, same, rows = {arm: [] for arm in ARMS}, [], []
    for seed in seeds:
        old = bench.learn(copy.deepcopy(base), bench.old, rates["old task, full"], seed)
        starts = {"full": lambda seed, old=old: copy.deepcopy(old), "LoRA": lambda seed, old=old: adapted(old, seed)}
        models = {"the old model": old}
        for method, start in starts.items():
            if method not in rates:
                choose(method, start, bench.new)
            models[method] = bench.learn(start(seed), bench.new, rates[method], seed)
        for arm, model in models.items():
            arms[arm].append(bench.figures(model))
        with models["LoRA"].disable_adapter():
            arms["LoRA, off"].append(bench.figures(models["LoRA"]))
            same.append(same_logits(models["LoRA"], old, text))
        rows.append(mixed_rows(base, bench, rates["LoRA"], seed))
        say(f"seed {seed}: " + "; ".join(f"{arm} {found[-1]['old']:.3f}" for arm, found in arms.items()))
    return {
        "steps": steps, "tried": tried, "rates": rates, "base": bench.figures(base),
        "arms": {arm: {f: [run[f] for run in runs] for f in FIGURES} for arm, runs in arms.items()}, "same": same,
        "rows": rows,
    }  # fmt: skip


def adapted(model, seed: int):
    return get_peft_model(copy.deepcopy(model), LORA, seed=seed)


def same_logits(a, b, text: np.ndarray) -> bool:
    """Whether all logits on the text, in rows of 128 tokens, 16 at most, are equal bit for bit."""
    rows = min(16, len(text) // 128)
    ids = text[: rows * 128].reshape(rows, 128).astype(int)
    with no_grad():
        return np.array_equal(a(ids).data, b(ids).data)


def mixed_rows(base, bench: Bench, rate: float, seed: int, count: int = 16) -> dict:
    """Two adapters beside one base, each trained on its task; prompts of both, and four for the base, in one batch.

    {"prompts"; "same": answers equal to those of the right adapter alone; "difference": see rows_difference; "mixed":
    exact match in the mixed batch; "swapped": the same with the other task's adapter for each row}.
    """
    model = get_peft_model(copy.deepcopy(base), LORA, "old", seed)
    model.add_adapter("new", LORA, seed=seed)
    for name, task in (("old", bench.old), ("new", bench.new)):
        model.set_adapter(name)
        bench.learn(model, task, rate, seed)
    examples = {"old": bench.old.held_out[:count], "new": bench.new.held_out[:count], BASE: bench.old.held_out[:4]}
    asked = [(name, example) for name, some in examples.items() for example in some]
    asked = [asked[i] for i in np.random.default_rng(seed).permutation(len(asked))]

    def answers(names: list[str]) -> list[str]:
        return generate_batch(model, bench.tokenizer, [e.prompt for _, e in asked], 160, adapter_names=names)

    mixed = answers([name for name, _ in asked])
    other = {"old": "new", "new": "old", BASE: BASE}
    found = {"mixed": mixed, "swapped": answers([other[name] for name, _ in asked])}
    alone = {}
    for name, some in examples.items():
        with model.disable_adapter() if name == BASE else nullcontext():
            if name != BASE:
                model.set_adapter(name)
            prompts = [e.prompt for e in some]
            alone |= zip(
                ((name, p) for p in prompts), generate_batch(model, bench.tokenizer, prompts, 160), strict=True
            )
    return {
        "prompts": len(asked),
        "same": sum(answer == alone[name, e.prompt] for answer, (name, e) in zip(mixed, asked, strict=True)),
        "difference": rows_difference(model, bench.text),
        **{
            what: float(np.mean([a == e.response for a, (n, e) in zip(got, asked, strict=True) if n != BASE]))
            for what, got in found.items()
        },
    }


def rows_difference(model, text: np.ndarray) -> float:
    """The largest difference between the logits of rows in a batch of both adapters and of each row alone."""
    ids, names = text[: 4 * 64].reshape(4, 64).astype(int), ["old", "new", "new", "old"]
    with no_grad():
        mixed, largest = model(ids, adapter_names=names).data, 0.0
        for i, name in enumerate(names):
            model.set_adapter(name)
            largest = max(largest, float(np.abs(model(ids[i : i + 1]).data - mixed[i : i + 1]).max()))
    return largest


# What is shown.


def tables(data: dict) -> list[tuple[str, list[tuple]]]:
    arms, head = data["arms"], ("", *FIGURES.values())
    rows = [head, ("the base", *(f"{data['base'][f]:.3f}" for f in FIGURES))]
    rows += [(arm, *(Interval.of(found[f]).text() for f in FIGURES)) for arm, found in arms.items()]
    changes = [head]
    for a, b in (("full", "the old model"), ("LoRA", "the old model"), ("LoRA", "full")):
        pairs = (Interval.of(paired(arms[a][f], arms[b][f])) for f in FIGURES)
        changes.append((f"{a} less {b}", *(p.text() + " *" * p.excludes_zero for p in pairs)))
    tried = [("", "learning rate", "validation loss")]
    for what, losses in data["tried"].items():
        for t in losses:
            tried.append(
                (what, f"{t['rate']:g}" + " (chosen)" * (t["rate"] == data["rates"][what]), f"{t['loss']:.3f}")
            )
    switched = [("seed", "off: all logits equal", "by row: answers as alone", "largest difference of logits",
                 "exact match", "with the other's adapter")]  # fmt: skip
    for seed, (same, row) in enumerate(zip(data["same"], data["rows"], strict=True)):
        difference = f"{row['difference']:.0e}" if row["difference"] else "0"
        answers, figures = f"{row['same']} of {row['prompts']}", (f"{row[f]:.3f}" for f in ("mixed", "swapped"))
        switched.append((seed, "yes" if same else "no", answers, difference, *figures))
    return [
        ("Before and after the new task, held-out", rows),
        ("Differences, in pairs of a seed (*: 95 % interval without zero)", changes),
        ("An adapter switched off, and two adapters by row of a batch", switched),
        ("Learning rates, first seed", tried),
    ]


def draw(data: dict) -> dict[str, str]:
    def group(figure: str) -> dict[str, tuple[float, float]]:
        found = {arm: Interval.of(runs[figure]) for arm, runs in data["arms"].items()}
        return {"the base": (data["base"][figure], math.nan)} | {arm: (f.mean, f.half) for arm, f in found.items()}

    tasks = {FIGURES[figure]: group(figure) for figure in ("old", "old_tokens", "new")}
    return {
        "tasks.svg": standalone(dots(tasks, "share right, held-out", "Before and after the new task")),
        "text.svg": standalone(
            dots({FIGURES["text"]: group("text")}, "bits", "Python source, before and after the new task")
        ),
    }
