"""How an adapter starts.

init_lora_weights   A                                 B              W₀
True                uniform ± 1/√d_in                 0              unchanged (as nn.Linear; LoRA's reference code)
"gaussian"          normal, deviation 1/r             0              unchanged (LoRA, arXiv:2106.09685, section 4.1)
False               as True                           uniform ± 1/√r unchanged (for tests: not zero at first)
"pissa"             √S Vᵀ, the r largest of W₀ = USVᵀ U √S           W₀ - (alpha / r) B A (arXiv:2404.02948)
"olora"             R, the first r rows of W₀ = QR    Q              W₀ - (alpha / r) B A (arXiv:2406.01775)
"loftq"             √S Vᵀ of W₀ - Q, Q in 4 or 8 bits U √S           Q (arXiv:2310.08659)

PiSSA and OLoRA train the strongest part of the weight and freeze the rest; the function is W₀'s at first. PiSSA's S is
divided by alpha / r, so that (alpha / r) B A is the part itself; LoftQ's here too (PEFT 0.21 leaves that out, so that
its start is LoftQ's only where alpha = r). LoftQ alternates: Q = quantize(W₀ - BA), BA = the best of rank r for W₀ - Q.
An embedding's A starts zero and its B normal, except with False, where both are normal.
"""

import numpy as np

from minilora.backend import like
from minilora.errors import ConfigError
from minilora.nn.layers import Embedding, Linear, QuantizedLinear
from minilora.quant import quantize


def initialise(layer, name: str, config, rng: np.random.Generator):
    """Give A and B of adapter `name` their first values, and the base layer what is left. Raises ConfigError."""
    kind, r, d_in = config.init_lora_weights, layer.r[name], layer.shape[1]
    if isinstance(layer.base_layer, Embedding):
        A, B = layer.lora_embedding_A[name], layer.lora_embedding_B[name]
        B.data = like(rng.standard_normal(B.shape, B.dtype), B.data)
        if kind is False:
            A.data = like(rng.standard_normal(A.shape, A.dtype), A.data)
        return
    A, B = layer.lora_A[name].weight, layer.lora_B[name].weight
    if kind in (True, False):
        A.data = _uniform(rng, d_in**-0.5, A)
        if kind is False:
            B.data = _uniform(rng, r**-0.5, B)
    elif kind == "gaussian":
        A.data = like(rng.standard_normal(A.shape, A.dtype) / r, A.data)
    elif config.changes_base:
        _from_weight(layer, name, config, A, B)
    else:
        raise ConfigError(f"init_lora_weights={kind!r} can be loaded from a file, but not started here")


def _uniform(rng: np.random.Generator, bound: float, p) -> np.ndarray:
    return like(rng.uniform(-bound, bound, p.shape).astype(p.dtype), p.data)


def _from_weight(layer, name: str, config, A, B):
    kind, r, scaling = config.init_lora_weights, layer.r[name], layer.scaling[name]
    if isinstance(layer.base_layer, QuantizedLinear):
        raise ConfigError(f"{kind} starts from the float weight, and this one is quantized: attach the adapter first")
    if r > min(layer.shape):
        raise ConfigError(f"{kind} takes r={r} of the weight's {min(layer.shape)} directions; choose a smaller r")
    weight = layer.weight()
    if kind == "loftq":
        q, b, a = loftq(weight, r, config.loftq_config["loftq_bits"], config.loftq_config["loftq_iter"])
        B.data, A.data = b / scaling**0.5, a / scaling**0.5
        is_linear = type(layer.base_layer) is Linear  # a Conv1D keeps Q's values in float
        layer.base_layer = QuantizedLinear(q, layer.base_layer.bias) if is_linear else layer.plain(q.dequantize())
        return
    if kind == "pissa":
        b, a = truncated(weight, r)
        B.data, A.data = b / scaling**0.5, a / scaling**0.5
    else:
        q, upper = np.linalg.qr(weight)
        B.data, A.data = q[:, :r].copy(), upper[:r].copy()
    layer.taken[name] = B.data * scaling, A.data
    layer.base_layer = layer.plain(weight - layer.taken[name][0] @ A.data)


def truncated(matrix: np.ndarray, r: int) -> tuple[np.ndarray, np.ndarray]:
    """B (d_out, r) and A (r, d_in) with BA the best approximation of rank r (Eckart and Young), S shared evenly."""
    U, S, Vt = np.linalg.svd(matrix, full_matrices=False)
    root = np.sqrt(S[:r])
    return U[:, :r] * root, root[:, None] * Vt[:r]


def loftq(weight: np.ndarray, r: int, bits: int = 4, rounds: int = 1):
    """(Q, B, A): a QuantizedArray and factors with Q + BA near `weight`."""
    low = 0
    for _ in range(rounds):
        rest = weight - low
        q = quantize(rest, "nf4", 64) if bits == 4 else quantize(rest, "int8", "row")
        B, A = truncated(weight - q.dequantize(), r)
        low = B @ A
    return q, B, A
