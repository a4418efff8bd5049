"""LanguageModel: what every decoder shares: logits, the loss over the targets, the key/value cache.

    logits = model(ids)                       # (B, T) integers -> (B, T, V)
    loss = model.loss(ids, labels)            # labels as Hugging Face's: -100 is not a target, shifted inside
    cache = model.new_cache(batch, length)    # model(ids, cache) then goes on where it ended

A family adds its modules and two methods: `decode`, from ids to hidden states, and `head`, from there to logits. See
transformer.py (LLaMA), gpt2.py, bloom.py.
"""

from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from minilora import ops
from minilora.autograd import Tensor
from minilora.backend import to_numpy
from minilora.errors import ConfigError, DataError
from minilora.nn.attention import Context, KVCache
from minilora.nn.layers import Embedding, Linear
from minilora.nn.module import Module

IGNORE = -100


@dataclass
class ModelConfig:
    """The sizes of a transformer; the fields' names are those that most of Hugging Face's configurations share."""

    activations: ClassVar = ("gelu", "gelu_tanh", "relu")
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int | None = None  # as many as attention heads
    head_dim: int | None = None  # hidden_size / num_attention_heads
    max_position_embeddings: int = 2048
    norm_eps: float = 1e-5
    activation: str = "gelu_tanh"  # one of `activations`
    tie_word_embeddings: bool = True
    # Of training: with or without, it is the same model.
    dropout: float = field(default=0.0, compare=False)  # of what a sublayer adds to the residual stream
    attention_dropout: float = field(default=0.0, compare=False)  # of attention's probabilities
    embedding_dropout: float = field(default=0.0, compare=False)  # GPT-2's

    def __post_init__(self):
        self.num_key_value_heads = self.num_key_value_heads or self.num_attention_heads
        self.head_dim = self.head_dim or self.hidden_size // self.num_attention_heads
        self.check("activation", self.activations)
        self.check("tie_word_embeddings", (False, True))
        for name in ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
                     "num_key_value_heads", "head_dim", "max_position_embeddings"):  # fmt: skip
            value = getattr(self, name)
            if not (isinstance(value, (int, np.integer)) and value > 0):
                raise ConfigError(f"{name} must be a positive integer, not {value!r}")
        if not self.norm_eps > 0:
            raise ConfigError(f"norm_eps must be positive, not {self.norm_eps!r}")
        check_probabilities(self, "dropout", "attention_dropout", "embedding_dropout")
        if self.num_attention_heads % self.num_key_value_heads:
            raise ConfigError(
                f"num_attention_heads ({self.num_attention_heads}) must be a multiple of num_key_value_heads "
                f"({self.num_key_value_heads})"
            )

    def check(self, name: str, valid):
        """Raises ConfigError where a field is not one of the valid values."""
        if getattr(self, name) not in valid:
            raise ConfigError(f"{name} is one of {', '.join(map(str, valid))}, not {getattr(self, name)!r}")

    def init_std(self, d_in: int, residual: bool = False) -> float:
        """Standard deviation of a new linear's weights; those that write to the residual stream start smaller."""
        return 0.8 * d_in**-0.5 * ((2 * self.num_hidden_layers) ** -0.5 if residual else 1)


def check_probabilities(config, *names: str):
    """Raises ConfigError for a dropout that is not in [0, 1)."""
    for name in names:
        p = getattr(config, name)
        if not (isinstance(p, (int, float)) and 0 <= p < 1):
            raise ConfigError(f"{name} must be in [0, 1), not {p!r}")


def dropout_rng(seed: int | None) -> np.random.Generator:
    """What a model's dropouts draw from, apart from its weights: with a seed the same in every run, also where the
    weights are loaded (None)."""
    return np.random.default_rng([seed or 0, 1])


def show_parts_as(family: str, model: Module):
    """Name the modules of a family's own file in the printed tree as Hugging Face does: GPT2Block for Block."""
    for _, module in model.named_modules():
        if type(module).__module__ == type(model).__module__ and module is not model:
            module.shown_as = family + type(module).__name__


def output_head(config: ModelConfig, embedding: Embedding, rng) -> Linear:
    """(..., d) -> (..., V). If tied, its weight is the embedding's, a Parameter with one name: the embedding's."""
    d = config.hidden_size
    if not config.tie_word_embeddings:
        return Linear(d, config.vocab_size, False, rng, config.init_std(d))
    head = Linear(d, config.vocab_size)
    head.weight = embedding.weight
    return head


class LanguageModel(Module):
    """What decoders share: the loss on targets, a key/value cache, checkpointing. A family adds decode and head."""

    config: ModelConfig

    def decode(self, ids: np.ndarray, context: Context) -> Tensor:
        """ids (B, T) -> hidden states (B, T, d), before the last norm."""
        raise NotImplementedError

    def head(self, hidden: Tensor) -> Tensor:
        """(..., d) -> logits (..., V): the last norm, then a product with the (tied) embedding."""
        raise NotImplementedError

    def hidden(self, ids, cache: KVCache | None = None, segment_ids=None, attention_mask=None) -> Tensor:
        """ids (B, T) integers -> (B, T, d), before the last norm, which is applied to the rows that are needed.

        segment_ids (B, T): of packed rows (data/packing.py); a token sees its own segment only, and positions begin
        anew in each. attention_mask (B, S), of the cached positions too: False where a row is padded on its left.
        """
        ids = to_numpy(ids)
        if ids.ndim != 2 or not ids.size or ids.dtype.kind not in "iu":
            raise DataError(f"ids must be integers (B, T), at least one; got {ids.dtype} of shape {ids.shape}")
        start, room = cache.length if cache else 0, self.config.max_position_embeddings
        end = start + ids.shape[1]
        if end > room:
            raise DataError(f"a sequence of {end} tokens is longer than the model's {room}")
        context = Context(np.arange(start, end), end, None, cache)
        if segment_ids is not None:
            context.positions, context.mask = _in_segments(to_numpy(segment_ids), ids.shape)
        elif attention_mask is not None:
            context.positions, context.mask = _padded(to_numpy(attention_mask).astype(bool), ids.shape, end)
        x = self.decode(ids, context)  # (B, T, d)
        if cache is not None:
            cache.length = end
        return x

    def forward(
        self, ids, cache: KVCache | None = None, last_only: bool = False, segment_ids=None, attention_mask=None
    ) -> Tensor:
        """ids (B, T) integers -> logits (B, T, V); with last_only (B, 1, V), of the last position. See hidden."""
        hidden = self.hidden(ids, cache, segment_ids, attention_mask)  # (B, T, d)
        return self.head(hidden[:, -1:] if last_only else hidden)

    def target_logits(self, input_ids, labels, segment_ids=None) -> tuple[Tensor, np.ndarray, np.ndarray]:
        """Logits (N, V) of the N positions that predict a target, the batch row (N,) of each, and the targets (N,).

        labels (B, T): labels[b, t] is to be predicted from input_ids[b, :t], and is no target where -100 (or t = 0, or
        where a segment begins).
        """
        input_ids, labels = to_numpy(input_ids), to_numpy(labels)
        wanted = labels[:, 1:] != IGNORE
        if segment_ids is not None:
            segment_ids = to_numpy(segment_ids)
            wanted &= segment_ids[:, 1:] == segment_ids[:, :-1]
            segment_ids = segment_ids[:, :-1]
        row, position = np.nonzero(wanted)
        if not row.size:
            raise DataError(f"no label in this batch of shape {labels.shape} is a target: all are {IGNORE}")
        hidden = self.hidden(input_ids[:, :-1], segment_ids=segment_ids)  # (B, T-1, d)
        width = hidden.shape[1]
        hidden = hidden.reshape(-1, hidden.shape[2])  # (B·(T-1), d)
        if row.size < len(hidden):
            hidden = ops.embedding(hidden, row * width + position)  # (N, d): the head runs on target rows only
        return self.head(hidden), row, labels[row, position + 1]

    def loss(self, input_ids, labels, reduction: str = "mean", segment_ids=None) -> Tensor:
        """Cross-entropy in nats, averaged (or summed) over the targets: a scalar."""
        logits, _, targets = self.target_logits(input_ids, labels, segment_ids)
        return ops.cross_entropy(logits, targets, reduction=reduction)

    def new_cache(self, batch: int, max_length: int) -> KVCache:
        """Room for the keys and values of `batch` sequences of at most max_length tokens."""
        c = self.config
        return KVCache(c.num_hidden_layers, batch, c.num_key_value_heads, max_length, c.head_dim, self.xp)

    def gradient_checkpointing_enable(self):
        """Keep only the input of each layer, and compute the layer again in backward (see autograd/checkpoint.py)."""
        for _, module in self.named_modules():
            for value in vars(module).values():
                for layer in value if isinstance(value, list) else ():
                    if isinstance(layer, Module):
                        layer.checkpointed = True

    def enable_input_require_grads(self):
        """As in Hugging Face's library, where checkpointing loses the adapters' gradients without it. Here it is not
        needed, and does nothing: a checkpoint is part of the graph wherever one of its parameters is trained."""


def _in_segments(segments: np.ndarray, shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Positions (B, T) from 0 in each run of equal numbers, and the mask (B, T, T) of who shares a segment."""
    if segments.shape != shape or segments.dtype.kind not in "iu":
        raise DataError(f"segment_ids must be integers {list(shape)}; got {segments.dtype}{list(segments.shape)}")
    at = np.arange(shape[1])
    begins = np.ones(shape, bool)
    begins[:, 1:] = segments[:, 1:] != segments[:, :-1]
    return at - np.maximum.accumulate(np.where(begins, at, 0), axis=1), segments[:, :, None] == segments[:, None]


def _padded(mask: np.ndarray, shape: tuple[int, int], keys: int) -> tuple[np.ndarray, np.ndarray]:
    """Positions (B, T) counted from each row's first token, and the mask (B, T, S). Padding sees itself, as no row of a
    softmax may be empty."""
    if mask.shape != (shape[0], keys):
        raise DataError(f"attention_mask must be {[shape[0], keys]}, the cached positions included; got {mask.shape}")
    new = shape[1]
    positions = np.maximum(np.cumsum(mask, axis=1) - 1, 0)[:, keys - new :]
    return positions, mask[:, None] | np.eye(new, keys, keys - new, dtype=bool)
