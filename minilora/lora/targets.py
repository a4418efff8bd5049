"""Which layers get an adapter: target_modules resolved to paths, as PEFT resolves it.

find_targets(model, LoraConfig(target_modules=["q_proj"]))      # ["model.layers.0.self_attn.q_proj", ...]
find_targets(model, "all-linear")                               # every linear layer but the head
"""

import re
from difflib import get_close_matches

from minilora.errors import ConfigError
from minilora.lora.config import LoraConfig, matches
from minilora.lora.fused import FUSED
from minilora.lora.layers import LORA_LAYERS, LoraLayer
from minilora.lora.saved import ModulesToSaveWrapper
from minilora.nn import Embedding, Module

HEADS = {"lm_head"}  # what "all-linear" leaves out, with all that is within
EMBEDDINGS = ("embed_tokens", "lm_head")  # of these PEFT saves the base weight too, where they are adapted
_SEPARATE = re.compile(r"(q|k|v|query|key|value)(_proj|_lin)?")


def adaptable(model: Module) -> dict[str, Module]:
    """path -> layer, of every layer that an adapter can be put beside, or is beside already."""
    found = {}

    def walk(path: str, module: Module):
        if isinstance(module, (LoraLayer, *LORA_LAYERS)):
            found[path] = module
        elif isinstance(module, ModulesToSaveWrapper):
            walk(path, module.original_module)
        else:
            for name, child in module.children():
                walk(f"{path}.{name}" if path else name, child)

    walk("", model)
    return found


def find_targets(model: Module, target_modules: LoraConfig | str | list[str]) -> list[str]:
    """Paths of the layers that a configuration, or target_modules alone, names. Raises ConfigError listing those that
    exist."""
    config = target_modules
    if not isinstance(config, LoraConfig):
        config = LoraConfig(target_modules=target_modules)
    layers = adaptable(model)
    found = [path for path, layer in layers.items() if _is_target(config, path, layer)]
    if not found:
        raise _nothing_found(model, config, layers)
    return found


def idle_names(model: Module, config: LoraConfig) -> list[str]:
    """A sentence for each name and number in the configuration that is meant to choose layers and chooses none."""
    layers, found, hints = adaptable(model), find_targets(model, config), []
    for what in ("target_modules", "exclude_modules"):
        names = getattr(config, what)
        idle = [n for n in names if not any(_ends(p, n) for p in layers)] if isinstance(names, list) else []
        hints += [f"{what}: no layer is called {name!r}.{_hint([name], layers)}" for name in idle]
    if isinstance(config.exclude_modules, str) and not any(re.fullmatch(config.exclude_modules, p) for p in layers):
        hints.append(f"exclude_modules={config.exclude_modules!r} is no layer's whole path")
    adapted = {path: layers[path] for path in found}
    for what in ("rank_pattern", "alpha_pattern"):
        idle = [key for key in getattr(config, what) if not any(matches(key, path) for path in found)]
        hints += [f"{what}: no adapted layer's path ends in {key!r}.{_hint([key], adapted)}" for key in idle]
    idle = set(_blocks(config)) - {_block_of(config, path) for path in found}
    return hints + [f"layers_to_transform: there is no layer to adapt in block {n}" for n in sorted(idle)]


def _is_target(config: LoraConfig, path: str, layer: Module) -> bool:
    exclude, targets = config.exclude_modules, config.target_modules
    if isinstance(exclude, str):
        if re.fullmatch(exclude, path):
            return False
    elif exclude and any(_ends(path, name) for name in exclude):
        return False
    if is_saved_whole(config, path):
        return False
    if isinstance(targets, list):
        return path in targets or (any(_ends(path, name) for name in targets) and _in_blocks(config, path))
    if targets.lower() != "all-linear":
        return re.fullmatch(targets, path) is not None
    base = getattr(layer, "base_layer", layer)
    return not isinstance(base, Embedding) and not HEADS & set(path.split(".")) and _in_blocks(config, path)


def is_saved_whole(config: LoraConfig, path: str) -> bool:
    """Whether a module is, or lies within, one of modules_to_save."""
    return any(re.match(rf"(^|.*\.){re.escape(name)}($|\..*)", path) for name in config.modules_to_save or ())


def _ends(path: str, name: str) -> bool:
    return path == name or path.endswith(f".{name}")


def _in_blocks(config: LoraConfig, path: str) -> bool:
    """Whether the number of the block that the path goes through is in layers_to_transform."""
    return config.layers_to_transform is None or _block_of(config, path) in _blocks(config)


def _blocks(config: LoraConfig) -> list[int]:
    blocks = config.layers_to_transform
    return [blocks] if isinstance(blocks, int) else blocks or []


def _block_of(config: LoraConfig, path: str) -> int | None:
    patterns = config.layers_pattern or [r"[^.]+"]
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        if match := re.match(rf"(?:.*?\.)??{pattern}\.(\d+)\.", path):
            return int(match[1])
    return None


def _nothing_found(model: Module, config: LoraConfig, layers: dict[str, Module]) -> ConfigError:
    asked = config.target_modules if isinstance(config.target_modules, list) else [config.target_modules]
    alone = LoraConfig(target_modules=config.target_modules)
    message = f"target_modules={config.target_modules!r} matches no linear layer."
    if any(_is_target(alone, path, layer) for path, layer in layers.items()):
        message += " It would, but for exclude_modules, modules_to_save or layers_to_transform."
    elif isinstance(config.target_modules, str) and any(_ends(path, config.target_modules) for path in layers):
        message += f" A text is a regular expression for whole paths; for a name, give a list: [{asked[0]!r}]."
    else:
        message += _hint(asked, layers)
    other = {type(m).__name__ for p, m in model.named_modules() if p not in layers and any(_ends(p, n) for n in asked)}
    if other:
        kinds = ", ".join(kind.__name__ for kind in LORA_LAYERS)
        message += f" ({', '.join(sorted(other))} cannot be adapted; {kinds} can.)"
    tables = {path for path, layer in layers.items() if isinstance(getattr(layer, "base_layer", layer), Embedding)}
    linear = [path for path in layers if path not in tables]
    there = f"There are {_last_names(linear)}, as in {linear[0]}; or say 'all-linear'." if linear else "There is none."
    return ConfigError(f"{message} {there}" + (f" Embeddings: {_last_names(tables)}." if tables else ""))


def _last_names(paths) -> str:
    return ", ".join(sorted({path.rpartition(".")[2] for path in paths}))


def _hint(asked: list[str], layers: dict[str, Module]) -> str:
    """The nearest names there are; and where q, k and v were asked for and are one layer, that layer."""
    names = sorted({path.rpartition(".")[2] for path in layers})
    near = list(dict.fromkeys(n for name in asked for n in get_close_matches(name, names, n=1)))
    hint = f" Did you mean {', '.join(map(repr, near))}?" if near else ""
    fused = [name for name in names if name in FUSED]
    if fused and any(_SEPARATE.fullmatch(name.rpartition(".")[2]) for name in asked):
        hint += (
            f" This model computes q, k and v in one layer, {fused[0]}: target that; enable_lora=[True, False, True] "
            "adapts q and v only."
        )
    return hint
