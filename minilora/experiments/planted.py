"""A planted teacher: how well can LoRA of rank r imitate a layer whose change has rank k? Known in closed form.

    teacher = Planted(k=4, seed=0)               # W0 and W0 + dW, rank(dW) = 4; inputs X
    teacher.best(r=2)                            # the least error that any rank-2 update can have
    teacher.train(r=2)                           # the error at which training ends

The student computes X (W0 + s B A)ᵀ and the teacher X (W0 + dW)ᵀ, so that the error is ‖X (dW - s B A)ᵀ‖_F. As B A
runs through the matrices of rank r, so does X (s B A)ᵀ through those of rank r whose columns are in X's range; the best
is the truncated SVD of X dWᵀ (Eckart & Young 1936), with the error √(σ²_{r+1} + σ²_{r+2} + ..): of X dWᵀ, not of dW,
unless inputs are white. It is zero from r = k on.
"""

import numpy as np

from minilora import ops
from minilora.autograd import Tensor
from minilora.lora import LoraConfig, get_peft_model
from minilora.lowrank import eckart_young
from minilora.nn import Linear, Sequential

D_OUT, D_IN, ROWS = 24, 32, 64


class Planted:
    """W0 and X are normal; dW = U diag(σ) Vᵀ of rank k with σ from 2 evenly down to 1. All float64."""

    def __init__(self, k: int, seed: int):
        rng = np.random.default_rng([seed, k])
        U, V = (np.linalg.qr(rng.standard_normal((d, k)))[0] for d in (D_OUT, D_IN))
        self.W0 = rng.standard_normal((D_OUT, D_IN)) / D_IN**0.5
        self.dW = (U * np.linspace(2, 1, k)) @ V.T
        self.X = rng.standard_normal((ROWS, D_IN))
        self.goal = self.X @ (self.W0 + self.dW).T
        self.scale = float(np.linalg.norm(self.X @ self.dW.T))  # the error of no update
        self.seed = seed

    def best(self, r: int) -> float:
        """In proportion to the error without an adapter."""
        return eckart_young(self.X @ self.dW.T, r).frobenius / self.scale

    def train(self, r: int) -> float:
        """The same of A and B from LoRA's usual start (B = 0), by conjugate gradients on backward()'s gradients."""
        return float(np.linalg.norm(self.X @ (self.dW - self.learnt(r)).T)) / self.scale

    def learnt(self, r: int) -> np.ndarray:
        """s B A (D_OUT, D_IN), trained until the gradient's largest entry is below 1e-12."""
        from scipy.optimize import minimize

        student = Sequential(Linear(D_IN, D_OUT))
        student[0].weight.data = self.W0.copy()
        model = get_peft_model(student, LoraConfig(r=r, lora_alpha=r, target_modules="all-linear"), seed=self.seed)
        trained = list(model.trainable().values())
        ends = np.cumsum([p.size for p in trained])[:-1]

        def loss(theta: np.ndarray) -> tuple[float, np.ndarray]:
            for p, part in zip(trained, np.split(theta, ends), strict=True):
                p.data, p.grad = part.reshape(p.shape).copy(), None
            missed = model(Tensor(self.X)) - self.goal
            value = ops.sum(missed * missed) * (1 / self.scale**2)
            value.backward()
            return value.item(), np.concatenate([p.grad.ravel() for p in trained])

        start = np.concatenate([p.data.ravel() for p in trained])
        loss(minimize(loss, start, jac=True, method="CG", options={"gtol": 1e-12, "maxiter": 5000}).x)
        return model.merge_and_unload()[0].weight.data - self.W0
