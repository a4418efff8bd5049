"""Homework 6, QLoRA: a layer with a frozen 4-bit weight, held to the same layer written down in floats.

What is trained is held to complex-step derivatives (check.py), the bytes to those that minilora.quantize takes.
"""

import numpy as np

from minilora.course.check import Problem, Wrong, equal, pulled_back
from minilora.course.checks.hw1_autograd import softmax
from minilora.quant import DYNAMIC_MAP as SIGNED
from minilora.quant import quantize
from minilora.quant.codebooks import UNSIGNED_DYNAMIC_MAP as UNSIGNED

BLOCK = 4  # of an optimizer's state; usually 256


def _ints(rng, *shape) -> np.ndarray:
    return rng.integers(-2, 3, shape).astype(np.float32)


def _layer(rng, size) -> dict:
    d_in, d_out, r = (int(n) for n in rng.integers(1, 2 + size // 2, 3))
    return {"W": _ints(rng, d_out, d_in), "A": _ints(rng, r, d_in), "B": _ints(rng, d_out, r),
            "alpha": int(rng.integers(1, 9))}  # fmt: skip


def _with_inputs(rng, size) -> dict:
    layer, n = _layer(rng, size), int(rng.integers(1, 4))
    (d_out, d_in), r = layer["W"].shape, len(layer["A"])
    layer["A"] += (layer["A"] == 0) * (r == 1)  # nothing to see where it is zero
    return {"x": _ints(rng, n, d_in), "g": _ints(rng, n, d_out), **layer}


def _inputs(rng, size) -> dict:
    return {k: v for k, v in _with_inputs(rng, size).items() if k != "g"}


def in_floats(x, W, A, B, alpha):
    """The layer's definition, of a float weight W."""
    return x @ (W + alpha / len(A) * B @ A).T


def stored(W):
    return quantize(W, "nf4", blocksize=16)


def unchanged(q, W):
    if q != stored(W):
        raise Wrong("the stored weight is not what it was before: it is frozen")


# qlora_forward(x, q, A, B, alpha)

qlora_forward = Problem("qlora_forward", 3)


@qlora_forward.law(
    "with B = 0, as training begins, it is the frozen layer", draw=_inputs,
    means="x @ q.dequantize().T: a row of W for each output; codes are no weights",
)  # fmt: skip
def _(answer, x, W, A, B, alpha):
    q = stored(W)
    equal(answer(x, q, A, 0 * B, alpha), x @ q.dequantize().T, 1e-5)


@qlora_forward.law(
    "the adapter adds (alpha / r) B A x", draw=_inputs,
    means="r is the number of A's rows, and alpha is divided by it",
)  # fmt: skip
def _(answer, x, W, A, B, alpha):
    q = stored(W)
    equal(answer(x, q, A, B, alpha), in_floats(x, q.dequantize(), A, B, alpha), 1e-5)


@qlora_forward.law(
    "x may have any number of axes before its last, and each input has its own output", draw=_inputs,
    means="products with @ leave the axes before the last alone, if the weight stands at the right: x @ W.T",
)  # fmt: skip
def _(answer, x, W, A, B, alpha):
    q = stored(W)
    outputs = np.asarray(answer(x, q, A, B, alpha))
    equal(answer(x[:, None], q, A, B, alpha), outputs[:, None], 1e-5)
    equal(answer(x[0], q, A, B, alpha), outputs[0], 1e-5)


# qlora_backward(x, g, q, A, B, alpha) -> (gx, gA, gB)

qlora_backward = Problem("qlora_backward", 6)


def _gradients(answer, x, g, W, A, B, alpha):
    """The answer's last three results (an answer that gives the weight a gradient too has more), and the exact ones."""
    q = stored(W)
    results = answer(x, g, q, A, B, alpha)
    if not isinstance(results, tuple | list) or len(results) < 3:
        raise Wrong(f"expected three gradients, got {type(results).__name__}")
    inputs = x, q.dequantize(), A, B
    named = {"x": results[0], "A": results[-2], "B": results[-1]}
    return {name: (named[name], lambda i=i: pulled_back(lambda *a: in_floats(*a, alpha), g, *inputs, i=i))
            for name, i in (("x", 0), ("A", 2), ("B", 3))}  # fmt: skip


for _name, _means in (
    ("x", "there are two ways from x to the output, through W and through A and B: their gradients add up"),
    ("A", "g goes back through alpha / r and B, then meets x: a matrix of A's shape"),
    ("B", "g goes back through alpha / r, then meets A x: a matrix of B's shape"),
):

    @qlora_backward.law(f"the gradient of {_name}", draw=_with_inputs, means=_means)
    def _(answer, x, g, W, A, B, alpha, name=_name):
        got, exact = _gradients(answer, x, g, W, A, B, alpha)[name]
        equal(got, exact(), 1e-5)


@qlora_backward.law(
    "the frozen weight gets no gradient, and stays as it is", draw=_with_inputs,
    means="three gradients are returned, of x, A and B; W's would be as large as W, and nobody asks for it",
)  # fmt: skip
def _(answer, x, g, W, A, B, alpha):
    q = stored(W)
    results = answer(x, g, q, A, B, alpha)
    if len(results) != 3:
        raise Wrong(f"expected three gradients, got {len(results)}")
    unchanged(q, W)


# answer_loss(logits, ids, prompts, lengths)

answer_loss = Problem("answer_loss", 4)


def _batch(rng, size, rows=None):
    rows = rows or int(rng.integers(1, 4))
    lengths = rng.integers(2, 3 + size // 2, rows)
    prompts = np.array([rng.integers(1, n) for n in lengths])
    T, V = int(lengths.max()) + (rows > 1), int(rng.integers(2, 4))
    ids = rng.integers(0, V, (rows, T))
    return {"logits": _ints(rng, rows, T, V).astype(float), "ids": ids, "prompts": prompts, "lengths": lengths}


def _losses(logits, ids, prompts, lengths) -> list[float]:
    """-log p of every answer token, one after the other."""
    p = softmax(logits)
    return [-np.log(p[b, t - 1, ids[b, t]]) for b in range(len(ids)) for t in range(prompts[b], lengths[b])]


@answer_loss.law(
    "of one row it is the mean of -log p of the answer's tokens", draw=lambda rng, size: _batch(rng, size, 1),
    means="logits[t] is about ids[t + 1]: shift one against the other, and count the mask in positions of the token",
)  # fmt: skip
def _(answer, **batch):
    equal(answer(**batch), np.mean(_losses(**batch)))


@answer_loss.law(
    "what is said about prompt and padding does not matter", draw=_batch,
    means="the first answer token is at `prompts`, and is foretold one position before; the last is at lengths - 1",
)  # fmt: skip
def _(answer, logits, ids, prompts, lengths):
    t = np.arange(ids.shape[1])
    elsewhere = (t < prompts[:, None] - 1) | (t >= lengths[:, None] - 1)
    other = logits + elsewhere[..., None] * np.arange(logits.shape[2]) * 3
    sure = logits + 4 * np.eye(logits.shape[2])[np.roll(ids, -1, 1)]
    first, second, less = (float(answer(x, ids, prompts, lengths)) for x in (logits, other, sure))
    if not abs(first - second) <= 1e-9:
        raise Wrong(f"the loss is {first:.6g}, and {second:.6g} after logits that foretell no answer token changed")
    if not less < first:
        raise Wrong(f"the loss is {first:.6g}, and {less:.6g} when every token is foretold with more certainty")


def _ending(rng, size):
    batch = _batch(rng, size)
    batch["ids"][np.arange(batch["ids"].shape[1]) >= batch["lengths"][:, None] - 1] = 0  # its last token, and padding
    return batch


@answer_loss.law(
    "an answer's end counts, though the same token pads", draw=_ending,
    means="padding is known by its position, not by its token: or the model never learns to stop",
)  # fmt: skip
def _(answer, logits, ids, prompts, lengths):
    surer = logits.copy()
    surer[np.arange(len(ids)), lengths - 2, 0] += 2
    first, second = (float(answer(x, ids, prompts, lengths)) for x in (logits, surer))
    if not second < first - 1e-9:
        raise Wrong(f"the loss is {first:.6g}, and {second:.6g} when each end is foretold with more certainty")


@answer_loss.law(
    "every answer token of the batch counts the same", draw=_batch,
    means="one mean over all answer tokens; a mean of the rows' means gives a short answer's tokens more weight",
)  # fmt: skip
def _(answer, logits, ids, prompts, lengths):
    rows = [answer(*(a[b : b + 1] for a in (logits, ids, prompts, lengths))) for b in range(len(ids))]
    loss = answer(logits, ids, prompts, lengths)
    equal(loss, np.average(rows, weights=lengths - prompts))
    if not loss > 0:
        raise Wrong(f"a mean of -log p is above zero; got {loss:.6g}")


# accumulated(grads, counts)

accumulated = Problem("accumulated", 3)


def _pieces(rng, size, most=4):
    counts = [int(n) for n in rng.integers(1, 1 + most, 1 + size // 2)]
    return {"grads": _ints(rng, len(counts), 2).astype(float), "counts": counts}


def _at_once(grads, counts) -> np.ndarray:
    """The mean over tokens, each with its piece's mean as its own gradient."""
    return np.mean([g for g, n in zip(grads, counts, strict=True) for _ in range(n)], axis=0)


@accumulated.law(
    "of equal pieces it is the mean", draw=lambda rng, size: _pieces(rng, size, 1),
    means="a sum of means is too large by the number of pieces, and with it the step that is made",
)  # fmt: skip
def _(answer, grads, counts):
    equal(answer(list(grads), counts), _at_once(grads, counts))


@accumulated.law(
    "of any pieces it is the gradient of the whole batch at once", draw=_pieces,
    means="a mean times its count is a sum; add the sums, and divide once, by all answer tokens",
)  # fmt: skip
def _(answer, grads, counts):
    equal(answer(list(grads), counts), _at_once(grads, counts))


@accumulated.law(
    "a piece without an answer changes nothing", draw=_pieces,
    means="0 times NaN is NaN: leave the piece out",
)  # fmt: skip
def _(answer, grads, counts):
    with_empty = [grads[0], np.full_like(grads[0], np.nan), *grads[1:]]
    equal(answer(with_empty, [counts[0], 0, *counts[1:]]), answer(list(grads), counts))


# adam8bit_step(w, g, m, v, t, lr) -> (w, m, v)

adam8bit_step = Problem("adam8bit_step", 5)


def write(numbers, levels) -> tuple[np.ndarray, np.ndarray]:
    """Codes uint8 of the nearest levels, and the absmax of each block of BLOCK numbers, float32."""
    numbers = np.asarray(numbers, np.float32)
    absmax = np.array([abs(numbers[i : i + BLOCK]).max() for i in range(0, numbers.size, BLOCK)], np.float32)
    scaled = numbers / np.where(absmax > 0, absmax, 1).repeat(BLOCK)[: numbers.size]
    return np.searchsorted((levels[1:] + levels[:-1]) / 2, scaled).astype(np.uint8), absmax


def read(stored, levels) -> np.ndarray:
    """What `write` stored, float32: level times absmax."""
    codes, absmax = stored
    return levels[codes] * absmax.repeat(BLOCK)[: codes.size]


def _state(rng, size):
    return {"w": _ints(rng, size), "g": 8 * _ints(rng, size), "m": _ints(rng, size) / 2,
            "v": rng.integers(1, 9, size), "t": int(rng.integers(2, 9)), "lr": 0.125}  # fmt: skip


def _moments(g, m, v):
    """Adam's new moments from what the stored ones stand for: the definition."""
    return 0.9 * read(write(m, SIGNED), SIGNED) + 0.1 * g, 0.999 * read(write(v, UNSIGNED), UNSIGNED) + 0.001 * g**2


@adam8bit_step.law(
    "the first step moves each weight by lr, against the sign of its gradient",
    draw=lambda rng, size: {"w": _ints(rng, size), "g": rng.choice([-4, -1, 0.5, 2], size).astype(np.float32),
                            "lr": 0.125},
    means="m and v begin at zero, and are divided by 1 - 0.9^t and 1 - 0.999^t to make up for it",
)  # fmt: skip
def _(answer, w, g, lr):
    zero = np.zeros_like(w)
    new = answer(w, g, write(zero, SIGNED), write(zero, UNSIGNED), 1, lr)[0]
    equal(new, w - lr * np.sign(g), 1e-5)


@adam8bit_step.law(
    "w moves by the new m and v, as they are before they are stored", draw=_state,
    means="m of levels SIGNED, v of UNSIGNED; the square root is of v alone, and 1e-8 is added after it",
)  # fmt: skip
def _(answer, w, g, m, v, t, lr):
    new_m, new_v = _moments(g, m, v)
    expected = w - lr * (new_m / (1 - 0.9**t)) / (np.sqrt(new_v / (1 - 0.999**t)) + 1e-8)
    equal(answer(w, g, write(m, SIGNED), write(v, UNSIGNED), t, lr)[0], expected, 1e-5)


for _which, _name in enumerate("mv"):

    @adam8bit_step.law(
        f"the {_name} that is stored is the new one", draw=_state,
        means="write(m, SIGNED) and write(v, UNSIGNED), of what the moments are after this step",
    )  # fmt: skip
    def _(answer, w, g, m, v, t, lr, which=_which):
        exact, levels = _moments(g, m, v)[which], (SIGNED, UNSIGNED)[which]
        codes, absmax = answer(w, g, write(m, SIGNED), write(v, UNSIGNED), t, lr)[1 + which]
        back = read((np.asarray(codes), np.asarray(absmax)), levels)
        largest = write(exact, levels)[1].repeat(BLOCK)[: exact.size]
        if not (abs(back - exact) <= largest / 64 + 1e-7).all():  # half the distance of the widest levels is less
            raise Wrong(f"expected about {exact}\ngot         {back}")


@adam8bit_step.law(
    "a v above zero is not stored as zero",
    draw=lambda rng, size: {"g": rng.permutation([1.0, *rng.choice([1e-4, 1e-5], 3)]).astype(np.float32)},
    means="np.maximum(codes, v > 0): the smallest level above zero, UNSIGNED[1], is still far less than the largest v",
)  # fmt: skip
def _(answer, g):
    zero = np.zeros_like(g)
    codes = np.asarray(answer(zero, g, write(zero, SIGNED), write(zero, UNSIGNED), 1, 0.125)[2][0])
    if not (codes > 0)[g != 0].all():
        raise Wrong(f"the codes of v are {codes}; code 0 is zero")


# merged(q, A, B, alpha)

merged = Problem("merged", 3)


@merged.law(
    "one product with it is the layer's output", draw=_layer,
    means="the dequantized weight plus (alpha / r) B A; codes are numbers of levels, and cannot be added to",
)  # fmt: skip
def _(answer, W, A, B, alpha):
    q, x = stored(W), np.eye(W.shape[1], dtype=np.float32)
    equal(x @ np.asarray(answer(q, A, B, alpha)).T, in_floats(x, q.dequantize(), A, B, alpha), 1e-5)


@merged.law(
    "an update far smaller than the distance of levels is not lost", draw=_layer,
    means="the sum was rounded to 4 bits again, which takes most of it back to the level it came from",
)  # fmt: skip
def _(answer, W, A, B, alpha):
    q = stored(W)
    large, small = (np.asarray(answer(q, a, B, alpha)) - q.dequantize() for a in (A, A / 1024))
    equal(small * 1024, large, 1e-3)
    if (B @ A).any() and not large.any():
        raise Wrong("no update was added")


@merged.law(
    "the stored weight is as before", draw=_layer,
    means="merging makes a new array; what is stored must stay, to be trained on, or to unmerge",
)  # fmt: skip
def _(answer, W, A, B, alpha):
    q = stored(W)
    answer(q, A, B, alpha)
    unchanged(q, W)


# qlora_memory(shapes, r) -> (base, adapters, gradients, optimizer)

qlora_memory = Problem("qlora_memory", 4)


def _shapes(rng, size):
    return {"shapes": [tuple(int(n) for n in rng.integers(1, 2 ** (1 + size), 2)) for _ in range(rng.integers(1, 4))],
            "r": int(rng.integers(1, 9))}  # fmt: skip


@qlora_memory.law(
    "the frozen weights take the bytes that minilora stores", draw=_shapes,
    means="the constants: one byte a block, 4 for 256 blocks, 4 for the offset; each rounded up, matrix by matrix",
)  # fmt: skip
def _(answer, shapes, r):
    arrays = [np.zeros(shape, np.float32) for shape in shapes]
    equal(answer(shapes, r)[0], sum(quantize(a, "nf4", double_quant=True).nbytes for a in arrays))


for _which, _name, _bytes, _means in (
    (1, "adapters", 4, "A has r rows of d_in numbers, B d_out rows of r, of 4 bytes each"),
    (2, "gradients", 4, "a gradient for each number of A and B, and none for the frozen weights"),
    (3, "optimizer", 8, "two moments for each number that is trained, of 4 bytes each"),
):

    @qlora_memory.law(f"the {_name}", draw=_shapes, means=_means)
    def _(answer, shapes, r, which=_which, each=_bytes):
        trained = sum(np.ones((r, d_in)).size + np.ones((d_out, r)).size for d_out, d_in in shapes)
        equal(answer(shapes, r)[which], each * trained)
