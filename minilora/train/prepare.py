"""From the files of a configuration to examples in tokens: a training and a validation set.

    data = prepare(config, tokenizer, say=print)
    data.train[0], data.validation[0]              # {"input_ids", "labels"}

Files are read row by row and their tokens kept on disk (store.py), under dataset_prepared_path or for this run only.
Examples longer than sequence_len are left out and counted (of plain text, cut into pieces). Validation examples are
drawn by the seed; one whose tokens occur in training too is left out and counted: it would measure memory.
"""

import hashlib
import json
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from minilora.config import RunConfig
from minilora.data.formats import FORMATS, encode_pieces
from minilora.data.packing import join, pack
from minilora.data.rows import open_rows
from minilora.data.store import TokenStore
from minilora.errors import DataError


class Subset(Sequence):
    """Some examples of a store, in an order of one's own."""

    def __init__(self, store: TokenStore, indices: np.ndarray):
        self.store, self.indices = store, indices

    @property
    def lengths(self) -> np.ndarray:
        return self.store.lengths[self.indices]

    def __len__(self):
        return len(self.indices)

    def __getitem__(self, i: int) -> dict:
        return self.store[int(self.indices[i])]


class PackedRows(Sequence):
    """Rows of several examples each (packing.py)."""

    def __init__(self, examples: Subset, size: int, pad_token_id: int, pad: bool):
        self.examples, self.rows = examples, pack(examples.lengths, size)
        self.size, self.pad_token_id = size if pad else None, pad_token_id

    @property
    def lengths(self) -> np.ndarray:
        lengths = self.examples.lengths
        return np.array([lengths[row].sum() for row in self.rows])

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, i: int) -> dict:
        return join([self.examples[j] for j in self.rows[i]], self.size, self.pad_token_id)


@dataclass
class Data:
    """train: examples, or packed rows of them; validation: examples. notes: what was left out, in words."""

    train: Sequence
    validation: Sequence
    notes: list[str] = field(default_factory=list)
    folder: tempfile.TemporaryDirectory | None = None  # lives as long as the examples in it


def prepare(config: RunConfig, tokenizer, say: Callable[[str], None] = lambda line: None) -> Data:
    """The examples of config.datasets. Raises DataError, naming file and row."""
    temporary = None
    if config.dataset_prepared_path:
        folder = Path(config.dataset_prepared_path) / _fingerprint(config, tokenizer)
    else:
        temporary = tempfile.TemporaryDirectory(prefix="minilora-")
        folder = Path(temporary.name)
    notes = []
    if not (folder / "starts").exists():
        say("preparing the datasets")
        notes += _write(config, tokenizer, folder)
    store = TokenStore(folder)
    train, validation, repeated = split(store, config.val_set_size, config.seed)
    if repeated:
        notes.append(f"{repeated} validation examples occur in training too and are left out")
    sets = [Subset(store, train), Subset(store, validation)]
    if config.sample_packing:
        options = config.sequence_len, tokenizer.eos_token_id, bool(config.pad_to_sequence_len)
        sets[0] = PackedRows(sets[0], *options)  # validation counts examples, and stays as it is
        notes.append(f"{len(train)} training examples packed into {len(sets[0])} rows of {config.sequence_len} tokens")
    return Data(*sets, notes, temporary)


def split(store: TokenStore, val_set_size: float, seed: int) -> tuple[np.ndarray, np.ndarray, int]:
    """Indices of training and validation, drawn by the seed, and how many were left out of validation.

    val_set_size: below 1 a share, else a number of examples. Raises DataError where nothing is left to train on.
    """
    wanted = round(val_set_size * len(store)) if val_set_size < 1 else int(val_set_size)
    if wanted >= len(store):
        raise DataError(f"val_set_size={val_set_size:g} of {len(store)} examples leaves none to train on")
    order = np.random.default_rng(seed).permutation(len(store))
    train, validation = order[wanted:], order[:wanted]
    if not wanted:
        return train, validation, 0
    hashes = [hashlib.blake2b(store[i]["input_ids"].tobytes(), digest_size=8).digest() for i in range(len(store))]
    known = {hashes[i] for i in train}
    fresh = np.array([i for i in validation if hashes[i] not in known], validation.dtype)
    return train, fresh, wanted - len(fresh)


def _write(config: RunConfig, tokenizer, folder: Path) -> list[str]:
    notes, kept = [], 0
    with TokenStore.write(folder) as add:
        for dataset in config.datasets:
            rows, too_long = open_rows(dataset.path), 0
            for i in range(len(rows)):
                try:
                    pieces = FORMATS[dataset.type](rows[i], tokenizer)
                except DataError as error:
                    raise DataError(f"{dataset.path}, row {i}: {error}") from None
                if config.train_on_inputs:
                    pieces = [(text, True) for text, _ in pieces]
                example = encode_pieces(pieces, tokenizer, template=dataset.type == "chat_template")
                parts = _windows(example, config.sequence_len) if dataset.type == "completion" else [example]
                for part in parts:
                    if len(part["input_ids"]) > config.sequence_len:
                        too_long += 1
                    else:
                        add(part)
                        kept += 1
            if too_long:
                notes.append(
                    f"{dataset.path}: {too_long} of {len(rows)} examples have more than {config.sequence_len} tokens "
                    "(sequence_len) and are left out"
                )
        if not kept:
            raise DataError("; ".join(notes))
    return notes


def _windows(example: dict, size: int) -> list[dict]:
    """A long text in pieces of `size` tokens, the last one shorter; a piece of one token teaches nothing."""
    n = len(example["input_ids"])
    cuts = range(0, max(n - 1, 1), size)
    return [{name: values[a : a + size] for name, values in example.items()} for a in cuts]


def _fingerprint(config: RunConfig, tokenizer) -> str:
    """Names what the tokens depend on: the files as they are now, their types, the tokenizer and the length."""
    files = [(d.path, d.type, Path(d.path).stat().st_size, Path(d.path).stat().st_mtime_ns) for d in config.datasets]
    what = json.dumps([files, tokenizer.to_json(), config.sequence_len, config.train_on_inputs])
    return hashlib.sha256(what.encode()).hexdigest()[:16]
