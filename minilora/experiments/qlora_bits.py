"""Quality against the bits that a model takes, by code and blocksize: which code buys most with a bit?

    minilora experiment qlora-bits            # about 10 minutes of one core, most of it for SmolLM2; 1.5 GB

The QLoRA paper's figure 3 (arXiv:2305.14314) on models that fit here. A model's linear weights are replaced by what
their codes stand for (quant_error.py's `measure`), and the model is run on texts. What it costs is a difference between
this model and the one that is not quantized, text by text, so that a text's own difficulty cancels; the intervals are
over the texts, which take the place of seeds: nothing here is drawn.

    bits a parameter of the model = (bits of the quantized weights + 16 * other parameters) / all parameters
"""

import dataclasses
from collections.abc import Callable

import numpy as np

from minilora.errors import FetchError
from minilora.experiments import subjects
from minilora.experiments.quant_error import built_in
from minilora.experiments.quant_error import measure as measured
from minilora.experiments.quant_tables import alike, figure, grid
from minilora.experiments.study import Interval, paired
from minilora.experiments.subjects import Subject
from minilora.models.registry import load_model
from minilora.viz.charts import standalone
from minilora.viz.intervals import curves

TITLE = "Quality against total bits, by code and blocksize (QLoRA, figure 3)"
SEEDS = 1
BLOCKSIZES, FEW = (32, 64, 128, 256, 1024), (64, 256, 1024)
NAT, COSINE = "loss added, nats a token", "1 - cosine"
DIGITS = {NAT: 4, COSINE: 5}
DRAWN = "fp4", "e2m1", "int4", "nf4", "nf4+double"  # linear16's worst are far above, int8's bits far to the right


def embedded(quick: bool) -> Subject:
    model, tokenizer = load_model("embedded")
    ids = subjects.documents(tokenizer, 8 if quick else 64, 256, "files")
    texts = f"the first 256 tokens of {len(ids)} held-out files"
    return subjects.language_model("The embedded model", model, ids, texts, (64, 1024) if quick else BLOCKSIZES)


def minilm(quick: bool) -> Subject:
    return dataclasses.replace(subjects.minilm(quick, 0), blocksizes=BLOCKSIZES)


def smollm2(quick: bool) -> Subject:
    model, tokenizer = load_model("smollm2-135m")
    ids = subjects.documents(tokenizer, 24, 192, "topics")
    texts = f"the first 192 tokens of {len(ids)} of pydoc's topics"
    return subjects.language_model(subjects.SMOLLM2, model, ids, texts, FEW)


MODELS: dict[str, Callable[[bool], Subject]] = {"embedded": embedded, "minilm-l6": minilm, "smollm2-135m": smollm2}


def measure(seeds: list[int], quick: bool, say) -> dict:
    out = {"models": {}, "left_out": {}}
    for name, make in MODELS.items():
        if quick and name != "embedded":
            out["left_out"][name] = "left out of the quick study"
            continue
        try:
            out["models"][name] = study(make(quick), say)
        except FetchError:
            out["left_out"][name] = f"not fetched; run: minilora fetch {name}"
            say(f"{name}: {out['left_out'][name]}")
    return out


def study(subject: Subject, say=lambda line: None) -> dict:
    """One model with every code in every blocksize: plain data. "cost" has a figure for each text."""
    subject = dataclasses.replace(subject, quality=lambda: subject.by_text().tolist())
    size, before = sum(p.size for p in subject.weights), subject.quality()
    total = size + subject.others
    out = {
        "title": subject.title, "texts": subject.texts, "what": COSINE if subject.measure == COSINE else NAT,
        "weights": size, "parameters": total, "before": _short(before), "rows": [],
    }  # fmt: skip
    for quantizer in built_in(subject.blocksizes):
        row, _ = measured(subject, quantizer)
        cost = paired(row["quality"], before)
        out["rows"].append({
            "quantizer": row["quantizer"], "blocks": row["blocks"], "bits": row["bits"],
            "model_bits": (row["bits"] * size + 16 * subject.others) / total,
            "relative_error": row["relative_error"], "cost": _short(cost),
        })  # fmt: skip
        say(f"{subject.title}: {row['quantizer']}, {row['blocks']}: {np.mean(cost):.4g}")
    return out


def _short(values: list[float]) -> list[float]:
    return [float(f"{x:.5g}") for x in values]


def front(rows: list[dict]) -> list[dict]:
    """The rows that no other undercuts, from the fewest bits on: each costs less than all before it (Pareto's)."""
    best, out = np.inf, []
    for row in sorted(rows, key=lambda row: (row["model_bits"], np.mean(row["cost"]))):
        if np.mean(row["cost"]) < best:
            best = np.mean(row["cost"])
            out.append(row)
    return out


# What is shown.


def tables(data: dict) -> list[tuple[str, list[tuple]]]:
    out = []
    for model in data["models"].values():
        rows, title, digits = model["rows"], model["title"], DIGITS[model["what"]]
        before = Interval.of(model["before"])
        known = f"; not quantized {before}, perplexity {np.exp(before.mean):.2f}" if model["what"] == NAT else ""
        found = grid(rows, lambda row, digits=digits: Interval.of(row["cost"]).text(digits))
        out.append((f"{title}: {model['what']}, over {model['texts']}{known}", found))
        nf4 = {row["blocks"]: row for row in rows if row["quantizer"] == "nf4"}
        others = [row for row in rows if row["blocks"] in nf4 and row["quantizer"] != "nf4"]
        against = grid(others, lambda row, nf4=nf4, digits=digits: _difference(row, nf4[row["blocks"]], digits))
        out.append((f"{title}: more than nf4's in the same blocksize, in pairs of a text", against))
        out.append((f"{title}: bits a parameter of the model", alike(grid(rows, figure("model_bits")))))
        out.append((f"{title}: the Pareto front", _front_table(model)))
    return out


def _difference(row: dict, other: dict, digits: int) -> str:
    """*: the 95 % interval is without zero."""
    difference = Interval.of(paired(row["cost"], other["cost"]))
    return difference.text(digits) + " *" * difference.excludes_zero


def _front_table(model: dict) -> list[tuple]:
    head = "", "blocks", "bits a weight", "bits a parameter", "MB", model["what"], "change from the one above"
    out, above, digits = [head], None, DIGITS[model["what"]]
    for row in front(model["rows"]):
        megabytes = row["model_bits"] * model["parameters"] / 8e6
        figures = f"{row['bits']:.3f}", f"{row['model_bits']:.3f}", f"{megabytes:.4g}"
        change = _difference(row, above, digits) if above else ""
        out.append((row["quantizer"], row["blocks"], *figures, Interval.of(row["cost"]).text(digits), change))
        above = row
    return out


def draw(data: dict) -> dict[str, str]:
    svgs = {}
    for name, model in data["models"].items():
        series = {code: [] for code in DRAWN}
        for row in model["rows"]:
            if row["quantizer"] in DRAWN:
                cost = Interval.of(row["cost"])
                series[row["quantizer"]].append((row["model_bits"], cost.mean, cost.half))
        series = {code: sorted(points) for code, points in series.items()}
        log = all(mean > 0 for points in series.values() for _, mean, _ in points)
        picture = curves(series, "bits a parameter of the model", model["what"], model["title"], log_y=log)
        svgs[f"{name}.svg"] = standalone(picture)
    return svgs
