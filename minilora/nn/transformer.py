"""A decoder-only transformer from one configuration: LLaMA, Mistral, Qwen2; other norms and activations on request.

    model = CausalLM(TransformerConfig(vocab_size=1024, hidden_size=128, ...), seed=0)
    logits = model(ids)                       # (B, T) integers -> (B, T, V)
    loss = model.loss(ids, labels)            # labels as Hugging Face's: -100 is not a target, shifted inside

x_{l+1} = x + Attention(norm(x)), then + MLP(norm(x)): "pre-norm" (arXiv:2002.04745; LLaMA, arXiv:2302.13971). Parameter
names and fields are those of Hugging Face's LlamaForCausalLM.
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from minilora import ops
from minilora.autograd import Tensor
from minilora.backend import array_namespace
from minilora.errors import ConfigError
from minilora.nn.attention import Attention, Context
from minilora.nn.language_model import LanguageModel, ModelConfig, dropout_rng, output_head
from minilora.nn.layers import Dropout, Embedding, LayerNorm, Linear, RMSNorm
from minilora.nn.module import Module
from minilora.nn.positions import RopeScaling, rotary_table

NORMS = {"rmsnorm": RMSNorm, "layernorm": LayerNorm}


@dataclass
class TransformerConfig(ModelConfig):
    activations: ClassVar = ("swiglu", *ModelConfig.activations)
    activation: str = "swiglu"
    norm: str = "rmsnorm"
    positions: str = "rotary"  # or "learned"
    rope_theta: float = 10000.0
    rope_scaling: RopeScaling | None = None
    bias: bool | str = False  # True: of every projection; "attention": of its four; "qkv": of its first three (Qwen2)

    def __post_init__(self):
        self.check("norm", NORMS)
        self.check("positions", ("rotary", "learned"))
        self.check("bias", (False, True, "attention", "qkv"))
        super().__post_init__()
        if self.positions == "rotary" and self.head_dim % 2:
            raise ConfigError(f"rotary positions turn pairs: head_dim must be even, not {self.head_dim}")
        if not self.rope_theta > 0:
            raise ConfigError(f"rope_theta must be positive, not {self.rope_theta!r}")
        if self.embedding_dropout:
            raise ConfigError("embedding_dropout is GPT-2's; here there are dropout and attention_dropout")


class MLP(Module):
    def __init__(self, config: TransformerConfig, rng):
        d, ff, self.activation = config.hidden_size, config.intermediate_size, config.activation
        bias = bool(config.bias) and not isinstance(config.bias, str)
        if self.activation == "swiglu":
            self.gate_proj = Linear(d, ff, bias, rng, config.init_std(d))
        self.up_proj = Linear(d, ff, bias, rng, config.init_std(d))
        self.down_proj = Linear(ff, d, bias, rng, config.init_std(ff, residual=True))

    def forward(self, x: Tensor) -> Tensor:
        if self.activation == "swiglu":
            h = ops.swiglu(self.gate_proj(x), self.up_proj(x))  # (B, T, ff)
        else:
            h = getattr(ops, self.activation)(self.up_proj(x))  # (B, T, ff)
        return self.down_proj(h)  # (B, T, d)


class Layer(Module):
    def __init__(self, config: TransformerConfig, index: int, rng, noise):
        norm = NORMS[config.norm]
        self.input_layernorm = norm(config.hidden_size, config.norm_eps)
        self.self_attn = Attention(config, index, rng, noise)
        self.post_attention_layernorm = norm(config.hidden_size, config.norm_eps)
        self.mlp = MLP(config, rng)
        self.dropout = Dropout(config.dropout, noise)

    def forward(self, x: Tensor, rotary, context: Context) -> Tensor:
        x = x + self.dropout(self.self_attn(self.input_layernorm(x), rotary, context))  # (B, T, d)
        return x + self.dropout(self.mlp(self.post_attention_layernorm(x)))  # (B, T, d)


class Decoder(Module):
    """Embedding, layers and the last norm."""

    def __init__(self, config: TransformerConfig, rng, noise):
        self.config = config
        self.embed_tokens = Embedding(config.vocab_size, config.hidden_size, rng)
        if config.positions == "learned":
            self.embed_positions = Embedding(config.max_position_embeddings, config.hidden_size, rng)
        self.layers = [Layer(config, i, rng, noise) for i in range(config.num_hidden_layers)]
        self.norm = NORMS[config.norm](config.hidden_size, config.norm_eps)

    def forward(self, ids: np.ndarray, context: Context) -> Tensor:
        c, at = self.config, context.positions
        x = self.embed_tokens(ids)  # (B, T, d)
        rotary = None
        if c.positions == "learned":
            x = x + self.embed_positions(at)  # (B, T, d) + (T, d)
        else:
            tables = rotary_table(1 << int(at.max()).bit_length(), c.head_dim, c.rope_theta, c.rope_scaling)
            angles = (t[at] if at.ndim == 1 else t[at][:, None] for t in tables)  # (T, hd/2), or (B, 1, T, hd/2)
            rotary = tuple(map(array_namespace(x.data).asarray, angles))  # cos, sin
        for layer in self.layers:
            x = layer(x, rotary, context)  # (B, T, d)
        return x  # (B, T, d)


class CausalLM(LanguageModel):
    """A decoder as TransformerConfig has it; by default LLaMA (arXiv:2302.13971). Input and output: LanguageModel."""

    def __init__(self, config: TransformerConfig, seed: int | None = 0):
        """Weights drawn with `seed`; all zero when it is None (to be loaded)."""
        rng = None if seed is None else np.random.default_rng(seed)
        self.config = config
        self.model = Decoder(config, rng, dropout_rng(seed))
        self.lm_head = output_head(config, self.model.embed_tokens, rng)

    def decode(self, ids: np.ndarray, context: Context) -> Tensor:
        return self.model(ids, context)  # (B, T, d)

    def head(self, hidden: Tensor) -> Tensor:
        return self.lm_head(self.model.norm(hidden))  # (..., V)
