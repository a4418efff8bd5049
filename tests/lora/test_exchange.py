"""Adapters in llama.cpp's and mlx-lm's files: by the formats' definitions, there and back, and what is refused."""

import json
import struct

import numpy as np
import pytest
from lora.cases import adapted, model, run
from models.test_gguf import write_model

from minilora import LoraConfig, PeftModel, get_peft_model, load_model, quantize_model
from minilora.errors import ConfigError, FileFormatError, MiniloraError, UnknownNameError
from minilora.files import load_safetensors, save_safetensors
from minilora.lora.exchange import load_gguf, load_mlx, save_gguf, save_mlx
from minilora.models.gguf import read_gguf, write_gguf
from minilora.nn import GPT2, CausalLM, ModelConfig, TransformerConfig

FORMATS = {"gguf": (save_gguf, load_gguf), "mlx": (save_mlx, load_mlx)}
VARIANTS = [
    {},
    {"target_modules": "all-linear", "use_rslora": True},
    {"rank_pattern": {"q_proj": 1, r"layers\.1\.mlp\.up_proj": 6}, "alpha_pattern": {"v_proj": 3.5}},
    {"layers_to_transform": [1], "lora_dropout": 0.25},
]
IDS = np.arange(10).reshape(2, 5)


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("fields", VARIANTS, ids=str)
def test_there_and_back(kind, fields, tmp_path, rng):
    save, load = FORMATS[kind]
    peft = adapted(rng, **fields)
    save(peft, tmp_path / "adapter")
    again = load(model(), tmp_path / "adapter")
    np.testing.assert_allclose(run(again), run(peft), atol=1e-6)
    assert again.adapters().keys() == peft.adapters().keys()
    for path, layer in again.adapters().items():
        np.testing.assert_allclose(layer.delta_weight(), peft.adapters()[path].delta_weight(), atol=1e-6)
    again.save_pretrained(tmp_path / "peft")
    np.testing.assert_array_equal(run(PeftModel.from_pretrained(model(), tmp_path / "peft")), run(again))


def test_an_untied_head_and_four_bits(tmp_path, rng):
    for kind, (save, load) in FORMATS.items():
        peft = adapted(rng, quantize_model(model(tie_word_embeddings=False)), target_modules=["lm_head", "k_proj"])
        save(peft, tmp_path / kind)
        again = load(quantize_model(model(tie_word_embeddings=False)), tmp_path / kind)
        np.testing.assert_allclose(run(again), run(peft), atol=1e-6)


def test_llama_cpp_s_definition(tmp_path, rng):
    """(alpha / r) B A added to the tensors of a GGUF file, as they lie there, is our merged model."""
    write_model(tmp_path / "base.gguf")
    base, _ = load_model(tmp_path / "base.gguf")
    peft = get_peft_model(base, LoraConfig(r=3, lora_alpha=5))
    for p in peft.trainable().values():
        p.data = p.data + 0.1 * rng.standard_normal(p.shape, np.float32)
    expected = run(peft)
    save_gguf(peft, tmp_path / "adapter.gguf")
    metadata, adapter = read_gguf(tmp_path / "adapter.gguf")
    assert metadata == {"general.architecture": "llama", "general.type": "adapter", "adapter.type": "lora",
                        "adapter.lora.alpha": 5.0}  # fmt: skip
    fields, tensors = read_gguf(tmp_path / "base.gguf")
    arrays = {name: read() for name, read in tensors.items()}
    for name in {name.rpartition(".")[0] for name in adapter}:
        A, B = adapter[f"{name}.lora_a"](), adapter[f"{name}.lora_b"]()
        assert len(A) == 3
        arrays[name] = arrays[name] + np.float32(5 / 3) * (B @ A)
    write_gguf(tmp_path / "merged.gguf", fields, arrays)
    merged, _ = load_model(tmp_path / "merged.gguf")
    np.testing.assert_allclose(run(merged), expected, atol=1e-5)


def test_llama_cpp_s_alpha_of_zero_means_a_scale_of_one(tmp_path, rng):
    A, B = rng.standard_normal((2, 16), np.float32), rng.standard_normal((16, 2), np.float32)
    tensors = {"blk.1.attn_v.weight.lora_a": A, "blk.1.attn_v.weight.lora_b": B}
    metadata = {"general.architecture": "llama", "general.type": "adapter", "adapter.type": "lora"}
    write_gguf(tmp_path / "a.gguf", metadata, tensors)
    (layer,) = load_gguf(model(), tmp_path / "a.gguf").adapters().values()
    np.testing.assert_allclose(layer.delta_weight(), B @ A, atol=1e-6)


def test_mlx_s_definition(tmp_path, rng):
    """y = W x + scale (x A) B, with A (d_in, r) and B (r, d_out)."""
    peft = adapted(rng, rank_pattern={"v_proj": 2})
    save_mlx(peft, tmp_path)
    fields = json.loads((tmp_path / "adapter_config.json").read_text())
    keys = ["mlp.up_proj", "self_attn.q_proj", "self_attn.v_proj"]
    parameters = {"rank": 4, "scale": 2.0, "dropout": 0.0, "keys": keys}
    assert fields == {"fine_tune_type": "lora", "num_layers": 2, "lora_parameters": parameters}
    arrays, base = load_safetensors(tmp_path / "adapters.safetensors")[0], model()
    for path, layer in base.named_modules():
        if f"{path}.lora_a" in arrays:
            A, B = arrays[f"{path}.lora_a"], arrays[f"{path}.lora_b"]
            assert A.shape == (layer.shape[1], 4) and B.shape == (4, layer.shape[0])
            layer.weight.data = layer.weight.data + 2 * (A @ B).T
    np.testing.assert_allclose(run(base), run(peft), atol=1e-5)


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.filterwarnings("ignore:the embedding and the head")
def test_what_the_files_cannot_hold_is_refused(kind, tmp_path):
    save, load = FORMATS[kind]
    for fields in ({"use_dora": True}, {"modules_to_save": ["norm"]}, {"init_lora_weights": "pissa"}):
        with pytest.raises(ConfigError, match="more than A and B"):
            save(adapted(**fields), tmp_path / "a")
    with pytest.raises(ConfigError, match=r"model\.embed_tokens is an embedding"):
        save(adapted(target_modules=["embed_tokens", "q_proj"]), tmp_path / "a")
    with pytest.raises(UnknownNameError, match="unknown adapter 'other'"):
        save(adapted(), tmp_path / "a", "other")
    gpt2 = GPT2(ModelConfig(20, 16, 64, 2, 4, max_position_embeddings=32))
    with pytest.raises(ConfigError, match="the family 'gpt2'; such files are read and written for llama"):
        load(gpt2, tmp_path / "a")
    broken = adapted()
    next(iter(broken.trainable().values())).data[0, 0] = np.nan
    with pytest.raises(ConfigError, match="not finite"):
        save(broken, tmp_path / "a")
    assert not any(tmp_path.iterdir())
    save(adapted(), tmp_path / "a")
    other = CausalLM(TransformerConfig(20, 32, 24, 2, 4, max_position_embeddings=32))
    with pytest.raises(FileFormatError, match=r"do not fit model\.layers\.0"):
        load(other, tmp_path / "a")
    with pytest.raises(FileFormatError, match="no linear layer of this model"):
        load(CausalLM(TransformerConfig(20, 16, 24, 1, 4, max_position_embeddings=32)), tmp_path / "a")
    load(other := model(), tmp_path / "a")
    with pytest.raises(ConfigError, match="already has adapters"):
        load(other, tmp_path / "a")
    (tmp_path / "file").touch()
    with pytest.raises(MiniloraError):
        save(adapted(), tmp_path / "file" / "a")


@pytest.mark.parametrize(
    ("metadata", "change", "message"),
    [
        ({"general.type": "model"}, {}, "is not a LoRA adapter: its general.type is 'model'"),
        ({"general.architecture": "qwen2"}, {}, "for the architecture 'qwen2'"),
        ({"adapter.lora.alpha": float("nan")}, {}, "adapter.lora.alpha is nan"),
        ({}, {"blk.0.attn_q.weight.lora_b": None}, "lacks one of blk.0.attn_q.weight.lora_a and"),
        ({}, {"blk.9.attn_q.weight.lora_a": np.ones((2, 16))}, "blk.9.attn_q.weight, which is no linear layer"),
        ({}, {"token_embd.weight.lora_a": np.ones((2, 16))}, "token_embd.weight, which is no linear layer"),
        ({}, {"blk.0.attn_q.weight.more": np.ones((2, 16))}, "blk.0.attn_q.weight.more, which is no part"),
        ({}, {"blk.0.attn_q.weight.lora_b": np.ones((16, 3))}, "do not fit"),
        ({}, {"blk.0.attn_q.weight.lora_b": np.ones((5, 2))}, "do not fit"),
        ({}, {"blk.0.attn_q.weight.lora_a": np.full((2, 16), np.inf)}, "no finite floating-point numbers"),
    ],
)
def test_gguf_files_that_do_not_fit(tmp_path, metadata, change, message):
    good = {"general.architecture": "llama", "general.type": "adapter", "adapter.type": "lora",
            "adapter.lora.alpha": 4.0}  # fmt: skip
    tensors = {"blk.0.attn_q.weight.lora_a": np.ones((2, 16)), "blk.0.attn_q.weight.lora_b": np.ones((16, 2))}
    write_gguf(tmp_path / "good.gguf", good, tensors)
    load_gguf(model(), tmp_path / "good.gguf")
    tensors = {name: array for name, array in (tensors | change).items() if array is not None}
    write_gguf(tmp_path / "bad.gguf", good | metadata, tensors)
    base = model()
    with pytest.raises(FileFormatError, match=message):
        load_gguf(base, tmp_path / "bad.gguf")
    get_peft_model(base, LoraConfig())  # it was left as it was
    data = (tmp_path / "good.gguf").read_bytes()
    for size in (0, 3, 40, len(data) - 1):
        (tmp_path / "cut.gguf").write_bytes(data[:size])
        with pytest.raises(FileFormatError):
            load_gguf(base, tmp_path / "cut.gguf")
    assert struct.unpack("<I", data[4:8]) == (3,)


@pytest.mark.parametrize(
    ("fields", "change", "message"),
    [
        ({"fine_tune_type": "dora"}, {}, "fine_tune_type='dora' is not implemented"),
        ({"lora_parameters": None}, {}, "is not mlx-lm's adapter configuration"),
        ({"lora_parameters": {"rank": 4, "scale": -1.0}}, {}, "scale is -1.0"),
        ({}, {"model.layers.0.mlp.up_proj.lora_b": None}, "lacks one of model.layers.0.mlp.up_proj.lora_a and"),
        ({}, {"model.layers.0.mlp.up_proj.m": np.ones(3, np.float32)}, "up_proj.m, which is no part of a LoRA"),
        ({}, {f"model.embed_tokens.lora_{k}": np.ones((4, 4), np.float32) for k in "ab"}, "no linear layer"),
    ],
)
def test_mlx_folders_that_do_not_fit(tmp_path, fields, change, message):
    save_mlx(adapted(), tmp_path)
    config, weights = tmp_path / "adapter_config.json", tmp_path / "adapters.safetensors"
    config.write_text(json.dumps(json.loads(config.read_text()) | fields))
    arrays = {name: a for name, a in (load_safetensors(weights)[0] | change).items() if a is not None}
    save_safetensors(weights, arrays)
    with pytest.raises((FileFormatError, ConfigError), match=message):
        load_mlx(model(), tmp_path)
