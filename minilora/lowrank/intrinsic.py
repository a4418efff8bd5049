"""Intrinsic dimension: train a network in few random directions, and ask how few are enough.

    model = Subspace(model, d=1000)                          # DID; structure_aware=True: SAID
    model.loss(ids, labels).backward()                       # trains theta_d alone; a Trainer takes it as it is
    base = model.merge_and_unload()                          # the base model, its weights moved
    smallest_d({100: 0.7, 1000: 0.91}, full=0.95)            # d90: 1000

DID (Li et al., arXiv:1804.08838) trains θ_d in θ = θ0 + P θ_d, P a fixed random matrix (D, d); SAID (Aghajanyan et al.,
arXiv:2012.13255) also one number for each of the m modules that own trained parameters, with d - m left for θ_d:

    θ_i = θ0_i + λ_i P_i θ_(d-m),    i = 1 .. m,    d numbers in all,

where λ begins at 1 and θ_d at 0: the model is at first what it was. The intrinsic dimension d90 is the smallest d whose
trained model reaches 90 % of what training all D parameters reaches.

Here P has a part for each parameter, drawn apart (fastfood.py), and its rows, not its columns, have a mean square
length of one: a step of theta_d then moves each weight about as far as a step of the same learning rate in full
training does, whatever d is. θ0 stays where it is, in the model's own (now frozen) parameters; θ lives during a forward
pass and its backward pass. NumPy arrays only, no gradient checkpointing.
"""

import math
from collections.abc import Mapping
from contextlib import contextmanager

import numpy as np

from minilora.autograd import Tensor, primitive
from minilora.errors import ConfigError, DataError
from minilora.lowrank.fastfood import Fastfood, Projection
from minilora.nn import Module, Parameter


@primitive
def displaced(theta_0, theta_d, scale, P, gain=1.0):
    """θ = θ0 + λ · gain · P θ_d. theta_0 any shape of D entries, theta_d (d,), scale λ a scalar; P (D, d), constant."""
    step = (P @ (gain * theta_d)).reshape(theta_0.shape)
    return theta_0 + scale * step, (
        lambda g: g,
        lambda g: (P.T @ g.reshape(-1)) * gain * scale,
        lambda g: np.vdot(step, g),
        None,
    )


class Subspace(Module):
    """A model whose trained parameters move in d dimensions. What it lacks, such as loss, is the model's, at θ."""

    def __init__(self, model: Module, d: int, projection: type[Projection] = Fastfood, structure_aware=False, seed=0):
        """Freezes `model`, in place. d: all numbers trained, SAID's m included. projection: Fastfood,
        DenseProjection, SparseProjection. Raises ConfigError for a d below 1 (of SAID, below m + 1), and for a model
        without a trainable parameter."""
        trained = [p for p in model.parameters() if p.requires_grad]
        if not trained:
            raise ConfigError("the model has no trainable parameter to move: set requires_grad, or attach an adapter")
        places = {id(p): [] for p in trained}  # of each parameter, a shared one has several: (module, attribute)
        for _, module in model.named_modules():
            for name, value in vars(module).items():
                if id(value) in places:
                    places[id(value)].append((module, name))
        owners = list(dict.fromkeys(id(places[id(p)][0][0]) for p in trained))
        m = len(owners) if structure_aware else 0
        if not isinstance(d, (int, np.integer)) or d <= m:
            least = f"at least {m + 1} (one for each of {m} modules, and one)" if m else "positive"
            raise ConfigError(f"d, the number of trained numbers, must be an integer, {least}; got {d!r}")
        model.requires_grad_(False)
        self.base_model, free = model, int(d) - m
        self.theta_d = Parameter(np.zeros(free, np.float32))
        self.scale = Parameter(np.ones(m, np.float32)) if structure_aware else None
        self._parts = []
        for i, p in enumerate(trained):
            P, gain = projection(p.size, free, [seed, i]), math.sqrt(p.size / free)
            self._parts.append((p, places[id(p)], owners.index(id(places[id(p)][0][0])), P, gain))

    def __getattr__(self, name: str):
        if name.startswith("__") or "base_model" not in vars(self):
            raise AttributeError(name)
        value = getattr(self.base_model, name)
        return self._at_theta(value) if callable(value) else value

    def forward(self, *args, **kwargs):
        """The model's, at θ0 + P θ_d."""
        return self._at_theta(self.base_model)(*args, **kwargs)

    def theta(self) -> list[Tensor]:
        """θ, one Tensor for each parameter, from the graph's leaves theta_d and scale."""
        return [
            displaced(p, self.theta_d, 1.0 if self.scale is None else self.scale[layer], P, gain=gain)
            for p, _, layer, P, gain in self._parts
        ]

    @property
    def projection_nbytes(self) -> int:
        """Bytes of all that is stored of P."""
        return sum(P.nbytes for *_, P, _ in self._parts)

    def merge_and_unload(self) -> Module:
        """Write θ into the model's parameters, which become trainable again, and return the model."""
        for (p, *_), theta in zip(self._parts, self.theta(), strict=True):
            p.data = theta.data
            p.mark_changed()
            p.requires_grad = True
        return self.base_model

    def _at_theta(self, function):
        def call(*args, **kwargs):
            with self._moved():
                return function(*args, **kwargs)

        return call

    @contextmanager
    def _moved(self):
        """Within it the modules' attributes are θ, Tensors with a graph, in place of the frozen parameters."""
        if any(module.checkpointed for _, module in self.base_model.named_modules()):
            raise ConfigError("gradient checkpointing would compute a layer again at θ0, not at θ; turn it off")
        try:
            for (_, places, *_), theta in zip(self._parts, self.theta(), strict=True):
                for module, name in places:
                    setattr(module, name, theta)
            yield
        finally:
            for p, places, *_ in self._parts:
                for module, name in places:
                    setattr(module, name, p)


def smallest_d(reached: Mapping[int, float], full: float, share: float = 0.9) -> int | None:
    """The smallest d whose metric is at least share · full; None where none is. reached: d -> metric, the larger the
    better and not negative. With share = 0.9 it is Li et al.'s d90, to the resolution of the d's that were tried.

    Raises DataError for no d, or a metric of full training that is not positive."""
    if not reached or not full > 0:
        raise DataError(
            f"d90 needs at least one d and a positive metric of full training, not {len(reached)} and {full}"
        )
    return min((d for d, metric in reached.items() if metric >= share * full), default=None)


class GroupSums(Module):
    """The toy of Li et al., section 2: D numbers in k groups of equal size, of which group i is to sum to i.

    loss = ½ Σ_i (s_i - i)². k equations: whatever D is, its intrinsic dimension is k. In a random subspace of k
    dimensions or more they can be solved (with probability one), in k - 1 they cannot.
    """

    def __init__(self, D: int = 1000, k: int = 10):
        if D % k:
            raise ConfigError(f"{D} numbers cannot be cut into {k} groups of equal size")
        self.weight, self.goal = Parameter(np.zeros((k, D // k), np.float32)), np.arange(1, k + 1, dtype=np.float32)

    def loss(self) -> Tensor:
        """½ Σ (s_i - i)², a scalar."""
        error = self.weight.sum(axis=1) - self.goal
        return (error * error).sum() * 0.5

    def least_squares(self, P: Projection) -> float:
        """‖s - goal‖ / ‖goal‖ at the best θ = P θ_d there is, by least squares in float64."""
        sums, goal = self._sums_of(P), self.goal.astype(float)
        best = np.linalg.lstsq(sums, goal)[0]
        return float(np.linalg.norm(sums @ best - goal) / np.linalg.norm(goal))

    def descend(self, d: int, projection: type[Projection] = Fastfood, seed: int = 0, steps: int = 3000) -> float:
        """The same after gradient descent on theta_d from 0, with momentum 0.99 and 1 / (largest curvature) as rate."""
        model = Subspace(self, d, projection, seed=seed)
        *_, P, gain = model._parts[0]
        rate = np.float32(1 / np.linalg.norm(gain * self._sums_of(P), 2) ** 2)
        theta_d, velocity = model.theta_d, np.float32(0)
        for _ in range(steps):
            theta_d.grad = None
            model.loss().backward()
            velocity = np.float32(0.99) * velocity - rate * theta_d.grad
            theta_d.data = theta_d.data + velocity
        loss = model.loss().item()
        self.weight.requires_grad = True
        return math.sqrt(2 * loss) / float(np.linalg.norm(self.goal))

    def _sums_of(self, P: Projection) -> np.ndarray:
        """The groups' sums of each column of P, (k, d): what θ_d is multiplied by to give s."""
        return np.stack([(P @ e).reshape(self.weight.shape).sum(1) for e in np.eye(P.shape[1])], axis=1)
