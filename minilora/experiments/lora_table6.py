"""Which rank does LoRA need? On a planted teacher, where the answer is known, and on a task, where it is not.

    minilora experiment lora-table6            # about 7 minutes of one core; offline

The LoRA paper's table 6 (arXiv:2106.09685) at the scale of the embedded model: r from 1 to 64 for W_q, for W_q and W_v,
and for all four attention matrices. The control is planted.py's: a change of rank k is learnt exactly from r = k on.
"""

from minilora.experiments.lora_table5 import on_tasks
from minilora.experiments.planted import Planted
from minilora.experiments.study import Interval, paired
from minilora.viz.charts import standalone
from minilora.viz.intervals import curves

TITLE = "Which rank (LoRA, table 6), with a planted teacher as its control"
SEEDS = 3
PLANTED_K, PLANTED_R = (1, 2, 4, 8), (1, 2, 3, 4, 6, 8, 12)
RANKS = (1, 2, 4, 8, 64)
TARGETS = ("W_q", "W_q, W_v", "W_q, W_k, W_v, W_o")
TASK = "header_json"
RATES = (1e-2, 3e-2)  # at 0.1 all arms of lora-table5 are worse


def measure(seeds: list[int], quick: bool, say) -> dict:
    planted = []
    for k in PLANTED_K:
        teachers = [Planted(k, seed) for seed in seeds]
        for r in PLANTED_R:
            best, trained = [t.best(r) for t in teachers], [t.train(r) for t in teachers]
            planted.append({"k": k, "r": r, "best": best, "trained": trained})
    say("planted teachers: done")
    targets, ranks = (TARGETS[1:2], (1, 8)) if quick else (TARGETS, RANKS)
    arms = {f"{matrices}; {r}": (matrices, r) for matrices in targets for r in ranks}
    found = on_tasks(arms, seeds, quick, say, tasks=(TASK,), rates=RATES)
    return {"planted": planted, "targets": list(targets), "ranks": list(ranks)} | found


# What is shown.


def tables(data: dict) -> list[tuple[str, list[tuple]]]:
    targets, ranks, arms = data["targets"], data["ranks"], data["tasks"][TASK]

    def grid(cell, ranks=ranks) -> list[tuple]:
        head = ("", *(f"r = {r}" for r in ranks))
        return [head, *((m, *(cell(m, arms[f"{m}; {r}"]) for r in ranks)) for m in targets)]

    def more(matrices: str, arm: dict) -> str:
        gain = Interval.of(paired(arm["loss"], arms[f"{matrices}; {ranks[0]}"]["loss"]))
        return gain.text() + " *" * gain.excludes_zero

    return [
        ("Planted teachers: error after training, in proportion to that without an adapter", _planted(data, _error)),
        ("The same, less the closed form's: the largest difference of any seed", _planted(data, _above)),
        (f"{TASK}: held-out exact match", grid(lambda _, arm: Interval.of(arm["exact_match"]).text())),
        (f"{TASK}: held-out loss", grid(lambda _, arm: Interval.of(arm["loss"]).text())),
        (
            f"Loss less that of r = {ranks[0]}, in pairs of a seed (*: 95 % interval without zero)",
            grid(more, ranks[1:]),
        ),
        ("Trained parameters", grid(lambda _, arm: f"{arm['trainable']:,}")),
        ("Learning rates", grid(lambda _, arm: f"{arm['rate']:g}")),
    ]


def _planted(data: dict, cell) -> list[tuple]:
    rows = {(p["k"], p["r"]): p for p in data["planted"]}
    head = ("rank of the change", *(f"r = {r}" for r in PLANTED_R))
    return [head, *((f"k = {k}", *(cell(rows[k, r]) for r in PLANTED_R)) for k in PLANTED_K)]


def _error(row: dict) -> str:
    """Zero but for rounding is told from small."""
    return "< 1e-10" if max(row["trained"]) < 1e-10 else Interval.of(row["trained"]).text()


def _above(row: dict) -> str:
    largest = max(abs(d) for d in paired(row["trained"], row["best"]))
    return f"{largest:.0e}" if largest else "0"


def draw(data: dict) -> dict[str, str]:
    teachers = {}
    for row in data["planted"]:
        error = Interval.of(row["trained"])
        teachers.setdefault(f"k = {row['k']}", []).append((row["r"], error.mean, error.half))
    planted = curves(teachers, "rank r of the adapter", "error / error without", "Teachers whose change has rank k")
    svgs = {"planted.svg": standalone(planted)}
    for figure, words in (("exact_match", "exact match"), ("loss", "loss, nats a token")):
        series = {}
        for matrices in data["targets"]:
            found = [(r, Interval.of(data["tasks"][TASK][f"{matrices}; {r}"][figure])) for r in data["ranks"]]
            series[matrices] = [(r, f.mean, f.half) for r, f in found]
        picture = curves(series, "rank r", f"{words}, held-out", f"Which rank, {TASK}", log_x=True)
        svgs[f"{figure.replace('_', '-')}.svg"] = standalone(picture)
    return svgs
