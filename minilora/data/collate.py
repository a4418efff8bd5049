"""From examples to batches: padding on the right, masking by position, shuffling by seed.

An example is {"input_ids": [...], "labels": [...]}; a label of -100 is not a target. Padding is masked by position, so
it does not matter which token pads, and a real end-of-text token stays a target. Without labels every token is one.
"""

import numpy as np

from minilora.errors import ConfigError, DataError

IGNORE = -100


class DataCollatorForLanguageModeling:
    """Pads examples to the longest: {"input_ids", "labels", "attention_mask"}, each (B, T); of packed rows (packing.py)
    also "segment_ids", 0 where there is padding."""

    def __init__(self, tokenizer=None, mlm: bool = False, max_length: int | None = None):
        """tokenizer: its end-of-text token pads (0 without one). max_length: longer examples are refused."""
        if mlm:
            raise ConfigError("mlm=True (masked language modeling) is for encoders; a CausalLM needs mlm=False")
        self.pad_token_id = 0 if tokenizer is None else tokenizer.eos_token_id
        self.max_length = max_length

    def __call__(self, examples: list[dict]) -> dict[str, np.ndarray]:
        if not examples:
            raise DataError("a batch of no examples")
        lengths = [len(e["input_ids"]) for e in examples]
        longest = max(lengths)
        if self.max_length is not None and longest > self.max_length:
            raise DataError(
                f"example {lengths.index(longest)} of the batch has {longest} tokens, more than {self.max_length}; "
                "shorten it, or raise sequence_len"
            )
        ids = np.full((len(examples), longest), self.pad_token_id, np.int64)
        labels = np.full_like(ids, IGNORE)
        packed = any("segment_ids" in e for e in examples)
        segments = np.zeros_like(ids)
        for i, (example, n) in enumerate(zip(examples, lengths, strict=True)):
            ids[i, :n], labels[i, :n] = example["input_ids"], example.get("labels", example["input_ids"])
            segments[i, :n] = example.get("segment_ids", 1)
        mask = segments > 0
        if (labels[:, 1:] == IGNORE).all():
            raise DataError(
                f"none of the {len(examples)} examples of this batch has a target token: all labels are -100"
            )
        batch = {"input_ids": ids, "labels": labels, "attention_mask": mask}
        return batch | {"segment_ids": segments} if packed else batch


class Batches:
    """batch(step) -> a collated batch; examples reshuffled every epoch, batches of similar length.

    Sixteen batches' worth of examples are sorted by length and cut, in shuffled order: little padding, still random.
    """

    def __init__(self, dataset, batch_size: int, collator=None, seed: int = 0):
        if not len(dataset):
            raise DataError("the training set is empty")
        self.dataset, self.seed = dataset, seed
        self.batch_size = min(batch_size, len(dataset))
        self.collator = collator or DataCollatorForLanguageModeling()
        self.per_epoch = len(dataset) // self.batch_size  # what is left over waits for another epoch's order
        self._epoch, self._order = None, []

    def batch(self, step: int) -> dict[str, np.ndarray]:
        epoch, i = divmod(step, self.per_epoch)
        if epoch != self._epoch:
            self._epoch, self._order = epoch, self._plan(epoch)
        indices = [int(j) for j in self._order[i]]
        try:
            return self.collator([self.dataset[j] for j in indices])
        except DataError as error:
            shown = ", ".join(map(str, indices[:8])) + (", ..." if len(indices) > 8 else "")
            raise DataError(f"batch {step} (training examples {shown}): {error}") from None

    def _lengths(self):
        """Tokens of each example; a dataset on disk tells them without being read."""
        lengths = getattr(self.dataset, "lengths", None)
        return [len(e["input_ids"]) for e in self.dataset] if lengths is None else lengths

    def _plan(self, epoch: int) -> list[np.ndarray]:
        rng = np.random.default_rng([self.seed, epoch])
        order, lengths = rng.permutation(len(self.dataset)), self._lengths()
        order = order[: self.per_epoch * self.batch_size]
        pool, plan = 16 * self.batch_size, []
        for start in range(0, len(order), pool):
            part = np.array(sorted(order[start : start + pool], key=lambda j: lengths[j]))
            plan += np.split(part, len(part) // self.batch_size)
        return [plan[k] for k in rng.permutation(len(plan))]
