"""One run's configuration: a YAML file, checked. Names are axolotl's where it has one.

config = load_recipe("demo", {"max_steps": 20})
"""

from difflib import get_close_matches
from pathlib import Path
from typing import Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from minilora.errors import ConfigError, unknown_name

RECIPES = Path(__file__).parent / "recipes"


class RunConfig(BaseModel):
    """A fine-tuning run, or with `pretrain` a training from nothing."""

    model_config = ConfigDict(extra="forbid")

    base_model: str = "embedded"
    random_init: bool = False  # the model's shape with new random weights: what training alone can do
    task: str = "header_json"
    adapter: Literal["qlora", "lora", "none"] = "qlora"  # none: all weights are trained
    load_in_4bit: bool = True
    bnb_4bit_use_double_quant: bool = True
    lora_r: int = Field(8, gt=0)
    lora_alpha: float = Field(16, gt=0)
    lora_dropout: float = Field(0.0, ge=0, lt=1)
    lora_target_modules: str | list[str] = "all-linear"
    sequence_len: int = Field(256, gt=1)
    micro_batch_size: int = Field(32, gt=0)
    gradient_accumulation_steps: int = Field(1, gt=0)
    max_steps: int = Field(100, gt=0)
    learning_rate: float = Field(1e-3, gt=0)
    lr_scheduler: str = "linear"
    warmup_steps: int = Field(0, ge=0)
    weight_decay: float = Field(0.0, ge=0)
    adam_beta2: float = Field(0.999, gt=0, lt=1)
    max_grad_norm: float = Field(1.0, gt=0)
    eval_steps: int | None = Field(None, gt=0)
    eval_examples: int = Field(64, gt=0)  # of the validation set, during training
    test_examples: int = Field(512, gt=0)  # of the held-out set, before and after
    seed: int = 0
    output_dir: str = "minilora-run"
    pretrain: dict | None = None  # fields of TransformerConfig


def load_recipe(name_or_path: str, overrides: dict | None = None) -> RunConfig:
    """A shipped recipe by name, or a YAML file by path; `overrides` replace its fields. Raises ConfigError."""
    path = Path(name_or_path)
    if path.suffix not in (".yml", ".yaml"):
        path = RECIPES / f"{name_or_path}.yml"
        if not path.exists():
            raise unknown_name("recipe", name_or_path, sorted(p.stem for p in RECIPES.glob("*.yml")))
    try:
        fields = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"recipe {path} cannot be read: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"recipe {path} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(fields, dict):
        raise ConfigError(f"recipe {path} must be a list of 'field: value' lines")
    try:
        return RunConfig(**(fields | (overrides or {})))
    except ValidationError as error:
        raise ConfigError(f"recipe {path.stem}: {_explain(error)}") from None


def _explain(error: ValidationError) -> str:
    reasons = []
    for e in error.errors():
        field = ".".join(map(str, e["loc"]))
        if e["type"] == "extra_forbidden":
            near = get_close_matches(field, RunConfig.model_fields, n=2, cutoff=0.5)
            hint = (
                f"; did you mean {' or '.join(near)}?" if near else f"; there are {', '.join(RunConfig.model_fields)}"
            )
            reasons.append(f"unknown field {field!r}{hint}")
        else:
            reasons.append(f"{field}={e['input']!r}: {e['msg'].lower()}")
    return ". ".join(reasons)
