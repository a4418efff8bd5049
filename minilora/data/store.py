"""Tokens of a dataset on disk: made once, read where they are needed, whatever the dataset's size.

    with TokenStore.write(folder) as add:
        for example in examples: add(example)
    store = TokenStore(folder)
    len(store), store.lengths, store[7]            # {"input_ids", "labels"} as arrays

Three flat files: token numbers (uint32), whether each is a target (bool), where each example begins (int64). They are
memory-mapped, so that a store larger than memory is no different from a small one.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from minilora.data.formats import IGNORE
from minilora.errors import DataError


class TokenStore(Sequence):
    def __init__(self, folder):
        folder = Path(folder)
        try:
            self.starts = np.fromfile(folder / "starts", np.int64)
            self.ids = np.memmap(folder / "ids", np.uint32, "r")
            self.targets = np.memmap(folder / "targets", bool, "r")
        except (OSError, ValueError) as error:
            raise DataError(f"{folder} holds no prepared dataset: {error}") from error
        if self.starts[-1] != len(self.ids) or len(self.ids) != len(self.targets):
            raise DataError(f"{folder} holds part of a prepared dataset; delete it, and it will be made again")

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each example."""
        return np.diff(self.starts)

    def __len__(self):
        return len(self.starts) - 1

    def __getitem__(self, i: int) -> dict[str, np.ndarray]:
        if not 0 <= i < len(self):
            raise IndexError(f"example {i} of {len(self)}")
        part = slice(self.starts[i], self.starts[i + 1])
        ids = self.ids[part].astype(np.int64)
        return {"input_ids": ids, "labels": np.where(self.targets[part], ids, IGNORE)}

    @staticmethod
    @contextmanager
    def write(folder) -> Iterator[Callable[[dict], None]]:
        """Gives a function that adds an example. What is written counts only once all is: `starts` comes last."""
        folder, starts = Path(folder), [0]
        folder.mkdir(parents=True, exist_ok=True)
        with open(folder / "ids", "wb") as ids, open(folder / "targets", "wb") as targets:

            def add(example: dict):
                tokens = np.asarray(example["input_ids"], np.uint32)
                tokens.tofile(ids)
                (np.asarray(example["labels"]) != IGNORE).tofile(targets)
                starts.append(starts[-1] + len(tokens))

            yield add
        if len(starts) == 1:
            raise DataError("the dataset has no example that can be trained on")
        np.array(starts, np.int64).tofile(folder / "starts")
