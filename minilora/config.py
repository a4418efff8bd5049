"""One run's configuration: a YAML file, checked. Names are axolotl's where it has one.

config = load_recipe("run.yml", {"learning_rate": 1e-3})     # or a shipped recipe by name
config.learning_rate, config.datasets[0].path

A key that does not exist is an error that names the nearest one. A key of axolotl's for something that is not here is
an error that says so, unless its value turns it off: nothing that was asked for is ever left out silently.
"""

from difflib import get_close_matches
from pathlib import Path
from typing import Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from minilora.data.formats import FORMATS
from minilora.errors import ConfigError, unknown_name

RECIPES = Path(__file__).parent / "recipes"
OPTIMIZERS = {  # axolotl's and transformers' names -> ours
    "adamw": "adamw", "adamw_torch": "adamw", "adamw_hf": "adamw",
    "adamw_8bit": "adamw_8bit", "adamw_bnb_8bit": "adamw_8bit",
    "paged_adamw": "paged_adamw", "paged_adamw_32bit": "paged_adamw",
    "muon": "muon",
}  # fmt: skip
# Keys of axolotl's that ask for something that is not here. Off (null, false, 0, "", []) they are accepted.
UNAVAILABLE = {
    "deepspeed": "DeepSpeed", "fsdp": "sharded training", "fsdp_config": "sharded training",
    "flash_attention": "flash attention", "xformers_attention": "xFormers", "sdp_attention": "torch's attention",
    "flash_optimum": "BetterTransformer", "torch_compile": "torch.compile", "tf32": "TF32",
    "wandb_project": "Weights & Biases (see use_tensorboard)", "wandb_entity": "Weights & Biases",
    "wandb_watch": "Weights & Biases", "wandb_name": "Weights & Biases", "wandb_run_id": "Weights & Biases",
    "wandb_log_model": "Weights & Biases", "mlflow_tracking_uri": "MLflow", "hub_model_id": "a model hub",
    "gptq": "GPTQ", "rl": "reinforcement learning", "peft_layers_to_transform": "layers_to_transform from a recipe",
    "trust_remote_code": "code that comes with a model", "special_tokens": "new special tokens", "tokens": "new tokens",
    "local_rank": "torch's launcher (use mpiexec)", "debug": "axolotl's debug mode (use --show-batch)",
    "loss_watchdog_threshold": "a loss watchdog", "relora_prune_ratio": "pruning of optimizer state",
}  # fmt: skip


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class Dataset(_Strict):
    """path: a .jsonl, .json, .csv or .txt file. type: what its rows are (see data/formats.py)."""

    path: str
    type: Literal[tuple(FORMATS)]  # type: ignore[valid-type]


class RunConfig(_Strict):
    """A fine-tuning run, or with `pretrain` a training from nothing."""

    # the model
    base_model: str = "embedded"
    model_type: str | None = None  # Hugging Face's class; must be the model's, or AutoModelForCausalLM
    tokenizer_type: str | None = None  # for axolotl; a model's tokenizer is always its own tokenizer.json
    is_llama_derived_model: bool | None = None  # must be true of the model
    strict: bool = False  # for axolotl; files are always read strictly
    random_init: bool = False  # the model's shape with new random weights: what training alone can do
    pretrain: dict | None = None  # fields of TransformerConfig

    # adapters and bits
    adapter: Literal["qlora", "lora", "relora", "full"] = "qlora"
    load_in_4bit: bool | None = None  # as the adapter says: true for qlora; giving both must agree
    load_in_8bit: bool = False  # int8 by rows, for adapter: lora
    bnb_4bit_use_double_quant: bool = True
    lora_r: int = Field(8, gt=0)
    lora_alpha: float = Field(16, gt=0)
    lora_dropout: float = Field(0.0, ge=0, lt=1)
    lora_target_modules: str | list[str] | None = None
    lora_target_linear: bool | None = None  # every linear layer but the head: the default without target_modules
    lora_fan_in_fan_out: bool | None = None
    lora_modules_to_save: list[str] | None = None
    lora_model_dir: str | None = None  # an adapter to go on training
    peft_use_rslora: bool = False
    peft_use_dora: bool = False
    relora_steps: int | None = Field(None, gt=0)  # merge and begin a new adapter every so many updates
    relora_warmup_steps: int = Field(10, ge=0)

    # data
    task: str | None = None  # made from the standard library (see data/tasks.py); the default without datasets
    datasets: list[Dataset] | None = None
    dataset_prepared_path: str | None = None  # where tokens are kept from one run to the next
    val_set_size: float = Field(0.0, ge=0)  # below 1 a share, else a number of examples
    sequence_len: int = Field(256, gt=1)
    sample_packing: bool = False
    pad_to_sequence_len: bool | None = None
    train_on_inputs: bool = False

    # the run
    micro_batch_size: int = Field(32, gt=0)
    gradient_accumulation_steps: int = Field(1, gt=0)
    num_epochs: float | None = Field(None, gt=0)
    max_steps: int | None = Field(None, gt=0)
    optimizer: Literal[tuple(OPTIMIZERS)] = "adamw"  # type: ignore[valid-type]
    learning_rate: float = Field(1e-3, gt=0)
    lr_scheduler: Literal["linear", "cosine", "constant", "constant_with_warmup", "warmup_stable_decay"] = "linear"
    warmup_steps: int = Field(0, ge=0)
    warmup_ratio: float = Field(0.0, ge=0, le=1)
    weight_decay: float = Field(0.0, ge=0)
    adam_beta1: float = Field(0.9, ge=0, lt=1)
    adam_beta2: float = Field(0.999, gt=0, lt=1)
    adam_epsilon: float = Field(1e-8, gt=0)
    max_grad_norm: float = Field(1.0, gt=0)
    bf16: bool | Literal["auto"] = False  # auto: no, as no machine that this runs on is faster with it
    fp16: bool = False
    gradient_checkpointing: bool = False
    seed: int = Field(0, ge=0)
    blas_threads: int | None = Field(None, gt=0)  # threads of NumPy's matrix products; as the environment says if None

    # evaluation, logs, snapshots
    logging_steps: int = Field(1, gt=0)
    eval_steps: int | None = Field(None, gt=0)
    eval_examples: int = Field(64, gt=0)  # of the validation set, during training
    test_examples: int = Field(512, gt=0)  # of a task's held-out set, before and after
    early_stopping_patience: int | None = Field(None, gt=0)
    load_best_model_at_end: bool = False
    save_steps: int | None = Field(None, gt=0)
    save_total_limit: int | None = Field(None, gt=0)
    resume_from_checkpoint: str | bool | None = None  # a snapshot's folder; true: the last one in output_dir
    use_tensorboard: bool = False
    output_dir: str = "minilora-run"

    @model_validator(mode="after")
    def _fits_together(self):
        quantized = self.adapter == "qlora" and self.pretrain is None
        if self.load_in_4bit is None:
            self.load_in_4bit = quantized
        wrong = {
            "load_in_4bit is for adapter: qlora; say that, or load_in_4bit: false": self.load_in_4bit and not quantized,
            "adapter: qlora needs load_in_4bit: true; for a float base say adapter: lora":
                quantized and not self.load_in_4bit,
            "load_in_8bit is for adapter: lora": self.load_in_8bit and self.adapter != "lora",
            "give max_steps or num_epochs, not both": self.max_steps is not None and self.num_epochs is not None,
            "give warmup_steps or warmup_ratio, not both": self.warmup_steps and self.warmup_ratio,
            "bf16 or fp16, not both": self.bf16 is True and self.fp16,
            "give a task or datasets, not both": self.task is not None and self.datasets is not None,
            "adapter: relora needs relora_steps": self.adapter == "relora" and not self.relora_steps,
            "relora_steps is for adapter: relora": self.adapter != "relora" and self.relora_steps,
            "lora_target_linear: true means every linear layer; leave out lora_target_modules":
                self.lora_target_linear and self.lora_target_modules,
            "lora_target_linear: false needs lora_target_modules":
                self.lora_target_linear is False and not self.lora_target_modules and self.adapter != "full",
        }  # fmt: skip
        for message, holds in wrong.items():
            if holds:
                raise ValueError(message)
        if self.datasets is None:
            self.task = self.task or "header_json"
        if self.max_steps is None and self.num_epochs is None:
            self.max_steps = 100
        return self


def load_recipe(name_or_path: str, overrides: dict | None = None) -> RunConfig:
    """A shipped recipe by name, or a YAML file by path; `overrides` replace its keys. Raises ConfigError."""
    path = Path(name_or_path)
    if path.suffix not in (".yml", ".yaml"):
        path = RECIPES / f"{name_or_path}.yml"
        if not path.exists():
            raise unknown_name("recipe", name_or_path, sorted(p.stem for p in RECIPES.glob("*.yml")))
    fields, lines = _read(path)
    lines = {name: line for name, line in lines.items() if name not in (overrides or {})}
    fields |= overrides or {}
    asked = {name: fields.pop(name) for name in UNAVAILABLE if name in fields}
    refused = [
        f"{_place(name, lines)}{name}={value!r}: {UNAVAILABLE[name]} is not available here; leave it out"
        for name, value in asked.items()
        if value
    ]
    if refused:
        raise ConfigError(f"recipe {path.stem}: {'. '.join(refused)}")
    try:
        return RunConfig(**_without_blanks(fields))
    except ValidationError as error:
        raise ConfigError(f"recipe {path.stem}: {_explain(error, lines)}") from None


def _without_blanks(fields: dict) -> dict:
    """A key without a value is as if it were not there."""
    return {name: value for name, value in fields.items() if value is not None or name not in RunConfig.model_fields}


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


def _place(name: str, lines: dict[str, int]) -> str:
    return f"line {lines[name]}: " if name in lines else ""


def _explain(error: ValidationError, lines: dict[str, int]) -> str:
    reasons = []
    for e in error.errors():
        field = ".".join(map(str, e["loc"]))
        where = _place(str(e["loc"][0]), lines) if e["loc"] else ""
        if e["type"] == "extra_forbidden":
            known = [*RunConfig.model_fields] if len(e["loc"]) == 1 else [*Dataset.model_fields]
            near = get_close_matches(str(e["loc"][-1]), known, n=2, cutoff=0.5)
            hint = f"; did you mean {' or '.join(near)}?" if near else f"; there are {', '.join(known)}"
            reasons.append(f"{where}unknown field {field!r}{hint}")
        elif not field:
            reasons.append(str(e["ctx"]["error"]))
        else:
            reasons.append(f"{where}{field}={e['input']!r}: {e['msg'].lower()}")
    return ". ".join(reasons)
