"""The house: which part of minilora stands on which, drawn from the import statements themselves.

    python docs/house.py > house.svg

A part is a package or module beneath minilora/. It imports only from floors below its own; tests/test_site.py holds
that, so that no circle can arise and reading from the ground up meets nothing unknown.
"""

import ast
from collections import defaultdict
from pathlib import Path

from minilora.viz.charts import BLUE, FAINT, GROUND, INK, document, standalone, text

PACKAGE = Path(__file__).parents[1] / "minilora"
FLOORS = [  # from the ground up
    ("what is said", ["errors", "tables"]),
    ("what is stored", ["files"]),
    ("pictures; a GPU in NumPy; text", ["viz", "simt", "data"]),
    ("where arrays live", ["backend"]),
    ("codes; gradients; a run's file", ["quant", "autograd", "config"]),
    ("rules of gradients", ["ops"]),
    ("layers and models", ["nn"]),
    ("low rank; real weights", ["lowrank", "models"]),
    ("adapters", ["lora"]),
    ("what it will need", ["memory"]),
    ("training", ["train"]),
    ("what this machine has", ["doctor"]),
    ("uses", ["experiments", "bench", "course", "demo", "chat"]),
    ("commands", ["commands"]),
    ("what is typed", ["cli"]),
]
HEIGHT, BOX, LABEL, WIDTH = 40, 92, 210, 700


def imports() -> dict[str, set[str]]:
    """Part -> the parts that it imports when it is imported itself; what is imported in a function does not count."""
    found = defaultdict(set)
    for file in PACKAGE.rglob("*.py"):
        part = file.relative_to(PACKAGE).parts[0].removesuffix(".py")
        for node in ast.parse(file.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("minilora."):
                found[part].add(node.module.split(".")[1])
            elif isinstance(node, ast.ImportFrom) and node.module == "minilora":
                found[part] |= {alias.name for alias in node.names}
    return {part: names - {part} for part, names in found.items()}


def lines_of(part: str) -> int:
    files = [PACKAGE / f"{part}.py", *(PACKAGE / part).rglob("*.py"), *(PACKAGE / part).rglob("*.cu")]
    return sum(len(file.read_text(encoding="utf-8").splitlines()) for file in files if file.exists())


def picture() -> str:
    parts, height = [], HEIGHT * len(FLOORS) + 20
    for floor, (words, names) in enumerate(FLOORS):
        y = height - 10 - HEIGHT * (floor + 1)
        parts.append(f'<line x1="0" x2="{WIDTH}" y1="{y + HEIGHT}" y2="{y + HEIGHT}" stroke="{FAINT}"/>')
        parts.append(text(LABEL - 14, y + 26, words, "end"))
        for i, name in enumerate(names):
            x = LABEL + i * (BOX + 6)
            parts.append(f'<rect x="{x}" y="{y + 4}" width="{BOX}" height="{HEIGHT - 8}" rx="3" fill="{GROUND}" '
                         f'stroke="{BLUE}"/>')  # fmt: skip
            parts.append(text(x + BOX / 2, y + 19, name, "middle", INK))
            parts.append(text(x + BOX / 2, y + 32, f"{lines_of(name):,}", "middle", BLUE))
    return document("The house", height, parts, "Parts of minilora by floor, with their lines of code.", WIDTH)


if __name__ == "__main__":
    print(standalone(picture()))
