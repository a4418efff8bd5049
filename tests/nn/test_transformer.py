import itertools

import numpy as np
import pytest

from minilora import Tensor, no_grad, quantize_model
from minilora.autograd import gradcheck
from minilora.errors import ConfigError, DataError, MiniloraError
from minilora.nn import CausalLM, Linear, QuantizedLinear, TransformerConfig


def config(**changes):
    fields = {"vocab_size": 20, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2,
              "num_attention_heads": 4, "max_position_embeddings": 32}  # fmt: skip
    return TransformerConfig(**(fields | changes))


KINDS = list(itertools.product(["rmsnorm", "layernorm"], ["swiglu", "gelu", "gelu_tanh"], ["rotary", "learned"]))


@pytest.mark.parametrize(("norm", "activation", "positions"), KINDS)
@pytest.mark.parametrize(("kv_heads", "tied"), [(1, True), (2, False), (4, True)])
def test_cached_decoding_is_the_whole_forward_pass(rng, norm, activation, positions, kv_heads, tied):
    c = config(norm=norm, activation=activation, positions=positions, num_key_value_heads=kv_heads,
               tie_word_embeddings=tied, bias=norm == "layernorm")  # fmt: skip
    model, ids = CausalLM(c), rng.integers(0, 20, (2, 9))
    with no_grad():
        whole = model(ids).data
        cache = model.new_cache(2, 9)
        parts = [model(ids[:, a:b], cache).data for a, b in ((0, 4), (4, 5), (5, 9))]
    np.testing.assert_allclose(np.concatenate(parts, 1), whole, atol=2e-6)


@pytest.mark.parametrize("kv_heads", [1, 4])
@pytest.mark.parametrize("norm", ["rmsnorm", "layernorm"])
def test_gradients_of_the_whole_model(rng, kv_heads, norm):
    """Through every layer at once, in float64, for one weight of each kind."""
    model = CausalLM(config(num_key_value_heads=kv_heads, norm=norm, activation="gelu_tanh", positions="learned"))
    ids = rng.integers(0, 20, (2, 5))
    for p in model.parameters():
        p.data, p.requires_grad = p.data.astype(np.float64), False
    layer = model.model.layers[0]
    for owner in (model.model.embed_tokens, layer.self_attn.q_proj, layer.mlp.down_proj, layer.input_layernorm):
        original = owner.weight

        def loss(w, owner=owner):
            owner.weight = w
            return model.loss(ids, ids)

        gradcheck(loss, original.data)
        owner.weight = original


def test_the_future_does_not_matter(rng):
    model, ids = CausalLM(config()), rng.integers(0, 20, (1, 8))
    changed = ids.copy()
    changed[0, 5:] = (changed[0, 5:] + 1) % 20
    with no_grad():
        np.testing.assert_array_equal(model(ids).data[:, :5], model(changed).data[:, :5])


def test_padding_does_not_matter(rng):
    model, ids = CausalLM(config()), rng.integers(0, 20, (2, 6))
    labels = ids.copy()
    padded_ids, padded_labels = np.pad(ids, ((0, 0), (0, 3))), np.pad(labels, ((0, 0), (0, 3)), constant_values=-100)
    with no_grad():
        assert model.loss(ids, labels).item() == pytest.approx(model.loss(padded_ids, padded_labels).item(), rel=1e-6)


def test_loss_is_the_mean_over_targets(rng):
    model, ids = CausalLM(config()), rng.integers(0, 20, (2, 6))
    labels = np.where(rng.random(ids.shape) < 0.5, ids, -100)
    labels[0, 3] = ids[0, 3]
    with no_grad():
        z = model(ids).data.astype(np.float64)
        log_p = z - np.log(np.exp(z).sum(-1, keepdims=True))
        terms = [-log_p[b, t - 1, labels[b, t]] for b in range(2) for t in range(1, 6) if labels[b, t] != -100]
        assert model.loss(ids, labels).item() == pytest.approx(np.mean(terms), rel=1e-5)
        assert model.loss(ids, labels, reduction="sum").item() == pytest.approx(np.sum(terms), rel=1e-5)


def test_dropout_only_in_training(rng):
    model, ids = CausalLM(config(dropout=0.5)), rng.integers(0, 20, (1, 6))
    with no_grad():
        assert np.array_equal(model(ids).data, model(ids).data)
        model.train()
        assert not np.array_equal(model(ids).data, model(ids).data)


def test_quantize_model_keeps_no_float_copy(rng):
    model = CausalLM(config(tie_word_embeddings=False))
    ids = rng.integers(0, 20, (1, 6))
    weights = {path: m.weight.data for path, m in model.named_modules() if hasattr(m, "weight")}
    count = model.num_parameters()
    quantize_model(model)
    layers = [(path, m) for path, m in model.named_modules() if isinstance(m, QuantizedLinear)]
    assert len(layers) == 14 and "lm_head" not in dict(layers)
    assert model.num_parameters() == count
    for path, m in layers:
        q = m.quantized_weight
        assert q.nbytes < weights[path].nbytes / 5 and not any(isinstance(v, Tensor) for v in vars(m).values())
        assert all(a.dtype != np.float32 or a.size <= 1 + q.size // (64 * 256) for a in q.arrays.values())
    with no_grad():
        quantized = model(ids).data
        for path, m in layers:  # the same as a float model that holds the dequantized weights
            dense = Linear(*m.shape[::-1])
            dense.weight.data = m.quantized_weight.dequantize()
            model.set_submodule(path, dense)
        np.testing.assert_allclose(quantized, model(ids).data, atol=1e-5)
    with pytest.raises(MiniloraError, match="no Linear layer"):
        quantize_model(quantize_model(CausalLM(config())))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"norm": "batchnorm"}, "rmsnorm, layernorm"),
        ({"num_key_value_heads": 3}, "multiple of num_key_value_heads"),
        ({"hidden_size": 0}, "hidden_size must be a positive integer"),
        ({"num_hidden_layers": 2.0}, "num_hidden_layers must be a positive integer"),
        ({"norm_eps": 0}, "norm_eps must be positive"),
        ({"rope_theta": 0.0}, "rope_theta must be positive"),
        ({"dropout": 1.0}, "dropout"),
        ({"head_dim": 3}, "head_dim must be even"),
    ],
)
def test_impossible_configurations(changes, message):
    with pytest.raises(ConfigError, match=message):
        config(**changes)


def test_bad_batches():
    model = CausalLM(config())
    with pytest.raises(DataError, match="33 tokens is longer"):
        model(np.zeros((1, 33), int))
    with pytest.raises(DataError, match="no label"):
        model.loss(np.zeros((1, 4), int), np.full((1, 4), -100))
    with pytest.raises(DataError, match="integers"):
        model(np.zeros((1, 4)))
    with pytest.raises(MiniloraError, match="ids from"):
        model(np.full((1, 4), 20))


def test_state_dict_round_trip_and_strictness():
    a, b = CausalLM(config(), seed=0), CausalLM(config(), seed=1)
    b.load_state_dict(a.state_dict())
    assert all(np.array_equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))
    arrays = dict(a.state_dict())
    arrays.pop("model.norm.weight")
    with pytest.raises(MiniloraError, match=r"1 tensors are missing, the first 'model\.norm\.weight'"):
        b.load_state_dict(arrays)
