"""How much of a matrix do 1, 2, 4, 8, 64 ranks explain? Of an image, of weights, of what fine-tuning changes.

    minilora experiment low-rank               # about 2 minutes of one core; 0.6 GB for SmolLM2's weights

    energy(A, r) = Σ_{i≤r} σi² / Σ σi² = 1 - ‖A - A_r‖² / ‖A‖²       A_r: the nearest matrix of rank r (Eckart & Young)

Each beside normal random numbers in the same shape, of which r ranks also explain more than r / min(m, n). The update
is that of a full fine-tune of the embedded model, ΔW = W' - W of each linear layer. How much of its *use* r ranks have
is another question: `extract_lora` puts A_r in the place of each ΔW, all else as tuned, and the task is scored again.
"""

import copy

import numpy as np

from minilora.data.tasks import load_task
from minilora.errors import FetchError
from minilora.experiments.study import Interval
from minilora.experiments.subjects import SMOLLM2
from minilora.experiments.tuning import score, train
from minilora.lowrank import effective_rank, energy, extract_lora, rank_for_energy, singular_values, stable_rank, svd
from minilora.models.registry import load_model
from minilora.nn import Linear, Module, Parameter
from minilora.viz.charts import standalone
from minilora.viz.intervals import curves
from minilora.viz.pixels import pixels

TITLE = "Low rank: what few ranks explain of an image, of weights, and of a full fine-tune's update"
SEEDS = 3
RANKS = (1, 2, 4, 8, 16, 32, 64)
SIDE = 128  # pixels of the image
TASK, RATES, STEPS, BATCH, EXAMPLES = "header_json", (5e-4, 1e-3, 2e-3), 200, 8, 512
KINDS = "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"


def measure(seeds: list[int], quick: bool, say) -> dict:
    from threadpoolctl import threadpool_limits

    with threadpool_limits(1, user_api="blas"):
        base, tokenizer = load_model("embedded")
        out = {"image": of_image(), "weights": {"embedded": of_weights("The embedded model", linear(base))}}
        out["left_out"] = {}
        try:
            if quick:
                out["left_out"]["smollm2-135m"] = "left out of the quick study"
            else:
                model, _ = load_model("smollm2-135m")
                out["weights"]["smollm2-135m"] = of_weights(SMOLLM2, linear(model))
        except FetchError:
            out["left_out"]["smollm2-135m"] = "not fetched; run: minilora fetch smollm2-135m"
        for name, why in out["left_out"].items():
            say(f"{name}: {why}")
        out["update"] = of_update(base, tokenizer, seeds, quick, say)
    return out


def energies(A) -> list[float]:
    """At each of RANKS; A: a matrix of rank 64 at least, or its singular values."""
    S = A if np.ndim(A) == 1 else singular_values(A)
    return [energy(S, r) for r in RANKS]


def normal(shape: tuple[int, int], seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


# An image.


def image(side: int = SIDE) -> np.ndarray:
    """(side, side), from 0 to 1: a board of squares, whose rank is 2, with a disc and a bar aslant, of many ranks."""
    y, x = np.mgrid[:side, :side] / side  # (side, side) each, from 0 to 1
    board = np.where((np.floor(8 * x) + np.floor(8 * y)) % 2, 0.45, 0.6)
    disc = (x - 0.33) ** 2 + (y - 0.36) ** 2 < 0.2**2
    bar = np.abs(0.8 * x + 0.6 * y - 1.05) < 0.04
    return np.where(bar, 0.0, np.where(disc, 1.0, board))


def of_image() -> dict:
    """Energies of the image less its mean, and of the same pixels in a random order; some of its approximations."""
    A = image()
    mean = A.mean()
    U, S, Vt = svd(A - mean)
    shown = {f"rank {r}": mean + (U[:, :r] * S[:r]) @ Vt[:r] for r in (1, 2, 4, 8, 32)} | {"all 128": A}
    shuffled = np.random.default_rng(0).permutation(A.ravel()).reshape(A.shape)
    return {
        "energy": energies(S), "shuffled": energies(shuffled - mean),
        "numbers": [r * (2 * SIDE + 1) / SIDE**2 for r in RANKS],
        # as it was drawn: another release of zlib packs the same pixels into other bytes
        "picture": str(pixels(shown, "An image, and the nearest ones of lower rank", (0, 1), across=3)),
    }  # fmt: skip


# Weights.


def linear(model: Module) -> dict[str, Parameter]:
    """The linear layers' weights by path, the head left out."""
    found = {path: m.weight for path, m in model.named_modules() if isinstance(m, Linear)}
    return {path: w for path, w in found.items() if not path.endswith("lm_head")}


def of_kind(matrices: dict, kind: str) -> list:
    """One of each layer, from the first on."""
    return [m for path, m in matrices.items() if path.endswith(kind)]


def of_weights(title: str, weights: dict[str, Parameter]) -> dict:
    """kind -> its shape, a random matrix's spectrum in that shape, and each layer's."""
    out = {}
    for kind in KINDS:
        layers = of_kind(weights, kind)
        out[kind] = {
            "shape": list(layers[0].shape), "random": spectrum(normal(layers[0].shape)),
            "layers": [spectrum(w.data) for w in layers],
        }  # fmt: skip
    return {"title": title, "kinds": out}


def spectrum(W: np.ndarray) -> dict:
    S = singular_values(W)
    return {"energy": energies(S), "stable_rank": stable_rank(S), "effective_rank": effective_rank(S),
            "rank90": rank_for_energy(S, 0.9)}  # fmt: skip


# What a full fine-tune changes.


def of_update(base: Module, tokenizer, seeds: list[int], quick: bool, say) -> dict:
    """Energies of ΔW by kind, seed by seed (means over the layers); the task's figures with ΔW of each rank."""
    task = load_task(TASK)
    steps, rates, count = (20, RATES[1:2], 64) if quick else (STEPS, RATES, EXAMPLES)
    held_out, validation = task.held_out[:count], task.validation[: count // 2]

    def tuned(rate: float, seed: int) -> Module:
        model = copy.deepcopy(base)
        train(model, tokenizer, task.train[: steps * BATCH], steps=steps, learning_rate=rate, seed=seed, batch=BATCH)
        return model

    tried = {rate: tuned(rate, seeds[0]) for rate in rates}
    losses = {rate: score(model, tokenizer, validation)["loss"] for rate, model in tried.items()}
    rate = min(losses, key=losses.get)
    out = {
        "steps": steps, "examples": count, "rate": rate, "tried": [{"rate": r, "loss": x} for r, x in losses.items()],
        "relative_size": [], "energy": {kind: [] for kind in KINDS}, "random": {},
        "figures": {name: {"loss": [], "exact_match": []} for name in ("0", *map(str, RANKS), "all", "random")},
    }  # fmt: skip
    for kind in KINDS:
        out["random"][kind] = energies(normal(of_kind(linear(base), kind)[0].shape))
    for seed in seeds:
        model = tried[rate] if seed == seeds[0] else tuned(rate, seed)
        deltas = {path: w.data - linear(base)[path].data for path, w in linear(model).items()}
        norm = np.sqrt(sum((w.data.astype(float) ** 2).sum() for w in linear(base).values()))
        out["relative_size"].append(float(np.sqrt(sum((d.astype(float) ** 2).sum() for d in deltas.values())) / norm))
        for kind in KINDS:
            out["energy"][kind].append(np.mean([energies(d) for d in of_kind(deltas, kind)], axis=0).tolist())
        for name, figures in out["figures"].items():
            found = score(with_rank(name, model, base, seed), tokenizer, held_out)
            for figure, values in figures.items():
                values.append(found[figure])
        shown = ", ".join(f"{name} {f['exact_match'][-1]:.3f}" for name, f in out["figures"].items())
        say(f"seed {seed}, exact match by rank: {shown}")
    return out


def with_rank(name: str, model: Module, base: Module, seed: int) -> Module:
    """`model` with ΔW of rank `name`: "0" for none of it, "all", "random" for normal numbers of each ΔW's norm."""
    rest = copy.deepcopy(model)
    if name == "all":
        return rest
    for path, w in linear(rest).items():
        before, delta = linear(base)[path].data, w.data - linear(base)[path].data
        w.data = before.copy()
        if name == "random":
            noise = normal(delta.shape, seed)
            w.data += noise * (np.linalg.norm(delta) / np.linalg.norm(noise))
    return rest if name in ("0", "random") else extract_lora(model, rest, int(name))


# What is shown.

FIGURES = {  # of a spectrum
    "energy at 8, %": lambda found: 100 * found["energy"][RANKS.index(8)],
    "at 64, %": lambda found: 100 * found["energy"][RANKS.index(64)],
    "stable rank": lambda found: found["stable_rank"],
    "effective rank": lambda found: found["effective_rank"],
    "ranks for 90 %": lambda found: found["rank90"],
}


def tables(data: dict) -> list[tuple[str, list[tuple]]]:
    ranks = ("", *map(str, RANKS))
    shown = data["image"]
    out = [("The image: energy, %, and the numbers that U, S and V hold, % of its pixels", [
        ranks, ("the image", *map(percent, shown["energy"])), ("its pixels shuffled", *map(percent, shown["shuffled"])),
        ("numbers", *map(percent, shown["numbers"])),
    ])]  # fmt: skip
    for model in data["weights"].values():
        rows = [("", "shape", *(cell for name in FIGURES for cell in (name, "random")))]
        for kind, found in model["kinds"].items():
            cells = []
            for figure in FIGURES.values():
                values = [figure(layer) for layer in found["layers"]]
                cells += [f"{np.mean(values):.1f}", f"{figure(found['random']):.1f}"]
            rows.append((kind, " x ".join(map(str, found["shape"])), *cells))
        out.append((f"{model['title']}: its weights, means over {len(found['layers'])} layers", rows))
    update = data["update"]
    heading = f"ΔW of a full fine-tune ({len(update['relative_size'])} seeds, {update['steps']} steps): energy, %"
    rows = [ranks]
    for kind, seeds in update["energy"].items():
        rows.append((kind, *(Interval.of([100 * s[i] for s in seeds]).text(1) for i in range(len(RANKS)))))
        rows.append(("  random", *map(percent, update["random"][kind])))
    out.append((heading, rows))
    rows, whole = [("rank of ΔW", "energy, %", "loss", "exact match", "share of the gain, %")], update["figures"]["all"]
    none = np.mean(update["figures"]["0"]["exact_match"])
    for name, f in update["figures"].items():
        explained = mean_energy(update, RANKS.index(int(name))).text(1) if name.isdigit() and int(name) else ""
        gained = (np.mean(f["exact_match"]) - none) / ((np.mean(whole["exact_match"]) - none) or 1)
        label = {"0": "none", "random": "random, all", "all": "all"}.get(name, name)
        rows.append((label, explained, Interval.of(f["loss"]).text(4), Interval.of(f["exact_match"]).text(),
                     f"{100 * gained:.0f}"))  # fmt: skip
    over = f"{update['examples']} held-out examples, everything but linear weights as tuned"
    out.append((f"The task with ΔW of less rank, {over}", rows))
    head = tuple(f"{tried['rate']:g}" for tried in update["tried"])
    rows = [("", *head), ("validation loss", *(f"{tried['loss']:.4f}" for tried in update["tried"]))]
    return [*out, ("The fine-tune's learning rate, the first seed", rows)]


def percent(value: float) -> str:
    return f"{100 * value:.1f}"


def mean_energy(update: dict, i: int) -> Interval:
    """Over all layers (each kind has as many), at RANKS[i], in %: over the seeds."""
    return Interval.of(100 * np.mean([[seed[i] for seed in seeds] for seeds in update["energy"].values()], axis=0))


def draw(data: dict) -> dict[str, str]:
    none, update = float("nan"), data["update"]
    kinds = data["weights"]["embedded"]["kinds"].values()
    whole = [mean_energy(update, i) for i in range(len(RANKS))]
    series = {
        "ΔW": [(r, e.mean, e.half) for r, e in zip(RANKS, whole, strict=True)],
        "W": [(r, 100 * np.mean([x["energy"][i] for k in kinds for x in k["layers"]]), none)
              for i, r in enumerate(RANKS)],
        "random": [(r, 100 * np.mean([k["random"]["energy"][i] for k in kinds]), none) for i, r in enumerate(RANKS)],
    }  # fmt: skip
    energy_of = curves(series, "rank r", "energy, %", "What r ranks explain, the embedded model's linear layers", True)
    match = {name: Interval.of(f["exact_match"]) for name, f in update["figures"].items()}
    points = {"ΔW of rank r": [(r, match[str(r)].mean, match[str(r)].half) for r in RANKS]}
    levels = {"all of ΔW": match["all"].mean, "none of it": match["0"].mean}
    use = curves(points, "rank r", "exact match", "The task with ΔW of rank r", True, levels)
    svgs = {"image.svg": data["image"]["picture"], "energy.svg": energy_of, "exact-match.svg": use}
    if "smollm2-135m" in data["weights"]:
        found = data["weights"]["smollm2-135m"]["kinds"]
        for part, kinds in (("attention", KINDS[:4]), ("mlp", KINDS[4:])):
            series = {
                kind: [(i, layer["effective_rank"] / found[kind]["random"]["effective_rank"], none)
                       for i, layer in enumerate(found[kind]["layers"])] for kind in kinds
            }  # fmt: skip
            title, y = f"SmolLM2's layers, {part}", "effective rank, random = 1"
            svgs[f"smollm2-{part}.svg"] = curves(series, "layer", y, title)
    return {file: standalone(svg) for file, svg in svgs.items()}
