import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from lora.cases import adapted, model

from minilora import LoraConfig, get_peft_model, quantize_model
from minilora.errors import ConfigError
from minilora.lora import find_targets
from minilora.nn import Linear, Module
from minilora.nn.gpt2 import GPT2, GPTBigCode
from minilora.nn.language_model import ModelConfig

SMALL = ModelConfig(20, 16, 24, 2, 4, max_position_embeddings=32)


@pytest.mark.parametrize(
    ("fields", "count"),
    [
        ({"target_modules": "all-linear"}, 14),
        ({"target_modules": "ALL-LINEAR"}, 14),
        ({"target_modules": "all-linear", "layers_to_transform": 1}, 7),
        ({"target_modules": "all-linear", "exclude_modules": ["mlp.up_proj", "q_proj"]}, 10),
        ({"target_modules": ["q_proj"]}, 2),
        ({"target_modules": ("q_proj", "v_proj")}, 4),
        ({"target_modules": {"q_proj", "v_proj"}}, 4),
        ({"target_modules": ["mlp.up_proj"]}, 2),
        ({"target_modules": ["roj"]}, None),  # a suffix is whole names
        ({"target_modules": r".*\.0\..*_proj"}, 7),
        ({"target_modules": r"0\..*_proj"}, None),  # an expression is for the whole path
        ({"target_modules": r".*_proj", "exclude_modules": r".*\.mlp\..*"}, 8),
        ({"target_modules": ["q_proj", "embed_tokens", "lm_head"]}, 4),
        ({"target_modules": ["q_proj", "v_proj"], "layers_to_transform": [0, 5]}, 2),
        ({"target_modules": ["q_proj"], "layers_to_transform": [1], "layers_pattern": "layers"}, 1),
        ({"target_modules": ["q_proj"], "layers_to_transform": [1], "layers_pattern": ["h"]}, None),
        ({"target_modules": ["q_proj", "up_proj"], "modules_to_save": ["mlp"]}, 2),
        ({"target_modules": ["model.layers.1.self_attn.q_proj"], "layers_to_transform": [0]}, 1),
    ],
)
@pytest.mark.filterwarnings("ignore:the embedding and the head", "ignore:layers_to_transform")
def test_targets(fields, count):
    config = LoraConfig(**fields)
    if count is None:
        with pytest.raises(ConfigError, match="matches no linear layer"):
            find_targets(model(), config)
    else:
        assert len(find_targets(model(), config)) == len(get_peft_model(model(), config).adapters()) == count


def test_targets_do_not_depend_on_adapters_or_quantization():
    for config in (LoraConfig(), LoraConfig(target_modules=["q_proj", "down_proj"]), "all-linear", ["v_proj"]):
        expected = find_targets(model(), config)
        assert find_targets(adapted().get_base_model(), config) == expected
        assert find_targets(quantize_model(model()), config) == expected


@pytest.mark.parametrize(
    ("build", "fields", "words"),
    [
        (
            model,
            {"target_modules": ["q_prj"]},
            ["'q_prj'", "Did you mean 'q_proj'", "down_proj, gate_proj", "all-linear"],
        ),
        (model, {"target_modules": ["c_attn"]}, ["as in model.layers.0.self_attn.q_proj", "Embeddings: embed_tokens"]),
        (model, {"target_modules": ["self_attn"]}, ["Attention cannot be adapted", "Linear, Conv1D, QuantizedLinear"]),
        (model, {"target_modules": ["q_proj"], "exclude_modules": ["q_proj"]}, ["but for exclude_modules"]),
        (model, {"target_modules": "q_proj"}, ["for whole paths; for a name, give a list: ['q_proj']"]),
        (
            lambda: GPT2(SMALL),
            {"target_modules": ["q_proj", "v_proj"]},
            ["q, k and v in one layer, c_attn", "enable_lora"],
        ),
        (Module, {"target_modules": ["q_proj"]}, ["There is none"]),
    ],
)
def test_targets_that_match_nothing_say_what_there_is(build, fields, words):
    with pytest.raises(ConfigError) as error:
        get_peft_model(build(), LoraConfig(**fields))
    for word in words:
        assert word in str(error.value)


def test_a_name_among_others_that_matches_nothing_is_warned_of():
    with pytest.warns(UserWarning, match="no layer is called 'v_prj'. Did you mean 'v_proj'"):
        get_peft_model(model(), LoraConfig(target_modules=["q_proj", "v_prj"]))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"exclude_modules": ["k_prj"]}, "exclude_modules: no layer is called 'k_prj'. Did you mean 'k_proj'"),
        ({"exclude_modules": "k_proj"}, "exclude_modules='k_proj' is no layer's whole path"),
        ({"rank_pattern": {"q_prj": 2}}, "rank_pattern: no adapted layer's path ends in 'q_prj'. Did you mean 'q_"),
        ({"alpha_pattern": {"k_proj": 2}}, "alpha_pattern: no adapted layer's path ends in 'k_proj'"),
        ({"layers_to_transform": [0, 7]}, "layers_to_transform: there is no layer to adapt in block 7"),
        ({"bias": "lora_only"}, "bias='lora_only' trains nothing more: there is no such bias"),
    ],
)
def test_what_chooses_no_layer_is_warned_of(fields, message):
    fields = {"r": 2, "target_modules": ["q_proj", "v_proj"]} | fields
    with pytest.warns(UserWarning) as warned:
        get_peft_model(model(), LoraConfig(**fields))
    assert [str(w.message)[: len(message)] for w in warned] == [message]


def test_what_chooses_layers_is_not_warned_of(recwarn):
    patterns = {"rank_pattern": {"q_proj": 2, r"layers\.1\.mlp\..*": 3}, "alpha_pattern": {"v_proj": 3}}
    chosen = {"target_modules": ["q_proj", "v_proj", "up_proj"], "exclude_modules": ["k_proj"]}
    get_peft_model(model(), LoraConfig(r=4, layers_to_transform=[0, 1], **patterns, **chosen))
    get_peft_model(model(bias=True), LoraConfig(r=2, bias="lora_only", exclude_modules=r".*\.1\..*"))
    assert not recwarn.list


def test_what_is_no_model_or_no_configuration_is_refused():
    with pytest.raises(ConfigError, match="beside a Module, such as load_model gives, not a str"):
        get_peft_model("embedded", LoraConfig())
    base = model()
    with pytest.raises(ConfigError, match="is a LoraConfig, not a dict"):
        get_peft_model(base, {"r": 8})
    get_peft_model(base, LoraConfig())  # the model is as it was


@pytest.mark.parametrize(
    "fields",
    [
        {"r": 0}, {"r": -1}, {"r": 2.0}, {"r": True}, {"r": "8"}, {"lora_alpha": 0}, {"lora_alpha": -1},
        {"lora_alpha": float("inf")}, {"lora_alpha": float("nan")}, {"lora_alpha": "8"}, {"lora_dropout": 1.0},
        {"lora_dropout": -0.1}, {"lora_dropout": None}, {"target_modules": []}, {"target_modules": ""},
        {"target_modules": [1]}, {"target_modules": "("}, {"exclude_modules": "("}, {"exclude_modules": 3},
        {"modules_to_save": "lm_head"}, {"bias": "lora"}, {"use_dora": "yes"}, {"use_rslora": None},
        {"rank_pattern": {"q_proj": 0}}, {"rank_pattern": {"(": 2}}, {"alpha_pattern": {"q_proj": -1}},
        {"layers_to_transform": -1}, {"layers_to_transform": ["0"]},
        {"layers_to_transform": 0, "target_modules": ".*q_proj"}, {"layers_pattern": "layers"},
        {"init_lora_weights": "kaiming"}, {"init_lora_weights": 1}, {"enable_lora": [False, False]},
        {"enable_lora": [1, 0]}, {"enable_lora": [True, False], "use_dora": True}, {"loftq_config": {"bits": 4}},
        {"loftq_config": {"loftq_bits": 2}}, {"loftq_config": {"loftq_iter": 0}},
    ],
)  # fmt: skip
def test_bad_configurations_name_the_field(fields):
    with pytest.raises(ConfigError, match=next(iter(fields))):
        LoraConfig(**fields)


def test_the_seeds_configurations():
    """Of the documents that the project follows, with every argument that they give."""
    bloom = LoraConfig(
        r=8, lora_alpha=16, target_modules=["query_key_value"], lora_dropout=0.05, bias="none", task_type="CAUSAL_LM"
    )
    bigcode = LoraConfig(
        r=16, lora_alpha=8, target_modules=["c_attn", "c_proj", "c_fc", "wte", "wpe"], lora_dropout=0.1, bias="none"
    )
    assert (bloom.scaling, bigcode.scaling) == (2, 0.5)


@pytest.mark.filterwarnings("ignore:the embedding and the head", "ignore:r=16")
def test_starcoder_s_adapters():
    """r (d_in + d_out) for every layer of the kinds that the fourth seed's listing adapts, and for both tables."""
    config = ModelConfig(20, 16, 24, 2, 4, num_key_value_heads=1, max_position_embeddings=32)
    targets = ["c_attn", "c_proj", "c_fc", "wte", "wpe"]
    peft = get_peft_model(GPTBigCode(config), LoraConfig(r=3, target_modules=targets))
    block = (16 + (16 + 2 * 4)) + (16 + 16) + (16 + 24) + (24 + 16)
    assert peft.trainable_parameters()[0] == 3 * (2 * block + (20 + 16) + (32 + 16))


@given(st.integers(1, 9), st.integers(1, 9), st.floats(0.5, 9), st.floats(0.5, 9))
def test_patterns_decide_by_the_end_of_the_path(r, special, alpha, special_alpha):
    config = LoraConfig(
        r=r,
        lora_alpha=alpha,
        rank_pattern={r"layers\.1\.self_attn\.q_proj": special, "v_proj": special + 1},
        alpha_pattern={r"^model.layers.0.*_proj": special_alpha},
    )
    assert config.size_at("model.layers.1.self_attn.q_proj") == (special, alpha)
    assert config.size_at("model.layers.0.self_attn.q_proj") == (r, special_alpha)
    assert config.size_at("model.layers.1.self_attn.v_proj") == (special + 1, alpha)
    assert config.size_at("model.layers.1.self_attn.xv_proj") == (r, alpha)
    peft = adapted(r=r, lora_alpha=alpha, rank_pattern=config.rank_pattern, alpha_pattern=config.alpha_pattern)
    for path, layer in peft.adapters().items():
        rank, size = config.size_at(path.removeprefix("base_model.model."))
        assert layer.A("default").shape[0] == rank and layer.scaling["default"] == size / rank


def test_a_rank_above_the_matrix_s_is_warned_of():
    with pytest.warns(UserWarning, match=r"r=17 at model.layers.0.self_attn.q_proj, whose weight has rank 16.*1 more"):
        adapted(target_modules=["q_proj"], r=17)


def test_modules_to_save_that_match_nothing_say_what_there_is():
    with pytest.raises(ConfigError, match=r"modules_to_save=\['classifier'\].*lm_head"):
        adapted(modules_to_save=["classifier"])
    with pytest.raises(ConfigError, match=r"matches no module with weights\. There are: down_proj, embed_tokens, gate"):
        adapted(modules_to_save=["dropout"])  # a module, but there is nothing to train
    with pytest.raises(ConfigError, match=r"up_proj lies within model\.layers\.0\.mlp"):
        adapted(modules_to_save=["mlp", "up_proj"], target_modules=["q_proj"])
    with pytest.raises(ConfigError, match="down_proj is quantized"):
        adapted(base=quantize_model(model()), modules_to_save=["down_proj"], target_modules=["q_proj"])


def test_a_new_kind_of_layer_is_entered_in_the_table():
    from minilora.lora import LORA_LAYERS, LoraLinear

    class Odd(Linear):
        pass

    class Twice(LoraLinear):
        pass

    class Holder(Module):
        def __init__(self):
            self.odd, self.plain = Odd(4, 4, rng=np.random.default_rng(0)), Linear(4, 4)

    LORA_LAYERS[Odd] = Twice
    try:
        kinds = [type(layer) for layer in get_peft_model(Holder(), LoraConfig(r=2)).adapters().values()]
        assert kinds == [Twice, LoraLinear]
    finally:
        del LORA_LAYERS[Odd]
