"""Every entry of docs/errata.md, proven: that the popular statement fails, and that the right one holds.

A test is named after its entry's heading, and the page's own code is run as it stands: neither can change alone.
"""

import dataclasses
import math
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import minilora as ml
from minilora.lora import LoraLinear
from minilora.nn import CausalLM, Linear, QuantizedLinear, TransformerConfig
from minilora.quant import CODES, expected_error
from minilora.train.optim import AdamW
from minilora.train.schedule import SCHEDULES, learning_rate_factor

PAGE = Path(__file__).parents[1] / "docs" / "errata.md"
TEXT = PAGE.read_text(encoding="utf-8")
PEERS = r"^(?:import|from) (torch|bitsandbytes|transformers)\b"
FULL = 512 * 512  # entries of the matrix that examples are about
vectors = hnp.arrays(np.float32, st.integers(1, 200), elements=st.floats(-1e6, 1e6, width=32))


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def codes_of(q):
    return np.stack([q.packed >> 4, q.packed & 15], 1).ravel()[: q.size]


class Counting(np.ndarray):
    """An array that counts the multiply-adds of the matrix products, and the products by entry, that it is part of."""

    matmul = multiply = 0

    def __array_ufunc__(self, ufunc, method, *inputs, out=(), **kwargs):
        def plain(x):
            return x.view(np.ndarray) if isinstance(x, Counting) else x

        inputs = [plain(x) for x in inputs]
        if out:
            kwargs["out"] = tuple(map(plain, out))
        result = getattr(ufunc, method)(*inputs, **kwargs)
        if ufunc is np.matmul:
            Counting.matmul += result.size * inputs[0].shape[-1]
        if ufunc is np.multiply:
            Counting.multiply += result.size
        return result.view(Counting) if isinstance(result, np.ndarray) else result


def multiply_adds(layer, rows=4, backward=True):
    """Those that one row of x takes in the layer, forward (and backward, for x too), counted as they are done."""
    for p in layer.parameters():
        p.data = p.data.view(Counting)
    Counting.matmul = 0
    x, ones = ml.Tensor(normal(rows, 512), requires_grad=True), ml.Tensor(1.0)
    ones.data = np.ones((rows, 512), np.float32).view(Counting)  # so that gradients count as well
    loss = (layer(x) * ones).sum()
    if backward:
        loss.backward()
    return Counting.matmul / rows


def lora_layer(r=8, alpha=8, base=None, seed=0):
    """A LoraLinear of 512 x 512 with random A and B."""
    rng = np.random.default_rng(seed)
    layer = LoraLinear(base or Linear(512, 512, rng=rng), ml.LoraConfig(r=r, lora_alpha=alpha), rng)
    layer.base_layer.requires_grad_(False)
    _, B = adapter(layer)
    B.data = rng.standard_normal(B.shape, np.float32)
    return layer


def adapter(layer):
    """Its A and B."""
    return layer.trainable().values()


def small_model():
    return CausalLM(TransformerConfig(64, 32, 48, num_hidden_layers=2, num_attention_heads=2))


# The page itself


def slugs():
    headings = re.findall(r"^### (\d+|[A-E])\. (.+)$", TEXT, re.M)
    return [f"test_{n.zfill(2)}_" + re.sub(r"\W+", "_", words.replace("'", "")).lower() for n, words in headings]


def test_the_page_has_the_entries_that_are_proven_here_and_no_other():
    tests = [name for name in globals() if re.match(r"test_(\d\d|0[A-E])_", name)]
    assert slugs() == tests
    assert [name[5:7] for name in tests] == [f"{n:02}" for n in range(1, 24)] + ["0A", "0B", "0C", "0D", "0E"]


def test_each_entry_says_what_is_said_what_holds_and_proves_it():
    for entry in re.split(r"^### ", TEXT, flags=re.M)[1:]:
        assert entry.count("**Often said:**") == entry.count("**In fact:**") == 1, entry
        assert re.search(r"^```python\n(?:(?!^```).)*^assert ", entry, re.M | re.S) or "    assert " in entry, entry


def blocks():
    for match in re.finditer(r"^```python\n(.*?)^```$", TEXT, re.M | re.S):
        line = TEXT.count("\n", 0, match.start(1))
        peers = sorted(set(re.findall(PEERS, match[1], re.M)))
        yield pytest.param(line, match[1], peers, id=f"line{line}", marks=[pytest.mark.peers] if peers else [])


@pytest.mark.parametrize(("line", "code", "peers"), list(blocks()))
def test_the_code_of_the_page_runs(line, code, peers):
    assert "assert " in code
    for name in peers:
        pytest.importorskip(name)
    exec(compile("\n" * line + code, str(PAGE), "exec"), {"__name__": "errata"})


# Entries


@pytest.mark.parametrize("blocksize", [16, 64, 4096])
def test_01_nf4_is_not_sixteen_even_steps(blocksize):
    assert np.ptp(np.diff(CODES["linear16"])) < 1e-6 and np.ptp(np.diff(CODES["nf4"])) > 0.2
    x = normal(1 << 16)
    x[::blocksize] = 0
    nf4, even = (ml.quantize(x, code, blocksize).dequantize() for code in ("nf4", "linear16"))
    assert (nf4[::blocksize] == 0).all() and (even[::blocksize] != 0).all()
    assert expected_error("nf4", blocksize).mae < 0.95 * expected_error("linear16", blocksize).mae
    assert np.abs(nf4 - x).mean() < np.abs(even - x).mean()


@given(vectors)
def test_02_the_int8_scale_multiplies_and_comes_from_the_largest_absolute_value(x):
    x[np.abs(x) < 1e-30] = 0  # products with numbers near the smallest are not exact
    absmax = np.float32(max(np.abs(x).max(), 1e-30))
    codes = np.rint(x * (np.float32(127) / absmax))
    assert np.abs(codes).max() <= 127
    q = ml.quantize(x, "int8", blocksize=None)
    np.testing.assert_array_equal(q.packed, codes)
    assert (np.abs(q.packed.astype(float) * absmax / 127 - x) <= absmax / 253).all()
    if absmax > 127:  # c < 1
        assert np.abs(np.rint(x.astype(float) / (127 / absmax))).max() > 127  # divided
    if -x.min() > 1.1 * x.max() > 0:
        assert np.rint(x.astype(float) * (127 / x.max())).min() < -127  # the signed maximum


@pytest.mark.parametrize("shape", [(4, 4), (6, 3)])
def test_03_u_and_v_come_from_different_products(shape):
    A = normal(*shape).astype(float)
    U, s, Vt = np.linalg.svd(A, full_matrices=False)
    n = len(s)
    left, right = (np.linalg.eigh(M)[1][:, ::-1][:, :n] for M in (A @ A.T, A.T @ A))
    np.testing.assert_allclose(np.abs(left.T @ U), np.eye(n), atol=1e-9)
    np.testing.assert_allclose(np.abs(right.T @ Vt.T), np.eye(n), atol=1e-9)
    if shape[0] == n:
        assert np.abs(np.abs(right.T @ U) - np.eye(n)).max() > 0.1  # U is not among the eigenvectors of AᵀA
    else:
        assert right.shape[0] != U.shape[0]  # they do not even have its length
    for column in range(n):  # a sign turned: still eigenvectors, no longer a decomposition of A
        turned = U.copy()
        turned[:, column] *= -1
        np.testing.assert_allclose(A @ A.T @ turned, turned * s**2, atol=1e-9)
        assert np.linalg.norm(turned * s @ Vt - A) == pytest.approx(2 * s[column])
    np.testing.assert_allclose((A @ right / s) * s @ right.T, A, atol=1e-9)


@pytest.mark.parametrize("k", [1, 2, 4])
def test_04_truncation_keeps_columns_of_u_and_rows_of_v_transposed(k):
    A = normal(7, 5).astype(float)
    U, s, Vt = np.linalg.svd(A, full_matrices=False)
    best = U[:, :k] * s[:k] @ Vt[:k]
    error = np.linalg.norm(A - best)
    assert error == pytest.approx(np.sqrt((s[k:] ** 2).sum()))
    for seed in range(20):  # nothing else of rank k comes closer, even with its best coefficients
        basis = np.linalg.qr(U[:, :k] + 0.1 * normal(7, k, seed=seed))[0]
        assert np.linalg.norm(A - basis @ basis.T @ A) > error
    corner = np.zeros_like(A)
    corner[:k, :k] = U[:k, :k] * s[:k] @ Vt[:k, :k]
    assert np.linalg.norm(A - corner) > 1.1 * error


@pytest.mark.parametrize("absmax", [0.05, 0.9, 40])
def test_05_scaling_by_16_over_absmax_does_not_give_nf4(absmax):
    x = (np.linspace(-1, 1, 64) * absmax).astype(np.float32)
    products = np.rint(16 / np.abs(x).max() * x)
    assert len(np.unique(products)) == 33 and len(np.unique(np.diff(np.unique(products)))) == 1
    scale = round(16 / absmax)
    assert scale == 0 if absmax > 32 else (scale * x != np.rint(scale * x)).any()
    q = ml.quantize(x, "nf4", 64)
    assert sorted(set(codes_of(q).tolist())) == list(range(16))
    np.testing.assert_array_equal(q.dequantize(), CODES["nf4"][codes_of(q)] * np.abs(x).max())


@pytest.mark.parametrize("groups", [1, 4, 64])
def test_06_double_quantization_costs_0_127_bits_a_weight(groups):
    x = normal(groups * 64 * 256)
    single, double = ml.quantize(x, "nf4", 64), ml.quantize(x, "nf4", 64, double_quant=True)
    constants = 8 * (double.absmax_codes.nbytes + double.absmax2.nbytes) / x.size
    assert constants == 0.126953125 == 8 / 64 + 32 / (64 * 256)
    assert 8 * double.absmax2.nbytes / x.size == 0.001953125  # that share of it which is quoted alone
    assert single.bits_per_weight == 4.5 and double.bits_per_weight == 4 + constants + 32 / x.size


@pytest.mark.parametrize(("r", "alpha"), [(1, 8), (4, 8), (8, 4)])
def test_07_the_adapter_output_is_added(r, alpha):
    layer, x = lora_layer(r, alpha), ml.Tensor(normal(3, 512))
    A, B = adapter(layer)
    frozen, low = layer.base_layer(x).data, x.data @ A.data.T @ B.data.T
    np.testing.assert_allclose(layer(x).data, frozen + alpha / r * low, rtol=1e-3, atol=1e-3)
    assert layer(x).shape == (3, 512) != np.einsum("nd,nd->n", frozen, low).shape
    B.data[:] = 0
    np.testing.assert_array_equal(layer(x).data, frozen)  # a product would be zero here
    assert np.abs(frozen).max() > 1


def test_08_four_bits_are_for_storage_not_for_computing():
    q, x = ml.quantize(normal(48, 64), "nf4"), normal(5, 64, seed=1)
    assert q.packed.nbytes == 48 * 64 / 2
    y = ml.ops.linear_4bit(ml.Tensor(x), q).data
    assert y.dtype == np.float32
    weight = CODES["nf4"][codes_of(q)].reshape(48, 64) * q.absmax.reshape(48, 1)
    np.testing.assert_allclose(y, x @ weight.T, atol=1e-4)

    def off_the_line(levels):
        codes = np.arange(len(levels))
        return np.abs(np.polyval(np.polyfit(codes, levels, 1), codes) - levels).max()

    assert off_the_line(CODES["int4"]) < 1e-6  # codes that integer arithmetic could multiply
    assert off_the_line(CODES["nf4"]) > 0.1


@pytest.mark.parametrize("r", [1, 8, 64])
def test_09_an_unmerged_adapter_slows_the_forward_pass(r):
    layer, x = lora_layer(r), ml.Tensor(normal(4, 512))
    merged = layer.merged()
    np.testing.assert_allclose(merged(x).data, layer(x).data, rtol=1e-3, atol=1e-2)
    assert multiply_adds(layer, backward=False) == FULL + 2 * r * 512
    assert multiply_adds(merged, backward=False) == multiply_adds(Linear(512, 512), backward=False) == FULL


def test_10_activations_outweigh_the_adapter():
    full, model = small_model(), ml.get_peft_model(small_model(), ml.LoraConfig(r=4))
    few = ml.get_peft_model(small_model(), ml.LoraConfig(r=4, target_modules=["q_proj", "v_proj"]))
    adapter = 4 * 4 * model.trainable_parameters()[0]  # value, gradient and AdamW's two moments, float32

    def kept(model, batch):
        before = ml.ledger().total
        ids = np.random.default_rng(0).integers(0, 64, (batch, 64))
        loss = model.loss(ids, ids)
        return ml.ledger().total - before + 0 * loss.item()

    assert kept(model, 8) > 10 * adapter
    assert kept(model, 8) > 1.7 * kept(model, 4)  # grows with the batch; the adapter does not
    # Without an adapter a frozen layer's input need not be kept; with one it must be, as A's gradient needs it.
    assert kept(few, 8) < 0.95 * kept(model, 8) and 0.95 < kept(model, 8) / kept(full, 8) < 1.05


@pytest.mark.parametrize("learning_rate", [1e-3, 0.1])
def test_11_a_and_b_cannot_both_start_at_zero(learning_rate):
    x, y = ml.Tensor(normal(16, 512)), normal(16, 512, seed=1)

    def train(layer, steps):
        A, B = adapter(layer)
        B.data[:] = 0
        optimizer, seen = AdamW([A, B], lr=learning_rate), []
        for _ in range(steps):
            optimizer.zero_grad()
            ((layer(x) - y) ** 2).mean().backward()
            seen.append((bool(A.grad.any()), bool(B.grad.any())))
            optimizer.step()
        return seen

    assert train(lora_layer(), 3) == [(False, True), (True, True), (True, True)]
    zero = lora_layer()
    A, _ = adapter(zero)
    A.data[:] = 0
    assert train(zero, 5) == [(False, False)] * 5 and not zero.delta_weight().any()


cdf = np.vectorize(lambda z: 0.5 * (1 + math.erf(z / math.sqrt(2))))  # of the normal distribution


def bin_shares(code, blocksize):
    """The probability of each level for normal weights scaled by their block's absmax (see quant/theory.py)."""
    levels, m = CODES[code].astype(float), np.linspace(0.02, 7, 400)
    mass = 2 * cdf(m) - 1
    density = mass ** (blocksize - 1) * np.exp(-m * m / 2)
    borders = np.concatenate([[-1], (levels[1:] + levels[:-1]) / 2, [1]])
    inside = np.diff(cdf(borders[:, None] * m), axis=0) / mass @ density / density.sum()
    ends = np.zeros(16)
    ends[[0, -1]] = 0.5  # the entry that is the maximum
    return (blocksize - 1) / blocksize * inside + ends / blocksize


@pytest.mark.parametrize(("blocksize", "bits"), [(16, 3.99), (64, 3.88), (256, 3.75), (4096, 3.52)])
def test_12_nf4_bins_are_not_equally_likely(blocksize, bits):
    p = bin_shares("nf4", blocksize)
    measured = np.bincount(codes_of(ml.quantize(normal(1 << 20), "nf4", blocksize)), minlength=16) / (1 << 20)
    np.testing.assert_allclose(measured, p, atol=2e-3)
    entropy = -(p * np.log2(p)).sum()
    assert p.sum() == pytest.approx(1) and entropy == pytest.approx(bits, abs=0.006) and entropy < 4
    assert p.max() > 1.15 / 16 and p.min() < 0.85 / 16
    borders = np.concatenate([[-np.inf], (CODES["nf4"][1:] + CODES["nf4"][:-1]) / 2, [np.inf]])
    fixed = np.diff(cdf(1.848 * borders))  # what is right: divided by a number that does not depend on the weights
    assert -(fixed * np.log2(fixed)).sum() == pytest.approx(3.996, abs=5e-4)


@pytest.mark.parametrize(("size", "low", "high"), [(1e-4, 0, 0.03), (5e-4, 0.02, 0.04), (5e-3, 0.95, 1.05)])
def test_13_merging_into_four_bits_loses_the_update(size, low, high):
    W = np.float32(0.02) * normal(512, 512, seed=3)
    layer = lora_layer(base=QuantizedLinear(ml.quantize(W, "nf4")))
    _, B = adapter(layer)
    B.data *= np.float32(size) / layer.delta_weight().std()
    base, wanted = layer.base_layer.quantized_weight.dequantize(), layer.delta_weight()
    x = ml.Tensor(normal(4, 512))
    np.testing.assert_allclose(layer.merged()(x).data, layer(x).data, atol=1e-3)  # into the dequantized base
    assert np.linalg.norm(W + wanted - (base + wanted)) > 1.8e-3 * 512  # into the original: the base's error
    got = ml.quantize(base + wanted, "nf4").dequantize() - base
    assert low <= np.vdot(got, wanted) / np.vdot(wanted, wanted) <= high
    relative = np.linalg.norm(got - wanted) / np.linalg.norm(wanted)
    assert relative > 1 if size < 1e-3 else relative == pytest.approx(0.375, abs=0.01)
    largest = np.abs(base + wanted).reshape(-1, 64).argmax(1) + 64 * np.arange(512 * 8)
    np.testing.assert_allclose(got.ravel()[largest], wanted.ravel()[largest], atol=1e-7)  # these do survive


@pytest.mark.peers
def test_14_a_constant_schedule_ignores_warm_up_in_hugging_face():
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")

    def theirs(kind):
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
        schedule = transformers.get_scheduler(kind, optimizer, num_warmup_steps=10, num_training_steps=100)
        rates = []
        for _ in range(100):
            rates.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            schedule.step()
        return rates

    assert theirs("constant") == [1.0] * 100
    warm = [min(1.0, step / 10) for step in range(100)]
    assert theirs("constant_with_warmup") == pytest.approx(warm)
    for kind in SCHEDULES:  # ours: every schedule, and its first update is not lost on a rate of zero
        ours = [learning_rate_factor(kind, step, 100, warmup=10) for step in range(101)]
        assert ours[:10] == pytest.approx(warm[1:11])
    assert [learning_rate_factor("constant", step, 100, 10) for step in range(100)] == pytest.approx([*warm[1:], 1.0])


@pytest.mark.parametrize("pad", [0, 9, 63])
def test_15_padding_with_the_end_token_needs_masking_by_position(pad):
    end, model = 9, small_model()
    texts = [{"input_ids": [5, 6, 7, 8, end]}, {"input_ids": [8, end]}]
    tokenizer = type("Tokenizer", (), {"eos_token_id": pad})()
    batch = ml.DataCollatorForLanguageModeling(tokenizer)(texts)
    alone = [model.loss([t["input_ids"]], [t["input_ids"]], reduction="sum").item() for t in texts]
    together = model.loss(batch["input_ids"], batch["labels"], reduction="sum").item()
    assert together == pytest.approx(sum(alone), rel=1e-6)  # whatever pads, the end token among them
    by_number = np.where(batch["input_ids"] == pad, -100, batch["input_ids"])
    assert (by_number == end).sum() == (0 if pad == end else 2) and (batch["labels"] == end).sum() == 2


@given(st.lists(st.integers(1, 20), min_size=2, max_size=5), st.integers(0, 99))
def test_16_a_mean_of_means_is_not_the_mean(sizes, seed):
    model, rng = small_model(), np.random.default_rng(seed)
    ids = rng.integers(0, 64, (len(sizes), 22))
    labels = np.full_like(ids, -100)
    for row, size in enumerate(sizes):
        labels[row, 1 : 1 + size] = ids[row, 1 : 1 + size]

    def gradient(losses):
        model.model.norm.weight.grad = None
        for loss in losses:
            loss.backward()
        return model.model.norm.weight.grad

    rows = [(ids[i : i + 1], labels[i : i + 1]) for i in range(len(sizes))]
    whole = gradient([model.loss(ids, labels)])
    sums = gradient([model.loss(*row, reduction="sum") * (1 / sum(sizes)) for row in rows])
    means = gradient([model.loss(*row) * (1 / len(sizes)) for row in rows])
    np.testing.assert_allclose(sums, whole, rtol=1e-3, atol=2e-6)
    wrong = np.abs(means - whole).max() / np.abs(whole).max()
    assert wrong < 1e-4 if len(set(sizes)) == 1 else wrong > 1e-4


def test_17_bitsandbytes_fp4_is_not_e2m1():
    fp4, e2m1 = CODES["fp4"], CODES["e2m1"]
    assert set(np.abs(fp4).tolist()) ^ set(np.abs(e2m1).tolist()) == {fp4[1].item(), e2m1[1].item()}
    assert (fp4[1], e2m1[1]) == (np.float32(1 / 192), np.float32(1 / 12))
    assert (fp4 != e2m1).sum() == 10  # the same number stands for another level
    for blocksize in (32, 64, 4096):
        assert expected_error("fp4", blocksize).mae > 1.15 * expected_error("e2m1", blocksize).mae


def test_18_a_formed_ba_is_in_the_graph():
    values = normal(8, 512), normal(512, 8, seed=1), normal(4, 512, seed=2)

    def run(product):
        A, B, x = (ml.Tensor(a, requires_grad=True) for a in values)
        before = ml.ledger().total
        y = product(x, A, B)
        kept = ml.ledger().total - before
        (y * y).sum().backward()
        return kept, A.grad, B.grad

    shapes = []

    def formed(x, A, B):
        BA = B @ A
        BA.register_hook(lambda gradient: shapes.append(gradient.shape))
        return x @ BA.T

    (few, *factored), (many, *whole) = run(lambda x, A, B: x @ A.T @ B.T), run(formed)
    assert few < 4 * FULL / 100 and many >= 4 * FULL and shapes == [(512, 512)]
    for ours, theirs in zip(factored, whole, strict=True):  # the same function and the same gradients
        np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-2 * np.abs(theirs).max())
    layer = lora_layer()
    layer(ml.Tensor(values[2])).sum().backward()
    assert [p.grad.shape for p in layer.parameters() if p.grad is not None] == [(8, 512), (512, 8)]


@given(st.integers(-8, 8), st.floats(3, 6), st.integers(0, 99))
def test_19_nf4_does_not_standardize_weights(power, offset, seed):
    x = normal(1024, seed=seed)
    q = ml.quantize(x)
    np.testing.assert_array_equal(q.packed, ml.quantize(x * np.float32(2.0**power)).packed)
    np.testing.assert_array_equal(q.absmax, np.abs(x.reshape(-1, 64)).max(1))
    shifted = x + np.float32(offset) * x.std()  # standardized, it would be x again
    codes = codes_of(ml.quantize(shifted))
    assert (codes != codes_of(q)).mean() > 0.5
    assert (codes[shifted > 0] >= 7).all() and (codes < 7).mean() < 0.01


def test_20_qlora_saves_memory_not_time():
    q, x = ml.quantize(normal(512, 512), "nf4"), normal(16, 512, seed=1)

    def run(product, weight):
        inputs = ml.Tensor(x, requires_grad=True)
        y = product(inputs, weight)
        forward, Counting.multiply = Counting.multiply, 0
        y.backward(np.ones_like(y.data))
        return y.data, inputs.grad, forward, Counting.multiply

    Counting.multiply = 0
    *ours, forward, backward = run(ml.ops.linear_4bit, dataclasses.replace(q, absmax=q.absmax.view(Counting)))
    assert forward >= FULL and backward >= FULL  # level · absmax for every weight, twice
    for a, b in zip(ours, run(ml.ops.linear, q.dequantize())[:2], strict=True):
        np.testing.assert_allclose(a, b, atol=1e-3)  # and then the same products as with float weights
    assert 4 * FULL / q.nbytes == 32 / 4.5


def test_21_a_smaller_rank_is_hardly_faster():
    cost = {r: multiply_adds(lora_layer(r)) for r in (1, 2, 8, 85, 86)}
    assert cost == {r: 2 * FULL + 3 * 2 * r * 512 for r in cost}
    assert cost[8] / cost[1] < 1.05
    full = multiply_adds(Linear(512, 512))
    assert full == 3 * FULL and 1.4 < full / cost[1] < 1.5
    assert cost[85] < full < cost[86]
    sizes = [sum(p.size for p in lora_layer(r).trainable().values()) for r in (256, 600)]
    assert sizes[0] == FULL and sizes[1] > 2 * FULL  # r may even be larger than the layer


@pytest.mark.parametrize("seed", range(3))
def test_22_singular_values_need_not_fall_exponentially(seed):
    n = 256
    s = np.linalg.svd(normal(n, n, seed=seed).astype(float), compute_uv=False) / n**0.5
    inside = np.minimum(s, 2)
    share_below = (inside * np.sqrt(4 - inside**2) / 2 + 2 * np.arcsin(inside / 2)) / np.pi
    np.testing.assert_allclose(share_below, 1 - (np.arange(n) + 0.5) / n, atol=0.02)
    assert s[n // 2] ** 2 > 20 * s[0] * s[-1]  # an exponential's middle is the geometric mean of its ends
    assert (s[: n // 10] ** 2).sum() < 0.33 * (s**2).sum()
    tall = np.linalg.svd(normal(1024, n, seed=seed).astype(float), compute_uv=False)
    assert tall[0] == pytest.approx(32 + 16, rel=0.03) and tall[-1] == pytest.approx(32 - 16, rel=0.05)
    i = np.arange(n)
    hilbert = np.log(np.linalg.svd(1 / (1 + i[:, None] + i), compute_uv=False)[:10])
    assert (np.diff(hilbert) < -0.8).all()  # here each is less than half of the one before


def wrong_block(q):
    """level · absmax with bitsandbytes' CPU index of the block, for a matrix."""
    C = q.shape[1]
    row, column = np.indices(q.shape)
    absmax = q.absmax[row * (C // q.blocksize) + column // q.blocksize]
    return CODES[q.code][codes_of(q)].reshape(q.shape) * absmax


def test_23_bitsandbytes_on_the_cpu_dequantizes_some_shapes_wrongly():
    """What the wrong index does, in NumPy. It picks too low a block, so that the last ones are never used."""
    arrays = [normal(8, 96, seed=seed) for seed in range(300)]
    quantized = [ml.quantize(x, "nf4", 64) for x in arrays]
    wrong = [np.abs(wrong_block(q) - x).mean() for q, x in zip(quantized, arrays, strict=True)]
    right = [np.abs(q.dequantize() - x).mean() for q, x in zip(quantized, arrays, strict=True)]
    assert wrong[0] == pytest.approx(0.201, abs=5e-4) and right[0] == pytest.approx(0.072, abs=5e-4)
    assert np.mean(wrong) == pytest.approx(0.143, abs=5e-4) and np.mean(right) == pytest.approx(0.073, abs=5e-4)
    assert min(wrong) > 0.09 and max(wrong) == pytest.approx(0.28, abs=5e-3) and max(right) < 0.09
    x = normal(8, 128)  # here 64 divides the row length, and the two indices are one
    np.testing.assert_array_equal(wrong_block(ml.quantize(x)), ml.quantize(x).dequantize())


# Worked examples


def test_0A_int8_of_four_numbers():
    x = [-1024, 5, 2048, 256]
    c = 127 / max(x)
    assert c == pytest.approx(0.062, abs=5e-5) and c < 0.62
    assert [round(i / c) for i in x] == [-16513, 81, 33026, 4128]
    q = ml.quantize(np.float32(x), "int8", blocksize=None)
    assert q.packed.tolist() == [round(i * c) for i in x] == [-64, 0, 127, 16]
    np.testing.assert_allclose(q.dequantize(), [-64 / c, 0, 2048, 16 / c], rtol=1e-6)


def test_0B_int8_with_an_outlier():
    x = np.float32([0, 100, 100000])
    assert [round(i / (127 / 100000)) for i in x.tolist()] == [0, 78740, 78740157]
    q = ml.quantize(x, "int8", blocksize=None)
    assert q.packed.tolist() == [0, 0, 127] and np.abs(q.dequantize() - x).max() == 100 < 100000 / 254
    np.testing.assert_array_equal(ml.quantize(x, "int8", blocksize=2).dequantize(), x)


def test_0C_the_position_of_0_2121():
    even, printed = np.linspace(-1, 1, 16), -1 + 0.1333 * np.arange(16)  # 0.1997 is nine rounded steps
    assert np.abs(even - 0.2121).argmin() == np.abs(printed - 0.2121).argmin() == 9  # the tenth, code 9
    assert printed[9] == pytest.approx(0.1997) and even[9] == pytest.approx(0.2)
    assert round(16 * 0.2121) == 3
    x = np.float32([0.2121, 1])
    assert codes_of(ml.quantize(x, "linear16", 16))[0] == 9
    q = ml.quantize(x, "nf4", 16)
    assert codes_of(q)[0] == 10 and q.dequantize()[0] == CODES["nf4"][10] == np.float32(0.24611230194568634)


def test_0D_what_0_127_bits_make():
    weights = 64 * 256 * 61  # 999,424: a million, but in whole groups
    q = ml.quantize(normal(weights), "nf4", 64, double_quant=True)
    bits = 8 * (q.absmax_codes.nbytes + q.absmax2.nbytes)
    assert bits / weights * 1e6 == pytest.approx(126_953.125) and 8 * q.absmax_codes.nbytes / weights * 1e6 == 125_000
    assert 8 * ml.quantize(normal(weights), "nf4", 64).absmax.nbytes / weights * 1e6 == 500_000


@pytest.mark.parametrize(("r", "trained"), [(1, 1024), (2, 2048)])
def test_0E_a_512_x_512_matrix(r, trained):
    layer, full = lora_layer(r), Linear(512, 512)
    assert sum(p.size for p in layer.trainable().values()) == trained and layer.num_parameters() == FULL + trained
    lora, whole = (multiply_adds(m) - multiply_adds(m, backward=False) for m in (layer, full))
    assert whole == 2 * FULL and lora == FULL + 2 * trained
    assert 1.9 < whole / lora < 2


# Peers


@pytest.mark.peers
@pytest.mark.parametrize("code", ["nf4", "fp4"])
@pytest.mark.parametrize(("shape", "blocksize"), [((8, 96), 64), ((64, 32), 64), ((128, 192), 128), ((8, 128), 64)])
def test_bitsandbytes_dequantizes_with_that_wrong_block(shape, blocksize, code):
    torch, F = pytest.importorskip("torch"), pytest.importorskip("bitsandbytes.functional")
    x = normal(*shape)
    packed, state = F.quantize_4bit(torch.from_numpy(x), blocksize=blocksize, quant_type=code)
    q = ml.quantize(x, code, blocksize)
    np.testing.assert_array_equal(packed.numpy().ravel(), q.packed)
    np.testing.assert_array_equal(state.absmax.numpy(), q.absmax)
    theirs = F.dequantize_4bit(packed, state).numpy()
    np.testing.assert_array_equal(theirs, wrong_block(q))
    assert np.array_equal(theirs, q.dequantize()) == (shape[1] % blocksize == 0)


@pytest.mark.peers
def test_transformers_masks_the_padding_token_by_its_number():
    transformers, tokenizers = pytest.importorskip("transformers"), pytest.importorskip("tokenizers")
    pytest.importorskip("torch")
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0, "b": 1, "<end>": 2}, unk_token="a"))
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<end>", eos_token="<end>")
    collator = transformers.DataCollatorForLanguageModeling(tokenizer, mlm=False)
    examples = [{"input_ids": [0, 1, 0, 2]}, {"input_ids": [1, 2]}]
    assert collator(examples)["labels"].tolist() == [[0, 1, 0, -100], [1, -100, -100, -100]]
    ours = ml.DataCollatorForLanguageModeling(tokenizer)(examples)["labels"]
    assert ours.tolist() == [[0, 1, 0, 2], [1, 2, -100, -100]]
