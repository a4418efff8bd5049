"""Putting an adapter into a model and taking it out: LoraLayers around its layers, copies of modules, biases."""

import warnings

import numpy as np

from minilora.errors import ConfigError
from minilora.lora.config import LoraConfig
from minilora.lora.fused import FUSED, LoraMergedLinear
from minilora.lora.layers import LoraLayer, lora_class
from minilora.lora.saved import ModulesToSaveWrapper, TrainedBiases
from minilora.lora.targets import EMBEDDINGS, find_targets, idle_names, is_saved_whole
from minilora.nn import Embedding, Module, Parameter, QuantizedLinear


def lora_layers(model: Module) -> dict[str, LoraLayer]:
    """The adapted layers, by path."""
    return {path: m for path, m in model.named_modules() if isinstance(m, LoraLayer)}


def wrappers(model: Module) -> dict[str, ModulesToSaveWrapper]:
    return {path: m for path, m in model.named_modules() if isinstance(m, ModulesToSaveWrapper)}


def attach(model: Module, name: str, config: LoraConfig, rng: np.random.Generator, init: bool = True):
    """Add adapter `name`; returns its TrainedBiases, or None. init: False where A and B are to be loaded.

    Raises ConfigError, and then the model is as it was.
    """
    paths, whole = find_targets(model, config), find_modules_to_save(model, config)
    _check(model, config, paths, whole)
    if init:
        _warn(model, config, paths, whole)
    try:
        for path in paths:
            _attach_layer(model, path, name, config, rng, init)
        for path in whole:
            module = model.get_submodule(path)
            if not isinstance(module, ModulesToSaveWrapper):
                module = ModulesToSaveWrapper(module)
                model.set_submodule(path, module)
            module.add_adapter(name)
    except BaseException:
        detach(model, name)
        raise
    return TrainedBiases(biases(model, config, paths)) if config.bias != "none" else None


def check_beside(config: LoraConfig, others: list[LoraConfig]):
    """Refuse an adapter that cannot be in one model with others."""
    if config.bias != "none" and any(other.bias != "none" for other in others):
        raise ConfigError("only one adapter of a model can train biases; give the other bias='none'")
    if others and any(c.changes_base for c in (config, *others)):
        raise ConfigError("pissa, olora and loftq change the base weight, which other adapters rely on: give each such "
                          "adapter a model of its own")  # fmt: skip


def _attach_layer(model: Module, path: str, name: str, config: LoraConfig, rng, init: bool):
    layer = model.get_submodule(path)
    if isinstance(layer, LoraLayer):
        if config.enable_lora is not None and is_fused(path) and not isinstance(layer, LoraMergedLinear):
            raise ConfigError(f"{path} has an adapter without enable_lora; attach the one with it first")
        layer.add_adapter(name, config, rng, path, init)
    elif config.enable_lora is not None and is_fused(path):
        attention = model.get_submodule(path.rpartition(".")[0])
        model.set_submodule(path, LoraMergedLinear(layer, config, rng, name, path, init, attention))
    else:
        model.set_submodule(path, lora_class(layer)(layer, config, rng, name, path, init))


def detach(model: Module, name: str):
    """Take adapter `name` out; a layer without adapters is the base layer again."""
    for path, layer in lora_layers(model).items():
        if name in layer:
            layer.delete_adapter(name)
            if not layer.scaling:
                model.set_submodule(path, layer.base_layer)
    for path, wrapper in wrappers(model).items():
        if name in wrapper.modules_to_save:
            del wrapper.modules_to_save[name]
            if not len(wrapper.modules_to_save):
                model.set_submodule(path, wrapper.original_module)


def is_fused(path: str) -> bool:
    return path.rpartition(".")[2] in FUSED


def find_modules_to_save(model: Module, config: LoraConfig) -> list[str]:
    """Paths that end in one of modules_to_save; as in PEFT, "norm" is input_layernorm too. Raises ConfigError where
    no name matches, and for a module that is quantized or lies within another one of them."""
    names = tuple(config.modules_to_save or ())
    modules = {path: m for path, m in base_modules(model).items() if m.num_parameters()} if names else {}
    found = [path for path in modules if path.endswith(names)] if names else []
    if names and not found:
        last = {path.rpartition(".")[2] for path in modules}
        known = ", ".join(sorted(name for name in last if name and not name.isdigit()))
        raise ConfigError(f"modules_to_save={list(names)!r} matches no module with weights. There are: {known}.")
    for path in found:
        if modules[path].quantized():
            raise ConfigError(f"modules_to_save: {path} is quantized, and cannot be trained; save another module")
        if whole := [other for other in found if path.startswith(f"{other}.")]:
            raise ConfigError(f"modules_to_save: {path} lies within {whole[0]}, which is saved too; name one of them")
    return found


def base_modules(model: Module) -> dict[str, Module]:
    """path -> module of the model as it was before any adapter, whether or not it has some."""
    found = {}

    def walk(path: str, module: Module):
        if isinstance(module, LoraLayer):
            found[path] = module.unmerged.get("base_layer", module.base_layer)
        elif isinstance(module, ModulesToSaveWrapper):
            walk(path, module.original_module)
        else:
            found[path] = module
            for name, child in module.children():
                walk(f"{path}.{name}" if path else name, child)

    walk("", model)
    return found


def biases(model: Module, config: LoraConfig, paths: list[str]) -> dict[str, Parameter]:
    """The biases that the adapter trains, by their names with the layers at `paths` adapted: those of these layers, or
    with bias="all" every one."""
    found = {}
    for path, module in base_modules(model).items():
        bias, adapted = getattr(module, "bias", None), path in paths
        if isinstance(bias, Parameter) and (adapted or config.bias == "all") and not is_saved_whole(config, path):
            found[f"{path}.base_layer.bias" if adapted else f"{path}.bias"] = bias
    return found


def _bases(model: Module, paths: list[str]) -> dict[str, Module]:
    layers = base_modules(model)
    return {path: layers[path] for path in paths}


def _check(model: Module, config: LoraConfig, paths: list[str], whole: list[str]):
    adapted, copied = lora_layers(model), wrappers(model)
    pairs = [(path, other) for path in paths for other in copied] + [(a, path) for path in whole for a in adapted]
    for inner, outer in pairs:
        if inner == outer or inner.startswith(f"{outer}."):
            raise ConfigError(f"{inner} cannot have an adapter while another one trains {outer} whole")
    if config.enable_lora is not None and not any(map(is_fused, paths)):
        raise ConfigError(
            f"enable_lora is for layers that compute q, k and v in one ({', '.join(FUSED)}): none is targeted"
        )
    if config.changes_base:
        for path, base in _bases(model, paths).items():
            if isinstance(base, QuantizedLinear):
                raise ConfigError(f"{config.init_lora_weights} starts from float weights, and {path} is quantized: "
                                  "attach the adapter to the float model")  # fmt: skip
            if not isinstance(base, Embedding) and config.size_at(path)[0] > min(base.shape):
                raise ConfigError(f"{config.init_lora_weights} takes r directions of the weight, and {path} has only "
                                  f"{min(base.shape)}: choose a smaller r")  # fmt: skip


def _warn(model: Module, config: LoraConfig, paths: list[str], whole: list[str]):
    """Of what is allowed but seldom meant."""
    for hint in idle_names(model, config):
        warnings.warn(hint, stacklevel=6)
    if config.bias != "none" and not biases(model, config, paths):
        warnings.warn(f"bias={config.bias!r} trains nothing more: there is no such bias", stacklevel=6)
    large = []
    for path, base in _bases(model, paths).items():
        rank = min(base.weight.shape if isinstance(base, Embedding) else base.shape)
        if config.size_at(path)[0] > rank:
            large.append(f"r={config.size_at(path)[0]} at {path}, whose weight has rank {rank} at most")
    if large:
        more = f" (and at {len(large) - 1} more layers)" if len(large) > 1 else ""
        warnings.warn(f"{large[0]}{more}: a smaller r can do the same", stacklevel=6)
    if getattr(getattr(model, "config", None), "tie_word_embeddings", False):
        bases = base_modules(model)
        tied = [p for p in (*paths, *whole) if isinstance(bases[p], Embedding) or p.rpartition(".")[2] in EMBEDDINGS]
        shared = [p for p in tied if sum(getattr(m, "weight", None) is bases[p].weight for m in bases.values()) > 1]
        if shared:
            warnings.warn("the embedding and the head share one weight, and the adapter changes only "
                          f"{' and '.join(shared)}: merging it unties them", stacklevel=6)  # fmt: skip
