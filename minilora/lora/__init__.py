"""LoRA: configuration, layers, the adapted model, PEFT's files; and the methods that it is compared with."""

from minilora.lora.baselines import load_tuned, tune
from minilora.lora.config import LoraConfig
from minilora.lora.exchange import load_gguf, load_mlx, save_gguf, save_mlx
from minilora.lora.fused import LoraMergedLinear
from minilora.lora.layers import LORA_LAYERS, LoraEmbedding, LoraLayer, LoraLinear
from minilora.lora.model import PeftModel, get_peft_model
from minilora.lora.targets import find_targets

__all__ = [
    "LORA_LAYERS", "LoraConfig", "LoraEmbedding", "LoraLayer", "LoraLinear", "LoraMergedLinear", "PeftModel",
    "find_targets", "get_peft_model", "load_gguf", "load_mlx", "load_tuned", "save_gguf", "save_mlx", "tune",
]  # fmt: skip
