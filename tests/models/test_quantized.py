"""4-bit models in folders: every family there and back bit for bit, and what is refused. (tests/peers compares with
transformers and bitsandbytes.)"""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minilora import LoraConfig, PeftModel, get_peft_model, load_model, no_grad, quantize_model
from minilora.errors import FileFormatError
from minilora.files import load_safetensors, save_safetensors
from minilora.models.checkpoint import save_folder
from minilora.nn import (
    GPT2,
    BertModel,
    Bloom,
    CausalLM,
    EncoderConfig,
    GPTBigCode,
    Linear,
    ModelConfig,
    QuantizedLinear,
    Seq2Seq,
    Seq2SeqConfig,
    TransformerConfig,
)

SIZES = {"vocab_size": 48, "hidden_size": 24, "intermediate_size": 96, "num_hidden_layers": 2,
         "num_attention_heads": 4, "max_position_embeddings": 32}  # fmt: skip
IDS = np.arange(4, 40).reshape(4, 9)
MODELS = {
    "llama": lambda **more: CausalLM(TransformerConfig(**SIZES, **more)),
    "qwen2": lambda **more: CausalLM(TransformerConfig(**SIZES, bias="qkv", tie_word_embeddings=False, **more)),
    "gpt2": lambda **more: GPT2(ModelConfig(**SIZES, **more)),
    "gpt_bigcode": lambda **more: GPTBigCode(ModelConfig(**SIZES, num_key_value_heads=1, **more)),
    "bloom": lambda **more: Bloom(ModelConfig(**SIZES, **more)),
    "bert": lambda **more: BertModel(EncoderConfig(**SIZES, **more)),
    "marian": lambda **more: Seq2Seq(Seq2SeqConfig(**SIZES, pad_token_id=3, **more)),
}


def logits(model, ids=IDS) -> np.ndarray:
    with no_grad():
        return (model(ids, ids[:, ::-1]) if isinstance(model, Seq2Seq) else model(ids)).data


def tensors(folder) -> dict:
    return load_safetensors(folder / "model.safetensors")[0]


def changed(folder, *, fields=None, arrays=None):
    """The folder, other fields of its quantization_config or other tensors put in; None takes one away."""
    if fields is not None:
        config = json.loads((folder / "config.json").read_text())
        config["quantization_config"] = {k: v for k, v in (config["quantization_config"] | fields).items() if v != ""}
        (folder / "config.json").write_text(json.dumps(config))
    if arrays is not None:
        new = {k: a for k, a in (tensors(folder) | arrays).items() if a is not None}
        save_safetensors(folder / "model.safetensors", new)
    return folder


@pytest.mark.parametrize("name", MODELS)
@given(code=st.sampled_from(["nf4", "fp4"]), size=st.sampled_from([32, 64, 1024]), double_quant=st.booleans())
def test_there_and_back(tmp_path_factory, name, code, size, double_quant):
    folder, model = tmp_path_factory.mktemp("folder"), quantize_model(MODELS[name](), code, size, double_quant).eval()
    save_folder(model, None, folder)
    again, _ = load_model(folder)
    assert again.config == model.config and again.quantized().keys() == model.quantized().keys()
    assert all(again.quantized()[path] == q for path, q in model.quantized().items())
    np.testing.assert_array_equal(logits(again), logits(model))
    fields = json.loads((folder / "config.json").read_text())["quantization_config"]
    assert fields["bnb_4bit_quant_type"] == code and fields["bnb_4bit_use_double_quant"] == double_quant
    size_of = {key: array for key, array in tensors(folder).items() if array.dtype == np.uint8}
    packed = [size_of[f"{path}.weight"] for path in model.quantized()]
    assert all(p.shape == (-(-q.size // 2), 1) for p, q in zip(packed, model.quantized().values(), strict=True))


def test_layers_that_stay_float_are_named(tmp_path):
    model = quantize_model(MODELS["llama"](), skip=("lm_head", "mlp"))
    save_folder(model, None, tmp_path)
    fields = json.loads((tmp_path / "config.json").read_text())["quantization_config"]
    mlps = [f"model.layers.{i}.mlp.{n}_proj" for i in range(2) for n in ("gate", "up", "down")]
    assert fields["llm_int8_skip_modules"] == [*mlps, "lm_head"]
    again, _ = load_model(tmp_path)
    assert again.quantized().keys() == model.quantized().keys()
    np.testing.assert_array_equal(logits(again), logits(model.eval()))


def test_a_head_of_its_own_can_be_quantized_too(tmp_path):
    model = quantize_model(MODELS["qwen2"](), skip=()).eval()
    save_folder(model, None, tmp_path)
    again, _ = load_model(tmp_path)
    assert isinstance(again.lm_head, QuantizedLinear)
    np.testing.assert_array_equal(logits(again), logits(model))


def test_an_adapter_goes_on_beside_the_folder_s_weights(tmp_path, rng):
    """The base's fingerprint is the same; merging again and requantizing gives a folder too."""
    peft = get_peft_model(quantize_model(MODELS["gpt2"]()), LoraConfig(r=2)).eval()
    for p in peft.trainable().values():
        p.data = 0.1 * rng.standard_normal(p.shape, np.float32)
    peft.save_pretrained(tmp_path / "adapter")
    save_folder(quantize_model(MODELS["gpt2"]()), None, tmp_path / "base")
    again = PeftModel.from_pretrained(load_model(tmp_path / "base")[0], tmp_path / "adapter")
    np.testing.assert_array_equal(logits(again), logits(peft))
    assert again.fingerprint == peft.fingerprint
    with pytest.warns(UserWarning, match="rounding W"):
        merged = again.merge_and_unload(requantize=True)
    save_folder(merged, None, tmp_path / "merged")
    np.testing.assert_array_equal(logits(load_model(tmp_path / "merged")[0]), logits(merged))


def test_what_is_stored_in_bfloat16_is_read_as_float32(tmp_path):
    """Most folders are of such models: quant_state then says that dequantizing gives bfloat16."""
    model = quantize_model(MODELS["llama"]()).eval()
    save_folder(model, None, tmp_path)
    states = {key: json.loads(a.tobytes()) for key, a in tensors(tmp_path).items() if ".quant_state." in key}
    as_bfloat16 = {key: json.dumps(state | {"dtype": "bfloat16"}).encode() for key, state in states.items()}
    changed(tmp_path, arrays={key: np.frombuffer(text, np.uint8) for key, text in as_bfloat16.items()})
    again, _ = load_model(tmp_path)
    np.testing.assert_array_equal(logits(again), logits(model))


def test_several_files(tmp_path):
    model = quantize_model(MODELS["bloom"]()).eval()
    save_folder(model, None, tmp_path)
    arrays = tensors(tmp_path)
    names = sorted(arrays)
    parts = {f"model-{i}.safetensors": names[i::2] for i in range(2)}
    for file, keys in parts.items():
        save_safetensors(tmp_path / file, {key: arrays[key] for key in keys})
    index = {key: file for file, keys in parts.items() for key in keys}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    (tmp_path / "model.safetensors").unlink()
    np.testing.assert_array_equal(logits(load_model(tmp_path)[0]), logits(model))
    with pytest.raises(FileFormatError, match="a model in several files, which would be read instead"):
        save_folder(model, None, tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda model: quantize_model(model, "e2m1"), r"cannot read a layer like .*q_proj, QuantizedArray\(e2m1"),
        (lambda model: quantize_model(model, "int8", "row", False), "int8"),
        (lambda model: quantize_model(model, "nf4", 16), "blocksizes of 32 to 4096"),
        (lambda model: quantize_model(model, "nf4", "row"), "blocksizes of 32 to 4096"),
        (lambda model: quantize_model(model, "nf4", 64, "fp8"), "double_quant None or 'dynamic'"),
        (lambda model: quantize_model(quantize_model(model, skip=("lm_head", "mlp")), "fp4"),
         "quantized in 2 ways .fp4 with double_quant=dynamic, nf4 with"),
        (lambda model: quantize_model(model, double_quant=False).model, "a Decoder is of no family"),
    ],
)  # fmt: skip
def test_what_bitsandbytes_cannot_read_is_not_written(tmp_path, change, message):
    with pytest.raises(FileFormatError, match=message):
        save_folder(change(MODELS["llama"]()), None, tmp_path)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"quant_method": "gptq"}, "weights quantized by gptq are not read; bitsandbytes' 4 bits and float"),
        ({"quant_method": "awq"}, "by awq"),
        ({"load_in_8bit": True, "load_in_4bit": False}, "bitsandbytes in 8 bits"),
        ({"load_in_4bit": False}, "bitsandbytes without load_in_4bit"),
        ({"quant_method": "", "load_in_8bit": True}, "bitsandbytes in 8 bits"),
        ({"quant_method": "", "load_in_4bit": ""}, "by None"),
        ({"bnb_4bit_quant_storage": "bfloat16"}, "bnb_4bit_quant_storage = bfloat16"),
    ],
)
def test_other_kinds_are_refused_by_name(tmp_path, fields, message):
    save_folder(quantize_model(MODELS["llama"]()), None, tmp_path)
    with pytest.raises(FileFormatError, match=message) as error:
        load_model(changed(tmp_path, fields=fields))
    assert str(tmp_path) in str(error.value)


def test_a_configuration_that_is_no_object(tmp_path):
    save_folder(MODELS["llama"](), None, tmp_path)
    fields = json.loads((tmp_path / "config.json").read_text())
    for value, message in (("nf4", "quantization_config is 'nf4'"), ({"load_in_4bit": True}, "and no tensor is")):
        (tmp_path / "config.json").write_text(json.dumps(fields | {"quantization_config": value}))
        with pytest.raises(FileFormatError, match=message):
            load_model(tmp_path)


def test_older_folders_do_not_name_the_method(tmp_path):
    save_folder(quantize_model(MODELS["llama"]()), None, tmp_path)
    load_model(changed(tmp_path, fields={"quant_method": "", "bnb_4bit_quant_storage": ""}))


Q = "model.layers.0.self_attn.q_proj.weight"


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({f"{Q}.absmax": None}, f"{Q}.absmax is missing"),
        ({Q: None}, f"{Q} is missing"),
        ({f"{Q}.quant_state.bitsandbytes__nf4": None}, f"'{Q}' has shape"),
        ({f"{Q}.quant_state.bitsandbytes__nf4": np.zeros(9, np.uint8)}, "is not JSON"),
        ({"model.norm.weight": None}, "lacks tensor 'model.norm.weight'"),
        ({"model.extra.weight": np.zeros(3, np.float32)}, "1 tensors that the model lacks, the first 'model.extra"),
    ],
)
def test_damaged_folders(tmp_path, arrays, message):
    save_folder(quantize_model(MODELS["llama"]()), None, tmp_path)
    with pytest.raises(FileFormatError, match=message):
        load_model(changed(tmp_path, arrays=arrays))


def test_tensors_of_another_model(tmp_path):
    """A wider one's, and an embedding in 4 bits."""
    model = quantize_model(MODELS["llama"]())
    wide = quantize_model(CausalLM(TransformerConfig(**SIZES | {"intermediate_size": 128})))
    save_folder(wide, None, tmp_path)
    save_folder(model, None, tmp_path / "other")
    (tmp_path / "config.json").write_bytes((tmp_path / "other" / "config.json").read_bytes())
    with pytest.raises(FileFormatError, match=r"_proj.weight is quantized of shape .*128.*; config.json asks for"):
        load_model(tmp_path)
    arrays = tensors(tmp_path / "other")
    moved = {f"model.embed_tokens.weight{key.removeprefix(Q)}": a for key, a in arrays.items() if key.startswith(Q)}
    with pytest.raises(FileFormatError, match=r"embed_tokens.weight is quantized, and is not the weight of a linear"):
        load_model(changed(tmp_path / "other", arrays=moved))


def test_no_float_copy_of_a_quantized_weight_is_kept(tmp_path):
    save_folder(quantize_model(MODELS["llama"]()), None, tmp_path)
    model, _ = load_model(tmp_path)
    linear = [path for path, layer in model.named_modules() if isinstance(layer, Linear)]
    assert linear == ["lm_head"] and model.memory_footprint() < MODELS["llama"]().memory_footprint() / 2
