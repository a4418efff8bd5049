"""ReLoRA: from time to time merge the adapter into the base and begin a new one, so that ΔW's rank can grow.

    restart(model, optimizer, rng)

After k restarts W = W₀ + Σ (alpha/r) BᵢAᵢ, of rank up to k r, for the memory of one adapter (arXiv:2307.05695). The
optimizer's state belongs to the old A and B and begins anew, and the learning rate warms up again.
"""

import numpy as np

from minilora.errors import ConfigError
from minilora.lora.attach import lora_layers
from minilora.lora.init import initialise
from minilora.nn import Module, QuantizedLinear


def check(model: Module):
    """Raises ConfigError where there is no adapter to merge, or a base that it cannot be merged into exactly."""
    layers = lora_layers(model) if hasattr(model, "peft_config") else {}
    if not layers:
        raise ConfigError("relora_steps merges adapters, and this model has none: get_peft_model first")
    if quantized := [path for path, layer in layers.items() if isinstance(layer.base_layer, QuantizedLinear)]:
        raise ConfigError(f"relora_steps merges into the base, which is quantized at {quantized[0]}; use a float base")
    config = model.peft_config[model.active_adapters[0]]
    if config.use_dora or config.changes_base or len(model.active_adapters) != 1:
        raise ConfigError("relora_steps goes with one plain LoRA adapter: not use_dora, pissa, olora or loftq")


def restart(model: Module, optimizer, rng: np.random.Generator):
    """Add ΔW to the base weights, draw A anew, set B to zero and the optimizer's state as well."""
    name = model.active_adapters[0]
    for layer in lora_layers(model).values():
        layer.base_layer = layer.plain(layer.weight() + layer.delta_weight(name))
        factors = layer.A(name), layer.B(name)
        for p in factors:
            p.data = np.zeros_like(p.data)
        initialise(layer, name, model.peft_config[name], rng)
        for p in factors:
            p.mark_changed()
    optimizer.reset()


def warmup_factor(step: int, every: int, warmup: int) -> float:
    """What the learning rate of update `step` (from 0) is multiplied with after a restart; 1 before the first one."""
    since = step % every
    return min(1.0, (since + 1) / warmup) if step >= every and warmup else 1.0
