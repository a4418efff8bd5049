"""Every primitive of the registry, checked by construction: one that has no case here makes a test fail."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minilora import Tensor, ops, quantize
from minilora.autograd import PRIMITIVES, gradcheck, primitive
from minilora.errors import GradcheckError, ShapeError
from minilora.lowrank.fastfood import Fastfood
from minilora.lowrank.intrinsic import displaced

sizes = st.integers(0, 4)
some = st.integers(1, 4)


class Draw:
    """Random arrays: contiguous, transposed, reversed, strided; drawn by Hypothesis."""

    def __init__(self, data):
        self.data = data
        self.rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))

    def array(self, *shape, positive=False):
        x = self.rng.standard_normal([2 * n for n in shape])
        x = x[tuple(slice(None, None, 2) for _ in shape)]  # strided
        layout = self.data.draw(st.sampled_from(["strided", "contiguous", "reversed", "transposed"]))
        if layout == "contiguous":
            x = np.ascontiguousarray(x)
        elif layout == "reversed":
            x = x[::-1] if x.ndim else x
        elif layout == "transposed":
            x = np.ascontiguousarray(x.T).T
        return np.abs(x) + 0.5 if positive else x

    def size(self, strategy=sizes):
        return self.data.draw(strategy)

    def shape(self, strategy=sizes):
        return tuple(self.data.draw(st.lists(strategy, max_size=3)))

    def broadcast_pair(self):
        """Two shapes that broadcast: some axes stretched from 1, some leading ones missing."""
        full = self.shape()
        part = [1 if self.data.draw(st.booleans()) else n for n in full]
        part = tuple(part[self.data.draw(st.integers(0, len(full))) :])
        return (full, part) if self.data.draw(st.booleans()) else (part, full)


def unary(op, positive=False):
    return lambda d: (op, [d.array(*d.shape(), positive=positive)])


def binary(op, positive=False):
    def case(d):
        a, b = d.broadcast_pair()
        return op, [d.array(*a), d.array(*b, positive=positive)]

    return case


def away_from_kink(op):
    """A function with a kink at 0, at points where a difference does not cross it."""

    def case(d):
        x = d.array(*d.shape())
        return op, [np.where(np.abs(x) < 0.01, 1.0, x)]

    return case


def rows(op, extra=()):
    """An op over the last axis, which has at least one entry; extra: vectors of that length."""

    def case(d):
        n = d.size(some)
        return op, [d.array(*d.shape(), n), *(d.array(n) for _ in extra)]

    return case


def linear_case(d):
    i, o = d.size(some), d.size(some)
    return ops.linear, [d.array(*d.shape(), i), d.array(o, i), d.array(o)]


def addmm_case(d):
    lead, i, o = d.shape(), d.size(some), d.size(some)
    return ops.addmm, [d.array(*lead, o), d.array(*lead, i), d.array(o, i)]


def matmul_case(d):
    n, k, m = d.size(), d.size(some), d.size()
    lead = d.shape()[:2]
    left = lead if d.size() else ()
    return ops.matmul, [d.array(*left, n, k), d.array(*lead, k, m)]


def linear_4bit_case(d):
    i, o = d.size(some), d.size(some)
    w = quantize(d.array(o, i).astype(np.float32), blocksize=16)

    class Weight:  # the same weight in float64: the kernel computes in float32, too coarse for a check
        dense = w.dequantize().astype(np.float64)

        def matmul(self, x, transpose=False):
            return x @ (self.dense if transpose else self.dense.T)

    return lambda x, b: ops.linear_4bit(x, Weight(), b), [d.array(*d.shape(), i), d.array(o)]


def attention_case(d):
    B, K, G, hd = d.size(), d.size(some), d.size(some), d.size(some)
    T, causal, mask = d.size(some), d.data.draw(st.booleans()), None
    S = T + d.size() if causal else d.size(some)
    if d.data.draw(st.booleans()):
        mask = d.rng.random((B, S)) < 0.5
        mask[:, d.rng.integers(0, S - T + 1 if causal else S)] = True  # a key that the first query sees
        if d.data.draw(st.booleans()):  # one for each query
            mask = mask[:, None] & (d.rng.random((B, T, S)) < 0.7) | np.eye(T, S, S - T if causal else 0, dtype=bool)
            mask[..., 0] |= ~mask.any(-1)
    bias = d.data.draw(st.sampled_from([None, (K * G, 1, S), (K * G, T, S)]))
    bias = None if bias is None else d.array(*bias)
    arrays = [d.array(B, K * G, T, hd), d.array(B, K, S, hd), d.array(B, K, S, hd)]
    return lambda q, k, v: ops.attention(q, k, v, causal=causal, mask=mask, bias=bias), arrays


def rope_case(d):
    T, half = d.size(), d.size(some)
    angle = d.rng.standard_normal((T, half))
    return lambda x: ops.rope(x, np.cos(angle), np.sin(angle)), [d.array(d.size(), d.size(), T, 2 * half)]


def embedding_case(d):
    V, n = d.size(some), d.shape()
    ids = d.rng.integers(0, V, n)
    return lambda w: ops.embedding(w, ids), [d.array(V, d.size(some))]


def cross_entropy_case(d):
    N, V = d.size(some), d.size(some)
    targets, kind = d.rng.integers(0, V, N), d.data.draw(st.sampled_from(["mean", "sum"]))
    return lambda z: ops.cross_entropy(z, targets, reduction=kind), [d.array(N, V)]


def reduction(op, strategy=sizes):
    def case(d):
        x = d.array(*(d.size(strategy) for _ in range(3)))
        axis = d.data.draw(st.sampled_from([None, 0, -1, (0, 2)]))
        keep = d.data.draw(st.booleans())
        return lambda a: op(a, axis=axis, keepdims=keep), [x]

    return case


def shape_case(make):
    def case(d):
        return make(d), [d.array(2, 3, 4)]

    return case


def displaced_case(d):
    D, k = d.size(some), d.size(some)
    P = Fastfood(D, k, seed=0)
    fn = lambda theta_0, theta_d, scale: displaced(theta_0, theta_d, scale, P, gain=0.5)  # noqa: E731
    return fn, [d.array(D), d.array(k), np.float64(d.array(1)[0])]


CASES = {
    "add": binary(ops.add),
    "subtract": binary(ops.subtract),
    "multiply": binary(ops.multiply),
    "divide": binary(ops.divide, positive=True),
    "negative": unary(ops.negative),
    "power": unary(lambda x: ops.power(x, 2.5), positive=True),
    "exp": unary(ops.exp),
    "log": unary(ops.log, positive=True),
    "sqrt": unary(ops.sqrt, positive=True),
    "tanh": unary(ops.tanh),
    "sigmoid": unary(ops.sigmoid),
    "relu": away_from_kink(ops.relu),
    "maximum": away_from_kink(lambda x: ops.maximum(x, x * 0.5)),
    "where": lambda d: ((lambda a, b: ops.where(np.arange(3) > 0, a, b)), [d.array(2, 3), d.array(3)]),
    "astype": unary(lambda x: ops.astype(x, np.complex128 if x.dtype.kind == "c" else np.float64)),
    "gelu": unary(ops.gelu),
    "gelu_tanh": unary(ops.gelu_tanh),
    "swiglu": lambda d: (lambda s: (ops.swiglu, [d.array(*s), d.array(*s)]))(d.shape()),
    "sum": reduction(ops.sum),
    "mean": reduction(ops.mean, some),
    "max": reduction(ops.max, some),
    "reshape": shape_case(lambda d: (lambda shape: lambda x: ops.reshape(x, shape))(
        d.data.draw(st.sampled_from([(24,), (4, -1), (6, 4)])))),
    "transpose": shape_case(lambda d: (lambda axes: lambda x: ops.transpose(x, axes))(
        d.data.draw(st.sampled_from([None, (1, 0, 2), (2, 0, 1)])))),
    "broadcast_to": lambda d: (lambda x: ops.broadcast_to(x, (2, 3, 4)), [d.array(3, 1)]),
    "getitem": shape_case(lambda d: (lambda index: lambda x: x[index])(
        d.data.draw(st.sampled_from([0, (slice(None), 1), (..., slice(1, 3)), np.array([0, 0, 1])])))),
    "concatenate": lambda d: ((lambda a, b: ops.concatenate([a, b], axis=1)), [d.array(2, d.size()), d.array(2, 3)]),
    "split_heads": lambda d: (lambda x: ops.split_heads(x, 2), [d.array(d.size(some), d.size(some), 6)]),
    "merge_heads": lambda d: (ops.merge_heads, [d.array(d.size(some), 2, d.size(some), 3)]),
    "matmul": matmul_case,
    "linear": linear_case,
    "addmm": addmm_case,
    "linear_4bit": linear_4bit_case,
    "softmax": rows(ops.softmax),
    "log_softmax": rows(ops.log_softmax),
    "rms_norm": rows(ops.rms_norm, "w"),
    "layer_norm": rows(ops.layer_norm, "wb"),
    "rope": rope_case,
    "attention": attention_case,
    "embedding": embedding_case,
    "cross_entropy": cross_entropy_case,
    "displaced": displaced_case,  # of lowrank/intrinsic.py
    "dropout": lambda d: (lambda x: ops.dropout(x, 0.5, np.random.default_rng(1)), [d.array(3, d.size())]),
}  # fmt: skip


def test_every_primitive_has_a_case():
    assert PRIMITIVES.keys() == CASES.keys()


@pytest.mark.parametrize("name", CASES)
@given(data=st.data())
def test_gradients(name, data):
    fn, arrays = CASES[name](Draw(data))
    gradcheck(fn, *arrays)


EXTREME = np.array([[0, 1e-38, -1e38, 1e38], [88, -88, 1e4, -1e4], [0, 0, 0, 0]], np.float32)


@pytest.mark.parametrize("op", [ops.softmax, ops.log_softmax, ops.sigmoid, ops.relu, ops.tanh])
def test_extreme_values_stay_finite(op):
    x = Tensor(EXTREME, requires_grad=True)
    y = op(x)
    y.backward(np.ones_like(y.data))
    assert np.isfinite(y.data).all() and np.isfinite(x.grad).all()


def test_cross_entropy_of_extreme_logits():
    x = Tensor(EXTREME[1:], requires_grad=True)
    loss = ops.cross_entropy(x, np.array([2, 0]))
    loss.backward()
    np.testing.assert_allclose(loss.item(), np.log(4) / 2, rtol=1e-6)
    assert np.isfinite(x.grad).all()


# Planted bugs: the checker must catch each.


@primitive
def softmax_times_two(x):
    p = np.exp(x - x.max(-1, keepdims=True))
    p = p / p.sum(-1, keepdims=True)
    return p, (lambda g: 2 * p * (g - (g * p).sum(-1, keepdims=True)),)


@primitive
def transposed_matmul(a, b):
    return a @ b, (lambda g: b @ g.T, lambda g: a.T @ g)


@primitive
def wrong_mask(x):
    keep = np.tri(len(x))
    return x * keep, (lambda g: g * keep.T,)


@primitive
def no_unbroadcast(a, b):
    return a + b, (lambda g: g, lambda g: g[0])  # takes one row's gradient where the sum over rows is due


for _name in ("softmax_times_two", "transposed_matmul", "wrong_mask", "no_unbroadcast"):
    PLANTED = globals().setdefault("PLANTED", {})
    PLANTED[_name] = PRIMITIVES.pop(_name)


@pytest.fixture
def planted():
    PRIMITIVES.update(PLANTED)
    yield PLANTED
    for name in PLANTED:
        del PRIMITIVES[name]


def test_planted_bugs_are_caught(planted, rng):
    square, vector = rng.standard_normal((4, 4)), rng.standard_normal(4)
    for name, arrays in (
        ("softmax_times_two", [square]),
        ("transposed_matmul", [square, square]),
        ("wrong_mask", [square]),
        ("no_unbroadcast", [square, vector]),
    ):
        with pytest.raises(GradcheckError, match=r"worst at index \("):
            gradcheck(planted[name], *arrays)


def test_a_sum_would_not_have_seen_the_wrong_softmax(planted, rng):
    """Why the covector is random: the rows of a softmax sum to one, so d(sum)/dx is 0 by any rule."""
    gradcheck(lambda x: planted["softmax_times_two"](x).sum(), rng.standard_normal((3, 4)))


def test_the_covector_is_not_the_caller_s_own_random_array(planted):
    """With u equal to b, as the same seed would draw it, b uᵀ = u bᵀ and a transposed rule would pass."""
    square = np.random.default_rng(0).standard_normal((4, 4))
    with pytest.raises(GradcheckError):
        gradcheck(planted["transposed_matmul"], square, square)


def test_the_worst_index_is_named(rng):
    @primitive
    def one_wrong(x):
        def vjp(g):
            g = g.copy()
            g[1, 2] += 5
            return g

        return x * 1.0, (vjp,)

    try:
        with pytest.raises(GradcheckError, match=r"worst at index \(1, 2\).*1 of 6 entries"):
            gradcheck(one_wrong, rng.standard_normal((2, 3)))
    finally:
        del PRIMITIVES["one_wrong"]


def test_bad_arguments_are_errors():
    with pytest.raises(ShapeError, match="ids from 0 to 5"):
        ops.embedding(np.ones((5, 2)), np.array([0, 5]))
    with pytest.raises(ShapeError, match="no target"):
        ops.cross_entropy(np.ones((0, 4)), np.array([], int))
    with pytest.raises(ShapeError, match="cannot be shared evenly"):
        ops.attention(np.ones((1, 3, 2, 4)), np.ones((1, 2, 2, 4)), np.ones((1, 2, 2, 4)))
    q, k = np.ones((2, 1, 3, 4)), np.ones((2, 1, 5, 4))
    with pytest.raises(ShapeError, match="5 queries but only 3 keys"):
        ops.attention(k, q, q)
    for mask in (np.ones((2, 3), bool), np.ones((2, 5))):
        with pytest.raises(ShapeError, match=r"where bool\[2, 5\] or bool\[2, 3, 5\] is needed"):
            ops.attention(q, k, k, mask=mask)
    mask = np.array([[True] * 5, [False] * 3 + [True] * 2])
    ops.attention(q, k, k, causal=False, mask=mask)
    with pytest.raises(ShapeError, match="mask of sequence 1 leaves a query without a key"):
        ops.attention(q, k, k, mask=mask)  # the first query sees the first three keys
    with pytest.raises(ShapeError, match="mask of sequence 0 leaves a query without a key"):
        ops.attention(q, k, k, causal=False, mask=~mask)


@pytest.mark.parametrize("shape", [(2, 4, 1, 1), (2, 4, 3, 2), (3, 2, 5, 4)])
def test_attention_of_transposed_memory(rng, shape):
    """matmul may lay its result out as its inputs are: the softmax must still reach every row."""
    q, k, v = (rng.standard_normal(shape) for _ in range(3))
    expected = ops.attention(q, k[:, :2], v[:, :2]).data
    q, k, v = (np.ascontiguousarray(x.T).T for x in (q, k[:, :2], v[:, :2]))
    np.testing.assert_allclose(ops.attention(q, k, v).data, expected, rtol=1e-12)


def attention_by_definition(q, k, v, visible, bias):
    """Query by query, over the keys that visible (T, S) shows it, with scores raised by bias (H, T, S)."""
    out = np.empty(q.shape)
    for h, t in np.ndindex(q.shape[:2]):
        kv, keys = h * len(k) // len(q), visible[t]
        p = np.exp(k[kv, keys] @ q[h, t] / np.sqrt(q.shape[2]) + bias[h, t, keys])
        out[h, t] = p @ v[kv, keys] / p.sum()
    return out


@given(data=st.data())
@pytest.mark.parametrize("causal", [True, False])
def test_attention_is_its_definition(data, causal):
    """A hidden key is as one that is not there; sequences do not see each other."""
    d = Draw(data)
    B, K, G, T, hd = (d.size(some) for _ in range(5))
    S = T + d.size() if causal else d.size(some)
    q, k, v = d.array(B, K * G, T, hd), d.array(B, K, S, hd), d.array(B, K, S, hd)
    mask = d.rng.random((B, S)) < 0.6
    mask[:, 0] = True
    bias = d.array(K * G, d.data.draw(st.sampled_from([1, T])), S)
    full = np.broadcast_to(bias, (K * G, T, S))
    y = ops.attention(q, k, v, causal=causal, mask=mask, bias=bias).data
    whole = ops.attention(q, k, v, causal=causal).data
    before = np.tri(T, S, S - T, bool) if causal else np.ones((T, S), bool)
    for b in range(B):
        np.testing.assert_allclose(y[b], attention_by_definition(q[b], k[b], v[b], before & mask[b], full), atol=1e-12)
        plain = attention_by_definition(q[b], k[b], v[b], before, np.zeros_like(full))
        np.testing.assert_allclose(whole[b], plain, atol=1e-12)
