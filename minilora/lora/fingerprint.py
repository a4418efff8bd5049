"""A fingerprint of the base model, so that an adapter is not put on another one unnoticed.

    fingerprint(model)      # "names and shapes:values:weights of linear layers", hexadecimal

Three hashes, over the names and shapes of all weights; over a sample of the values that no quantization touches
(embeddings, norms, biases); and over a sample of the linear layers' weights, or of their codes where they are
quantized. The last is compared only where both are stored the same way, for an adapter trained beside a 4-bit base may
be used on the float one. A Sequential around one module counts as that module: it changes what a layer gives (to
float32, say), and no weight.
"""

import hashlib

import numpy as np

from minilora.backend import to_numpy
from minilora.nn import Linear, Module, Parameter, QuantizedLinear, Sequential
from minilora.nn.layers import Conv1D

SAMPLE = 64  # values of a tensor, evenly spaced


def fingerprint(model: Module) -> str:
    """Of a model without adapters; a tied weight counts under each of its names."""
    names, values, weights, kinds = hashlib.sha256(), hashlib.sha256(), hashlib.sha256(), set()
    for path, module in sorted(_modules(model), key=lambda item: item[0]):
        for name, array in _arrays(module):
            linear = isinstance(module, (Linear, Conv1D, QuantizedLinear)) and name == "weight"
            shape = module.shape if linear else array.shape
            names.update(f"{path}.{name} {tuple(int(n) for n in shape)}\n".encode())
            (weights if linear else values).update(_sample(array))
            if linear:
                q = getattr(module, "quantized_weight", None)
                kinds.add("float" if q is None else f"{q.code}-{q.blocksize}")
    linear = f"{'+'.join(sorted(kinds))}:{weights.hexdigest()[:16]}"
    return f"{names.hexdigest()[:16]}:{values.hexdigest()[:16]}:{linear}"


def difference(ours: str, theirs: str) -> str | None:
    """What differs between two fingerprints, in words; None where nothing does that can be compared."""
    (names, values, kind, weights), other = ours.split(":"), theirs.split(":")
    if len(other) != 4 or names != other[0]:
        return "its weights have other names or shapes"
    if values != other[1]:
        return "its embeddings, norms or biases have other values"
    return "its linear layers have other weights" if kind == other[2] and weights != other[3] else None


def stored_as(fingerprint: str) -> str:
    """How the linear layers were stored, "float" or as "nf4-64"; where the head alone is float, it is not counted."""
    kinds = fingerprint.split(":")[2].split("+")
    return " and ".join(kind for kind in kinds if kind != "float" or len(kinds) == 1)


def _modules(model: Module):
    modules = dict(model.named_modules())
    for path, module in modules.items():
        parent = path.rpartition(".")[0]
        around = modules.get(parent) if path else None
        yield parent if isinstance(around, Sequential) and len(around) == 1 else path, module


def _arrays(module: Module):
    for name, value in sorted(vars(module).items()):
        if name == "quantized_weight":
            yield "weight", value.packed
        elif isinstance(value, Parameter):
            yield name, value.data


def _sample(array: np.ndarray) -> bytes:
    flat = array.reshape(-1)
    return to_numpy(flat[:: max(1, flat.size // SAMPLE)]).tobytes()
