"""minilora: a small, correct, complete reference for LoRA and QLoRA in NumPy."""

from minilora import quant
from minilora.errors import MiniloraError

__version__ = "0.1.0"
__all__ = ["MiniloraError", "quant"]
