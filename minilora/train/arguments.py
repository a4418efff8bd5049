"""TrainingArguments: what a run is to do, with Hugging Face's names, checked before anything is loaded.

args = TrainingArguments("out", num_train_epochs=2, learning_rate=5e-3, warmup_ratio=0.03)
"""

import math
from dataclasses import asdict, dataclass
from numbers import Integral, Real

from minilora.errors import ConfigError, unknown_name
from minilora.train.schedule import learning_rate_factor

OPTIMIZERS = ("adamw", "adamw_8bit", "paged_adamw", "muon")
_COUNTS = (
    "max_steps",
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "per_device_eval_batch_size",
    "eval_steps",
    "save_steps",
    "logging_steps",
    "save_total_limit",
    "early_stopping_patience",
    "relora_steps",
)
_NOT_THE_CURVE = ("output_dir", "overwrite_output_dir", "save_steps", "save_total_limit", "load_best_model_at_end",
                  "metric_for_best_model", "early_stopping_patience", "eval_steps", "per_device_eval_batch_size",
                  "logging_steps", "report_to", "gradient_checkpointing", "disable_tqdm")  # fmt: skip
BETTER = {"eval_loss": lambda new, best: new < best, "eval_exact_match": lambda new, best: new > best}
_RANGES = {  # field -> whether a number will do, and in words
    "num_train_epochs": (lambda x: x > 0, "positive"),
    "learning_rate": (lambda x: x > 0, "positive"),
    "adam_epsilon": (lambda x: x > 0, "positive"),
    "max_grad_norm": (lambda x: x > 0, "positive"),
    "weight_decay": (lambda x: x >= 0, "zero or more"),
    "adam_beta1": (lambda x: 0 <= x < 1, "at least 0 and below 1"),
    "adam_beta2": (lambda x: 0 <= x < 1, "at least 0 and below 1"),
    "warmup_ratio": (lambda x: 0 <= x <= 1, "between 0 and 1"),
}


@dataclass
class TrainingArguments:
    """max_steps, or num_train_epochs; neither means 100 steps. warmup_steps, or warmup_ratio of the steps, which warms
    up whatever the schedule. Raises ConfigError for a value that does not fit."""

    output_dir: str
    max_steps: int | None = None
    num_train_epochs: float | None = None
    per_device_train_batch_size: int = 8
    gradient_accumulation_steps: int = 1
    optim: str = "adamw"  # or with its state in 8 bits or in pages; "muon" for training from nothing
    learning_rate: float = 1e-3
    lr_scheduler_type: str = "linear"
    warmup_steps: int = 0
    warmup_ratio: float = 0.0
    weight_decay: float = 0.0
    adam_beta1: float = 0.9
    adam_beta2: float = 0.999
    adam_epsilon: float = 1e-8
    max_grad_norm: float = 1.0
    eval_steps: int | None = None  # evaluate every so many updates; always at the end where there is an eval_dataset
    save_steps: int | None = None  # a snapshot every so many updates; the weights always at the end
    save_total_limit: int | None = None  # snapshots that are kept, the last ones; that of the best evaluation always is
    load_best_model_at_end: bool = False  # end with the weights of the best evaluation; save_steps as eval_steps then
    metric_for_best_model: str = "eval_loss"  # or "eval_exact_match"
    early_stopping_patience: int | None = None  # stop after so many evaluations that were no better than the best
    logging_steps: int = 1  # updates from one line of the log to the next; evaluations always have one
    bf16: bool = False  # compute rounded to bfloat16 (see precision.py)
    fp16: bool = False  # or to float16, with a scaled loss
    gradient_checkpointing: bool = False
    relora_steps: int | None = None  # merge and begin a new adapter every so many updates (see relora.py)
    relora_warmup_steps: int = 10
    report_to: str = "none"  # or "tensorboard"
    disable_tqdm: bool = False  # no progress bar
    per_device_eval_batch_size: int = 32
    seed: int = 0
    overwrite_output_dir: bool = False

    def __post_init__(self):
        self.output_dir = str(self.output_dir)
        for a, b in (("max_steps", "num_train_epochs"), ("warmup_steps", "warmup_ratio")):
            if getattr(self, a) and getattr(self, b):
                raise ConfigError(f"{a}={getattr(self, a)!r} and {b}={getattr(self, b)!r}: give one of them")
        if self.max_steps is None and self.num_train_epochs is None:
            self.max_steps = 100
        for name in _COUNTS:
            value = getattr(self, name)
            if value is not None and not (isinstance(value, Integral) and value > 0):
                raise ConfigError(f"{name} must be positive and whole, not {value!r}")
        for name in ("warmup_steps", "seed", "relora_warmup_steps"):
            value = getattr(self, name)
            if not (isinstance(value, Integral) and value >= 0):
                raise ConfigError(f"{name} must be a whole number, zero or more, not {value!r}")
        for name, (fits, words) in _RANGES.items():
            value = getattr(self, name)
            if value is not None and not (isinstance(value, Real) and math.isfinite(value) and fits(value)):
                raise ConfigError(f"{name} must be {words}, not {value!r}")
        if self.bf16 and self.fp16:
            raise ConfigError("bf16 or fp16, not both")
        if self.metric_for_best_model not in BETTER:
            raise unknown_name("metric_for_best_model", self.metric_for_best_model, BETTER)
        if self.report_to not in ("none", "tensorboard"):
            raise unknown_name("report_to", self.report_to, ("none", "tensorboard"))
        if self.load_best_model_at_end and (not self.eval_steps or self.save_steps != self.eval_steps):
            raise ConfigError("load_best_model_at_end needs save_steps to be eval_steps: the best must have been saved")
        if self.optim not in OPTIMIZERS:
            raise unknown_name("optim", self.optim, OPTIMIZERS)
        learning_rate_factor(self.lr_scheduler_type, 0, 1)

    @property
    def precision(self) -> str:
        """The type that is computed in: "float32", or "bfloat16" or "float16", simulated."""
        return "bfloat16" if self.bf16 else "float16" if self.fp16 else "float32"

    def curve(self) -> dict:
        """The arguments that the losses depend on, which a run shares with the snapshot that it goes on from."""
        return {name: value for name, value in asdict(self).items() if name not in _NOT_THE_CURVE}

    def steps(self, batches_per_epoch: int | None) -> int:
        """Updates of a run. batches_per_epoch: None for data without epochs; num_train_epochs is then a ConfigError."""
        if self.num_train_epochs is None:
            return self.max_steps
        if batches_per_epoch is None:
            raise ConfigError("num_train_epochs needs a dataset with a length; give max_steps for one made of batches")
        return math.ceil(self.num_train_epochs * batches_per_epoch / self.gradient_accumulation_steps)
