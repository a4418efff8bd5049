"""GPT-2 (Radford et al., 2019), and GPTBigCode (SantaCoder, arXiv:2301.03988; StarCoder, arXiv:2305.06161).

    model = GPT2(ModelConfig(vocab_size=50257, hidden_size=768, ...), seed=0)
    model = GPTBigCode(ModelConfig(..., num_key_value_heads=1), seed=0)

Pre-norm as LLaMA; what differs: learned positions, LayerNorm, biases, a plain MLP, and one projection `c_attn` for q, k
and v together. GPTBigCode is GPT-2 with multi-query attention: a single key and value head that all query heads share
(arXiv:1911.02150), so that the cache of a long text is smaller by the number of heads. GPT-2 keeps its weights
transposed, (in, out), as Conv1D; GPTBigCode has linear layers. Names are those of Hugging Face's GPT2LMHeadModel.
"""

from collections.abc import Callable
from functools import partial

import numpy as np

from minilora import ops
from minilora.autograd import Tensor
from minilora.nn.attention import Context, attend
from minilora.nn.language_model import LanguageModel, ModelConfig, dropout_rng, output_head, show_parts_as
from minilora.nn.layers import Activation, Conv1D, Dropout, Embedding, LayerNorm, Linear
from minilora.nn.module import Module


class Attention(Module):
    def __init__(self, config: ModelConfig, layer: int, linear: Callable, rng, noise):
        d, hd, self.layer = config.hidden_size, config.head_dim, layer
        self.heads, self.kv_heads = config.num_attention_heads, config.num_key_value_heads
        self.c_attn = linear(d, (self.heads + 2 * self.kv_heads) * hd, rng=rng, std=config.init_std(d))
        self.c_proj = linear(self.heads * hd, d, rng=rng, std=config.init_std(self.heads * hd, residual=True))
        self.attn_dropout = Dropout(config.attention_dropout, noise)
        self.resid_dropout = Dropout(config.dropout, noise)

    def forward(self, x: Tensor, context: Context) -> Tensor:
        H, K = self.heads, self.kv_heads
        qkv = ops.split_heads(self.c_attn(x), H + 2 * K)  # (B, H + 2K, T, hd)
        q, k, v = qkv[:, :H], qkv[:, H : H + K], qkv[:, H + K :]  # (B, H, T, hd); (B, K, T, hd) twice
        if context.cache is not None:
            k, v = context.cache.extend(self.layer, k, v)  # (B, K, S, hd)
        y = ops.merge_heads(attend(q, k, v, self.attn_dropout, mask=context.mask))  # (B, T, H·hd)
        return self.resid_dropout(self.c_proj(y))  # (B, T, d)


class MLP(Module):
    def __init__(self, config: ModelConfig, linear: Callable, rng, noise):
        d, ff = config.hidden_size, config.intermediate_size
        self.c_fc = linear(d, ff, rng=rng, std=config.init_std(d))
        self.c_proj = linear(ff, d, rng=rng, std=config.init_std(ff, residual=True))
        self.act = Activation(config.activation)
        self.dropout = Dropout(config.dropout, noise)

    def forward(self, x: Tensor) -> Tensor:
        h = self.act(self.c_fc(x))  # (B, T, ff)
        return self.dropout(self.c_proj(h))  # (B, T, d)


class Block(Module):
    def __init__(self, config: ModelConfig, layer: int, linear: Callable, rng, noise):
        self.ln_1 = LayerNorm(config.hidden_size, config.norm_eps)
        self.attn = Attention(config, layer, linear, rng, noise)
        self.ln_2 = LayerNorm(config.hidden_size, config.norm_eps)
        self.mlp = MLP(config, linear, rng, noise)

    def forward(self, x: Tensor, context: Context) -> Tensor:
        x = x + self.attn(self.ln_1(x), context)  # (B, T, d)
        return x + self.mlp(self.ln_2(x))  # (B, T, d)


class Model(Module):
    def __init__(self, config: ModelConfig, linear: Callable, rng, noise):
        self.wte = Embedding(config.vocab_size, config.hidden_size, rng)  # of tokens
        self.wpe = Embedding(config.max_position_embeddings, config.hidden_size, rng)  # of positions
        self.drop = Dropout(config.embedding_dropout, noise)
        self.h = [Block(config, i, linear, rng, noise) for i in range(config.num_hidden_layers)]
        self.ln_f = LayerNorm(config.hidden_size, config.norm_eps)

    def forward(self, ids: np.ndarray, context: Context) -> Tensor:
        x = self.drop(self.wte(ids) + self.wpe(context.positions))  # (B, T, d) + (T, d)
        for block in self.h:
            x = block(x, context)  # (B, T, d)
        return x  # (B, T, d)


class GPT2(LanguageModel):
    """GPT-2: learned positions, LayerNorm before each part, Conv1D layers. Input and output: LanguageModel."""

    shown_as = "GPT2LMHeadModel"
    linear = Conv1D

    def __init__(self, config: ModelConfig, seed: int | None = 0):
        """Weights drawn with `seed`; all zero when it is None (to be loaded)."""
        rng = None if seed is None else np.random.default_rng(seed)
        self.config = config
        self.transformer = Model(config, self.linear, rng, dropout_rng(seed))
        self.lm_head = output_head(config, self.transformer.wte, rng)
        show_parts_as(type(self).__name__, self)

    def decode(self, ids: np.ndarray, context: Context) -> Tensor:
        return self.transformer(ids, context)  # (B, T, d)

    def head(self, hidden: Tensor) -> Tensor:
        return self.lm_head(self.transformer.ln_f(hidden))  # (..., V)


class GPTBigCode(GPT2):
    """StarCoder's GPT-2, with one key and value head for all queries (arXiv:1911.02150)."""

    shown_as = "GPTBigCodeForCausalLM"
    linear = staticmethod(partial(Linear, bias=True))
