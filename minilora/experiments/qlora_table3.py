"""Does a quantized base cost anything once LoRA has been trained on it? By how the base is stored.

    minilora experiment qlora-table3           # about 10 minutes of one core, 4 of them for SmolLM2; 1.5 GB

The QLoRA paper's table 3 (arXiv:2305.14314) on the task header_json: full fine-tuning in 16 bits, LoRA on a base in 16
bits, and LoRA on a base whose linear layers are int8, fp4, or nf4 with double quantization. Two questions: what storage
costs before any tuning, on plain text and on the task, and what is left of that afterwards.

    y = round16(x) dequantize(W)^T + s round16(round16(x) A^T) B^T       # equation 5: held in few bits, computed in 16

All arms are trained in bfloat16 (precision.py) and scored in float32, so that what is compared is the storage. Full
fine-tuning keeps a float32 copy of its weights, as is usual in 16 bits.
"""

import copy
import dataclasses

import numpy as np

from minilora.autograd.rounding import to_bfloat16
from minilora.data.tasks import encode, load_task
from minilora.errors import FetchError
from minilora.experiments.study import Interval, paired
from minilora.experiments.subjects import SMOLLM2, documents, language_model
from minilora.experiments.tuning import MAX_LENGTH, sweep, train
from minilora.lora import LoraConfig, get_peft_model
from minilora.models.registry import load_model
from minilora.nn import Module
from minilora.nn.quantize import quantize_model
from minilora.train.evaluate import evaluate
from minilora.viz.charts import standalone
from minilora.viz.intervals import dots

TITLE = "LoRA on a quantized base: before and after tuning (QLoRA, table 3)"
SEEDS = 4
TASK = "header_json"
STORAGES = {  # (code, blocksize, double_quant) of the linear weights, from what should cost least on
    "bfloat16": None, "int8": ("int8", "row", False), "nf4 + double": ("nf4", 64, True), "fp4": ("fp4", 64, False),
}  # fmt: skip
FULL, LORA = "full, 16-bit", "LoRA, 16-bit"
ARMS = {  # arm -> storage of the base
    FULL: "bfloat16", LORA: "bfloat16", "LoRA, int8": "int8", "LoRA, fp4": "fp4", "LoRA, nf4 + double": "nf4 + double",
}  # fmt: skip
CONFIG = LoraConfig(r=8, lora_alpha=16, target_modules="all-linear")  # as in the recipes
RATES, STEPS, BATCH, EXAMPLES = (7e-4, 2e-3, 7e-3, 2e-2), 100, 8, 512
LARGE_RATE, LARGE_STEPS, LARGE_BATCH, LARGE_EXAMPLES = 1e-3, 20, 4, 32  # of SmolLM2: its recipe's rate


def stored(model: Module, storage: str) -> Module:
    """In place: the linear weights quantized as STORAGES says, all else rounded to bfloat16."""
    if STORAGES[storage]:
        code, blocksize, double = STORAGES[storage]
        quantize_model(model, code, blocksize, double_quant=double)
    for p in model.parameters():
        p.data = to_bfloat16(p.data)
    return model


def start(model: Module, arm: str, seed: int) -> Module:
    """The arm's model to train; `model` becomes part of it. A LoRA's A depends on the seed, not on the arm."""
    model = stored(model, ARMS[arm])
    return model if arm == FULL else get_peft_model(model, CONFIG, seed=seed)


def by_example(model, tokenizer, examples) -> dict[str, list[float]]:
    """Loss (nats a token) and exact match (0 or 1) of each example."""
    found = [evaluate(model, [row]) for row in encode(tokenizer, examples, MAX_LENGTH)]
    return {"loss": _short(f["loss"] for f in found), "exact_match": [f["exact_match"] for f in found]}


def _short(values) -> list[float]:
    return [float(f"{x:.5g}") for x in values]


def measure(seeds: list[int], quick: bool, say) -> dict:
    from threadpoolctl import threadpool_limits

    out = {"models": {}, "left_out": {}}
    with threadpool_limits(1, user_api="blas"):
        out["models"]["embedded"] = embedded(seeds, quick, say)
        try:
            if quick:
                out["left_out"]["smollm2-135m"] = "left out of the quick study"
            else:
                out["models"]["smollm2-135m"] = smollm2(say)
        except FetchError:
            out["left_out"]["smollm2-135m"] = "not fetched; run: minilora fetch smollm2-135m"
            say(f"smollm2-135m: {out['left_out']['smollm2-135m']}")
    return out


def zero_shot(load, ids: np.ndarray, tokenizer, examples, say) -> dict[str, dict[str, list[float]]]:
    """storage -> {"text": loss of each row of ids, "task": of each example}, nothing trained. load() gives a model."""
    out = {}
    for storage in STORAGES:
        model = stored(load(), storage)
        text = _short(language_model("", model, ids, "").by_text())
        out[storage] = {"text": text, "task": by_example(model, tokenizer, examples)["loss"]}
        say(f"before tuning, {storage}: " + ", ".join(f"{k} {np.mean(v):.4f}" for k, v in out[storage].items()))
    return out


def embedded(seeds: list[int], quick: bool, say) -> dict:
    """A learning rate for each arm, from one grid, by the validation split; then every seed at that rate."""
    base, tokenizer = load_model("embedded")
    task, ids = load_task(TASK), documents(tokenizer, 8 if quick else 64, 256, "files")
    steps, rates, count = (20, RATES[2:3], 64) if quick else (STEPS, RATES, EXAMPLES)
    task = dataclasses.replace(task, validation=task.validation[: count // 2])
    held_out = task.held_out[:count]
    before = zero_shot(lambda: copy.deepcopy(base), ids, tokenizer, held_out, say)
    starts = {arm: lambda seed, arm=arm: start(copy.deepcopy(base), arm, seed) for arm in ARMS}
    options = {"rates": rates, "steps": steps, "seeds": seeds, "say": say, "batch": BATCH, "examples": count}
    return {
        "title": "The embedded model", "steps": steps, "texts": len(ids), "examples": len(held_out),
        "zero_shot": before, "arms": sweep(starts, tokenizer, task, **options, bf16=True),
    }  # fmt: skip


def smollm2(say) -> dict:
    """One seed, one rate, no full fine-tuning; the intervals are over examples."""
    _, tokenizer = load_model("smollm2-135m")
    task, ids = load_task(TASK), documents(tokenizer, 8, 192, "topics")
    held_out = task.held_out[:LARGE_EXAMPLES]

    def load():
        return load_model("smollm2-135m")[0]

    out = {
        "title": SMOLLM2, "steps": LARGE_STEPS, "texts": len(ids),
        "examples": len(held_out), "zero_shot": zero_shot(load, ids, tokenizer, held_out, say), "arms": {},
    }  # fmt: skip
    for arm in list(ARMS)[1:]:
        model = start(load(), arm, 0)
        train(model, tokenizer, task.train[: LARGE_STEPS * LARGE_BATCH], steps=LARGE_STEPS, learning_rate=LARGE_RATE,
              seed=0, batch=LARGE_BATCH, bf16=True, warmup_steps=2)  # fmt: skip
        trainable = sum(p.size for p in model.trainable().values())
        out["arms"][arm] = {"trainable": trainable, "rate": LARGE_RATE} | by_example(model, tokenizer, held_out)
        say(f"{out['title']}, {arm}: exact match {np.mean(out['arms'][arm]['exact_match']):.3f}")
    return out


# What is shown.


def tables(data: dict) -> list[tuple[str, list[tuple]]]:
    out = []
    for name, model in data["models"].items():
        zero, arms, title = model["zero_shot"], model["arms"], model["title"]
        for what, over in (("text", f"{model['texts']} texts"), ("task", f"{model['examples']} examples")):
            rows = [("", "loss, nats a token", "minus bfloat16's", "minus that of the row above")]
            above = None
            for storage, found in zero.items():
                cells = [difference(found[what], zero[other][what]) if above else "" for other in ("bfloat16", above)]
                rows.append((storage, Interval.of(found[what]).text(4), *cells))
                above = storage
            out.append((f"{title}, before tuning: {what}, over {over}", rows))
        over = f"{len(arms[LORA]['loss'])} {'seeds' if name == 'embedded' else 'examples, one seed'}"
        rows = [("", "trained", "learning rate", "loss", f"minus {LORA}", "exact match", f"minus {LORA}")]
        for arm, found in arms.items():
            cells = []
            for figure in ("loss", "exact_match"):
                change = "" if arm == LORA else difference(found[figure], arms[LORA][figure])
                cells += [Interval.of(found[figure]).text(4), change]
            rows.append((arm, f"{found['trainable']:,}", f"{found['rate']:g}", *cells))
        out.append((f"{title}, after {model['steps']} steps: the task's held-out examples, over {over}", rows))
    arms = data["models"]["embedded"]["arms"]
    rates = [tried["rate"] for tried in arms[LORA]["tried"]]
    rows = [("", *(f"{rate:g}" for rate in rates))]
    rows += [(arm, *(f"{tried['loss']:.4f}" for tried in found["tried"])) for arm, found in arms.items()]
    return [*out, ("The embedded model: validation loss by learning rate, the first seed", rows)]


def difference(a: list[float], b: list[float]) -> str:
    """In pairs of a seed or an example; *: the 95 % interval is without zero."""
    found = Interval.of(paired(a, b))
    return found.text(4) + " *" * found.excludes_zero


def draw(data: dict) -> dict[str, str]:
    """What storage costs before and after tuning: losses less those of the 16-bit arm."""
    svgs = {}
    for name, model in data["models"].items():
        zero, arms = model["zero_shot"], model["arms"]
        groups = {}
        for what in ("text", "task"):
            costs = {s: Interval.of(paired(found[what], zero["bfloat16"][what])) for s, found in zero.items()}
            groups[f"before, {what}"] = {s: (costs[s].mean, costs[s].half) for s in ("int8", "nf4 + double", "fp4")}
        costs = {ARMS[a]: Interval.of(paired(f["loss"], arms[LORA]["loss"])) for a, f in arms.items() if a != FULL}
        groups["after, task"] = {s: (costs[s].mean, costs[s].half) for s in ("int8", "nf4 + double", "fp4")}
        picture = dots(groups, "loss, nats a token, less that of bfloat16", f"What storage costs, {name}")
        svgs[f"cost-{name}.svg"] = standalone(picture)
    right = {arm: Interval.of(f["exact_match"]) for arm, f in data["models"]["embedded"]["arms"].items()}
    rows = {"": {arm: (f.mean, f.half) for arm, f in right.items()}}
    svgs["exact-match.svg"] = standalone(dots(rows, "exact match, held-out", "After tuning, the embedded model"))
    return svgs
