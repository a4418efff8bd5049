"""Adapters in the files of llama.cpp and of mlx-lm, both ways, for models of the LLaMA family.

    save_gguf(peft, "adapter.gguf")                  # llama-cli -m model.gguf --lora adapter.gguf
    peft = load_gguf(model, "adapter.gguf")
    save_mlx(peft, "folder")                         # mlx_lm.generate --model ... --adapter-path folder
    peft = load_mlx(model, "folder")

llama.cpp (src/llama-adapter.cpp): GGUF with "<tensor>.lora_a" (r, d_in) and ".lora_b" (d_out, r); one alpha for all,
and ΔW = (alpha / r) B A with each tensor's own r, or B A where alpha is 0. As in its model files, the rows of q and k
are those of interleaved rotary pairs. mlx-lm (tuner/lora.py): "<path>.lora_a" (d_in, r) and ".lora_b" (r, d_out), one r
and one scale for all, ΔW = scale (A B)ᵀ: the scale is not divided by r.

Where an adapter's layers differ in alpha / r, the difference goes into B; where mlx-lm wants one r, zeros fill up the
smaller ones. Neither changes ΔW. What these files cannot hold (DoRA, embeddings, biases, modules_to_save) is refused.
"""

import json
from pathlib import Path

import numpy as np

from minilora.errors import ConfigError, FileFormatError, MiniloraError, unknown_name
from minilora.files import atomic_write, load_safetensors, save_safetensors
from minilora.lora.attach import lora_layers
from minilora.lora.config import LoraConfig
from minilora.lora.layers import LoraLinear
from minilora.lora.model import PeftModel
from minilora.lora.targets import adaptable
from minilora.models.checkpoint import GGUF_NAMES, half_split
from minilora.models.families import family_of
from minilora.models.gguf import read_gguf, write_gguf
from minilora.nn import Embedding, Module

MLX_CONFIG, MLX_WEIGHTS = "adapter_config.json", "adapters.safetensors"


def save_gguf(peft: PeftModel, path, adapter_name: str | None = None):
    """Write one adapter, the active one unless named, as llama.cpp's. Raises ConfigError, MiniloraError."""
    config, layers = _plain(peft, adapter_name, ("llama", "mistral"))
    heads, tensors, alpha = _heads(peft.config), {}, float(config.lora_alpha)
    for layer_path, (scaling, A, B) in layers.items():
        name, rows = _gguf_name(layer_path)
        factor = scaling * len(A) / alpha  # 1 for plain alpha / r
        B = B if factor == 1 else B * np.float32(factor)
        tensors[f"{name}.lora_a"] = A
        tensors[f"{name}.lora_b"] = _interleaved(B, heads[rows]) if rows else B
    metadata = {"general.architecture": "llama", "general.type": "adapter", "adapter.type": "lora",
                "adapter.lora.alpha": alpha}  # fmt: skip
    write_gguf(path, metadata, tensors)


def load_gguf(model: Module, path, adapter_name: str = "default") -> PeftModel:
    """`model` with the adapter of llama.cpp's file. Raises FileFormatError, ConfigError; `model` is then unchanged."""
    _check_family(model, ("llama", "mistral"))
    metadata, tensors = read_gguf(path)
    if metadata.get("general.type") != "adapter" or metadata.get("adapter.type") != "lora":
        raise FileFormatError(f"{path} is not a LoRA adapter: its general.type is {metadata.get('general.type')!r}")
    if metadata.get("general.architecture") != "llama":
        raise FileFormatError(f"{path} is for the architecture {metadata.get('general.architecture')!r}, not 'llama'")
    if metadata.get("adapter.alora.invocation_tokens"):
        raise FileFormatError(f"{path} is active after certain tokens only (aLoRA), which is not implemented")
    alpha = metadata.get("adapter.lora.alpha", 0.0)
    if not (isinstance(alpha, float) and np.isfinite(alpha) and alpha >= 0):
        raise FileFormatError(f"{path}: adapter.lora.alpha is {alpha!r}")
    names = {_gguf_name(p)[0]: p for p, m in adaptable(model).items() if not isinstance(m, Embedding)}
    heads, factors = _heads(model.config), {}
    for name in sorted({name.rpartition(".")[0] for name in tensors}):
        if name not in names:
            raise FileFormatError(f"{path} has {name}, which is no linear layer of this model")
        A, B = (tensors.get(f"{name}.{part}") for part in ("lora_a", "lora_b"))
        if A is None or B is None:
            raise FileFormatError(f"{path} lacks one of {name}.lora_a and {name}.lora_b")
        A, B, rows = A(), B(), _gguf_name(names[name])[1]
        if rows and B.ndim == 2 and len(B) == model.get_submodule(names[name]).shape[0]:
            B = half_split(B, heads[rows])
        factors[names[name]] = (A, B, alpha or float(len(A)))
    if extra := [n for n in tensors if not n.endswith((".lora_a", ".lora_b"))]:
        raise FileFormatError(f"{path} has {min(extra)}, which is no part of a LoRA adapter that can be read")
    return _attached(model, path, factors, adapter_name)


def save_mlx(peft: PeftModel, folder, adapter_name: str | None = None):
    """Write one adapter, the active one unless named, as mlx-lm's folder. Raises ConfigError, MiniloraError."""
    config, layers = _plain(peft, adapter_name, ("llama", "mistral", "qwen2"))
    r, scale, arrays = max(len(A) for _, A, _ in layers.values()), config.scaling, {}
    for path, (scaling, A, B) in layers.items():
        more = r - len(A)
        B = B if scaling == scale else B * np.float32(scaling / scale)
        arrays[f"{path}.lora_a"] = np.ascontiguousarray(np.pad(A, ((0, more), (0, 0))).T)
        arrays[f"{path}.lora_b"] = np.ascontiguousarray(np.pad(B, ((0, 0), (0, more))).T)
    inside = {path: path.split(".", 3) for path in layers if path.startswith("model.layers.")}
    first = min((int(parts[2]) for parts in inside.values()), default=peft.config.num_hidden_layers)
    keys = sorted({inside[path][3] if path in inside else path for path in layers})
    fields = {
        "fine_tune_type": "lora",
        "num_layers": peft.config.num_hidden_layers - first,  # counted from the last
        "lora_parameters": {"rank": r, "scale": scale, "dropout": config.lora_dropout, "keys": keys},
    }
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise MiniloraError(f"folder {folder} cannot be made: {error.strerror}") from error
    save_safetensors(folder / MLX_WEIGHTS, arrays)
    atomic_write(folder / MLX_CONFIG, json.dumps(fields, indent=2) + "\n")


def load_mlx(model: Module, folder, adapter_name: str = "default") -> PeftModel:
    """`model` with the adapter of mlx-lm's folder. Raises FileFormatError, ConfigError; `model` is then unchanged."""
    _check_family(model, ("llama", "mistral", "qwen2"))
    folder = Path(folder)
    try:
        fields = json.loads((folder / MLX_CONFIG).read_text(encoding="utf-8"))
        kind, parameters = fields.get("fine_tune_type", "lora"), fields["lora_parameters"]
        scale, dropout = float(parameters["scale"]), float(parameters.get("dropout", 0.0))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise FileFormatError(f"{folder / MLX_CONFIG} is not mlx-lm's adapter configuration: {error!r}") from error
    if kind != "lora":
        raise ConfigError(f"{folder}: fine_tune_type={kind!r} is not implemented; 'lora' is")
    if not (np.isfinite(scale) and scale > 0):
        raise FileFormatError(f"{folder}: scale is {scale!r}")
    arrays, factors = load_safetensors(folder / MLX_WEIGHTS)[0], {}
    for path in sorted({name.rpartition(".")[0] for name in arrays}):
        A, B = (arrays.pop(f"{path}.{part}", None) for part in ("lora_a", "lora_b"))
        if A is None or B is None:
            raise FileFormatError(f"{folder} lacks one of {path}.lora_a and {path}.lora_b")
        factors[path] = (A.T, B.T, scale * A.shape[-1])
    if arrays:
        raise FileFormatError(f"{folder} has {min(arrays)}, which is no part of a LoRA adapter that can be read")
    return _attached(model, folder, factors, adapter_name, dropout)


def _plain(peft: PeftModel, name: str | None, kinds: tuple[str, ...]):
    """The configuration, and path -> (scaling, A, B). Raises ConfigError for more than that."""
    name = name or peft.active_adapters[0]
    if name not in peft.peft_config:
        raise unknown_name("adapter", name, peft.peft_config)
    _check_family(peft.get_base_model(), kinds)
    config = peft.peft_config[name]
    layers = {path: layer for path, layer in lora_layers(peft.get_base_model()).items() if name in layer}
    if config.use_dora or config.changes_base or config.modules_to_save or config.bias != "none":
        raise ConfigError(f"adapter {name!r} is more than A and B (DoRA, an initialisation that changes the base, "
                          "modules_to_save or biases), which such a file cannot hold")  # fmt: skip
    if tables := [path for path, layer in layers.items() if not isinstance(layer, LoraLinear)]:
        raise ConfigError(f"{tables[0]} is an embedding, whose adapter is not exchanged")
    arrays = {}
    for path, layer in layers.items():
        A, B = (layer.state(name)[key].astype(np.float32) for key in layer.FILE_NAMES)
        arrays[path] = layer.scaling[name], A, B
        if not (np.isfinite(A).all() and np.isfinite(B).all()):
            raise ConfigError(f"{path} of adapter {name!r} has entries that are not finite")
    return config, arrays


def _check_family(model: Module, kinds: tuple[str, ...]):
    """By its configuration: a quantized model is of its family too."""
    kind, _ = family_of(model)
    if kind not in kinds:
        raise ConfigError(f"a model of the family {kind!r}; such files are read and written for {', '.join(kinds)}")


def _attached(model: Module, path, factors: dict[str, tuple], name: str, dropout: float = 0.0) -> PeftModel:
    """factors: path -> (A, B, alpha)."""
    if not factors:
        raise FileFormatError(f"{path} has no adapter in it")
    layers = adaptable(model)
    for layer, (A, B, _) in factors.items():
        if layer not in layers or isinstance(layers[layer], Embedding):
            raise FileFormatError(f"{path} has {layer}, which is no linear layer of this model")
        (d_out, d_in), r = layers[layer].shape, A.shape[0]
        if A.shape != (r, d_in) or B.shape != (d_out, r) or not r:
            raise FileFormatError(f"{path}: A {A.shape} and B {B.shape} do not fit {layer}, which is ({d_out}, {d_in})")
        if A.dtype.kind != "f" or B.dtype.kind != "f" or not (np.isfinite(A).all() and np.isfinite(B).all()):
            raise FileFormatError(f"{path}: {layer} has entries that are no finite floating-point numbers")
    ranks, alphas = ({p: f(factors[p]) for p in factors} for f in (lambda v: len(v[0]), lambda v: v[2]))
    r, alpha = max(ranks.values()), max(alphas.values())
    patterns = [{"^" + p.replace(".", r"\."): n for p, n in of.items() if n != most}
                for of, most in ((ranks, r), (alphas, alpha))]  # fmt: skip
    config = LoraConfig(r, alpha, list(factors), lora_dropout=dropout, rank_pattern=patterns[0],
                        alpha_pattern=patterns[1], task_type="CAUSAL_LM")  # fmt: skip
    peft = PeftModel(model, config, name, init=False)
    for layer_path, layer in lora_layers(peft.get_base_model()).items():
        A, B, _ = factors[layer_path]
        pair = (np.ascontiguousarray(a, layer.dtype) for a in (A, B))
        layer.load_state(name, dict(zip(layer.FILE_NAMES, pair, strict=True)))
    return peft


def _gguf_name(path: str) -> tuple[str, str | None]:
    """llama.cpp's name of a layer's weight, and whose heads its rows are, where they are interleaved."""
    if path == "lm_head":
        return "output.weight", None
    _, _, block, part = path.split(".", 3)
    return f"blk.{block}.{GGUF_NAMES[part]}.weight", part if part in ("self_attn.q_proj", "self_attn.k_proj") else None


def _heads(config) -> dict[str, int]:
    return {"self_attn.q_proj": config.num_attention_heads, "self_attn.k_proj": config.num_key_value_heads}


def _interleaved(rows: np.ndarray, heads: int) -> np.ndarray:
    """The inverse of checkpoint's half_split."""
    n, columns = rows.shape
    return rows.reshape(heads, 2, n // heads // 2, columns).swapaxes(1, 2).reshape(n, columns)
