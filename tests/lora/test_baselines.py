"""What LoRA is compared with: counts as in the paper, what is trained, generation, files."""

import json

import numpy as np
import pytest
from lora.cases import IDS, model, run

from minilora import LoraConfig, get_peft_model, quantize_model
from minilora.autograd import gradcheck
from minilora.errors import ConfigError, FileFormatError, UnknownNameError
from minilora.lora.baselines import METHODS, load_tuned, tune
from minilora.models.generate import generate_tokens
from minilora.nn import GPT2, BertModel, Bloom, EncoderConfig, GPTBigCode, ModelConfig
from minilora.train.optim import AdamW

OPTIONS = {"full": {}, "bitfit": {}, "preembed": {"length": 3}, "prelayer": {"length": 3}, "adapter": {"r": 2}}
L, D = 2, 16


def build(kind):
    if kind == "llama":
        return model(bias=True)
    kinds = {"gpt2": GPT2, "gpt_bigcode": GPTBigCode, "bloom": Bloom}
    return kinds[kind](ModelConfig(20, D, 4 * D, L, 4, max_position_embeddings=32))


KINDS = ("llama", "gpt2", "gpt_bigcode", "bloom")


def counts(d: int, layers: int) -> dict[str, int]:
    """Trainable parameters as the paper's section 5.1 counts them, for GPT-2's architecture."""
    return {
        "bitfit": 11 * layers * d + d,
        "preembed": (256 + 8) * d,
        "prelayer": (8 + 8) * layers * d,
        "adapter, r=1": 2 * layers * (2 * d * 1 + 1 + d),
        "adapter, r=8": 2 * layers * (2 * d * 8 + 8 + d),
        "lora, r=1": 2 * layers * 2 * d * 1,
        "lora, r=8": 2 * layers * 2 * d * 8,
    }


@pytest.mark.parametrize(
    ("name", "method", "options"),
    [
        ("bitfit", "bitfit", {}),
        ("preembed", "preembed", {"length": 256 + 8}),
        ("prelayer", "prelayer", {"length": 8 + 8}),
        ("adapter, r=1", "adapter", {"r": 1}),
        ("adapter, r=8", "adapter", {"r": 8}),
    ],
)
def test_counts_are_the_formulas(name, method, options):
    tuned = tune(GPT2(ModelConfig(50, 32, 128, 3, 4, max_position_embeddings=300)), method, **options)
    assert tuned.trainable_parameters()[0] == counts(32, 3)[name]


def test_gpt_3_s_counts():
    """Table 4 of the paper, in millions. BitFit's 14.2 would be 12 L d, one vector a block more than there are biases;
    PreLayer's 20.2 does not follow from its formula either."""
    gpt3 = counts(12288, 96)
    assert gpt3["preembed"] == 3_244_032 and gpt3["prelayer"] == 18_874_368
    assert gpt3["adapter, r=1"] == 7_078_080 and gpt3["adapter, r=8"] == 40_109_568
    assert gpt3["lora, r=1"] == 4_718_592 and gpt3["lora, r=8"] == 37_748_736
    assert gpt3["bitfit"] == 12_988_416 and round(12 * 96 * 12288 / 1e6, 1) == 14.2


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("method", METHODS)
def test_it_learns_and_the_rest_stays(kind, method, tmp_path):
    base = build(kind)
    before, start = {id(p): p.data.copy() for p in base.parameters()}, run(base)
    tuned = tune(base, method, **OPTIONS[method])
    if method in ("full", "bitfit", "adapter"):
        np.testing.assert_array_equal(run(tuned), start)
    optimizer, losses = AdamW(tuned.trainable().values(), lr=1e-2), []
    for _ in range(30):
        loss = tuned.loss(IDS, IDS)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.02
    for p in tuned.parameters():
        if id(p) in before:
            assert p.requires_grad or np.array_equal(p.data, before[id(p)])
    tuned.save_pretrained(tmp_path)
    again = load_tuned(build(kind), tmp_path)
    np.testing.assert_array_equal(run(again), run(tuned))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("method", ["preembed", "prelayer", "adapter"])
def test_generation_sees_what_was_trained(kind, method, rng):
    """Token by token with the cache as all at once, which fails where a prefix is lost or put in twice."""
    tuned = tune(build(kind), method, **OPTIONS[method])
    for p in tuned.parameters():
        p.data = p.data + rng.standard_normal(p.shape, np.float32) * np.float32(0.3)
    ids = [1, 2, 3]
    for token in generate_tokens(tuned, list(ids), 6):
        assert token == run(tuned, np.array([ids]))[0, -1].argmax()
        ids.append(token)
    assert len(ids) == 9


def test_a_prefix_is_seen_by_every_position_and_changes_no_length(rng):
    tuned = tune(build("gpt2"), "preembed", length=3)
    before = run(tuned)
    tuned.trainable()["base_model.transformer.base_layer.h.0.prefix"].data += rng.standard_normal((3, D), np.float32)
    assert run(tuned).shape == (*IDS.shape, 20) and (np.abs(run(tuned) - before).max((0, 2)) > 1e-4).all()


@pytest.mark.parametrize("method", ["preembed", "prelayer", "adapter"])
def test_gradients(method, rng):
    tuned = tune(build("gpt2"), method, **OPTIONS[method])
    for p in tuned.parameters():
        p.data = p.data.astype(np.float64) + 0.1 * rng.standard_normal(p.shape)
    for name, p in tuned.trainable().items():
        path, _, key = name.rpartition(".")
        if key == "bias":  # its op cannot take a complex step while its other inputs are real
            continue
        owner = tuned.get_submodule(path)

        def loss(value, owner=owner, key=key):
            setattr(owner, key, value)
            return tuned.loss(IDS, IDS)

        gradcheck(loss, p.data)
        setattr(owner, key, p)


def test_beside_four_bits(rng):
    for method in ("bitfit", "prelayer", "adapter"):
        tuned = tune(quantize_model(build("gpt2")), method, **OPTIONS[method])
        tuned.loss(IDS, IDS).backward()
        assert any(np.abs(p.grad).max() > 0 for p in tuned.trainable().values())
    with pytest.raises(ConfigError, match="quantized weights cannot be trained"):
        tune(quantize_model(build("gpt2")), "full")


def test_what_cannot_be_is_refused(tmp_path):
    for method, options in (("adapter", {}), ("adapter", {"r": 0}), ("full", {"r": 2}), ("preembed", {"r": 2}),
                            ("prelayer", {"length": 1.5}), ("bitfit", {"length": 2})):  # fmt: skip
        with pytest.raises(ConfigError, match=f"'{method}' takes"):
            tune(build("gpt2"), method, **options)
    with pytest.raises(UnknownNameError, match="unknown method 'prefix'"):
        tune(build("gpt2"), "prefix")
    with pytest.raises(ConfigError, match="no bias"):
        tune(model(), "bitfit")
    with pytest.raises(ConfigError, match="a BertModel is no decoder"):
        tune(BertModel(EncoderConfig(20, 16, 24, 2, 4)), "adapter", r=2)
    with pytest.raises(FileFormatError, match="cannot be read"):
        load_tuned(build("gpt2"), tmp_path)
    tune(build("gpt2"), "adapter", r=2).save_pretrained(tmp_path)
    with pytest.raises(FileFormatError, match="another base model"):
        load_tuned(build("bloom"), tmp_path)
    fields = json.loads((tmp_path / "tuned_config.json").read_text())
    for change, message in (({"r": 3}, "arrays do not fit"), ({"depth": 3}, "depth")):
        (tmp_path / "tuned_config.json").write_text(json.dumps(fields | change))
        with pytest.raises(FileFormatError, match=message):
            load_tuned(build("gpt2"), tmp_path)


def test_the_same_interface_as_lora(capsys):
    for tuned in (tune(build("gpt2"), "adapter", r=2), get_peft_model(build("gpt2"), LoraConfig(r=2))):
        tuned.print_trainable_parameters()
        some, total = tuned.trainable_parameters()
        shown = f"trainable params: {some:,} || all params: {total:,} || trainable%: {100 * some / total:.4f}\n"
        assert capsys.readouterr().out == shown
        assert tuned.config.hidden_size == D and tuned.loss(IDS, IDS).shape == ()
