"""PEFT's adapter folder: adapter_config.json, and adapter_model.safetensors with the arrays of one adapter.

    base_model.model.<path>.lora_A.weight (r, d_in), .lora_B.weight (d_out, r)          linear layers
    base_model.model.<path>.lora_embedding_A (r, rows), .lora_embedding_B (d, r)        embeddings
    base_model.model.<path>.lora_magnitude_vector (d_out,)                              DoRA
    base_model.model.<path>.base_layer.bias, base_model.model.<path>.bias               bias="lora_only", "all"
    base_model.model.<path>.<parameter>                                                 modules_to_save

The adapter's name is not in the file. Nothing is read or written but these two files, whatever they say.
"""

import json
import os
import warnings
from pathlib import Path

import numpy as np

from minilora.errors import ConfigError, FileFormatError, MiniloraError
from minilora.files import atomic_write, load_safetensors, save_safetensors
from minilora.lora.config import FIELDS, LoraConfig

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
FINGERPRINT = "minilora_base_fingerprint"
# Fields of PEFT that change what the adapter computes and are not implemented: refused unless they are off.
REFUSED = {
    "target_parameters", "trainable_token_indices", "lora_bias", "layer_replication", "megatron_config", "use_qalora",
    "alora_invocation_tokens", "arrow_config", "use_bdlora", "monteclora_config", "kasa_config", "corda_config",
    "lora_ga_config", "ensure_weight_tying", "enable_lora",
}  # fmt: skip
# Fields that say where the adapter comes from or how it was started or trained: kept, and written again.
HARMLESS = {"auto_mapping", "peft_version", "megatron_core", "qalora_group_size", "runtime_config", "eva_config",
            "velora_config", "merge_weights"}  # fmt: skip
_OFF = (None, False, {}, [], "")


def save_adapter(folder, config: LoraConfig, arrays: dict[str, np.ndarray], fingerprint: str):
    """Write both files, read them again and compare. Raises MiniloraError for a folder that cannot be written,
    FileFormatError where there is nothing to save, an array is not finite, or what was written does not come back."""
    if not any(array.size for array in arrays.values()):
        raise FileFormatError("there is no adapter to save: the file would be empty")
    _check_finite("the adapter", arrays)
    folder = Path(folder)
    try:
        os.makedirs(folder, exist_ok=True)
    except OSError as error:
        raise MiniloraError(f"folder {folder} cannot be made: {error.strerror}") from error
    fields = to_fields(config) | {FINGERPRINT: fingerprint}
    save_safetensors(folder / WEIGHTS, arrays, {"format": "pt"})
    atomic_write(folder / CONFIG, json.dumps(dict(sorted(fields.items())), indent=2) + "\n")
    verify(folder, config, arrays)


def verify(folder, config: LoraConfig, arrays: dict[str, np.ndarray]):
    """Raise FileFormatError unless the folder holds just this."""
    back, read, _ = load_adapter(folder)
    same = back.keys() == arrays.keys() and all(np.array_equal(back[k], arrays[k]) for k in arrays)
    if not same or to_fields(read) != to_fields(config):
        raise FileFormatError(f"{folder} was written, but reads differently: is the disk sound?")


def load_adapter(folder) -> tuple[dict[str, np.ndarray], LoraConfig, str | None]:
    """Arrays (16-bit ones as float32), configuration, and the base's fingerprint where the file has one.

    Raises FileFormatError, or ConfigError for a field that changes the result and is not implemented.
    """
    path = Path(folder) / CONFIG
    if not path.exists():
        within = sorted(p.parent.name for p in path.parent.glob(f"*/{CONFIG}"))
        hint = f"; the folders {', '.join(within)} in it do" if within else ""
        raise FileFormatError(f"{folder} does not hold an adapter: it has no {CONFIG}{hint}")
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise FileFormatError(f"{path} is not a readable LoRA configuration: {error!r}") from error
    if not isinstance(fields, dict):
        raise FileFormatError(f"{path} is not a readable LoRA configuration: it is not a JSON object")
    fingerprint = fields.pop(FINGERPRINT, None)
    config = from_fields(fields, path)
    weights = path.with_name(WEIGHTS)
    if not weights.exists() and weights.with_suffix(".bin").exists():
        raise FileFormatError(f"{folder} has adapter_model.bin, a pickle, which can run code and is not read; save it "
                              "again with PEFT's safe_serialization=True")  # fmt: skip
    arrays = {name: _as_float(name, array, weights) for name, array in load_safetensors(weights)[0].items()}
    _check_finite(str(weights), arrays)
    return arrays, config, fingerprint if isinstance(fingerprint, str) else None


def to_fields(config: LoraConfig) -> dict:
    """adapter_config.json's fields; enable_lora is not one of PEFT's (see PeftModel.save_pretrained)."""
    own = {name: getattr(config, name) for name in FIELDS if name not in ("extra", "enable_lora")}
    return config.extra | {"peft_type": "LORA"} | own | {"inference_mode": True}


def from_fields(fields: dict, path) -> LoraConfig:
    """A LoraConfig from a file's fields, those without a meaning here in its `extra`."""
    kind = fields.get("peft_type")
    if kind != "LORA":
        raise ConfigError(f"{path}: peft_type={kind!r} is not implemented; 'LORA' is")
    init = fields.get("init_lora_weights", True)
    if isinstance(init, str) and (init.startswith("pissa_niter") or init in ("corda", "lora_ga")):
        raise ConfigError(
            f"{path}: init_lora_weights={init!r} is not implemented: it changed the base weight by a computation that "
            "cannot be repeated here. Convert it in PEFT: save_pretrained(path_initial_model_for_weight_conversion=...)"
        )
    extra = {}
    for name, value in fields.items():
        if name == "peft_type" or (name in FIELDS and name not in ("extra", "enable_lora")):
            continue
        if value not in _OFF and name not in HARMLESS:
            if name in REFUSED or not isinstance(value, str):
                why = "is not implemented" if name in REFUSED else "is not known here, and may change the result"
                raise ConfigError(f"{path}: {name}={value!r} {why}")
            warnings.warn(f"{path}: the field {name}={value!r} is not known here; it is kept", stacklevel=2)
        extra[name] = value
    own = {name: fields[name] for name in FIELDS if name in fields and name not in ("extra", "enable_lora")}
    if own.get("target_modules") is None:
        raise FileFormatError(f"{path} is not a readable LoRA configuration: it names no target_modules")
    try:
        return LoraConfig(**own, extra=extra)
    except (TypeError, AttributeError, ConfigError) as error:
        kind = ConfigError if isinstance(error, ConfigError) else FileFormatError
        raise kind(f"{path}: {error}") from error


def check_names_and_shapes(folder, arrays: dict, wanted: dict[str, tuple], optional: dict[str, tuple]):
    """Refuse an adapter that does not fit the model entirely."""
    unknown = arrays.keys() - wanted.keys() - optional.keys()
    for what, names in (("lacks", wanted.keys() - arrays.keys()), ("has, unlike the model,", unknown)):
        if names:
            raise FileFormatError(f"the adapter in {folder} {what} {len(names)} arrays, the first {min(names)!r}")
    for name, array in arrays.items():
        shape = (wanted | optional)[name]
        if array.shape != shape:
            raise FileFormatError(f"{name} in {folder} is {array.shape}; this model needs {shape}")


def _as_float(name: str, array: np.ndarray, path) -> np.ndarray:
    if array.dtype.kind != "f":
        raise FileFormatError(f"{name} in {path} is {array.dtype}; an adapter's arrays are floating-point")
    return array.astype(np.float32) if array.dtype.itemsize < 4 else array


def _check_finite(where: str, arrays: dict[str, np.ndarray]):
    for name, array in arrays.items():
        if not np.isfinite(array).all():
            raise FileFormatError(f"{name} of {where} has entries that are not finite; it is not to be used")
