import pytest

from minilora.config import RECIPES, load_recipe
from minilora.errors import ConfigError, UnknownNameError


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
