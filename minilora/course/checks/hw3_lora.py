"""Homework 3, LoRA: the layer, its gradients, a training loop, merging, and what is counted in a loss.

h = W x + (alpha / r) B A x, with A (r, d_in) and B (d_out, r)   (E. Hu et al., arXiv:2106.09685, equation 3)
"""

import itertools

import numpy as np

from minilora.course.check import Problem, Wrong, equal, pulled_back, show


class Layer:
    """W (d_out, d_in), which is frozen; A (r, d_in), B (d_out, r) and alpha of its adapter. base: None, yours."""

    def __init__(self, W, A=None, B=None, alpha=None):
        self.W, self.A, self.B, self.alpha, self.base = W, A, B, alpha, None


def _output(X, W, A, B, alpha):
    return X @ W.T + alpha / len(A) * (X @ A.T) @ B.T


def _whole(rng, *shape):
    return rng.integers(-2, 3, shape).astype(float)


def _case(rng, size):
    d_in, d_out, n, r = (int(k) for k in rng.integers(1, 2 + size // 2, 4))
    A, B = _whole(rng, r, d_in), _whole(rng, d_out, r)
    return {"X": _whole(rng, n, d_in), "W": _whole(rng, d_out, d_in), "A": A, "B": B, "alpha": int(rng.integers(1, 9))}


def _same_bits(now, before, what: str):
    if not np.array_equal(now, before):
        off = "" if np.shape(now) != before.shape else f": off by up to {abs(now - before).max():.3g}"
        raise Wrong(f"{what} was {show(before)}\nand now is {show(now)}{off}")


# start(d_in, d_out, r, rng) -> A, B

start = Problem("start", 3)


def _sizes(rng, size):
    d_in, d_out, r = (int(k) for k in rng.integers(1, 2 + size, 3))
    return {"d_in": d_in, "d_out": d_out, "r": r, "seed": int(rng.integers(100))}


@start.law(
    "A is (r, d_in) and B is (d_out, r), and B A = 0 since B is 0: nothing changes at first", draw=_sizes,
    means="the two are the other way round, or B is random: then the model changes before it has learnt anything",
)  # fmt: skip
def _(answer, d_in, d_out, r, seed):
    A, B = answer(d_in, d_out, r, np.random.default_rng(seed))
    if np.shape(A) != (r, d_in):
        raise Wrong(f"expected A of shape {(r, d_in)}, got {np.shape(A)}")
    equal(B, np.zeros((d_out, r)), 0)


@start.law(
    "A's numbers are uniform between -1/√d_in and 1/√d_in",
    draw=lambda rng, size: {"d_in": 64 * size, "d_out": 2, "r": 64, "seed": int(rng.integers(100))},
    means="A is zero (then B never gets a gradient, nor does A), normal instead of uniform, or has a wrong bound",
)  # fmt: skip
def _(answer, d_in, d_out, r, seed):
    A = np.asarray(answer(d_in, d_out, r, np.random.default_rng(seed))[0]) * d_in**0.5
    if abs(A).max() > 1 + 1e-6:
        raise Wrong(f"|A| goes up to {abs(A).max() / d_in**0.5:.4f}; the bound is {d_in**-0.5:.4f}")
    if abs(np.mean(A)) > 0.1 or abs(np.mean(A * A) - 1 / 3) > 0.05:  # ten standard deviations, at 4,096 numbers
        raise Wrong(f"the mean of A √d_in should be near 0 and that of its square near 1/3; they are "
                    f"{np.mean(A):.3f} and {np.mean(A * A):.3f}")  # fmt: skip


@start.law(
    "A comes from rng: the same seed gives the same A, another seed another",
    draw=lambda rng, size: {"seed": size},
    means="the numbers were taken from np.random or from a generator of your own; use the one that is handed in",
)  # fmt: skip
def _(answer, seed):
    A, again, other = (np.asarray(answer(8, 8, 4, np.random.default_rng(s))[0]) for s in (seed, seed, seed + 1))
    equal(again, A, 0)
    if np.array_equal(A, other):
        raise Wrong("two generators of different seeds gave the same A")


# lora_forward(X, W, A, B, alpha, p=0.0, kept=None) -> (..., d_out)

lora_forward = Problem("lora_forward", 5)


@lora_forward.law(
    "without dropout it is W x + (alpha / r) B A x for each row x of X", draw=_case,
    means="alpha without r? r is the number of A's rows. Or W is in the wrong place, or transposed",
)  # fmt: skip
def _(answer, X, W, A, B, alpha):
    equal(answer(X, W, A, B, alpha), _output(X, W, A, B, alpha))


@lora_forward.law(
    "X may have more axes, such as (batch, tokens, d_in)",
    draw=lambda rng, size: _case(rng, size) | {"X": _whole(rng, 2, size, size)} | {
        "W": _whole(rng, 3, size), "A": _whole(rng, 2, size), "B": _whole(rng, 3, 2)},
    means="W @ X.T turns all axes around; X @ W.T works on the last one, however many there are",
)  # fmt: skip
def _(answer, X, W, A, B, alpha):
    rows = np.stack([answer(x, W, A, B, alpha) for x in X])
    equal(answer(X, W, A, B, alpha), rows)


def _dropped(rng, size):
    case = _case(rng, size)
    return case | {"kept": rng.random(case["X"].shape) < 0.5}


@lora_forward.law(
    "where the update is 0, dropout changes nothing", draw=_dropped,
    means="dropout is on the adapter's path only: the frozen layer sees all of X, and undivided",
)  # fmt: skip
def _(answer, X, W, A, B, alpha, kept):
    equal(answer(X, W, A, 0 * B, alpha, 0.5, kept), X @ W.T)


@lora_forward.law(
    "what was dropped has no share in the update", draw=_dropped,
    means="the adapter has to see 0 where kept is False",
)  # fmt: skip
def _(answer, X, W, A, B, alpha, kept):
    first = answer(X, 0 * W, A, B, alpha, 0.5, kept)
    other = answer(np.where(kept, X, X + 5), 0 * W, A, B, alpha, 0.5, kept)
    if not np.array_equal(first, other):
        raise Wrong("with W = 0, another X where kept is False gave another output")


def _one_row(rng, size):
    case = _case(rng, size)
    d_in = 1 + size // 3
    return case | {"X": _whole(rng, 1, d_in), "W": _whole(rng, len(case["W"]), d_in),
                   "A": _whole(rng, len(case["A"]), d_in), "p": (0.25, 0.5)[size % 2]}  # fmt: skip


@lora_forward.law(
    "on average over what may be dropped, dropout changes nothing", draw=_one_row,
    means="each number is kept with probability 1 - p; dividing what was kept by 1 - p makes up for it",
)  # fmt: skip
def _(answer, X, W, A, B, alpha, p):
    mean = 0.0
    for kept in itertools.product((True, False), repeat=X.size):
        share = np.prod([1 - p if k else p for k in kept])
        mean = mean + share * np.asarray(answer(X, W, A, B, alpha, p, np.array([kept])))
    equal(mean, answer(X, W, A, B, alpha))


# lora_backward(g, X, W, A, B, alpha) -> gX, gA, gB

lora_backward = Problem("lora_backward", 6)
MEANS = {
    "X": "x reaches the output by two ways: through W, which is frozen but in the way, and through the adapter",
    "A": "what comes back through B, times X; alpha / r once",
    "B": "what comes in, times what A made of X: B's gradient needs A X, of width r; alpha / r once",
}


def _with_gradient(rng, size):
    case = _case(rng, size)
    return {"g": _whole(rng, len(case["X"]), len(case["W"]))} | case


for which, name in enumerate("XAB"):

    @lora_backward.law(f"the gradient of {name}", draw=_with_gradient, means=MEANS[name])
    def _(answer, g, X, W, A, B, alpha, which=which):
        got = answer(g, X, W, A, B, alpha)
        if len(got) != 3:
            raise Wrong(f"three gradients are asked for, of X, A and B; got {len(got)}")

        def output(X, A, B):
            return _output(X, W, A, B, alpha)

        equal(got[which], pulled_back(output, g, X, A, B, i=which))


# train(layer, X, Y, rate, steps)

train = Problem("train", 5)


def _training(rng, size, steps=1):
    n, d_in, d_out, r = 1 + size, 1 + size // 2, 1 + size // 3, 1 + size // 4
    case = {"X": (n, d_in), "Y": (n, d_out), "W": (d_out, d_in), "A": (r, d_in), "B": (d_out, r)}
    return {k: _whole(rng, *shape) for k, shape in case.items()} | {"alpha": 2, "rate": 2.0**-5, "steps": steps}


def _trained(answer, X, Y, W, A, B, alpha, rate, steps) -> Layer:
    layer = Layer(W.copy(), A.copy(), B.copy(), alpha)
    answer(layer, X, Y, rate, steps)
    return layer


for which, name, cause in (
    (0, "A", "the sign, the rate, or the output's gradient: that of the sum of squares divided by 2 n is (H - Y) / n"),
    (1, "B", "both gradients belong to the A and B before the step: change A first, and B's is of another layer"),
):

    @train.law(f"one step of {name} goes against its gradient, times the rate", draw=_training, means=cause)
    def _(answer, X, Y, W, A, B, alpha, rate, steps, which=which):
        def loss(A, B):
            return ((_output(X, W, A, B, alpha) - Y) ** 2).sum() / (2 * len(X))

        layer = _trained(answer, X, Y, W, A, B, alpha, rate, steps)
        equal((layer.A, layer.B)[which], (A, B)[which] - rate * pulled_back(loss, np.float64(1), A, B, i=which))


@train.law(
    "each example twice is the same training", draw=_training,
    means="the loss is a mean over the rows: divide by their number",
)  # fmt: skip
def _(answer, X, Y, W, A, B, alpha, rate, steps):
    once = _trained(answer, X, Y, W, A, B, alpha, rate, steps)
    twice = _trained(answer, np.tile(X, (2, 1)), np.tile(Y, (2, 1)), W, A, B, alpha, rate, steps)
    equal(twice.A, once.A)
    equal(twice.B, once.B)


@train.law(
    "several steps are as many single steps", draw=lambda rng, size: _training(rng, size, 1 + size % 4),
    means="each step needs the output and the gradients of A and B as they are by then",
)  # fmt: skip
def _(answer, X, Y, W, A, B, alpha, rate, steps):
    layer = _trained(answer, X, Y, W, A, B, alpha, rate, steps)
    single = Layer(W.copy(), A.copy(), B.copy(), alpha)
    for _ in range(steps):
        answer(single, X, Y, rate, 1)
    equal(layer.A, single.A)
    equal(layer.B, single.B)


@train.law(
    "W is frozen: it is afterwards what it was, to the last bit", draw=lambda rng, size: _training(rng, size, 3),
    means="only A and B get a step",
)  # fmt: skip
def _(answer, X, Y, W, A, B, alpha, rate, steps):
    _same_bits(_trained(answer, X, Y, W, A, B, alpha, rate, steps).W, W, "W")


# switch_adapter(layer, adapter), adapter: (A, B, alpha) or None

switch_adapter = Problem("switch_adapter", 4)


def _two_adapters(rng, size):
    d_in, d_out = size, 1 + size // 2
    r, r2, alpha, alpha2 = (int(k) for k in rng.integers(1, 5, 4))
    shapes = {"W": (d_out, d_in), "A": (r, d_in), "B": (d_out, r), "A2": (r2, d_in), "B2": (d_out, r2)}
    arrays = {name: rng.standard_normal(shape, np.float32) for name, shape in shapes.items()}
    return arrays | {"alpha": alpha, "alpha2": alpha2}


@switch_adapter.law(
    "layer.W alone then does what W, A and B did together", draw=_two_adapters,
    means="the update is (alpha / r) B A, of W's shape",
)  # fmt: skip
def _(answer, W, A, B, A2, B2, alpha, alpha2):
    layer, X = Layer(W.copy()), np.eye(W.shape[1])
    answer(layer, (A, B, alpha))
    equal(X @ np.asarray(layer.W).T, _output(X, W, A, B, alpha), 1e-5)


@switch_adapter.law(
    "a second adapter takes the place of the first", draw=_two_adapters,
    means="it was added on top: first go back to the base's own W",
)  # fmt: skip
def _(answer, W, A, B, A2, B2, alpha, alpha2):
    layer, other = Layer(W.copy()), Layer(W.copy())
    for adapter in ((A, B, alpha), (A2, B2, alpha2)):
        answer(layer, adapter)
    answer(other, (A2, B2, alpha2))
    equal(layer.W, other.W, 1e-5)


@switch_adapter.law(
    "with None the base is back, to the last bit, also where nothing was merged", draw=_two_adapters,
    means="subtracting the update leaves its rounding, which adds up over many changes; keep the base's W instead",
)  # fmt: skip
def _(answer, W, A, B, A2, B2, alpha, alpha2):
    layer = Layer(W.copy())
    for adapter in (None, (A, B, alpha), (A2, B2, alpha2), None, None):
        answer(layer, adapter)
    _same_bits(layer.W, W, "W")


@switch_adapter.law(
    "the base's array is not written into: other layers may have it too", draw=_two_adapters,
    means="+= on an array changes it in place; make a new array",
)  # fmt: skip
def _(answer, W, A, B, A2, B2, alpha, alpha2):
    layer, base = Layer(W), W.copy()
    for adapter in ((A, B, alpha), (A2, B2, alpha2)):
        answer(layer, adapter)
        _same_bits(W, base, "the array that layer.W was at first")


# count_trainable(shapes, targets, r) -> int

count_trainable = Problem("count_trainable", 3)
NAMES = ("q_proj", "k_proj", "v_proj", "o_proj", "up_proj", "down_proj")


def _shapes(rng, size):
    blocks = 1 + size // 3
    shapes = {f"layers.{i}.{name}": (int(rng.integers(1, 9)), int(rng.integers(1, 9)))
              for i in range(blocks) for name in NAMES}  # fmt: skip
    targets = [str(name) for name in rng.choice(NAMES, int(rng.integers(1, 4)), replace=False)]
    return {"shapes": shapes, "targets": targets, "r": int(rng.integers(1, 9))}


@count_trainable.law(
    "A has r d_in numbers and B d_out r, for each layer that is adapted", draw=_shapes,
    means="r (d_in + d_out) a layer, not r d_in d_out; and all blocks count",
)  # fmt: skip
def _(answer, shapes, targets, r):
    adapted = [shape for path, shape in shapes.items() if path.split(".")[-1] in targets]
    equal(answer(shapes, targets, r), sum(r * (d_out + d_in) for d_out, d_in in adapted), 0)


@count_trainable.law(
    "a name means whole parts of the path, from its end, and no layer counts twice",
    draw=lambda rng, size: {"shapes": {"q_proj": (size, 1), "a.q_proj": (size, 2), "a.seq_proj": (size, 4),
                                       "q_proj.a": (size, 8), "b.a.q_proj": (size, 16), "ba.q_proj": (size, 32)},
                            "r": 1, "targets": [["q_proj"], ["proj", "a.q_proj"], ["q_proj", "a.q_proj"]][size % 3]},
    means="'q_proj' in path, or path.endswith('q_proj'), also finds a.seq_proj; and two names may mean one layer",
)  # fmt: skip
def _(answer, shapes, targets, r):
    adapted = [path for path in shapes if any(f".{path}".endswith(f".{name}") for name in targets)]
    equal(answer(shapes, targets, r), sum(answer({path: shapes[path]}, [path], r) for path in adapted), 0)


@count_trainable.law(
    "names that mean no layer are a ValueError: nothing would be trained",
    draw=lambda rng, size: {"shapes": {f"h.{i}.c_attn": (3, 1) for i in range(size)}, "targets": ["q_proj", "v_proj"]},
    means="a silent 0 is how people train nothing for hours; raise ValueError",
)  # fmt: skip
def _(answer, shapes, targets):
    try:
        got = answer(shapes, targets, 8)
    except ValueError:
        return
    raise Wrong(f"none of the layers is called so, and the answer was {got!r}")


# completion_loss(logits, labels): labels of -100 are no targets

completion_loss = Problem("completion_loss", 4)


def _log_p(logits):
    shifted = logits - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def _two_tokens(rng, size, scale=1):
    V = 2 + size // 2
    labels = rng.integers(0, V, (1 + size // 3, 2))
    labels[rng.random(len(labels)) < 0.5, 0] = -100
    return {"logits": scale * _whole(rng, len(labels), 2, V), "labels": labels}


def _targets(rng, size):
    rows, T, V = 1 + size // 2, 2 + size, 2 + size // 2
    labels = rng.integers(0, V, (rows, T))
    for row in labels:
        row[: rng.integers(1, T)] = -100  # the prompt
        row[T - int(rng.integers(0, 2)) :] = -100  # padding
    labels[0, 1] = 0  # at least one target
    return {"logits": _whole(rng, rows, T, V), "labels": labels}


def _second_given_first(logits, labels):
    return np.mean([-_log_p(z)[0][row[1]] for z, row in zip(logits, labels, strict=True)])


@completion_loss.law(
    "of rows of two tokens, it is that of the second, by the logits at the first", draw=_two_tokens,
    means="off by one: logits[:, t] are for token t + 1. The first token of the answer is predicted at the prompt's "
    "last position, and the last position predicts nothing that is known",
)  # fmt: skip
def _(answer, logits, labels):
    equal(answer(logits, labels), _second_given_first(logits, labels))


@completion_loss.law(
    "logits that predict no target do not matter", draw=_targets,
    means="labels of -100 (the prompt, padding) are left out; a mask must be shifted as the labels are",
)  # fmt: skip
def _(answer, logits, labels):
    idle = np.append(labels[:, 1:] == -100, np.ones((len(labels), 1), bool), axis=1)
    other = np.where(idle[..., None], logits[..., ::-1] + np.arange(logits.shape[-1]), logits)
    equal(answer(other, labels), answer(logits, labels))


@completion_loss.law(
    "it is the mean over all targets of the batch, each alone", draw=_targets,
    means="a mean of the rows' means gives a row of few targets too much weight, "
    "and dividing by all tokens makes the loss of a long prompt small",
)  # fmt: skip
def _(answer, logits, labels):
    alone = []
    for at in np.argwhere(labels != -100):
        only = np.full_like(labels, -100)
        only[tuple(at)] = labels[tuple(at)]
        alone.append(answer(logits, only))
    equal(answer(logits, labels), np.mean(alone))


@completion_loss.law(
    "large logits give the right loss too", draw=lambda rng, size: _two_tokens(rng, size, 1000),
    means="exp overflows: subtract the largest logit of a position first, and take no log of a probability of 0",
)  # fmt: skip
def _(answer, logits, labels):
    got, small = answer(logits, labels), logits / 1000
    if not np.isfinite(got):
        raise Wrong(f"the loss is {got}")
    try:
        equal(answer(small, labels), _second_given_first(small, labels))
    except Wrong:
        return  # something else is the matter, and other laws say it
    equal(got, _second_given_first(logits, labels))
