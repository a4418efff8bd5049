"""Layers and small models with adapters, shared by the tests of this folder."""

import numpy as np
from hypothesis import strategies as st

from minilora import LoraConfig, Tensor, get_peft_model, no_grad
from minilora.lora import LoraEmbedding, LoraLinear
from minilora.nn import CausalLM, Embedding, Linear, QuantizedLinear, TransformerConfig
from minilora.nn.layers import Conv1D

IDS = np.arange(10).reshape(2, 5)


def model(seed=0, **fields):
    return CausalLM(TransformerConfig(20, 16, 24, 2, 4, max_position_embeddings=32, **fields), seed)


def shake(parameters, rng):
    """Parameters as after some training: none has its initial value any more."""
    for p in parameters:
        p.data = p.data + (rng.standard_normal(p.shape) * 0.1).astype(p.dtype)


def adapted(rng=None, base=None, seed=0, **fields):
    """A small model with one adapter, trained if an rng is given."""
    fields = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj", "up_proj"]} | fields
    peft = get_peft_model(model() if base is None else base, LoraConfig(**fields), seed=seed)
    if rng is not None:
        shake(peft.trainable().values(), rng)
    return peft


def run(m, ids=IDS, **kwargs):
    with no_grad():
        return m(ids, **kwargs).data


def in_float64(m):
    for p in m.parameters():
        p.data = p.data.astype(np.float64)
    return m


# Layers.

KINDS = ("linear", "conv1d", "4-bit", "embedding")
kinds = st.sampled_from(KINDS)
sizes = st.integers(1, 9)


def base_layer(kind, d_out, d_in, rng, dtype=np.float32):
    if kind == "embedding":
        layer = Embedding(d_in, d_out, rng, std=1.0)
    elif kind == "conv1d":
        layer = Conv1D(d_in, d_out, rng)
    else:
        layer = Linear(d_in, d_out, bias=True, rng=rng)
    for p in layer.parameters():
        p.data = p.data.astype(dtype)
    if kind != "embedding":
        layer.bias.data = rng.standard_normal(d_out).astype(dtype)
    return QuantizedLinear.from_linear(layer) if kind == "4-bit" else layer


def lora_layer(kind, d_out, d_in, rng, dtype=np.float32, trained=True, **fields):
    base = base_layer(kind, d_out, d_in, rng, dtype)
    layer = (LoraEmbedding if kind == "embedding" else LoraLinear)(base, LoraConfig(**fields), rng)
    if trained:
        shake(layer.adapter_parameters("default"), rng)
    return layer


def inputs(kind, d_in, rng, dtype=np.float32, rows=3):
    if kind == "embedding":
        return rng.integers(0, d_in, (rows, 4))
    return Tensor(rng.standard_normal((rows, 4, d_in)).astype(dtype))


def ab(layer, name="default"):
    return layer.A(name).data, layer.B(name).data
