"""What LoRA is compared with (arXiv:2106.09685, table 4): other ways to train a few parameters, or all of them.

    tuned = tune(model, "adapter", r=8)              # in place; then as get_peft_model's:
    tuned.print_trainable_parameters()
    tuned.loss(ids, labels).backward()
    tuned.save_pretrained("folder");  load_tuned(model, "folder")

method       trains                                                            how many, L blocks of width d
"full"       every weight                                                      all
"bitfit"     the biases (arXiv:2106.10199)                                     GPT-2: 11 L d + d
"preembed"   `length` vectors before the text, in place of embeddings          length d
             (arXiv:2101.00190)
"prelayer"   such vectors at the input of every block                          L length d
"adapter"    h + U gelu(D h + b) + c after each attention and each MLP,        2 L (2 d r + r + d)
             D (r, d), U (d, r) (arXiv:1902.00751)

"adapter" starts with U = 0, so that nothing changes at first. The paper puts 256 vectors before the prompt and 8 after
it; here all are before it, which is the same number. None can be merged into the weights, except the first two, which
are weights.
"""

import json
from pathlib import Path

import numpy as np

from minilora import ops
from minilora.autograd import Tensor
from minilora.errors import ConfigError, DataError, FileFormatError, MiniloraError, unknown_name
from minilora.files import atomic_write, load_safetensors, save_safetensors
from minilora.lora.fingerprint import fingerprint
from minilora.lora.model import PeftModel
from minilora.nn import Linear, Module, Parameter
from minilora.nn.attention import Context, KVCache
from minilora.nn.language_model import LanguageModel
from minilora.nn.layers import Conv1D, QuantizedLinear

METHODS = ("full", "bitfit", "preembed", "prelayer", "adapter")
CONFIG, WEIGHTS = "tuned_config.json", "tuned_model.safetensors"


class Bottleneck(Module):
    """A sublayer, attention or MLP, with an adapter on what it returns."""

    def __init__(self, base_layer: Module, d: int, r: int, rng: np.random.Generator):
        self.base_layer = base_layer
        self.down, self.up = Linear(d, r, True, rng), Linear(r, d, True)

    def forward(self, *args, **kwargs) -> Tensor:
        h = self.base_layer(*args, **kwargs)  # (B, T, d)
        return h + self.up(ops.gelu(self.down(h)))  # (B, T, d)


class PrefixBlock(Module):
    """A block whose input's first positions are replaced by trained vectors, where the text begins."""

    def __init__(self, base_layer: Module, length: int, d: int, rng: np.random.Generator):
        self.base_layer, self.present = base_layer, True
        self.prefix = Parameter(rng.standard_normal((length, d), np.float32) * np.float32(0.02))

    def forward(self, x: Tensor, *args) -> Tensor:
        if self.present:
            (p, d), B = self.prefix.shape, len(x)
            x = ops.concatenate([ops.broadcast_to(self.prefix, (B, p, d)), x[:, p:]], 1)  # (B, p + T, d)
        return self.base_layer(x, *args)


class Prefixed(Module):
    """The decoder with `length` more positions before the text, which it alone sees."""

    def __init__(self, base_layer: Module, length: int):
        self.base_layer, self.length = base_layer, length

    def __getattr__(self, name: str):
        if name.startswith("__") or "base_layer" not in vars(self):
            raise AttributeError(name)
        return getattr(self.base_layer, name)

    def forward(self, ids: np.ndarray, context: Context) -> Tensor:
        if context.mask is not None:
            raise DataError("vectors before the text go with neither packed nor padded rows; give rows of one length")
        p, start = self.length, int(context.positions[0])
        for _, module in self.named_modules():
            if isinstance(module, PrefixBlock):
                module.present = start == 0
        if start:
            context.cache.length = start + p
            return self.base_layer(ids, Context(context.positions + p, context.keys + p, None, context.cache))
        ids = np.concatenate([np.zeros((len(ids), p), ids.dtype), ids], 1)  # any token: its vector is replaced
        whole = Context(np.arange(ids.shape[1]), ids.shape[1], None, context.cache)
        return self.base_layer(ids, whole)[:, p:]  # (B, T, d)


class TunedModel(Module):
    """A model of which `method` trains a part. What it lacks, such as loss or config, is the model's."""

    def __init__(self, model: Module, method: str, options: dict):
        self.method, self.options, self.fingerprint = method, options, fingerprint(model)
        self.base_model = model

    def __getattr__(self, name: str):
        if name.startswith("__") or "base_model" not in vars(self):
            raise AttributeError(name)
        return getattr(self.base_model, name)

    def forward(self, *args, **kwargs) -> Tensor:
        return self.base_model(*args, **kwargs)

    def new_cache(self, batch: int, max_length: int) -> KVCache:
        return self.base_model.new_cache(batch, max_length + self.options.get("length", 0))

    trainable_parameters = PeftModel.trainable_parameters
    print_trainable_parameters = PeftModel.print_trainable_parameters

    def save_pretrained(self, save_directory):
        """Write what was trained, and how, to a folder that load_tuned reads. Raises MiniloraError."""
        folder = Path(save_directory)
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise MiniloraError(f"folder {folder} cannot be made: {error.strerror}") from error
        fields = {"method": self.method, **self.options, "base_fingerprint": self.fingerprint}
        arrays, trained = self.state_dict(), self.trainable()
        save_safetensors(folder / WEIGHTS, {name: arrays[name] for name in trained}, {"format": "pt"})
        atomic_write(folder / CONFIG, json.dumps(fields, indent=2) + "\n")


def tune(model: Module, method: str, length: int | None = None, r: int | None = None, seed: int = 0) -> TunedModel:
    """Freeze `model` and make what `method` trains, in place. length: of "preembed" and "prelayer"; r: of "adapter".

    Raises UnknownNameError, and ConfigError for a number that is missing, not wanted or not positive, and for a model
    that is no decoder, is quantized where all is to be trained, or has no bias.
    """
    if method not in METHODS:
        raise unknown_name("method", method, METHODS)
    wanted = {"preembed": "length", "prelayer": "length", "adapter": "r"}.get(method)
    options = {name: n for name, n in (("length", length), ("r", r)) if n is not None}
    if options.keys() != {wanted} - {None} or not all(type(n) is int and n > 0 for n in options.values()):
        raise ConfigError(f"{method!r} takes {wanted or 'no number'}{' > 0' * bool(wanted)}, not {options}")
    if method == "full" and model.quantized():
        raise ConfigError("quantized weights cannot be trained: load the float model")
    tuned, rng = TunedModel(model, method, options), np.random.default_rng(seed)
    model.requires_grad_(method == "full")
    if method == "bitfit":
        biases = [p for name, p in model.named_parameters() if name.rpartition(".")[2] == "bias"]
        if not biases:
            raise ConfigError("this model has no bias to train")
        for p in biases:
            p.requires_grad = True
    elif wanted:
        decoder, blocks = _decoder(model)
        d, owner = model.config.hidden_size, model.get_submodule(decoder)
        for i in [0] if method == "preembed" else range(len(blocks)):
            if method != "adapter":
                blocks[i] = PrefixBlock(blocks[i], length, d, rng)
                continue
            for name, part in list(blocks[i].children()):
                if any(isinstance(m, (Linear, Conv1D, QuantizedLinear)) for _, m in part.named_modules()):
                    setattr(blocks[i], name, Bottleneck(part, d, r, rng))
        if method != "adapter":
            model.set_submodule(decoder, Prefixed(owner, length))
    return tuned


def load_tuned(model: Module, folder, allow_other_base: bool = False) -> TunedModel:
    """`model`, tuned as a folder of save_pretrained says. Raises FileFormatError, ConfigError."""
    folder = Path(folder)
    try:
        fields = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        method, base = fields.pop("method"), fields.pop("base_fingerprint")
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise FileFormatError(f"{folder / CONFIG} cannot be read: {error!r}") from error
    if base != fingerprint(model) and not allow_other_base:
        raise FileFormatError(f"{folder} belongs to another base model; load that one, or pass allow_other_base=True")
    arrays = load_safetensors(folder / WEIGHTS)[0]
    try:
        tuned = tune(model, method, **fields)
    except TypeError as error:
        raise FileFormatError(f"{folder / CONFIG}: {error}") from error
    own = tuned.trainable()
    both = own.keys() & arrays.keys()
    wrong = (own.keys() ^ arrays.keys()) | {name for name in both if own[name].shape != arrays[name].shape}
    if wrong:
        raise FileFormatError(f"{folder}: {len(wrong)} arrays do not fit the model, the first {min(wrong)!r}")
    for name, p in own.items():
        p.data = arrays[name].astype(p.dtype)
    return tuned


def _decoder(model: Module) -> tuple[str, list[Module]]:
    """The path of the module that has the list of blocks, and the list. Raises ConfigError."""
    for path, module in model.named_modules() if isinstance(model, LanguageModel) else ():
        for value in vars(module).values():
            if isinstance(value, list) and len(value) == model.config.num_hidden_layers:
                return path, value
    raise ConfigError(f"a {type(model).__name__} is no decoder with a list of blocks")
