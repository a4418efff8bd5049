"""Trainer: the loop from batches to saved weights, with the names of Hugging Face's Trainer.

    args = TrainingArguments("out", max_steps=340, learning_rate=5e-3, per_device_train_batch_size=32)
    Trainer(model, args, train_dataset, eval_dataset).train()

A dataset is a sequence of {"input_ids", "labels"}, or anything with batch(step). The gradient of an update is that of
the mean over all its target tokens, however they are split into micro-batches (a mean of means would not be).
"""

import json
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

from minilora.data.collate import IGNORE, Batches
from minilora.errors import ConfigError, MiniloraError, TrainingError
from minilora.train.evaluate import evaluate
from minilora.train.optim import AdamW, clip_grad_norm
from minilora.train.schedule import learning_rate_factor


@dataclass
class TrainingArguments:
    output_dir: str
    max_steps: int = 100
    per_device_train_batch_size: int = 8
    gradient_accumulation_steps: int = 1
    learning_rate: float = 1e-3
    lr_scheduler_type: str = "linear"
    warmup_steps: int = 0
    weight_decay: float = 0.0
    adam_beta1: float = 0.9
    adam_beta2: float = 0.999
    adam_epsilon: float = 1e-8
    max_grad_norm: float = 1.0
    eval_steps: int | None = None  # evaluate every so many updates; always at the end where there is an eval_dataset
    save_steps: int | None = None  # save every so many updates; always at the end
    per_device_eval_batch_size: int = 32
    seed: int = 0
    overwrite_output_dir: bool = False

    def __post_init__(self):
        for name in ("max_steps", "per_device_train_batch_size", "gradient_accumulation_steps", "learning_rate"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"{name} must be positive, not {getattr(self, name)!r}")
        learning_rate_factor(self.lr_scheduler_type, 0, self.max_steps, self.warmup_steps)


@dataclass
class TrainOutput:
    """What a run did: updates made, target tokens seen, its log (as in metrics.jsonl), and whether Ctrl-C ended it."""

    steps: int = 0
    tokens: int = 0
    seconds: float = 0.0
    log: list[dict] = field(default_factory=list)
    interrupted: bool = False


class Trainer:
    def __init__(
        self,
        model,
        args: TrainingArguments,
        train_dataset,
        eval_dataset=None,
        data_collator=None,
        progress: Callable[[dict], None] | None = None,
        save: Callable[[Path], None] | None = None,
    ):
        """progress: called with each log entry. save: writes the weights to a folder (model.save_pretrained)."""
        self.model, self.args, self.eval_dataset, self.collator = model, args, eval_dataset, data_collator
        self.batches = train_dataset
        if not hasattr(train_dataset, "batch"):
            size = args.per_device_train_batch_size
            self.batches = Batches(train_dataset, size, data_collator, args.seed)
        self.progress = progress or (lambda entry: None)
        self.save = save or model.save_pretrained
        self.optimizer = AdamW(
            model.parameters(), args.learning_rate, (args.adam_beta1, args.adam_beta2), args.adam_epsilon,
            args.weight_decay,
        )  # fmt: skip

    def train(self) -> TrainOutput:
        """Run max_steps updates. Writes metrics.jsonl, trainer_args.json and the weights to output_dir.

        Ctrl-C saves and returns with interrupted=True. Raises TrainingError for a non-finite loss, after saving the
        weights from before it, and for an output folder that cannot be used, before the first update.
        """
        folder = prepare_output_dir(self.args.output_dir, self.args.overwrite_output_dir)
        (folder / "trainer_args.json").write_text(json.dumps(asdict(self.args), indent=2) + "\n")
        out, start = TrainOutput(), time.perf_counter()
        self.model.train()
        try:
            with open(folder / "metrics.jsonl", "w", encoding="utf-8") as metrics:
                for step in range(self.args.max_steps):
                    entry = self._update(step, folder)
                    out.steps, out.tokens = step + 1, out.tokens + entry["tokens"]
                    if self._due(self.args.eval_steps, step) and self.eval_dataset is not None:
                        entry |= self._evaluate()
                    if self._due(self.args.save_steps, step):
                        self.save(folder)
                    out.seconds = time.perf_counter() - start
                    out.log.append(entry)
                    metrics.write(json.dumps(entry) + "\n")
                    metrics.flush()
                    self.progress(entry | {"seconds": out.seconds, "tokens_per_second": out.tokens / out.seconds})
        except KeyboardInterrupt:
            out.interrupted = True
        finally:
            self.model.eval()
        self.save(folder)
        return out

    def _due(self, every: int | None, step: int) -> bool:
        return bool(every) and ((step + 1) % every == 0 or step + 1 == self.args.max_steps)

    def _evaluate(self) -> dict[str, float]:
        scores = evaluate(self.model, self.eval_dataset, self.args.per_device_eval_batch_size, self.collator)
        return {"eval_loss": scores["loss"], "eval_exact_match": scores["exact_match"]}

    def _update(self, step: int, folder: Path) -> dict:
        args, optimizer = self.args, self.optimizer
        first = step * args.gradient_accumulation_steps
        batches = [self.batches.batch(first + i) for i in range(args.gradient_accumulation_steps)]
        targets = sum(int((batch["labels"][:, 1:] != IGNORE).sum()) for batch in batches)
        if not targets:
            raise TrainingError(f"step {step + 1}: no label of its batches is a target, all are {IGNORE}")
        optimizer.zero_grad()
        total = 0.0
        for i, batch in enumerate(batches):
            loss = self.model.loss(batch["input_ids"], batch["labels"], reduction="sum") * (1 / targets)
            if not math.isfinite(loss.item()):
                self._stop(f"step {step + 1}, batch {first + i}: the loss is {loss.item()}", folder)
            loss.backward()
            total += loss.item()
        norm = clip_grad_norm(optimizer.params, args.max_grad_norm)
        if not math.isfinite(norm):
            self._stop(f"step {step + 1}: the gradient's norm is {norm} (loss {total:.4g})", folder)
        optimizer.lr = args.learning_rate * learning_rate_factor(
            args.lr_scheduler_type, step, args.max_steps, args.warmup_steps
        )
        optimizer.step()
        return {"step": step + 1, "loss": total, "lr": optimizer.lr, "grad_norm": norm, "tokens": targets}

    def _stop(self, what: str, folder: Path):
        self.save(folder)
        raise TrainingError(
            f"{what}; stopped, and the weights of the step before are in {folder}. Lower the learning rate"
            f" ({self.args.learning_rate:g}), or look at that batch."
        )


def prepare_output_dir(path, overwrite: bool = False) -> Path:
    """The folder, made if need be and proven writable. Raises TrainingError if it holds files or cannot be written."""
    folder = Path(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not overwrite and any(folder.iterdir()):
            raise TrainingError(f"output folder {folder} is not empty; name another, or pass overwrite_output_dir")
        probe = folder / ".writable"
        probe.write_bytes(b"")
        probe.unlink()
    except OSError as error:
        raise TrainingError(f"output folder {folder} cannot be written: {error.strerror}") from error
    except MiniloraError:
        raise
    return folder
