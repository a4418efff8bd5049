"""In how few random directions can a network be trained? Li et al. (arXiv:1804.08838), Aghajanyan et al. (2012.13255).

    minilora experiment intrinsic-dimension            # about 25 minutes of one core; needs SciPy and scikit-learn

Four parts: a toy whose dimension is known; scikit-learn's digits with a small MLP and three kinds of projection; the
embedded model fine-tuned on header_json by DID and SAID; the same from bases that were pretrained less. d90 is the
smallest d of a grid at which 90 % of full training's metric is reached, seed by seed.
"""

import copy
import tempfile
from itertools import pairwise

import numpy as np

from minilora import ops
from minilora.autograd import Tensor, no_grad
from minilora.data.pretrain import PretrainingBatches, token_stream
from minilora.data.tasks import encode, load_task
from minilora.errors import ConfigError
from minilora.experiments.study import Interval
from minilora.experiments.tuning import MAX_LENGTH, train
from minilora.lowrank.fastfood import DenseProjection, Fastfood, SparseProjection
from minilora.lowrank.intrinsic import GroupSums, Subspace, smallest_d
from minilora.models.registry import load_model
from minilora.nn import CausalLM, Linear, Module, Sequential
from minilora.nn.layers import Activation
from minilora.train.arguments import TrainingArguments
from minilora.train.evaluate import predictions
from minilora.train.optim import AdamW
from minilora.train.trainer import Trainer
from minilora.viz.charts import standalone
from minilora.viz.intervals import curves

TITLE = "Intrinsic dimension: how few free directions suffice to train a network"
SEEDS = 3
PROJECTIONS = {"dense": DenseProjection, "sparse": SparseProjection, "Fastfood": Fastfood}
METRICS = ("token_accuracy", "exact_match", "loss")
# Learning rates are the same for every arm; one is chosen by validation examples at the d named AT, for all d.
DIGITS_RATES = (3e-3, 1e-2, 3e-2, 1e-1)
DIGITS_GRID, DIGITS_AT = (8, 16, 32, 64, 96, 128, 192, 256, 384, 512), 128
RATES = (7e-4, 2e-3, 6e-3, 2e-2, 6e-2)
GRID, SHORT_GRID, AT = (64, 128, 256, 512, 1024, 2048, 4096, 16384), (256, 512, 1024, 2048), 1024
STEPS, BATCH, EXAMPLES = 80, 8, 256
SNAPSHOTS = (100, 400)  # updates of pretraining; the shipped base had 3,200


def measure(seeds: list[int], quick: bool, say) -> dict:
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ConfigError("intrinsic-dimension takes its digits from scikit-learn: pip install scikit-learn") from error
    toy = _toy(seeds, (9, 10) if quick else (8, 9, 10, 11, 12), say)
    digits = _digits(
        load_digits(), seeds, (64, 256) if quick else DIGITS_GRID, DIGITS_RATES[:1] if quick else DIGITS_RATES, say
    )
    return {"toy": toy, "digits": digits, "transformer": _transformer(seeds, quick, say)}


# The toy: 1,000 numbers, 10 equations.


def _toy(seeds: list[int], grid, say) -> list[dict]:
    """Rows of projection, d, and seed by seed what of the goal is missed: at best, and after gradient descent."""
    rows = []
    for name, projection in PROJECTIONS.items():
        for d in grid:
            best = [GroupSums().least_squares(projection(1000, d, seed)) for seed in seeds]
            found = [GroupSums().descend(d, projection, seed) for seed in seeds]
            rows.append({"projection": name, "d": d, "least_squares": best, "descent": found})
        say(f"toy, {name}: done")
    return rows


# Digits: 1,000 to train on, 297 to choose by, 500 to report.


def mlp(seed: int) -> Module:
    """64 -> 64 -> 64 -> 10 with ReLU: 8,970 parameters."""
    rng = np.random.default_rng(seed)
    sizes, parts = (64, 64, 64, 10), []
    for d_in, d_out in pairwise(sizes):
        parts += [Linear(d_in, d_out, True, rng, (2 / d_in) ** 0.5), Activation("relu")]
    return Sequential(*parts[:-1])


def _digits(data, seeds: list[int], grid, rates, say) -> dict:
    order = np.random.default_rng(0).permutation(len(data.target))
    x, y = (data.data[order] / 16).astype(np.float32), data.target[order]
    fit, choose, report = slice(0, 1000), slice(1000, 1297), slice(1297, None)
    arms = {"full": None, **PROJECTIONS}

    def run(projection, d, rate, seed, on):
        model = mlp(seed)
        model = model if projection is None else Subspace(model, d, projection, seed=seed)
        _fit(model, x[fit], y[fit], rate, seed)
        with no_grad():
            return float((model(Tensor(x[on])).data.argmax(-1) == y[on]).mean())

    out = {"parameters": mlp(0).num_parameters(), "rates": {}, "arms": {}}
    for name, projection in arms.items():
        tried = {rate: run(projection, DIGITS_AT, rate, seeds[0], choose) for rate in rates}
        rate = max(tried, key=tried.get)
        out["rates"][name] = [{"rate": r, "validation_accuracy": a} for r, a in tried.items()]
        ds = (out["parameters"],) if projection is None else grid
        out["arms"][name] = [{"d": d, "accuracy": [run(projection, d, rate, s, report) for s in seeds]} for d in ds]
        best = max(_mean_accuracy(row) for row in out["arms"][name])
        say(f"digits, {name}: learning rate {rate:g}, accuracy at most {best:.3f}")
    return out


def _fit(model: Module, x: np.ndarray, y: np.ndarray, rate: float, seed: int, steps: int = 300, batch: int = 128):
    """AdamW with a linear schedule, on batches drawn by the seed."""
    optimizer, rng = AdamW(model.parameters(), rate), np.random.default_rng([seed, 1])
    for step in range(steps):
        rows = rng.choice(len(x), batch, replace=False)
        optimizer.zero_grad()
        ops.cross_entropy(model(Tensor(x[rows])), y[rows]).backward()
        optimizer.lr = rate * (1 - step / steps)
        optimizer.step()


def _mean_accuracy(row: dict) -> float:
    return float(np.mean(row["accuracy"]))


# The embedded model.


def _transformer(seeds: list[int], quick: bool, say) -> dict:
    """Of each start and method: the learning rates tried, and for each d the metrics, seed by seed."""
    base, tokenizer = load_model("embedded")
    task, count = load_task("header_json"), 64 if quick else EXAMPLES
    sets = [encode(tokenizer, examples[:count], MAX_LENGTH) for examples in (task.validation, task.held_out)]
    steps, rates = (30, RATES[2:3]) if quick else (STEPS, RATES)

    def run(start, method, d, rate, seed) -> Module:
        model = start(seed)
        if method != "full":
            model = Subspace(model, d, structure_aware=method == "SAID", seed=seed)
        train(model, tokenizer, task.train, steps=steps, learning_rate=rate, seed=seed, batch=BATCH)
        return model

    starts = {"base": lambda seed: copy.deepcopy(base)}
    if not quick:
        starts |= _less_pretrained(base, tokenizer, say)
    out = {"parameters": base.num_parameters(), "steps": steps, "starts": {}}
    for title, start in starts.items():
        methods = {"full": (out["parameters"],), "DID": SHORT_GRID}
        if title == "base":
            methods = methods | {"DID": GRID, "SAID": GRID}
        if quick:
            methods = {"full": (out["parameters"],), "DID": (256, AT)}
        arms = {"before": [figures(start(seed), sets[1]) for seed in seeds], "rates": {}, "methods": {}}
        for method, grid in methods.items():
            at = AT if AT in grid else grid[0]
            tried = {rate: run(start, method, at, rate, seeds[0]) for rate in rates}
            chosen = {rate: figures(model, sets[0]) for rate, model in tried.items()}
            rate = max(chosen, key=lambda r: chosen[r]["token_accuracy"])
            arms["rates"][method] = [{"rate": r, "validation": f} for r, f in chosen.items()]
            rows = arms["methods"][method] = []
            for d in grid:
                models = (tried[rate] if (d, s) == (at, seeds[0]) else run(start, method, d, rate, s) for s in seeds)
                found = [figures(model, sets[1]) for model in models]
                rows.append({"d": d} | {metric: [f[metric] for f in found] for metric in METRICS})
                said = ", ".join(f"{f['token_accuracy']:.3f}" for f in found)
                say(f"{title}, {method}, d = {d:,}, learning rate {rate:g}: token accuracy {said}")
        out["starts"][title] = arms
    return out


def figures(model: Module, rows: list[dict]) -> dict[str, float]:
    """{"token_accuracy": share of target tokens that are the likeliest given the right ones before them,
    "exact_match": share of examples where all are, "loss": nats per target token}."""
    losses, right, matches = [], [], len(rows)
    for loss, hit, row in predictions(model, rows):
        losses.append(loss)
        right.append(hit)
        matches -= len(np.unique(row[~hit]))
    right = np.concatenate(right)
    return {
        "token_accuracy": float(right.mean()), "exact_match": matches / len(rows), "loss": sum(losses) / len(right),
    }  # fmt: skip


def _less_pretrained(base: CausalLM, tokenizer, say) -> dict:
    """Bases of the same shape: random weights, and snapshots of a pretraining run on half the shipped base's batch."""
    model, kept = CausalLM(base.config, seed=0), {}

    def keep(entry: dict):
        if entry["step"] in SNAPSHOTS:
            kept[entry["step"]] = copy.deepcopy(model)
            say(f"pretraining, {entry['step']} updates: loss {entry['loss']:.3f}")

    stream, _ = token_stream(tokenizer, "train")
    from threadpoolctl import threadpool_limits

    with tempfile.TemporaryDirectory() as folder, threadpool_limits(1, user_api="blas"):
        args = TrainingArguments(
            folder, max_steps=max(SNAPSHOTS), per_device_train_batch_size=8, optim="muon", learning_rate=6e-3,
            lr_scheduler_type="constant", warmup_steps=50, weight_decay=0.05, adam_beta2=0.95,
            overwrite_output_dir=True,
        )  # fmt: skip
        batches = PretrainingBatches(stream, tokenizer.vocab_size, 8, 256, seed=0)
        if Trainer(model, args, batches, progress=keep, save=lambda folder: None).train().interrupted:
            raise KeyboardInterrupt
    starts = {"random weights": lambda seed: CausalLM(base.config, seed=seed)}
    return starts | {f"{n} updates": lambda seed, n=n: copy.deepcopy(kept[n]) for n in SNAPSHOTS}


# What is shown.


def tables(data: dict) -> list[tuple[str, list[tuple]]]:
    toy, digits, lm = data["toy"], data["digits"], data["transformer"]
    grid = list(dict.fromkeys(row["d"] for row in toy))
    rows = [("", *(f"d = {d}" for d in grid))]
    for name in dict.fromkeys(row["projection"] for row in toy):
        mine = [row for row in toy if row["projection"] == name]
        for way in ("least_squares", "descent"):
            rows.append((f"{name}, {way.replace('_', ' ')}", *(_solved(row[way]) for row in mine)))
    out = [("Toy, 1,000 numbers in 10 equations: seeds solved (largest relative error)", rows)]
    out.append((f"Digits, an MLP of {digits['parameters']:,} parameters: test accuracy", _digits_rows(digits["arms"])))
    for metric, words in (("token_accuracy", "token accuracy"), ("exact_match", "exact match")):
        rows = _method_rows(lm["starts"]["base"], metric)
        out.append((f"The embedded model ({lm['parameters']:,} parameters) on header_json: held-out {words}", rows))
    if len(lm["starts"]) > 1:
        out.append(("Pretraining, and the intrinsic dimension (DID, token accuracy)", _start_rows(lm["starts"])))
    return out


def _solved(errors: list[float]) -> str:
    return f"{sum(e < 1e-3 for e in errors)} of {len(errors)} ({max(errors):.0e})"


def _digits_rows(arms: dict) -> list[tuple]:
    full = arms["full"][0]["accuracy"]
    names = [name for name in arms if name != "full"]
    rows = [("d", *names)]
    rows += [
        (line[0]["d"], *(_text(row["accuracy"]) for row in line))
        for line in zip(*(arms[n] for n in names), strict=True)
    ]
    rows.append(("all (no projection)", *[_text(full)] * len(names)))
    return [*rows, ("d90, seed by seed", *(_d90s(arms[n], "accuracy", full) for n in names))]


def _method_rows(arms: dict, metric: str) -> list[tuple]:
    methods = arms["methods"]
    full = methods["full"][0][metric]
    names = [name for name in methods if name != "full"]
    rows = [("d", *names), ("0 (not trained)", *[_text([f[metric] for f in arms["before"]])] * len(names))]
    rows += [
        (line[0]["d"], *(_text(row[metric]) for row in line)) for line in zip(*(methods[n] for n in names), strict=True)
    ]
    rows.append(("all (full training)", *[_text(full)] * len(names)))
    return [*rows, ("d90, seed by seed", *(_d90s(methods[n], metric, full) for n in names))]


def _start_rows(starts: dict) -> list[tuple]:
    rows = [
        ("start", "before", *(f"d = {d:,}" for d in SHORT_GRID), "full", "d90 of its own full", "d90 of the base's")
    ]
    best = starts["base"]["methods"]["full"][0]["token_accuracy"]
    for title, arms in starts.items():
        did, full = arms["methods"]["DID"], arms["methods"]["full"][0]["token_accuracy"]
        cells = [_text(row["token_accuracy"]) for row in did if row["d"] in SHORT_GRID]
        before = _text([f["token_accuracy"] for f in arms["before"]])
        d90s = _d90s(did, "token_accuracy", full), _d90s(did, "token_accuracy", best)
        rows.append((title, before, *cells, _text(full), *d90s))
    return rows


def _text(values: list[float]) -> str:
    return Interval.of(values).text()


def _d90s(rows: list[dict], metric: str, full: list[float]) -> str:
    """The d90 of each seed, against the same seed's full training."""
    found = [smallest_d({row["d"]: row[metric][i] for row in rows}, f) if f > 0 else None for i, f in enumerate(full)]
    return ", ".join(f"> {rows[-1]['d']:,}" if d is None else f"{d:,}" for d in found)


def draw(data: dict) -> dict[str, str]:
    digits, lm = data["digits"]["arms"], data["transformer"]["starts"]
    full = Interval.of(digits["full"][0]["accuracy"]).mean
    series = {name: _series(rows, "accuracy") for name, rows in digits.items() if name != "full"}
    out = {"digits.svg": _curves(series, "test accuracy", full, "Digits: accuracy against d")}
    for metric, words in (("token_accuracy", "token accuracy"), ("exact_match", "exact match")):
        methods = lm["base"]["methods"]
        full = Interval.of(methods["full"][0][metric]).mean
        series = {name: _series(rows, metric) for name, rows in methods.items() if name != "full"}
        title = f"The embedded model: held-out {words} against d"
        out[f"{metric.replace('_', '-')}.svg"] = _curves(series, f"held-out {words}", full, title)
    if len(lm) > 1:
        full = Interval.of(lm["base"]["methods"]["full"][0]["token_accuracy"]).mean
        series = {title: _series(arms["methods"]["DID"], "token_accuracy") for title, arms in lm.items()}
        title = "Pretrained for longer: token accuracy against d"
        out["pretraining.svg"] = _curves(series, "held-out token accuracy", full, title)
    return out


def _series(rows: list[dict], metric: str) -> list[tuple[float, float, float]]:
    intervals = [Interval.of(row[metric]) for row in rows]
    return [(row["d"], i.mean, i.half) for row, i in zip(rows, intervals, strict=True)]


def _curves(series: dict, y_label: str, full: float, title: str) -> str:
    levels = {"full training": full, "90 % of it": 0.9 * full}
    return standalone(curves(series, "d, trained numbers", y_label, title, log_x=True, levels=levels))
