"""One run's configuration: a YAML file, checked. Names are axolotl's where it has one.

config = load_recipe("demo", {"max_steps": 20})
"""

from difflib import get_close_matches
from pathlib import Path
from typing import Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from minilora.errors import ConfigError, unknown_name

RECIPES = Path(__file__).parent / "recipes"


class RunConfig(BaseModel):
    """A fine-tuning run, or with `pretrain` a training from nothing."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    base_model: str = "embedded"
    random_init: bool = False  # the model's shape with new random weights: what training alone can do
    task: str = "header_json"
    adapter: Literal["qlora", "lora", "none"] = "qlora"  # none: all weights are trained
    load_in_4bit: bool | None = None  # as the adapter says: true for qlora; giving both must agree
    bnb_4bit_use_double_quant: bool = True
    lora_r: int = Field(8, gt=0)
    lora_alpha: float = Field(16, gt=0)
    lora_dropout: float = Field(0.0, ge=0, lt=1)
    lora_target_modules: str | list[str] = "all-linear"
    sequence_len: int = Field(256, gt=1)
    micro_batch_size: int = Field(32, gt=0)
    gradient_accumulation_steps: int = Field(1, gt=0)
    max_steps: int = Field(100, gt=0)
    optimizer: Literal["adamw", "muon"] = "adamw"
    learning_rate: float = Field(1e-3, gt=0)
    lr_scheduler: Literal["linear", "cosine", "constant", "constant_with_warmup", "warmup_stable_decay"] = "linear"
    warmup_steps: int = Field(0, ge=0)
    weight_decay: float = Field(0.0, ge=0)
    adam_beta2: float = Field(0.999, gt=0, lt=1)
    max_grad_norm: float = Field(1.0, gt=0)
    eval_steps: int | None = Field(None, gt=0)
    eval_examples: int = Field(64, gt=0)  # of the validation set, during training
    test_examples: int = Field(512, gt=0)  # of the held-out set, before and after
    seed: int = Field(0, ge=0)
    blas_threads: int | None = Field(None, gt=0)  # threads of NumPy's matrix products; as the environment says if None
    output_dir: str = "minilora-run"
    pretrain: dict | None = None  # fields of TransformerConfig

    @model_validator(mode="after")
    def _bits_fit_the_adapter(self):
        wanted = self.adapter == "qlora" and self.pretrain is None
        if self.load_in_4bit is None:
            self.load_in_4bit = wanted
        if self.load_in_4bit and not wanted:
            raise ValueError("load_in_4bit is for adapter: qlora; say that, or load_in_4bit: false")
        if wanted and not self.load_in_4bit:
            raise ValueError("adapter: qlora needs load_in_4bit: true; for a float base say adapter: lora")
        return self


def load_recipe(name_or_path: str, overrides: dict | None = None) -> RunConfig:
    """A shipped recipe by name, or a YAML file by path; `overrides` replace its fields. Raises ConfigError."""
    path = Path(name_or_path)
    if path.suffix not in (".yml", ".yaml"):
        path = RECIPES / f"{name_or_path}.yml"
        if not path.exists():
            raise unknown_name("recipe", name_or_path, sorted(p.stem for p in RECIPES.glob("*.yml")))
    fields, lines = _read(path)
    try:
        return RunConfig(**(fields | (overrides or {})))
    except ValidationError as error:
        lines = {name: line for name, line in lines.items() if name not in (overrides or {})}
        raise ConfigError(f"recipe {path.stem}: {_explain(error, lines)}") from None


def _read(path: Path) -> tuple[dict, dict[str, int]]:
    """The fields of a YAML file, and the line of each. Raises ConfigError for whatever the file may hold instead."""
    try:
        text = path.read_text(encoding="utf-8")
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        fields = yaml.safe_load(text)
    except OSError as error:
        raise ConfigError(f"recipe {path} cannot be read: {error.strerror}") from error
    except RecursionError:
        raise ConfigError(f"recipe {path} is not YAML that we read: nested too deeply") from None
    except (
        yaml.YAMLError,
        ValueError,
    ) as error:  # ValueError: not UTF-8, or what looks like a date or number and is not
        raise ConfigError(f"recipe {path} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(fields, dict) or not all(isinstance(name, str) for name in fields):
        raise ConfigError(f"recipe {path} must be a list of 'field: value' lines")
    lines = {}
    for key, _ in node.value:
        line = key.start_mark.line + 1
        if key.value in lines:
            raise ConfigError(
                f"recipe {path}: {key.value} is given on line {lines[key.value]} and again on line {line}"
            )
        lines[key.value] = line
    return fields, lines


def _explain(error: ValidationError, lines: dict[str, int]) -> str:
    reasons = []
    for e in error.errors():
        field = ".".join(map(str, e["loc"]))
        where = f"line {lines[str(e['loc'][0])]}: " if e["loc"] and str(e["loc"][0]) in lines else ""
        if e["type"] == "extra_forbidden":
            near = get_close_matches(field, RunConfig.model_fields, n=2, cutoff=0.5)
            hint = (
                f"; did you mean {' or '.join(near)}?" if near else f"; there are {', '.join(RunConfig.model_fields)}"
            )
            reasons.append(f"{where}unknown field {field!r}{hint}")
        elif not field:
            reasons.append(str(e["ctx"]["error"]))
        else:
            reasons.append(f"{where}{field}={e['input']!r}: {e['msg'].lower()}")
    return ". ".join(reasons)
