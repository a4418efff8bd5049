"""What a fine-tuning run will need, in bytes, before it starts.

    need = estimate(BUILT_IN["llama-65b"], adapter="full", dtype="bfloat16")
    need.weights + need.gradients + need.optimizer              # 780e9: 12 bytes for each of 65 billion weights

From a model's configuration alone: its modules are made with one layer and with two, without memory, and counted. What
the tape keeps of each layer is read off the ops: a product with a frozen weight keeps nothing, one with a trained one
its input (autograd/primitive.py). Activations are those of this package's ops, of `dtype`; adapters and the optimizer's
state are float32. GB are 10⁹ bytes.
"""

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path

from minilora.errors import ConfigError, FileFormatError, unknown_name
from minilora.lora.config import LoraConfig
from minilora.lora.targets import find_targets
from minilora.models.families import find_family
from minilora.nn import Conv1D, Linear, Module
from minilora.nn.bloom import Bloom
from minilora.nn.gpt2 import GPT2, GPTBigCode
from minilora.nn.language_model import LanguageModel, ModelConfig
from minilora.nn.layers import count_only
from minilora.nn.transformer import CausalLM, TransformerConfig
from minilora.viz.charts import megabytes, memory_bars

EMBEDDED = Path(__file__).parent / "models" / "embedded"
CARDS = (8, 16, 24, 48, 80)  # GB that common GPUs have
BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
NF4_BITS = {False: 4 + 32 / 64, True: 4 + 8 / 64 + 32 / (64 * 256)}  # a weight; True: its scales quantized too


def _llama(d: int, layers: int, heads: int, ff: int, vocab: int = 32000, **more) -> tuple[type[Module], ModelConfig]:
    return CausalLM, TransformerConfig(vocab, d, ff, layers, heads, tie_word_embeddings=False, **more)


BUILT_IN: dict[str, tuple[type[Module], ModelConfig]] = {  # from the models' papers and configurations
    "gpt3-175b": (GPT2, ModelConfig(50257, 12288, 49152, 96, 96)),
    "llama-7b": _llama(4096, 32, 32, 11008),
    "llama-13b": _llama(5120, 40, 40, 13824),
    "llama-65b": _llama(8192, 80, 64, 22016),
    "smollm2-135m": (CausalLM, TransformerConfig(49152, 576, 1536, 30, 9, num_key_value_heads=3)),
    "bloom-3b": (Bloom, ModelConfig(250880, 2560, 10240, 30, 32)),
    "starcoder-1b": (GPTBigCode, ModelConfig(49152, 2048, 8192, 24, 16, num_key_value_heads=1,
                                             max_position_embeddings=8192)),
}  # fmt: skip


def named(name: str) -> tuple[type[Module], ModelConfig]:
    """A built-in shape, "embedded", or what a folder's config.json says. Raises UnknownNameError, FileFormatError."""
    if name in BUILT_IN:
        return BUILT_IN[name]
    folder = EMBEDDED if name == "embedded" else Path(name)
    if not folder.is_dir():
        raise unknown_name("model", name, [*BUILT_IN, "embedded", "a folder with a config.json"])
    try:
        fields = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise FileFormatError(f"{folder / 'config.json'} cannot be read: {error}") from None
    family = find_family(fields)
    if not issubclass(family.model, LanguageModel):
        raise ConfigError(f"{name} is {family.architecture}; the estimate is for decoders")
    return family.model, family.read(fields)


@dataclass(frozen=True)
class Memory:
    """Bytes. activations, input_gradients: what the tape holds, and the gradients of activations that are alive, at the
    moment of backward when they are most together. kept_copy: the trained weights that the Trainer can return to."""

    weights: float
    adapters: float
    gradients: float
    optimizer: float
    activations: float
    input_gradients: float
    kept_copy: float

    @property
    def model_state(self) -> float:
        """Weights, adapters, gradients and the optimizer's state: what does not depend on the batch."""
        return self.weights + self.adapters + self.gradients + self.optimizer

    @property
    def peak(self) -> float:
        """The most at one time: in backward, where gradients and activations meet, or in the update."""
        static = self.weights + self.adapters + self.optimizer + self.kept_copy
        return static + max(self.activations + self.input_gradients, self.gradients + self.kept_copy)

    def fits(self) -> list[int]:
        """The sizes in CARDS, in GB, that hold the peak."""
        return [size for size in CARDS if self.peak <= size * 1e9]


@dataclass(frozen=True)
class ModelShape:
    """linears: (d_out, d_in) of one layer's linear layers by their last two names; layer: its weights; rest: those
    outside the layers; all counts."""

    config: ModelConfig
    linears: dict[str, tuple[int, int]]
    layer: int
    rest: int

    @property
    def parameters(self) -> int:
        return self.rest + self.config.num_hidden_layers * self.layer


def shape_of(family: type[Module], config: ModelConfig) -> ModelShape:
    """Count one layer and the rest, from models of one layer and of two, made but never filled."""
    one, two = (_counted(family, config, layers) for layers in (1, 2))
    layer = two.num_parameters() - one.num_parameters()
    linears = {
        path: module.shape
        for path, module in one.named_modules()
        if isinstance(module, (Linear, Conv1D)) and ".0." in path
    }
    return ModelShape(config, linears, layer, one.num_parameters() - layer)


def _counted(family: type[Module], config: ModelConfig, layers: int) -> Module:
    with count_only():
        return family(dataclasses.replace(config, num_hidden_layers=layers), seed=None)


def estimate(
    model: tuple[type[Module], ModelConfig], adapter: str = "qlora", batch: int = 1, seq: int = 512, r: int = 8,
    target_modules: str | list[str] = "all-linear", dtype: str = "float32", double_quant: bool = True,
    checkpointing: bool = False, lora_dropout: float = 0.0,
) -> Memory:  # fmt: skip
    """model: its class and configuration (see BUILT_IN, or load a config.json). adapter: "full", "lora" or "qlora".

    dtype: of weights that are not quantized, activations and full fine-tuning's gradients. checkpointing: only the
    input of each layer is kept, and one layer's activations at a time. lora_dropout: any but 0 keeps what it dropped,
    and an input of its own for each adapter. Raises ConfigError, UnknownNameError.
    """
    if adapter not in ("full", "lora", "qlora"):
        raise unknown_name("adapter", adapter, ("full", "lora", "qlora"))
    if dtype not in BYTES:
        raise unknown_name("dtype", dtype, BYTES)
    family, config = model
    if batch < 1 or not 1 < seq <= config.max_position_embeddings:
        raise ConfigError(f"batch must be 1 or more and seq 2 to {config.max_position_embeddings}; got {batch}, {seq}")
    shape, size, layers = shape_of(family, config), BYTES[dtype], config.num_hidden_layers
    linear = layers * sum(m * n for m, n in shape.linears.values())
    weights = size * (shape.parameters - linear)
    weights += linear * (NF4_BITS[double_quant] / 8 if adapter == "qlora" else size)
    ranks = {} if adapter == "full" else _ranks(family, config, r, target_modules)
    adapted = layers * sum(r * sum(shape.linears[path]) for path, r in ranks.items())
    trained, gradient_size = (shape.parameters, size) if adapter == "full" else (adapted, 4)

    tokens = batch * (seq - 1)  # the last one only is a target
    one_layer, head = _activations(shape, ranks if adapter != "full" else None, batch, seq - 1, lora_dropout > 0)
    kept, again = (layers * tokens * config.hidden_size, one_layer) if checkpointing else (layers * one_layer, 0)
    ff, d = config.intermediate_size, config.hidden_size
    scores = 2 * batch * config.num_attention_heads * (seq - 1) ** 2
    mlp = tokens * (2 * d + 4 * ff)  # is gone when backward comes to the attention
    activations, flowing = max(
        (kept + head, tokens * config.vocab_size),  # when backward begins
        (kept + again, tokens * (d + 2 * ff)),  # in the last layer's MLP
        (kept + again - mlp, tokens * d + scores),  # in its attention
        key=sum,
    )
    return Memory(
        weights=weights, adapters=4 * adapted, gradients=gradient_size * trained, optimizer=8 * trained,
        activations=size * activations, input_gradients=size * flowing,
        kept_copy=gradient_size * trained,
    )  # fmt: skip


def _ranks(family: type[Module], config: ModelConfig, r: int, target_modules) -> dict[str, int]:
    """path in the first layer -> rank of its adapter."""
    one = _counted(family, config, layers=1)
    return {path: r for path in find_targets(one, LoraConfig(r=r, target_modules=target_modules)) if ".0." in path}


def _activations(
    shape: ModelShape, ranks: dict[str, int] | None, batch: int, seq: int, dropout: bool
) -> tuple[int, int]:
    """Numbers that the tape keeps of one layer, and of the head. ranks: None where all weights are trained."""
    c, tokens = shape.config, batch * seq
    d, ff, queries, keys = c.hidden_size, c.intermediate_size, *_attention_widths(c)

    def read_by_trained(*names: str) -> bool:
        """Whether one of these layers' input is kept as it is. Behind dropout it is each adapter's own."""
        return ranks is None or (not dropout and any(path.endswith(names) for path in ranks))

    kept = 2 * tokens * (d + 1)  # of both norms: the normalised input and its scale
    kept += tokens * (queries + 2 * keys) + batch * c.num_attention_heads * seq * seq  # q, k, v and the probabilities
    kept += tokens * queries  # the attention's output, for the gradient of its softmax
    kept += tokens * d * read_by_trained("q_proj", "k_proj", "v_proj", "c_attn", "query_key_value")
    kept += tokens * queries * read_by_trained("o_proj", "attn.c_proj", "self_attention.dense")
    kept += tokens * d * read_by_trained("gate_proj", "up_proj", "c_fc", "dense_h_to_4h")
    kept += tokens * ff * read_by_trained("down_proj", "mlp.c_proj", "dense_4h_to_h")
    kept += tokens * ff * (3 if c.activation == "swiglu" else 2)
    kept += tokens * sum((ranks or {}).values())
    kept += 2 * tokens * sum(c_in for _, c_in in map(shape.linears.get, ranks or ())) * dropout  # input, and the mask
    head = tokens * (c.vocab_size + d + 1 + d * (ranks is None))  # the loss keeps the probabilities
    return kept, head


def _attention_widths(config: ModelConfig) -> tuple[int, int]:
    return config.num_attention_heads * config.head_dim, config.num_key_value_heads * config.head_dim


def table(needs: dict[str, Memory]) -> list[str]:
    """Lines to print: a column for each way of training, a row for each part."""
    rows = {
        "weights": [n.weights for n in needs.values()],
        "adapters": [n.adapters for n in needs.values()],
        "gradients": [n.gradients for n in needs.values()],
        "optimizer": [n.optimizer for n in needs.values()],
        "= without activations": [n.model_state for n in needs.values()],
        "activations": [n.activations for n in needs.values()],
        "input gradients": [n.input_gradients for n in needs.values()],
        "copy to return to": [n.kept_copy for n in needs.values()],
        "peak": [n.peak for n in needs.values()],
    }
    lines = [f"{'':<22}" + "".join(f"{name:>12}" for name in needs)]
    lines += [f"{name:<22}" + "".join(f"{megabytes(size):>12}" for size in sizes) for name, sizes in rows.items()]
    fits = [min(n.fits(), default=None) for n in needs.values()]
    return [*lines, f"{'fits on':<22}" + "".join(f"{f'{size} GB' if size else 'none':>12}" for size in fits)]


def picture(needs: dict[str, Memory], title: str) -> str:
    """Two bars for each way: what there is when backward begins, and in the update. The longer one is the peak."""
    rows = {}
    for way, n in needs.items():
        always = {"weights": n.weights, "adapters": n.adapters, "optimizer": n.optimizer}
        flowing = {"activations": n.activations, "input gradients": n.input_gradients}
        rows[f"{way}: backward"] = always | {"copies to return to": n.kept_copy} | flowing
        rows[f"{way}: update"] = always | {"copies to return to": 2 * n.kept_copy} | {"gradients": n.gradients}
    return memory_bars(rows, title)
