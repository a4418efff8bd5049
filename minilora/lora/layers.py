"""LoraLinear: a frozen linear layer with a trainable update of low rank beside it.

h = W₀ x + (alpha / r) B A x,  A (r, d_in), B (d_out, r)   (LoRA, arXiv:2106.09685, equation 3)

A starts random and B zero, so that at first nothing changes, exactly. (Were both zero, neither would ever get a
gradient: dA = Bᵀ(…) and dB = (…)Aᵀ.) ΔW = (alpha / r) B A is not formed in training: two thin products are cheaper.

A layer holds any number of adapters by name (container.py); the updates of those that are active add up.
"""

import copy

import numpy as np

from minilora import ops
from minilora.autograd import Tensor
from minilora.backend import array_namespace
from minilora.lora import dora
from minilora.lora.config import LoraConfig
from minilora.lora.container import AdapterHolder
from minilora.lora.init import initialise
from minilora.lora.rows import by_rows
from minilora.nn import Embedding, Linear, Module, Parameter, QuantizedLinear
from minilora.nn.layers import Conv1D


class LoraLayer(AdapterHolder):
    """A frozen layer, `base_layer`, with adapters. A subclass says of what kind: its weight, A and B, and x -> A x."""

    def __init__(
        self, base_layer: Module, config: LoraConfig, rng: np.random.Generator, name: str = "default", path: str = "",
        init: bool = True,
    ):  # fmt: skip
        """With one adapter, which is active. The arguments are those of add_adapter."""
        super().__init__(base_layer)
        self.add_adapter(name, config, rng, path, init)
        self.active_adapters = [name]

    @property
    def shape(self) -> tuple[int, int]:
        """(d_out, d_in) of W₀."""
        return self.shape_of(self.base_layer)

    def forward(self, x: Tensor) -> Tensor:
        """The base's output and each active adapter's update, W₀ x + (α/r) B A x; row by row inside by_rows."""
        if not self.enabled:
            return self.run(x, [])
        if self.adapter_names is not None:
            return by_rows(self.adapter_names, lambda name, rows: self.run(rows, [name]), x)
        return self.base_layer(x) if self.merged_adapters else self.run(x, self.active_adapters)

    def run(self, x: Tensor, names: list[str]) -> Tensor:
        """W₀ x + b and the updates of the adapters `names`, as far as this layer has them: (..., d_out)."""
        base = y = self.unmerged.get("base_layer", self.base_layer)(x)  # (..., d_out)
        for name in names:
            if name in self:
                y = self.add_update(name, x, base, y)
        if self.taken and not self.taken.keys() & set(names):
            y = self.put_back(x, y)
        return y

    def add_update(self, name: str, x: Tensor, base: Tensor, y: Tensor) -> Tensor:
        """y + (alpha / r) B A x. base: W₀ x + b, which DoRA scales."""
        dropped = self.drop(name, x)
        low = self.down(self.A(name), dropped) * self.scaling[name]  # (..., r)
        if name in self.lora_magnitude_vector:
            return dora.add_update(self, name, base if dropped is x else self.base_layer(dropped), low, y)
        return ops.addmm(y, low, self.B(name))  # (..., d_out)

    def put_back(self, x: Tensor, y: Tensor) -> Tensor:
        """Without the adapter that took a part of W₀ at its start (PiSSA, OLoRA), that part is missing."""
        for B, A in self.taken.values():
            y = ops.addmm(y, self.down(Tensor(A), x), Tensor(B))
        return y

    def delta_weight(self, name: str | None = None) -> np.ndarray:
        """ΔW (d_out, d_in) of one adapter, or of the active ones together: what merging adds to W₀."""
        names = [n for n in ([name] if name else self.active_adapters) if n in self]
        return sum(map(self._delta, names), self.base_layer.xp.zeros(self.shape, self.dtype))

    def _delta(self, name: str) -> np.ndarray:
        delta = (self.B(name).data @ self.A(name).data) * self.scaling[name]
        return dora.delta_weight(self, name, delta) if name in self.lora_magnitude_vector else delta

    def merged(self, names: list[str] | None = None) -> Module:
        """A plain layer with W₀ + ΔW; a quantized W₀ is dequantized (rounding the sum again would lose most of ΔW)."""
        names = [n for n in (self.active_adapters if names is None else names) if n in self]
        missing = [B @ A for n, (B, A) in self.taken.items() if n not in names]
        return self.plain(sum([*map(self._delta, names), *missing], self.weight()))

    def add_adapter(self, name: str, config: LoraConfig, rng: np.random.Generator, path: str = "", init: bool = True):
        """path: where this layer is, for the configuration's patterns. init: False leaves A and B zero, to be loaded
        (but an initialisation that changes the base weight is done in any case)."""
        self.rng = rng  # dropout's
        self.set_size(name, config, path)
        self.create(name, self.r[name])
        if init or config.changes_base:
            initialise(self, name, config, rng)
        if config.use_dora:
            self.lora_magnitude_vector[name] = Parameter(dora.norms(self, name))

    def delete_adapter(self, name: str):
        """Forget an adapter's factors; what was merged is taken out of the base first."""
        if name in self.taken:
            self.base_layer = self.merged([])
        self.forget(name)


class LoraLinear(LoraLayer):
    """Beside a Linear, a Conv1D (whose weight is transposed) or a 4-bit QuantizedLinear (QLoRA, arXiv:2305.14314)."""

    shown_as = "lora.Linear"
    FILE_NAMES = ("lora_A.weight", "lora_B.weight")

    def create(self, name: str, r: int):
        """Zeros in the place of adapter `name`: A, and B of rank r."""
        d_out, d_in = self.shape
        self.lora_A[name] = _linear(self.base_layer.xp.zeros((r, d_in), self.dtype))
        self.lora_B[name] = _linear(self.base_layer.xp.zeros((d_out, r), self.dtype))

    def A(self, name: str) -> Tensor:
        """Of an adapter: (r, d_in)."""
        return self.lora_A[name].weight

    def B(self, name: str) -> Tensor:
        """Of an adapter: (d_out, r)."""
        return self.lora_B[name].weight

    def down(self, A: Tensor, x: Tensor) -> Tensor:
        """A x, (..., r)."""
        return ops.linear(x, A)  # (..., r)

    def drop(self, name: str, x: Tensor) -> Tensor:
        """x behind the adapter's dropout, in training."""
        return ops.dropout(x, self.dropout[name], self.rng) if self.training and self.dropout[name] else x

    @staticmethod
    def shape_of(base_layer: Module) -> tuple[int, int]:
        """(d_out, d_in) of a layer that could get an adapter."""
        return base_layer.shape

    @property
    def dtype(self) -> np.dtype:
        """Of A and B: float32, and float64 beside a float64 weight."""
        base = self.base_layer
        own = base.quantized_weight.dtype if isinstance(base, QuantizedLinear) else base.weight.dtype
        return np.promote_types(own, np.float32)

    def weight(self) -> np.ndarray:
        """W₀ (d_out, d_in)."""
        base = self.base_layer
        if isinstance(base, QuantizedLinear):
            return base.quantized_weight.dequantize()
        return base.weight.data.T if isinstance(base, Conv1D) else base.weight.data

    def plain(self, weight: np.ndarray) -> Module:
        """The base layer with another weight (d_out, d_in) and the same bias, in float."""
        base = self.base_layer
        layer = _linear(weight) if isinstance(base, QuantizedLinear) else copy.copy(base)
        layer.weight = _frozen(weight.T if isinstance(base, Conv1D) else weight)
        layer.bias = base.bias
        return layer


class LoraEmbedding(LoraLayer):
    """Beside an Embedding: a linear layer whose input is one-hot, so that A x is a column of A.

    Seen as such a layer, W₀ is the table's transpose (d, rows); A (r, rows), B (d, r). Here A starts zero and B random.
    """

    shown_as = "lora.Embedding"
    FILE_NAMES = ("lora_embedding_A", "lora_embedding_B")

    def create(self, name: str, r: int):
        """Zeros in the place of adapter `name`: A, and B of rank r."""
        d, rows = self.shape
        self.lora_embedding_A[name] = Parameter(self.base_layer.xp.zeros((r, rows), self.dtype))
        self.lora_embedding_B[name] = Parameter(self.base_layer.xp.zeros((d, r), self.dtype))

    def A(self, name: str) -> Tensor:
        """Of an adapter: (r, rows)."""
        return self.lora_embedding_A[name]

    def B(self, name: str) -> Tensor:
        """Of an adapter: (d, r)."""
        return self.lora_embedding_B[name]

    def down(self, A: Tensor, ids: np.ndarray) -> Tensor:
        """The columns of A at these ids, (..., r)."""
        return ops.embedding(A.T, ids)  # (*ids.shape, r)

    def drop(self, name: str, ids: np.ndarray) -> np.ndarray:
        """The ids as they are: there is nothing to drop of a number."""
        return ids  # numbers: nothing to drop, as in PEFT

    @staticmethod
    def shape_of(base_layer: Module) -> tuple[int, int]:
        """(d, rows), the transpose of the table's."""
        return base_layer.weight.shape[::-1]

    @property
    def dtype(self) -> np.dtype:
        """Of A and B: float32, and float64 beside a float64 table."""
        return np.promote_types(self.base_layer.weight.dtype, np.float32)

    def weight(self) -> np.ndarray:
        """The table's transpose, (d, rows)."""
        return self.base_layer.weight.data.T

    def plain(self, weight: np.ndarray) -> Module:
        """The embedding with another table, given as (d, rows)."""
        layer = copy.copy(self.base_layer)
        layer.weight = _frozen(weight.T)
        return layer


def _linear(weight: np.ndarray) -> Linear:
    layer = Linear(0, 0)
    layer.weight = Parameter(weight)
    return layer


def _frozen(weight: np.ndarray) -> Parameter:
    return Parameter(array_namespace(weight).ascontiguousarray(weight), requires_grad=False)


# To adapt another kind of layer, write its LoraLayer and enter it here.
LORA_LAYERS: dict[type, type] = {Linear: LoraLinear, Conv1D: LoraLinear, QuantizedLinear: LoraLinear,
                                 Embedding: LoraEmbedding}  # fmt: skip


def lora_class(layer: Module) -> type[LoraLayer]:
    return next(LORA_LAYERS[kind] for kind in type(layer).__mro__ if kind in LORA_LAYERS)
