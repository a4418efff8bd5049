"""From a paper's equation to the lines that compute it: the table of paper-to-code.md, made when the site is built.

    python docs/paper_index.py                  # prints the page

A place is "file:Name" or "file:Class.method"; its line is looked up in the source, so that it is always
the present one. tests/test_site.py holds every place to exist, and every paper that a docstring names to be here.
"""

import ast
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "minilora"

LORA, QLORA = "LoRA (Hu et al., 2021)", "QLoRA (Dettmers et al., 2023)"
INDEX = {  # paper -> (its arXiv number or place of publication, [(where in it, what, place)])
    LORA: ("2106.09685", [
        ("section 4.1, equation 3", "h = W₀ x + (α/r) B A x", "lora/layers.py:LoraLayer.forward"),
        ("section 4.1", "A random, B zero: the start is the base", "lora/init.py:initialise"),
        ("section 4.1", "α/r", "lora/config.py:LoraConfig.scale"),
        ("section 4.1, no latency", "W₀ + ΔW merged, and taken back", "lora/merge.py:merge"),
        ("section 4.2", "which matrices get an adapter", "lora/targets.py:find_targets"),
        ("section 5.1", "BitFit, PreEmbed, PreLayer, Adapter-H", "lora/baselines.py:tune"),
        ("section 7.2, equation 4", "φ(A, B, i, j), similarity of subspaces", "lowrank/compare.py:subspace_similarity"),
        ("section 7.3, table 7", "amplification factor", "lowrank/compare.py:amplification"),
        ("table 4", "ways to tune at one budget", "experiments/lora_table4.py:measure"),
        ("table 5", "which matrices", "experiments/lora_table5.py:measure"),
        ("table 6", "which rank", "experiments/lora_table6.py:measure"),
    ]),
    QLORA: ("2305.14314", [
        ("section 2, equation 1", "absmax int8", "backend/numpy.py:quantize_int8"),
        ("section 2, equation 2", "and back", "backend/numpy.py:dequantize_int8"),
        ("section 2, blocks", "one scale for each 64 weights", "quant/array.py:quantize"),
        ("section 3, equation 4", "NF4's levels from quantiles", "quant/codebooks.py:normal_float"),
        ("section 3, double quantization", "the scales in 8 bits", "quant/double.py:compress"),
        ("section 3, equation 6", "doubleDequant", "quant/array.py:QuantizedArray.dequantize"),
        ("section 3, equation 5", "Y = X doubleDequant(c₁, c₂, W) + s X L₁ L₂", "lora/layers.py:LoraLinear"),
        ("section 3, ∂X/∂W", "the gradient through the frozen base", "ops/linalg.py:linear_4bit"),
        ("section 3, paged optimizers", "state in pages", "train/paged.py:PagedAdamW"),
        ("figure 3", "quality against bits", "experiments/qlora_bits.py:measure"),
        ("table 3", "number formats before and after tuning", "experiments/qlora_table3.py:measure"),
    ]),
    "Intrinsic dimension (Li et al., 2018)": ("1804.08838", [
        ("equation 2", "θ = θ₀ + P θ_d", "lowrank/intrinsic.py:Subspace"),
        ("section 2", "the toy of ten equations", "lowrank/intrinsic.py:GroupSums"),
        ("section 3", "d90", "lowrank/intrinsic.py:smallest_d"),
        ("supplement S7", "dense, sparse and Fastfood projections", "lowrank/fastfood.py:SparseProjection"),
    ]),
    "Intrinsic dimension of fine-tuning (Aghajanyan et al., 2020)": ("2012.13255", [
        ("equation 3", "DID and SAID: one λ for each layer", "lowrank/intrinsic.py:displaced"),
    ]),
    "Fastfood (Le, Sarlós and Smola, 2013)": ("ICML 2013", [
        ("section 4", "M = H G Π H B", "lowrank/fastfood.py:Fastfood"),
        ("section 4", "Walsh-Hadamard in O(n log n)", "lowrank/fastfood.py:walsh_hadamard"),
    ]),
    "Best approximation of lower rank (Eckart and Young, 1936)": ("Psychometrika 1", [
        ("theorem", "the error of the best rank r", "lowrank/svd.py:eckart_young"),
    ]),
    "Randomized SVD (Halko, Martinsson and Tropp, 2009)": ("0909.4061", [
        ("algorithms 4.4 and 5.1", "a range found by random products", "lowrank/svd.py:randomized_svd"),
    ]),
    "Least squares quantization (Lloyd, 1982; Max, 1960)": ("IEEE IT 28", [
        ("method I", "levels of least error", "quant/lloyd.py:lloyd_max"),
    ]),
    "8-bit optimizers (Dettmers et al., 2021)": ("2110.02861", [
        ("section 2.2", "the dynamic map", "quant/codebooks.py:dynamic_map"),
        ("section 2.1", "Adam's state in blocks of 8 bits", "train/adamw8bit.py:AdamW8bit"),
    ]),
    "FP8 (Micikevicius et al., 2022)": ("2209.05433", [("table 1", "E4M3", "quant/codebooks.py:e4m3")]),
    "Integer arithmetic (Jacob et al., 2017)": ("1712.05877", [
        ("equation 1", "scale and zero point", "quant/int8.py:quantize_zeropoint"),
    ]),
    "rsLoRA (Kalajdzievski, 2023)": ("2312.03732", [("section 3", "α/√r", "lora/config.py:LoraConfig.scale")]),
    "DoRA (Liu et al., 2024)": ("2402.09353", [("equation 5", "magnitude and direction", "lora/dora.py:add_update")]),
    "PiSSA (Meng et al., 2024)": ("2404.02948", [("section 3", "the largest directions", "lora/init.py:_from_weight")]),
    "OLoRA (Büyükakyüz, 2024)": ("2406.01775", [("section 3", "a QR decomposition", "lora/init.py:_from_weight")]),
    "LoftQ (Li et al., 2023)": ("2310.08659", [("algorithm 1", "the quantizer's error", "lora/init.py:loftq")]),
    "ReLoRA (Lialin et al., 2023)": ("2307.05695", [("algorithm 1", "merge, begin anew", "train/relora.py:restart")]),
    "TIES (Yadav et al., 2023)": ("2306.01708", [("section 4", "trim, elect, merge", "lora/combine.py:ties")]),
    "Adapters (Houlsby et al., 2019)": ("1902.00751", [("section 2.1", "bottleneck", "lora/baselines.py:Bottleneck")]),
    "Prefix tuning (Li and Liang, 2021)": ("2101.00190", [("section 4", "prefix", "lora/baselines.py:PrefixBlock")]),
    "BitFit (Ben Zaken et al., 2021)": ("2106.10199", [("section 3", "biases alone", "lora/baselines.py:tune")]),
    "Attention Is All You Need (Vaswani et al., 2017)": ("1706.03762", [
        ("equation 1", "softmax(Q Kᵀ / √d) V", "ops/nn.py:attention"),
        ("section 3", "encoder and decoder", "nn/seq2seq.py:Seq2Seq"),
        ("section 3.5", "sines and cosines of the position", "nn/positions.py:sinusoidal_table"),
    ]),
    "Where LayerNorm stands (Xiong et al., 2020)": ("2002.04745", [("figure 1", "pre", "nn/transformer.py:Layer")]),
    "LLaMA (Touvron et al., 2023)": ("2302.13971", [("section 2.2", "the model", "nn/transformer.py:CausalLM")]),
    "StarCoder, SantaCoder (Li et al., 2023; Ben Allal et al., 2023)": ("2305.06161, 2301.03988", [
        ("architecture", "one key and value head", "nn/gpt2.py:GPTBigCode"),
    ]),
    "One write-head (Shazeer, 2019)": ("1911.02150", [("section 3", "multi-query", "nn/gpt2.py:GPTBigCode")]),
    "GQA (Ainslie et al., 2023)": ("2305.13245", [("section 2.2", "groups of query heads", "ops/nn.py:attention")]),
    "BLOOM (Le Scao et al., 2022)": ("2211.05100", [("section 3.2", "the model", "nn/bloom.py:Bloom")]),
    "ALiBi (Press et al., 2021)": ("2108.12409", [("section 3", "slopes", "nn/positions.py:alibi_slopes")]),
    "BERT (Devlin et al., 2018)": ("1810.04805", [("section 3", "the encoder", "nn/encoder.py:BertModel")]),
    "Sentence-BERT (Reimers and Gurevych, 2019)": ("1908.10084", [("section 3", "mean", "models/embed.py:embed")]),
    "RoPE (Su et al., 2021)": ("2104.09864", [("equation 34", "rotated pairs", "ops/nn.py:rope")]),
    "Position interpolation; Llama 3 (Chen et al., 2023; 2024)": ("2306.15595, 2407.21783", [
        ("section 2.3", "longer contexts", "nn/positions.py:RopeScaling"),
    ]),
    "RMSNorm (Zhang and Sennrich, 2019)": ("1910.07467", [("equation 4", "x / rms(x)", "ops/nn.py:rms_norm")]),
    "LayerNorm (Ba et al., 2016)": ("1607.06450", [("equation 3", "normalised rows", "ops/nn.py:layer_norm")]),
    "GELU (Hendrycks and Gimpel, 2016)": ("1606.08415", [("section 2", "x Φ(x)", "ops/elementwise.py:gelu")]),
    "SwiGLU (Shazeer, 2020)": ("2002.05202", [("equation 5", "silu(a) u", "ops/elementwise.py:swiglu")]),
    "Dropout (Hinton et al., 2012)": ("1207.0580", [("section 1", "dropped at random", "ops/nn.py:dropout")]),
    "Online softmax (Milakov and Gimelshein, 2018)": ("1805.02867", [
        ("algorithm 3", "in one pass over the row", "backend/cuda/rows.py:softmax"),
    ]),
    "Sublinear memory (Chen et al., 2016)": ("1604.06174", [
        ("section 4", "layers computed again", "autograd/checkpoint.py:checkpoint"),
    ]),
    "Mixed precision (Micikevicius et al., 2017)": ("1710.03740", [
        ("section 3.2", "the loss is scaled", "train/precision.py:Precision"),
    ]),
    "AdamW (Loshchilov and Hutter, 2017)": ("1711.05101", [("algorithm 2", "the update", "train/optim.py:AdamW")]),
    "Muon (Liu et al., 2025)": ("2502.16982", [("section 2", "orthogonal updates", "train/muon.py:Muon")]),
    "Induction heads (Olsson et al., 2022)": ("2209.11895", [("copying", "", "data/pretrain.py:PretrainingBatches")]),
    "Nucleus sampling (Holtzman et al., 2019)": ("1904.09751", [("section 3", "top-p", "models/generate.py:_sample")]),
    "SQuAD 2.0 (Rajpurkar et al., 2018)": ("1806.03822", [
        ("section 5", "exact match and F1", "train/squad.py:squad"),
        ("section 3", "questions without an answer", "data/topics.py:write_squad"),
    ]),
    "ROUGE (Lin, 2004)": ("W04-1013", [("sections 2 and 3", "shared words, pairs, order", "train/rouge.py:rouge")]),
    "WikiSQL (Zhong et al., 2017)": ("1709.00103", [("stood for by", "a grammar", "data/grammar_sql.py:")]),
    "MultiNLI; annotation artifacts (Williams et al., 2017; Gururangan et al., 2018)": ("1704.05426, 1803.02324", [
        ("stood for by", "a grammar", "data/grammar_nli.py:"),
    ]),
    "SAMSum (Gliwa et al., 2019)": ("1911.12237", [("stood for by", "a grammar", "data/grammar_dialogue.py:")]),
}  # fmt: skip


def line(place: str) -> int:
    """The line where a place begins; 1 for a whole file. Raises KeyError where there is no such name."""
    file, _, name = place.partition(":")
    nodes = ast.parse((PACKAGE / file).read_text(encoding="utf-8")).body
    found = 1
    for part in filter(None, name.split(".")):
        named = {node.name: node for node in nodes if isinstance(node, (ast.FunctionDef, ast.ClassDef))}
        named |= {inner.name: inner for node in named.values() if isinstance(node, ast.ClassDef)
                  for inner in node.body if isinstance(inner, ast.FunctionDef) and inner.name not in named}  # fmt: skip
        found, nodes = named[part].lineno, named[part].body
    return found


def page() -> str:
    rows = []
    for paper, (number, entries) in INDEX.items():
        links = ", ".join(f"[{n}](https://arxiv.org/abs/{n})" if n[0].isdigit() else n for n in number.split(", "))
        for i, (where, what, place) in enumerate(entries):
            file, _, name = place.partition(":")
            code = f"`minilora/{file}:{line(place)}`" + f" `{name}`" * bool(name)
            rows.append(f"| {f'{paper} {links}' if not i else ''} | {where} | {what} | {code} |")
    head = "| paper | where in it | what | code |\n| --- | --- | --- | --- |\n"
    return f"""# From the papers to the code

Where an equation, an algorithm or a table of a paper is computed: file, line and name. Lines are those of this version.

{head}{chr(10).join(rows)}
"""


if __name__ == "__main__":
    print(page(), end="")
