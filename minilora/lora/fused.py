"""LoraMergedLinear: a layer that computes q, k and v in one product, of which some get an update (loralib's name).

    LoraConfig(r=8, target_modules=["c_attn"], enable_lora=[True, False, True])      # q and v, as in the LoRA paper

Each enabled part i has A_i (r, d_in) and B_i (rows of that part, r): lora_A is their stack (n r, d_in), lora_B likewise
(rows, r). That is plain LoRA of rank n r whose B is zero outside n blocks:

    ΔW = (alpha / r) [B_q 0; 0 0; 0 B_v] [A_q; A_v]

which is how PEFT's files can hold it, and how it is computed here.
"""

import numpy as np

from minilora import ops
from minilora.autograd import Tensor
from minilora.backend import array_namespace
from minilora.errors import ConfigError
from minilora.lora.config import LoraConfig
from minilora.lora.layers import LoraLinear, _linear
from minilora.nn import Module

FUSED = ("c_attn", "query_key_value", "qkv_proj", "Wqkv", "qkv")


class LoraMergedLinear(LoraLinear):
    shown_as = "lora.MergedLinear"

    def __init__(self, base_layer: Module, config: LoraConfig, rng, name="default", path="", init=True, attention=None):
        """attention: the module that the layer is a part of, which knows how q, k and v lie in the output."""
        self.rows = fused_rows(path.rpartition(".")[2], attention, base_layer.shape[0], len(config.enable_lora or [1]))
        self.enable_lora: dict[str, list[bool]] = {}
        super().__init__(base_layer, config, rng, name, path, init)

    def add_adapter(self, name: str, config: LoraConfig, rng, path: str = "", init: bool = True):
        if config.enable_lora is not None:
            if len(config.enable_lora) != len(self.rows):
                raise ConfigError(f"enable_lora={config.enable_lora}: this layer has {len(self.rows)} parts")
            self.enable_lora[name] = config.enable_lora
        super().add_adapter(name, config, rng, path, init)

    def create(self, name: str, r: int):
        """Zeros in the place of adapter `name`: an A and a B for each enabled part."""
        if name not in self.enable_lora:
            return super().create(name, r)
        parts = self.enabled_rows(name)
        self.lora_A[name] = _linear(self.base_layer.xp.zeros((len(parts) * r, self.shape[1]), self.dtype))
        self.lora_B[name] = _linear(self.base_layer.xp.zeros((sum(map(len, parts)), r), self.dtype))

    def enabled_rows(self, name: str) -> list[np.ndarray]:
        """The output rows of each part that gets an update."""
        return [rows for rows, on in zip(self.rows, self.enable_lora[name], strict=True) if on]

    def B(self, name: str) -> Tensor:
        """(d_out, n r), zero outside the blocks."""
        compact = super().B(name)
        if name not in self.enable_lora:
            return compact
        parts, r, start, bands = self.enabled_rows(name), self.r[name], 0, []
        xp = array_namespace(compact.data)
        for i, rows in enumerate(parts):  # B_i in the columns of its A_i
            block = compact[start : start + len(rows)]
            left, right = (xp.zeros((len(rows), n * r), self.dtype) for n in (i, len(parts) - 1 - i))
            bands.append(ops.concatenate([left, block, right], 1))
            start += len(rows)
        rest = np.setdiff1d(np.arange(self.shape[0]), np.concatenate(parts))
        bands.append(xp.zeros((len(rest), len(parts) * r), self.dtype))
        order = np.argsort(np.concatenate([*parts, rest]))
        return ops.embedding(ops.concatenate(bands), order)

    def forget(self, name: str):
        """Drop all that is kept of an adapter."""
        self.enable_lora.pop(name, None)
        super().forget(name)


def fused_rows(name: str, attention: Module | None, d_out: int, parts: int) -> list[np.ndarray]:
    """The rows of each part in the output of a fused layer called `name`. Raises ConfigError.

    GPT-2's c_attn: all of q, all of k, all of v, which with few key/value heads are of different sizes. BLOOM's
    query_key_value: q, k and v of the first head, then of the second. Where `attention` has no number of heads: equal
    parts one after the other, as loralib.
    """
    heads = getattr(attention, "heads", None)
    if heads and parts == 3 and name == "query_key_value":
        return list(np.arange(d_out).reshape(heads, 3, -1).transpose(1, 0, 2).reshape(3, -1))
    if heads and parts == 3:
        kv_heads = getattr(attention, "kv_heads", heads)
        size = d_out // (heads + 2 * kv_heads)
        return np.split(np.arange(d_out), [heads * size, (heads + kv_heads) * size])
    if d_out % parts:
        raise ConfigError(
            f"enable_lora has {parts} parts, and {name or 'the layer'} has {d_out} outputs: not a multiple"
        )
    return np.split(np.arange(d_out), parts)
