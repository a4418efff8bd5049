"""Models in other projects' files: GGUF files of the LLaMA family, Hugging Face folders of every family, and back."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np

from minilora.backend import placed
from minilora.errors import ConfigError, FileFormatError, MiniloraError
from minilora.files import atomic_write, load_safetensors, save_safetensors
from minilora.models import quantized
from minilora.models.families import family_of, find_family
from minilora.models.gguf import read_gguf
from minilora.models.templates import Template
from minilora.models.tokenizer import Tokenizer
from minilora.nn import BertModel, CausalLM, Linear, Module, TransformerConfig
from minilora.nn.language_model import ModelConfig
from minilora.nn.layers import Conv1D
from minilora.quant.files import gather

_INDEX = "model.safetensors.index.json"  # of a model in several files
GGUF_NAMES = {  # Hugging Face's name of a layer's tensor -> GGUF's
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
}  # fmt: skip


def load_gguf(path) -> tuple[CausalLM, Tokenizer]:
    """A model and its tokenizer from a GGUF file of the llama architecture. Raises FileFormatError."""
    metadata, tensors = read_gguf(path)

    def field(key: str, kind=int):
        value = metadata.get(key)
        if not isinstance(value, (int, float)) or (kind is int and not isinstance(value, int)):
            raise FileFormatError(f"{path}: metadata {key} is {value!r}; a number is needed")
        return kind(value)

    architecture = metadata.get("general.architecture")
    if architecture != "llama":
        raise FileFormatError(f"{path} holds a model of architecture {architecture!r}; 'llama' can be read")
    heads = field("llama.attention.head_count")
    config = _checked(
        path,
        TransformerConfig,
        vocab_size=len(metadata.get("tokenizer.ggml.tokens") or []),
        hidden_size=field("llama.embedding_length"),
        intermediate_size=field("llama.feed_forward_length"),
        num_hidden_layers=field("llama.block_count"),
        num_attention_heads=heads,
        num_key_value_heads=field("llama.attention.head_count_kv"),
        max_position_embeddings=field("llama.context_length"),
        norm_eps=field("llama.attention.layer_norm_rms_epsilon", float),
        rope_theta=field("llama.rope.freq_base", float),
        tie_word_embeddings="output.weight" not in tensors,
    )
    if config.num_hidden_layers > len(tensors):
        raise FileFormatError(f"{path} claims {config.num_hidden_layers} layers and has {len(tensors)} tensors")

    def tensor(name: str, shape: tuple[int, ...]) -> np.ndarray:
        if name not in tensors:
            raise FileFormatError(f"{path} lacks tensor {name!r}")
        array = tensors[name]()
        if array.shape != shape:
            raise FileFormatError(f"{path}: tensor {name!r} has shape {array.shape}; the metadata asks for {shape}")
        return array

    def read(name: str, shape: tuple[int, ...]) -> np.ndarray:
        top = {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight",
               "lm_head.weight": "output.weight"}  # fmt: skip
        if name in top:
            return tensor(top[name], shape)
        _, _, layer, part = name.split(".", 3)
        part = part.removesuffix(".weight")
        array = tensor(f"blk.{layer}.{GGUF_NAMES[part]}.weight", shape)
        rows = {"self_attn.q_proj": heads, "self_attn.k_proj": config.num_key_value_heads}.get(part)
        return half_split(array, rows) if rows else array

    available = 2 * Path(path).stat().st_size  # a byte holds two weights at most
    return _build(path, CausalLM, config, read, available), _gguf_tokenizer(path, metadata)


def half_split(weight: np.ndarray, heads: int) -> np.ndarray:
    """GGUF stores a head's rows as interleaved rotary pairs (0, 1), (2, 3)...; here pairs are (i, i + hd/2)."""
    d_out, d_in = weight.shape
    return weight.reshape(heads, d_out // heads // 2, 2, d_in).swapaxes(1, 2).reshape(d_out, d_in)


def _checked(path, make: Callable, *args, **fields):
    """What `make` makes of a file's fields, none of which can be trusted."""
    try:
        return make(*args, **fields)
    except (TypeError, ValueError, ZeroDivisionError, AttributeError) as error:
        raise FileFormatError(f"{path} describes a model that cannot be built: {error}") from error


def _build(path, kind: type[Module], config: ModelConfig, read, available: int, put=lambda model: None) -> Module:
    """Fill a model parameter by parameter: read(name, shape) -> array. available: weights that the file can hold.
    put(model): puts layers in place that are not float."""
    d, heads = config.hidden_size, config.num_attention_heads
    kv_heads, hd = getattr(config, "num_key_value_heads", heads), getattr(config, "head_dim", d // heads)
    layer = 2 * d * hd * (heads + kv_heads) + 2 * d * config.intermediate_size
    wanted = config.num_hidden_layers * layer + config.vocab_size * d
    if wanted > available:  # before anything is allocated
        raise FileFormatError(f"{path} describes an impossible model: {wanted} weights, of which it holds {available}")
    try:
        model = kind(config, seed=None)
    except (MemoryError, TypeError, ValueError) as error:
        raise FileFormatError(f"{path} describes an impossible model: {error}") from error
    put(model)
    for name, p in model.named_parameters():
        p.data = placed(np.ascontiguousarray(read(name, p.shape), np.float32))
    return model.eval()


def _gguf_tokenizer(path, metadata: dict) -> Tokenizer:
    from tokenizers import AddedToken, decoders, models, pre_tokenizers
    from tokenizers import Tokenizer as Backend

    if metadata.get("tokenizer.ggml.model") != "gpt2":
        raise FileFormatError(f"{path}: tokenizer {metadata.get('tokenizer.ggml.model')!r}; 'gpt2' (BPE) can be read")
    tokens, merges = metadata["tokenizer.ggml.tokens"], metadata.get("tokenizer.ggml.merges", [])
    kinds = metadata.get("tokenizer.ggml.token_type", [1] * len(tokens))
    kind = metadata.get("tokenizer.ggml.pre", "gpt-2")
    before = {"smollm": [pre_tokenizers.Digits(individual_digits=True)], "gpt-2": []}.get(kind)
    if before is None:
        raise FileFormatError(f"{path}: pre-tokenizer {kind!r} is not known; 'smollm' and 'gpt-2' are")
    try:
        backend = Backend(models.BPE({t: i for i, t in enumerate(tokens)}, [tuple(m.split(" ", 1)) for m in merges]))
    except Exception as error:  # the library raises bare Exception
        raise FileFormatError(f"{path}: its vocabulary and merges do not fit: {error}") from error
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [*before, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)]
    )
    backend.decoder = decoders.ByteLevel()
    control = [t for t, k in zip(tokens, kinds, strict=False) if k == 3]
    backend.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in control])
    eos = metadata.get("tokenizer.ggml.eos_token_id")
    if not isinstance(eos, int) or not 0 <= eos < len(tokens):
        raise FileFormatError(f"{path}: eos_token_id is {eos!r}, of {len(tokens)} tokens")
    template = Template.read(metadata.get("tokenizer.chat_template"))
    bos = metadata.get("tokenizer.ggml.bos_token_id") if metadata.get("tokenizer.ggml.add_bos_token") else None
    return Tokenizer(backend, eos, bos, template)


def load_folder(path) -> tuple[Module, Tokenizer | None]:
    """A Hugging Face folder of a family that we have: config.json, model.safetensors (or its shards), float or in
    bitsandbytes' 4 bits; tokenizer.json if there is one. Raises FileFormatError."""
    path = Path(path)
    try:
        fields = json.loads((path / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise FileFormatError(f"{path} is not a model folder: config.json cannot be read ({error})") from error
    if not isinstance(fields, dict):
        raise FileFormatError(f"{path} is not a model folder: config.json is not a JSON object")
    family, four_bits = _checked(path, find_family, fields), _checked(path, quantized.is_quantized, fields)
    config = _checked(path, family.read, fields)
    arrays = _checked(path, family.tensors, _read_shards(path), config)
    available = 64 * sum(a.size for a in arrays.values())
    if four_bits:
        arrays = _checked(path, gather, arrays, np.float32)

    def read(name: str, shape):
        if name not in arrays:
            raise FileFormatError(f"{path} lacks tensor {name!r}")
        if arrays[name].shape != shape:
            raise FileFormatError(f"{path}: {name!r} has shape {arrays[name].shape}; config.json asks for {shape}")
        return arrays.pop(name)

    model = _build(path, family.model, config, read, available, lambda model: quantized.put(model, arrays))
    if four_bits and not model.quantized():
        raise FileFormatError(f"{path}: by config.json's quantization_config it is in 4 bits, and no tensor is")
    if arrays:
        raise FileFormatError(f"{path} has {len(arrays)} tensors that the model lacks, the first {min(arrays)!r}")
    file = path / "tokenizer.json"
    if not file.exists():
        return model, None
    if isinstance(model, BertModel):
        return model, Tokenizer.from_file(file, "[SEP]", "[CLS]")
    return model, Tokenizer.from_file(file, **_special_tokens(path), chat_template=_chat_template(path))


def _tokenizer_config(path: Path) -> dict:
    try:
        fields = json.loads((path / "tokenizer_config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return fields if isinstance(fields, dict) else {}


def _special_tokens(path: Path) -> dict[str, str | None]:
    """The tokens that end a text and, where the tokenizer adds one, that begin it, as tokenizer_config.json says."""
    fields = _tokenizer_config(path)
    keys = ("eos_token", "bos_token") if fields.get("add_bos_token") else ("eos_token",)
    values = {key: fields[key] for key in keys if fields.get(key)}
    return {key: v.get("content") if isinstance(v, dict) else v for key, v in values.items()}


def _chat_template(path: Path) -> Template | None:
    """From the file of its own that newer folders have, or from tokenizer_config.json."""
    file = path / "chat_template.jinja"
    return Template.read(file.read_text(encoding="utf-8") if file.exists() else _tokenizer_config(path).get(file.stem))


def _read_shards(path: Path) -> dict[str, np.ndarray]:
    index = path / _INDEX
    files = ["model.safetensors"]
    if index.exists():
        try:
            files = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        except (OSError, ValueError, KeyError, AttributeError) as error:
            raise FileFormatError(f"{index} cannot be read: {error!r}") from error
    arrays = {}
    for file in files:
        arrays |= load_safetensors(path / Path(file).name)[0]
    return arrays


def _weights(model: Module, plain: Module) -> dict[str, np.ndarray]:
    """The model's float arrays under the names and in the shapes of `plain`, a fresh model of its configuration."""
    arrays, modules = model.state_dict(), dict(model.named_modules())
    for path, layer in plain.named_modules():
        if isinstance(layer, Conv1D) and isinstance(modules.get(path), Linear):  # merged after it was quantized
            arrays[f"{path}.weight"] = arrays[f"{path}.weight"].T
    if differing := arrays.keys() ^ plain.state_dict().keys() - {f"{path}.weight" for path in model.quantized()}:
        raise FileFormatError(
            f"{len(differing)} tensors are not in both the model and its family's files, the first {min(differing)!r}; "
            "has it adapters still? merge_and_unload() them first"
        )
    return arrays


def save_folder(model: Module, tokenizer: Tokenizer | None, folder, dtype=np.float32):
    """Write a model as a Hugging Face folder: config.json, model.safetensors, tokenizer.json. dtype: of what is float.

    A quantized model becomes one that transformers loads with bitsandbytes. Raises FileFormatError where the family's
    files cannot hold it, as GPT-2 with RMSNorm or a model in 8 bits, and MiniloraError where the folder cannot be made.
    """
    try:
        kind, family = family_of(model)
    except ConfigError as error:
        raise FileFormatError(str(error)) from error
    folder = Path(folder)
    fields = {"architectures": [family.architecture], "model_type": kind} | family.write(model.config)
    for name in ("bos_token_id", "eos_token_id"):
        fields[name] = getattr(tokenizer, name, None)
    arrays = {name: array.astype(dtype) for name, array in _weights(model, family.model(model.config, None)).items()}
    if model.quantized():
        fields["quantization_config"] = quantized.quantization_config(model)
        arrays |= quantized.quantized_tensors(model)
    if (folder / _INDEX).exists():
        raise FileFormatError(f"{folder} holds a model in several files, which would be read instead of this one; "
                              "choose another folder")  # fmt: skip
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise MiniloraError(f"folder {folder} cannot be made: {error.strerror}") from error
    save_safetensors(folder / "model.safetensors", arrays, {"format": "pt"})
    if tokenizer is not None:
        tokens = {"eos_token": tokenizer.token(tokenizer.eos_token_id)}
        if tokenizer.bos_token_id is not None:
            tokens |= {"bos_token": tokenizer.token(tokenizer.bos_token_id), "add_bos_token": True}
        if tokenizer.chat_template is not None:
            tokens["chat_template"] = tokenizer.chat_template.source
        atomic_write(folder / "tokenizer_config.json", json.dumps(tokens, indent=2) + "\n")
        atomic_write(folder / "tokenizer.json", tokenizer.to_json())
    atomic_write(folder / "config.json", json.dumps(fields, indent=2) + "\n")
