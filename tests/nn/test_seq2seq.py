import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minilora import no_grad
from minilora.autograd import gradcheck
from minilora.errors import ConfigError, DataError
from minilora.nn import Seq2Seq, Seq2SeqConfig
from minilora.nn.seq2seq import Attention
from minilora.train.optim import AdamW


def config(**changes):
    fields = {"vocab_size": 12, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2,
              "num_attention_heads": 4, "max_position_embeddings": 16}  # fmt: skip
    return Seq2SeqConfig(**(fields | changes))


def lively(**changes) -> Seq2Seq:
    model, rng = Seq2Seq(config(**changes)), np.random.default_rng(1)
    for p in model.parameters():
        p.data = p.data + rng.standard_normal(p.shape, np.float32) * np.float32(0.3)
    return model


MODEL = lively()


def test_attention_to_a_memory_by_its_definition(rng):
    """Query by query and head by head: softmax(q k / √hd) over the memory's tokens that are not padding."""
    attention = Attention(config(), rng, rng)
    x, memory = rng.standard_normal((2, 3, 16), np.float32), rng.standard_normal((2, 5, 16), np.float32)
    mask = np.array([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0]], bool)
    q, k, v = attention.q_proj(x).data, attention.k_proj(memory).data, attention.v_proj(memory).data
    expected = np.zeros((2, 3, 16), np.float32)
    for b, t, h in np.ndindex(2, 3, 4):
        head = slice(4 * h, 4 * h + 4)
        p = np.exp(k[b, mask[b], head] @ q[b, t, head] / 2)
        expected[b, t, head] = p @ v[b, mask[b], head] / p.sum()
    y = attention(x, memory, mask=mask).data
    np.testing.assert_allclose(y, attention.out_proj(expected).data, atol=1e-5)


@given(st.integers(1, 6), st.integers(1, 4), st.integers(0, 2**32))
def test_padding_does_not_matter(length, padding, seed):
    rng = np.random.default_rng(seed)
    source, target = rng.integers(1, 12, (2, length)), rng.integers(0, 12, (2, 5))
    with no_grad():
        expected = MODEL(source, target).data
        padded = MODEL(np.pad(source, ((0, 0), (0, padding))), target).data
    np.testing.assert_allclose(padded, expected, atol=1e-4)


def test_what_each_side_sees(rng):
    """Every target token sees the whole source, and of the target itself and what came before."""
    source, target = rng.integers(1, 11, (1, 6)), rng.integers(1, 11, (1, 6))
    with no_grad():
        before = MODEL(source, target).data[0]
        for t in range(6):
            changed = source.copy()
            changed[0, t] += 1
            assert (np.abs(MODEL(changed, target).data[0] - before).max(1) > 1e-4).all()
            changed = target.copy()
            changed[0, t] += 1
            difference = np.abs(MODEL(source, changed).data[0] - before).max(1)
            assert (difference[:t] == 0).all() and (difference[t:] > 1e-4).all()


def test_loss_is_the_mean_over_targets_each_predicted_from_those_before(rng):
    source, target = rng.integers(1, 12, (2, 6)), rng.integers(0, 12, (2, 5))
    target[1, 3:] = -100
    with no_grad():
        terms = []
        for b, t in zip(*np.nonzero(target != -100), strict=True):
            z = MODEL(source[[b]], np.r_[0, target[b, :t]][None]).data[0, -1].astype(np.float64)
            terms.append(np.log(np.exp(z).sum()) - z[target[b, t]])
        assert len(terms) == 8
        assert MODEL.loss(source, target).item() == pytest.approx(np.mean(terms), rel=1e-5)
        assert MODEL.loss(source, target, reduction="sum").item() == pytest.approx(np.sum(terms), rel=1e-5)


def test_gradients_of_the_whole_model(rng):
    """In float64, with padding, for a weight of the encoder, one of each attention and the embedding, used thrice."""
    model = lively()
    source, target = rng.integers(1, 12, (2, 5)), rng.integers(1, 12, (2, 4))
    source[1, 3:] = 0
    for p in model.parameters():
        p.data, p.requires_grad = p.data.astype(np.float64), False
    m = model.model
    for owners in ([m.shared, model.lm_head], [m.encoder.layers[0].self_attn.k_proj], [m.decoder.layers[0].fc1],
                   [m.decoder.layers[0].encoder_attn.v_proj], [m.decoder.layers[0].self_attn_layer_norm]):  # fmt: skip
        original = owners[0].weight

        def loss(w, owners=owners):
            for owner in owners:
                owner.weight = w
            return model.loss(source, target)

        gradcheck(loss, original.data)
        for owner in owners:
            owner.weight = original


def test_it_learns_to_reverse():
    """Eight random tokens backwards, on sequences it has not seen: attention has to find each by its position."""
    model, rng = Seq2Seq(config(hidden_size=32, intermediate_size=64, num_hidden_layers=1)), np.random.default_rng(0)
    optimizer = AdamW(model.parameters())
    for step in range(350):
        source = rng.integers(1, 12, (32, 8))
        optimizer.lr = 3e-3 * min(1, (step + 1) / 50)  # the paper's warm-up: post-norm diverges without it
        optimizer.zero_grad()
        model.loss(source, source[:, ::-1]).backward()
        optimizer.step()
    source = rng.integers(1, 12, (200, 8))
    assert (model.generate(source, 8) == source[:, ::-1]).all(1).mean() > 0.9


def test_bad_input():
    with pytest.raises(ConfigError, match="multiple of num_attention_heads"):
        config(num_attention_heads=3)
    with pytest.raises(DataError, match="sequence 1 of the source is nothing but padding"):
        MODEL(np.array([[1, 2], [0, 0]]), np.array([[1], [1]]))
    with pytest.raises(DataError, match="17 tokens is longer than the model's 16"):
        MODEL(np.ones((1, 17), int), np.array([[1]]))
