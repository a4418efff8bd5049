"""A BERT encoder: every token sees every other, and becomes a vector.

    model = BertModel(EncoderConfig(vocab_size=1000, hidden_size=64, ...), seed=0)
    hidden = model(ids, attention_mask)       # (B, T) integers, (B, T) True where a token is real -> (B, T, d)
    first = model.pooler(hidden)              # (B, d), of the first token, [CLS]

x_{l+1} = LayerNorm(x + Attention(x)), then LayerNorm(x + MLP(x)): "post-norm" (BERT, arXiv:1810.04805). Parameter names
and fields are those of Hugging Face's BertModel.
"""

from dataclasses import dataclass, field

import numpy as np

from minilora import ops
from minilora.autograd import Tensor
from minilora.backend import to_numpy
from minilora.errors import ConfigError, DataError
from minilora.nn.attention import attend
from minilora.nn.language_model import check_probabilities, dropout_rng
from minilora.nn.layers import Dropout, Embedding, LayerNorm, Linear
from minilora.nn.module import Module

_INIT_STD = 0.02


@dataclass
class EncoderConfig:
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    max_position_embeddings: int = 512
    type_vocab_size: int = 2  # BERT marks the first and the second of a pair of texts
    layer_norm_eps: float = 1e-12
    # Of training: with or without, it is the same model.
    hidden_dropout_prob: float = field(default=0.0, compare=False)  # of the embeddings and of what a sublayer adds
    attention_probs_dropout_prob: float = field(default=0.0, compare=False)

    def __post_init__(self):
        for name in ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
                     "max_position_embeddings", "type_vocab_size"):  # fmt: skip
            if not isinstance(getattr(self, name), int) or getattr(self, name) < 1:
                raise ConfigError(f"{name} must be a positive integer, not {getattr(self, name)!r}")
        check_probabilities(self, "hidden_dropout_prob", "attention_probs_dropout_prob")
        if not isinstance(self.layer_norm_eps, (int, float)) or not self.layer_norm_eps >= 0:
            raise ConfigError(f"layer_norm_eps must be a number, at least 0, not {self.layer_norm_eps!r}")
        if self.hidden_size % self.num_attention_heads:
            raise ConfigError(
                f"hidden_size ({self.hidden_size}) must be a multiple of num_attention_heads "
                f"({self.num_attention_heads})"
            )


class Embeddings(Module):
    """The sum of what a token, its position and its segment contribute, normalised."""

    def __init__(self, config: EncoderConfig, rng, noise):
        d = config.hidden_size
        self.word_embeddings = Embedding(config.vocab_size, d, rng, _INIT_STD)
        self.position_embeddings = Embedding(config.max_position_embeddings, d, rng, _INIT_STD)
        self.token_type_embeddings = Embedding(config.type_vocab_size, d, rng, _INIT_STD)
        self.LayerNorm = LayerNorm(d, config.layer_norm_eps)
        self.dropout = Dropout(config.hidden_dropout_prob, noise)

    def forward(self, ids: np.ndarray, token_type_ids: np.ndarray) -> Tensor:
        x = self.word_embeddings(ids) + self.token_type_embeddings(token_type_ids)  # (B, T, d)
        x = x + self.position_embeddings(np.arange(ids.shape[1]))  # (B, T, d) + (T, d)
        return self.dropout(self.LayerNorm(x))  # (B, T, d)


class SelfAttention(Module):
    def __init__(self, config: EncoderConfig, rng, noise):
        d, self.heads = config.hidden_size, config.num_attention_heads
        self.query = Linear(d, d, True, rng, _INIT_STD)
        self.key = Linear(d, d, True, rng, _INIT_STD)
        self.value = Linear(d, d, True, rng, _INIT_STD)
        self.dropout = Dropout(config.attention_probs_dropout_prob, noise)

    def forward(self, x: Tensor, mask: np.ndarray | None) -> Tensor:
        q = ops.split_heads(self.query(x), self.heads)  # (B, H, T, hd)
        k = ops.split_heads(self.key(x), self.heads)  # (B, H, T, hd)
        v = ops.split_heads(self.value(x), self.heads)  # (B, H, T, hd)
        return ops.merge_heads(attend(q, k, v, self.dropout, causal=False, mask=mask))  # (B, T, d)


class Output(Module):
    """The end of a sublayer: LayerNorm(x + W h + b)."""

    def __init__(self, d_in: int, config: EncoderConfig, rng, noise):
        self.dense = Linear(d_in, config.hidden_size, True, rng, _INIT_STD)
        self.LayerNorm = LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.dropout = Dropout(config.hidden_dropout_prob, noise)

    def forward(self, h: Tensor, x: Tensor) -> Tensor:
        return self.LayerNorm(x + self.dropout(self.dense(h)))  # (B, T, d)


class Attention(Module):
    def __init__(self, config: EncoderConfig, rng, noise):
        self.self = SelfAttention(config, rng, noise)  # Hugging Face's name
        self.output = Output(config.hidden_size, config, rng, noise)

    def forward(self, x: Tensor, mask: np.ndarray | None) -> Tensor:
        return self.output(self.self(x, mask), x)  # (B, T, d)


class Intermediate(Module):
    def __init__(self, config: EncoderConfig, rng):
        self.dense = Linear(config.hidden_size, config.intermediate_size, True, rng, _INIT_STD)

    def forward(self, x: Tensor) -> Tensor:
        return ops.gelu(self.dense(x))  # (B, T, ff)


class Layer(Module):
    def __init__(self, config: EncoderConfig, rng, noise):
        self.attention = Attention(config, rng, noise)
        self.intermediate = Intermediate(config, rng)
        self.output = Output(config.intermediate_size, config, rng, noise)

    def forward(self, x: Tensor, mask: np.ndarray | None) -> Tensor:
        x = self.attention(x, mask)  # (B, T, d)
        return self.output(self.intermediate(x), x)  # (B, T, d)


class Layers(Module):
    def __init__(self, config: EncoderConfig, rng, noise):
        self.layer = [Layer(config, rng, noise) for _ in range(config.num_hidden_layers)]

    def forward(self, x: Tensor, mask: np.ndarray | None) -> Tensor:
        for layer in self.layer:
            x = layer(x, mask)  # (B, T, d)
        return x


class Pooler(Module):
    """tanh(W h + b) of the first token's h: what BERT's classifiers read. A sentence embedding does not use it."""

    def __init__(self, config: EncoderConfig, rng):
        self.dense = Linear(config.hidden_size, config.hidden_size, True, rng, _INIT_STD)

    def forward(self, hidden: Tensor) -> Tensor:
        return ops.tanh(self.dense(hidden[:, 0]))  # (B, d)


class BertModel(Module):
    """BERT's encoder, without a head: hidden states of whole texts."""

    def __init__(self, config: EncoderConfig, seed: int | None = 0):
        """Weights drawn with `seed`; all zero when it is None (to be loaded)."""
        rng, noise = None if seed is None else np.random.default_rng(seed), dropout_rng(seed)
        self.config = config
        self.embeddings = Embeddings(config, rng, noise)
        self.encoder = Layers(config, rng, noise)
        self.pooler = Pooler(config, rng)

    def forward(self, ids, attention_mask=None, token_type_ids=None) -> Tensor:
        """Hidden states (B, T, d) of ids (B, T), integers.

        attention_mask (B, T): true (or 1) for a token, false for padding, which no token sees; by default all are
        tokens. token_type_ids (B, T): by default 0. Raises DataError, and ShapeError for an id out of range.
        """
        ids = to_numpy(ids)
        if ids.ndim != 2 or not ids.size or ids.dtype.kind not in "iu":
            raise DataError(f"ids must be integers (B, T), at least one; got {ids.dtype} of shape {ids.shape}")
        if ids.shape[1] > self.config.max_position_embeddings:
            raise DataError(
                f"a sequence of {ids.shape[1]} tokens is longer than the model's {self.config.max_position_embeddings}"
            )
        mask = np.ones(ids.shape, bool) if attention_mask is None else to_numpy(attention_mask).astype(bool)
        types = np.zeros(ids.shape, int) if token_type_ids is None else to_numpy(token_type_ids)
        for name, array in (("attention_mask", mask), ("token_type_ids", types)):
            if array.shape != ids.shape:
                raise DataError(f"{name} has shape {array.shape}; the ids have {ids.shape}")
        if not mask.any(1).all():
            raise DataError(f"sequence {mask.any(1).argmin()} of the batch has no token: its attention_mask is all 0")
        x = self.embeddings(ids, types)  # (B, T, d)
        return self.encoder(x, None if mask.all() else mask)  # (B, T, d)

    def loss(self, *args, **kwargs):
        """Raises ConfigError: an encoder has no loss of its own."""
        raise ConfigError(
            "a BERT encoder predicts no next token: it cannot be trained as a language model, nor generate; its hidden "
            "states and minilora.models.embed are what it gives"
        )

    target_logits = new_cache = loss  # a caller that takes it for a language model is told so
