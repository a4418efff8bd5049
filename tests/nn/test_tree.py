"""The model as text, as the fourth seed prints it, and as a picture."""

from xml.etree import ElementTree

import pytest
from lora.cases import adapted, model

from minilora import LoraConfig, get_peft_model, quantize_model
from minilora.nn.gpt2 import GPTBigCode
from minilora.nn.language_model import ModelConfig
from minilora.nn.tree import tree
from minilora.viz.tree import Row, svg

BIGCODE = """\
PeftModel(
  (base_model): LoraModel(
    (model): GPTBigCodeForCausalLM(
      (transformer): GPTBigCodeModel(
        (wte): lora.Embedding(
          (base_layer): Embedding(20, 16)
          (lora_dropout): ModuleDict(
            (default): Dropout(p=0.1)
          )
          (lora_A): ModuleDict()
          (lora_B): ModuleDict()
          (lora_embedding_A): ParameterDict(  (default): Parameter containing: [float32 of size 4x20])
          (lora_embedding_B): ParameterDict(  (default): Parameter containing: [float32 of size 16x4])
        )
        (wpe): Embedding(32, 16)
        (drop): Dropout(p=0.2)
        (h): ModuleList(
          (0-1): 2 x GPTBigCodeBlock(
            (ln_1): LayerNorm((16,), eps=1e-05)
            (attn): GPTBigCodeAttention(
              (c_attn): lora.Linear(
                (base_layer): Linear(in_features=16, out_features=24, bias=True)
                (lora_dropout): ModuleDict(
                  (default): Dropout(p=0.1)
                )
                (lora_A): ModuleDict(
                  (default): Linear(in_features=16, out_features=4, bias=False)
                )
                (lora_B): ModuleDict(
                  (default): Linear(in_features=4, out_features=24, bias=False)
                )
                (lora_embedding_A): ParameterDict()
                (lora_embedding_B): ParameterDict()
              )
              (c_proj): Linear(in_features=16, out_features=16, bias=True)
              (attn_dropout): Dropout(p=0)
              (resid_dropout): Dropout(p=0.1)
            )
            (ln_2): LayerNorm((16,), eps=1e-05)
            (mlp): GPTBigCodeMLP(
              (c_fc): Linear(in_features=16, out_features=24, bias=True)
              (c_proj): Linear(in_features=24, out_features=16, bias=True)
              (act): GELUTanh()
              (dropout): Dropout(p=0.1)
            )
          )
        )
        (ln_f): LayerNorm((16,), eps=1e-05)
      )
      (lm_head): Linear(in_features=16, out_features=20, bias=False)
    )
  )
)"""


@pytest.mark.filterwarnings("ignore:the embedding and the head")
def test_the_tree_is_the_seed_s():
    base = GPTBigCode(ModelConfig(20, 16, 24, 2, 4, num_key_value_heads=1, max_position_embeddings=32,
                                  dropout=0.1, embedding_dropout=0.2))  # fmt: skip
    config = LoraConfig(r=4, lora_alpha=8, target_modules=["c_attn", "wte"], lora_dropout=0.1)
    assert repr(get_peft_model(base, config)) == BIGCODE


def test_the_tree_of_other_things():
    peft = adapted(base=quantize_model(model(tie_word_embeddings=False)), use_dora=True, modules_to_save=["lm_head"])
    peft.add_adapter("other", LoraConfig(r=2, target_modules=["k_proj"], layers_to_transform=[1]))
    text = repr(peft)
    for part in (
        "(base_layer): QuantizedLinear(in_features=16, out_features=16, bias=False, nf4, blocksize=64, ",
        "(lora_magnitude_vector): ParameterDict(  (default): Parameter containing: [float32 of size 16])",
        "(lm_head): ModulesToSaveWrapper(\n        (original_module): Linear(in_features=16, out_features=20, ",
        "(0): Layer(", "(1): Layer(", "(other): Linear(in_features=16, out_features=2, bias=False)", "Identity()",
    ):  # fmt: skip
        assert part in text


def test_counts_are_the_model_s():
    for base in (model(), quantize_model(model())):
        peft = adapted(base=base)
        node = tree(peft)
        trainable, total = peft.trainable_parameters()
        assert sum(node.counts.values()) == total and node.counts["trainable"] == trainable
        assert node.counts["quantized"] == sum(q.size for q in base.quantized().values())


@pytest.mark.parametrize("quantized", [False, True])
def test_the_picture(quantized):
    peft = adapted(base=quantize_model(model()) if quantized else model())
    picture = ElementTree.fromstring(peft._repr_svg_())
    trainable, total = peft.trainable_parameters()
    assert picture.find("{*}title").text == "The modules of PeftModel"
    assert picture.find("{*}desc").text == f"{total:,} parameters, of which {trainable:,} are trained"
    assert picture.get("role") == "img" and picture.get("aria-label") == (
        f"The modules of PeftModel: {picture.find('{*}desc').text}"
    )
    colours = {r.get("fill") for r in picture.findall("{*}rect")[3:]}
    assert any("orange" in c for c in colours) and any("grey" in c for c in colours)
    assert any("blue" in c for c in colours) == quantized
    texts = [t.text for t in picture.findall(".//{*}tspan")]
    assert {"0-1", "2 x Layer", "lora_A.default"} <= set(texts)
    _, _, width, height = map(float, picture.get("viewBox").split())
    for text in picture.findall("{*}text"):
        assert 0 <= float(text.get("x")) <= width and 0 <= float(text.get("y")) <= height


def test_rows_are_escaped_and_long_ones_cut():
    rows = [Row(0, "<a>", "&" * 200, "frozen", 5, 0), Row(1, "b", "", "", 3, 1)]
    picture = ElementTree.fromstring(svg(rows, '"<title>"'))
    texts = [t.text or "" for t in picture.findall(".//{*}tspan")]
    assert "<a>" in texts and any(t.startswith("&&") and t.endswith("…") for t in texts)
    assert ElementTree.fromstring(svg([], "nothing")).find("{*}desc").text == "0 parameters, of which 0 are trained"


def test_a_model_without_adapters_prints_its_tree_too():
    text = repr(GPTBigCode(ModelConfig(64, 32, 64, 2, 4, num_key_value_heads=1, max_position_embeddings=16)))
    assert text.startswith("GPTBigCodeForCausalLM(\n  (transformer): GPTBigCodeModel(\n    (wte): Embedding(64, 32)")
    assert (
        "(0-1): 2 x GPTBigCodeBlock(" in text and "(c_attn): Linear(in_features=32, out_features=48, bias=True)" in text
    )
