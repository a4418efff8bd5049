"""A 4-bit folder of ours loads in transformers with bitsandbytes, and one of theirs here: the same codes, constants and
logits. Compute is float32 on both sides, so that only the order of additions differs. Rows are whole blocks: others
bitsandbytes' CPU kernel dequantizes wrongly (docs/errata.md, 23)."""

import json

import numpy as np
import pytest

from minilora import load_model, no_grad, quantize_model
from minilora.files import load_safetensors
from minilora.models.checkpoint import save_folder

pytestmark = pytest.mark.peers

LLAMA = {"vocab_size": 64, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
         "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64}  # fmt: skip
GPT2 = {"vocab_size": 64, "n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 64}
HALVES = {f"{half}_{name}": n for half in ("encoder", "decoder")
          for name, n in (("layers", 2), ("ffn_dim", 128), ("attention_heads", 4))}  # fmt: skip
MARIAN = HALVES | {"vocab_size": 64, "d_model": 64, "max_position_embeddings": 64, "activation_function": "relu",
                   "scale_embedding": True, "pad_token_id": 0, "decoder_start_token_id": 0, "eos_token_id": 1,
                   "forced_eos_token_id": None}  # fmt: skip
MODELS = {
    "llama": ("LlamaForCausalLM", LLAMA),
    "llama, tied": ("LlamaForCausalLM", LLAMA | {"tie_word_embeddings": True}),
    "qwen2": ("Qwen2ForCausalLM", LLAMA),
    "mistral": ("MistralForCausalLM", LLAMA | {"sliding_window": None}),
    "gpt2": ("GPT2LMHeadModel", GPT2),
    "gpt_bigcode": ("GPTBigCodeForCausalLM", GPT2),
    "bloom": ("BloomForCausalLM", {"vocab_size": 64, "hidden_size": 64, "n_layer": 2, "n_head": 4}),
    "llama, wide": ("LlamaForCausalLM", LLAMA | {"hidden_size": 256, "intermediate_size": 256}),
    "bert": ("BertModel", {key: n for key, n in LLAMA.items() if key != "num_key_value_heads"}),
    "marian": ("MarianMTModel", MARIAN),
}
AUTO = {"marian": "AutoModelForSeq2SeqLM", "bert": "AutoModel"}
QUANTIZERS = [("nf4", 64, True), ("nf4", 64, False), ("fp4", 64, True), ("nf4", 32, True), ("nf4", 256, False)]


@pytest.fixture
def libraries():
    pytest.importorskip("bitsandbytes")
    return pytest.importorskip("torch"), pytest.importorskip("transformers")


def float_folder(libraries, name: str, folder):
    torch, transformers = libraries
    kind, fields = MODELS[name]
    cls = getattr(transformers, kind)
    torch.manual_seed(0)
    model = cls(cls.config_class(**fields))
    with torch.no_grad():
        for key, p in model.named_parameters():
            if "embed_positions" not in key:
                p.add_(0.1 * torch.randn(p.shape))
    model.save_pretrained(folder)


def logits(libraries, model, ids) -> np.ndarray:
    torch, _ = libraries
    with torch.no_grad(), no_grad():
        if not isinstance(model, torch.nn.Module):
            return model(*ids).data
        source, *target = (torch.from_numpy(i) for i in ids)
        output = model(input_ids=source, **({"decoder_input_ids": target[0]} if target else {}))
        return (output.logits if "logits" in output else output.last_hidden_state).numpy()


def same_logits(a: np.ndarray, b: np.ndarray):
    """Within 1e-5 of the largest; 4e-6 was measured, and 8e-7 where the model is not wide."""
    np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * np.abs(b).max())


def batch(name: str, rng) -> list[np.ndarray]:
    ids = [rng.integers(1, 64, (2, 50)), rng.integers(1, 64, (2, 30))]
    return ids if name == "marian" else ids[:1]


def loaded(libraries, name: str, folder, **options):
    """By transformers; nothing missing, nothing that it did not know. In float32 also on a CPU where bitsandbytes would
    use bfloat16."""
    _, transformers = libraries
    auto = getattr(transformers, AUTO.get(name, "AutoModelForCausalLM"))
    model, report = auto.from_pretrained(folder, device_map="cpu", output_loading_info=True, **options)
    assert not any(report[what] for what in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    for module in model.modules():
        module.support_avx512bf16_for_cpu = False
    return model.eval()


@pytest.mark.parametrize("name", MODELS)
def test_our_folder_there(tmp_path, rng, libraries, name):
    float_folder(libraries, name, tmp_path / "float")
    ours, _ = load_model(tmp_path / "float")
    quantize_model(ours, "nf4", double_quant=True)
    save_folder(ours, None, tmp_path / "ours")
    theirs = loaded(libraries, name, tmp_path / "ours")
    kinds = {path for path, module in theirs.named_modules() if type(module).__name__ == "Linear4bit"}
    assert kinds == ours.quantized().keys()
    for path, q in ours.quantized().items():
        weight = theirs.get_submodule(path).weight
        np.testing.assert_array_equal(weight.data.numpy().ravel(), q.packed)
        np.testing.assert_array_equal(weight.quant_state.absmax.numpy(), q.absmax_codes)
    ids = batch(name, rng)
    expected = logits(libraries, ours, ids)
    same_logits(logits(libraries, theirs, ids), expected)


@pytest.mark.parametrize(("code", "blocksize", "double_quant"), QUANTIZERS)
def test_every_way_to_quantize(tmp_path, rng, libraries, code, blocksize, double_quant):
    float_folder(libraries, "llama, wide", tmp_path / "float")
    ours, _ = load_model(tmp_path / "float")
    save_folder(quantize_model(ours, code, blocksize, double_quant), None, tmp_path / "ours")
    theirs, ids = loaded(libraries, "llama, wide", tmp_path / "ours"), batch("llama", rng)
    expected = logits(libraries, ours, ids)
    same_logits(logits(libraries, theirs, ids), expected)


@pytest.mark.parametrize("double_quant", [True, False])
@pytest.mark.parametrize("name", ["llama", "gpt2", "gpt_bigcode", "bloom"])
def test_their_folder_here(tmp_path, rng, libraries, name, double_quant):
    """And it is ours to the byte: tensors, and the fields that we write of config.json."""
    torch, transformers = libraries
    float_folder(libraries, name, tmp_path / "float")
    config = transformers.BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=double_quant,
        bnb_4bit_compute_dtype=torch.float32,
    )  # fmt: skip
    theirs = loaded(libraries, name, tmp_path / "float", quantization_config=config, dtype=torch.float32)
    theirs.save_pretrained(tmp_path / "theirs")
    again, _ = load_model(tmp_path / "theirs")
    ids = batch(name, rng)
    expected = logits(libraries, theirs, ids)
    same_logits(logits(libraries, again, ids), expected)

    ours = quantize_model(load_model(tmp_path / "float")[0], "nf4", double_quant=double_quant)
    save_folder(ours, None, tmp_path / "ours")
    (a, _), (b, _) = (load_safetensors(tmp_path / who / "model.safetensors") for who in ("ours", "theirs"))
    assert a.keys() == b.keys()
    for key in a:
        assert (a[key].dtype, a[key].shape) == (b[key].dtype, b[key].shape) or ".quant_state." in key
        if ".quant_state." in key:
            a_state, b_state = json.loads(a[key].tobytes()), json.loads(b[key].tobytes())
            if double_quant:  # the mean of absmax is added up in another order
                assert a_state.pop("nested_offset") == pytest.approx(b_state.pop("nested_offset"))
            assert a_state == b_state
        elif double_quant and key.endswith(".absmax"):  # and then a few are on the other side of a middle of two codes
            assert np.mean(a[key] != b[key]) < 0.02
        elif key.endswith(".nested_absmax"):
            np.testing.assert_allclose(a[key], b[key], rtol=1e-6)
        else:
            np.testing.assert_array_equal(a[key], b[key], err_msg=key)
    a, b = (json.loads((tmp_path / who / "config.json").read_text()) for who in ("ours", "theirs"))
    a, b = a["quantization_config"], b["quantization_config"]
    assert a.pop("llm_int8_skip_modules") == ["lm_head"] and not b.pop("llm_int8_skip_modules")  # by default the head
    assert a == {key: value for key, value in b.items() if not key.startswith("_")}
