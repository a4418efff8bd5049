"""What do LoRA's rank and targets cost in bytes and in time, and which share of the saving comes from what?

    minilora experiment rank-speed-memory            # about 5 minutes of one core; nothing to fetch

Full fine-tuning less LoRA is a sum of differences, each between two runs that differ in one thing:

    full step         - full gradients   = the optimizer, for all weights
    full gradients    - frozen gradients = weight gradients; in bytes also the activations that only they need
    frozen gradients  - LoRA gradients   = less the adapters' own products, gradients and activations
    LoRA gradients    - LoRA step        = less the optimizer, for the adapters

"Frozen" trains the first layer's norm alone (a vector), so that a gradient must reach the first layer and no weight
gradient is worth mentioning. Bytes are exact: activations by the ledger (autograd/ledger.py), gradients and state by
their arrays, the peak by tracemalloc. Times are CPU times of one process at one thread, in interleaved rounds, and are
given in proportion to the round's own full step only. A seed is a round.
"""

import copy
import statistics
import time
import tracemalloc
from collections.abc import Callable

import numpy as np

from minilora.autograd import ledger, no_grad
from minilora.lora import LoraConfig, get_peft_model
from minilora.memory import BUILT_IN, estimate
from minilora.models.registry import load_model
from minilora.nn import CausalLM, Module, TransformerConfig
from minilora.train.optim import AdamW
from minilora.viz.charts import memory_bars, standalone
from minilora.viz.intervals import curves

TITLE = "What rank and targets cost in bytes and time, and where LoRA's saving comes from"
SEEDS = 9  # rounds
TARGETS = {
    "q": ["q_proj"], "q, v": ["q_proj", "v_proj"], "attention": ["q_proj", "k_proj", "v_proj", "o_proj"],
    "all-linear": "all-linear",
}  # fmt: skip
RANKS = {"embedded": (1, 2, 4, 8, 16, 32, 64), "smollm2": (1, 8, 64)}
SIZES = {"embedded": (8, 128), "smollm2": (2, 128)}  # batch, tokens: each but the last of a row predicts the next
TITLES = {"embedded": "the embedded model", "smollm2": "a fifth of SmolLM2-135M"}
TAKEN_APART = {"q, v": 8, "all-linear": 8}  # targets and r of the LoRA that the savings are found for
FULL, FROZEN, FORWARD = "full step", "frozen gradients", "forward"
PARTS = ("weights", "adapters", "gradients", "optimizer", "activations")


def fifth_of_smollm2() -> CausalLM:
    """SmolLM2-135M's layers, 6 of its 30, and a fifth of its vocabulary: layers and head weigh as in the whole."""
    c = BUILT_IN["smollm2-135m"][1]
    return CausalLM(
        TransformerConfig(
            c.vocab_size // 5, c.hidden_size, c.intermediate_size, c.num_hidden_layers // 5, c.num_attention_heads,
            num_key_value_heads=c.num_key_value_heads,
        ),
        seed=0,
    )  # fmt: skip


def measure(seeds: list[int], quick: bool, say) -> dict:
    from threadpoolctl import threadpool_limits

    models = {"embedded": lambda: load_model("embedded")[0]}
    if not quick:
        models["smollm2"] = fifth_of_smollm2
    with threadpool_limits(1, user_api="blas"):
        out = {}
        for name, model in models.items():
            ranks, (batch, length) = RANKS[name], (2, 64) if quick else SIZES[name]
            out[name] = compare(model(), (1, 8, 64) if quick else ranks, batch, length, seeds, say)
            say(f"{TITLES[name]}: {len(seeds)} rounds of {len(out[name]['times'])} steps")
    return out


def compare(base: CausalLM, ranks, batch: int, length: int, rounds: list[int], say) -> dict:
    """{"parameters", "batch", "length", "bytes": arm -> parts, "times": arm -> CPU seconds, round by round}.

    Arms: "full", "frozen" and one (targets, r) an adapter; the steps of TAKEN_APART are also timed without AdamW.
    """
    shape, full = (type(base), base.config), copy.deepcopy(base)
    frozen = copy.deepcopy(base).requires_grad_(False)
    next(p for name, p in frozen.named_parameters() if "layernorm" in name).requires_grad = True
    parameters, lora = base.num_parameters(), None
    for targets, modules in TARGETS.items():
        for r in ranks:
            config = LoraConfig(r=r, lora_alpha=r, target_modules=modules)
            if lora is None:
                lora = get_peft_model(base, config, adapter_name=adapter(targets, r))
            else:
                lora.add_adapter(adapter(targets, r), config)

    ids = np.random.default_rng(rounds[0]).integers(0, base.config.vocab_size, (batch, length))
    bytes_ = {"full": held(full, ids), "frozen": held(frozen, ids)}
    bytes_["full"]["estimate"] = estimated(shape, "full", batch, length)
    for targets, modules in TARGETS.items():
        for r in ranks:
            lora.set_adapter(adapter(targets, r))
            need = estimated(shape, "lora", batch, length, r=r, target_modules=modules)
            bytes_[adapter(targets, r)] = held(lora, ids) | {"estimate": need}

    arms: dict[str, Callable] = {FULL: stepper(full), "full gradients": stepper(full, optimize=False)}
    arms |= {FROZEN: stepper(frozen, optimize=False), FORWARD: lambda ids: forward(full, ids)}
    for targets in TARGETS:
        for r in ranks:
            name = adapter(targets, r)
            lora.set_adapter(name)
            arms[f"{name} step"] = stepper(lora, name)
            if TAKEN_APART.get(targets) == r:
                arms[f"{name} gradients"] = stepper(lora, name, optimize=False)
    times = in_rounds(arms, lambda seed: np.random.default_rng(seed).integers(0, base.config.vocab_size, ids.shape),
                      rounds)  # fmt: skip
    return {"parameters": parameters, "batch": batch, "length": length, "ranks": list(ranks), "bytes": bytes_,
            "times": times}  # fmt: skip


def adapter(targets: str, r: int) -> str:
    """An adapter's name: names must not have commas or spaces."""
    return f"{targets.replace(', ', '')}-r{r}"


def held(model: Module, ids: np.ndarray) -> dict[str, int]:
    """Bytes of each part, after a step; and the peak of what a second step adds to the weights."""
    trained = list(model.trainable().values())
    optimizer = AdamW(trained, 1e-6)
    loss = model.loss(ids, ids)
    activations = ledger().total
    loss.backward()
    own = sum(p.data.nbytes for name, p in model.named_parameters() if "lora_" in name and p.requires_grad)
    parts = {
        "trainable": sum(p.size for p in trained),
        "weights": sum(p.data.nbytes for name, p in model.named_parameters() if "lora_" not in name),
        "adapters": own, "gradients": sum(p.grad.nbytes for p in trained),
        "optimizer": sum(a.nbytes for a in optimizer.state_arrays().values()), "activations": activations,
    }  # fmt: skip
    optimizer.step()
    optimizer.zero_grad()
    tracemalloc.start()
    try:
        model.loss(ids, ids).backward()
        parts["peak"] = tracemalloc.get_traced_memory()[1] + parts["weights"] + own + parts["optimizer"]
    finally:
        tracemalloc.stop()
        optimizer.zero_grad()
    return parts


def estimated(shape, kind: str, batch: int, length: int, **more) -> dict[str, float]:
    """minilora.memory's, without the copy of the trained weights that a Trainer keeps and this experiment does not."""
    need = estimate(shape, kind, batch, length, **more)
    static = need.weights + need.adapters + need.optimizer
    in_backward = need.activations + need.input_gradients
    return {"activations": need.activations, "peak": static + max(in_backward, need.gradients)}


def stepper(model: Module, name: str | None = None, optimize: bool = True) -> Callable:
    """ids -> one update of the model (of its adapter `name`); without optimize its gradients only."""
    optimizer = AdamW(list(model.trainable().values()), 1e-6)

    def step(ids: np.ndarray):
        if name is not None:
            model.set_adapter(name)
        start = time.process_time()
        model.loss(ids, ids).backward()
        if optimize:
            optimizer.step()
        seconds = time.process_time() - start
        optimizer.zero_grad()
        return seconds

    return step


def forward(model: Module, ids: np.ndarray) -> float:
    start = time.process_time()
    with no_grad():
        model.loss(ids, ids)
    return time.process_time() - start


def in_rounds(arms: dict[str, Callable], draw_ids: Callable, rounds: list[int]) -> dict[str, list[float]]:
    """arm -> seconds of each round, after one that is not counted; each round takes the arms in an order of its own."""
    times, names = {name: [] for name in arms}, list(arms)
    for name in names:
        arms[name](draw_ids(rounds[0]))
    for seed in rounds:
        ids = draw_ids(seed)
        for i in np.random.default_rng([seed, 1]).permutation(len(names)):
            times[names[i]].append(arms[names[i]](ids))
    return times


# What is shown.


def median(values: list[float]) -> tuple[float, float, float]:
    """The median, and an interval that holds the true one with at least 95 %, whatever the distribution: of n values
    the k-th from either end, 2 P(Binomial(n, 1/2) < k) <= 5 % (the sign test's). None of fewer than 6: NaN."""
    ordered, n = sorted(values), len(values)
    from scipy.stats import binom

    k = max((k for k in range(1, n // 2 + 1) if 2 * binom.cdf(k - 1, n, 0.5) <= 0.05), default=0)
    low, high = (ordered[k - 1], ordered[-k]) if k else (float("nan"),) * 2
    return statistics.median(ordered), low, high


def shares(times: dict[str, list[float]], *arms: str) -> list[float]:
    """Of each round: the first arm's time less the second's (if any), in proportion to the full step's."""
    first, second = times[arms[0]], times[arms[1]] if len(arms) > 1 else [0.0] * len(times[arms[0]])
    return [(a - b) / whole for a, b, whole in zip(first, second, times[FULL], strict=True)]


def saved_bytes(data: dict, name: str) -> dict[str, int]:
    """What each thing saves of full fine-tuning's bytes with the adapter `name`; what it costs is negative."""
    full, frozen, lora = (data["bytes"][arm] for arm in ("full", "frozen", name))
    state = ("adapters", "gradients", "optimizer")
    return {
        "no gradients of frozen weights": full["gradients"],
        "no optimizer state for them": full["optimizer"],
        "no activations kept for their gradients": full["activations"] - frozen["activations"],
        "adapters, their gradients and state": -sum(lora[part] for part in state),
        "activations kept for the adapters": frozen["activations"] - lora["activations"],
    }


def saved_time(times: dict[str, list[float]], name: str) -> dict[str, list[float]]:
    """The same of the full step's time, round by round."""
    return {
        "no gradients of frozen weights": shares(times, "full gradients", FROZEN),
        "no optimizer for them": shares(times, FULL, "full gradients"),
        "the adapters' products": shares(times, FROZEN, f"{name} gradients"),
        "the optimizer, for the adapters": shares(times, f"{name} gradients", f"{name} step"),
    }


def tables(data: dict) -> list[tuple[str, list[tuple]]]:
    out = []
    for model, found in data.items():
        title, names = TITLES[model], [adapter(t, r) for t, r in TAKEN_APART.items()]
        where = f"{title} ({found['parameters']:,} parameters), {found['batch']} x {found['length']} tokens"
        out.append((f"Bytes, {where}", _bytes_rows(found["bytes"], names)))
        out.append((f"Bytes saved, % of full fine-tuning's without the weights, {title}", _saved_bytes(found, names)))
        out.append((f"Time saved, % of the full step's, {title}", _saved_time(found["times"], names)))
        out.append((f"Rank and targets: time of a step / of the full step, {title}", _grid(found, _step_time)))
        out.append((f"Rank and targets: bytes without the weights, MB, {title}", _grid(found, _megabytes)))
    return out


def _bytes_rows(bytes_: dict, names: list[str]) -> list[tuple]:
    rows = [("MB", "trained", *PARTS, "activations, estimated", "peak", "peak, estimated")]
    for arm in ("full", "frozen", *names):
        parts = bytes_[arm]
        guess = parts.get("estimate")
        cells = [_mb(parts[part]) for part in PARTS]
        guesses = [_mb(guess[part]) if guess else "" for part in ("activations", "peak")]
        rows.append((_shown(arm), f"{parts['trainable']:,}", *cells, guesses[0], _mb(parts["peak"]), guesses[1]))
    return rows


def _saved_bytes(found: dict, names: list[str]) -> list[tuple]:
    columns = [saved_bytes(found, name) for name in names]
    whole = without_weights(found["bytes"]["full"])
    rows = [("", *map(_shown, names))]
    rows += [(what, *(f"{100 * column[what] / whole:.2f}" for column in columns)) for what in columns[0]]
    return [*rows, ("together", *(f"{100 * sum(column.values()) / whole:.2f}" for column in columns))]


def _saved_time(times: dict, names: list[str]) -> list[tuple]:
    columns = [saved_time(times, name) for name in names]
    rows = [("", *map(_shown, names))]
    rows += [(what, *(_percent(column[what]) for column in columns)) for what in columns[0]]
    rows.append(("together", *(_percent(shares(times, FULL, f"{name} step")) for name in names)))
    others = {"(forward alone takes)": (FORWARD,), "(gradients to the first layer)": (FROZEN, FORWARD)}
    rows += [(what, *[_percent(shares(times, *arms))] * len(names)) for what, arms in others.items()]
    return rows


def _grid(found: dict, cell: Callable) -> list[tuple]:
    rows = [("r", *TARGETS)]
    return rows + [(r, *(cell(found, adapter(targets, r)) for targets in TARGETS)) for r in found["ranks"]]


def _step_time(found: dict, name: str) -> str:
    middle, low, high = median(shares(found["times"], f"{name} step"))
    return f"{middle:.3f}" if low != low else f"{middle:.3f} [{low:.3f}, {high:.3f}]"


def _megabytes(found: dict, name: str) -> str:
    return _mb(without_weights(found["bytes"][name]))


def without_weights(parts: dict) -> int:
    return sum(parts[part] for part in PARTS if part != "weights")


def _percent(values: list[float]) -> str:
    middle, low, high = (100 * v for v in median(values))
    return f"{middle:.1f}" if low != low else f"{middle:.1f} [{low:.1f}, {high:.1f}]"


def _mb(size: float) -> str:
    return f"{size / 1e6:.2f}"


def _shown(arm: str) -> str:
    named = {adapter(t, r): f"LoRA {t}, r = {r}" for t, r in TAKEN_APART.items()}
    return named.get(arm, arm)


def draw(data: dict) -> dict[str, str]:
    svgs = {}
    for model, found in data.items():
        bars = {
            _shown(arm): {part: found["bytes"][arm][part] for part in PARTS}
            for arm in ("full", "frozen", *(adapter(t, r) for t, r in TAKEN_APART.items()))
        }
        svgs[f"bytes-{model}.svg"] = standalone(memory_bars(bars, f"Bytes of a step, {TITLES[model]}"))
        series = {}
        for targets in TARGETS:
            for r in found["ranks"]:
                middle, low, high = median(shares(found["times"], f"{adapter(targets, r)} step"))
                series.setdefault(targets, []).append((r, middle, (high - low) / 2))
        title = f"Time of a LoRA step, {TITLES[model]}"
        svgs[f"time-{model}.svg"] = standalone(curves(series, "rank r", "time / full step's", title, log_x=True))
    return svgs
