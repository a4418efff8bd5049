"""LoRA: configuration, layers, the adapted model, PEFT's files."""

from minilora.lora.config import LoraConfig
from minilora.lora.layers import LoraLinear
from minilora.lora.model import PeftModel, find_targets, get_peft_model

__all__ = ["LoraConfig", "LoraLinear", "PeftModel", "find_targets", "get_peft_model"]
