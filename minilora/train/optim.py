"""AdamW and clipping by global norm.

m ← β₁m + (1-β₁)g;  v ← β₂v + (1-β₂)g²;  θ ← (1 - ηλ)θ - η m̂/(√v̂ + ε), with m̂ = m/(1-β₁ᵗ), v̂ = v/(1-β₂ᵗ):
decay is applied to the weights, not to the gradient (Loshchilov and Hutter, arXiv:1711.05101). float32 state.
"""

import math
from pathlib import Path

import numpy as np

from minilora.autograd import Tensor
from minilora.autograd.tensor import writeable
from minilora.backend import array_namespace, like, to_numpy
from minilora.errors import FileFormatError, GraphError, TrainingError
from minilora.files import load_safetensors, save_safetensors

CHUNK = 1 << 15  # entries updated at a time: the ten passes over them stay in the CPU's cache


def clip_grad_norm(params: list[Tensor], max_norm: float) -> float:
    """Scale all gradients so that their joint Euclidean norm is at most max_norm; returns the norm before."""
    grads = [p.grad for p in params if p.grad is not None]
    squares = [np.vdot(g, g) for g in grads]  # all asked for before the first is waited for
    norm = math.sqrt(sum(map(float, squares)))
    if norm > max_norm:
        for g in grads:
            g *= max_norm / norm
    return norm


class AdamW:
    """Updates `params` (those that have a gradient) in place. Matrices are decayed, vectors (norms, biases) are not."""

    def __init__(self, params, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0):
        self.params = [p for p in params if p.requires_grad]
        if not self.params:
            raise TrainingError("no trainable parameter: attach an adapter with get_peft_model, or set requires_grad")
        self.lr, self.betas, self.eps, self.weight_decay = lr, betas, eps, weight_decay
        self.reset()

    def reset(self):
        """Forget all updates so far."""
        self.steps, self.state = 0, self._new_state()

    def _new_state(self) -> list:
        """For each parameter what _update_parameter is given: here m and v."""
        return [self._moments(p) for p in self.params]

    @staticmethod
    def _moments(p: Tensor) -> tuple[np.ndarray, np.ndarray]:
        kind = np.result_type(p.dtype, np.float32)  # at least float32: squares of float16 gradients are zero
        xp = array_namespace(p.data)
        return xp.zeros(p.size, kind), xp.zeros(p.size, kind)

    def state_arrays(self) -> dict[str, np.ndarray]:
        """The state's arrays, shared, by name."""
        return {f"{i}.{name}": a for i, state in enumerate(self.state) for name, a in zip("mv", state, strict=True)}

    def save(self, folder: Path):
        """Write the state to optimizer.safetensors in `folder`."""
        arrays = {name: to_numpy(array) for name, array in self.state_arrays().items()}
        save_safetensors(folder / "optimizer.safetensors", arrays, {"steps": str(self.steps)})

    def load(self, folder: Path):
        """Read what `save` wrote for the same parameters. Raises FileFormatError."""
        arrays, metadata = load_safetensors(folder / "optimizer.safetensors")
        own = self.state_arrays()
        if own.keys() != arrays.keys() or any(own[n].shape != arrays[n].shape for n in own):
            raise FileFormatError(f"{folder} holds the state of another optimizer or of other parameters")
        for name, array in own.items():
            array[...] = like(arrays[name], array)
        self.steps = int(metadata["steps"])

    def zero_grad(self):
        for p in self.params:
            p.grad = None

    def snapshot(self) -> list[np.ndarray]:
        """Copies of the parameters' values, for restore."""
        return [p.data.copy() for p in self.params]

    def restore(self, values: list[np.ndarray]):
        """Give the parameters new arrays: a graph may still hold the old ones."""
        for p, value in zip(self.params, values, strict=True):
            p.data = value.copy()
            p.mark_changed()

    def step(self):
        """One update, of all parameters or none. Raises GraphError where a graph not yet walked holds a parameter."""
        if any(p.grad is not None and not writeable(p.data) for p in self.params):
            raise GraphError("a parameter is held by a graph still waiting for backward; call backward before step")
        self.steps += 1
        b1, b2 = self.betas
        rate = self.lr / (1 - b1**self.steps)
        correction = 1 / math.sqrt(1 - b2**self.steps)
        for p, state in zip(self.params, self.state, strict=True):
            if p.grad is None:
                continue
            if not p.data.flags.c_contiguous:  # reshape would copy it, and the update would be lost
                p.data = p.data.copy(order="C")
            decay = 1 - self.lr * self.weight_decay if p.ndim >= 2 else 1.0
            self._update_parameter(p, state, rate, correction, decay)
            p.mark_changed()

    @staticmethod
    def _chunk(p: Tensor) -> int:
        """Entries updated at a time; a GPU takes all."""
        return max(1, min(p.size, CHUNK) if isinstance(p.data, np.ndarray) else p.size)

    def _update_parameter(self, p, state, rate, correction, decay):
        m, v = state
        chunk = self._chunk(p)
        work = array_namespace(m).empty(chunk, m.dtype)
        theta, g = p.data.reshape(-1), p.grad.reshape(-1).astype(m.dtype, copy=False)
        for start in range(0, p.size, chunk):
            part = slice(start, start + chunk)
            self._update(theta[part], g[part], m[part], v[part], work, rate, correction, decay)

    def _update(self, theta, g, m, v, work, rate, correction, decay):
        (b1, b2), t = self.betas, work[: g.size]
        m *= b1
        np.multiply(g, 1 - b1, out=t)
        m += t
        v *= b2
        np.multiply(g, g, out=t)
        t *= 1 - b2
        v += t
        np.sqrt(v, out=t)
        t *= correction
        t += self.eps
        np.divide(m, t, out=t)
        t *= rate
        theta *= decay
        theta -= t
