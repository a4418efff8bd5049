"""minilora: a small, correct, complete reference for LoRA and QLoRA in NumPy."""

from minilora import autograd, lora, nn, ops, quant
from minilora.autograd import Tensor, gradcheck, ledger, no_grad
from minilora.backend import use_backend
from minilora.backend.malloc import keep_freed_memory
from minilora.data.collate import DataCollatorForLanguageModeling
from minilora.errors import MiniloraError
from minilora.lora import LoraConfig, PeftModel, get_peft_model
from minilora.models.generate import generate, generate_batch
from minilora.models.registry import load_model
from minilora.nn import quantize_model
from minilora.quant import dequantize, quantize
from minilora.train.trainer import Trainer, TrainingArguments

keep_freed_memory()

__version__ = "0.1.0"
__all__ = [
    "DataCollatorForLanguageModeling", "LoraConfig", "MiniloraError", "PeftModel", "Tensor", "Trainer",
    "TrainingArguments", "autograd", "dequantize", "generate", "generate_batch", "get_peft_model", "gradcheck",
    "ledger", "load_model", "lora", "nn", "no_grad", "ops", "quant", "quantize", "quantize_model", "use_backend",
]  # fmt: skip
