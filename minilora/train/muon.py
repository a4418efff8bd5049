"""Muon: momentum whose singular values are all made one; for the matrices of a network trained from nothing.

    Muon(model.parameters(), hidden_matrices(model), lr=6e-3)

M ← μM + G;  W ← (1 - ηλ)W - 0.2 η √max(d_out, d_in) · U Vᵀ  where  G + μM = U Σ Vᵀ  (Jordan, "Muon", 2024).

Every direction of the update is then as long as every other, where Adam's is dominated by few. U Vᵀ is approximated by
five Newton-Schulz steps, X ← aX + (bXXᵀ + c(XXᵀ)²)X, an odd polynomial that sends singular values from (0, 1] near one.
The factor 0.2 √max(d_out, d_in) gives the update the size of AdamW's, so that one learning rate and decay serves both
(arXiv:2502.16982, equation 4). Vectors, embeddings and the head, whose rows are looked up and not mixed, take AdamW.
"""

import numpy as np

from minilora.autograd import Tensor
from minilora.nn import Conv1D, Embedding, Linear, Module
from minilora.train.optim import AdamW

MOMENTUM = 0.95
_A, _B, _C = 3.4445, -4.7750, 2.0315  # Jordan's: fastest for small singular values; large ones end within 0.7 to 1.2


def orthogonalize(G: np.ndarray, steps: int = 5) -> np.ndarray:
    """About U Vᵀ of G = U Σ Vᵀ (m, n): singular values near one, those far below the largest still smaller."""
    X = G.T if G.shape[0] > G.shape[1] else G  # XXᵀ is the smaller of the two products
    X = X / (np.linalg.norm(X) + 1e-7)
    for _ in range(steps):
        S = X @ X.T
        X = _A * X + (_B * S + _C * (S @ S)) @ X
    return X.T if G.shape[0] > G.shape[1] else X


def hidden_matrices(model: Module) -> list[Tensor]:
    """The weights of linear layers, but those of the head and of what shares its weight with an embedding."""
    modules = dict(model.named_modules())
    tables = {id(m.weight) for m in modules.values() if isinstance(m, Embedding)}
    return [
        m.weight
        for path, m in modules.items()
        if isinstance(m, (Linear, Conv1D)) and path.rpartition(".")[2] != "lm_head" and id(m.weight) not in tables
    ]


class Muon(AdamW):
    """Updates `params` (those that have a gradient) in place, those among `matrices` as above, the others as AdamW."""

    def __init__(self, params, matrices, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0):
        super().__init__(params, lr, betas, eps, weight_decay)
        self.matrices = {id(p) for p in matrices}

    def _update_parameter(self, p: Tensor, state, rate, correction, decay):
        if id(p) not in self.matrices:
            super()._update_parameter(p, state, rate, correction, decay)
            return
        m = state[0].reshape(p.shape)
        m *= MOMENTUM
        m += p.grad
        p.data *= decay
        p.data -= (0.2 * self.lr * max(p.shape) ** 0.5) * orthogonalize(p.grad + MOMENTUM * m)
