"""LoraConfig: which layers get an adapter, and of what size. Fields are PEFT's."""

from dataclasses import dataclass

from minilora.errors import ConfigError


@dataclass
class LoraConfig:
    """r: rank. lora_alpha: ΔW = (lora_alpha / r) B A. lora_dropout: on the adapter's input, in training.
    target_modules: "all-linear" (all but lm_head), a regular expression for whole paths, or names by which a layer's
    path ends. Raises ConfigError."""

    r: int = 8
    lora_alpha: float = 8
    target_modules: str | list[str] = "all-linear"
    lora_dropout: float = 0.0

    def __post_init__(self):
        if not (isinstance(self.r, int) and self.r > 0):
            raise ConfigError(f"r must be a positive integer, not {self.r!r}")
        if not self.lora_alpha > 0:
            raise ConfigError(f"lora_alpha must be positive, not {self.lora_alpha!r}")
        if not 0 <= self.lora_dropout < 1:
            raise ConfigError(f"lora_dropout must be in [0, 1), not {self.lora_dropout!r}")
        if not self.target_modules:
            raise ConfigError("target_modules is empty: name layers, or say 'all-linear'")

    @property
    def scaling(self) -> float:
        return self.lora_alpha / self.r
