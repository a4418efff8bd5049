"""Packed rows, padded rows and checkpointed layers compute what plain ones do, in every family."""

import gc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minilora import LoraConfig, get_peft_model, ledger, no_grad
from minilora.data.packing import join, pack
from minilora.errors import DataError
from minilora.nn import CausalLM, TransformerConfig
from minilora.nn.bloom import Bloom
from minilora.nn.gpt2 import GPT2, GPTBigCode
from minilora.nn.language_model import ModelConfig
from minilora.nn.transformer import RopeScaling

SIZES = {"vocab_size": 30, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4,
         "max_position_embeddings": 40}  # fmt: skip
SCALING = RopeScaling("linear", 2.0)
MODELS = {
    "llama": lambda **more: CausalLM(TransformerConfig(**SIZES, num_key_value_heads=2, **more)),
    "llama-scaled": lambda **more: CausalLM(TransformerConfig(**SIZES, rope_scaling=SCALING, **more)),
    "llama-learned": lambda **more: CausalLM(TransformerConfig(**SIZES, positions="learned", **more)),
    "gpt2": lambda **more: GPT2(ModelConfig(**SIZES, **more)),
    "bigcode": lambda **more: GPTBigCode(ModelConfig(**SIZES, num_key_value_heads=1, **more)),
    "bloom": lambda **more: Bloom(ModelConfig(**SIZES, **more)),
}
every_model = pytest.mark.parametrize("name", MODELS)


def in_float64(model):
    for p in model.parameters():
        p.requires_grad = False  # and again, so that its gradient is float64 as well
        p.data = p.data.astype(np.float64) * 3  # far from uniform
        p.requires_grad = True
    return model


def examples(rng, lengths):
    rows = []
    for n in lengths:
        ids = rng.integers(0, 30, n)
        labels = np.where(rng.random(n) < 0.3, -100, ids)
        labels[-1] = ids[-1]
        rows.append({"input_ids": ids, "labels": labels})
    return rows


@every_model
@given(seed=st.integers(0, 1000), lengths=st.lists(st.integers(2, 12), min_size=1, max_size=6))
def test_the_packed_loss_is_the_sum_of_the_separate_losses(name, seed, lengths):
    """And so are its gradients."""
    model, rng = in_float64(MODELS[name]()), np.random.default_rng(seed)
    rows = examples(rng, lengths)
    separate = 0
    for row in rows:
        loss = model.loss(row["input_ids"][None], row["labels"][None], reduction="sum")
        loss.backward()
        separate += loss.item()
    wanted = {n: p.grad for n, p in model.named_parameters()}
    for p in model.parameters():
        p.grad = None
    packed = [join([rows[i] for i in row], 24) for row in pack(lengths, 24)]
    batch = {key: np.stack([row[key] for row in packed]) for key in ("input_ids", "labels", "segment_ids")}
    loss = model.loss(**batch, reduction="sum")
    loss.backward()
    assert loss.item() == pytest.approx(separate, rel=1e-12)
    for n, p in model.named_parameters():
        np.testing.assert_allclose(p.grad, wanted[n], rtol=1e-9, atol=1e-11)


def test_naive_packing_is_wrong(rng):
    """Without segments the later examples see the earlier ones, and are asked to follow from them."""
    model = in_float64(MODELS["llama"]())
    rows = examples(rng, [8, 8, 8])
    separate = sum(model.loss(r["input_ids"][None], r["labels"][None], reduction="sum").item() for r in rows)
    row = join(rows)
    naive = model.loss(row["input_ids"][None], row["labels"][None], reduction="sum").item()
    segments = row["segment_ids"][None]
    right = model.loss(row["input_ids"][None], row["labels"][None], reduction="sum", segment_ids=segments)
    assert abs(naive - separate) > 0.01 * separate and right.item() == pytest.approx(separate, rel=1e-12)


def test_a_segments_first_token_is_no_target(rng):
    model, ids = MODELS["llama"](), rng.integers(0, 30, (1, 6))
    _, _, targets = model.target_logits(ids, ids, np.array([[1, 1, 1, 2, 2, 2]]))
    np.testing.assert_array_equal(targets, ids[0, [1, 2, 4, 5]])


@every_model
@given(seed=st.integers(0, 1000), lengths=st.lists(st.integers(1, 9), min_size=1, max_size=4))
def test_rows_padded_on_the_left_have_the_logits_that_they_have_alone(name, seed, lengths):
    model, rng = in_float64(MODELS[name]()), np.random.default_rng(seed)
    longest = max(lengths)
    ids, mask = rng.integers(0, 30, (len(lengths), longest)), np.zeros((len(lengths), longest), bool)
    for row, n in enumerate(lengths):
        mask[row, longest - n :] = True
    logits = model(ids, attention_mask=mask).data
    for row, n in enumerate(lengths):
        alone = model(ids[row : row + 1, longest - n :]).data[0]
        np.testing.assert_allclose(logits[row, longest - n :], alone, rtol=1e-9, atol=1e-10)


@every_model
def test_padding_and_the_cache(name, rng):
    model = in_float64(MODELS[name]())
    ids, mask = rng.integers(0, 30, (2, 9)), np.ones((2, 9), bool)
    mask[1, :4] = False
    whole, cache, parts = model(ids, attention_mask=mask).data, model.new_cache(2, 9), []
    cache.keys, cache.values = np.zeros(cache.keys.shape), np.zeros(cache.keys.shape)
    with no_grad():
        for a, b in ((0, 6), (6, 7), (7, 9)):
            parts.append(model(ids[:, a:b], cache=cache, attention_mask=mask[:, :b]).data)
    np.testing.assert_allclose(np.concatenate(parts, 1)[mask], whole[mask], rtol=1e-9, atol=1e-10)


@every_model
def test_checkpointed_layers_give_the_same_gradients_bit_for_bit(name, rng):
    ids = rng.integers(0, 30, (2, 9))
    results = []
    for checkpointed in (False, True):
        model = get_peft_model(MODELS[name](dropout=0.1), LoraConfig(r=2, lora_dropout=0.2)).train()
        for i, p in enumerate(model.trainable().values()):
            p.data = np.random.default_rng(i).standard_normal(p.shape).astype(np.float32)
        if checkpointed:
            model.gradient_checkpointing_enable()
        losses = []
        for _ in range(2):
            loss = model.loss(ids, ids)
            loss.backward()
            losses.append(loss.item())
        results.append((losses, {n: p.grad for n, p in model.trainable().items()}))
    assert results[0][0] == results[1][0]
    for n, g in results[0][1].items():
        np.testing.assert_array_equal(g, results[1][1][n])


def test_with_checkpoints_the_tape_holds_one_input_a_layer_and_not_what_a_layer_keeps():
    def held(layers, checkpointed):
        gc.collect()
        config = TransformerConfig(**(SIZES | {"num_hidden_layers": layers}))
        model = get_peft_model(CausalLM(config), LoraConfig(r=2)).train()
        if checkpointed:
            model.gradient_checkpointing_enable()
        loss = model.loss(np.ones((2, 21), int), np.ones((2, 21), int))
        size = ledger().by_op
        loss.backward()
        return size

    inputs = 2 * 20 * 16 * 4
    few, many = held(3, True), held(8, True)
    assert many["checkpoint"] - few["checkpoint"] == 5 * inputs
    assert sum(many.values()) - sum(few.values()) == 5 * inputs
    assert sum(held(8, False).values()) - sum(held(3, False).values()) > 8 * 5 * inputs


def test_bad_segments_and_masks_are_refused(rng):
    model, ids = MODELS["llama"](), rng.integers(0, 30, (2, 5))
    with pytest.raises(DataError, match=r"segment_ids must be integers \[2, 5\]"):
        model(ids, segment_ids=np.ones((2, 4), int))
    with pytest.raises(DataError, match=r"attention_mask must be \[2, 5\]"):
        model(ids, attention_mask=np.ones((2, 4), bool))
