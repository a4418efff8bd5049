"""Self-attention with grouped key/value heads, rotary positions and a key/value cache; attention with dropout."""

from dataclasses import dataclass

import numpy as np

from minilora import ops
from minilora.autograd import Tensor
from minilora.backend import array_namespace
from minilora.nn.layers import Dropout, Linear
from minilora.nn.module import Module


class KVCache:
    """Keys and values of the positions seen so far: room for max_length positions in every layer, filled in place."""

    def __init__(self, layers: int, batch: int, heads: int, max_length: int, head_dim: int, xp=np):
        """xp: the library of the model's arrays."""
        self.keys = xp.empty((layers, batch, heads, max_length, head_dim), np.float32)
        self.values = xp.empty_like(self.keys)
        self.length = 0

    def extend(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Append k, v (B, K, T, hd) of this layer; returns all so far, (B, K, length + T, hd)."""
        end = self.length + k.shape[2]
        if end > self.keys.shape[3]:
            raise ValueError(f"the cache holds {self.keys.shape[3]} positions; {end} are needed")
        self.keys[layer, :, :, self.length : end] = k.data
        self.values[layer, :, :, self.length : end] = v.data
        return Tensor(self.keys[layer, :, :, :end]), Tensor(self.values[layer, :, :, :end])

    def keep(self, rows: np.ndarray):
        """Forget the rows of the batch that are not among these, given as booleans or numbers."""
        rows = array_namespace(self.keys).asarray(rows)
        self.keys, self.values = self.keys[:, rows], self.values[:, rows]


@dataclass
class Context:
    """What the layers must know of the tokens beside their hidden states (B, T, d).

    positions: (T,), or (B, T) where rows differ. keys: how many positions there are to look at, S, the cached ones
    included. mask: booleans (B, T, S), False where a query must not look at a key though it comes before; or None.
    """

    positions: np.ndarray
    keys: int
    mask: np.ndarray | None = None
    cache: KVCache | None = None


def attend(q: Tensor, k: Tensor, v: Tensor, dropout: Dropout, causal=True, mask=None, bias=None) -> Tensor:
    """ops.attention, whose arguments these are, with dropout of the probabilities: (B, H, T, hd).

    Only where it is active are the probabilities a Tensor of their own, and the tape keeps them more than once.
    """
    if not dropout.active:
        return ops.attention(q, k, v, causal=causal, mask=mask, bias=bias)
    (B, H, T, hd), (K, S) = q.shape, k.shape[1:3]
    group = (B, K, H // K * T, hd)  # the queries of the heads that share a key head
    scores = ops.matmul(q.reshape(group), k.transpose(0, 1, 3, 2)) * hd**-0.5  # (B, K, H/K·T, S)
    xp = array_namespace(q.data)
    seen = xp.tri(T, S, S - T, dtype=bool) if causal else xp.ones((T, S), bool)  # (T, S)
    if mask is not None:
        seen = seen & xp.asarray(mask if mask.ndim == 3 else mask[:, None])[:, None]  # (B, 1, T, S)
    hidden = xp.where(seen, 0, -np.inf) + (0 if bias is None else bias)
    p = dropout(ops.softmax(scores.reshape(B, H, T, S) + hidden.astype(q.dtype)))  # (B, H, T, S)
    return ops.matmul(p.reshape(*group[:3], S), v).reshape(B, H, T, hd)


class Attention(Module):
    def __init__(self, config, layer: int, rng, noise):
        d, hd, self.layer = config.hidden_size, config.head_dim, layer
        self.heads, self.kv_heads = config.num_attention_heads, config.num_key_value_heads
        bias = bool(config.bias)
        self.q_proj = Linear(d, self.heads * hd, bias, rng, config.init_std(d))
        self.k_proj = Linear(d, self.kv_heads * hd, bias, rng, config.init_std(d))
        self.v_proj = Linear(d, self.kv_heads * hd, bias, rng, config.init_std(d))
        residual = config.init_std(self.heads * hd, residual=True)
        self.o_proj = Linear(self.heads * hd, d, bias and config.bias != "qkv", rng, residual)
        self.attention_dropout = Dropout(config.attention_dropout, noise)

    def forward(self, x: Tensor, rotary, context: Context) -> Tensor:
        q = ops.split_heads(self.q_proj(x), self.heads)  # (B, H, T, hd)
        k = ops.split_heads(self.k_proj(x), self.kv_heads)  # (B, K, T, hd)
        v = ops.split_heads(self.v_proj(x), self.kv_heads)  # (B, K, T, hd)
        if rotary is not None:
            q, k = ops.rope(q, *rotary), ops.rope(k, *rotary)
        if context.cache is not None:
            k, v = context.cache.extend(self.layer, k, v)  # (B, K, S, hd)
        y = ops.merge_heads(attend(q, k, v, self.attention_dropout, mask=context.mask))  # (B, T, H·hd)
        return self.o_proj(y)  # (B, T, d)
