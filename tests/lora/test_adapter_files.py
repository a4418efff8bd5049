"""PEFT's folder: its own adapters give its logits, ours come back, and what does not fit is refused."""

import json
import os
import shutil

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from lora.cases import adapted, in_float64, model, run, shake

from minilora import LoraConfig, PeftModel, get_peft_model, load_model, no_grad, quantize_model
from minilora.errors import ConfigError, FileFormatError, MiniloraError, UnknownNameError
from minilora.files import load_safetensors, save_safetensors
from minilora.lora import files
from minilora.lora.config import FIELDS
from minilora.lora.fingerprint import difference, fingerprint
from minilora.nn import CausalLM, TransformerConfig


@pytest.fixture
def folder(tmp_path, rng):
    """A saved adapter of the small model."""
    adapted(rng, r=3).save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


def change_config(folder, **fields):
    path = folder / files.CONFIG
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def change_arrays(folder, change):
    arrays, metadata = load_safetensors(folder / files.WEIGHTS)
    save_safetensors(folder / files.WEIGHTS, change(arrays), metadata)


@pytest.mark.parametrize("name", ["tiny_llama", "tiny_gpt2"])
@pytest.mark.parametrize("adapter", ["default", "rslora", "rank_pattern", "mts_emb"])
def test_peft_s_own_adapters_give_its_logits(tiny_llama, name, adapter):
    """The files and logits (of the last two positions) were written by PEFT 0.21.2."""
    path = tiny_llama.with_name(name)
    reference = np.load(path / "reference_logits.npz")
    base, tokenizer = load_model(path)
    assert tokenizer is None
    with no_grad():

        def logits(m):
            return m(reference["input_ids"]).data[:, -2:]

        plain = logits(base)
        np.testing.assert_allclose(plain, reference["logits_base"], atol=1e-5)
        peft = PeftModel.from_pretrained(base, path / f"adapter_{adapter}")
        np.testing.assert_allclose(logits(peft), reference[f"logits_{adapter}"], atol=1e-5)
        with peft.disable_adapter():
            np.testing.assert_array_equal(logits(peft), plain)
        peft.merge_adapter()
        np.testing.assert_allclose(logits(peft), reference[f"logits_{adapter}_merged"], atol=1e-5)
        merged = peft.merge_and_unload()
        np.testing.assert_allclose(logits(merged), reference[f"logits_{adapter}_merged"], atol=1e-5)


@pytest.mark.parametrize("name", ["tiny_llama", "tiny_gpt2"])
@pytest.mark.parametrize("adapter", ["default", "rslora", "rank_pattern", "mts_emb"])
def test_peft_s_own_files_are_written_as_they_were(tiny_llama, tmp_path, name, adapter):
    path = tiny_llama.with_name(name)
    PeftModel.from_pretrained(load_model(path)[0], path / f"adapter_{adapter}").save_pretrained(tmp_path)
    (ours, metadata), (theirs, expected) = (
        load_safetensors(p / files.WEIGHTS) for p in (tmp_path, path / f"adapter_{adapter}")
    )
    assert metadata == expected == {"format": "pt"} and ours.keys() == theirs.keys()
    for key, array in theirs.items():
        np.testing.assert_array_equal(ours[key], array)
    ours, theirs = (json.loads((p / files.CONFIG).read_text()) for p in (tmp_path, path / f"adapter_{adapter}"))
    assert theirs.items() <= ours.items()
    assert ours.keys() - theirs.keys() == {files.FINGERPRINT}


VARIANTS = [
    {}, {"target_modules": "all-linear"}, {"target_modules": r".*\.1\..*_proj"}, {"use_dora": True},
    {"use_rslora": True}, {"bias": "all"}, {"bias": "lora_only", "use_dora": True},
    {"modules_to_save": ["mlp", "norm"]},
    {"rank_pattern": {"v_proj": 2}, "alpha_pattern": {r"layers\.0.*": 3}}, {"layers_to_transform": [1]},
    {"exclude_modules": ["up_proj"]}, {"target_modules": ["embed_tokens", "q_proj"]}, {"target_modules": ["lm_head"]},
    {"target_modules": ["embed_tokens"], "use_dora": True}, {"init_lora_weights": "gaussian", "lora_dropout": 0.1},
    {"init_lora_weights": "pissa"}, {"init_lora_weights": "olora"}, {"init_lora_weights": "loftq"},
    {"target_modules": "all-linear", "layers_to_transform": 0, "exclude_modules": ["down_proj"]},
]  # fmt: skip


@pytest.mark.filterwarnings("ignore:the embedding and the head")
@pytest.mark.parametrize("fields", VARIANTS, ids=str)
def test_files_round_trip(fields, tmp_path, rng):
    base = lambda: model(bias=True)  # noqa: E731
    peft = adapted(rng, base(), **fields)
    peft.save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(base(), tmp_path)
    np.testing.assert_array_equal(run(again), run(peft))
    assert again.trainable().keys() == peft.trainable().keys()
    again.save_pretrained(tmp_path / "again")
    for name in (files.CONFIG, files.WEIGHTS):
        assert (tmp_path / name).read_bytes() == (tmp_path / "again" / name).read_bytes()
    other = adapted(base=base(), target_modules=["o_proj"])
    if not LoraConfig(**fields).changes_base:
        other.load_adapter(tmp_path, "loaded")
        other.set_adapter("loaded")
        np.testing.assert_array_equal(run(other), run(peft))


def test_all_linear_is_written_as_names(tmp_path):
    adapted(target_modules="all-linear").save_pretrained(tmp_path)
    names = json.loads((tmp_path / files.CONFIG).read_text())["target_modules"]
    assert names == ["down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"]


def test_to_plain_lora(tmp_path, rng):
    """PiSSA's and OLoRA's change, said relative to the base before they took their part out of it."""
    for fields in (
        {"init_lora_weights": "pissa"},
        {"init_lora_weights": "olora", "use_rslora": True, "rank_pattern": {"v_proj": 2}},
    ):
        peft = adapted(rng, in_float64(model()), **fields)
        peft.save_pretrained(tmp_path / "p", to_plain_lora=True)
        plain = PeftModel.from_pretrained(in_float64(model()), tmp_path / "p")
        np.testing.assert_allclose(run(plain), run(peft), atol=1e-10)
        assert plain.peft_config["default"].r == 8 and plain.peft_config["default"].init_lora_weights is True
    with pytest.raises(ConfigError, match="began as PiSSA or OLoRA"):
        adapted().save_pretrained(tmp_path / "q", to_plain_lora=True)
    assert not (tmp_path / "q").exists()


def test_several_adapters_have_folders_of_their_own(tmp_path, rng):
    peft = adapted(rng)
    peft.add_adapter("other", LoraConfig(r=2, target_modules=["q_proj"]))
    shake(peft.adapter_parameters("other"), rng)
    peft.save_pretrained(tmp_path)
    assert sorted(p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*.*")) == [
        "adapter_config.json", "adapter_model.safetensors",
        "other/adapter_config.json", "other/adapter_model.safetensors",
    ]  # fmt: skip
    again = PeftModel.from_pretrained(model(), tmp_path / "other", "again", is_trainable=False)
    peft.set_adapter("other")
    np.testing.assert_array_equal(run(again), run(peft))
    assert not again.trainable() and again.active_adapter == "again"
    peft.save_pretrained(tmp_path / "one", ["other"])
    assert [p.name for p in (tmp_path / "one").iterdir()] == ["other"]
    with pytest.raises(UnknownNameError):
        peft.save_pretrained(tmp_path, ["third"])


def test_an_adapter_trained_beside_4_bits_loads_beside_floats_and_back(tmp_path, rng):
    adapted(rng, quantize_model(model())).save_pretrained(tmp_path)
    for base in (model(), quantize_model(model()), quantize_model(model(), "fp4")):
        PeftModel.from_pretrained(base, tmp_path)


def test_16_bit_adapters_become_float32(folder):
    for dtype in (np.float16, np.float32):
        change_arrays(folder, lambda arrays, dtype=dtype: {n: a.astype(dtype) for n, a in arrays.items()})
        peft = PeftModel.from_pretrained(model(), folder)
        assert {a.dtype for a in peft.adapter_state_dict().values()} == {np.dtype(np.float32)}


# What does not fit.


def other_model(**fields):
    sizes = {"vocab_size": 20, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2}
    return CausalLM(TransformerConfig(**sizes | {"num_attention_heads": 4, "max_position_embeddings": 32} | fields))


@pytest.mark.parametrize(
    ("base", "message"),
    [
        (lambda: other_model(num_hidden_layers=3), "lacks 6 arrays, the first.*layers.2"),
        (lambda: other_model(num_hidden_layers=1), "unlike the model, 6 arrays, the first.*layers.1"),
        (lambda: other_model(hidden_size=32), "this model needs"),
        (lambda: other_model(vocab_size=21), "another base model: its weights have other names or shapes"),
        (lambda: other_model(bias=True), "another base model: its weights have other names or shapes"),
        (lambda: model(seed=1), "another base model: its embeddings, norms or biases have other values"),
    ],
)
def test_an_adapter_for_another_base_is_refused(folder, base, message):
    base = base()
    kinds, flags = [type(m) for _, m in base.named_modules()], [p.requires_grad for p in base.parameters()]
    with pytest.raises(FileFormatError, match=message):
        PeftModel.from_pretrained(base, folder)
    assert [type(m) for _, m in base.named_modules()] == kinds and [p.requires_grad for p in base.parameters()] == flags
    if "another base" in message:
        PeftModel.from_pretrained(base, folder, allow_other_base=True)


def test_a_merged_base_is_another_base(tmp_path, folder, rng):
    """The embeddings are the same, the linear layers are not."""
    merged = PeftModel.from_pretrained(model(), folder).merge_and_unload()
    with pytest.raises(FileFormatError, match="its linear layers have other weights"):
        PeftModel.from_pretrained(merged, folder)
    peft = adapted(rng)
    with pytest.raises(FileFormatError, match="its linear layers have other weights"):
        adapted(rng, merged).save_pretrained(tmp_path / "b")
        peft.load_adapter(tmp_path / "b", "b")
    assert "b" not in peft.peft_config
    peft.load_adapter(tmp_path / "b", "b", allow_other_base=True)


def test_fingerprints():
    ours = fingerprint(model())
    assert difference(ours, fingerprint(model())) is None
    quantized = fingerprint(quantize_model(model()))
    assert difference(ours, quantized) is None and difference(quantized, ours) is None  # cannot be compared
    trained = model()
    trained.model.layers[0].mlp.up_proj.weight.data[0] += 1
    assert "linear" in difference(ours, fingerprint(trained))
    assert "linear" in difference(quantized, fingerprint(quantize_model(trained)))
    for nonsense in ("", "a:b", ":::", "é"):
        assert difference(ours, nonsense) is not None


def test_the_base_s_table_in_the_file_must_be_this_one(tmp_path, rng):
    """PEFT saves the embedding's base weight with an adapter on it."""
    with pytest.warns(UserWarning):
        peft = adapted(rng, target_modules=["embed_tokens"])
    peft.save_pretrained(tmp_path)
    key = "base_model.model.model.embed_tokens.base_layer.weight"
    change_config(tmp_path, minilora_base_fingerprint=None)
    change_arrays(tmp_path, lambda arrays: arrays | {key: arrays[key] + 1})
    with pytest.raises(FileFormatError, match=r"embed_tokens\.base_layer\.weight has other values"):
        PeftModel.from_pretrained(model(), tmp_path)
    change_arrays(tmp_path, lambda arrays: {n: a for n, a in arrays.items() if n != key})
    np.testing.assert_array_equal(run(PeftModel.from_pretrained(model(), tmp_path)), run(peft))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a: dict(list(a.items())[1:]), "lacks 1 arrays"),
        (lambda a: a | {"base_model.model.lm_head.weight": np.zeros((20, 16), np.float32)}, "unlike the model"),
        (lambda a: {n: v.T for n, v in a.items()}, "this model needs"),
        (lambda a: {n: v[..., :0] for n, v in a.items()}, "this model needs"),
        (lambda a: {}, "lacks 12 arrays"),
        (lambda a: {n.replace("base_model.model.", ""): v for n, v in a.items()}, "lacks 12 arrays"),
        (lambda a: {n: v.astype(np.int32) for n, v in a.items()}, "int32; an adapter's arrays are floating-point"),
        (lambda a: {n: v * np.float32(np.nan) for n, v in a.items()}, "not finite"),
    ],
)
def test_arrays_that_do_not_fit(folder, change, message):
    change_arrays(folder, change)
    with pytest.raises(FileFormatError, match=message):
        PeftModel.from_pretrained(model(), folder)


@pytest.mark.parametrize(
    "fields",
    [
        {"use_qalora": True}, {"layer_replication": [[0, 1]]}, {"target_parameters": ["x"]}, {"lora_bias": True},
        {"alora_invocation_tokens": [1]}, {"trainable_token_indices": [1]}, {"megatron_config": {"x": 1}},
        {"use_bdlora": {"x": 1}}, {"kasa_config": {"beta": 1}}, {"ensure_weight_tying": True}, {"peft_type": "IA3"},
        {"peft_type": None}, {"init_lora_weights": "corda"}, {"init_lora_weights": "pissa_niter_4"}, {"r": -1},
        {"lora_alpha": "16"}, {"target_modules": "("}, {"rank_pattern": {"q_proj": "2"}}, {"bias": "some"},
        {"enable_lora": [True, False, True]}, {"use_something_new": True}, {"strength": 2}, {"extra": {"x": 1}},
    ],
)  # fmt: skip
def test_fields_that_change_the_result_are_refused_by_name(folder, fields):
    change_config(folder, **fields)
    with pytest.raises(ConfigError, match=next(iter(fields))):
        PeftModel.from_pretrained(model(), folder)


def test_harmless_fields_are_kept(folder, tmp_path):
    harmless = {
        "peft_version": "0.99.0", "base_model_name_or_path": "some/model", "revision": "abc", "task_type": "SEQ_CLS",
        "auto_mapping": {"base_model_class": "x", "parent_library": "y"}, "qalora_group_size": 32,
        "use_something_new": False,
        "some_config": None, "init_lora_weights": "eva", "eva_config": {"rho": 2.0}, "enable_lora": None,
    }  # fmt: skip
    change_config(folder, **harmless, inference_mode=False)
    PeftModel.from_pretrained(model(), folder).save_pretrained(tmp_path / "again")
    written = json.loads((tmp_path / "again" / files.CONFIG).read_text())
    assert harmless.items() <= written.items() and written["inference_mode"] is True
    change_config(folder, note="made on a Tuesday")
    with pytest.warns(UserWarning, match="note='made on a Tuesday' is not known here"):
        PeftModel.from_pretrained(model(), folder)


@given(st.data())
def test_damaged_files_are_refused_not_read_wrong(data):
    """A byte changed, or the end cut off: an error of ours, or the adapter as it was."""
    import tempfile
    from pathlib import Path

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        adapted(np.random.default_rng(0), r=1, target_modules=["q_proj"]).save_pretrained(folder)
        path = folder / data.draw(st.sampled_from([files.CONFIG, files.WEIGHTS]))
        whole = bytearray(path.read_bytes())
        if data.draw(st.booleans()):
            whole = whole[: data.draw(st.integers(0, len(whole) - 1))]
        else:
            whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
        path.write_bytes(whole)
        try:
            PeftModel.from_pretrained(model(), folder)
        except MiniloraError as error:
            assert str(error)


json_values = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=5),
    lambda x: st.lists(x, max_size=3) | st.dictionaries(st.text(max_size=5), x, max_size=3),
)


@given(json_values, st.sampled_from([*FIELDS, "strange"]))
@pytest.mark.filterwarnings("ignore")
def test_any_value_of_any_field_gives_a_configuration_or_an_error_of_ours(value, name):
    try:
        config = files.from_fields({"peft_type": "LORA", "target_modules": ["q_proj"], name: value}, "a file")
        get_peft_model(model(), config)
    except MiniloraError as error:
        assert str(error)


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "3", '"x"', "[" * 100_000, "null", "{}", '{"peft_type": "LORA"}', "\x00"]
)
def test_configurations_that_are_none(folder, text):
    (folder / files.CONFIG).write_text(text)
    with pytest.raises(MiniloraError, match=r"adapter_config\.json"):
        PeftModel.from_pretrained(model(), folder)


def test_missing_files(folder, tmp_path):
    with pytest.raises(FileFormatError, match=r"adapter_config\.json"):
        PeftModel.from_pretrained(model(), tmp_path / "nowhere")
    adapted().save_pretrained(tmp_path / "several")
    PeftModel.from_pretrained(model(), tmp_path / "several", "other").save_pretrained(tmp_path / "apart")
    with pytest.raises(FileFormatError, match=r"apart does not hold an adapter: it has no .*; the folders other in it"):
        PeftModel.from_pretrained(model(), tmp_path / "apart")
    with pytest.raises(ConfigError, match=r"already has adapters; add_adapter\(\) or load_adapter\(\) one more"):
        PeftModel.from_pretrained(adapted(), tmp_path / "several")
    weights = folder / files.WEIGHTS
    weights.rename(weights.with_suffix(".bin"))
    with pytest.raises(FileFormatError, match=r"adapter_model.bin, a pickle.*safe_serialization"):
        PeftModel.from_pretrained(model(), folder)
    weights.with_suffix(".bin").unlink()
    with pytest.raises(FileFormatError, match=r"adapter_model\.safetensors cannot be read"):
        PeftModel.from_pretrained(model(), folder)


# Saving.


def test_nothing_is_written_or_read_outside_the_folder(folder, tmp_path):
    """Names and paths in a configuration are text, never opened."""
    outside = {"base_model_name_or_path": "../../secret", "revision": "/etc/passwd", "task_type": "../x"}
    change_config(folder, **outside)
    peft = PeftModel.from_pretrained(model(), folder)
    before = sorted(p for p in tmp_path.rglob("*"))
    for name in ("../up", "/abs", "a/b"):
        with pytest.raises(ConfigError):
            peft.load_adapter(folder, name)
    peft.save_pretrained(folder)
    assert sorted(p for p in tmp_path.rglob("*")) == before


def test_an_empty_adapter_is_never_saved(tmp_path):
    for arrays in ({}, {"a": np.zeros((0, 3), np.float32)}):
        with pytest.raises(FileFormatError, match="would be empty"):
            files.save_adapter(tmp_path / "x", LoraConfig(), arrays, "f")
    assert not (tmp_path / "x").exists()


def test_a_broken_adapter_is_never_saved(tmp_path, rng):
    peft = adapted(rng)
    next(iter(peft.adapters().values())).lora_B.weight.data[0, 0] = np.inf
    with pytest.raises(FileFormatError, match=r"lora_B\.weight of the adapter has entries that are not finite"):
        peft.save_pretrained(tmp_path / "x")
    assert not (tmp_path / "x").exists()


def test_what_was_written_is_compared(folder):
    """A disk that does not return what it was given is noticed."""
    arrays, config, _ = files.load_adapter(folder)
    files.verify(folder, config, arrays)
    name = min(arrays)
    for other in (arrays | {name: arrays[name] + 1}, {name: arrays[name]}, arrays | {"more": arrays[name]}):
        with pytest.raises(FileFormatError, match="reads differently"):
            files.verify(folder, config, other)
    with pytest.raises(FileFormatError, match="reads differently"):
        files.verify(folder, LoraConfig(r=3, lora_alpha=9, target_modules=config.target_modules), arrays)


def test_what_is_trained_but_not_saved_is_warned_of(tmp_path):
    peft = adapted()
    peft.get_base_model().model.norm.weight.requires_grad = True
    with pytest.warns(UserWarning, match="not saved: base_model.model.model.norm.weight"):
        peft.save_pretrained(tmp_path)


def test_an_adapter_is_not_written_where_it_cannot_be(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(MiniloraError, match="cannot be made"):
        adapted().save_pretrained(tmp_path / "file" / "adapter")


def test_saving_over_an_older_adapter(folder, rng):
    adapted(rng, r=2, use_dora=True).save_pretrained(folder)
    assert PeftModel.from_pretrained(model(), folder).peft_config["default"].use_dora
    assert sorted(os.listdir(folder)) == [files.CONFIG, files.WEIGHTS]
    shutil.rmtree(folder)
