"""Dropout: of a layer, of attention's probabilities, and in every model, where a config.json can ask for it."""

import copy

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minilora import LoraConfig, Tensor, get_peft_model, no_grad, ops
from minilora.autograd import gradcheck
from minilora.errors import ConfigError
from minilora.nn import GPT2, BertModel, Bloom, CausalLM, GPTBigCode, Seq2Seq
from minilora.nn.attention import attend
from minilora.nn.encoder import EncoderConfig
from minilora.nn.language_model import ModelConfig
from minilora.nn.layers import Dropout
from minilora.nn.seq2seq import Seq2SeqConfig
from minilora.nn.transformer import TransformerConfig
from minilora.train.optim import AdamW

SIZES = {"vocab_size": 20, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2,
         "num_attention_heads": 4, "max_position_embeddings": 32}  # fmt: skip
BLOOM = SIZES | {"intermediate_size": 64}
IDS = np.arange(1, 19).reshape(2, 9)
KINDS = {
    "llama": (CausalLM, TransformerConfig, SIZES, ("dropout", "attention_dropout")),
    "gpt2": (GPT2, ModelConfig, SIZES, ("dropout", "attention_dropout", "embedding_dropout")),
    "gpt_bigcode": (GPTBigCode, ModelConfig, SIZES | {"num_key_value_heads": 1},
                    ("dropout", "attention_dropout", "embedding_dropout")),
    "bloom": (Bloom, ModelConfig, BLOOM, ("dropout", "attention_dropout")),
    "bert": (BertModel, EncoderConfig, SIZES, ("hidden_dropout_prob", "attention_probs_dropout_prob")),
    "marian": (Seq2Seq, Seq2SeqConfig, SIZES, ("dropout", "attention_dropout")),
}  # fmt: skip
PLACES = [(name, field) for name, (*_, fields) in KINDS.items() for field in fields]


def build(name: str, seed=0, **dropouts):
    """A model with large random weights, so that what is dropped counts."""
    kind, config, sizes, _ = KINDS[name]
    model, rng = kind(config(**sizes, **dropouts), seed), np.random.default_rng(1)
    for p in model.parameters():
        p.data = p.data + rng.standard_normal(p.shape, np.float32) * np.float32(0.3)
    return model


def run(model, ids=IDS) -> np.ndarray:
    with no_grad():
        return (model(ids, ids) if isinstance(model, Seq2Seq) else model(ids)).data


def training(p: float, seed=0) -> Dropout:
    return Dropout(p, np.random.default_rng(seed)).train()


def with_the_same_draws(function, *generators):
    """The function, which drops the same entries at each call."""
    before = [g.bit_generator.state for g in generators]

    def repeated(*args):
        for g, state in zip(generators, before, strict=True):
            g.bit_generator.state = state
        return function(*args)

    return repeated


@given(st.floats(0.01, 0.95), st.integers(0, 99))
def test_an_entry_is_dropped_or_scaled(p, seed):
    x = np.random.default_rng(seed).standard_normal((40, 50)).astype(np.float32)
    y = training(p, seed)(Tensor(x)).data
    kept = y != 0
    np.testing.assert_allclose(y[kept], x[kept] / np.float32(1 - p), rtol=1e-6)
    assert abs(kept.mean() - (1 - p)) < 5 * (p * (1 - p) / x.size) ** 0.5  # five standard deviations


def test_outside_training_and_at_zero_nothing_is_done(rng):
    x = Tensor(rng.standard_normal((3, 4)))
    for layer in (training(0.0), training(0.5).eval()):
        before = layer.rng.bit_generator.state
        assert layer(x) is x and layer.rng.bit_generator.state == before


shapes = st.tuples(st.integers(1, 3), st.sampled_from([(1, 1), (4, 1), (4, 2), (3, 3)]), st.integers(1, 5),
                   st.integers(0, 3), st.integers(1, 4))  # fmt: skip


@given(shapes, st.booleans(), st.booleans(), st.booleans(), st.integers(0, 99))
def test_attention_that_may_drop_but_does_not_is_attention(shape, causal, masked, biased, seed):
    (B, (H, K), T, more, hd), rng = shape, np.random.default_rng(seed)
    S = T + more
    q, k, v = (rng.standard_normal(s) for s in ((B, H, T, hd), (B, K, S, hd), (B, K, S, hd)))
    mask = rng.random((B, S)) < 0.7 if masked else None
    if masked:
        mask[:, 0] = True
    bias = rng.standard_normal((H, 1, S)) if biased else None
    tensors, never = [Tensor(a, requires_grad=True) for a in (q, k, v)], training(1e-30)
    assert never.active
    expected = ops.attention(*tensors, causal=causal, mask=mask, bias=bias)
    weight = rng.standard_normal(expected.shape)
    (expected * weight).sum().backward()
    gradients = [t.grad for t in tensors]
    tensors = [Tensor(a, requires_grad=True) for a in (q, k, v)]
    y = attend(*tensors, never, causal, mask, bias)
    np.testing.assert_allclose(y.data, expected.data, atol=1e-12)
    (y * weight).sum().backward()
    for t, g in zip(tensors, gradients, strict=True):
        np.testing.assert_allclose(t.grad, g, atol=1e-12)


def test_attention_drops_probabilities_after_they_were_normalised(rng):
    """With the values' identity, what attention returns is its probabilities."""
    T, p = 8, 0.4
    q, k = (Tensor(rng.standard_normal((1, 2, T, T))) for _ in range(2))
    v = Tensor(np.eye(T)[None, None].repeat(2, 1))
    exact, dropped = ops.attention(q, k, v).data, attend(q, k, v, training(p)).data
    kept = dropped != 0
    np.testing.assert_allclose(dropped[kept], exact[kept] / (1 - p))
    assert 0 < kept.sum() < (exact != 0).sum() and not kept[exact == 0].any()


@pytest.mark.parametrize("heads", [(4, 4), (4, 2), (4, 1)])
def test_gradients_through_dropped_probabilities(rng, heads):
    (H, K), noise = heads, np.random.default_rng(0)
    arrays = [rng.standard_normal((2, n, 5, 3)) for n in (H, K, K)]
    layer = Dropout(0.5, noise).train()
    gradcheck(with_the_same_draws(lambda q, k, v: attend(q, k, v, layer), noise), *arrays)


@pytest.mark.parametrize(("name", "field"), PLACES)
def test_each_is_active_in_training_alone_and_the_seed_decides(name, field):
    plain, models = build(name), [build(name, **{field: 0.5}) for _ in range(2)]
    np.testing.assert_array_equal(run(models[0]), run(plain))
    np.testing.assert_array_equal(run(plain.train()), run(models[0]))  # p = 0 everywhere
    first, second = (run(m.train()) for m in models)
    np.testing.assert_array_equal(first, second)
    assert not np.array_equal(first, run(plain)) and not np.array_equal(first, run(models[0]))
    other = build(name, seed=1, **{field: 0.5}).train()
    other.load_state_dict(plain.state_dict())
    assert not np.array_equal(run(other), first)
    np.testing.assert_array_equal(run(models[0].eval()), run(plain.eval()))


@pytest.mark.parametrize(("name", "field"), [place for place in PLACES if place[0] != "bert"])
def test_gradients_of_a_model_that_drops(name, field):
    model = build(name, **{field: 0.3}).train()
    noise = next(m.rng for _, m in model.named_modules() if isinstance(m, Dropout))
    for p in model.parameters():
        p.data, p.requires_grad = p.data.astype(np.float64), False
    paths = {path.rpartition(".")[2]: path for path, m in model.named_modules() if hasattr(m, "weight")}
    paths.pop("lm_head")  # tied: it is the embedding's
    for path in paths.values():
        owner = model.get_submodule(path)
        original = owner.weight

        def loss(w, owner=owner):
            owner.weight = w
            return model.loss(IDS, IDS)

        gradcheck(with_the_same_draws(loss, noise), original.data)
        owner.weight = original


@pytest.mark.parametrize("name", ["gpt2", "gpt_bigcode", "bloom"])
def test_fine_tuning_with_dropout_learns_and_is_repeatable(name):
    def losses(seed):
        dropouts = dict.fromkeys(KINDS[name][-1], 0.1)
        peft = get_peft_model(build(name, seed=seed, **dropouts), LoraConfig(r=4, lora_dropout=0.1)).train()
        optimizer, found = AdamW(peft.trainable().values(), lr=1e-2), []
        for _ in range(60):
            loss = peft.loss(IDS, IDS)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            found.append(loss.item())
        with no_grad():
            return [*found, peft.eval().loss(IDS, IDS).item()]

    first = losses(0)
    assert first[-1] < first[0] / 2
    assert losses(0) == first and losses(1) != first


def test_a_copy_drops_on_its_own():
    """A deep copy has a generator of its own, in the state of the copied one."""
    model = build("gpt2", dropout=0.5).train()
    other = copy.deepcopy(model)
    np.testing.assert_array_equal(run(model), run(other))
    np.testing.assert_array_equal(run(model), run(other))


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("p", [1.0, -0.1, float("nan"), "0.1", None])
def test_bad_probabilities(name, p):
    _, config, sizes, fields = KINDS[name]
    for field in fields:
        with pytest.raises(ConfigError, match=rf"{field} must be in \[0, 1\), not"):
            config(**sizes, **{field: p})


def test_a_dropout_that_a_model_lacks_is_refused():
    for name in ("llama", "bloom", "marian"):
        with pytest.raises(ConfigError, match="embedding_dropout is GPT-2's"):
            build(name, embedding_dropout=0.1)
