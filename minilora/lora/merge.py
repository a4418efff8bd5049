"""Merging: W₀ + ΔW as one plain layer, and what is left of ΔW where the sum is rounded to 4 bits again.

The base layer is kept while a merged one stands in its place, so that unmerging restores it bit for bit: subtracting
ΔW would leave rounding, and from a quantized sum could not restore it at all.

    survival(wanted, applied)       # gain <applied, wanted> / <wanted, wanted>; 1 is all, 0 nothing

A quantized base is merged into floats. Rounding the sum again to the same code changes a weight only where ΔW carries
it over the middle between two levels. Of an update much smaller than the levels' distance nearly nothing survives but
at the largest entry of each block, which is stored as the block's absmax: 1 weight in 64.
"""

import copy
import warnings
from dataclasses import dataclass

import numpy as np

from minilora.errors import ConfigError
from minilora.lora.attach import lora_layers, wrappers
from minilora.lora.layers import LoraLayer
from minilora.nn import Embedding, Module, QuantizedLinear
from minilora.quant import quantize


@dataclass(frozen=True)
class Survival:
    """gain: how much of the update's own direction was applied; relative_error: ‖applied - wanted‖ / ‖wanted‖."""

    gain: float
    relative_error: float
    wanted_squared: float

    def __repr__(self):
        return f"gain {self.gain:.3f}, relative error {self.relative_error:.3f}"


def survival(wanted: np.ndarray, applied: np.ndarray) -> Survival:
    """Compare two updates of one shape. A zero `wanted` has gain 1 and error 0 where nothing was applied."""
    wanted, applied = wanted.astype(np.float64), applied.astype(np.float64)
    square, error = float(np.vdot(wanted, wanted)), float(np.linalg.norm(applied - wanted))
    if not square:
        return Survival(1.0, 0.0 if not error else float("inf"), 0.0)
    return Survival(float(np.vdot(applied, wanted)) / square, error / square**0.5, square)


def overall(parts: list[Survival]) -> Survival:
    """Of all layers together, each weighing as the square of its update."""
    total = sum(p.wanted_squared for p in parts) or 1.0
    gain = sum(p.gain * p.wanted_squared for p in parts) / total
    return Survival(gain, (sum(p.relative_error**2 * p.wanted_squared for p in parts) / total) ** 0.5, total)


def merged_layer(layer: LoraLayer, path: str, names: list[str], requantize: bool) -> tuple[Module, Survival | None]:
    """The plain layer, and, where it was quantized again, what survived. Raises ConfigError for a non-finite sum."""
    names, base = [name for name in names if name in layer], layer.base_layer
    if not names and not layer.taken:
        return base, None
    merged = layer.merged(names)
    if not np.isfinite(merged.weight.data).all():
        raise ConfigError(f"{path}: W + ΔW is not finite; the adapter is broken")
    if not (requantize and isinstance(base, QuantizedLinear)):
        return merged, None
    q, before = base.quantized_weight, base.quantized_weight.dequantize()
    again = quantize(merged.weight.data, q.code, q.blocksize, q.double_quant or False)
    return QuantizedLinear(again, base.bias), survival(merged.weight.data - before, again.dequantize() - before)


def merge(layer: LoraLayer, path: str, names: list[str], requantize: bool = False) -> Survival | None:
    """Put the merged layer in the base layer's place; `unmerge` undoes it."""
    merged, survived = merged_layer(layer, path, names, requantize)
    layer.unmerged, layer.base_layer, layer.merged_adapters = {"base_layer": layer.base_layer}, merged, list(names)
    return survived


def unmerge(layer: LoraLayer):
    if layer.unmerged:
        layer.base_layer = layer.unmerged.pop("base_layer")
    layer.merged_adapters = []


def report(survived: dict[str, Survival | None]) -> Survival | None:
    """What survived of all layers together, with a warning; None where nothing was quantized again."""
    parts = [s for s in survived.values() if s is not None]
    if not parts:
        return None
    total = overall(parts)
    warnings.warn(f"rounding W + ΔW to the base's code again kept of ΔW: {total}. Merge into floats to keep it all.",
                  stacklevel=3)  # fmt: skip
    return total


def merge_and_unload(model: Module, names: list[str], requantize: bool) -> Module:
    """Replace every adapted layer by its merged one, and every copied module by the copy in use."""
    survived = {}
    for path, layer in lora_layers(model).items():
        merged, survived[path] = merged_layer(layer, path, names, requantize)
        model.set_submodule(path, merged)
    for path, wrapper in wrappers(model).items():
        model.set_submodule(path, wrapper.module_for(names))
    model.merge_survival = {path: s for path, s in survived.items() if s is not None}
    report(survived)
    head = getattr(model, "lm_head", None)
    if getattr(getattr(model, "config", None), "tie_word_embeddings", False) and head is not None:
        tables = [m.weight for _, m in model.named_modules() if isinstance(m, Embedding)]
        if not any(p is table for p in head.parameters() for table in tables):
            model.config = copy.copy(model.config)
            model.config.tie_word_embeddings = False
    return model
