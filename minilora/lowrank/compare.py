"""Two sets of weights: their difference as an adapter, and how far two subspaces agree.

    peft = extract_lora(tuned, base, r=8)        # the best rank-8 adapter for what fine-tuning changed
    peft.save_pretrained("extracted")            # opens in PEFT
    subspace_similarity(A8, A64, 8, 64)          # 0: orthogonal, 1: one contains the other
    amplification(W, dW, 4)                      # how much louder dW makes the directions that it changes

ΔW = W' - W = U S Vᵀ; B = U_r √S_r, A = √S_r V_rᵀ has the least ‖ΔW - BA‖ of rank r (Eckart & Young). Of the layer
that is: the adapter that serves the task best is another matter, which the low-rank experiment measures.
"""

import copy
import warnings

import numpy as np

from minilora.errors import ConfigError, ShapeError
from minilora.lowrank.svd import svd, truncate


def extract_lora(model, base, r: int, target_modules="all-linear", modules_to_save: list[str] | None = None):
    """Put beside `base` (in place) the rank-r adapter that comes nearest to `model`; returns the PeftModel.

    model: a fine-tuned copy of `base`, without adapters; it is left as it is. target_modules, modules_to_save: as
    LoraConfig's; the latter are taken over whole. lora_alpha = r, so that the scaling is 1. The relative error
    ‖ΔW - BA‖_F / ‖ΔW‖_F of each layer is left in `extraction_error` of the result; a warning names weights that differ
    and have no place in the adapter. Raises ConfigError for two models of other layers or shapes.
    """
    # lora stands on this package's floor: it is imported here, where nobody imports it back.
    from minilora.lora import LoraConfig, get_peft_model
    from minilora.lora.attach import lora_layers, wrappers
    from minilora.lora.targets import adaptable

    if any(lora_layers(m) or wrappers(m) for m in (model, base)):
        raise ConfigError("extract_lora compares models without adapters: merge_and_unload() them first")
    config = LoraConfig(r=r, lora_alpha=r, target_modules=target_modules, modules_to_save=modules_to_save)
    changed = _changed(model, base)
    tuned, name, errors = adaptable(model), "default", {}
    peft = get_peft_model(base, config)
    for path, layer in lora_layers(base).items():
        other = copy.copy(layer)
        other.base_layer = tuned[path]
        B, A, errors[path] = _factors(other.weight() - layer.weight(), r)
        layer.B(name).data, layer.A(name).data = B.astype(layer.dtype), A.astype(layer.dtype)
        changed.discard(f"{path}.weight")
    for path, wrapper in wrappers(base).items():
        theirs = dict(model.get_submodule(path).named_parameters())
        for key, p in wrapper.modules_to_save[name].named_parameters():
            p.data = theirs[key].data.copy()
            changed.discard(f"{path}.{key}")
    if changed:
        names = ", ".join(sorted(changed)[:3]) + " ..." * (len(changed) > 3)
        warnings.warn(f"{len(changed)} weights differ and are not in the adapter: {names}; modules_to_save takes "
                      "modules over whole", stacklevel=2)  # fmt: skip
    peft.extraction_error = errors
    return peft


def subspace_similarities(A, B) -> np.ndarray:
    """φ(i, j) = ‖V_A^(i)ᵀ V_B^(j)‖_F² / min(i, j) at [i - 1, j - 1], for all i and j (LoRA, section 7.2).

    A (a, d), B (b, d); V^(i) (d, i): the first i right singular vectors, directions of the input; give A.T and B.T for
    those of the output. Where σ_i = σ_{i+1} the first i are not determined, nor is φ. Two random subspaces have
    max(i, j) / d on average. Raises ShapeError.
    """
    if np.ndim(A) != 2 or np.ndim(B) != 2 or np.shape(A)[1] != np.shape(B)[1]:
        raise ShapeError(f"A (a, d) and B (b, d) have rows of one length, not {np.shape(A)} and {np.shape(B)}")
    V, W = svd(A).Vt, svd(B).Vt
    sums = ((V @ W.T) ** 2).cumsum(0).cumsum(1)
    smaller = np.minimum.outer(np.arange(1, len(V) + 1), np.arange(1, len(W) + 1))
    return np.minimum(sums / smaller.astype(sums.dtype), 1)  # rounding may exceed 1


def subspace_similarity(A, B, i: int, j: int) -> float:
    """φ(A, B, i, j), in [0, 1]. Raises ConfigError for i or j that A or B has not, ShapeError."""
    similarities = subspace_similarities(A, B)
    if not (1 <= i <= len(similarities) and 1 <= j <= similarities.shape[1]):
        a, b = similarities.shape
        raise ConfigError(f"i is from 1 to {a} and j from 1 to {b} for these matrices, not {i!r} and {j!r}")
    return float(similarities[i - 1, j - 1])


def amplification(W, dW, r: int) -> float:
    """‖ΔW‖_F / ‖UᵀWV‖_F, U and V the first r singular vectors of ΔW on either side (LoRA, table 7). W, dW: (m, n).

    Infinite where W has nothing in these directions.
    """
    if np.shape(W) != np.shape(dW):
        raise ShapeError(f"W and dW are of one shape, not {np.shape(W)} and {np.shape(dW)}")
    U, _, Vt = truncate(dW, r)
    within = float(np.linalg.norm(U.T @ W @ Vt.T))
    return float(np.linalg.norm(dW)) / within if within else float("inf")


def _factors(delta: np.ndarray, r: int) -> tuple[np.ndarray, np.ndarray, float]:
    """B (d_out, r), A (r, d_in), ‖delta - BA‖ / ‖delta‖; columns beyond the rank that delta can have are zero."""
    U, S, Vt = svd(delta)
    k = min(r, len(S))
    root = np.sqrt(S[:k])
    B, A = np.zeros((len(U), r), U.dtype), np.zeros((r, Vt.shape[1]), U.dtype)
    B[:, :k], A[:k] = U[:, :k] * root, root[:, None] * Vt[:k]
    return B, A, float(np.linalg.norm(S[k:]) / (np.linalg.norm(S) or 1))


def _changed(model, base) -> set[str]:
    """Names of parameters that differ. Raises ConfigError where there is no counterpart."""
    ours, theirs = dict(model.named_parameters()), dict(base.named_parameters())
    for path in {**model.quantized(), **base.quantized()}:  # such a weight is no parameter
        ours.pop(f"{path}.weight", None), theirs.pop(f"{path}.weight", None)
    odd = [n for n in {**ours, **theirs} if n not in ours or n not in theirs or ours[n].shape != theirs[n].shape]
    if odd:
        raise ConfigError(f"the models differ in {odd[0]} ({len(odd)} weights have no counterpart of the same shape): "
                          "extract from a model and the base that it was fine-tuned from")  # fmt: skip
    return {name for name, p in ours.items() if not np.array_equal(p.data, theirs[name].data)}
