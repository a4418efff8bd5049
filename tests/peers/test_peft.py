"""Live comparison with PEFT: files both ways, gradients, several adapters, weighted sums, names and counts."""

from pathlib import Path

import numpy as np
import pytest

from minilora import LoraConfig, PeftModel, get_peft_model, load_model, no_grad

pytestmark = pytest.mark.peers
torch = pytest.importorskip("torch")
peft = pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")

GOLDEN = Path(__file__).parents[1] / "golden"
IDS = np.random.default_rng(0).integers(0, 256, (3, 12))
COMMON = {
    "plain": {"r": 4, "lora_alpha": 8},
    "all-linear": {"r": 3, "lora_alpha": 6, "target_modules": "all-linear"},
    "rslora": {"r": 4, "lora_alpha": 8, "use_rslora": True},
    "gaussian": {"r": 4, "lora_alpha": 8, "init_lora_weights": "gaussian"},
    "pissa": {"r": 4, "lora_alpha": 8, "init_lora_weights": "pissa"},
    "dora": {"r": 4, "lora_alpha": 8, "use_dora": True},
    "dora all-linear": {"r": 2, "lora_alpha": 8, "use_dora": True, "target_modules": "all-linear"},
    "bias all": {"r": 4, "lora_alpha": 8, "bias": "all"},
    "bias lora_only": {"r": 4, "lora_alpha": 8, "bias": "lora_only"},
    "bias dora": {"r": 4, "lora_alpha": 8, "bias": "lora_only", "use_dora": True},
    "modules_to_save": {"r": 4, "lora_alpha": 8, "modules_to_save": ["lm_head"]},
    "one block": {"r": 4, "lora_alpha": 8, "layers_to_transform": [1]},
}
CASES = {
    "tiny_llama": {name: {"target_modules": ["q_proj", "v_proj"]} | fields for name, fields in COMMON.items()}
    | {
        "olora": {"r": 4, "target_modules": ["q_proj", "down_proj"], "init_lora_weights": "olora"},
        "patterns": {
            "r": 4, "target_modules": ["q_proj", "v_proj", "up_proj"],
            "rank_pattern": {"v_proj": 2, "layers.1.mlp.up_proj": 7}, "alpha_pattern": {"layers.0.self_attn.q_proj": 3},
        },
        "expression": {"r": 4, "target_modules": r".*\.1\..*_proj"},
        "excluded": {"r": 4, "target_modules": ["q_proj", "v_proj"], "exclude_modules": r".*\.0\.self_attn\.q_proj"},
        "embedding": {"r": 4, "target_modules": ["embed_tokens", "q_proj"], "modules_to_save": ["lm_head"]},
        "embedding dora": {"r": 4, "target_modules": ["embed_tokens"], "use_dora": True},
        "head": {"r": 4, "target_modules": ["lm_head"]},
        "norms saved": {"r": 4, "target_modules": ["q_proj"], "modules_to_save": ["input_layernorm", "norm"]},
    },
    "tiny_gpt2": {name: {"target_modules": ["c_attn", "c_proj"]} | fields for name, fields in COMMON.items()}
    | {
        "patterns": {
            "r": 4, "target_modules": ["c_attn", "c_fc"],
            "rank_pattern": {"c_fc": 2}, "alpha_pattern": {"h.0.attn.c_attn": 3},
        },
        "embeddings": {"r": 4, "target_modules": ["c_attn", "c_proj", "c_fc", "wte", "wpe"], "lora_dropout": 0.1},
        "embedding dora": {"r": 4, "target_modules": ["wte", "c_fc"], "use_dora": True},
    },
}  # fmt: skip
PAIRS = [pytest.param(model, fields, id=f"{model} {name}") for model in CASES for name, fields in CASES[model].items()]


def models(name):
    """Ours and transformers', with the same weights."""
    theirs = transformers.AutoModelForCausalLM.from_pretrained(GOLDEN / name).eval()
    return load_model(GOLDEN / name)[0], theirs


def shake(parameters, seed=0):
    """Every trained array as after some training: none is at its initial value any more."""
    rng = np.random.default_rng(seed)
    for p in parameters:
        p.data = p.data + rng.standard_normal(p.shape, np.float32) * np.float32(0.1)


def shake_torch(model, seed=0):
    rng = np.random.default_rng(seed)
    for p in model.parameters():
        if p.requires_grad:
            p.data += torch.from_numpy(rng.standard_normal(p.shape, np.float32) * np.float32(0.1))


def logits(model, **kwargs):
    with no_grad(), torch.no_grad():
        if isinstance(model, torch.nn.Module):
            return model(torch.from_numpy(IDS), **kwargs).logits.numpy()
        return model(IDS, **kwargs).data


def assert_equal(ours, theirs, atol=2e-5):
    np.testing.assert_allclose(ours, theirs, atol=atol, rtol=1e-5)


def tolerance(fields):
    """PiSSA's file relies on the reader's SVD, whose r largest directions are as exact as the gap to the next."""
    return 2e-4 if fields.get("init_lora_weights") == "pissa" else 2e-5


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("name", "fields"), PAIRS)
def test_our_adapter_in_peft(tmp_path, name, fields):
    base, theirs = models(name)
    plain = logits(base)
    ours = get_peft_model(base, LoraConfig(**fields))
    shake(ours.trainable().values())
    ours.save_pretrained(tmp_path)
    loaded = peft.PeftModel.from_pretrained(theirs, tmp_path).eval()
    adapted = logits(ours)
    assert np.abs(adapted - plain).max() > 1e-2
    assert_equal(adapted, logits(loaded), tolerance(fields))
    assert_equal(logits(ours.merge_and_unload()), adapted)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("name", "fields"), PAIRS)
def test_peft_s_adapter_here(tmp_path, name, fields):
    base, theirs = models(name)
    theirs = peft.get_peft_model(theirs, peft.LoraConfig(task_type="CAUSAL_LM", **fields)).eval()
    shake_torch(theirs)
    theirs.save_pretrained(tmp_path)
    ours = PeftModel.from_pretrained(base, tmp_path)
    assert_equal(logits(ours), logits(theirs), tolerance(fields))
    own, other = dict(ours.named_parameters()), dict(theirs.named_parameters())
    assert {n for n in own if "lora_" in n} == {n for n in other if "lora_" in n and "magnitude" not in n} | {
        n.removesuffix(".weight") for n in other if "magnitude" in n
    }
    assert ours.trainable_parameters()[0] == theirs.get_nb_trainable_parameters()[0]


@pytest.mark.parametrize("fields", [{}, {"use_dora": True}, {"use_rslora": True, "use_dora": True, "bias": "all"}])
def test_gradients(tmp_path, fields):
    base, theirs = models("tiny_llama")
    fields = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "up_proj", "embed_tokens"]} | fields
    theirs = peft.get_peft_model(theirs, peft.LoraConfig(task_type="CAUSAL_LM", **fields))
    shake_torch(theirs)
    theirs.save_pretrained(tmp_path)
    ours = PeftModel.from_pretrained(base, tmp_path)
    ours.loss(IDS, IDS).backward()
    theirs(torch.from_numpy(IDS), labels=torch.from_numpy(IDS)).loss.backward()
    other = {n.removesuffix(".weight") if "magnitude" in n else n: p for n, p in theirs.named_parameters()}
    trained = ours.trainable()
    assert trained.keys() == {n for n, p in other.items() if p.requires_grad}
    for name, p in trained.items():
        np.testing.assert_allclose(p.grad, other[name].grad.numpy(), atol=2e-6, rtol=2e-4, err_msg=name)


def two_adapters(tmp_path, second=None):
    """Both libraries with the same adapters a and b, of ranks 4 and 4, on partly different layers."""
    base, theirs = models("tiny_llama")
    a = peft.LoraConfig(task_type="CAUSAL_LM", r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"])
    fields = {"r": 4, "lora_alpha": 3, "target_modules": ["q_proj", "up_proj"]} | (second or {})
    theirs = peft.get_peft_model(theirs, a, "a")
    theirs.add_adapter("b", peft.LoraConfig(task_type="CAUSAL_LM", **fields))
    rng = np.random.default_rng(1)
    for name, p in theirs.named_parameters():
        if "lora_" in name:
            p.data = torch.from_numpy(rng.standard_normal(p.shape, np.float32) * np.float32(0.2))
    theirs.eval().save_pretrained(tmp_path)
    ours = PeftModel.from_pretrained(base, tmp_path / "a", "a")
    ours.load_adapter(tmp_path / "b", "b")
    return ours, theirs


def test_several_adapters(tmp_path):
    ours, theirs = two_adapters(tmp_path)
    for active in ("a", "b"):
        ours.set_adapter(active)
        theirs.set_adapter(active)
        assert_equal(logits(ours), logits(theirs))
    ours.set_adapter(["a", "b"])
    theirs.base_model.set_adapter(["a", "b"])
    assert_equal(logits(ours), logits(theirs))
    with ours.disable_adapter(), theirs.disable_adapter():
        assert_equal(logits(ours), logits(theirs))
    rows = ["b", "__base__", "a"]
    assert_equal(logits(ours, adapter_names=rows), logits(theirs, adapter_names=rows))
    merged = ours.merge_and_unload(["b"]), theirs.merge_and_unload(adapter_names=["b"])
    assert_equal(*map(logits, merged))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("kind", "second", "options"),
    [
        ("cat", {"r": 6}, {}),
        ("svd", {"r": 6}, {"svd_rank": 3}),
        ("linear", {}, {}),
        ("ties", {}, {"density": 0.5}),
        ("ties", {}, {"density": 0.3, "majority_sign_method": "frequency"}),
    ],
)
def test_weighted_adapters(tmp_path, kind, second, options):
    ours, theirs = two_adapters(tmp_path, second)
    weights = [0.7, -1.3]
    made = ours.add_weighted_adapter(["a", "b"], weights, "c", kind, **options)
    theirs.base_model.add_weighted_adapter(["a", "b"], weights, "c", kind, **options)
    ours.set_adapter("c")
    theirs.set_adapter("c")
    assert_equal(logits(ours), logits(theirs))
    squared = exact = 0.0
    for layer in ours.adapters().values():
        wanted = sum(w * layer.delta_weight(n) for n, w in zip("ab", weights, strict=True) if n in layer)
        squared, exact = squared + ((layer.delta_weight("c") - wanted) ** 2).sum(), exact + (wanted**2).sum()
    assert made.relative_error == pytest.approx((squared / exact) ** 0.5, rel=1e-3, abs=1e-6)
    assert (made.relative_error < 1e-6) == (kind == "cat")


def test_counts_are_printed_as_peft_s(capsys):
    ours, theirs = models("tiny_gpt2")
    fields = {"r": 4, "target_modules": ["c_attn", "wte"], "modules_to_save": ["ln_f"]}
    with pytest.warns(UserWarning, match="share one weight"):
        ours = get_peft_model(ours, LoraConfig(**fields))
    theirs = peft.get_peft_model(theirs, peft.LoraConfig(task_type="CAUSAL_LM", **fields))
    ours.print_trainable_parameters()
    theirs.print_trainable_parameters()
    own, other = capsys.readouterr().out.splitlines()
    assert own == other


@pytest.mark.parametrize("kind", ["pissa", "olora"])
def test_initial_values_are_peft_s(kind):
    base, theirs = models("tiny_llama")
    fields = {"r": 4, "lora_alpha": 6, "target_modules": ["q_proj", "down_proj"], "init_lora_weights": kind}
    ours = get_peft_model(base, LoraConfig(**fields))
    theirs = peft.get_peft_model(theirs, peft.LoraConfig(task_type="CAUSAL_LM", **fields))
    for path, layer in ours.adapters().items():
        other = theirs.get_submodule(path)
        np.testing.assert_allclose(layer.delta_weight(), other.get_delta_weight("default").numpy(force=True), atol=1e-5)
        np.testing.assert_allclose(layer.weight(), other.base_layer.weight.numpy(force=True), atol=1e-5)


@pytest.mark.filterwarnings("ignore")
def test_fused_and_converted_adapters_are_plain_ones_in_peft(tmp_path):
    """What PEFT has no name for is written as the plain LoRA that it equals."""
    for name, fields, options in (
        ("tiny_gpt2", {"target_modules": ["c_attn", "c_proj"], "enable_lora": [True, False, True]}, {}),
        (
            "tiny_llama",
            {"target_modules": ["q_proj", "up_proj"], "init_lora_weights": "pissa"},
            {"to_plain_lora": True},
        ),
        ("tiny_llama", {"init_lora_weights": "olora", "use_rslora": True}, {"to_plain_lora": True}),
    ):
        base, theirs = models(name)
        ours = get_peft_model(base, LoraConfig(r=3, lora_alpha=5, **fields))
        shake(ours.trainable().values())
        ours.save_pretrained(tmp_path / "a", **options)
        loaded = peft.PeftModel.from_pretrained(theirs, tmp_path / "a").eval()
        assert_equal(logits(ours), logits(loaded))
        again = PeftModel.from_pretrained(models(name)[0], tmp_path / "a")
        assert_equal(logits(again), logits(ours))
