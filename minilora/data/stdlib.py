"""Real text on every machine: the source of the running interpreter's standard library, split by file.

    for file in source_files("train"): file.name, file.text

A file belongs to "train", "validation" (for choosing) or "held-out" (to be quoted once) by the CRC-32 of its relative
path, so that the split is the same on every machine, and nothing of a held-out file, be it a line of pretraining text
or a function of a task, is ever trained on.
"""

import sysconfig
import zlib
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from minilora.errors import DataError

BUCKETS = {"held-out": [0, 5], "validation": [7]}  # of CRC-32 modulo ten; the other seven are for training
SPLITS = ("train", *BUCKETS)
# Tests, generated tables and what is not the library itself.
_LEFT_OUT = ("site-packages", "test", "encodings/", "pydoc_data", "__phello", "config-", "_sysconfigdata",
             "turtledemo", "ensurepip")  # fmt: skip


@dataclass(frozen=True)
class SourceFile:
    name: str  # relative, with forward slashes
    text: str


def split_of(name: str) -> str:
    """Two files in ten are held out, one is for validation, seven are for training."""
    bucket = zlib.crc32(name.encode()) % 10
    return next((split for split, buckets in BUCKETS.items() if bucket in buckets), "train")


@cache
def source_files(split: str) -> tuple[SourceFile, ...]:
    """The files of a split, sorted by name. Raises DataError for an unknown split or a library without source."""
    if split not in SPLITS:
        raise DataError(f"unknown split {split!r}; there are {', '.join(SPLITS)}")
    library, files = Path(sysconfig.get_path("stdlib")), []
    for path in sorted(library.rglob("*.py")):
        name = path.relative_to(library).as_posix()
        if any(part in name for part in _LEFT_OUT) or split_of(name) != split:
            continue
        try:
            files.append(SourceFile(name, path.read_text(encoding="utf-8")))
        except (OSError, UnicodeDecodeError):
            continue  # the library has a few files in other encodings
    if not files:
        raise DataError(f"no standard library source under {library}: this Python was installed without it")
    return tuple(files)
