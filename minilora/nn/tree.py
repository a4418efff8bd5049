"""A model's modules as a tree: printed as PyTorch prints one, and as rows for a picture (viz/tree.py).

PeftModel(
  (base_model): LoraModel(
    (model): CausalLM(
      (lm_head): Linear(in_features=64, out_features=256, bias=False)

Blocks of a list that look the same are shown once, with their numbers.
"""

from dataclasses import dataclass, field
from itertools import groupby

from minilora.nn.module import Module, Parameter
from minilora.viz.tree import Row, svg


@dataclass
class Node:
    """kind: the class; sizes: what it prints in brackets, if it has no parts; counts by state, shared weights once."""

    kind: str
    sizes: str = ""
    parts: list[tuple[str, "Node"]] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=lambda: {"frozen": 0, "quantized": 0, "trainable": 0})
    tied: bool = False

    def text(self, times: int = 1) -> str:
        head = f"{times} x {self.kind}" if times > 1 else self.kind
        if not self.parts:
            return f"{head}({self.sizes})"
        lines = [f"({name}): {text}" for name, text in self.lines()]
        return f"{head}(\n" + "\n".join("  " + line.replace("\n", "\n  ") for line in lines) + "\n)"

    def lines(self) -> list[tuple[str, str]]:
        if self.kind != "ModuleList":
            return [(name, part.text()) for name, part in self.parts]
        return [(name, nodes[0].text(len(nodes))) for name, nodes in self.runs()]

    def runs(self) -> list[tuple[str, list["Node"]]]:
        """Neighbours that print the same, under "first-last"."""
        runs = [list(run) for _, run in groupby(self.parts, lambda part: part[1].text())]
        return [(run[0][0] + (f"-{run[-1][0]}" if len(run) > 1 else ""), [node for _, node in run]) for run in runs]


def repr_svg(module: Module) -> str:
    """The tree as SVG: frozen, quantized and trained parts in their colours."""
    name = type(module).__name__
    return svg(list(_rows(name, [tree(module)], 0)), f"The modules of {name}")


def tree(module: Module, seen: set[int] | None = None) -> Node:
    """The module and its parts as plain data."""
    seen = set() if seen is None else seen
    node = Node(module.shown_as or type(module).__name__, module.extra_repr())
    for name, value in vars(module).items():
        if isinstance(value, Parameter):
            node.tied |= id(value) in seen
            node.counts["trainable" if value.requires_grad else "frozen"] += value.size * (id(value) not in seen)
            seen.add(id(value))
        elif isinstance(value, Module) and not (name == "lora_magnitude_vector" and not len(value)):
            node.parts.append((name, tree(value, seen)))
        elif isinstance(value, list) and value and all(isinstance(v, Module) for v in value):
            parts = [(str(i), tree(part, seen)) for i, part in enumerate(value)]
            node.parts.append((name, _sum(Node("ModuleList", parts=parts))))
        elif name == "quantized_weight":
            node.counts["quantized"] += value.size
        elif name == "dropout" and isinstance(value, dict):  # of the adapters of a layer, by name
            drops = [(n, Node("Dropout", f"p={p:g}") if p else Node("Identity")) for n, p in value.items()]
            node.parts.append(("lora_dropout", Node("ModuleDict", parts=drops)))
    return _sum(node)


def _sum(node: Node) -> Node:
    for _, part in node.parts:
        for state, n in part.counts.items():
            node.counts[state] += n
    return node


def _together(nodes: list[Node]) -> Node:
    """Nodes that look the same as one, their counts added."""
    alike = zip(*(node.parts for node in nodes), strict=True)
    parts = [(same[0][0], _together([part for _, part in same])) for same in alike]
    counts = {state: sum(n.counts[state] for n in nodes) for state in nodes[0].counts}
    return Node(nodes[0].kind, nodes[0].sizes, parts, counts, nodes[0].tied)


def _rows(name: str, nodes: list[Node], depth: int):
    """Lines of the picture for `nodes`, which look the same. What is frozen throughout is one line."""
    node, times = _together(nodes), len(nodes)
    states = [state for state, n in node.counts.items() if n]
    text = node.kind if node.parts else f"{node.kind}({node.sizes})"
    if node.kind == "ParameterDict":
        text = node.sizes.replace("Parameter containing: ", "").strip()
    text = (f"{times} x " if times > 1 else "") + text + (" (tied)" if node.tied else "")
    state = states[0] if len(states) == 1 else "" if states else "frozen"
    yield Row(depth, name, text if depth else "", state, sum(node.counts.values()), node.counts["trainable"])
    if state in ("", "trainable") or not depth:
        for part_name, part in node.parts if node.kind != "ModuleList" else []:
            if part.kind == "ModuleDict":  # one line for each adapter, none for the dict
                for entry, inner in part.parts:
                    yield from _rows(f"{part_name}.{entry}", [inner], depth + 1) if sum(inner.counts.values()) else ()
            elif sum(part.counts.values()) or part.tied:
                yield from _rows(part_name, [part], depth + 1)
        for part_name, parts in node.runs() if node.kind == "ModuleList" else []:
            yield from _rows(part_name, parts, depth + 1)
