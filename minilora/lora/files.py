"""PEFT's adapter folder: adapter_config.json, and adapter_model.safetensors with A and B of every adapted layer."""

import json
import os
from pathlib import Path

import numpy as np

from minilora.errors import ConfigError, FileFormatError, MiniloraError
from minilora.files import atomic_write, load_safetensors, save_safetensors
from minilora.lora.config import LoraConfig

_OURS = ("r", "lora_alpha", "target_modules", "lora_dropout")
# Fields of PEFT that would change what the adapter computes, with the only value that is implemented.
_REQUIRED = {
    "peft_type": "LORA", "use_dora": False, "use_rslora": False, "bias": "none", "fan_in_fan_out": False,
    "modules_to_save": None, "rank_pattern": {}, "alpha_pattern": {}, "layers_to_transform": None,
    "layers_pattern": None, "exclude_modules": None, "target_parameters": None, "trainable_token_indices": None,
    "lora_bias": False, "layer_replication": None, "megatron_config": None, "use_qalora": False,
}  # fmt: skip


def save_adapter(folder, config: LoraConfig, arrays: dict[str, np.ndarray]):
    """Write both files. Raises MiniloraError for a folder that cannot be written, FileFormatError for no arrays."""
    if not arrays:
        raise FileFormatError("there is no adapter to save: the file would be empty")
    folder = Path(folder)
    try:
        os.makedirs(folder, exist_ok=True)
    except OSError as error:
        raise MiniloraError(f"folder {folder} cannot be made: {error.strerror}") from error
    fields = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "bias": "none", "inference_mode": True}
    fields |= {name: getattr(config, name) for name in _OURS}
    save_safetensors(folder / "adapter_model.safetensors", arrays, {"format": "pt"})
    atomic_write(folder / "adapter_config.json", json.dumps(fields, indent=2) + "\n")


def load_adapter(folder) -> tuple[LoraConfig, dict[str, np.ndarray]]:
    """The configuration and arrays. Raises FileFormatError, or ConfigError for a field that is not implemented."""
    path = Path(folder) / "adapter_config.json"
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
        config = LoraConfig(**{name: fields[name] for name in _OURS})
    except (OSError, ValueError, KeyError, TypeError) as error:
        if isinstance(error, MiniloraError):
            raise
        raise FileFormatError(f"{path} is not a readable LoRA configuration: {error!r}") from error
    for name, value in _REQUIRED.items():
        if fields.get(name) not in (value, None, {}, [], False):
            raise ConfigError(f"{path}: {name}={fields[name]!r} is not implemented; only {value!r} is")
    arrays, _ = load_safetensors(path.with_name("adapter_model.safetensors"))
    return config, arrays


def check_names_and_shapes(folder, arrays: dict[str, np.ndarray], wanted: dict[str, tuple[int, int]]):
    """Refuse an adapter that does not fit the model entirely."""
    for what, names in (("lacks", wanted.keys() - arrays.keys()), ("has, unlike the model,", arrays.keys() - wanted)):
        if names:
            raise FileFormatError(f"the adapter in {folder} {what} {len(names)} arrays, the first {min(names)!r}")
    for name, shape in wanted.items():
        if arrays[name].shape != shape:
            raise FileFormatError(f"{name} in {folder} is {arrays[name].shape}; this model needs {shape}")
