"""Homework 1, autograd: rules of gradients, held to complex-step derivatives, and the walk that applies them."""

import numpy as np

from minilora.course.check import Problem, Wrong, equal, pulled_back


class Node:
    """A value computed from parents. vjps: for each parent a function from this node's gradient to the parent's share.

    needs: whether a gradient is wanted of it or of anything it was computed from.
    """

    def __init__(self, value, parents=(), vjps=(), needs=None):
        self.value, self.parents, self.vjps, self.grad = value, tuple(parents), tuple(vjps), None
        self.needs = any(p.needs for p in self.parents) if needs is None else needs


# unbroadcast(g, shape)

unbroadcast = Problem("unbroadcast", 3)


def _copied(rng, size):
    full = tuple(int(n) for n in rng.integers(1, 3 + size // 3, rng.integers(1, 4)))
    small = [1 if rng.random() < 0.5 else n for n in full][rng.integers(0, len(full)) :]
    return {"g": rng.integers(-3, 4, full).astype(float), "shape": tuple(small)}


@unbroadcast.law(
    "each number's gradient is the sum over its copies", draw=_copied,
    means="axes that were added in front, and axes of length 1 that were stretched, are both to be summed over",
)  # fmt: skip
def _(answer, g, shape):
    source = np.arange(int(np.prod(shape))).reshape(shape)
    expected = np.zeros(source.size)
    np.add.at(expected, np.broadcast_to(source, g.shape).ravel(), g.ravel())
    equal(answer(g, shape), expected.reshape(shape))


@unbroadcast.law(
    "where nothing was copied, nothing changes",
    draw=lambda rng, size: {"g": rng.standard_normal((size, 2)), "shape": (size, 2)},
    means="only axes whose length differs are summed over",
)  # fmt: skip
def _(answer, g, shape):
    equal(answer(g, shape), g)


# divide_vjp(a, b, g) -> (ga, gb)

divide_vjp = Problem("divide_vjp", 3)


def _quotient(rng, size, same=False):
    shape = tuple(int(n) for n in rng.integers(1, 2 + size // 2, 2))
    other = shape if same else ((shape[1],), (shape[0], 1), shape)[rng.integers(3)]
    b = rng.choice([-2.0, -1.0, 0.5, 2.0], other)
    return {"a": rng.integers(-3, 4, shape).astype(float), "b": b, "g": rng.integers(-2, 3, shape).astype(float)}


for which, name in enumerate("ab"):

    @divide_vjp.law(
        f"the gradient of {name} in a / b", draw=lambda rng, size: _quotient(rng, size, same=True),
        means="d(a / b) is da / b - a db / b^2",
    )  # fmt: skip
    def _(answer, a, b, g, which=which):
        equal(answer(a, b, g)[which], pulled_back(np.divide, g, a, b, i=which))


@divide_vjp.law(
    "each gradient has the shape of its input, also where that was broadcast", draw=_quotient,
    means="the result still has to go through unbroadcast",
)  # fmt: skip
def _(answer, a, b, g):
    for i, x in enumerate(answer(a, b, g)):
        equal(x, pulled_back(np.divide, g, a, b, i=i))


# matmul_vjp(a, b, g) -> (ga, gb)

matmul_vjp = Problem("matmul_vjp", 3)


def _product(rng, size):
    n, k, m = (int(x) for x in rng.integers(1, 1 + size, 3))
    a, b, g = (rng.integers(-2, 3, shape).astype(float) for shape in ((n, k), (k, m), (n, m)))
    return {"a": a, "b": b, "g": g}


for which, name in enumerate("ab"):

    @matmul_vjp.law(
        f"the gradient of {name} in a @ b", draw=_product,
        means="write the shapes down: of the products of g with the other input, only one has the right shape",
    )  # fmt: skip
    def _(answer, a, b, g, which=which):
        equal(answer(a, b, g)[which], pulled_back(np.matmul, g, a, b, i=which))


# softmax_vjp(y, g), y = softmax(x) over the last axis

softmax_vjp = Problem("softmax_vjp", 4)


def softmax(x):
    e = np.exp(x - np.real(x).max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def _rows(rng, size):
    shape = (int(rng.integers(1, 1 + size)), int(rng.integers(1, 2 + size)))
    return rng.integers(-2, 3, shape).astype(float), rng.integers(-2, 3, shape).astype(float)


def _softmax_case(rng, size):
    x, g = _rows(rng, size)
    return {"x": x, "g": g}


@softmax_vjp.law(
    "it is the gradient of softmax", draw=_softmax_case,
    means="every output depends on every input of its row: y (g - the row's sum of g y)",
)  # fmt: skip
def _(answer, x, g):
    equal(answer(softmax(x), g), pulled_back(softmax, g, x, i=0))


@softmax_vjp.law(
    "a row's gradient sums to 0, as adding one number to all of a row changes nothing", draw=_softmax_case,
    means="the sum of g y is missing, or was taken over the whole array instead of each row",
)  # fmt: skip
def _(answer, x, g):
    equal(np.asarray(answer(softmax(x), g)).sum(-1), np.zeros(len(x)))


# cross_entropy_grad(logits, targets): of the mean loss over rows

cross_entropy_grad = Problem("cross_entropy_grad", 3)


def _classes(rng, size):
    logits, _ = _rows(rng, size)
    return {"logits": logits, "targets": rng.integers(0, logits.shape[1], len(logits))}


def _mean_loss(targets):
    return lambda x: -np.log(softmax(x)[np.arange(len(x)), targets]).mean()


@cross_entropy_grad.law(
    "it is the gradient of the mean of -log p(target)", draw=_classes,
    means="softmax minus one at the target; the mean divides it by the number of rows",
)  # fmt: skip
def _(answer, logits, targets):
    equal(answer(logits, targets), pulled_back(_mean_loss(targets), np.float64(1), logits, i=0))


@cross_entropy_grad.law(
    "large logits give no NaN", draw=lambda rng, n: {k: v * (1000 if k == "logits" else 1)
                                                     for k, v in _classes(rng, n).items()},
    means="exp overflows: subtract the row's largest logit first",
)  # fmt: skip
def _(answer, logits, targets):
    got = np.asarray(answer(logits, targets))
    if not np.isfinite(got).all():
        raise Wrong(f"the gradient has entries that are not finite: {got}")
    hot = np.eye(logits.shape[1])[targets]
    equal(got, (softmax(logits) - hot) / len(logits))


# rms_norm_vjp(x, g, eps): y = x / sqrt(mean(x^2) + eps) over the last axis

rms_norm_vjp = Problem("rms_norm_vjp", 3)


def _norm(eps):
    return lambda x: x / np.sqrt((x * x).mean(-1, keepdims=True) + eps)


@rms_norm_vjp.law(
    "it is the gradient of x / sqrt(mean(x^2) + eps)",
    draw=lambda rng, size: {**_softmax_case(rng, size), "eps": float(rng.choice([1.0, 0.1]))},
    means="the norm depends on every x of the row too: g / rms - x mean(g x) / rms^3, with eps inside rms",
)  # fmt: skip
def _(answer, x, g, eps):
    equal(answer(x, g, eps), pulled_back(_norm(eps), g, x, i=0))


# backward(loss): sets .grad of every node that needs one

backward = Problem("backward", 6)


def _graph(rng, size):
    """For each node after the first: its parents' numbers and weights. value = sum of weight times parent."""
    return {"edges": [[(int(rng.integers(0, i)), int(rng.integers(1, 4))) for _ in range(rng.integers(1, 3))]
                      for i in range(1, 2 + size)]}  # fmt: skip


def _build(edges, needs=True, calls=None):
    nodes = [Node(1.0, needs=needs)]
    for number, parents in enumerate(edges, 1):

        def vjp(weight, number=number):
            def rule(g):
                if calls is not None:
                    calls.append(number)
                return weight * g

            return rule

        value = sum(w * nodes[p].value for p, w in parents)
        nodes.append(Node(value, [nodes[p] for p, _ in parents], [vjp(w) for _, w in parents]))
    return nodes


def _expected(edges):
    """d last / d node, from the last to the first: the sum over its uses."""
    grads = [0.0] * len(edges) + [1.0]
    for number in range(len(edges), 0, -1):
        for parent, weight in edges[number - 1]:
            grads[parent] += weight * grads[number]
    return grads


@backward.law(
    "b = a + a: a's gradient is 2, and so on", draw=lambda rng, size: {"doubled": min(size, 4)},
    means="a node that is used more than once gets the sum of what comes back; assigning overwrites it",
)  # fmt: skip
def _(answer, doubled):
    nodes = _build([[(i, 1), (i, 1)] for i in range(doubled)])
    answer(nodes[-1])
    equal(nodes[0].grad, 2.0**doubled)


@backward.law(
    "gradients are right in any graph without a circle", draw=_graph,
    means="a node's gradient may be handed on only when all of its uses have added their share: topological order",
)  # fmt: skip
def _(answer, edges):
    nodes = _build(edges)
    answer(nodes[-1])
    used = {len(edges)}
    for number in range(len(edges), 0, -1):
        used |= {p for p, _ in edges[number - 1]} if number in used else set()
    for number in used:
        if nodes[number].grad is None:
            raise Wrong(f"node {number} has no gradient")
        equal(nodes[number].grad, _expected(edges)[number])


@backward.law(
    "each rule is called once", draw=lambda rng, size: {"depth": 2 * size},
    means="the walk follows every path, and there are exponentially many: mark nodes as visited",
)  # fmt: skip
def _(answer, depth):
    calls = []
    nodes = _build([[(i, 1), (i, 1)] for i in range(depth)], calls=calls)
    answer(nodes[-1])
    if len(calls) != 2 * depth:
        raise Wrong(f"a chain of {depth} additions has {2 * depth} rules; {len(calls)} calls were made")


@backward.law(
    "a chain of 4,096 nodes works", draw=lambda rng, size: {"length": 2 ** (size + 4)},
    means="recursion: keep a list of nodes to visit instead",
)  # fmt: skip
def _(answer, length):
    nodes = _build([[(i, 1)] for i in range(length)])
    answer(nodes[-1])
    equal(nodes[0].grad, 1.0)


@backward.law(
    "no rule is called for a parent that needs no gradient", draw=_graph,
    means="look at parent.needs before calling its rule: this is what a frozen weight saves",
)  # fmt: skip
def _(answer, edges):
    calls = []
    nodes = _build([*edges, [(len(edges), 1)]], needs=False, calls=calls)
    trained = Node(2.0, needs=True)
    loss = Node(2 * nodes[-1].value, [nodes[-1], trained], [nodes[-1].vjps[0], lambda g: nodes[-1].value * g])
    answer(loss)
    if calls:
        raise Wrong("a rule of the frozen part was called")
    equal(trained.grad, nodes[-1].value)
