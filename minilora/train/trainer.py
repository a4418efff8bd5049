"""Trainer: the loop from batches to saved weights, with the names of Hugging Face's Trainer.

    args = TrainingArguments("out", max_steps=340, learning_rate=5e-3, per_device_train_batch_size=32)
    Trainer(model, args, train_dataset, eval_dataset).train()
    Trainer(model, args, train_dataset, eval_dataset).train(resume_from_checkpoint=True)   # go on where it was killed

A dataset is a sequence of {"input_ids", "labels"}, or anything with batch(step). The gradient of an update is that of
the mean over all its target tokens, however they are split into micro-batches (a mean of means would not be).
"""

import hashlib
import json
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np

from minilora.data.collate import IGNORE, Batches
from minilora.errors import ConfigError, MiniloraError, TrainingError
from minilora.files import atomic_write
from minilora.train import relora, snapshots
from minilora.train.adamw8bit import AdamW8bit
from minilora.train.arguments import BETTER, TrainingArguments
from minilora.train.distributed import Processes
from minilora.train.evaluate import evaluate
from minilora.train.logs import RunLog
from minilora.train.muon import Muon, hidden_matrices
from minilora.train.optim import AdamW, clip_grad_norm
from minilora.train.output import hold_interrupts, prepare_output_dir
from minilora.train.paged import PagedAdamW
from minilora.train.precision import Precision
from minilora.train.progress import Bar
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
    """The training loop: gradients of micro-batches, an update, its line in the log, evaluations, snapshots."""

    def __init__(
        self,
        model,
        args: TrainingArguments,
        train_dataset,
        eval_dataset=None,
        data_collator=None,
        progress: Callable[[dict], None] | None = None,
        save: Callable[[Path], None] | None = None,
        processes: Processes | None = None,
    ):
        """progress: called with each log entry, in place of the bar. save: writes the weights to a folder
        (model.save_pretrained). processes: those that share the batches (see distributed.py); one without."""
        self.model, self.args, self.eval_dataset, self.collator = model, args, eval_dataset, data_collator
        self.batches = train_dataset
        if not hasattr(train_dataset, "batch"):
            size = args.per_device_train_batch_size
            self.batches = Batches(train_dataset, size, data_collator, args.seed)
        self.max_steps = args.steps(getattr(self.batches, "per_epoch", None))
        self.warmup = args.warmup_steps or math.ceil(args.warmup_ratio * self.max_steps)
        self.processes = processes or Processes()
        shown = self.processes.first and not args.disable_tqdm
        self.progress = progress or (Bar() if shown else lambda entry: None)
        self.save = save or model.save_pretrained
        self.precision = Precision(args.precision)
        if args.gradient_checkpointing:
            model.gradient_checkpointing_enable()
        if args.relora_steps:
            relora.check(model)
        settings = args.learning_rate, (args.adam_beta1, args.adam_beta2), args.adam_epsilon, args.weight_decay
        if args.optim == "muon":
            self.optimizer = Muon(model.parameters(), hidden_matrices(model), *settings)
        else:
            self.optimizer = ADAMW[args.optim](model.parameters(), *settings)
        trained = [name for name, p in model.named_parameters() if p.requires_grad]  # in the optimizer's order
        self._lora_B = [i for i, name in enumerate(trained) if ".lora_B." in name]
        self._good: tuple[int, list[np.ndarray]] = (0, [])  # updates made, and the weights that gave the last good loss
        self.state = snapshots.RunState(args=asdict(args))

    def train(self, resume_from_checkpoint: bool | str | Path | None = None) -> TrainOutput:
        """Run the updates. Writes its log, trainer_args.json, snapshots and the weights to output_dir.

        resume_from_checkpoint: a snapshot's folder, or True for the last one in output_dir (from the start where there
        is none); the losses that follow are those of a run that was never stopped, bit for bit.
        Ctrl-C saves and returns with interrupted=True; an update, its line in the log and a save are never cut in two.
        Raises TrainingError for a non-finite loss, after saving the last weights that gave a finite one, for adapters
        that the first update does not change, and for an output folder that cannot be used, before the first update.
        """
        with self.processes:
            return self._train(resume_from_checkpoint)

    def _train(self, resume_from_checkpoint) -> TrainOutput:
        folder = Path(self.args.output_dir)
        if self.processes.first:
            prepare_output_dir(folder, self.args.overwrite_output_dir or bool(resume_from_checkpoint))
        self.state.data = self._name_of_data()
        self.processes.separate(self.model.generators())
        resumed = self._resume(folder, resume_from_checkpoint)
        log = RunLog(folder, self.args.report_to == "tensorboard", resumed) if self.processes.first else None
        if self.processes.first:
            atomic_write(folder / "trainer_args.json", json.dumps(asdict(self.args), indent=2) + "\n")
        state = self.state
        out = TrainOutput(state.step, state.tokens, state.seconds, list(log.entries) if log else [])
        start = time.perf_counter() - state.seconds
        self.model.train()
        try:
            for step in range(state.step, self.max_steps):
                if self.args.relora_steps and step and step % self.args.relora_steps == 0:
                    relora.restart(self.model, self.optimizer, np.random.default_rng([self.args.seed, step]))
                with hold_interrupts():  # one that falls into a node's __del__ would be lost
                    entry = self._gradients(step, folder)
                try:
                    with hold_interrupts():
                        self._apply(entry)
                        state.step, state.tokens = step + 1, state.tokens + entry["tokens"]
                        out.steps, out.tokens = state.step, state.tokens
                    if self.eval_dataset is not None and self._due(self.args.eval_steps, step):
                        entry |= self._evaluate(step, folder)
                finally:
                    out.seconds = state.seconds = time.perf_counter() - start
                    if state.step == step + 1:  # the update was made, even if Ctrl-C or its evaluation ends the run
                        with hold_interrupts():
                            self._note(entry, log, out)
                if self.args.save_steps and (step + 1) % self.args.save_steps == 0:
                    with hold_interrupts():
                        self._snapshot(folder)
                speed = {"seconds": out.seconds, "tokens_per_second": out.tokens / out.seconds}
                self.progress(entry | speed | {"max_steps": self.max_steps})
                if self.args.early_stopping_patience and state.waited >= self.args.early_stopping_patience:
                    break
        except KeyboardInterrupt:
            out.interrupted = True
        finally:
            self.model.eval()
            if isinstance(self.progress, Bar):
                self.progress.close()
        try:
            with hold_interrupts():
                self._finish(folder)
        except KeyboardInterrupt:
            out.interrupted = True
        return out

    def evaluate(self, dataset=None) -> dict[str, float]:
        """{"eval_loss", "eval_perplexity", "eval_exact_match"} of `dataset`, or of eval_dataset."""
        dataset = self.eval_dataset if dataset is None else dataset
        if dataset is None:
            raise ConfigError("evaluate() needs a dataset: give one, or make the Trainer with an eval_dataset")
        with self.precision.autocast():
            scores = evaluate(self.model, dataset, self.args.per_device_eval_batch_size, self.collator)
        return {f"eval_{name}": scores[name] for name in ("loss", "perplexity", "exact_match")}

    def _due(self, every: int | None, step: int) -> bool:
        return step + 1 == self.max_steps or (every is not None and (step + 1) % every == 0)

    def _evaluate(self, step: int, folder: Path) -> dict[str, float]:
        scores = self.evaluate()
        if not math.isfinite(scores["eval_loss"]):
            self._stop(f"evaluation after step {step + 1}: the loss is {scores['eval_loss']}", folder)
        value, best = scores[self.args.metric_for_best_model], self.state.best
        if best is None or BETTER[self.args.metric_for_best_model](value, best["value"]):
            self.state.best, self.state.waited = {"step": step + 1, "value": value}, 0
        else:
            self.state.waited += 1
        return scores

    def _gradients(self, step: int, folder: Path) -> dict:
        """Forward and backward of one update's batches; changes no weight. Returns the update's line of the log."""
        args, optimizer, precision = self.args, self.optimizer, self.precision
        first = step * args.gradient_accumulation_steps
        batches = [self.batches.batch(first + i) for i in range(args.gradient_accumulation_steps)]
        targets = sum(int((batch["labels"][:, 1:] != IGNORE).sum()) for batch in batches)
        if not targets:
            raise TrainingError(f"step {step + 1}: no label of its batches is a target, all are {IGNORE}")
        optimizer.zero_grad()
        total = 0.0
        for i, batch in enumerate(map(self.processes.share, batches)):
            if not (batch["labels"][:, 1:] != IGNORE).any():
                continue  # none of this process's rows has a target
            with precision.autocast():
                loss = self.model.loss(**_inputs(batch), reduction="sum") * (1 / targets)
                if not math.isfinite(loss.item()) and precision.scale == 1:
                    self._stop(f"step {step + 1}, batch {first + i}: the loss is {loss.item()}", folder)
                (loss * precision.scale).backward()
            total += loss.item()
        total = self.processes.add_up(optimizer.params, total)
        factor = learning_rate_factor(args.lr_scheduler_type, step, self.max_steps, self.warmup)
        if args.relora_steps:
            factor *= relora.warmup_factor(step, args.relora_steps, args.relora_warmup_steps)
        entry = {"step": step + 1, "loss": total, "lr": args.learning_rate * factor}
        if not precision.unscale(optimizer.params):
            return entry | {"grad_norm": math.inf, "tokens": targets, "skipped": True}
        norm = clip_grad_norm(optimizer.params, args.max_grad_norm)
        if not math.isfinite(norm):
            self._stop(f"step {step + 1}: the gradient's norm is {norm} (loss {total:.4g})", folder)
        return entry | {"grad_norm": norm, "tokens": targets}

    def _apply(self, entry: dict):
        if entry.get("skipped"):  # float16's gradients overflowed; the scale was halved
            return
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

    def _note(self, entry: dict, log: RunLog | None, out: TrainOutput):
        if log and ("eval_loss" in entry or self._due(self.args.logging_steps, entry["step"] - 1)):
            log.write(entry)
            out.log.append(entry)

    def _snapshot(self, folder: Path):
        self.state.scaler = self.precision.state()
        self.state.generators = self.processes.gather([rng.bit_generator.state for rng in self.model.generators()])
        if self.processes.first:
            best = self.state.best and self.state.best["step"]
            snapshots.write(folder, self.state, self.model, self.optimizer, self.save, self._everything)
            snapshots.keep(folder, self.args.save_total_limit, best)

    def _resume(self, folder: Path, wanted) -> int | None:
        """Go back to a snapshot; returns its step. None where the run begins."""
        path = snapshots.latest(folder) if wanted is True else Path(wanted) if wanted else None
        if path is None:
            return None
        state = self._read(path)
        ours, theirs = self.args.curve(), {**self.args.curve(), **{k: state.args.get(k) for k in self.args.curve()}}
        if changed := [f"{k} (then {theirs[k]!r}, now {ours[k]!r})" for k in ours if ours[k] != theirs[k]]:
            raise ConfigError(f"{path} was made by a run with other arguments: {', '.join(changed)}")
        if state.data != self.state.data:
            raise ConfigError(f"{path} was made by a run on other training data")
        self.precision.restore(state.scaler)
        self.state = state
        return state.step

    def _read(self, path: Path) -> snapshots.RunState:
        return snapshots.read(path, self.model, self.optimizer, self._everything, self.processes)

    @property
    def _everything(self) -> bool:
        """Whether snapshots hold the base too: ReLoRA changes it."""
        return bool(self.args.relora_steps)

    def _name_of_data(self) -> str:
        """A hash of the first batch, and how many there are."""
        batch = self.batches.batch(0)
        content = b"".join(np.ascontiguousarray(batch[name]).tobytes() for name in sorted(batch))
        return f"{hashlib.blake2b(content, digest_size=8).hexdigest()}-{getattr(self.batches, 'per_epoch', None)}"

    def _finish(self, folder: Path):
        """Save the weights: the last ones, or with load_best_model_at_end those of the best evaluation."""
        best = self.state.best
        if self.args.load_best_model_at_end and best and best["step"] in (kept := snapshots.all_of(folder)):
            self._read(kept[best["step"]])
        if self.processes.first:
            self.save(folder)

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


def _inputs(batch: dict) -> dict:
    """What the model's loss takes of a batch: padding on the right needs no mask."""
    return {name: batch[name] for name in ("input_ids", "labels", "segment_ids") if name in batch}
