"""The code listings on LoRA in the documents that the project follows, run with its own API.

"Seed 000" and so on are those documents: PEFT with LoRA and QLoRA (000: BLOOM), a blog on LoRA and QLoRA (001: one
matrix), a lecture (002: tables of the LoRA paper, QLoRA's equation 5, an axolotl recipe), a blog with the printed tree
of StarCoder (004). The listings load models of billions of parameters; here are small ones of the same architecture.
Where a listing's number is checked, width, vocabulary and positions are the true model's divided by SCALE: an
adapter's parameters, r (d_in + d_out) for each layer, are proportional to them.
"""

import copy

import numpy as np
import pytest

import minilora as ml
from minilora.models.checkpoint import save_folder
from minilora.nn import Bloom, CausalLM, GPTBigCode, Linear, ModelConfig, Module, TransformerConfig

SCALE = 16
IDS = np.arange(1, 25).reshape(4, 6)
TIED = "ignore:the embedding and the head"


def logits(model, ids=IDS) -> np.ndarray:
    with ml.no_grad():
        return model(ids).data


def small_bloom() -> Bloom:
    return Bloom(ModelConfig(40, 16, 64, 2, 4, max_position_embeddings=32), seed=0)


def small_bigcode() -> GPTBigCode:
    """All dropouts as in the listing, 0.1."""
    return GPTBigCode(ModelConfig(40, 16, 64, 2, 4, num_key_value_heads=1, max_position_embeddings=32, dropout=0.1,
                                  attention_dropout=0.1, embedding_dropout=0.1), seed=0)  # fmt: skip


def small_llama() -> CausalLM:
    return CausalLM(TransformerConfig(40, 32, 48, 2, 4, num_key_value_heads=2, tie_word_embeddings=False), seed=0)


def train(peft, folder, **arguments) -> list[float]:
    """Losses of a short run on four texts, by the Trainer, whose save to `folder` is a part of it."""
    arguments = {"per_device_train_batch_size": 4, "max_steps": 20, "learning_rate": 1e-2} | arguments
    args = ml.TrainingArguments(output_dir=str(folder), **arguments)
    rows = [{"input_ids": row.tolist()} for row in IDS]
    collator = ml.DataCollatorForLanguageModeling(mlm=False)
    output = ml.Trainer(model=peft, train_dataset=rows, args=args, data_collator=collator).train()
    return [entry["loss"] for entry in output.log]


def check_listing(build, config: ml.LoraConfig, expected: dict[str, tuple[int, int]], folder, **arguments):
    """What every listing claims of its model and configuration. expected: adapted path -> (d_out, d_in)."""
    base = build()
    before, weights = logits(base), {name: a.copy() for name, a in base.state_dict().items()}
    peft = ml.get_peft_model(copy.deepcopy(base), config)
    adapters = peft.adapters()
    assert {path.removeprefix("base_model.model."): layer.shape for path, layer in adapters.items()} == expected
    assert peft.trainable_parameters()[0] == sum(config.r * (d_out + d_in) for d_out, d_in in expected.values())
    np.testing.assert_array_equal(logits(peft), before)  # BA = 0 at first

    def factors(k):
        return [layer.state("default")[layer.FILE_NAMES[k]].copy() for layer in adapters.values()]

    start = factors(0), factors(1)
    losses = train(peft, folder, **arguments)
    assert losses[-1] < losses[0] and np.isfinite(losses).all()
    for a, b in zip(start, (factors(0), factors(1)), strict=True):
        assert all(not np.array_equal(x, y) for x, y in zip(a, b, strict=True))  # all of A and all of B moved
    trained = logits(peft)
    assert np.abs(trained - before).max() > 1e-3
    with peft.disable_adapter():
        np.testing.assert_array_equal(logits(peft), before)  # the base was not touched

    assert {path.name for path in folder.iterdir()} >= {"adapter_config.json", "adapter_model.safetensors"}
    again = ml.PeftModel.from_pretrained(base, folder)
    np.testing.assert_array_equal(logits(again), trained)
    assert {n: p.data.tobytes() for n, p in again.trainable().items()} == {
        n: p.data.tobytes() for n, p in peft.trainable().items()
    }
    merged = again.merge_and_unload()
    np.testing.assert_allclose(logits(merged), trained, atol=1e-5)
    save_folder(merged, None, folder / "merged")
    np.testing.assert_array_equal(logits(ml.load_model(folder / "merged")[0]), logits(merged))
    unchanged = [name for name in weights if not name.removesuffix(".weight").endswith(tuple(expected))]
    assert all(np.array_equal(merged.state_dict()[name], weights[name]) for name in unchanged)


# Seed 000: BLOOM, query_key_value.

BLOOM = ml.LoraConfig(
    r=8,
    lora_alpha=16,
    target_modules=["query_key_value"],
    lora_dropout=0.05,
    bias="none",
    task_type="CAUSAL_LM",
)


def test_seed_000_s_listing(tmp_path):
    """With its Trainer's arguments, but for the number of steps (and fp16, which NumPy does not need)."""
    shapes = {f"transformer.h.{i}.self_attention.query_key_value": (3 * 16, 16) for i in range(2)}
    check_listing(small_bloom, BLOOM, shapes, tmp_path, gradient_accumulation_steps=4, warmup_steps=5, max_steps=40)


def test_seed_000_s_count_of_trainable_parameters(capsys):
    """r (d + 3 d) in each of bloom-3b's 30 blocks of width d = 2560."""
    peft = ml.get_peft_model(Bloom(ModelConfig(250880 // SCALE, 2560 // SCALE, 10240 // SCALE, 30, 32)), BLOOM)
    trainable, total = peft.trainable_parameters()
    assert SCALE * trainable == 2_457_600 == 30 * 8 * 4 * 2560
    assert trainable == total - sum(p.size for p in peft.parameters() if not p.requires_grad)
    peft.print_trainable_parameters()
    shown = f"trainable params: {trainable:,} || all params: {total:,} || trainable%: {100 * trainable / total:.4f}\n"
    assert capsys.readouterr().out == shown


# Seeds 000 and 001: one matrix of 512 x 512.


@pytest.mark.parametrize(("r", "trainable"), [(1, 1024), (2, 2048)])
def test_seeds_000_and_001_s_matrix(r, trainable):
    class One(Module):
        def __init__(self):
            self.W_O = Linear(512, 512, rng=np.random.default_rng(0))

    peft = ml.get_peft_model(One(), ml.LoraConfig(r=r, target_modules=["W_O"]))
    assert peft.trainable_parameters() == (trainable, 262_144 + trainable)
    assert {name.split(".")[-3]: p.shape for name, p in peft.trainable().items()} == {
        "lora_A": (r, 512),
        "lora_B": (512, r),
    }


def test_seed_001_s_adapter_is_a_module_of_its_own(tmp_path):
    """Two tasks, one base: each adapter is saved apart, and the base's weights never change."""
    base = small_llama()
    weights, before = {name: a.copy() for name, a in base.state_dict().items()}, logits(base)
    peft = ml.get_peft_model(base, ml.LoraConfig(r=2))
    train(peft, tmp_path / "first")
    first = logits(peft)
    peft = ml.get_peft_model(peft.unload(), ml.LoraConfig(r=2), seed=1)
    train(peft, tmp_path / "second")
    second = logits(peft)
    base = peft.unload()
    assert all(np.array_equal(base.state_dict()[name], a) for name, a in weights.items())
    np.testing.assert_array_equal(logits(base), before)
    peft = ml.PeftModel.from_pretrained(base, tmp_path / "first", "first")
    peft.load_adapter(tmp_path / "second", "second")
    np.testing.assert_array_equal(logits(peft), first)
    peft.set_adapter("second")
    np.testing.assert_array_equal(logits(peft), second)


# Seed 002: the LoRA paper's tables as arithmetic, QLoRA's layer, a recipe.


def gpt3(r: int, *names: str) -> int:
    """Trainable parameters of adapters on attention weights of GPT-3 175B, of 96 layers of width 12288."""
    config = TransformerConfig(2, 12288 // SCALE, 1, 1, 96, norm="layernorm", activation="gelu", positions="learned")
    peft = ml.get_peft_model(CausalLM(config), ml.LoraConfig(r=r, target_modules=list(names)))
    return 96 * SCALE * peft.trainable_parameters()[0]


@pytest.mark.parametrize(
    ("r", "names", "millions"),
    [
        (1, ("q_proj", "v_proj"), 4.7),  # table 4, the two rows of LoRA
        (8, ("q_proj", "v_proj"), 37.7),
        (8, ("q_proj",), 18.9),  # table 5, "18M" in each of its arms
        (8, ("k_proj",), 18.9),
        (8, ("v_proj",), 18.9),
        (8, ("o_proj",), 18.9),
        (4, ("q_proj", "k_proj"), 18.9),
        (4, ("q_proj", "v_proj"), 18.9),
        (2, ("q_proj", "k_proj", "v_proj", "o_proj"), 18.9),
    ],
)
def test_seed_002_s_tables_count_parameters(r, names, millions):
    assert gpt3(r, *names) == 96 * len(names) * 2 * 12288 * r
    assert round(gpt3(r, *names) / 1e6, 1) == millions


RECIPE = ml.LoraConfig(r=32, lora_alpha=16, lora_dropout=0.05, target_modules="all-linear")


@pytest.mark.filterwarnings("ignore:r=32")
def test_seed_002_s_recipe(tmp_path):
    """lora_r, lora_alpha, lora_dropout and lora_target_linear of the axolotl file, on a float base."""
    shapes = {
        f"model.layers.{i}.{name}": shape
        for i in range(2)
        for name, shape in {
            "self_attn.q_proj": (32, 32), "self_attn.k_proj": (16, 32), "self_attn.v_proj": (16, 32),
            "self_attn.o_proj": (32, 32), "mlp.gate_proj": (48, 32), "mlp.up_proj": (48, 32), "mlp.down_proj": (32, 48),
        }.items()
    }  # fmt: skip
    check_listing(small_llama, RECIPE, shapes, tmp_path)


@pytest.mark.filterwarnings("ignore:r=32")
def test_seed_002_s_layer_beside_four_bits(tmp_path):
    """load_in_4bit, and equation 5: Y = X doubleDequant(c1, c2, W) + X L1 L2, the second term times alpha / r."""
    peft = ml.get_peft_model(ml.quantize_model(small_llama(), "nf4", blocksize=64, double_quant=True), RECIPE)
    before = {path: layer.base_layer.quantized_weight.packed.copy() for path, layer in peft.adapters().items()}
    losses = train(peft, tmp_path)
    assert losses[-1] < losses[0]
    x = np.random.default_rng(0).standard_normal((3, 32), np.float32)
    for path, layer in peft.adapters().items():
        np.testing.assert_array_equal(layer.base_layer.quantized_weight.packed, before[path])
        if layer.shape[1] == 32:
            L1, L2 = layer.lora_A.weight.data.T, layer.lora_B.weight.data.T
            expected = x @ layer.base_layer.quantized_weight.dequantize().T + 16 / 32 * (x @ L1 @ L2)
            np.testing.assert_allclose(layer(ml.Tensor(x)).data, expected, atol=1e-5)
    again = ml.PeftModel.from_pretrained(ml.quantize_model(small_llama(), "nf4"), tmp_path)
    np.testing.assert_array_equal(logits(again), logits(peft))


# Seed 004: GPTBigCode (StarCoder), five kinds of layers, and the printed tree.

BIGCODE = ml.LoraConfig(
    r=16,
    lora_alpha=8,
    target_modules=["c_attn", "c_proj", "c_fc", "wte", "wpe"],
    lora_dropout=0.1,
    bias="none",
)


@pytest.mark.filterwarnings(TIED)
def test_seed_004_s_listing(tmp_path):
    block = {"attn.c_attn": (16 + 2 * 4, 16), "attn.c_proj": (16, 16), "mlp.c_fc": (64, 16), "mlp.c_proj": (16, 64)}
    shapes = {"transformer.wte": (16, 40), "transformer.wpe": (16, 32)}
    shapes |= {f"transformer.h.{i}.{name}": shape for i in range(2) for name, shape in block.items()}
    check_listing(small_bigcode, BIGCODE, shapes, tmp_path, max_steps=40)


def lines(name: str, kind: str, *parts: list[str], sizes: str = "") -> list[str]:
    """Of a part of the tree: "(name): kind(sizes)", or its parts indented."""
    head = f"({name}): {kind}(" if name else f"{kind}("
    return [head, *("  " + line for part in parts for line in part), ")"] if parts else [f"{head}{sizes})"]


def linear(name, d_in, d_out, bias=True):
    return lines(name, "Linear", sizes=f"in_features={d_in}, out_features={d_out}, bias={bias}")


def dropout(name):
    return lines(name, "Dropout", sizes="p=0.1")


def adapted(name, kind, base, *, A=(), B=(), embedding_A="", embedding_B=""):
    def parameter(shape):
        return f"  (default): Parameter containing: [float32 of size {shape}]" if shape else ""

    return lines(
        name,
        f"lora.{kind}",
        base,
        lines("lora_dropout", "ModuleDict", dropout("default")),
        lines("lora_A", "ModuleDict", *([linear("default", *A, bias=False)] if A else [])),
        lines("lora_B", "ModuleDict", *([linear("default", *B, bias=False)] if B else [])),
        lines("lora_embedding_A", "ParameterDict", sizes=parameter(embedding_A)),
        lines("lora_embedding_B", "ParameterDict", sizes=parameter(embedding_B)),
    )


def starcoder(r: int) -> list[str]:
    """The lines of the listing's two trees: r = 0 the base alone, else with adapters on the five kinds of layers."""

    def layer(name, d_in, d_out):
        base = linear("base_layer" if r else name, d_in, d_out)
        return adapted(name, "Linear", base, A=(d_in, r), B=(r, d_out)) if r else base

    def table(name, rows, d):
        base = lines("base_layer" if r else name, "Embedding", sizes=f"{rows}, {d}")
        sizes = {"embedding_A": f"{r}x{rows}", "embedding_B": f"{d}x{r}"}
        return adapted(name, "Embedding", base, **sizes) if r else base

    def norm(name):
        return lines(name, "LayerNorm", sizes="(128,), eps=1e-05")

    attention = lines("attn", "GPTBigCodeAttention", layer("c_attn", 128, 144), layer("c_proj", 128, 128),
                      dropout("attn_dropout"), dropout("resid_dropout"))  # fmt: skip
    mlp = lines("mlp", "GPTBigCodeMLP", layer("c_fc", 128, 512), layer("c_proj", 512, 128),
                lines("act", "GELUTanh"), dropout("dropout"))  # fmt: skip
    blocks = lines("0-23", "24 x GPTBigCodeBlock", norm("ln_1"), attention, norm("ln_2"), mlp)
    body = lines("transformer", "GPTBigCodeModel", table("wte", 3072, 128), table("wpe", 512, 128),
                 dropout("drop"), lines("h", "ModuleList", blocks), norm("ln_f"))  # fmt: skip
    model = lines("model" if r else "", "GPTBigCodeForCausalLM", body, linear("lm_head", 128, 3072, bias=False))
    return lines("", "PeftModel", lines("base_model", "LoraModel", model)) if r else model


@pytest.mark.filterwarnings(TIED)
def test_seed_004_s_trees():
    """Line by line, before and after. The listing's widths are 2048, 2304, 8192, 49152 tokens and 8192 positions."""
    dropouts = dict.fromkeys(("dropout", "attention_dropout", "embedding_dropout"), 0.1)
    model = GPTBigCode(ModelConfig(49152 // SCALE, 2048 // SCALE, 8192 // SCALE, 24, 16, num_key_value_heads=1,
                                   max_position_embeddings=8192 // SCALE, **dropouts))  # fmt: skip
    assert repr(model).split("\n") == starcoder(r=0)
    peft = ml.get_peft_model(model, BIGCODE)
    assert repr(peft).split("\n") == starcoder(r=16)
    block = (2048 + 2304) + (2048 + 2048) + 2 * (2048 + 8192)
    listed = 16 * (24 * block + (49152 + 2048) + (8192 + 2048))
    assert SCALE * peft.trainable_parameters()[0] == listed == 12_091_392


def test_seed_004_s_model_is_not_changed_by_what_its_copy_goes_through():
    """The listing adapts copy.deepcopy(model)."""
    model = small_bigcode()
    before = logits(model)
    peft = ml.get_peft_model(copy.deepcopy(model), ml.LoraConfig(r=2, target_modules=["c_attn"]))
    for p in peft.parameters():
        p.data += 1
    np.testing.assert_array_equal(logits(model), before)
    assert all(p.requires_grad for p in model.parameters())
