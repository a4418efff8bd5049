"""The adapters of one layer, by name.

layer.lora_A["default"].weight          # its name in the model: "<path>.lora_A.default.weight", as in PEFT
"""

import re
from collections.abc import Iterator

import numpy as np

from minilora.backend import like, to_device, to_numpy
from minilora.errors import ConfigError
from minilora.lora.config import LoraConfig
from minilora.lora.rows import BASE
from minilora.nn import Module, Parameter


class ModuleDict(Module):
    """Modules by name. They are attributes, so that Module finds them."""

    def __setitem__(self, name: str, value: Module | Parameter):
        setattr(self, name, value)

    def __getitem__(self, name: str):
        if name not in self:
            raise KeyError(name)
        return vars(self)[name]

    def __delitem__(self, name: str):
        delattr(self, name)

    def __contains__(self, name: str) -> bool:
        return isinstance(vars(self).get(name), (Module, Parameter))

    def __iter__(self) -> Iterator[str]:
        return (name for name in vars(self) if name in self)

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __getattr__(self, name: str):
        """Where there is one adapter, its own: layer.lora_A.weight is layer.lora_A["default"].weight."""
        if name.startswith("__") or len(self) != 1:
            raise AttributeError(f"{name!r} of {len(self)} adapters ({', '.join(self)}): choose one by its name")
        return getattr(self[next(iter(self))], name)


class ParameterDict(ModuleDict):
    """Parameters by name."""

    def extra_repr(self) -> str:
        shapes = {name: "x".join(map(str, self[name].shape)) for name in self}
        return "".join(f"  ({n}): Parameter containing: [{self[n].dtype} of size {s}]" for n, s in shapes.items())


class AdapterHolder(Module):
    """A frozen layer, and what each adapter keeps beside it. What is computed with it: layers.py."""

    FILE_NAMES: tuple[str, str]  # of A and B in PEFT's files

    def __init__(self, base_layer: Module):
        self.base_layer = base_layer
        self.r, self.lora_alpha, self.scaling, self.dropout = {}, {}, {}, {}  # of each adapter
        self.lora_A, self.lora_B = ModuleDict(), ModuleDict()
        self.lora_embedding_A, self.lora_embedding_B = ParameterDict(), ParameterDict()
        self.lora_magnitude_vector = ParameterDict()  # DoRA's
        self.taken: dict[str, tuple[np.ndarray, np.ndarray]] = {}  # (s B, A) that an initialisation took out of W₀
        self.active_adapters: list[str] = []
        self.adapter_names: list[str] | None = None  # of the rows of this batch
        self.enabled = True
        self.merged_adapters: list[str] = []
        self.unmerged: dict[str, Module] = {}  # the base layer while another, merged one is in its place

    def __contains__(self, name: str) -> bool:
        return name in self.scaling

    def parts(self) -> tuple[ModuleDict, ...]:
        return (self.lora_A, self.lora_B, self.lora_embedding_A, self.lora_embedding_B, self.lora_magnitude_vector)

    def set_size(self, name: str, config: LoraConfig, path: str):
        r, alpha = config.size_at(path)
        self.r[name], self.lora_alpha[name], self.scaling[name] = r, alpha, config.scale(r, alpha)
        self.dropout[name] = config.lora_dropout

    def forget(self, name: str):
        for part in (self.r, self.lora_alpha, self.scaling, self.dropout, self.taken, *self.parts()):
            if name in part:
                del part[name]

    def adapter_parameters(self, name: str) -> list[Parameter]:
        found = [part[name] for part in self.parts() if name in part]
        return [p for value in found for p in ([value] if isinstance(value, Parameter) else value.parameters())]

    def state(self, name: str) -> dict[str, np.ndarray]:
        """One adapter's arrays by their names in PEFT's files, which lack the adapter's."""
        arrays = dict(zip(self.FILE_NAMES, (self.A(name).data, self.B(name).data), strict=True))
        if name in self.lora_magnitude_vector:
            arrays["lora_magnitude_vector"] = self.lora_magnitude_vector[name].data
        return {key: to_numpy(array) for key, array in arrays.items()}

    def load_state(self, name: str, arrays: dict[str, np.ndarray]):
        """Take arrays as `state` gives them, of the same shapes."""
        parameters = dict(zip(self.FILE_NAMES, (self.A(name), self.B(name)), strict=True))
        if name in self.lora_magnitude_vector:
            parameters["lora_magnitude_vector"] = self.lora_magnitude_vector[name]
        for key, p in parameters.items():
            p.data = like(arrays[key], p.data)

    def to(self, device: str) -> Module:
        """As every module, with what is kept aside."""
        for layer in self.unmerged.values():
            layer.to(device)
        self.taken = {n: tuple(to_device(part, device) for part in parts) for n, parts in self.taken.items()}
        return super().to(device)


def check_adapter_name(name: str):
    """Refuse a name that cannot be a part of a parameter's name, a folder's name, or an attribute."""
    if not isinstance(name, str) or not re.fullmatch(r"[\w-]+", name) or name == BASE or hasattr(ModuleDict(), name):
        raise ConfigError(
            f"an adapter's name is made of letters, digits, '_' and '-', and is not one that a module has; not {name!r}"
        )
