"""get_peft_model: freeze a model and put adapters beside its linear layers.

model = get_peft_model(model, LoraConfig(r=8, lora_alpha=16))
model.print_trainable_parameters()
model.save_pretrained("adapter")             # PEFT's files
with model.disable_adapter(): ...            # the base model again
base = model.merge_and_unload()              # W₀ + ΔW, no adapter
"""

import re
from contextlib import contextmanager
from difflib import get_close_matches

import numpy as np

from minilora.errors import ConfigError
from minilora.lora import files
from minilora.lora.config import LoraConfig
from minilora.lora.layers import LoraLinear
from minilora.nn import Linear, Module, QuantizedLinear


class LoraModel(Module):
    """Holds the adapted model, so that parameter names begin as PEFT's do: base_model.model."""

    def __init__(self, model: Module):
        self.model = model


class PeftModel(Module):
    def __init__(self, model: Module, config: LoraConfig, seed: int = 0):
        paths = find_targets(model, config.target_modules)
        model.requires_grad_(False)
        rng = np.random.default_rng(seed)
        for path in paths:
            model.set_submodule(path, LoraLinear(model.get_submodule(path), config, rng))
        self.base_model, self.peft_config = LoraModel(model), config

    @property
    def config(self):
        return self.base_model.model.config

    def forward(self, *args, **kwargs):
        return self.base_model.model(*args, **kwargs)

    def loss(self, *args, **kwargs):
        return self.base_model.model.loss(*args, **kwargs)

    def target_logits(self, *args):
        return self.base_model.model.target_logits(*args)

    def new_cache(self, *args):
        return self.base_model.model.new_cache(*args)

    def adapters(self) -> dict[str, LoraLinear]:
        return {path: m for path, m in self.named_modules() if isinstance(m, LoraLinear)}

    def trainable_parameters(self) -> tuple[int, int]:
        """(trainable, all) parameters; a 4-bit weight counts as one parameter."""
        return sum(p.size for p in self.trainable().values()), self.num_parameters()

    def print_trainable_parameters(self):
        trainable, total = self.trainable_parameters()
        print(f"trainable params: {trainable:,} || all params: {total:,} || trainable%: {100 * trainable / total:.4f}")

    @contextmanager
    def disable_adapter(self):
        """Within it the model is its base."""
        layers = self.adapters().values()
        before = [layer.enabled for layer in layers]
        try:
            for layer in layers:
                layer.enabled = False
            yield
        finally:
            for layer, enabled in zip(layers, before, strict=True):
                layer.enabled = enabled

    def merge_and_unload(self) -> Module:
        """The base model with ΔW added to its weights and no adapter; quantized layers become float ones."""
        model = self.base_model.model
        for path, layer in [(p, m) for p, m in model.named_modules() if isinstance(m, LoraLinear)]:
            model.set_submodule(path, layer.merged())
        return model

    def adapter_state_dict(self) -> dict[str, np.ndarray]:
        return {name: p.data for name, p in self.named_parameters() if ".lora_" in name}

    def save_pretrained(self, folder):
        """Write adapter_config.json and adapter_model.safetensors, whole or not at all."""
        files.save_adapter(folder, self.peft_config, self.adapter_state_dict())

    @classmethod
    def from_pretrained(cls, model: Module, folder) -> "PeftModel":
        """`model` with the adapter of a folder. Raises FileFormatError or ConfigError; `model` is then unchanged."""
        config, arrays = files.load_adapter(folder)
        wanted = {}
        for path in find_targets(model, config.target_modules):
            d_out, d_in = model.get_submodule(path).shape
            wanted[f"base_model.model.{path}.lora_A.weight"] = (config.r, d_in)
            wanted[f"base_model.model.{path}.lora_B.weight"] = (d_out, config.r)
        files.check_names_and_shapes(folder, arrays, wanted)
        peft = cls(model, config)
        for name, p in peft.named_parameters():
            if ".lora_" in name:
                p.data = arrays[name]
        return peft


def get_peft_model(model: Module, config: LoraConfig, seed: int = 0) -> PeftModel:
    """Freeze `model` and attach adapters to its target layers (in place); seed draws the A matrices."""
    return PeftModel(model, config, seed)


def find_targets(model: Module, target_modules: str | list[str]) -> list[str]:
    """Paths of the linear layers that target_modules names. Raises ConfigError listing those that exist."""
    linear = [path for path, m in model.named_modules() if isinstance(m, (Linear, QuantizedLinear))]
    if any(isinstance(m, LoraLinear) for _, m in model.named_modules()):
        raise ConfigError("this model already has adapters; merge_and_unload() them first")
    if target_modules == "all-linear":
        found = [path for path in linear if path.rpartition(".")[2] != "lm_head"]
    elif isinstance(target_modules, str):
        found = [path for path in linear if re.fullmatch(target_modules, path)]
    else:
        found = [path for path in linear if any(f".{path}".endswith(f".{name}") for name in target_modules)]
    if not found:
        names = sorted({path.rpartition(".")[2] for path in linear})
        asked = [target_modules] if isinstance(target_modules, str) else target_modules
        near = [n for name in asked for n in get_close_matches(name, names, n=1)]
        hint = f" Did you mean {', '.join(map(repr, near))}?" if near else ""
        raise ConfigError(
            f"target_modules={target_modules!r} matches no linear layer.{hint} There are {', '.join(names)}, "
            f"as in {linear[0] if linear else 'none'}; or say 'all-linear'."
        )
    return found
