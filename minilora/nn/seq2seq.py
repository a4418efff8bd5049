"""The Transformer of 2017: an encoder, a decoder that attends to it, sinusoidal positions (arXiv:1706.03762).

    model = Seq2Seq(Seq2SeqConfig(vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
                                  num_attention_heads=4), seed=0)
    loss = model.loss(source, target)         # (B, S), (B, T) integers; the decoder sees the target one step late
    output = model.generate(source, 16)       # (B, 16), greedy

"Post-norm": x_{l+1} = LayerNorm(x + Attention(x)), then LayerNorm(x + MLP(x)), where LLaMA, six years later, has
x + Attention(norm(x)) and no norm on the way from the loss to the embedding; RMSNorm for LayerNorm, SwiGLU for ReLU,
rotary positions for sines added once, fewer key heads than query heads, no biases and no encoder. Names are those of
Hugging Face's MarianMTModel, which is this architecture.
"""

import math
from dataclasses import dataclass

import numpy as np

from minilora import ops
from minilora.autograd import Tensor, no_grad
from minilora.backend import array_namespace, to_numpy
from minilora.errors import ConfigError, DataError
from minilora.nn.attention import attend
from minilora.nn.language_model import IGNORE, ModelConfig, dropout_rng, output_head
from minilora.nn.layers import Dropout, Embedding, LayerNorm, Linear
from minilora.nn.module import Module
from minilora.nn.positions import sinusoidal_table


@dataclass
class Seq2SeqConfig(ModelConfig):
    """num_hidden_layers and the rest are those of the encoder and of the decoder alike."""

    max_position_embeddings: int = 512
    activation: str = "relu"
    pad_token_id: int = 0  # also what the decoder starts from

    def __post_init__(self):
        super().__post_init__()
        if self.num_key_value_heads != self.num_attention_heads or self.hidden_size % self.num_attention_heads:
            raise ConfigError("hidden_size must be a multiple of num_attention_heads, each with its own key/value head")
        if self.embedding_dropout:
            raise ConfigError("embedding_dropout is GPT-2's; here dropout is of the embeddings too")


class Attention(Module):
    """Multi-head attention of x to `memory`: x itself, or the encoder's output."""

    def __init__(self, config: Seq2SeqConfig, rng, noise):
        d, self.heads = config.hidden_size, config.num_attention_heads
        self.q_proj = Linear(d, d, True, rng)
        self.k_proj = Linear(d, d, True, rng)
        self.v_proj = Linear(d, d, True, rng)
        self.out_proj = Linear(d, d, True, rng)
        self.attention_dropout = Dropout(config.attention_dropout, noise)

    def forward(self, x: Tensor, memory: Tensor, causal: bool = False, mask: np.ndarray | None = None) -> Tensor:
        q = ops.split_heads(self.q_proj(x), self.heads)  # (B, H, T, hd)
        k = ops.split_heads(self.k_proj(memory), self.heads)  # (B, H, S, hd)
        v = ops.split_heads(self.v_proj(memory), self.heads)  # (B, H, S, hd)
        y = ops.merge_heads(attend(q, k, v, self.attention_dropout, causal, mask))  # (B, T, d)
        return self.out_proj(y)  # (B, T, d)


class EncoderLayer(Module):
    def __init__(self, config: Seq2SeqConfig, rng, noise):
        d, ff = config.hidden_size, config.intermediate_size
        self.self_attn, self.self_attn_layer_norm = Attention(config, rng, noise), LayerNorm(d, config.norm_eps)
        self.fc1, self.fc2 = Linear(d, ff, True, rng), Linear(ff, d, True, rng)
        self.final_layer_norm = LayerNorm(d, config.norm_eps)
        self.activation = getattr(ops, config.activation)
        self.dropout = Dropout(config.dropout, noise)

    def mlp(self, x: Tensor) -> Tensor:
        h = self.activation(self.fc1(x))  # (B, S, ff)
        return self.dropout(self.fc2(h))  # (B, S, d)

    def forward(self, x: Tensor, mask: np.ndarray) -> Tensor:
        x = self.self_attn_layer_norm(x + self.dropout(self.self_attn(x, x, mask=mask)))  # (B, S, d)
        return self.final_layer_norm(x + self.mlp(x))  # (B, S, d)


class DecoderLayer(EncoderLayer):
    def __init__(self, config: Seq2SeqConfig, rng, noise):
        super().__init__(config, rng, noise)
        d = config.hidden_size
        self.encoder_attn, self.encoder_attn_layer_norm = Attention(config, rng, noise), LayerNorm(d, config.norm_eps)

    def forward(self, x: Tensor, memory: Tensor, mask: np.ndarray) -> Tensor:
        x = self.self_attn_layer_norm(x + self.dropout(self.self_attn(x, x, causal=True)))  # (B, T, d)
        x = self.encoder_attn_layer_norm(x + self.dropout(self.encoder_attn(x, memory, mask=mask)))  # (B, T, d)
        return self.final_layer_norm(x + self.mlp(x))  # (B, T, d)


class Layers(Module):
    def __init__(self, kind: type, config: Seq2SeqConfig, rng, noise):
        self.layers = [kind(config, rng, noise) for _ in range(config.num_hidden_layers)]

    def forward(self, x: Tensor, *context) -> Tensor:
        for layer in self.layers:
            x = layer(x, *context)  # (B, T, d)
        return x


class EncoderDecoder(Module):
    def __init__(self, config: Seq2SeqConfig, rng, noise):
        d = config.hidden_size
        self.shared = Embedding(config.vocab_size, d, rng, d**-0.5)  # of source and target
        self.encoder = Layers(EncoderLayer, config, rng, noise)
        self.decoder = Layers(DecoderLayer, config, rng, noise)
        self.dropout = Dropout(config.dropout, noise)
        self.scale, self.room = math.sqrt(d), config.max_position_embeddings

    def embed(self, ids: np.ndarray) -> Tensor:
        if ids.shape[1] > self.room:
            raise DataError(f"a sequence of {ids.shape[1]} tokens is longer than the model's {self.room}")
        x = self.shared(ids) * self.scale  # (B, T, d)
        return self.dropout(x + array_namespace(x.data).asarray(sinusoidal_table(*x.shape[1:])))  # (B, T, d) + (T, d)

    def forward(self, source: np.ndarray, target: np.ndarray, mask: np.ndarray) -> Tensor:
        memory = self.encoder(self.embed(source), mask)  # (B, S, d)
        return self.decoder(self.embed(target), memory, mask)  # (B, T, d)


class Seq2Seq(Module):
    """The encoder and decoder of 2017, with their embeddings and head."""

    def __init__(self, config: Seq2SeqConfig, seed: int | None = 0):
        """Weights drawn with `seed`; all zero when it is None (to be loaded)."""
        rng = None if seed is None else np.random.default_rng(seed)
        self.config = config
        self.model = EncoderDecoder(config, rng, dropout_rng(seed))
        self.lm_head = output_head(config, self.model.shared, rng)

    def forward(self, source, target) -> Tensor:
        """Logits (B, T, V) of what follows each of the target's prefixes. source (B, S), target (B, T), integers; no
        query sees a source token pad_token_id. Raises DataError for a source of padding only."""
        source, target = to_numpy(source), to_numpy(target)
        mask = source != self.config.pad_token_id  # (B, S)
        if not mask.any(1).all():
            raise DataError(f"sequence {mask.any(1).argmin()} of the source is nothing but padding")
        return self.lm_head(self.model(source, target, mask))  # (B, T, V)

    def loss(self, source, target, reduction: str = "mean") -> Tensor:
        """Cross-entropy in nats over the target's tokens that are not -100. The decoder's input is the target moved on
        by one, beginning with pad_token_id ("teacher forcing")."""
        target = to_numpy(target)
        row, position = np.nonzero(target != IGNORE)
        late = np.where(target == IGNORE, self.config.pad_token_id, target)[:, :-1]
        late = np.pad(late, ((0, 0), (1, 0)), constant_values=self.config.pad_token_id)  # (B, T)
        logits = self(source, late)  # (B, T, V)
        return ops.cross_entropy(logits[row, position], target[row, position], reduction=reduction)

    def generate(self, source, max_new_tokens: int) -> np.ndarray:
        """(B, max_new_tokens), each token the likeliest given those before. All is computed anew for each token."""
        target = np.full((len(source), 1), self.config.pad_token_id)
        for _ in range(max_new_tokens):
            with no_grad():
                logits = self(source, target).data[:, -1]  # (B, V)
            target = np.concatenate([target, to_numpy(logits.argmax(1))[:, None]], axis=1)
        return target[:, 1:]
