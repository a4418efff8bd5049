"""Every figure of the documents that the project follows, computed from a definition where one can be.

    python tests/test_seed_figures.py > docs/seed-figures.md         # the page of these tables

A figure stands beside the file of its document (which is not in the repository), the place in our words, and what is
printed there. It is recomputed by minilora (a model is made, but not filled, and its parameters are counted) and must
round to the printed digits. What is printed wrongly must differ, in the way that is said; what cannot be computed is in
NOT_DERIVED with the reason.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

import minilora as ml
from minilora.errors import QuantizationError
from minilora.lora import LoraLinear
from minilora.lora.baselines import tune
from minilora.lowrank import eckart_young, row_reduce, svd, truncate
from minilora.memory import BUILT_IN, estimate, shape_of
from minilora.nn import CausalLM, Linear, TransformerConfig
from minilora.nn.layers import count_only
from minilora.quant import CODES
from minilora.quant.double import BLOCKSIZE
from minilora.tables import markdown_table
from minilora.train.schedule import learning_rate_factor

PAGE = Path(__file__).parents[1] / "docs" / "seed-figures.md"
PEFT, QLORA_BLOG = "000_637a8f70d5bdda6e.txt", "001_d4e41a7ad7cbfe3b.txt"
LECTURE, NOTES, STARCODER = "002_2178bfb1db0a1f07.txt", "003_85857a396970f55c.txt", "004_0b392914034a8ef3.txt"
UNITS = {"": 1, "bits": 1, "%": 0.01, "M": 1e6, "B": 1e9, "GB": 1e9, "MiB": 2**20, "GiB": 2**30}


class Figure(NamedTuple):
    """published: its digits, behind > or ≤ where it is a bound; or a list. digits: how many of them count, where those
    behind are only zeros of a round number."""

    file: str
    where: str
    what: str
    published: str | list
    ours: Callable
    unit: str = ""
    digits: int | None = None
    note: str = ""


class Misprint(NamedTuple):
    """ours: what should stand there; how: a computation that gives what does, if one is known."""

    file: str
    where: str
    what: str
    published: str | list
    ours: Callable
    how: Callable | None
    why: str
    unit: str = ""


def agrees(published: str | list, value, unit: str = "", digits: int | None = None) -> bool:
    """The value rounds to what is printed, and is on the printed side of a bound."""
    if isinstance(published, list):
        return published == value
    number, value = float(published.lstrip(">≤").replace(",", "")), value / UNITS[unit]
    if published[0] == "≤":
        return value <= number
    decimals = digits - 1 - math.floor(math.log10(number)) if digits else len(published.partition(".")[2])
    return round(value, decimals) == number and (published[0] != ">" or value > number)


# What is counted.


def skeleton(name: str, **changes):
    """A model of a published shape, whose weights take no memory."""
    family, config = BUILT_IN[name]
    with count_only():
        return family(dataclasses.replace(config, **changes), seed=None)


@functools.cache
def size(name: str) -> int:
    return shape_of(*BUILT_IN[name]).parameters


@functools.cache
def tuned(method: str, **options) -> int:
    """Parameters of GPT-3 175B that a method of table 4 trains."""
    return tune(skeleton("gpt3-175b"), method, **options).trainable_parameters()[0]


def gpt3_block() -> tuple[type[CausalLM], TransformerConfig]:
    """One of GPT-3's 96 blocks, with q, k, v and o apart, as the paper counts them."""
    c = BUILT_IN["gpt3-175b"][1]
    return CausalLM, TransformerConfig(c.vocab_size, c.hidden_size, c.intermediate_size, 1, c.num_attention_heads,
                                       norm="layernorm", activation="gelu", positions="learned")  # fmt: skip


@functools.cache
def gpt3_lora(r: int, *names: str) -> int:
    family, config = gpt3_block()
    with count_only():
        block = family(config, seed=None)
    peft = ml.get_peft_model(block, ml.LoraConfig(r=r, target_modules=[f"{name}_proj" for name in names]))
    return 96 * peft.trainable_parameters()[0]


ARMS = ((8, "q"), (8, "k"), (8, "v"), (8, "o"), (4, "q", "k"), (4, "q", "v"), (2, "q", "k", "v", "o"))  # of table 5


def one_budget() -> int:
    (count,) = {gpt3_lora(*arm) for arm in ARMS}
    return count


def matrix(r: int) -> int:
    """Of a LoRA layer on 512 x 512."""
    return sum(p.size for p in LoraLinear(Linear(512, 512), ml.LoraConfig(r=r), np.random.default_rng(0)).parameters()
               if p.size != 512 * 512)  # fmt: skip


def linears_in(part: str) -> int:
    return sum(part in path for path in shape_of(*gpt3_block()).linears)


def calculator(gib: float) -> float:
    """GiB that the memory calculator starts from, of Mistral 7B: float32 weights without the output head (a tied one
    has none of its own), and the cosines and sines of 32,768 positions that its code of then kept in each layer."""
    with count_only():
        body = CausalLM(TransformerConfig(32000, 4096, 14336, 32, 32, num_key_value_heads=8), seed=None)
    return gib * (4 * body.num_parameters() + 32 * 2 * 32768 * body.config.head_dim * 4)


def t5(layers: int, d: int, heads: int, ff: int) -> int:
    """T5 1.1: both embeddings; in encoder and decoder three attentions a layer and two gated MLPs (norms left out)."""
    return 2 * 32128 * d + layers * (3 * 4 * d * 64 * heads + 2 * 3 * d * ff)


def llama_65b(**more):
    return estimate(BUILT_IN["llama-65b"], dtype="bfloat16", **more)


def card_of_48() -> float:
    return llama_65b(adapter="qlora", r=8, checkpointing=True).peak


@functools.cache
def quantized(double: bool):
    x = np.random.default_rng(0).standard_normal(64 * 256 * 4, np.float32)
    return ml.quantize(x, "nf4", double_quant=double)


def constants(codes: bool = True, second: bool = True, double: bool = True) -> float:
    """Bits a weight that the constants take, or a part of them."""
    q = quantized(double)
    arrays = [q.absmax_codes] * codes + [q.absmax2] * second if double else [q.absmax]
    return 8 * sum(a.nbytes for a in arrays) / q.size


def saved() -> float:
    return constants(double=False) - constants()


def int8(*numbers) -> list[int]:
    return ml.quantize(np.float32(numbers), "int8", blocksize=None).packed.tolist()


def code_of(x: float, code: str) -> int:
    """Counted from 0, in a block whose absmax is 1."""
    return int(ml.quantize(np.float32([x, 1]), code).packed[0]) >> 4


def reduced(matrix) -> list:
    return [[[int(a) for a in row] for row in step.matrix] for step in row_reduce(matrix).steps]


@functools.cache
def starcoder():
    return skeleton("starcoder-1b")


@functools.cache
def adapted(name: str, r: int, targets: str | tuple[str, ...]):
    config = ml.LoraConfig(r=r, target_modules=targets if isinstance(targets, str) else list(targets))
    return ml.get_peft_model(skeleton(name), config)


STARCODER_TARGETS = ("c_attn", "c_proj", "c_fc", "wte", "wpe")


def base(path: str) -> list[int]:
    """What a module of StarCoder prints: (in, out) of a linear, (rows, width) of an embedding, a norm's width."""
    module = starcoder().get_submodule(path)
    return list(module.shape[::-1] if hasattr(module, "shape") else module.weight.shape)


def factors(path: str) -> list[list[int]]:
    """Of its adapter: A and B as printed, (in, out) of linears, the arrays' shapes of embeddings."""
    layer = adapted("starcoder-1b", 16, STARCODER_TARGETS).adapters()[f"base_model.model.transformer.{path}"]
    shapes = [list(layer.state("default")[name].shape) for name in layer.FILE_NAMES]
    return shapes if path in ("wte", "wpe") else [shape[::-1] for shape in shapes]


# What is printed.

TABLE4, TREE, LISTING = "LoRA, table 4 (GPT-3 175B)", "StarCoder-1B, printed modules", "StarCoder-1B, adapted, r = 16"
MATRIX, EXAMPLE = "LoRA on a matrix of 512 x 512", "int8, a worked example"
VECTORS = "256 vectors before the prompt and 8 after it"
FIGURES = [
    Figure(PEFT, MATRIX, "trained at r = 1", "1,024", lambda: matrix(1)),
    Figure(QLORA_BLOG, MATRIX, "trained at r = 2", "2,048", lambda: matrix(2)),
    Figure(QLORA_BLOG, MATRIX, "entries of the matrix", "262,144", lambda: Linear(512, 512).weight.size),
    Figure(PEFT, EXAMPLE, "range of the codes", [-127, 127], lambda: int8(-3, 3)),
    Figure(LECTURE, "QLoRA, equation 1", "range of the codes", [-127, 127], lambda: int8(-1, 1)),
    Figure(NOTES, "QLoRA, equation 1", "127 / absmax: the largest code", "127", lambda: max(int8(0.1, 7))),
    Figure(PEFT, EXAMPLE, "codes of -1024, 5, 2048, 256", [-64, 0, 127, 16], lambda: int8(-1024, 5, 2048, 256)),
    Figure(PEFT, "int8 with an outlier", "codes of 0 and 100 beside 100000", [0, 0], lambda: int8(0, 100, 100000)[:2]),
    Figure(PEFT, "models by name", "BLOOM-3B", "3", lambda: size("bloom-3b"), "B"),
    Figure(PEFT, "models by name", "LLaMA 7B", "7", lambda: size("llama-7b"), "B"),
    Figure(PEFT, "models by name", "LLaMA 65B", "65", lambda: size("llama-65b"), "B"),
    Figure(NOTES, "models by name", "LLaMA 65B", "65", lambda: size("llama-65b"), "B"),
    Figure(LECTURE, "models by name", "Llama 2 7B", "7", lambda: size("llama-7b"), "B", note="LLaMA's shape"),
    Figure(LECTURE, "models by name", "GPT-3 175B", "175", lambda: size("gpt3-175b"), "B"),
    Figure(STARCODER, "models by name", "StarCoder-1B", "1", lambda: size("starcoder-1b"), "B"),
    Figure(PEFT, "QLoRA, section 2", "LoRA parameters, 0.2 % of LLaMA 7B, in 16 bits", "26",
           lambda: 0.002 * size("llama-7b") * 2, "MiB", note="printed as MB; in 10⁶ bytes it would be 27"),
    *(Figure(file, "QLoRA, section 1", "fine-tuning LLaMA 65B in 16 bits", ">780",
             lambda: llama_65b(adapter="full").model_state, "GB", 2, "12 bytes a weight, without activations")
      for file in (PEFT, NOTES)),
    *(Figure(file, "QLoRA, section 1", "QLoRA on LLaMA 65B, on one card", "≤48", card_of_48, "GB",
             note="batch 1 of 512 tokens, checkpointing, r = 8 on all linear layers; with r = 64, whose adapters and "
                  "optimizer are float32 here and not paged, it would be "
                  f"{llama_65b(adapter='qlora', r=64, checkpointing=True).peak / 1e9:.1f}")
      for file in (PEFT, NOTES)),
    Figure(QLORA_BLOG, "NF4", "levels of a 4-bit code", "16", lambda: len(CODES["nf4"])),
    Figure(QLORA_BLOG, "16 even positions", "which of them 0.2121 takes, from 1", "10",
           lambda: code_of(0.2121, "linear16") + 1, note=f"in NF4 it would be {code_of(0.2121, 'nf4') + 1}"),
    Figure(QLORA_BLOG, "double quantization", "constants before it, a weight", "0.5",
           lambda: constants(double=False), "bits"),
    Figure(QLORA_BLOG, "double quantization", "constants before it, a million weights", "500,000",
           lambda: 1e6 * constants(double=False), "bits"),
    Figure(QLORA_BLOG, "double quantization", "constants after it, a weight", "0.127", constants, "bits"),
    Figure(QLORA_BLOG, "double quantization", "8-bit constants' part", "0.125",
           lambda: constants(second=False), "bits"),
    Figure(QLORA_BLOG, "double quantization", "second constants' part", "0.001953125",
           lambda: constants(codes=False), "bits"),
    Figure(NOTES, "QLoRA, section 1", "saved by double quantization, a weight", "0.37", saved, "bits"),
    Figure(NOTES, "QLoRA, section 1", "saved by double quantization, LLaMA 65B", "3",
           lambda: saved() / 8 * size("llama-65b"), "GB"),
    *(Figure(file, "QLoRA, section 3", what, published, ours, note="the default here")
      for file in (LECTURE, NOTES)
      for what, published, ours in (("weights a block", "64", lambda: quantized(True).blocksize),
                                    ("constants a block", "256", lambda: BLOCKSIZE))),
    Figure(NOTES, "LoRA, section 4.2", "matrices in a self-attention", "4", lambda: linears_in("self_attn")),
    Figure(NOTES, "LoRA, section 4.2", "matrices in an MLP", "2", lambda: linears_in("mlp")),
    Figure(LECTURE, "memory calculator", "inference", "32.99", lambda: calculator(1.2), "GiB",
           note="if the model, which is not named, is Mistral 7B in float32: 1.2 times its size; printed as GB"),
    Figure(LECTURE, "memory calculator", "training with Adam", "109.96", lambda: calculator(4), "GiB",
           note="likewise, 4 times: weights, gradients and two moments; printed as GB"),
    Figure(LECTURE, "rank by row reduction", "a 3 x 3 matrix after each step",
           [[[1, 2, 1], [0, 1, 3], [3, 5, 0]], [[1, 2, 1], [0, 1, 3], [0, -1, -3]],
            [[1, 2, 1], [0, 1, 3], [0, 0, 0]], [[1, 0, -5], [0, 1, 3], [0, 0, 0]]],
           lambda: reduced([[1, 2, 1], [-2, -3, 1], [3, 5, 0]])),
    Figure(LECTURE, TABLE4, "LoRA, r = 1 on q and v", "4.7", lambda: gpt3_lora(1, "q", "v"), "M"),
    Figure(LECTURE, TABLE4, "LoRA, r = 8 on q and v", "37.7", lambda: gpt3_lora(8, "q", "v"), "M"),
    Figure(LECTURE, TABLE4, "PreEmbed", "3.2", lambda: tuned("preembed", length=264), "M", note=VECTORS),
    Figure(LECTURE, TABLE4, "Adapter-H, r = 1", "7.1", lambda: tuned("adapter", r=1), "M"),
    Figure(LECTURE, TABLE4, "Adapter-H, r = 8", "40.1", lambda: tuned("adapter", r=8), "M"),
    *(Figure(LECTURE, "QLoRA, table 3", f"T5-{published}{unit}", published, functools.partial(t5, *shape), unit, digits,
             "T5 1.1; the first T5 has other sizes")
      for published, unit, digits, *shape in (("80", "M", 1, 8, 512, 6, 1024), ("250", "M", 2, 12, 768, 12, 2048),
                                              ("780", "M", 2, 24, 1024, 16, 2816), ("3", "B", 1, 24, 2048, 32, 5120),
                                              ("11", "B", 2, 24, 4096, 64, 10240))),
    Figure(STARCODER, TREE, "wte", [49152, 2048], lambda: base("transformer.wte")),
    Figure(STARCODER, TREE, "wpe", [8192, 2048], lambda: base("transformer.wpe")),
    Figure(STARCODER, TREE, "blocks", "24", lambda: len(starcoder().transformer.h)),
    *(Figure(STARCODER, TREE, path.rpartition("0.")[2], [2048], functools.partial(base, f"transformer.{path}"))
      for path in ("h.0.ln_1", "h.0.ln_2", "ln_f")),
    Figure(STARCODER, TREE, "c_attn", [2048, 2304], lambda: base("transformer.h.0.attn.c_attn"),
           note="16 heads of 128 for q, one each for k and v"),
    Figure(STARCODER, TREE, "attn.c_proj", [2048, 2048], lambda: base("transformer.h.0.attn.c_proj")),
    Figure(STARCODER, TREE, "c_fc", [2048, 8192], lambda: base("transformer.h.0.mlp.c_fc")),
    Figure(STARCODER, TREE, "mlp.c_proj", [8192, 2048], lambda: base("transformer.h.0.mlp.c_proj")),
    Figure(STARCODER, TREE, "lm_head", [2048, 49152], lambda: base("lm_head")),
    Figure(STARCODER, LISTING, "A and B of wte", [[16, 49152], [2048, 16]], lambda: factors("wte")),
    Figure(STARCODER, LISTING, "A and B of wpe", [[16, 8192], [2048, 16]], lambda: factors("wpe")),
    Figure(STARCODER, LISTING, "A and B of c_attn", [[2048, 16], [16, 2304]], lambda: factors("h.0.attn.c_attn")),
    Figure(STARCODER, LISTING, "A and B of attn.c_proj", [[2048, 16], [16, 2048]], lambda: factors("h.0.attn.c_proj")),
    Figure(STARCODER, LISTING, "A and B of c_fc", [[2048, 16], [16, 8192]], lambda: factors("h.0.mlp.c_fc")),
    Figure(STARCODER, LISTING, "A and B of mlp.c_proj", [[8192, 16], [16, 2048]], lambda: factors("h.23.mlp.c_proj")),
]  # fmt: skip

NUMBERS = [-1024, 5, 2048, 256]
EVEN = [-1, -0.8667, -0.7334, -0.6001, -0.4668, -0.3335, -0.2002, -0.0669,
        0.0664, 0.1997, 0.333, 0.4663, 0.5996, 0.7329, 0.8662, 1]  # fmt: skip


def untied_gpt3() -> int:
    return skeleton("gpt3-175b", tie_word_embeddings=False).num_parameters()


MISPRINTS = [
    Misprint(PEFT, EXAMPLE, "c = 127 / 2048", "0.62", lambda: 127 / max(map(abs, NUMBERS)),
             lambda: 10 * 127 / max(NUMBERS), "the decimal point is one place off"),
    Misprint(PEFT, EXAMPLE, "what the program there, round(i / c), returns", [-64, 0, 127, 16],
             lambda: [round(i / (127 / max(NUMBERS))) for i in NUMBERS],
             lambda: [round(i * (127 / max(NUMBERS))) for i in NUMBERS], "c multiplies; the codes printed are right"),
    Misprint(QLORA_BLOG, "NF4", "its 16 levels", EVEN, lambda: [round(float(x), 4) for x in CODES["nf4"]],
             lambda: [round(-1 + i * round(2 / 15, 4), 4) for i in range(15)] + [1],
             "these are even steps of 0.1333 (the last one longer), not quantiles of the normal distribution; none is "
             "zero"),
    Misprint(QLORA_BLOG, "4-bit integers", "the number above absmax in the scale", "16",
             lambda: round(1 / float(np.diff(CODES["int4"])[0])), lambda: len(CODES["linear16"]),
             "16 / absmax makes codes from -16 to 16, which are 33; four bits with a sign take 7 / absmax"),
    Misprint(QLORA_BLOG, "double quantization", "constants after it, a million weights", "125,000",
             lambda: 1e6 * constants(), lambda: 1e6 * constants(second=False),
             "the second constants, counted a line before, are left out", "bits"),
    Misprint(LECTURE, "QLoRA, section 3", "weights a block, on one of three slides", "∛4",
             lambda: quantized(True).blocksize, None, "64 was misread; a blocksize is a whole number"),
    Misprint(LECTURE, "LoRA, table 5", "parameters of each of the seven arms", "18", one_budget,
             lambda: 1e6 * (one_budget() // 1e6), "cut off, not rounded", "M"),
    Misprint(LECTURE, TABLE4, "BitFit", "14.2", lambda: tuned("bitfit"), lambda: 12 * 96 * 12288,
             "a block of GPT-2 has 11 d biases, its two norms' among them; 14.2 would be 12 d", "M"),
    Misprint(LECTURE, TABLE4, "PreLayer", "20.2", lambda: tuned("prelayer", length=16), None,
             "8 + 8 vectors in each of 96 blocks, by the paper's own formula", "M"),
    Misprint(LECTURE, TABLE4, "full fine-tuning", "175,255.8", lambda: size("gpt3-175b"), None,
             "174,600 in GPT-3's own paper, where the output head is the embedding; with a head apart it would be "
             f"{untied_gpt3() / 1e6:,.1f}, and {175255.8 - untied_gpt3() / 1e6:.1f} are still unexplained", "M"),
]  # fmt: skip


class Unprinted(NamedTuple):
    """What a program would print, whose output is not shown. other: the same count on another way."""

    file: str
    where: str
    peft: Callable
    other: Callable


UNPRINTED = [
    Unprinted(PEFT, "BLOOM-3B, r = 8 on query_key_value", lambda: adapted("bloom-3b", 8, ("query_key_value",)),
              lambda: estimate(BUILT_IN["bloom-3b"], "lora", r=8, target_modules=["query_key_value"]).adapters / 4),
    Unprinted(LECTURE, "Llama 2 7B, r = 32 on all linear layers", lambda: adapted("llama-7b", 32, "all-linear"),
              lambda: estimate(BUILT_IN["llama-7b"], "lora", r=32).adapters / 4),
    Unprinted(STARCODER, "StarCoder-1B, r = 16 on linear layers and embeddings",
              lambda: adapted("starcoder-1b", 16, STARCODER_TARGETS),
              lambda: estimate(BUILT_IN["starcoder-1b"], "lora", r=16).adapters / 4
                      + 16 * (49152 + 2048 + 8192 + 2048)),
]  # fmt: skip

TWICE = [  # accuracy, one arm, one place, there, another place, there, fluctuation that the paper gives
    ("WikiSQL", "q and v, r = 1", "table 4", 73.4, "table 6", 73.4, 0.5),
    ("MultiNLI", "q and v, r = 1", "table 4", 91.7, "table 6", 91.3, 0.1),
    ("WikiSQL", "q and v, r = 8", "table 4", 74.0, "table 6", 73.8, 0.5),
    ("MultiNLI", "q and v, r = 8", "table 4", 91.6, "table 6", 91.6, 0.1),
    ("WikiSQL", "q and v, r = 4", "table 5", 73.7, "table 6", 73.7, 0.5),
    ("MultiNLI", "q and v, r = 4", "table 5", 91.3, "table 6", 91.3, 0.1),
    ("WikiSQL", "q, k, v and o, r = 2", "table 5", 73.7, "table 6", 73.7, 0.5),
    ("MultiNLI", "q, k, v and o, r = 2", "table 5", 91.7, "table 6", 91.7, 0.1),
]
DISAGREE = [("MultiNLI", "q and v, r = 1")]

GPT3_RUNS = "measured on GPT-3 175B, whose weights are not public"
SETTINGS, FORMATS = "chosen, not computed", "names of formats, true by definition"
FURNITURE = "of the page, not of the method"
NOT_DERIVED = {
    (PEFT, "QLoRA, section 2: 567 MB of input gradients, LLaMA 7B"): "proportional to the tokens of a sequence, which "
    "are not given: adapters on q, k, v and o take 1 MiB a token in 16 bits, so that it would be 567 tokens",
    (PEFT, "QLoRA, section 2: LoRA weights of 0.2 %"): "called usual; neither rank nor layers are given",
    (PEFT, "Aghajanyan et al.: hundreds of millions of parameters, hundreds or thousands of examples"): "orders of "
    "magnitude, of no model in particular",
    (PEFT, "BLOOM-3B's program: r, alpha, dropout, batch, rate, 100 updates and 100 of warm-up"): SETTINGS
    + "; as long as the run, the warm-up ends with it, and half of the learning rate is the mean",
    (PEFT, "4, 8, 16 and 32 bits"): FORMATS,
    (PEFT, "dates, years, numbers of references"): FURNITURE,
    (QLORA_BLOG, "the weight 0.2121, blocks of 64 and 256, d x r, a model of a million parameters"): SETTINGS,
    (QLORA_BLOG, "int4, 8 bits, FP32"): FORMATS,
    (QLORA_BLOG, "dates, minutes to read, numbers of readers, counts of methods and steps"): FURNITURE,
    (LECTURE, "LoRA, table 4: WikiSQL, MNLI-m, SAMSum, and their fluctuations"): GPT3_RUNS,
    (LECTURE, "LoRA, table 5: WikiSQL and MultiNLI by matrices, and their deviations"): GPT3_RUNS,
    (LECTURE, "LoRA, table 6: WikiSQL and MultiNLI by rank"): GPT3_RUNS,
    (LECTURE, "QLoRA, table 3: RoBERTa-large and T5 by number format"): "measured, on models that are not in the "
    "package",
    (LECTURE, "LoRA's rank is usually between 1 and 32"): "a habit; the LoRA paper's table 6 goes to 64",
    (LECTURE, "Llama 2's recipe: r, alpha, dropout, share for validation, length of sequences"): SETTINGS,
    (LECTURE, "BF16, FP32, FP8, Int8, FP4, NF4, 4 and 8 bits"): FORMATS,
    (LECTURE, "numbers of slides, equations, figures and lines"): FURNITURE,
    (NOTES, "4 and 16 bits, BF16, FP8, FP32, Int8"): FORMATS,
    (STARCODER, "an order of magnitude more data than parameters; hundreds of millions of parameters"): "a rule of "
    "thumb, and orders of magnitude",
    (STARCODER, "StarCoder-1B's program: r, alpha, dropouts, eps of the norms"): SETTINGS,
    (STARCODER, "minutes to read, numbers of references"): FURNITURE,
}


# The tests.


def each(rows):
    return pytest.mark.parametrize("row", rows, ids=lambda row: f"{row.file[:3]}-{row.where}-{row[2]}"[:70])


@each(FIGURES)
def test_the_figure_is_what_is_computed(row):
    assert agrees(row.published, row.ours(), row.unit, row.digits), (row.file, row.what, row.published, row.ours())


@each(MISPRINTS)
def test_the_figure_is_wrong_in_the_way_that_is_said(row):
    if row.published != "∛4":
        assert not agrees(row.published, row.ours(), row.unit)
    assert row.how is None or agrees(row.published, row.how(), row.unit)


@each(UNPRINTED)
def test_two_counts_agree(row):
    assert row.peft().trainable_parameters()[0] == row.other()


@pytest.mark.parametrize("row", TWICE)
def test_what_is_printed_twice(row):
    dataset, arm, _, first, _, second, fluctuation = row
    assert (abs(first - second) > 2 * fluctuation) == ((dataset, arm) in DISAGREE)


def test_what_is_not_derived_has_a_reason_and_is_nowhere_else():
    assert all(why.strip() for why in NOT_DERIVED.values())
    places = [(row.file, f"{row.where}: {row.what}") for row in FIGURES + MISPRINTS]
    assert len(set(places)) == len(places) and not NOT_DERIVED.keys() & set(places)
    listed = {row.file for row in FIGURES + MISPRINTS}
    assert listed == {PEFT, QLORA_BLOG, LECTURE, NOTES, STARCODER} == {file for file, _ in NOT_DERIVED}


def test_the_notes_figures():
    """Figures that stand in reasons, not in a column."""
    per_token = 2 * 32 * sum(shape_of(*BUILT_IN["llama-7b"]).linears[f"model.layers.0.self_attn.{n}_proj"][1]
                             for n in "qkvo")  # fmt: skip
    assert per_token == 2**20  # 16 bits of each input, in 32 layers
    assert round(0.002 * size("llama-7b") * 2 / 1e6) == 27
    warm_up = [learning_rate_factor("linear", step, 100, warmup=100) for step in range(100)]
    assert max(warm_up) == warm_up[-1] == 1 and round(float(np.mean(warm_up)), 2) in (0.5, 0.51)
    assert len(np.unique(np.rint(16 * np.linspace(-1, 1, 999)))) == 33
    assert size("gpt3-175b") / 1e6 == pytest.approx(174_600, abs=50)
    full = estimate(BUILT_IN["llama-7b"], "full", dtype="float32")
    assert full.model_state == 4 * full.weights  # the calculator's "training with Adam"
    assert 0 not in EVEN and EVEN[-1] - EVEN[-2] > EVEN[1] - EVEN[0]
    with pytest.raises(QuantizationError):
        ml.quantize(np.zeros(8, np.float32), "nf4", 4 ** (1 / 3))


# Statements without a figure that are wrong there; docs/errata.md has more.


def test_u_is_not_made_of_eigenvectors_of_AtA():
    """In the description of the SVD, 000."""
    A = np.array([[1.0, 2.0], [0.0, 3.0]])
    U, S, Vt = svd(A)
    np.testing.assert_allclose(A @ A.T @ U, U * S**2, atol=1e-12)
    np.testing.assert_allclose(A.T @ A @ Vt.T, Vt.T * S**2, atol=1e-12)
    assert np.abs(A.T @ A @ U - U * S**2).max() > 1


def test_a_truncation_keeps_no_rows_of_u():
    """There too: with the first k rows of U and V as well, the shape of A is lost."""
    A = np.arange(12.0).reshape(4, 3) % 5
    U, S, V = truncate(A, 2)
    assert (U.shape, S.shape, V.shape) == ((4, 2), (2,), (2, 3))
    assert np.linalg.norm(A - truncate(A, 2).matrix()) == pytest.approx(eckart_young(A, 2).frobenius)
    assert ((U[:2] * S) @ V[:, :2]).shape == (2, 2) != A.shape


def test_the_first_factor_has_as_many_rows_as_x_has_columns():
    """Y = X W + s X L1 L2 with X (b, n), W (n, o), L1 (h, r), L2 (r, o), 003: where n is not h there is no product."""
    b, n, o, r = 4, 5, 3, 2
    layer = LoraLinear(Linear(n, o), ml.LoraConfig(r=r), np.random.default_rng(0))
    A, B = layer.lora_A.weight.data, layer.lora_B.weight.data
    assert (A.T.shape, B.T.shape) == ((n, r), (r, o)) and layer(ml.Tensor(np.ones((b, n), np.float32))).shape == (b, o)
    with pytest.raises(ValueError, match="matmul"):
        np.ones((b, n)) @ np.ones((n + 1, r))


# The page.


def shown(value, unit: str = "") -> str:
    if isinstance(value, list):
        return str(value)
    if isinstance(value, str):
        return f"{value} {unit}".strip()
    value = value / UNITS[unit] if unit else value
    return f"{value:,} {unit}".strip() if isinstance(value, int) else f"{value:,.7g} {unit}".strip()


def _cells(row: Figure | Misprint) -> tuple:
    return row.where, row.what, shown(row.published, row.unit), shown(row.ours(), row.unit)


def by_place(rows: list, cells: Callable) -> list[tuple]:
    """The same figure in two documents is one line of the page; lines of one place stand together."""
    lines = dict.fromkeys(cells(row) for row in rows)
    places = list(dict.fromkeys(line[0] for line in lines))
    return sorted(lines, key=lambda line: places.index(line[0]))


def page() -> str:
    figures = by_place(FIGURES, lambda f: (*_cells(f), f.note))
    wrong = by_place(MISPRINTS, lambda m: (*_cells(m), m.why))
    counts = []
    for row in UNPRINTED:
        some, total = row.peft().trainable_parameters()
        counts.append((row.where, f"{some:,}", f"{total:,}", f"{100 * some / total:.4f} %"))
    twice = [(f"{dataset}, {arm}", f"{first} ({place})", f"{second} ({other})", f"±{fluctuation}",
              "no" if (dataset, arm) in DISAGREE else "yes")
             for dataset, arm, place, first, other, second, fluctuation in TWICE]  # fmt: skip
    not_derived = dict.fromkeys((figure, why) for (_, figure), why in NOT_DERIVED.items())
    return f"""# Published figures recomputed

Papers on LoRA and QLoRA, and explanations of them, print figures that follow from a definition: how many parameters a
method trains, how many bytes a model takes, which code a number gets. Here each of those that the project's sources
print is computed again. Models are made without memory for their weights and counted, arrays are quantized and their
bytes counted. The tables are those of

    python tests/test_seed_figures.py

and the tests of that file hold every line of them: a figure must round to the digits that are printed.

## Recomputed

{markdown_table(("where", "figure", "printed", "here", ""), figures, "lrrl")}

M and B are 10⁶ and 10⁹, GB 10⁹ bytes, MiB and GiB 2²⁰ and 2³⁰ bytes. [a, b] of a layer is its inputs and outputs, of an
embedding its rows and columns.

## Printed otherwise

Where the printed figure does not follow, with what does, and how the printed one comes about if that is known.

{markdown_table(("where", "figure", "printed", "here", "why"), wrong, "lrrl")}

Statements without a figure are in [what is often said, and what holds](errata.md).

## Not printed

What `print_trainable_parameters()` says of the programs whose output is left out.

{markdown_table(("model and adapter", "trained", "all", "share"), counts)}

## Printed twice

Accuracies of one arm in two tables of the LoRA paper, in per cent. They agree if no more than both fluctuations apart.

{markdown_table(("arm", "once", "again", "fluctuation", "agree"), twice)}

## Not derived

{markdown_table(("figure", "why not"), list(not_derived), "l")}
"""


def test_the_page_is_these_tables():
    text = PAGE.read_text(encoding="utf-8")
    assert text == page(), f"write it again: python {Path(__file__).name} > {PAGE.name}"
    assert not any(file[:-4] in text or file[:3] + "_" in text for file, _ in NOT_DERIVED)


if __name__ == "__main__":
    print(page(), end="")
