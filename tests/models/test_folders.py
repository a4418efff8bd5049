"""Folders of every family: transformers' logits on tiny random weights (golden/make_families.py), the way back, and
what is refused."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minilora import load_model, no_grad, quantize_model
from minilora.errors import FileFormatError, MiniloraError
from minilora.files import load_safetensors, save_safetensors
from minilora.models.checkpoint import save_folder
from minilora.models.families import FAMILIES
from minilora.nn import GPT2, Bloom, CausalLM, GPTBigCode, Linear, ModelConfig, TransformerConfig
from minilora.nn.positions import RopeScaling
from minilora.nn.seq2seq import Seq2Seq, Seq2SeqConfig

FOLDER = Path(__file__).parents[1] / "golden" / "families"
SIZES = {"vocab_size": 48, "hidden_size": 24, "intermediate_size": 96, "num_hidden_layers": 2,
         "num_attention_heads": 4, "max_position_embeddings": 32}  # fmt: skip


def logits(model, arrays) -> np.ndarray:
    with no_grad():
        if "decoder_input_ids" in arrays:
            return model(arrays["input_ids"], arrays["decoder_input_ids"]).data
        return model(arrays["input_ids"]).data


def changed(tmp_path, name: str, fields: dict):
    """A copy of the golden folder with other fields in config.json; None takes one away."""
    shutil.copytree(FOLDER / name, tmp_path / name)
    before = json.loads((FOLDER / name / "config.json").read_text())
    fields = {key: value for key, value in (before | fields).items() if value is not None}
    (tmp_path / name / "config.json").write_text(json.dumps(fields))
    return tmp_path / name


def rewritten(tmp_path, name: str, change):
    """A copy of the golden folder with its tensors changed: change(arrays) -> arrays."""
    folder = changed(tmp_path, name, {})
    save_safetensors(folder / "model.safetensors", change(load_safetensors(folder / "model.safetensors")[0]))
    return folder


@pytest.mark.parametrize("name", FAMILIES)
def test_logits_are_transformers_logits_there_and_back(tmp_path, name):
    reference = dict(np.load(FOLDER / name / "reference_logits.npz"))
    model, tokenizer = load_model(FOLDER / name)
    assert tokenizer is None and type(model) is FAMILIES[name].model
    np.testing.assert_allclose(logits(model, reference), reference["logits"], atol=1e-4)
    save_folder(model, None, tmp_path)
    again, _ = load_model(tmp_path)
    assert again.config == model.config
    np.testing.assert_array_equal(logits(again, reference), logits(model, reference))


@pytest.mark.parametrize("name", ["llama", "gpt2", "bloom"])
def test_a_file_of_the_model_without_its_head(tmp_path, name):
    """As on the hub: GPT-2's names lack "transformer." and there is a causal mask; old LLaMAs hold frequencies."""

    def headless(arrays):
        arrays = {key.split(".", 1)[1] if key != "lm_head.weight" else key: a for key, a in arrays.items()}
        extra = {"gpt2": ["h.0.attn.bias", "h.1.attn.masked_bias"], "llama": ["layers.0.self_attn.rotary_emb.inv_freq"]}
        return arrays | {key: np.ones((1, 1, 4, 4), np.float32) for key in extra.get(name, [])}

    reference = dict(np.load(FOLDER / name / "reference_logits.npz"))
    model, _ = load_model(rewritten(tmp_path, name, headless))
    np.testing.assert_allclose(logits(model, reference), reference["logits"], atol=1e-4)


def test_berts_with_a_head_are_read_as_the_encoder_in_them(tmp_path):
    """Files of BertForPreTraining: "bert." before the names, heads beside, norms' weights as TensorFlow named them."""

    def pretraining(arrays):
        old = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}
        for new, name in old.items():
            arrays = {key.replace(new, name): array for key, array in arrays.items()}
        heads = {"cls.predictions.bias": np.ones(32, np.float32), "cls.seq_relationship.weight": np.ones((2, 16), "f4")}
        return {f"bert.{key}": array for key, array in arrays.items()} | heads

    reference = dict(np.load(FOLDER / "bert" / "reference_logits.npz"))
    model, _ = load_model(rewritten(tmp_path, "bert", pretraining))
    np.testing.assert_allclose(logits(model, reference), reference["logits"], atol=1e-4)
    with pytest.raises(FileFormatError, match=r"1 tensors that the model lacks, the first 'cls\.bias'"):
        load_model(rewritten(tmp_path / "other", "bert", lambda a: a | {"cls.bias": np.ones(2, np.float32)}))


def test_a_tied_head_in_the_file_must_be_the_embedding(tmp_path):
    def head(arrays):
        return arrays | {"lm_head.weight": arrays["transformer.wte.weight"]}

    def other_head(arrays):
        return arrays | {"lm_head.weight": arrays["transformer.wte.weight"] + np.float16(1)}

    load_model(rewritten(tmp_path / "same", "gpt2", head))
    with pytest.raises(FileFormatError, match=r"lm_head\.weight is not transformer\.wte\.weight"):
        load_model(rewritten(tmp_path / "other", "gpt2", other_head))


def test_marian_s_final_bias_is_read_only_where_it_is_zero(tmp_path):
    with pytest.raises(FileFormatError, match="1 tensors that the model lacks, the first 'final_logits_bias'"):
        load_model(rewritten(tmp_path, "marian", lambda a: a | {"final_logits_bias": np.ones((1, 32), np.float32)}))


@pytest.mark.parametrize(
    ("name", "fields", "message"),
    [
        ("llama", {"hidden_act": "gelu"}, "hidden_act = 'gelu' is not implemented; 'silu' is"),
        ("llama", {"mlp_bias": True}, "mlp_bias = True without attention_bias is not"),
        ("llama", {"rope_parameters": {"rope_type": "yarn", "factor": 4.0}}, "rope_scaling of rope_type 'yarn'"),
        ("llama", {"rope_scaling": {"type": "dynamic", "factor": 4.0}, "rope_parameters": None}, "'dynamic'"),
        ("llama", {"rope_parameters": {"rope_type": "longrope"}}, "'longrope' is not implemented; default, linear and"),
        ("llama", {"rope_parameters": {"rope_type": "llama3", "factor": 8}}, "lacks low_freq_factor, high_freq_factor"),
        ("llama", {"rope_parameters": {"rope_type": "linear", "factor": 0.5}}, "factor >= 1"),
        ("llama", {"rope_parameters": {"partial_rotary_factor": 0.5}}, "partial_rotary_factor = 0.5"),
        ("llama", {"quantization_config": {"load_in_4bit": True}}, "quantization_config"),
        ("llama", {"hidden_size": "wide"}, "cannot be built"),
        ("llama", {"num_attention_heads": 0}, "cannot be built"),
        ("llama", {"num_key_value_heads": 3}, "multiple of num_key_value_heads"),
        ("llama", {"num_hidden_layers": 10**9}, "impossible model"),
        ("mistral", {"sliding_window": 16}, "sliding_window = 16 is not implemented; with max_position"),
        ("mistral", {"max_position_embeddings": 8192}, "sliding_window = 4096"),  # the default of a file without it
        ("qwen2", {"use_sliding_window": True, "sliding_window": 8}, "sliding_window = 8"),
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx = True"),
        ("gpt2", {"scale_attn_weights": False}, "scale_attn_weights = False is not implemented; True is"),
        ("gpt2", {"add_cross_attention": True}, "add_cross_attention"),
        ("gpt2", {"activation_function": "mish"}, "activation_function = 'mish' is not implemented; gelu_new"),
        ("gpt2", {"n_embd": None}, "config.json lacks n_embd"),
        ("gpt_bigcode", {"multi_query": False}, "multi_query = False is not implemented; True is"),
        ("bloom", {"apply_residual_connection_post_layernorm": True}, "apply_residual_connection_post_layernorm"),
        ("marian", {"scale_embedding": None}, "scale_embedding = False is not implemented; True is"),
        ("marian", {"decoder_layers": 3}, "decoder_layers = 3 is not implemented; 2 is"),
        ("marian", {"activation_function": "swish"}, "activation_function = 'swish'"),
    ],
)
def test_what_would_change_the_result_is_refused_by_name(tmp_path, name, fields, message):
    folder = changed(tmp_path, name, fields)
    with pytest.raises(FileFormatError, match=message) as error:
        load_model(folder)
    assert str(folder) in str(error.value)


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("llama", {"attention_dropout": 0.1, "pretraining_tp": 2, "use_cache": False, "sliding_window": 4}),
        ("mistral", {"sliding_window": 32}),
        ("qwen2", {"use_sliding_window": False, "sliding_window": 4}),
        ("gpt2", {"resid_pdrop": 0.5, "reorder_and_upcast_attn": True, "n_embd": None, "hidden_size": 16}),
        ("gpt_bigcode", {"attention_softmax_in_fp32": False, "scale_attention_softmax_in_fp32": False}),
        ("bloom", {"slow_but_exact": True, "offset_alibi": 100, "n_embed": 18, "hidden_size": None}),
    ],
)
def test_what_changes_nothing_is_left_aside(tmp_path, name, fields):
    reference = dict(np.load(FOLDER / name / "reference_logits.npz"))
    model, _ = load_model(changed(tmp_path, name, fields))
    np.testing.assert_allclose(logits(model, reference), reference["logits"], atol=1e-4)


anything = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 10**12) | st.floats(width=32) | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(["rope_type", "factor"]), inner),
    max_leaves=3,
)


@pytest.mark.parametrize("name", FAMILIES)
@given(data=st.data())
def test_whatever_a_config_says_it_is_a_model_or_an_error(tmp_path_factory, name, data):
    fields = json.loads((FOLDER / name / "config.json").read_text()) | {"rope_scaling": None}
    for key in data.draw(st.lists(st.sampled_from(sorted(fields)), min_size=1, max_size=2)):
        fields[key] = data.draw(anything)
    folder = changed(tmp_path_factory.mktemp("any"), name, fields)
    try:
        load_model(folder)
    except FileFormatError as error:
        assert str(folder) in str(error)


LLAMA3 = RopeScaling("llama3", 8.0, 1.0, 4.0, 32)


@pytest.mark.parametrize(
    ("model", "kind"),
    [
        (CausalLM(TransformerConfig(**SIZES, rope_theta=100.0, rope_scaling=LLAMA3, dropout=0.1)), "llama"),
        (CausalLM(TransformerConfig(**SIZES, rope_scaling=RopeScaling("linear", 2.0), bias=True)), "llama"),
        (CausalLM(TransformerConfig(**SIZES, num_key_value_heads=2, head_dim=10, bias="attention")), "llama"),
        (CausalLM(TransformerConfig(**SIZES, bias="qkv", tie_word_embeddings=False)), "qwen2"),
        (GPT2(ModelConfig(**SIZES, activation="relu", norm_eps=1e-3)), "gpt2"),
        (GPTBigCode(ModelConfig(**SIZES, num_key_value_heads=1, activation="gelu")), "gpt_bigcode"),
        (Bloom(ModelConfig(**SIZES)), "bloom"),
        (Seq2Seq(Seq2SeqConfig(**SIZES, pad_token_id=3)), "marian"),
    ],
)
def test_every_model_s_way_into_a_folder_and_back(tmp_path, rng, model, kind):
    save_folder(model, None, tmp_path)
    fields = json.loads((tmp_path / "config.json").read_text())
    assert fields["model_type"] == kind and fields["architectures"] == [FAMILIES[kind].architecture]
    again, _ = load_model(tmp_path)
    assert again.config == model.config
    ids = rng.integers(4, 48, (2, 9))
    arrays = {"input_ids": ids} | ({"decoder_input_ids": ids[:, ::-1]} if kind == "marian" else {})
    np.testing.assert_array_equal(logits(again, arrays), logits(model, arrays))


ALL_THREE = ("dropout", "attention_dropout", "embedding_dropout")
OF_BERT = ("hidden_dropout_prob", "attention_probs_dropout_prob")


@pytest.mark.parametrize(
    ("name", "fields", "names", "unsaid"),
    [
        ("llama", {"attention_dropout": 0.3}, ("attention_dropout",), 0.0),
        ("gpt2", {"resid_pdrop": 0.2, "attn_pdrop": 0.3, "embd_pdrop": 0.4}, ALL_THREE, 0.1),
        ("gpt_bigcode", {"resid_pdrop": 0.2, "attn_pdrop": 0.0, "embd_pdrop": 0.4}, ALL_THREE, 0.1),
        ("bloom", {"hidden_dropout": 0.2, "attention_dropout": 0.3}, ALL_THREE[:2], 0.0),
        ("bert", {"hidden_dropout_prob": 0.2, "attention_probs_dropout_prob": 0.3}, OF_BERT, 0.1),
        ("marian", {"dropout": 0.2, "attention_dropout": 0.3}, ALL_THREE[:2], (0.1, 0.0)),
    ],
)
def test_dropouts_are_read_and_written(tmp_path, name, fields, names, unsaid):
    model, _ = load_model(changed(tmp_path, name, fields))
    assert [getattr(model.config, n) for n in names] == list(fields.values())
    reference = dict(np.load(FOLDER / name / "reference_logits.npz"))
    np.testing.assert_allclose(logits(model, reference), reference["logits"], atol=1e-4)
    assert np.abs(logits(model.train(), reference) - reference["logits"]).max() > 1e-2
    save_folder(model, None, tmp_path / "saved")
    written = json.loads((tmp_path / "saved" / "config.json").read_text())
    assert {key: written[key] for key in fields} == fields
    defaults, _ = load_model(changed(tmp_path / "unsaid", name, dict.fromkeys(fields)))
    expected = unsaid if isinstance(unsaid, tuple) else (unsaid,) * len(names)
    assert tuple(getattr(defaults.config, n) for n in names) == expected
    with pytest.raises(FileFormatError, match=rf"{names[0]} must be in \[0, 1\), not 1\.5"):
        load_model(changed(tmp_path / "bad", name, {next(iter(fields)): 1.5}))


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (CausalLM(TransformerConfig(**SIZES, norm="layernorm")), "norm = 'layernorm': a config.json of llama cannot"),
        (CausalLM(TransformerConfig(**SIZES, positions="learned", activation="gelu")), "'gelu', positions = "),
        (GPT2(ModelConfig(**SIZES, num_key_value_heads=2)), "num_key_value_heads = 2: a config.json of gpt2"),
        (GPTBigCode(ModelConfig(**SIZES)), "num_key_value_heads = 4: a config.json of gpt_bigcode"),
        (Bloom(ModelConfig(**SIZES | {"intermediate_size": 30})), "intermediate_size = 30"),
        (Bloom(ModelConfig(**SIZES, activation="relu")), "activation = 'relu'"),
        (Linear(2, 2), "a Linear is of no family"),
        (quantize_model(GPT2(ModelConfig(**SIZES)), "e2m1"), "cannot read a layer like transformer.h.0.attn.c_attn"),
    ],
)
def test_what_a_folder_cannot_hold_is_not_saved(tmp_path, model, message):
    with pytest.raises(FileFormatError, match=message):
        save_folder(model, None, tmp_path)
    assert not any(tmp_path.iterdir())


def test_a_model_is_not_saved_where_another_would_be_read(tmp_path):
    model = GPT2(ModelConfig(**SIZES))
    (tmp_path / "model.safetensors.index.json").write_text('{"weight_map": {}}')
    with pytest.raises(FileFormatError, match="a model in several files, which would be read instead"):
        save_folder(model, None, tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(MiniloraError, match="file cannot be made"):
        save_folder(model, None, tmp_path / "file")
    save_folder(model, None, tmp_path / "new" / "folder")
    assert load_model(tmp_path / "new" / "folder")[0].config == model.config


def test_layers_merged_after_quantization_are_saved_the_family_s_way(tmp_path, rng):
    """GPT-2's files have weights (in, out); a quantized layer and what it is merged into have (out, in)."""
    model, ids = quantize_model(GPT2(ModelConfig(**SIZES))), rng.integers(0, 48, (2, 9))
    for path, layer in list(model.named_modules()):
        if hasattr(layer, "quantized_weight"):
            merged = Linear(*layer.shape[::-1])
            merged.weight.data, merged.bias = layer.quantized_weight.dequantize(), layer.bias
            model.set_submodule(path, merged)
    save_folder(model, None, tmp_path)
    again, _ = load_model(tmp_path)
    np.testing.assert_allclose(logits(again, {"input_ids": ids}), logits(model, {"input_ids": ids}), atol=1e-5)
