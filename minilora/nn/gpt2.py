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
from minilora.nn.attention import KVCache
from minilora.nn.language_model import LanguageModel, ModelConfig, output_head
from minilora.nn.layers import Conv1D, Embedding, LayerNorm, Linear
from minilora.nn.module import Module


class Attention(Module):
    def __init__(self, config: ModelConfig, layer: int, linear: Callable, rng):
        d, hd, self.layer = config.hidden_size, config.head_dim, layer
        self.heads, self.kv_heads = config.num_attention_heads, config.num_key_value_heads
        self.c_attn = linear(d, (self.heads + 2 * self.kv_heads) * hd, rng=rng, std=config.init_std(d))
        self.c_proj = linear(self.heads * hd, d, rng=rng, std=config.init_std(self.heads * hd, residual=True))

    def forward(self, x: Tensor, cache: KVCache | None) -> Tensor:
        H, K = self.heads, self.kv_heads
        qkv = ops.split_heads(self.c_attn(x), H + 2 * K)  # (B, H + 2K, T, hd)
        q, k, v = qkv[:, :H], qkv[:, H : H + K], qkv[:, H + K :]  # (B, H, T, hd); (B, K, T, hd) twice
        if cache is not None:
            k, v = cache.extend(self.layer, k, v)  # (B, K, S, hd)
        y = ops.merge_heads(ops.attention(q, k, v))  # (B, T, H·hd)
        return self.c_proj(y)  # (B, T, d)


class MLP(Module):
    def __init__(self, config: ModelConfig, linear: Callable, rng):
        d, ff = config.hidden_size, config.intermediate_size
        self.c_fc = linear(d, ff, rng=rng, std=config.init_std(d))
        self.c_proj = linear(ff, d, rng=rng, std=config.init_std(ff, residual=True))
        self.activation = getattr(ops, config.activation)

    def forward(self, x: Tensor) -> Tensor:
        h = self.activation(self.c_fc(x))  # (B, T, ff)
        return self.c_proj(h)  # (B, T, d)


class Block(Module):
    def __init__(self, config: ModelConfig, layer: int, linear: Callable, rng):
        self.ln_1 = LayerNorm(config.hidden_size, config.norm_eps)
        self.attn = Attention(config, layer, linear, rng)
        self.ln_2 = LayerNorm(config.hidden_size, config.norm_eps)
        self.mlp = MLP(config, linear, rng)

    def forward(self, x: Tensor, cache: KVCache | None) -> Tensor:
        x = x + self.attn(self.ln_1(x), cache)  # (B, T, d)
        return x + self.mlp(self.ln_2(x))  # (B, T, d)


class Transformer(Module):
    def __init__(self, config: ModelConfig, linear: Callable, rng):
        self.wte = Embedding(config.vocab_size, config.hidden_size, rng)  # of tokens
        self.wpe = Embedding(config.max_position_embeddings, config.hidden_size, rng)  # of positions
        self.h = [Block(config, i, linear, rng) for i in range(config.num_hidden_layers)]
        self.ln_f = LayerNorm(config.hidden_size, config.norm_eps)

    def forward(self, ids: np.ndarray, start: int, cache: KVCache | None) -> Tensor:
        positions = np.arange(start, start + ids.shape[1])
        x = self.wte(ids) + self.wpe(positions)  # (B, T, d) + (T, d)
        for block in self.h:
            x = block(x, cache)  # (B, T, d)
        return x  # (B, T, d)


class GPT2(LanguageModel):
    linear = Conv1D

    def __init__(self, config: ModelConfig, seed: int | None = 0):
        """Weights drawn with `seed`; all zero when it is None (to be loaded)."""
        rng = None if seed is None else np.random.default_rng(seed)
        self.config = config
        self.transformer = Transformer(config, self.linear, rng)
        self.lm_head = output_head(config, self.transformer.wte, rng)

    def decode(self, ids: np.ndarray, start: int, cache: KVCache | None) -> Tensor:
        return self.transformer(ids, start, cache)  # (B, T, d)

    def head(self, hidden: Tensor) -> Tensor:
        return self.lm_head(self.transformer.ln_f(hidden))  # (..., V)


class GPTBigCode(GPT2):
    linear = staticmethod(partial(Linear, bias=True))
