"""Module: a tree of layers, and the names of the parameters in it.

    class Linear(Module):
        def __init__(self, d_in, d_out, rng): self.weight = Parameter(...)
        def forward(self, x): return linear(x, self.weight)

Attributes that are Parameters, Modules or lists of Modules are found by name: "model.layers.0.self_attn.q_proj.weight".
"""

from collections.abc import Iterator

import numpy as np

from minilora.autograd import Tensor, checkpoint
from minilora.autograd.tensor import parameters
from minilora.backend import array_namespace, like, placed, to_device, to_numpy
from minilora.errors import FileFormatError


class Parameter(Tensor):
    """A Tensor that a Module owns and an optimizer may change."""

    __slots__ = ()

    def __init__(self, data, requires_grad: bool = True):
        """data: an array; NumPy's go where new arrays go (see use_backend)."""
        super().__init__(placed(data), requires_grad)
        parameters.add(self)

    def to(self, device: str):
        """Move the values and the gradient to "cuda" or "cpu". A graph that holds the old values is invalid then."""
        if (data := to_device(self.data, device)) is not self.data:
            self.data, self.grad = data, None if self.grad is None else to_device(self.grad, device)
            self.mark_changed()


class Module:
    """A part of a model: parameters and further modules as attributes, and forward, which calling it runs."""

    training = False
    checkpointed = False  # whether backward computes this module again, instead of keeping what it needs
    shown_as: str | None = None  # the class in the printed tree, where it is not its name

    def __call__(self, *args, **kwargs):
        if self.checkpointed and self.training:
            return checkpoint(self.forward, *args, parameters=self.parameters(), generators=self.generators())
        return self.forward(*args, **kwargs)

    def extra_repr(self) -> str:
        """The sizes that the printed tree shows of this module."""
        return ""

    def __repr__(self) -> str:
        from minilora.nn.tree import tree

        return tree(self).text()

    def _repr_svg_(self) -> str:
        from minilora.nn.tree import repr_svg

        return repr_svg(self)

    def children(self) -> Iterator[tuple[str, "Module"]]:
        """(name, module) of the modules that are attributes, or in a list that is one."""
        for name, value in vars(self).items():
            if isinstance(value, Module):
                yield name, value
            elif isinstance(value, list):
                yield from ((f"{name}.{i}", m) for i, m in enumerate(value) if isinstance(m, Module))

    def named_modules(self, prefix: str = "") -> Iterator[tuple[str, "Module"]]:
        """(path, module) of this module, whose path is the prefix, and of all in it."""
        yield prefix, self
        for name, child in self.children():
            yield from child.named_modules(f"{prefix}.{name}" if prefix else name)

    def named_parameters(self) -> Iterator[tuple[str, Parameter]]:
        """(name, parameter), a shared one once, under its first name."""
        seen = set()
        for path, module in self.named_modules():
            for name, value in vars(module).items():
                if isinstance(value, Parameter) and id(value) not in seen:
                    seen.add(id(value))
                    yield f"{path}.{name}" if path else name, value

    def generators(self) -> list[np.random.Generator]:
        """Those that its modules draw from (dropout's), each once."""
        found = [v for _, module in self.named_modules() for v in vars(module).values()]
        return list({id(v): v for v in found if isinstance(v, np.random.Generator)}.values())

    def parameters(self) -> list[Parameter]:
        """All parameters, a shared one once."""
        return [p for _, p in self.named_parameters()]

    def trainable(self) -> dict[str, Parameter]:
        """Name -> parameter, of those that require a gradient."""
        return {name: p for name, p in self.named_parameters() if p.requires_grad}

    def get_submodule(self, path: str) -> "Module":
        """The module of a path. Raises KeyError."""
        return dict(self.named_modules())[path]

    def set_submodule(self, path: str, module: "Module"):
        """Put `module` where the one of that path is."""
        parent, _, name = path.rpartition(".")
        modules = dict(self.named_modules())
        if parent in modules:
            setattr(modules[parent], name, module)
        else:  # in a list
            owner, _, attribute = parent.rpartition(".")
            getattr(modules[owner], attribute)[int(name)] = module

    @property
    def xp(self):
        """The library, numpy or cupy, that the weights are arrays of."""
        return array_namespace(*(p.data for p in self.parameters()), *(q.packed for q in self.quantized().values()))

    def to(self, device: str) -> "Module":
        """Move all weights, quantized ones too, to the GPU ("cuda") or to the host's memory ("cpu"). In place.

        An optimizer's state stays where it is: make the optimizer afterwards. Raises BackendError."""
        for value in vars(self).values():
            if isinstance(value, Parameter):
                value.to(device)
        if hasattr(self, "quantized_weight"):
            self.quantized_weight = self.quantized_weight.to(device)
        for _, child in self.children():
            child.to(device)
        return self

    def state_dict(self) -> dict[str, np.ndarray]:
        """name -> NumPy array (shared, not copied, where the parameter is NumPy's)."""
        return {name: to_numpy(p.data) for name, p in self.named_parameters()}

    def load_state_dict(self, arrays: dict[str, np.ndarray]):
        """Take every parameter's values from `arrays` (cast to the parameter's dtype); names and shapes must match."""
        own = dict(self.named_parameters())
        missing, unexpected = own.keys() - arrays.keys(), arrays.keys() - own.keys()
        wrong = [n for n in own.keys() & arrays.keys() if own[n].shape != arrays[n].shape]
        if missing or unexpected or wrong:
            n = sorted(missing or unexpected or wrong)
            what = "are missing" if missing else "are not in the model" if unexpected else "have another shape"
            first = n[0]
            detail = (
                f": {arrays[first].shape}, the model's is {own[first].shape}" if n is wrong or first in wrong else ""
            )
            raise FileFormatError(f"{len(n)} tensors {what}, the first {first!r}{detail}")
        for name, p in own.items():
            p.data = like(np.array(to_numpy(arrays[name]), p.dtype), p.data)

    def requires_grad_(self, wanted: bool) -> "Module":
        """Freeze (False) or train (True) all parameters. In place; returns the module."""
        for p in self.parameters():
            p.requires_grad = wanted
        return self

    def train(self, mode: bool = True) -> "Module":
        """Turn on what is done in training alone, such as dropout; returns the module."""
        for _, module in self.named_modules():
            module.training = mode
        return self

    def eval(self) -> "Module":
        """The opposite of train()."""
        return self.train(False)

    def num_parameters(self) -> int:
        """Weights, quantized ones included."""
        return sum(p.size for p in self.parameters()) + sum(q.size for q in self.quantized().values())

    def memory_footprint(self) -> int:
        """Bytes of the weights as stored."""
        return sum(p.data.nbytes for p in self.parameters()) + sum(q.nbytes for q in self.quantized().values())

    def quantized(self) -> dict:
        """path -> QuantizedArray of the quantized layers."""
        found = {path: getattr(module, "quantized_weight", None) for path, module in self.named_modules()}
        return {path: q for path, q in found.items() if q is not None}
