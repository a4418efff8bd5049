"""The graph has a box for each node, and the stepper's gradients are those of backward."""

from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import minilora as ml
from minilora import ops
from minilora.autograd.stepper import BackwardStepper, graph
from minilora.errors import GraphError


def computation(choices: list[int], seed: int):
    """Leaves w and b, then an op of each number on results so far; a loss that depends on all, and the leaves."""
    rng = np.random.default_rng(seed)
    w, b = (ml.Tensor(rng.standard_normal(shape), requires_grad=True) for shape in ((3, 2), (2,)))
    values = [w, w * b]
    for i in choices:
        x, y = values[i % len(values)], values[(i // 3) % len(values)]
        values.append([x + y, x * y, ops.tanh(x), x - b][i % 4])
    return sum((v.sum() for v in values), ml.Tensor(0.0)), w, b


computations = given(st.lists(st.integers(0, 50), max_size=6), st.integers(0, 5))


@computations
def test_every_node_is_drawn_once_inside_the_picture(choices, seed):
    loss, w, b = computation(choices, seed)
    svg = ElementTree.fromstring(graph(loss, {"w": w, "b": b}))
    _, _, width, height = map(float, svg.get("viewBox").split())
    boxes = [tuple(float(r.get(n)) for n in ("x", "y", "width", "height")) for r in svg.findall("{*}rect")]
    assert len(set(boxes)) == len(boxes) and all(x + w <= width and y + h <= height for x, y, w, h in boxes)
    words = [text.text for text in svg.findall("{*}text")]
    assert words.count("w") == 1 and words.count("b") == 1


@computations
def test_the_steps_are_backwards(choices, seed):
    loss, w, b = computation(choices, seed)
    steppers = BackwardStepper(loss, {"w": w, "b": b})
    assert w.grad is None and b.grad is None
    at_leaves = {id(step.node): step.incoming for step in steppers.steps if step.node.op == "leaf"}
    for i, step in enumerate(steppers.steps):  # nothing is sent to a node that was passed
        assert not {p for p, _ in step.outgoing} & {s.node for s in steppers.steps[: i + 1]}
    loss.backward()
    for leaf in (w, b):
        np.testing.assert_allclose(at_leaves[id(leaf.node)], leaf.grad, rtol=1e-12, atol=1e-12)


def test_in_a_notebook_a_step_is_chosen_without_a_script():
    loss, w, b = computation([], 0)
    steppers = BackwardStepper(loss, {"w": w, "b": b})
    html = steppers._repr_html_()
    assert "<script" not in html and html.count('type="radio"') == len(steppers) == html.count("<svg")
    assert html.count(">next<") == html.count(">previous<") == len(steppers) - 1
    assert "is a leaf" in steppers[-1] and repr(steppers).endswith(f"({len(steppers)} steps)")
    with pytest.raises(IndexError):
        steppers[len(steppers)]
    assert steppers._repr_html_() != html  # two in one notebook do not share their buttons


def test_what_has_no_graph():
    x = ml.Tensor([1.0], requires_grad=True)
    with pytest.raises(GraphError, match="no graph"):
        graph(ml.Tensor([1.0]))
    with pytest.raises(GraphError, match="one number"):
        BackwardStepper(ml.Tensor([1.0, 2.0], requires_grad=True) * 2)
    loss = (x * x).sum()
    loss.backward()
    with pytest.raises(GraphError, match="freed"):
        graph(loss)


def test_names_are_escaped():
    x = ml.Tensor([1.0], requires_grad=True)
    assert "<b>" not in graph((x * x).sum(), {"<b>": x})
