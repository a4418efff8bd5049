"""Modules: layers, attention, decoders, an encoder, an encoder-decoder, and their quantization."""

from minilora.nn.bloom import Bloom
from minilora.nn.encoder import BertModel, EncoderConfig
from minilora.nn.gpt2 import GPT2, GPTBigCode
from minilora.nn.language_model import LanguageModel, ModelConfig
from minilora.nn.layers import Conv1D, Embedding, LayerNorm, Linear, QuantizedLinear, RMSNorm, Sequential
from minilora.nn.module import Module, Parameter
from minilora.nn.quantize import quantize_model
from minilora.nn.seq2seq import Seq2Seq, Seq2SeqConfig
from minilora.nn.transformer import CausalLM, TransformerConfig

__all__ = [
    "GPT2", "BertModel", "Bloom", "CausalLM", "Conv1D", "Embedding", "EncoderConfig", "GPTBigCode", "LanguageModel",
    "LayerNorm", "Linear", "ModelConfig", "Module", "Parameter", "QuantizedLinear", "RMSNorm", "Seq2Seq",
    "Seq2SeqConfig", "Sequential", "TransformerConfig", "quantize_model",
]  # fmt: skip
