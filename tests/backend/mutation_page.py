"""The tables of docs/mutation.md, from what a campaign (mutation.py) found.

rows.append(kernel_row("gemv_4bit_v4", mutants, results))          # as what JSON can hold
page = fill(page, sections(found), "mutation")
"""

from collections import Counter
from pathlib import Path

from minilora.bench.kernel_tables import as_json, fill
from minilora.files import atomic_write
from minilora.simt import nvrtc
from minilora.tables import markdown_table

KILLS = ("trap", "difference", "endless")


def kernel_row(kernel: str, mutants: int, results) -> dict:
    """mutants: how many there are; results: of those that were tried."""
    counts = Counter(outcome(result) for result in results)
    return {"kernel": kernel, "mutants": mutants, "tried": len(results)} | {
        name: counts[name] for name in (*KILLS, "stillborn", "equivalent", "survived")
    }


def outcome(result) -> str:
    return "equivalent" if result.outcome == "survived" and result.equivalent else result.outcome


def score(row: dict) -> float:
    """Of the mutants that are not equivalent, the share that is killed."""
    killed = sum(row[name] for name in KILLS)
    return killed / max(1, killed + row["survived"])


def total(rows: list[dict]) -> dict:
    return {"kernel": "all"} | {name: sum(row[name] for row in rows) for name in rows[0] if name != "kernel"}


def line(row: dict) -> str:
    words = (f"{row[name]} {name}" for name in (*KILLS, "stillborn", "equivalent", "survived") if row[name])
    return f"{row['kernel']}: {score(row):.1%} of {row['tried']} (of {row['mutants']}): {', '.join(words)}"


def found(rows: list[dict], results, each: int, seed: int) -> dict:
    """Everything that the page shows. results: of all kernels."""
    kinds, reasons, survivors = {}, Counter(), []
    for result in results:
        mutant, name = result.mutant, outcome(result)
        count = kinds.setdefault(mutant.kind, Counter())
        count["killed" if name in KILLS else name] += 1
        if name == "equivalent":
            reasons[result.why] += 1
        elif name == "survived":
            survivors.append({
                "kernel": str(mutant.variant), "file": mutant.variant.source, "line": mutant.original.line,
                "kind": mutant.kind, "from": str(mutant.original), "to": str(mutant.instruction), "why": result.why,
            })  # fmt: skip
    return {
        "compiler": f"NVRTC {nvrtc.version()}",
        "each": each,
        "seed": seed,
        "kernels": rows,
        "kinds": [{"kind": kind, **kinds[kind]} for kind in sorted(kinds)],
        "survivors": survivors,
        "equivalent": [{"why": why, "mutants": count} for why, count in reasons.most_common()],
    }


def sections(found: dict) -> dict[str, str]:
    """Markdown by name."""
    heads = ["", "mutants", "tried", "killed", "equivalent", "stillborn", "survived", "score"]
    rows = [
        (row["kernel"], row["mutants"], row["tried"], sum(row[name] for name in KILLS), row["equivalent"],
         row["stillborn"], row["survived"], f"{score(row):.1%}")
        for row in [*found["kernels"], total(found["kernels"])]
    ]  # fmt: skip
    kinds = [
        (row["kind"], sum(row.get(name, 0) for name in ("killed", "equivalent", "stillborn", "survived")),
         *(row.get(name, 0) for name in ("killed", "equivalent", "survived")))
        for row in found["kinds"]
    ]  # fmt: skip
    survivors = [
        (f"`{row['kernel']}`", f"{row['file']}:{row['line']}", row["kind"], f"`{row['from']}`", f"`{row['to']}`",
         row["why"] or "**not explained**")
        for row in found["survivors"]
    ]  # fmt: skip
    heads_of_survivors = ["kernel", "line", "change", "from", "to", "why no case notices"]
    how = Counter({name: total(found["kernels"])[name] for name in KILLS})
    return {
        "kernels": markdown_table(heads, rows),
        "how": markdown_table(["killed by", "mutants"], [(HOW[name], how[name]) for name in KILLS]),
        "kinds": markdown_table(["change", "tried", "killed", "equivalent", "survived"], kinds),
        "survivors": markdown_table(heads_of_survivors, survivors, "lllll") if survivors else "None.",
        "equivalent": markdown_table(["why", "mutants"], [(row["why"], row["mutants"]) for row in found["equivalent"]]),
    }


HOW = {
    "trap": "an error that the simulated GPU reports",
    "difference": "a result that is not NumPy's",
    "endless": "a loop that takes eight times the steps",
}


def write(found: dict, json_file=None, markdown=None):
    """The figures, and the page with its tables renewed."""
    if json_file:
        atomic_write(json_file, as_json(found))
    if markdown:
        page = Path(markdown).read_text(encoding="utf-8")
        atomic_write(markdown, fill(page, sections(found), "mutation"))
