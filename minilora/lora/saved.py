"""Parts of the base that are trained whole and saved with an adapter: modules_to_save, and biases.

Both leave the base as it was for every other adapter: a module is copied and the copy trained; a bias is exchanged for
the trained one while its adapter is in use.
"""

import copy

import numpy as np

from minilora.autograd import Tensor
from minilora.backend import like
from minilora.lora.container import ModuleDict
from minilora.lora.rows import by_rows
from minilora.nn import Module, Parameter


class ModulesToSaveWrapper(Module):
    """A module and its trained copies, one for each adapter that asked for it. Runs the copy of the active one."""

    def __init__(self, original_module: Module):
        self.original_module, self.modules_to_save = original_module, ModuleDict()
        self.active_adapters: list[str] = []
        self.enabled = True
        self.adapter_names: list[str] | None = None

    def add_adapter(self, name: str):
        self.modules_to_save[name] = copied(self.original_module)

    def module_for(self, names: list[str]) -> Module:
        """The copy of the one of `names` that has one; else the original."""
        return next((self.modules_to_save[n] for n in names if n in self.modules_to_save), self.original_module)

    def current(self) -> Module:
        return self.module_for(self.active_adapters if self.enabled else [])

    def forward(self, *args, **kwargs) -> Tensor:
        if self.adapter_names is None or not self.enabled:
            return self.current()(*args, **kwargs)
        return by_rows(self.adapter_names, lambda name, *rows: self.module_for([name])(*rows, **kwargs), *args)


class TrainedBiases:
    """Biases of the base that one adapter trains. switch(False) puts the base's own values back."""

    def __init__(self, parameters: dict[str, Parameter]):
        self.parameters, self.on = parameters, True
        self.kept: dict[str, np.ndarray] = {key: p.data.copy() for key, p in parameters.items()}

    def switch(self, on: bool):
        if on != self.on:
            for key, p in self.parameters.items():
                p.data, self.kept[key] = like(self.kept[key], p.data), p.data
            self.on = on

    def values(self) -> dict[str, np.ndarray]:
        """The trained values, whether or not they are in use."""
        return {key: p.data if self.on else self.kept[key] for key, p in self.parameters.items()}

    def set_values(self, values: dict[str, np.ndarray]):
        for key, p in self.parameters.items():
            if self.on:
                p.data = like(values[key].astype(p.dtype), p.data)
            else:
                self.kept[key] = values[key].astype(p.dtype)


def copied(module: Module) -> Module:
    """A module of the same kind with Parameters of its own."""
    new = copy.copy(module)
    for name, value in vars(module).items():
        if isinstance(value, Parameter):
            setattr(new, name, Parameter(value.data.copy()))
        elif isinstance(value, Module):
            setattr(new, name, copied(value))
        elif isinstance(value, list):
            setattr(new, name, [copied(v) if isinstance(v, Module) else v for v in value])
    return new
