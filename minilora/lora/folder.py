"""One adapter of a model to PEFT's folder and back: which arrays it has, under which names, of which shapes."""

import dataclasses
import warnings
from pathlib import Path

import numpy as np

from minilora.backend import like, to_numpy
from minilora.errors import ConfigError, FileFormatError
from minilora.lora import files
from minilora.lora.attach import biases, find_modules_to_save, lora_layers, wrappers
from minilora.lora.config import LoraConfig
from minilora.lora.fingerprint import difference
from minilora.lora.layers import lora_class
from minilora.lora.targets import EMBEDDINGS, adaptable, find_targets
from minilora.nn import Module
from minilora.nn.layers import Conv1D

PREFIX = "base_model.model."


def state_dict(peft, name: str) -> dict[str, np.ndarray]:
    """The arrays that make up adapter `name`, shared, by their names in the file."""
    model, arrays = peft.get_base_model(), {}
    for path, layer in lora_layers(model).items():
        if name in layer:
            arrays |= {f"{PREFIX}{path}.{key}": array for key, array in layer.state(name).items()}
            if path.rpartition(".")[2] in EMBEDDINGS:
                base = layer.unmerged.get("base_layer", layer.base_layer)
                arrays |= {f"{PREFIX}{path}.base_layer.{key}": p.data for key, p in base.named_parameters()}
    for path, wrapper in wrappers(model).items():
        if name in wrapper.modules_to_save:
            arrays |= {f"{PREFIX}{path}.{key}": p.data for key, p in wrapper.modules_to_save[name].named_parameters()}
    if name in peft.biases:
        arrays |= {f"{PREFIX}{key}": array for key, array in peft.biases[name].values().items()}
    return arrays


def expected(model: Module, config: LoraConfig) -> tuple[dict[str, tuple], dict[str, np.ndarray]]:
    """name -> shape of the arrays that an adapter must have for `model`, whether or not it has adapters already; and
    name -> array of the base's weights that may be in the file too. Raises ConfigError where it has no place."""
    layers, wanted, base_weights = adaptable(model), {}, {}
    paths = find_targets(model, config)
    for path in paths:
        base = getattr(layers[path], "base_layer", layers[path])
        kind = lora_class(base)
        r, (d_out, d_in) = config.size_at(path)[0], kind.shape_of(base)
        a, b = kind.FILE_NAMES
        wanted |= {f"{PREFIX}{path}.{a}": (r, d_in), f"{PREFIX}{path}.{b}": (d_out, r)}
        if config.use_dora:
            wanted[f"{PREFIX}{path}.lora_magnitude_vector"] = (d_out,)
        if path.rpartition(".")[2] in EMBEDDINGS:
            base_weights |= {f"{PREFIX}{path}.base_layer.{key}": p.data for key, p in base.named_parameters()}
    for path in find_modules_to_save(model, config):
        module = model.get_submodule(path)
        original = getattr(module, "original_module", module)
        wanted |= {f"{PREFIX}{path}.{key}": p.shape for key, p in original.named_parameters()}
    if config.bias != "none":
        wanted |= {f"{PREFIX}{key}": p.shape for key, p in biases(model, config, paths).items()}
    return wanted, base_weights


def check(model: Module, folder, arrays, config: LoraConfig, trained_on, own: str, allow_other_base: bool):
    """Refuse an adapter that is not for this model: names, shapes, and the base that it was trained beside."""
    wanted, base_weights = expected(model, config)
    files.check_names_and_shapes(folder, arrays, wanted, {name: a.shape for name, a in base_weights.items()})
    different = difference(own, trained_on) if trained_on else None
    for name, array in base_weights.items():
        if name in arrays and name not in wanted and not np.array_equal(arrays[name], to_numpy(array)):
            different = different or f"{name} has other values"
    if different and not allow_other_base:
        raise FileFormatError(
            f"the adapter in {folder} was trained beside another base model: {different}. Load that model, or pass "
            "allow_other_base=True to use the adapter here all the same"
        )


def fill(peft, name: str, arrays: dict[str, np.ndarray]):
    """Give adapter `name`, just attached, the values of a file that was checked."""
    model = peft.get_base_model()
    for path, layer in lora_layers(model).items():
        if name in layer:
            keys = layer.state(name).keys()
            layer.load_state(name, {key: arrays[f"{PREFIX}{path}.{key}"].astype(layer.dtype) for key in keys})
    for path, wrapper in wrappers(model).items():
        if name in wrapper.modules_to_save:
            for key, p in wrapper.modules_to_save[name].named_parameters():
                p.data = like(arrays[f"{PREFIX}{path}.{key}"].astype(p.dtype), p.data)
    if name in peft.biases:
        peft.biases[name].set_values({key: arrays[f"{PREFIX}{key}"] for key in peft.biases[name].parameters})


def save(peft, folder, name: str, to_plain_lora: bool):
    config, arrays = peft.peft_config[name], state_dict(peft, name)
    own = {id(p) for adapter in peft.peft_config for p in peft.adapter_parameters(adapter)}
    left_out = [n for n, p in peft.trainable().items() if id(p) not in own]
    if left_out:
        warnings.warn(f"trained, but not a part of an adapter, so not saved: {', '.join(left_out[:3])}"
                      f"{' ...' * (len(left_out) > 3)}; modules_to_save would", stacklevel=3)  # fmt: skip
    config = _as_saved(peft, name, config)
    if to_plain_lora:
        config, arrays = _to_plain_lora(peft, name, config, arrays)
    target = Path(folder) if name == "default" else Path(folder) / name
    files.save_adapter(target, config, {key: to_numpy(array) for key, array in arrays.items()}, peft.fingerprint)


def _as_saved(peft, name: str, config: LoraConfig) -> LoraConfig:
    """The configuration with what PEFT would write: names instead of "all-linear", every layer's true r and alpha."""
    layers = {path: layer for path, layer in lora_layers(peft.get_base_model()).items() if name in layer}
    ranks, alphas = dict(config.rank_pattern), dict(config.alpha_pattern)
    for path, layer in layers.items():
        r = layer.A(name).shape[0]
        if r != layer.r[name]:  # enable_lora: n parts of rank r are one adapter of rank n r
            alpha = layer.lora_alpha[name] * r / layer.r[name]
            exact = "^" + path.replace(".", r"\.")
            ranks, alphas = {exact: r} | ranks, {exact: alpha} | alphas
    targets = config.target_modules
    if isinstance(targets, str) and targets.lower() == "all-linear":
        targets = sorted({path.rpartition(".")[2] for path in layers})
        reached = [p for p in adaptable(peft.get_base_model()) if p.rpartition(".")[2] in targets]
        if len(reached) != len(layers) or config.exclude_modules or config.layers_to_transform is not None:
            targets = list(layers)
    transposed = any(isinstance(layer.base_layer, Conv1D) for layer in layers.values())
    return dataclasses.replace(config, target_modules=targets, rank_pattern=ranks, alpha_pattern=alphas,
                               fan_in_fan_out=transposed, enable_lora=None)  # fmt: skip


def _to_plain_lora(peft, name: str, config: LoraConfig, arrays):
    """BA - B₀A₀ = [B, -B₀][A; A₀]: the same model, said relative to the base before PiSSA or OLoRA changed it."""
    layers = {p: m for p, m in lora_layers(peft.get_base_model()).items() if name in m}
    if config.use_dora or not all(name in layer.taken for layer in layers.values()):
        raise ConfigError("to_plain_lora is for adapters that began as PiSSA or OLoRA, without DoRA")
    arrays = dict(arrays)
    for path, layer in layers.items():
        scaled_B0, A0 = layer.taken[name]
        a, b = (f"{PREFIX}{path}.{key}" for key in layer.FILE_NAMES)
        arrays[a] = np.concatenate([arrays[a], A0])
        arrays[b] = np.concatenate([arrays[b], -scaled_B0 / layer.scaling[name]], axis=1)
    factor = 2**0.5 if config.use_rslora else 2  # so that alpha / r, or alpha / √r, stays
    return dataclasses.replace(
        config, r=2 * config.r, lora_alpha=factor * config.lora_alpha, init_lora_weights=True,
        rank_pattern={k: 2 * r for k, r in config.rank_pattern.items()},
        alpha_pattern={k: factor * a for k, a in config.alpha_pattern.items()},
    ), arrays  # fmt: skip
