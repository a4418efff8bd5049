"""Batches for pretraining: windows of source text, and sequences that repeat themselves.

15 % of the rows are random tokens, repeated: nothing in them can be predicted except by copying, which teaches a small
model to copy ("induction heads", arXiv:2209.11895). Without them the same model hardly copies at all.
"""

import numpy as np

from minilora.data.stdlib import source_files

REPEATED_SHARE = 0.15


def token_stream(tokenizer, split: str) -> tuple[np.ndarray, int]:
    """All files of a split as one row of token numbers (uint16), each begun by the end-of-text token; and its bytes."""
    ids, size = [], 0
    for file in source_files(split):
        ids += [tokenizer.eos_token_id, *tokenizer.encode(file.text)]
        size += len(file.text.encode())
    return np.array(ids, np.uint16), size


class PretrainingBatches:
    """batch(step) -> {"input_ids", "labels"} (batch_size, length), the same for the same seed and step."""

    def __init__(self, stream: np.ndarray, vocab_size: int, batch_size: int, length: int, seed: int):
        self.stream, self.vocab_size = stream, vocab_size
        self.shape, self.seed = (batch_size, length), seed

    def batch(self, step: int) -> dict[str, np.ndarray]:
        rng = np.random.default_rng([self.seed, step])
        rows, length = self.shape
        starts = rng.integers(0, len(self.stream) - length, rows)
        ids = self.stream[starts[:, None] + np.arange(length)].astype(np.int64)
        labels = ids.copy()
        for row in range(rng.binomial(rows, REPEATED_SHARE)):
            period = int(rng.integers(8, length // 2))
            ids[row] = np.resize(rng.integers(1, self.vocab_size, period), length)
            labels[row] = ids[row]
            labels[row, : min(period, 9)] = -100
        return {"input_ids": ids, "labels": labels}


def windows(stream: np.ndarray, length: int) -> list[dict[str, list[int]]]:
    """The stream cut into rows that overlap by half, so that every token but the first is a target exactly once.

    Past the first row a token is predicted from the length/2 to length - 1 tokens before it.
    """
    rows, step = [], length // 2
    for start in range(0, max(1, len(stream) - length + step), step):
        ids = stream[start : start + length].astype(int).tolist()
        seen = 0 if start == 0 else length - step
        rows.append({"input_ids": ids, "labels": [-100] * seen + ids[seen:]})
    return rows
