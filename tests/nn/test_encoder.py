import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minilora import LoraConfig, get_peft_model, no_grad, quantize_model
from minilora.autograd import gradcheck
from minilora.errors import ConfigError, DataError, MiniloraError
from minilora.models.embed import embed
from minilora.models.generate import generate_tokens
from minilora.nn import BertModel, EncoderConfig, Linear, QuantizedLinear


def config(**changes):
    fields = {"vocab_size": 20, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2,
              "num_attention_heads": 4, "max_position_embeddings": 32}  # fmt: skip
    return EncoderConfig(**(fields | changes))


def lively(**changes) -> BertModel:
    """A model with large random weights, so that what a token sees changes it visibly."""
    model, rng = BertModel(config(**changes)), np.random.default_rng(1)
    for p in model.parameters():
        p.data = p.data + rng.standard_normal(p.shape, np.float32) * np.float32(0.3)
    return model


MODEL = lively()


@st.composite
def batches(draw):
    """ids (B, T), and a mask (B, T) that marks the first tokens of each row as real."""
    lengths = np.array(draw(st.lists(st.integers(1, 8), min_size=1, max_size=5)))
    width = lengths.max() + draw(st.integers(0, 3))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    return rng.integers(0, 20, (len(lengths), width)), np.arange(width) < lengths[:, None]


@given(batches(), st.integers(1, 19))
def test_what_the_padding_holds_does_not_matter(batch, shift):
    ids, mask = batch
    with no_grad():
        hidden = MODEL(ids, mask).data
        other = MODEL(np.where(mask, ids, (ids + shift) % 20), mask).data
    np.testing.assert_array_equal(hidden[mask], other[mask])


@given(batches())
def test_a_row_alone_is_the_row_in_its_batch(batch):
    ids, mask = batch
    with no_grad():
        hidden, together = MODEL(ids, mask).data, embed(MODEL, ids, mask).data
        for row, real, h, e in zip(ids, mask, hidden, together, strict=True):
            alone = row[real][None]
            np.testing.assert_allclose(h[real], MODEL(alone).data[0], atol=2e-5)
            np.testing.assert_allclose(e, embed(MODEL, alone).data[0], atol=1e-5)


@given(batches(), st.randoms(use_true_random=False))
def test_the_order_of_a_batch_does_not_matter(batch, random):
    ids, mask = batch
    order = random.sample(range(len(ids)), len(ids))
    with no_grad():
        a, b = MODEL(ids, mask).data, MODEL(ids[order], mask[order]).data
    np.testing.assert_allclose(a[order][mask[order]], b[mask[order]], atol=2e-5)


@given(batches())
def test_embeddings_are_unit_means_over_the_tokens(batch):
    ids, mask = batch
    with no_grad():
        hidden, e = MODEL(ids, mask).data.astype(np.float64), embed(MODEL, ids, mask.astype(int)).data
    assert e.dtype == np.float32
    for h, real, got in zip(hidden, mask, e, strict=True):
        mean = h[real].mean(0)
        np.testing.assert_allclose(got, mean / np.linalg.norm(mean), atol=1e-6)


def test_every_token_sees_every_other(rng):
    ids = rng.integers(0, 20, (1, 6))
    with no_grad():
        before = MODEL(ids).data[0]
        for t in range(6):
            changed = ids.copy()
            changed[0, t] = (changed[0, t] + 1) % 20
            assert (np.abs(MODEL(changed).data[0] - before).max(1) > 1e-3).all()


def test_positions_and_token_types_count(rng):
    ids = np.full((1, 4), 7)
    with no_grad():
        hidden = MODEL(ids).data
        assert np.abs(hidden[0, 0] - hidden[0, 1]).max() > 1e-3  # the same token at two positions
        np.testing.assert_array_equal(MODEL(ids, token_type_ids=np.zeros((1, 4), int)).data, hidden)
        assert np.abs(MODEL(ids, token_type_ids=np.ones((1, 4), int)).data - hidden).max() > 1e-3


def test_gradients_of_the_whole_encoder(rng):
    """Through every layer and the pooling at once, in float64, with padding, for one weight of each kind."""
    model = lively()
    ids, mask = rng.integers(0, 20, (2, 5)), np.array([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
    for p in model.parameters():
        p.data, p.requires_grad = p.data.astype(np.float64), False
    layer = model.encoder.layer[0]
    for owner in (model.embeddings.word_embeddings, model.embeddings.position_embeddings,
                  model.embeddings.token_type_embeddings, model.embeddings.LayerNorm, layer.attention.self.query,
                  layer.attention.self.value, layer.attention.output.dense, layer.intermediate.dense,
                  layer.output.LayerNorm):  # fmt: skip
        original = owner.weight

        def embeddings(w, owner=owner):
            owner.weight = w
            return embed(model, ids, mask)

        gradcheck(embeddings, original.data)
        owner.weight = original
    gradcheck(model.pooler, model(ids).data)


@pytest.mark.parametrize("double_quant", [False, True])
def test_quantize_model_keeps_no_float_copy(rng, double_quant):
    model, ids, mask = lively(), rng.integers(0, 20, (3, 6)), np.arange(6) < np.array([[6], [4], [1]])
    count = model.num_parameters()
    assert quantize_model(model, "nf4", double_quant=double_quant) is model
    layers = [(path, m) for path, m in model.named_modules() if isinstance(m, QuantizedLinear)]
    assert len(layers) == 2 * 6 + 1 and model.num_parameters() == count
    assert not any(isinstance(m, Linear) for _, m in model.named_modules())
    with no_grad():
        quantized = model(ids, mask).data
        for path, m in layers:  # the same as a float model that holds the dequantized weights
            dense = Linear(*m.shape[::-1], bias=True)
            dense.weight.data, dense.bias = m.quantized_weight.dequantize(), m.bias
            model.set_submodule(path, dense)
        np.testing.assert_allclose(quantized[mask], model(ids, mask).data[mask], atol=5e-5)
        assert np.abs(quantized - MODEL(ids, mask).data).max() > 1e-3


def test_adapters_train_on_it(rng):
    """LoRA beside 4-bit layers of an encoder: gradients reach the adapters and nothing else."""
    ids, mask = rng.integers(0, 20, (2, 5)), np.array([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0]])
    model = get_peft_model(quantize_model(lively()), LoraConfig(r=2, target_modules=["query", "value"]))
    with no_grad():
        base = embed(model, ids, mask).data
    e = embed(model, ids, mask)
    np.testing.assert_array_equal(e.data, base)
    (e[0] * e[1]).sum().backward()
    trained = {name for name, p in model.named_parameters() if p.grad is not None}
    assert trained == set(model.trainable()) and all(".lora_" in name for name in trained) and len(trained) == 8


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_attention_heads": 3}, "multiple of num_attention_heads"),
        ({"hidden_size": 0}, "hidden_size must be a positive integer"),
        ({"vocab_size": "many"}, "vocab_size must be a positive integer, not 'many'"),
        ({"type_vocab_size": 1.5}, "type_vocab_size"),
        ({"layer_norm_eps": None}, "layer_norm_eps"),
    ],
)
def test_impossible_configurations(changes, message):
    with pytest.raises(ConfigError, match=message):
        config(**changes)


def test_bad_batches():
    ids = np.zeros((2, 4), int)
    for wrong, message in (
        ({"ids": np.zeros((1, 33), int)}, "33 tokens is longer"),
        ({"ids": np.zeros((1, 4))}, "integers"),
        ({"ids": np.zeros((0, 4), int)}, "at least one"),
        ({"attention_mask": np.ones((2, 3))}, r"attention_mask has shape \(2, 3\); the ids have \(2, 4\)"),
        ({"token_type_ids": np.ones((1, 4), int)}, "token_type_ids has shape"),
        ({"attention_mask": [[1, 1, 1, 1], [0, 0, 0, 0]]}, "sequence 1 of the batch has no token"),
    ):
        with pytest.raises(DataError, match=message):
            MODEL(**({"ids": ids} | wrong))
    for wrong in ({"ids": ids + 20}, {"token_type_ids": ids + 2}):
        with pytest.raises(MiniloraError, match="ids from"):
            MODEL(**({"ids": ids} | wrong))


def test_it_is_no_language_model(rng):
    model = get_peft_model(lively(), LoraConfig(r=2, target_modules=["query"]))
    uses = [lambda m: m.loss([[1, 2]], [[1, 2]]), lambda m: list(generate_tokens(m, [1, 2], 3))]
    for m, use in itertools.product((MODEL, model), uses):
        with pytest.raises(ConfigError, match="a BERT encoder predicts no next token"):
            use(m)


def test_same_seed_same_weights():
    a, b, c = (BertModel(config(), seed).state_dict() for seed in (0, 0, 1))
    assert all(np.array_equal(a[n], b[n]) for n in a) and not all(np.array_equal(a[n], c[n]) for n in a)
    assert not any(w.any() for n, w in BertModel(config(), None).state_dict().items() if "LayerNorm.weight" not in n)
