"""A decoder-only transformer from one configuration: LLaMA's family by default, GPT-2's choices on request.

    model = CausalLM(TransformerConfig(vocab_size=1024, hidden_size=128, ...), seed=0)
    logits = model(ids)                       # (B, T) integers -> (B, T, V)
    loss = model.loss(ids, labels)            # labels as Hugging Face's: -100 is not a target, shifted inside

x_{l+1} = x + Attention(norm(x)), then + MLP(norm(x)): "pre-norm" (arXiv:2002.04745; LLaMA, arXiv:2302.13971). Parameter
names and fields are those of Hugging Face's LlamaForCausalLM.
"""

from dataclasses import dataclass

import numpy as np

from minilora import ops
from minilora.autograd import Tensor
from minilora.errors import ConfigError, DataError
from minilora.nn.attention import Attention, KVCache, rotary_table
from minilora.nn.layers import Embedding, LayerNorm, Linear, RMSNorm
from minilora.nn.module import Module

NORMS = {"rmsnorm": RMSNorm, "layernorm": LayerNorm}
ACTIVATIONS = ("swiglu", "gelu", "gelu_tanh")
IGNORE = -100


@dataclass
class TransformerConfig:
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int | None = None  # as many as attention heads
    head_dim: int | None = None  # hidden_size / num_attention_heads
    max_position_embeddings: int = 2048
    norm: str = "rmsnorm"
    norm_eps: float = 1e-5
    activation: str = "swiglu"
    positions: str = "rotary"  # or "learned"
    rope_theta: float = 10000.0
    tie_word_embeddings: bool = True
    bias: bool = False
    dropout: float = 0.0

    def __post_init__(self):
        self.num_key_value_heads = self.num_key_value_heads or self.num_attention_heads
        self.head_dim = self.head_dim or self.hidden_size // self.num_attention_heads
        for field, value, valid in (
            ("norm", self.norm, NORMS),
            ("activation", self.activation, ACTIVATIONS),
            ("positions", self.positions, ("rotary", "learned")),
        ):
            if value not in valid:
                raise ConfigError(f"{field} is one of {', '.join(valid)}, not {value!r}")
        for field in ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
                      "num_key_value_heads", "head_dim", "max_position_embeddings"):  # fmt: skip
            if not getattr(self, field) > 0:
                raise ConfigError(f"{field} must be positive, not {getattr(self, field)!r}")
        if self.num_attention_heads % self.num_key_value_heads:
            raise ConfigError(
                f"num_attention_heads ({self.num_attention_heads}) must be a multiple of num_key_value_heads "
                f"({self.num_key_value_heads})"
            )
        if self.positions == "rotary" and self.head_dim % 2:
            raise ConfigError(f"rotary positions turn pairs: head_dim must be even, not {self.head_dim}")
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"dropout must be in [0, 1), not {self.dropout}")

    def init_std(self, d_in: int, residual: bool = False) -> float:
        """Standard deviation of a new linear's weights; those that write to the residual stream start smaller."""
        return 0.8 * d_in**-0.5 * ((2 * self.num_hidden_layers) ** -0.5 if residual else 1)


class MLP(Module):
    def __init__(self, config: TransformerConfig, rng):
        d, ff, self.activation = config.hidden_size, config.intermediate_size, config.activation
        if self.activation == "swiglu":
            self.gate_proj = Linear(d, ff, config.bias, rng, config.init_std(d))
        self.up_proj = Linear(d, ff, config.bias, rng, config.init_std(d))
        self.down_proj = Linear(ff, d, config.bias, rng, config.init_std(ff, residual=True))

    def forward(self, x: Tensor) -> Tensor:
        if self.activation == "swiglu":
            h = ops.swiglu(self.gate_proj(x), self.up_proj(x))  # (B, T, ff)
        else:
            h = getattr(ops, self.activation)(self.up_proj(x))  # (B, T, ff)
        return self.down_proj(h)  # (B, T, d)


class Layer(Module):
    def __init__(self, config: TransformerConfig, index: int, rng, dropout_rng):
        norm = NORMS[config.norm]
        self.input_layernorm = norm(config.hidden_size, config.norm_eps)
        self.self_attn = Attention(config, index, rng)
        self.post_attention_layernorm = norm(config.hidden_size, config.norm_eps)
        self.mlp = MLP(config, rng)
        self.dropout, self.rng = config.dropout, dropout_rng

    def forward(self, x: Tensor, rotary, cache: KVCache | None) -> Tensor:
        x = x + self.drop(self.self_attn(self.input_layernorm(x), rotary, cache))  # (B, T, d)
        return x + self.drop(self.mlp(self.post_attention_layernorm(x)))  # (B, T, d)

    def drop(self, x: Tensor) -> Tensor:
        return ops.dropout(x, self.dropout, self.rng) if self.training and self.dropout else x


class Decoder(Module):
    """Embedding, layers and the last norm: ids -> hidden states."""

    def __init__(self, config: TransformerConfig, rng, dropout_rng):
        self.config = config
        self.embed_tokens = Embedding(config.vocab_size, config.hidden_size, rng)
        if config.positions == "learned":
            self.embed_positions = Embedding(config.max_position_embeddings, config.hidden_size, rng)
        self.layers = [Layer(config, i, rng, dropout_rng) for i in range(config.num_hidden_layers)]
        self.norm = NORMS[config.norm](config.hidden_size, config.norm_eps)

    def forward(self, ids: np.ndarray, cache: KVCache | None = None) -> Tensor:
        config, start = self.config, cache.length if cache else 0
        end = start + ids.shape[1]
        if end > config.max_position_embeddings:
            raise DataError(f"a sequence of {end} tokens is longer than the model's {config.max_position_embeddings}")
        x = self.embed_tokens(ids)  # (B, T, d)
        rotary = None
        if config.positions == "learned":
            x = x + self.embed_positions(np.arange(start, end))  # (B, T, d) + (T, d)
        else:
            table = rotary_table(1 << (end - 1).bit_length(), config.head_dim, config.rope_theta)
            rotary = tuple(t[start:end] for t in table)  # cos, sin: (T, hd/2)
        for layer in self.layers:
            x = layer(x, rotary, cache)  # (B, T, d)
        if cache is not None:
            cache.length = end
        return x  # (B, T, d), before the last norm, which is applied to the rows that are needed


class CausalLM(Module):
    def __init__(self, config: TransformerConfig, seed: int | None = 0):
        """Weights drawn with `seed`; all zero when it is None (to be loaded)."""
        rng = None if seed is None else np.random.default_rng(seed)
        self.config = config
        self.model = Decoder(config, rng, np.random.default_rng([seed or 0, 1]))
        if not config.tie_word_embeddings:
            self.lm_head = Linear(
                config.hidden_size, config.vocab_size, False, rng, config.init_std(config.hidden_size)
            )

    def head(self, hidden: Tensor) -> Tensor:
        """(..., d) -> (..., V): the last norm, then a product with the (tied) embedding."""
        weight = self.model.embed_tokens.weight if self.config.tie_word_embeddings else self.lm_head.weight
        return ops.linear(self.model.norm(hidden), weight)

    def forward(self, ids, cache: KVCache | None = None, last_only: bool = False) -> Tensor:
        """ids (B, T) integers -> logits (B, T, V); with last_only (B, 1, V), of the last position."""
        ids = np.asarray(ids)
        if ids.ndim != 2 or not ids.size or ids.dtype.kind not in "iu":
            raise DataError(f"ids must be integers (B, T), at least one; got {ids.dtype} of shape {ids.shape}")
        hidden = self.model(ids, cache)  # (B, T, d)
        return self.head(hidden[:, -1:] if last_only else hidden)

    def target_logits(self, input_ids, labels) -> tuple[Tensor, np.ndarray, np.ndarray]:
        """Logits (N, V) of the N positions that predict a target, the batch row (N,) of each, and the targets (N,).

        labels (B, T): labels[b, t] is to be predicted from input_ids[b, :t], and is no target where -100 (or t = 0).
        """
        input_ids, labels = np.asarray(input_ids), np.asarray(labels)
        row, position = np.nonzero(labels[:, 1:] != IGNORE)
        if not row.size:
            raise DataError(f"no label in this batch of shape {labels.shape} is a target: all are {IGNORE}")
        hidden = self.model(input_ids[:, :-1])  # (B, T-1, d)
        width = hidden.shape[1]
        hidden = hidden.reshape(-1, hidden.shape[2])  # (B·(T-1), d)
        if row.size < len(hidden):
            hidden = ops.embedding(hidden, row * width + position)  # (N, d): the head runs on target rows only
        return self.head(hidden), row, labels[row, position + 1]

    def loss(self, input_ids, labels, reduction: str = "mean") -> Tensor:
        """Cross-entropy in nats, averaged (or summed) over the targets: a scalar."""
        logits, _, targets = self.target_logits(input_ids, labels)
        return ops.cross_entropy(logits, targets, reduction=reduction)

    def new_cache(self, batch: int, max_length: int) -> KVCache:
        c = self.config
        return KVCache(c.num_hidden_layers, batch, c.num_key_value_heads, max_length, c.head_dim)
