"""The estimate against what is there: the tape's bytes, the process's peak, and the figures of the papers."""

import gc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import minilora as ml
from minilora import memory
from minilora.autograd import ledger
from minilora.bench.memory import measure
from minilora.errors import ConfigError, UnknownNameError
from minilora.memory import BUILT_IN, estimate, shape_of
from minilora.nn import quantize_model
from minilora.nn.bloom import Bloom
from minilora.nn.gpt2 import GPT2, GPTBigCode
from minilora.nn.language_model import ModelConfig
from minilora.nn.transformer import CausalLM, TransformerConfig
from minilora.viz.charts import megabytes

SMALL = {
    "llama": (CausalLM, TransformerConfig(300, 64, 160, 3, 4, num_key_value_heads=2)),
    "gpt2": (GPT2, ModelConfig(300, 64, 256, 3, 4)),
    "bigcode": (GPTBigCode, ModelConfig(300, 64, 256, 3, 4, num_key_value_heads=1)),
    "bloom": (Bloom, ModelConfig(300, 64, 256, 3, 4)),
}


def prepared(family, config, adapter, r=4, **more):
    model = family(config, seed=0)
    if adapter == "qlora":
        quantize_model(model, "nf4", double_quant=True)
    if adapter != "full":
        model = ml.get_peft_model(model, ml.LoraConfig(r=r, target_modules="all-linear", **more))
    return model.train()


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("adapter", ["full", "lora", "qlora"])
def test_weights_adapters_and_activations_are_what_the_model_and_its_tape_hold(name, adapter):
    family, config = SMALL[name]
    model = prepared(family, config, adapter)
    need = estimate((family, config), adapter, batch=4, seq=65, r=4)
    trained = sum(p.data.nbytes for p in model.trainable().values())
    assert need.adapters == (0 if adapter == "full" else trained) and need.gradients == trained
    assert need.weights == pytest.approx(model.memory_footprint() - need.adapters, rel=0.01)
    gc.collect()
    ids = np.random.default_rng(0).integers(0, 300, (4, 65))
    loss = model.loss(ids, ids)
    assert need.activations == pytest.approx(ledger().total, rel=0.1)
    loss.backward()


@pytest.mark.parametrize("name", SMALL)
def test_dropout_keeps_its_masks_and_an_input_for_each_adapter(name):
    family, config = SMALL[name]
    model = prepared(family, config, "lora", lora_dropout=0.1)
    need = estimate((family, config), "lora", batch=4, seq=65, r=4, lora_dropout=0.1)
    gc.collect()
    ids = np.random.default_rng(0).integers(0, 300, (4, 65))
    loss = model.loss(ids, ids)
    assert need.activations == pytest.approx(ledger().total, rel=0.1)
    assert need.activations > 1.2 * estimate((family, config), "lora", batch=4, seq=65, r=4).activations
    loss.backward()


@pytest.mark.parametrize("adapter", ["full", "lora", "qlora"])
@pytest.mark.parametrize(("batch", "seq", "checkpointing"), [(4, 64, False), (4, 256, False), (4, 256, True)])
def test_the_peak_of_a_run_is_as_estimated(adapter, batch, seq, checkpointing):
    need, peak = measure("embedded", adapter, batch, seq, steps=2, checkpointing=checkpointing)
    assert need.peak == pytest.approx(peak, rel=0.1)


def test_published_figures():
    """QLoRA, section 1: more than 780 GB for 65 billion weights at 12 bytes; LLaMA 65B's NF4 base of 33.6 GB."""
    llama = BUILT_IN["llama-65b"]
    full = estimate(llama, "full", dtype="bfloat16")
    assert full.model_state == 12 * shape_of(*llama).parameters == pytest.approx(780e9, rel=0.005)
    linear = 80 * sum(m * n for m, n in shape_of(*llama).linears.values())
    bits = memory.NF4_BITS[True]
    assert shape_of(*llama).parameters * bits / 8 == pytest.approx(33.6e9, rel=0.005)  # were the embeddings in it
    assert estimate(llama, "qlora", dtype="bfloat16").weights == pytest.approx(
        linear * bits / 8 + 2 * (shape_of(*llama).parameters - linear)
    )


@pytest.mark.parametrize(
    ("name", "billions"),
    [("gpt3-175b", 174.6), ("llama-7b", 6.738), ("llama-13b", 13.016), ("llama-65b", 65.286), ("bloom-3b", 3.003),
     ("smollm2-135m", 0.1345), ("starcoder-1b", 1.137)],
)  # fmt: skip
def test_built_in_shapes_have_the_published_number_of_weights(name, billions):
    assert shape_of(*BUILT_IN[name]).parameters / 1e9 == pytest.approx(billions, rel=5e-4)


@given(
    st.sampled_from(sorted(SMALL)), st.sampled_from(["full", "lora", "qlora"]), st.integers(1, 4), st.integers(2, 40)
)
def test_more_tokens_need_more_and_checkpointing_never_more(name, adapter, batch, seq):
    model = SMALL[name]
    need, more = estimate(model, adapter, batch, seq), estimate(model, adapter, batch + 1, seq)
    assert more.activations > need.activations and more.model_state == need.model_state
    assert estimate(model, adapter, batch, seq, checkpointing=True).activations <= need.activations
    assert estimate(model, "qlora", batch, seq).weights <= estimate(model, "lora", batch, seq).weights


def test_bad_arguments_are_named():
    with pytest.raises(UnknownNameError, match="llama-7b"):
        memory.named("llama-7")
    with pytest.raises(UnknownNameError, match="qlora"):
        estimate(SMALL["llama"], "qlra")
    with pytest.raises(UnknownNameError, match="bfloat16"):
        estimate(SMALL["llama"], dtype="bf16")
    with pytest.raises(ConfigError, match="2048"):
        estimate(SMALL["llama"], seq=4096)
    with pytest.raises(ConfigError, match="no linear layer"):
        estimate(SMALL["llama"], target_modules=["nothing"])


def test_table_and_picture():
    needs = {way: estimate(BUILT_IN["llama-7b"], way, dtype="bfloat16") for way in ("full", "lora", "qlora")}
    lines = memory.table(needs)
    assert lines[-1].split()[-1] == "GB" and "none" in lines[-1] and "peak" in lines[-2]
    drawn = memory.picture(needs, "t")
    assert drawn.count("<rect") > 10
    for need in needs.values():  # the longer of a way's two bars is the peak
        assert megabytes(need.peak) in drawn
