"""get_peft_model: freeze a model and put adapters beside its layers.

model = get_peft_model(model, LoraConfig(r=8, lora_alpha=16))
model.print_trainable_parameters()
model.save_pretrained("adapter")                 # PEFT's files
model.load_adapter("other", "other"); model.set_adapter(["default", "other"])      # both: their updates add
model(ids, adapter_names=["default", "__base__"])                                  # one for each row
with model.disable_adapter(): ...                # the base model again
base = model.merge_and_unload()                  # W₀ + ΔW, no adapter
"""

import dataclasses
from contextlib import contextmanager

import numpy as np

from minilora.errors import ConfigError, unknown_name
from minilora.lora import combine, files, folder, merge
from minilora.lora.attach import attach, check_beside, detach, lora_layers, wrappers
from minilora.lora.config import LoraConfig
from minilora.lora.container import check_adapter_name
from minilora.lora.fingerprint import fingerprint
from minilora.lora.layers import LoraLayer
from minilora.lora.rows import BASE
from minilora.lora.saved import TrainedBiases
from minilora.nn import Module, Parameter


class LoraModel(Module):
    """Holds the adapted model, so that parameter names begin as PEFT's do: base_model.model."""

    def __init__(self, model: Module):
        self.model = model


class PeftModel(Module):
    """A frozen model with adapters. What it lacks, such as loss or config, is the base model's."""

    def __init__(self, model: Module, config: LoraConfig, adapter_name="default", seed: int = 0, init: bool = True):
        _check_plain(model)
        self.peft_config: dict[str, LoraConfig] = {}
        self.biases: dict[str, TrainedBiases] = {}
        self.active_adapters: list[str] = []
        self.enabled = True
        self.fingerprint = fingerprint(model)
        self.base_model = LoraModel(model)
        self.add_adapter(adapter_name, config, seed, init)
        self.requires_grad_(False)
        self.set_adapter(adapter_name)

    def __getattr__(self, name: str):
        if name.startswith("__") or "base_model" not in vars(self):
            raise AttributeError(name)
        return getattr(self.get_base_model(), name)

    def get_base_model(self) -> Module:
        """The model that the adapters are in, its layers still with them."""
        return self.base_model.model

    def forward(self, *args, adapter_names: list[str] | None = None, **kwargs):
        """As the base model's. adapter_names: the adapter of each row of the batch, "__base__" for none."""
        if adapter_names is None:
            return self.get_base_model()(*args, **kwargs)
        with self._rows(adapter_names):
            return self.get_base_model()(*args, **kwargs)

    def adapters(self) -> dict[str, LoraLayer]:
        """The adapted layers, by path."""
        return lora_layers(self)

    def adapter_parameters(self, name: str) -> list[Parameter]:
        """All that an adapter trains: A, B and magnitudes, copies of modules, biases."""
        found = [p for layer in lora_layers(self).values() for p in layer.adapter_parameters(name)]
        for wrapper in wrappers(self).values():
            found += wrapper.modules_to_save[name].parameters() if name in wrapper.modules_to_save else []
        return found + (list(self.biases[name].parameters.values()) if name in self.biases else [])

    def trainable_parameters(self) -> tuple[int, int]:
        """(trainable, all) parameters; a 4-bit weight counts as one parameter."""
        return sum(p.size for p in self.trainable().values()), self.num_parameters()

    def print_trainable_parameters(self):
        """One line: how many parameters are trained, of how many, in per cent."""
        trainable, total = self.trainable_parameters()
        print(f"trainable params: {trainable:,} || all params: {total:,} || trainable%: {100 * trainable / total:.4f}")

    # Adding and choosing.

    def add_adapter(self, adapter_name: str, config: LoraConfig, seed: int = 0, init: bool = True):
        """Another adapter beside the same model, neither active nor trainable until set_adapter. Raises ConfigError."""
        if not isinstance(config, LoraConfig):
            raise ConfigError(f"an adapter's configuration is a LoraConfig, not a {type(config).__name__}")
        check_adapter_name(adapter_name)
        self._check_not_merged()
        if adapter_name in self.peft_config:
            raise ConfigError(f"there is an adapter {adapter_name!r}; delete_adapter() it, or choose another name")
        check_beside(config, list(self.peft_config.values()))
        if init and config.task_type is None and hasattr(self.get_base_model(), "new_cache"):
            config = dataclasses.replace(config, task_type="CAUSAL_LM")  # which PEFT then loads as such
        biases = attach(self.get_base_model(), adapter_name, config, np.random.default_rng(seed), init)
        if biases is not None:
            self.biases[adapter_name] = biases
        self.peft_config[adapter_name] = config
        for p in self.adapter_parameters(adapter_name):
            p.requires_grad = False
        self._apply()

    def set_adapter(self, adapter_name: str | list[str], is_trainable: bool = True):
        """Make one or several adapters active, their updates adding up, and only these trainable."""
        names = [adapter_name] if isinstance(adapter_name, str) else list(dict.fromkeys(adapter_name))
        if not names:
            raise ConfigError("set_adapter needs a name; with model.disable_adapter(): runs the base alone")
        self._check_not_merged()
        self._check_together(names)
        self.active_adapters = names
        for name in self.peft_config:
            for p in self.adapter_parameters(name):
                p.requires_grad = name in names and is_trainable
        self._apply()

    @property
    def active_adapter(self) -> str | list[str]:
        """The name of the active adapter; a list where several are added up."""
        return self.active_adapters[0] if len(self.active_adapters) == 1 else self.active_adapters

    def delete_adapter(self, adapter_name: str):
        """Forget an adapter. If no other was active, the first that is left becomes so."""
        self._check_known([adapter_name])
        self._check_not_merged()
        if len(self.peft_config) == 1:
            raise ConfigError(f"{adapter_name!r} is the only adapter; unload() gives the base model back")
        self._forget(adapter_name)
        self.set_adapter([n for n in self.active_adapters if n != adapter_name] or next(iter(self.peft_config)))

    def _forget(self, name: str):
        if name in self.biases:
            self.biases.pop(name).switch(False)
        detach(self.get_base_model(), name)
        del self.peft_config[name]

    def _check_known(self, names: list[str]):
        for name in names:
            if name not in self.peft_config:
                raise unknown_name("adapter", name, self.peft_config)

    def _check_together(self, names: list[str]):
        self._check_known(names)
        for path, wrapper in wrappers(self.get_base_model()).items():
            both = [name for name in names if name in wrapper.modules_to_save]
            if len(both) > 1:
                raise ConfigError(f"{' and '.join(both)} each have their own {path}: copies cannot be added up")

    def _check_not_merged(self):
        if any(layer.merged_adapters for layer in lora_layers(self).values()):
            raise ConfigError("an adapter is merged into the base; unmerge_adapter() first")

    def _parts(self) -> list:
        return [*lora_layers(self).values(), *wrappers(self).values()]

    def _apply(self):
        """Tell every part which adapters are active, and whether any is."""
        for part in self._parts():
            part.active_adapters, part.enabled = list(self.active_adapters), self.enabled
        for name, biases in self.biases.items():
            biases.switch(self.enabled and name in self.active_adapters)

    @contextmanager
    def disable_adapter(self):
        """Within it the model is its base, exactly; what PiSSA and OLoRA took out of the weight is put back by a
        product (within rounding), and LoftQ's base is the quantized weight."""
        before = [(part, part.enabled) for part in self._parts()]
        was, self.enabled = self.enabled, False
        self._apply()
        try:
            yield
        finally:
            self.enabled = was
            self._apply()
            for part, enabled in before:
                part.enabled = enabled

    @contextmanager
    def _rows(self, adapter_names: list[str]):
        adapter_names = _listed(adapter_names)
        self._check_not_merged()
        self._check_known([name for name in adapter_names if name != BASE])
        if any(name in self.biases for name in adapter_names):
            raise ConfigError("an adapter with biases of its own cannot be used for some rows of a batch only")
        in_use = [b for b in self.biases.values() if b.on]
        try:
            for part in self._parts():
                part.adapter_names = list(adapter_names)
            for biases in in_use:
                biases.switch(False)
            yield
        finally:
            for part in self._parts():
                part.adapter_names = None
            for biases in in_use:
                biases.switch(True)

    # Merging and combining.

    def merge_adapter(self, adapter_names: list[str] | None = None, requantize: bool = False):
        """Put W₀ + ΔW of the active (or the named) adapters in the layers' place, the base being kept.

        A quantized base is merged into floats. With requantize the sum is rounded to the base's code again; what then
        survives of ΔW is returned (merge.Survival) and warned of.
        """
        self._check_not_merged()
        names = self.active_adapters if adapter_names is None else _listed(adapter_names)
        self._check_together(names)
        return merge.report({p: merge.merge(m, p, names, requantize) for p, m in lora_layers(self).items()})

    def unmerge_adapter(self):
        """Undo merge_adapter: the very weights from before."""
        for layer in lora_layers(self).values():
            merge.unmerge(layer)

    def merge_and_unload(self, adapter_names: list[str] | None = None, requantize: bool = False) -> Module:
        """The base model with ΔW added to its weights and no adapter. requantize: as merge_adapter; what survived of
        each layer is left in `merge_survival` of the model."""
        names = self.active_adapters if adapter_names is None else _listed(adapter_names)
        self._check_together(names)
        self.unmerge_adapter()
        for name, biases in self.biases.items():
            biases.switch(name in names)
        return merge.merge_and_unload(self.get_base_model(), names, requantize)

    def unload(self) -> Module:
        """The base model without its adapters."""
        self.unmerge_adapter()
        for name in list(self.peft_config):
            self._forget(name)
        return self.get_base_model()

    def add_weighted_adapter(
        self, adapters: list[str], weights: list[float], adapter_name: str, combination_type: str = "svd",
        svd_rank: int | None = None, density: float | None = None, majority_sign_method: str = "total",
    ) -> combine.Combination:  # fmt: skip
        """A new adapter from Σ w ΔW of others (see combine.py), and how far it is from that sum."""
        self._check_known(adapters)
        options = {"rank": svd_rank, "density": density, "sign": majority_sign_method}
        return combine.add_weighted_adapter(self, adapters, weights, adapter_name, combination_type, options)

    # Files.

    def adapter_state_dict(self, adapter_name: str | None = None) -> dict[str, np.ndarray]:
        """The arrays of one adapter, the active one unless named, by their names in PEFT's files."""
        return folder.state_dict(self, adapter_name or self.active_adapters[0])

    def save_pretrained(self, save_directory, selected_adapters: list[str] | None = None, to_plain_lora: bool = False):
        """Write adapter_config.json and adapter_model.safetensors, read them again and compare.

        "default" goes into the folder itself, another adapter into one of its name within. An adapter that began as
        PiSSA or OLoRA is saved as it is: loading it takes the same part out of the base weight again, here and in PEFT.
        to_plain_lora writes BA - B₀A₀ instead, of rank 2 r, for the unchanged base. LoftQ's needs its quantized base.
        """
        names = list(self.peft_config) if selected_adapters is None else _listed(selected_adapters)
        self._check_known(names)
        for name in names:
            folder.save(self, save_directory, name, to_plain_lora)

    @classmethod
    def from_pretrained(
        cls, model: Module, folder_path, adapter_name: str = "default", is_trainable: bool = True,
        allow_other_base: bool = False,
    ) -> "PeftModel":  # fmt: skip
        """`model` with the adapter of a folder. Raises FileFormatError or ConfigError; `model` is then unchanged.

        is_trainable: False freezes it (PEFT's default). allow_other_base: go on where the file's fingerprint says that
        it was trained beside another base model.
        """
        _check_plain(model)
        arrays, config, trained_on = files.load_adapter(folder_path)
        folder.check(model, folder_path, arrays, config, trained_on, fingerprint(model), allow_other_base)
        peft = cls(model, config, adapter_name, init=False)
        folder.fill(peft, adapter_name, arrays)
        peft.set_adapter(adapter_name, is_trainable)
        return peft

    def load_adapter(self, folder_path, adapter_name: str, allow_other_base: bool = False):
        """Add the adapter of a folder under a name; set_adapter makes it active. Raises as from_pretrained."""
        arrays, config, trained_on = files.load_adapter(folder_path)
        model = self.get_base_model()
        folder.check(model, folder_path, arrays, config, trained_on, self.fingerprint, allow_other_base)
        self.add_adapter(adapter_name, config, init=False)
        folder.fill(self, adapter_name, arrays)


def _check_plain(model):
    if not isinstance(model, Module):
        raise ConfigError(f"adapters go beside a Module, such as load_model gives, not a {type(model).__name__}")
    if lora_layers(model) or wrappers(model):
        raise ConfigError("this model already has adapters; add_adapter() or load_adapter() one more, or "
                          "merge_and_unload() them first")  # fmt: skip


def _listed(names: str | list[str]) -> list[str]:
    names = [names] if isinstance(names, str) else list(names)
    if not names:
        raise ConfigError("name at least one adapter")
    return names


def get_peft_model(model: Module, config: LoraConfig, adapter_name: str = "default", seed: int = 0) -> PeftModel:
    """Freeze `model` and attach an adapter to its target layers (in place); seed draws what starts random."""
    return PeftModel(model, config, adapter_name, seed)
