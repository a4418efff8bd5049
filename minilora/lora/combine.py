"""One adapter from several, with the error of doing so.

"cat"     A and B of all, stacked: rank Σ r, exactly Σ w ΔW
"svd"     the best approximation of Σ w ΔW of a rank that you choose (Eckart and Young)
"linear"  Σ √(w s) A and Σ √(w s) B, s = alpha / r: no rank is added, but every A meets every B, which nobody wants
"ties"    as linear, but of each A (and B) only the largest `density` of entries counts, and where signs differ, only
          entries of the majority's sign, averaged (arXiv:2306.01708, on the factors as PEFT does)
"""

from dataclasses import dataclass, field

import numpy as np

from minilora.backend import to_numpy
from minilora.errors import ConfigError, unknown_name
from minilora.lora.attach import lora_layers
from minilora.lora.config import LoraConfig
from minilora.lora.merge import overall, survival

KINDS = ("cat", "svd", "linear", "ties")


@dataclass(frozen=True)
class Combination:
    """What add_weighted_adapter made: the error is ‖ΔW - Σ w ΔW_i‖ / ‖Σ w ΔW_i‖, over all layers and for each."""

    adapter_name: str
    combination_type: str
    relative_error: float
    layers: dict[str, float] = field(repr=False)


def combine(kind: str, parts: list[tuple[float, np.ndarray, np.ndarray]], rank=None, density=None, sign="total"):
    """B (d_out, R), A (R, d_in) for parts (w s, B_i, A_i). Raises ConfigError."""
    if rank is not None and not (isinstance(rank, int) and rank > 0):
        raise ConfigError(f"svd_rank must be a positive integer, not {rank!r}")
    if kind in ("cat", "svd"):
        B = np.concatenate([B for _, B, _ in parts], axis=1)
        A = np.concatenate([A * w for w, _, A in parts])
        return (B, A) if kind == "cat" else best_of_rank(B, A, rank or max(len(a) for _, _, a in parts))
    if len({len(A) for _, _, A in parts}) > 1:
        raise ConfigError(f"{kind!r} adds factors, so all must have the same r; 'cat' and 'svd' take any")
    roots = [abs(w) ** 0.5 for w, _, _ in parts]
    signs = [1 if w >= 0 else -1 for w, _, _ in parts]
    As, Bs = [A for _, _, A in parts], [B for _, B, _ in parts]
    weights_A = [root * s for root, s in zip(roots, signs, strict=True)]
    if kind == "linear":
        return np.tensordot(roots, Bs, 1), np.tensordot(weights_A, As, 1)
    return ties(Bs, roots, density, sign), ties(As, weights_A, density, sign)


def best_of_rank(B: np.ndarray, A: np.ndarray, rank: int) -> tuple[np.ndarray, np.ndarray]:
    """Factors of the best approximation of BA of rank `rank`: an SVD of the small matrix between two thin QR."""
    (Qb, Rb), (Qa, Ra) = np.linalg.qr(B), np.linalg.qr(A.T)
    U, S, Vt = np.linalg.svd(Rb @ Ra.T)
    rank = min(rank, len(S))
    return Qb @ (U[:, :rank] * S[:rank]), Vt[:rank] @ Qa.T


def ties(arrays: list[np.ndarray], weights: list[float], density: float, sign: str = "total") -> np.ndarray:
    """Trim, elect signs, merge. sign: "total" elects by the sum of the entries, "frequency" by their signs."""
    if density is None or not 0 < density <= 1:
        raise ConfigError(f"'ties' needs density in (0, 1], the share of entries that count, not {density!r}")
    if sign not in ("total", "frequency"):
        raise ConfigError(f"majority_sign_method is 'total' or 'frequency', not {sign!r}")
    stack = np.stack([_largest(a, density) for a in arrays])  # (n, ...)
    votes = stack.sum(0) if sign == "total" else np.sign(stack).sum(0)
    agree = np.sign(stack) == np.where(votes >= 0, 1, -1)
    weighted = stack * np.reshape(weights, (-1, *[1] * arrays[0].ndim)).astype(stack.dtype) * agree
    return weighted.sum(0) / np.maximum(agree.sum(0), 1).astype(stack.dtype)


def _largest(array: np.ndarray, density: float) -> np.ndarray:
    """The array with all but the `density` of its entries that are largest in magnitude set to zero."""
    out, keep = np.zeros_like(array), int(density * array.size)
    at = np.argsort(-np.abs(array), axis=None, kind="stable")[:keep]
    out.flat[at] = array.flat[at]
    return out


def add_weighted_adapter(
    peft, adapters: list[str], weights: list[float], name: str, kind: str, options: dict
) -> Combination:
    """Add adapter `name` to a PeftModel; its r may differ by layer, and alpha / r is 1. Raises ConfigError."""
    if kind not in KINDS:
        raise unknown_name("combination_type", kind, KINDS)
    numbers = [w for w in weights or () if isinstance(w, (int, float, np.number)) and np.isfinite(w)]
    if not adapters or not len(adapters) == len(weights or ()) == len(numbers):
        raise ConfigError(f"one finite weight for each adapter, please: {adapters} and {weights}")
    configs = [peft.peft_config[adapter] for adapter in adapters]
    for adapter, config in zip(adapters, configs, strict=True):
        if config.use_dora or config.changes_base or config.modules_to_save or config.bias != "none":
            raise ConfigError(f"adapter {adapter!r} is more than A and B (DoRA, an initialisation that changes the "
                              "base, modules_to_save or biases), which cannot be added up")  # fmt: skip
    factors, errors = {}, {}
    for path, layer in lora_layers(peft.get_base_model()).items():
        parts = [(w * layer.scaling[a], to_numpy(layer.B(a).data), to_numpy(layer.A(a).data))
                 for a, w in zip(adapters, weights, strict=True) if a in layer]  # fmt: skip
        if parts:
            B, A = combine(kind, parts, **options)
            exact = sum(w * (b @ a) for w, b, a in parts)
            errors[path] = survival(exact, B @ A)
            factors[path] = np.ascontiguousarray(A, layer.dtype), np.ascontiguousarray(B, layer.dtype)
    ranks = {path: len(A) for path, (A, _) in factors.items()}
    most = max(ranks.values())
    pattern = {"^" + path.replace(".", r"\."): r for path, r in ranks.items() if r != most}
    config = LoraConfig(most, most, list(factors), rank_pattern=pattern, alpha_pattern=dict(pattern),
                        lora_dropout=configs[0].lora_dropout)  # fmt: skip
    peft.add_adapter(name, config, init=False)
    for path, layer in lora_layers(peft.get_base_model()).items():
        if path in factors:
            layer.load_state(name, dict(zip(layer.FILE_NAMES, factors[path], strict=True)))
    total = overall(list(errors.values())).relative_error
    return Combination(name, kind, total, {path: e.relative_error for path, e in errors.items()})
