"""BLOOM (arXiv:2211.05100): no positions in the embeddings; every head discounts what is far away, at its own rate.

    model = Bloom(ModelConfig(vocab_size=250880, hidden_size=1024, ...), seed=0)

Scores are q kᵀ / √hd - slope · distance (ALiBi, arXiv:2108.12409), so that texts may be longer than those of training.
Pre-norm with one more LayerNorm after the embedding; `query_key_value` holds q, k and v of the first head, then of the
second, and so on. Names are those of Hugging Face's BloomForCausalLM.
"""

import numpy as np

from minilora import ops
from minilora.autograd import Tensor
from minilora.backend import array_namespace
from minilora.errors import ConfigError
from minilora.nn.attention import Context, attend
from minilora.nn.language_model import LanguageModel, ModelConfig, dropout_rng, output_head, show_parts_as
from minilora.nn.layers import Activation, Dropout, Embedding, LayerNorm, Linear
from minilora.nn.module import Module
from minilora.nn.positions import alibi_slopes


class Attention(Module):
    def __init__(self, config: ModelConfig, layer: int, rng, noise):
        d, self.heads, self.layer = config.hidden_size, config.num_attention_heads, layer
        self.query_key_value = Linear(d, 3 * d, True, rng, config.init_std(d))
        self.dense = Linear(d, d, True, rng, config.init_std(d, residual=True))
        self.attention_dropout = Dropout(config.attention_dropout, noise)

    def forward(self, x: Tensor, alibi: np.ndarray, context: Context) -> Tensor:
        qkv = ops.split_heads(self.query_key_value(x), 3 * self.heads)  # (B, 3H, T, hd)
        q, k, v = qkv[:, 0::3], qkv[:, 1::3], qkv[:, 2::3]  # (B, H, T, hd) each
        if context.cache is not None:
            k, v = context.cache.extend(self.layer, k, v)  # (B, H, S, hd)
        y = ops.merge_heads(attend(q, k, v, self.attention_dropout, mask=context.mask, bias=alibi))  # (B, T, d)
        return self.dense(y)  # (B, T, d)


class MLP(Module):
    def __init__(self, config: ModelConfig, rng):
        d, ff = config.hidden_size, config.intermediate_size
        self.dense_h_to_4h = Linear(d, ff, True, rng, config.init_std(d))
        self.gelu_impl = Activation(config.activation)
        self.dense_4h_to_h = Linear(ff, d, True, rng, config.init_std(ff, residual=True))

    def forward(self, x: Tensor) -> Tensor:
        h = self.gelu_impl(self.dense_h_to_4h(x))  # (B, T, ff)
        return self.dense_4h_to_h(h)  # (B, T, d)


class Block(Module):
    def __init__(self, config: ModelConfig, layer: int, rng, noise):
        self.input_layernorm = LayerNorm(config.hidden_size, config.norm_eps)
        self.self_attention = Attention(config, layer, rng, noise)
        self.post_attention_layernorm = LayerNorm(config.hidden_size, config.norm_eps)
        self.mlp = MLP(config, rng)
        self.hidden_dropout = Dropout(config.dropout, noise)

    def forward(self, x: Tensor, alibi: np.ndarray, context: Context) -> Tensor:
        x = x + self.hidden_dropout(self.self_attention(self.input_layernorm(x), alibi, context))  # (B, T, d)
        return x + self.hidden_dropout(self.mlp(self.post_attention_layernorm(x)))  # (B, T, d)


class Model(Module):
    def __init__(self, config: ModelConfig, rng, noise):
        self.word_embeddings = Embedding(config.vocab_size, config.hidden_size, rng)
        self.word_embeddings_layernorm = LayerNorm(config.hidden_size, config.norm_eps)
        self.h = [Block(config, i, rng, noise) for i in range(config.num_hidden_layers)]
        self.ln_f = LayerNorm(config.hidden_size, config.norm_eps)
        self.slopes = alibi_slopes(config.num_attention_heads)

    def forward(self, ids: np.ndarray, context: Context) -> Tensor:
        x = self.word_embeddings_layernorm(self.word_embeddings(ids))  # (B, T, d)
        # Seen from the last query, for all of them: softmax does not change where a constant is added to its row. So
        # it is right for packed rows too, whose examples see only themselves.
        distance = np.arange(context.keys - 1, -1, -1, dtype=np.float32)  # (S,)
        alibi = array_namespace(x.data).asarray(self.slopes[:, None, None] * -distance)  # (H, 1, S)
        for block in self.h:
            x = block(x, alibi, context)  # (B, T, d)
        return x  # (B, T, d)


class Bloom(LanguageModel):
    """BLOOM: ALiBi in place of positions, fused q, k and v. Input and output: LanguageModel."""

    shown_as = "BloomForCausalLM"

    def __init__(self, config: ModelConfig, seed: int | None = 0):
        """Weights drawn with `seed`; all zero when it is None (to be loaded)."""
        heads = config.num_attention_heads
        if config.num_key_value_heads != heads or config.head_dim * heads != config.hidden_size:
            raise ConfigError("BLOOM has num_key_value_heads = num_attention_heads and head_dim = hidden_size / heads")
        if config.embedding_dropout:
            raise ConfigError("embedding_dropout is GPT-2's; BLOOM has dropout and attention_dropout")
        rng = None if seed is None else np.random.default_rng(seed)
        self.config = config
        self.transformer = Model(config, rng, dropout_rng(seed))
        self.lm_head = output_head(config, self.transformer.word_embeddings, rng)
        show_parts_as("Bloom", self)

    def decode(self, ids: np.ndarray, context: Context) -> Tensor:
        return self.transformer(ids, context)  # (B, T, d)

    def head(self, hidden: Tensor) -> Tensor:
        return self.lm_head(self.transformer.ln_f(hidden))  # (..., V)
