"""A computation's graph as a picture, and the backward pass through it, step by step.

    names = {"w": w, "b": b}
    graph(loss, names)                     # what the tape holds: a box for each op and each leaf
    steps = BackwardStepper(loss, names)   # in a notebook: pictures with next and previous
    steps[2]                               # the third alone

Only what needs a gradient is in the graph: a frozen input of an op has no box. The stepper computes the gradients as
Tensor.backward does, but keeps the graph and leaves every .grad as it is.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from minilora.autograd.tensor import Node, Tensor, _count_uses, unbroadcast
from minilora.errors import GraphError


@dataclass(frozen=True)
class Step:
    """A node, the gradient that has arrived there, and what each parent receives from it; at a leaf it stays."""

    node: Node
    incoming: np.ndarray
    outgoing: list[tuple[Node, np.ndarray]]


def graph(result: Tensor, names: Mapping[str, Tensor] | None = None):
    """A Picture of the graph behind `result`, leaves to the left. names: of leaves, for their boxes.

    Raises GraphError for a tensor without a graph, and for one whose graph was freed by backward.
    """
    from minilora.viz.graph import draw

    return draw(_boxes(_nodes(result), names or {}), "A computation's graph")


class BackwardStepper(Sequence):
    """The steps of result.backward(), each a Picture of the graph and of what happens at one node."""

    def __init__(self, result: Tensor, names: Mapping[str, Tensor] | None = None):
        """Raises GraphError as `graph` does, and for a result of more than one element."""
        if result.size != 1:
            raise GraphError(f"backward starts at one number; this has shape {result.shape}")
        self.nodes = _nodes(result)
        self.boxes = _boxes(self.nodes, names or {})
        self.steps = _backward(self.nodes, np.ones_like(result.data))

    def __len__(self) -> int:
        return len(self.steps)

    def __getitem__(self, i: int):
        from minilora.viz.graph import draw

        step, number = self.steps[i], {node: n for n, node in enumerate(self.nodes)}
        label = {node: box.label for node, box in zip(self.nodes, self.boxes, strict=True)}
        here = label[step.node]
        lines = [f"arrives at {here}:  {_numbers(step.incoming)}"]
        lines += [f"sent to {label[parent]}:  {_numbers(share)}" for parent, share in step.outgoing]
        if not step.outgoing:
            lines.append(f"{here} is a leaf: this is its gradient")
        done = {number[before.node] for before in self.steps[: range(len(self))[i]]}
        sent = {number[parent] for parent, _ in step.outgoing}
        return draw(self.boxes, f"Backward through {here}", lines, number[step.node], done, sent)

    def _repr_html_(self) -> str:
        """All steps, one at a time."""
        from minilora.viz.picture import pages

        return pages(list(self))._repr_html_()

    def __repr__(self) -> str:
        return f"BackwardStepper({len(self)} steps)"


def _nodes(result: Tensor) -> list[Node]:
    """Every node of the graph, each after all that it was computed from."""
    if result.node is None:
        raise GraphError("this tensor has no graph: nothing that it was computed from requires a gradient")
    order, seen, stack = [], set(), [(result.node, False)]
    while stack:
        node, done = stack.pop()
        if done:
            order.append(node)
        elif node.freed:
            raise GraphError("this graph was freed by backward(); compute the result again, and look at it before")
        elif node not in seen:
            seen.add(node)
            stack.append((node, True))
            stack.extend((parent, False) for parent, _ in node.parents)
    return order


def _boxes(nodes: list[Node], names: Mapping[str, Tensor]):
    from minilora.viz.graph import Box

    named = {tensor.node: name for name, tensor in names.items()}
    number = {node: i for i, node in enumerate(nodes)}
    return [
        Box(
            named.get(node, node.op),
            " × ".join(map(str, node.shape)) or "a number",
            tuple(number[parent] for parent, _ in node.parents),
        )
        for node in nodes
    ]


def _backward(nodes: list[Node], gradient: np.ndarray) -> list[Step]:
    """The walk of Tensor.backward, recorded: a node's turn comes when all its uses have sent their share."""
    uses = _count_uses(nodes[-1])
    arrived, ready, steps = {nodes[-1]: gradient}, [nodes[-1]], []
    while ready:
        node = ready.pop()
        shares = [(parent, unbroadcast(vjp(arrived[node]), parent.shape)) for parent, vjp in node.parents]
        steps.append(Step(node, arrived[node], shares))
        for parent, share in shares:
            arrived[parent] = arrived[parent] + share if parent in arrived else share
            uses[parent] -= 1
            if not uses[parent]:
                ready.append(parent)
    return steps


def _numbers(array: np.ndarray) -> str:
    if array.size > 8:
        return f"{' × '.join(map(str, array.shape))} numbers from {array.min():.3g} to {array.max():.3g}"
    return " ".join(np.array2string(array, precision=3, suppress_small=True).split()).replace("[ ", "[")
