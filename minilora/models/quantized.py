"""What of a Hugging Face folder is of its own where the linear layers are in 4 bits, as transformers and bitsandbytes
write and read it. The folder itself is checkpoint.py's.

    fields["quantization_config"] = quantization_config(model)     # to config.json
    tensors |= quantized_tensors(model)                            # to model.safetensors, see quant/files.py
    is_quantized(fields)                                           # and the way back
    put(model, gather(tensors))

A layer's weight is then its codes, "...up_proj.weight" (n/2, 1) uint8, and beside it "...up_proj.weight.absmax" and so
on. What transformers and bitsandbytes cannot read (another code, 8 bits) is refused, and not written in another format.
"""

from minilora.errors import ConfigError, FileFormatError
from minilora.nn import Linear, Module, QuantizedLinear
from minilora.nn.layers import Conv1D
from minilora.quant import QuantizedArray
from minilora.quant.files import to_tensors

CODES = ("nf4", "fp4")
_BITSANDBYTES = ".quant_state.bitsandbytes__"


def is_quantized(fields: dict) -> bool:
    """Whether config.json's fields say that the weights are in bitsandbytes' 4 bits. Raises ConfigError for all other
    quantized weights, naming their kind."""
    config = fields.get("quantization_config")
    if not config:
        return False
    if not isinstance(config, dict):
        raise ConfigError(f"quantization_config is {config!r}; an object is needed")
    eight, four = config.get("load_in_8bit"), config.get("load_in_4bit")
    kind = config.get("quant_method") or ("bitsandbytes" if eight or four else None)
    if kind == "bitsandbytes":
        kind = "bitsandbytes in 8 bits" if eight else "bitsandbytes without load_in_4bit" if not four else None
        stored = config.get("bnb_4bit_quant_storage") or "uint8"
        if kind is None and stored != "uint8":
            kind = f"bitsandbytes with bnb_4bit_quant_storage = {stored}"
        if kind is None:
            return True
    raise ConfigError(f"quantization_config: weights quantized by {kind} are not read; bitsandbytes' 4 bits and float "
                      "weights are")  # fmt: skip


def quantization_config(model: Module) -> dict:
    """The fields of transformers' BitsAndBytesConfig, those of compute in float32. Raises FileFormatError for layers
    that bitsandbytes does not have, or that one configuration does not describe."""
    arrays = model.quantized()
    kinds = {(q.code, q.double_quant) for q in arrays.values()}
    if len(kinds) > 1:
        raise FileFormatError(f"the layers are quantized in {len(kinds)} ways ({_shown(kinds)}), and a config.json has "
                              "room for one")  # fmt: skip
    ((code, double_quant),) = kinds
    for path, q in arrays.items():
        if not any(_BITSANDBYTES in key for key in to_tensors(path, q)):
            raise FileFormatError(
                f"transformers and bitsandbytes cannot read a layer like {path}, {q!r}: they have "
                f"{' and '.join(CODES)}, blocksizes of 32 to 4096, and double_quant None or 'dynamic'"
            )
    float_layers = [p for p, m in model.named_modules() if isinstance(m, (Linear, Conv1D))]
    return {
        "quant_method": "bitsandbytes", "load_in_4bit": True, "load_in_8bit": False,
        "bnb_4bit_quant_type": code, "bnb_4bit_use_double_quant": double_quant is not None,
        "bnb_4bit_compute_dtype": "float32", "bnb_4bit_quant_storage": "uint8",
        "llm_int8_skip_modules": float_layers, "llm_int8_threshold": 6.0, "llm_int8_has_fp16_weight": False,
        "llm_int8_enable_fp32_cpu_offload": False,
    }  # fmt: skip


def quantized_tensors(model: Module) -> dict:
    """Codes and constants of every quantized layer, by their names in a file."""
    tensors = {}
    for path, q in model.quantized().items():
        tensors |= to_tensors(f"{path}.weight", q.to("cpu"))
    return tensors


def put(model: Module, arrays: dict):
    """Replace the layers whose weight is a QuantizedArray in `arrays`, which lose it. Raises FileFormatError where it
    is not the weight of a linear layer of its shape."""
    modules = dict(model.named_modules())
    for name in [name for name, array in arrays.items() if isinstance(array, QuantizedArray)]:
        q, path = arrays.pop(name), name.removesuffix(".weight")
        layer = modules.get(path)
        if not isinstance(layer, (Linear, Conv1D)):
            raise FileFormatError(f"{name} is quantized, and is not the weight of a linear layer of the model")
        if q.shape != layer.shape:
            raise FileFormatError(f"{name} is quantized of shape {q.shape}; config.json asks for {layer.shape}")
        model.set_submodule(path, QuantizedLinear(q, layer.bias))


def _shown(kinds) -> str:
    return ", ".join(f"{code} with double_quant={nested}" for code, nested in sorted(kinds, key=str))
