from typing import get_args

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from minilora.config import RECIPES, RunConfig, load_recipe
from minilora.errors import ConfigError, UnknownNameError
from minilora.train.schedule import SCHEDULES


@pytest.mark.parametrize("name", [p.stem for p in RECIPES.glob("*.yml")])
def test_shipped_recipes_are_valid(name):
    assert load_recipe(name).max_steps > 0


def test_overrides():
    assert load_recipe("demo", {"max_steps": 3}).max_steps == 3


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ("lora_rank: 8", "unknown field 'lora_rank'; did you mean lora_r"),
        ("zzz: 1", "unknown field 'zzz'; there are base_model"),
        ("lora_r: 0", "lora_r=0: input should be greater than 0"),
        ("adapter: dora", "adapter='dora'"),
        ("max_steps: many", "max_steps='many'"),
        ("a: [1", "not YAML.*line 1"),
        ("- 1", "list of 'field: value' lines"),
        ("", "list of 'field: value' lines"),
        ("1: 2", "list of 'field: value' lines"),
        ("# a comment\n\nlora_r: 0", "line 3: lora_r=0"),
        ("seed: 1\nlora_rank: 8", "line 2: unknown field 'lora_rank'"),
        ("lora_r: 4\nseed: 1\nlora_r: 8", "lora_r is given on line 1 and again on line 3"),
        ("lr_scheduler: linar", "lr_scheduler='linar'.*'linear'"),
        ("learning_rate: .inf", "finite"),
        ("seed: -1", "seed=-1"),
        ("adapter: qlora\nload_in_4bit: false", "qlora needs load_in_4bit: true"),
        ("adapter: lora\nload_in_4bit: true", "load_in_4bit is for adapter: qlora"),
        ("adapter: full\nload_in_4bit: true", "load_in_4bit is for adapter: qlora"),
    ],
)
def test_bad_recipes(tmp_path, fields, message):
    (tmp_path / "r.yml").write_text(fields)
    with pytest.raises(ConfigError, match=message):
        load_recipe(tmp_path / "r.yml")


def test_unknown_recipe():
    with pytest.raises(UnknownNameError, match="Did you mean 'demo'"):
        load_recipe("dmo")
    with pytest.raises(ConfigError, match="cannot be read"):
        load_recipe("none.yml")


def test_bits_follow_the_adapter(tmp_path):
    for adapter, bits in (("qlora", True), ("lora", False), ("full", False)):
        (tmp_path / "r.yml").write_text(f"adapter: {adapter}")
        assert load_recipe(tmp_path / "r.yml").load_in_4bit is bits


def test_an_override_is_not_blamed_on_a_line_of_the_file(tmp_path):
    (tmp_path / "r.yml").write_text("lora_r: 8")
    with pytest.raises(ConfigError, match="recipe r: lora_r=0"):
        load_recipe(tmp_path / "r.yml", {"lora_r": 0})


def test_schedules_are_those_that_there_are():
    assert set(get_args(RunConfig.model_fields["lr_scheduler"].annotation)) == set(SCHEDULES)


@given(st.text(st.sampled_from("lora_r: 8\n-[]{}#&*!|>'\"%@`,?0x9.eE\t\x00é"), max_size=60))
@example("a: 2020-99-99")
@example("a: 0x_")
@example("[" * 5000)
@example("a: &a [*a]")
@example("lora_r: &x 8\n*x : 9")
@example("<<: {lora_r: 4}")
@example("!!python/object:os.system x")
def test_any_file_is_a_configuration_or_a_clear_error(tmp_path, text):
    (tmp_path / "r.yml").write_text(text, encoding="utf-8")
    try:
        assert isinstance(load_recipe(tmp_path / "r.yml"), RunConfig)
    except ConfigError as error:
        assert len(str(error)) < 1500


def test_a_file_that_is_not_text(tmp_path):
    (tmp_path / "r.yml").write_bytes(b"\xff\xfe\x00\x80")
    with pytest.raises(ConfigError, match="not YAML"):
        load_recipe(tmp_path / "r.yml")
