"""Trainer: the loop from batches to saved weights, with the names of Hugging Face's Trainer.

    args = TrainingArguments("out", max_steps=340, learning_rate=5e-3, per_device_train_batch_size=32)
    Trainer(model, args, train_dataset, eval_dataset).train()

A dataset is a sequence of {"input_ids", "labels"}, or anything with batch(step). The gradient of an update is that of
the mean over all its target tokens, however they are split into micro-batches (a mean of means would not be).
"""

import json
import math
import signal
import threading
import time
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np

from minilora.data.collate import IGNORE, Batches
from minilora.errors import ConfigError, MiniloraError, TrainingError
from minilora.train.adamw8bit import AdamW8bit
from minilora.train.arguments import TrainingArguments
from minilora.train.evaluate import evaluate
from minilora.train.muon import Muon, hidden_matrices
from minilora.train.optim import AdamW, clip_grad_norm
from minilora.train.paged import PagedAdamW
from minilora.train.schedule import learning_rate_factor

ADAMW = {"adamw": AdamW, "adamw_8bit": AdamW8bit, "paged_adamw": PagedAdamW}


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
        self.max_steps = args.steps(getattr(self.batches, "per_epoch", None))
        self.warmup = args.warmup_steps or math.ceil(args.warmup_ratio * self.max_steps)
        self.progress = progress or (lambda entry: None)
        self.save = save or model.save_pretrained
        settings = args.learning_rate, (args.adam_beta1, args.adam_beta2), args.adam_epsilon, args.weight_decay
        if args.optim == "muon":
            self.optimizer = Muon(model.parameters(), hidden_matrices(model), *settings)
        else:
            self.optimizer = ADAMW[args.optim](model.parameters(), *settings)
        trained = [name for name, p in model.named_parameters() if p.requires_grad]  # in the optimizer's order
        self._lora_B = [i for i, name in enumerate(trained) if ".lora_B." in name]
        self._good: tuple[int, list[np.ndarray]] = (0, [])  # updates made, and the weights that gave the last good loss

    def train(self) -> TrainOutput:
        """Run the updates. Writes metrics.jsonl, trainer_args.json and the weights to output_dir.

        Ctrl-C saves and returns with interrupted=True; an update, its line in the log and a save are never cut in two.
        Raises TrainingError for a non-finite loss, after saving the last weights that gave a finite one, for adapters
        that the first update does not change, and for an output folder that cannot be used, before the first update.
        """
        folder = prepare_output_dir(self.args.output_dir, self.args.overwrite_output_dir)
        metrics = folder / "metrics.jsonl"
        _write(metrics, "", "w")
        _write(folder / "trainer_args.json", json.dumps(asdict(self.args), indent=2) + "\n", "w")
        out, start = TrainOutput(), time.perf_counter()
        self.model.train()
        try:
            for step in range(self.max_steps):
                entry = self._gradients(step, folder)
                try:
                    with hold_interrupts():
                        self._apply(entry)
                        out.steps, out.tokens = step + 1, out.tokens + entry["tokens"]
                        out.log.append(entry)
                    if self.eval_dataset is not None and self._due(self.args.eval_steps, step):
                        entry |= self._evaluate(step, folder)
                finally:
                    out.seconds = time.perf_counter() - start
                    if out.steps == step + 1:  # the update was made, even if Ctrl-C or its evaluation ends the run
                        with hold_interrupts():
                            _write(metrics, json.dumps(entry) + "\n", "a")
                if self.args.save_steps and (step + 1) % self.args.save_steps == 0:
                    with hold_interrupts():
                        self.save(folder)
                speed = {"seconds": out.seconds, "tokens_per_second": out.tokens / out.seconds}
                self.progress(entry | speed | {"max_steps": self.max_steps})
        except KeyboardInterrupt:
            out.interrupted = True
        finally:
            self.model.eval()
        try:
            with hold_interrupts():
                self.save(folder)
        except KeyboardInterrupt:
            out.interrupted = True
        return out

    def evaluate(self, dataset=None) -> dict[str, float]:
        """{"eval_loss", "eval_exact_match"} of `dataset`, or of eval_dataset."""
        dataset = self.eval_dataset if dataset is None else dataset
        if dataset is None:
            raise ConfigError("evaluate() needs a dataset: give one, or make the Trainer with an eval_dataset")
        scores = evaluate(self.model, dataset, self.args.per_device_eval_batch_size, self.collator)
        return {"eval_loss": scores["loss"], "eval_exact_match": scores["exact_match"]}

    def _due(self, every: int | None, step: int) -> bool:
        return step + 1 == self.max_steps or (every is not None and (step + 1) % every == 0)

    def _evaluate(self, step: int, folder: Path) -> dict[str, float]:
        scores = self.evaluate()
        if not math.isfinite(scores["eval_loss"]):
            self._stop(f"evaluation after step {step + 1}: the loss is {scores['eval_loss']}", folder)
        return scores

    def _gradients(self, step: int, folder: Path) -> dict:
        """Forward and backward of one update's batches; changes no weight. Returns the update's line of the log."""
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
        factor = learning_rate_factor(args.lr_scheduler_type, step, self.max_steps, self.warmup)
        lr = args.learning_rate * factor
        return {"step": step + 1, "loss": total, "lr": lr, "grad_norm": norm, "tokens": targets}

    def _apply(self, entry: dict):
        before = self.optimizer.snapshot()
        self._good = (entry["step"] - 1, before)
        self.optimizer.lr = entry["lr"]
        self.optimizer.step()
        after = self.optimizer.params
        if entry["step"] == 1 and self._lora_B and all(np.array_equal(before[i], after[i].data) for i in self._lora_B):
            raise TrainingError(
                f"the first update changed none of the {len(self._lora_B)} lora_B matrices (gradient norm "
                f"{entry['grad_norm']:g}): the loss does not depend on the adapters. Are they enabled, is lora_alpha 0?"
            )

    def _stop(self, what: str, folder: Path):
        """Put back and save the last weights that gave a finite loss: an update may have spoilt the present ones."""
        updates, weights = self._good
        kept = "no update was good, so nothing was saved"
        if updates:
            self.optimizer.restore(weights)
            try:
                self.save(folder)
                kept = f"the weights after update {updates}, the last that gave a finite loss, are in {folder}"
            except MiniloraError as error:
                kept = f"the weights before it could not be saved: {error}"
        raise TrainingError(
            f"{what}; stopped, {kept}. Lower the learning rate ({self.args.learning_rate:g}), or look at that batch."
        )


@contextmanager
def hold_interrupts():
    """Within it Ctrl-C waits until the end. Does nothing outside the main thread, where Ctrl-C never arrives."""
    handler = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(handler):
        yield
        return
    pressed = []
    signal.signal(signal.SIGINT, lambda *call: pressed.append(call))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
    if pressed:
        handler(*pressed[0])


def _write(path: Path, text: str, mode: str):
    try:
        with open(path, mode, encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        raise TrainingError(
            f"{path} could not be written: {error.strerror}; weights saved before are intact"
        ) from error


def prepare_output_dir(path, overwrite: bool = False) -> Path:
    """The folder, made if need be and proven writable. Raises TrainingError if it holds files or cannot be written."""
    folder = Path(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not overwrite and any(folder.iterdir()):
            raise TrainingError(
                f"output folder {folder} is not empty; name another, or pass overwrite_output_dir (--overwrite)"
            )
        probe = folder / ".writable"
        probe.write_bytes(b"")
        probe.unlink()
    except OSError as error:
        raise TrainingError(f"output folder {folder} cannot be written: {error.strerror}") from error
    except MiniloraError:
        raise
    return folder
