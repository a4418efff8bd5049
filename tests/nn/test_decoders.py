"""What holds of every decoder: LLaMA's, GPT-2's, GPTBigCode's, BLOOM's. (More on LLaMA's in test_transformer.py.)"""

import numpy as np
import pytest

from minilora import LoraConfig, get_peft_model, no_grad, ops, quantize_model
from minilora.autograd import gradcheck
from minilora.errors import ConfigError, DataError
from minilora.models.generate import generate_tokens
from minilora.nn import GPT2, Bloom, CausalLM, GPTBigCode, Linear, ModelConfig, QuantizedLinear, TransformerConfig
from minilora.nn.attention import Context
from minilora.nn.bloom import Attention
from minilora.nn.positions import alibi_slopes

SIZES = {"vocab_size": 20, "hidden_size": 16, "intermediate_size": 64, "num_hidden_layers": 2,
         "num_attention_heads": 4, "max_position_embeddings": 32}  # fmt: skip


def lively(kind, **changes):
    """A model with large random weights, so that what a token sees changes it visibly."""
    config = TransformerConfig if kind is CausalLM else ModelConfig
    if kind is GPTBigCode:
        changes = {"num_key_value_heads": 1} | changes
    model, rng = kind(config(**(SIZES | changes))), np.random.default_rng(1)
    for p in model.parameters():
        p.data = p.data + rng.standard_normal(p.shape, np.float32) * np.float32(0.3)
    return model


@pytest.fixture(params=[CausalLM, GPT2, GPTBigCode, Bloom], ids=lambda kind: kind.__name__)
def kind(request):
    return request.param


@pytest.mark.parametrize("changes", [{}, {"tie_word_embeddings": False, "norm_eps": 1e-3}])
def test_cached_decoding_is_the_whole_forward_pass(rng, kind, changes):
    model, ids = lively(kind, **changes), rng.integers(0, 20, (2, 9))
    with no_grad():
        whole = model(ids).data
        cache = model.new_cache(2, 9)
        parts = [model(ids[:, a:b], cache).data for a, b in ((0, 4), (4, 5), (5, 9))]
        last = model(ids, last_only=True).data
    np.testing.assert_allclose(np.concatenate(parts, 1), whole, atol=1e-4)
    np.testing.assert_allclose(last, whole[:, -1:], atol=1e-4)


def test_greedy_generation_takes_the_likeliest_token(rng, kind):
    model, ids = lively(kind), rng.integers(0, 20, 5).tolist()
    for token in generate_tokens(model, list(ids), 10):
        with no_grad():
            assert token == model(np.array([ids])).data[0, -1].argmax()
        ids.append(token)
    assert len(ids) == 15


def test_each_token_counts_for_those_after_it_and_for_no_other(rng, kind):
    model, ids = lively(kind), rng.integers(0, 20, (1, 8))
    with no_grad():
        before = model(ids).data[0]
        for t in range(8):
            changed = ids.copy()
            changed[0, t] = (changed[0, t] + 1) % 20
            difference = np.abs(model(changed).data[0] - before).max(1)
            assert (difference[:t] == 0).all() and (difference[t:] > 1e-3).all()


def test_order_counts(rng, kind):
    """Without positions, the last token would see a set."""
    model, ids = lively(kind), np.array([[3, 5, 7, 9]])
    with no_grad():
        assert np.abs(model(ids).data - model(ids[:, [1, 0, 2, 3]]).data)[0, 3].max() > 1e-3


def test_gradients_of_the_whole_model(rng, kind):
    """Through every layer at once, in float64, for one weight of each name in a layer, and for the embedding."""
    model = lively(kind, activation="gelu_tanh", tie_word_embeddings=False)
    ids, owners = rng.integers(0, 20, (2, 5)), {}
    for path, module in model.named_modules():
        owners.setdefault(path.rpartition(".")[2], module)
    for p in model.parameters():
        p.data, p.requires_grad = p.data.astype(np.float64), False
    for owner in owners.values():
        if not hasattr(owner, "weight"):
            continue
        original = owner.weight

        def loss(w, owner=owner):
            owner.weight = w
            return model.loss(ids, ids)

        gradcheck(loss, original.data)
        owner.weight = original


def test_the_tied_embedding_gets_the_gradient_of_both_its_uses(rng, kind):
    tied, ids = lively(kind), rng.integers(0, 20, (2, 5))
    untied = lively(kind, tie_word_embeddings=False)
    untied.load_state_dict(tied.state_dict() | {"lm_head.weight": tied.lm_head.weight.data})
    assert tied.num_parameters() == untied.num_parameters() - 16 * 20
    for model in (tied, untied):
        model.loss(ids, ids).backward()
    embedding = next(p for p in untied.parameters())
    np.testing.assert_allclose(tied.lm_head.weight.grad, embedding.grad + untied.lm_head.weight.grad, atol=1e-5)


def test_quantized_layers_are_those_of_the_dequantized_weights(rng, kind):
    model, ids = lively(kind, hidden_size=32), rng.integers(0, 20, (1, 6))
    count, before = model.num_parameters(), model.memory_footprint()
    with no_grad():
        exact = model(ids).data
    names = {path for path, m in model.named_modules() if hasattr(m, "weight") and m.weight.ndim == 2}
    quantize_model(model)
    layers = [(path, m) for path, m in model.named_modules() if isinstance(m, QuantizedLinear)]
    embeddings = {"lm_head", "model.embed_tokens", "transformer.wte", "transformer.wpe", "transformer.word_embeddings"}
    assert {path for path, _ in layers} == names - embeddings
    assert model.num_parameters() == count and model.memory_footprint() < before / 2
    with no_grad():
        quantized = model(ids).data
        for path, m in layers:
            dense = Linear(*m.shape[::-1])
            dense.weight.data, dense.bias = m.quantized_weight.dequantize(), m.bias
            model.set_submodule(path, dense)
        np.testing.assert_allclose(quantized, model(ids).data, atol=1e-4)
    assert 0 < np.linalg.norm(quantized - exact) < np.linalg.norm(exact)


@pytest.mark.parametrize(("kind", "name"), [(GPT2, "c_attn"), (GPTBigCode, "c_attn"), (Bloom, "query_key_value")])
@pytest.mark.parametrize("quantized", [False, True])
def test_adapters_on_the_fused_projection(rng, kind, name, quantized):
    model, ids = lively(kind), rng.integers(0, 20, (2, 6))
    if quantized:
        quantize_model(model)
    with no_grad():
        before = model(ids).data
    attention = "self_attention" if kind is Bloom else "attn"
    d_out = 16 + 2 * 4 if kind is GPTBigCode else 48
    model = get_peft_model(model, LoraConfig(r=2, target_modules=[name]))
    shapes = {key.replace(".default", ""): p.shape for key, p in model.trainable().items()}
    assert shapes == {
        f"base_model.model.transformer.h.{i}.{attention}.{name}.lora_{part}.weight": shape
        for i in range(2)
        for part, shape in (("A", (2, 16)), ("B", (d_out, 2)))
    }
    with no_grad():
        np.testing.assert_array_equal(model(ids).data, before)
    model.loss(ids, ids).backward()
    assert all(np.abs(p.grad).max() > 0 for key, p in model.trainable().items() if ".lora_B" in key)


def test_multi_query_attention_is_attention_with_equal_key_and_value_heads(rng):
    one, all_ = lively(GPTBigCode), lively(GPTBigCode, num_key_value_heads=4)
    arrays = dict(one.state_dict())
    for i in range(2):
        for kind in ("weight", "bias"):
            key = f"transformer.h.{i}.attn.c_attn.{kind}"
            q, k, v = np.split(arrays[key], [16, 20])
            arrays[key] = np.concatenate([q, *[k] * 4, *[v] * 4])
    all_.load_state_dict(arrays)
    ids = rng.integers(0, 20, (2, 7))
    with no_grad():
        np.testing.assert_allclose(one(ids).data, all_(ids).data, atol=1e-4)
    assert 4 * one.new_cache(1, 8).keys.nbytes == all_.new_cache(1, 8).keys.nbytes


def test_bloom_s_attention_by_its_definition(rng):
    """Scores q k / √hd - slope · (i - j), head by head: three heads, of which one slope lies between powers of two."""
    B, T, H, hd = 2, 5, 3, 4
    attention, x = (
        Attention(ModelConfig(20, H * hd, 8, 2, H), 0, rng, rng),
        rng.standard_normal((B, T, H * hd), np.float32),
    )
    rows = attention.query_key_value(x).data.reshape(B, T, H, 3, hd).transpose(3, 0, 2, 1, 4)  # (3, B, H, T, hd)
    expected, slopes = np.zeros((B, T, H, hd), np.float32), alibi_slopes(H)
    for b, h, i in np.ndindex(B, H, T):
        (q, k, v), j = rows[:, b, h], np.arange(i + 1)
        p = np.exp(k[: i + 1] @ q[i] / 2 - slopes[h] * (i - j))
        expected[b, i, h] = p @ v[: i + 1] / p.sum()
    alibi = slopes[:, None, None] * (np.arange(T, dtype=np.float32) - T + 1)
    expected = attention.dense(expected.reshape(B, T, H * hd)).data
    np.testing.assert_allclose(attention(x, alibi, Context(np.arange(T), T)).data, expected, atol=1e-5)


def test_a_long_text_ends_where_the_positions_do(kind):
    with pytest.raises(DataError, match="33 tokens is longer than the model's 32"):
        lively(kind)(np.zeros((1, 33), int))


def test_impossible_configurations():
    with pytest.raises(ConfigError, match="activation is one of gelu, gelu_tanh, relu"):
        ModelConfig(**SIZES, activation="swiglu")
    with pytest.raises(ConfigError, match="BLOOM has num_key_value_heads = num_attention_heads"):
        Bloom(ModelConfig(**SIZES, num_key_value_heads=2))
    with pytest.raises(ConfigError, match="bias is one of False, True, attention, qkv"):
        TransformerConfig(**SIZES, bias="k")
    assert ops.relu is GPT2(ModelConfig(**SIZES, activation="relu")).transformer.h[0].mlp.act.function
