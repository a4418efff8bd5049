"""quantize_model: replace a model's linear layers by 4-bit ones.

quantize_model(model, "nf4", double_quant=True)      # in place; the float weights are let go
"""

from minilora.errors import QuantizationError
from minilora.nn.layers import Conv1D, Linear, QuantizedLinear
from minilora.nn.module import Module


def quantize_model(
    model: Module, code: str = "nf4", blocksize: int | str | None = 64, double_quant: bool = True, skip=("lm_head",)
) -> Module:
    """Quantize every Linear but those named, or within what is named, in `skip`, as bitsandbytes' integration does; and
    every Conv1D, which becomes the QuantizedLinear of its transposed weight.

    The head, the embeddings and the norms stay float. In place; returns the model. Raises QuantizationError where
    there is no Linear left to quantize.
    """
    layers = {
        path: module
        for path, module in model.named_modules()
        if isinstance(module, (Linear, Conv1D)) and not set(path.split(".")) & set(skip)
    }
    if not layers:
        raise QuantizationError("no Linear layer to quantize; was the model quantized before?")
    for path, layer in layers.items():
        model.set_submodule(path, QuantizedLinear.from_linear(layer, code, blocksize, double_quant))
    return model
