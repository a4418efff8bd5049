"""The demo: QLoRA teaches the embedded model a task in under a minute, and a page shows what happened."""

import json
from pathlib import Path

import yaml

from minilora.config import load_recipe
from minilora.files import atomic_write
from minilora.models.registry import EMBEDDED, load_model
from minilora.quant import CODES, quantize
from minilora.tables import format_table
from minilora.train.distributed import processes
from minilora.train.run import RunResult, run
from minilora.viz.charts import loss_curve, weight_histogram
from minilora.viz.report import report_page

COMPARISON = EMBEDDED / "comparison.json"  # written by `minilora demo --compare` on the authors' machine
VARIANTS = {
    "LoRA on the float base": {"adapter": "lora", "load_in_4bit": False},
    "full fine-tuning": {"adapter": "full", "load_in_4bit": False, "learning_rate": 2e-3},
    "from random weights": {"adapter": "full", "load_in_4bit": False, "learning_rate": 2e-3, "random_init": True},
}


def run_recipe(name: str, overrides: dict, say=print, overwrite=False) -> RunResult:
    """Run a recipe, write report.html and result.json beside its adapter, and say the figures."""
    config = load_recipe(name, overrides)
    result = run(config, say=say, overwrite=overwrite)
    folder = Path(config.output_dir)
    if not processes().first:
        return result
    atomic_write(folder / "report.html", _page(name, result))
    figures = {"before": result.before, "after": result.after, "seconds": result.training.seconds,
               "trainable": result.trainable, "bits_per_weight": result.bits_per_weight}  # fmt: skip
    atomic_write(folder / "result.json", json.dumps(figures, indent=2) + "\n")
    say(format_table(result_rows(result)))
    for prompt, expected, before, after in result.generations:
        say(f"\n{prompt.strip()}\n  before:   {before[:120]!r}\n  after:    {after!r}\n  expected: {expected!r}")
    what = "model" if config.adapter in ("full", "relora") else "adapter"
    say(f"\nwrote {folder}/ ({what}, metrics.jsonl, result.json, report.html)")
    return result


def compare(overrides: dict, say=print) -> dict:
    """The demo's variants, trained as long: name -> held-out loss, exact match and seconds."""
    figures, folder = {}, Path(overrides.get("output_dir") or load_recipe("demo").output_dir)
    for name, changes in VARIANTS.items():
        say(f"\n== {name}")
        place = str(folder / name.replace(" ", "-"))
        result = run(load_recipe("demo", overrides | changes | {"output_dir": place}), say=say, overwrite=True)
        figures[name] = {
            "loss": round(result.after["loss"], 4),
            "exact_match": round(result.after["exact_match"], 4),
            "seconds": round(result.training.seconds, 1),
        }
    atomic_write(folder / "comparison.json", json.dumps(figures, indent=2) + "\n")
    say("\n" + format_table(comparison_rows(figures)))
    return figures


def result_rows(result: RunResult) -> list[tuple]:
    before, after, rows = result.before, result.after, [("", "before", "after")]
    if before:
        rows += [
            ("held-out loss (nats per token)", f"{before['loss']:.3f}", f"{after['loss']:.3f}"),
            (f"held-out exact match, {result.tested} examples", f"{before['exact_match']:.3f}",
             f"{after['exact_match']:.3f}"),
            *[(f"  rule: {rule}", "", f"{score:.3f}") for rule, score in result.task.trivial_rules().items()],
        ]  # fmt: skip
    elif measured := [e["eval_loss"] for e in result.training.log if "eval_loss" in e]:
        rows.append(("validation loss (nats per token)", "", f"{measured[-1]:.3f}"))
    return [
        *rows,
        ("bits per weight of the linear layers", "32", f"{result.bits_per_weight:.4g}"),
        ("weights in memory (MB)", f"{result.float_bytes / 1e6:.2f}", f"{result.model_bytes / 1e6:.2f}"),
        ("trainable parameters", "", f"{result.trainable:,} of {result.total:,}"),
        ("training time (s)", "", f"{result.training.seconds:.1f}"),
    ]


def comparison_rows(figures: dict) -> list[tuple]:
    rows = [(n, f"{f['loss']:.3f}", f"{f['exact_match']:.3f}", f"{f['seconds']:.0f}") for n, f in figures.items()]
    return [("as many steps of", "held-out loss", "exact match", "seconds"), *rows]


def stored_comparison() -> dict:
    """The authors' figures of the variants; {} where there are none."""
    return json.loads(COMPARISON.read_text()) if COMPARISON.exists() else {}


def _page(name: str, result: RunResult) -> str:
    tables = [("What was learned", result_rows(result))]
    if name == "demo" and stored_comparison():
        tables.append(("For comparison, as measured by the authors", comparison_rows(stored_comparison())))
    figures = [(loss_curve(result.training.log), "Loss at each step, and on the validation examples.")]
    model, _ = load_model(result.config.base_model)
    path = next(
        (p for p in model.state_dict() if p.endswith(f"{model.config.num_hidden_layers // 2}.mlp.up_proj.weight")), None
    )
    if path:
        weight = model.state_dict()[path]
        full = weight.reshape(-1)[: weight.size // 64 * 64].reshape(-1, 64)
        scaled = full / quantize(full, "nf4").absmax[:, None]
        caption = f"{path.removesuffix('.weight')}: its weights and NF4's sixteen levels."
        figures.append((weight_histogram(scaled, CODES["nf4"]), caption))
    learned = (
        f"task {result.task.name}: split by file; held-out files are never trained on"
        if result.task
        else ", ".join(d.path for d in result.config.datasets)
    )
    recipe = yaml.safe_dump(result.config.model_dump(exclude_none=True), sort_keys=False)
    subtitle = f"{result.config.base_model}, {learned}."
    return report_page(f"minilora: {name}", subtitle, tables, figures, result.generations, recipe)
