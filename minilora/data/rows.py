"""The rows of a dataset file, read when they are asked for: a file may be larger than memory.

    rows = open_rows("train.jsonl")      # .jsonl, .csv, .json (a list, or SQuAD's {"data": ...}), .txt
    len(rows), rows[7]                   # a dict

Of a .jsonl or .csv file only where each row begins is kept, eight bytes a row; a row is read from the file each time.
"""

import csv
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from minilora.errors import DataError

KINDS = (".jsonl", ".csv", ".json", ".txt")


class FileRows(Sequence):
    """Rows by position in a file that stays on disk."""

    def __init__(self, path: Path):
        self.path = path
        self.starts = np.fromiter(self._find_starts(), np.int64)  # and where the last row ends
        if len(self.starts) < 2:
            raise DataError(f"{path} has no rows")

    def __len__(self):
        return len(self.starts) - 1

    def __getitem__(self, i: int) -> dict:
        if not -len(self) <= i < len(self):
            raise IndexError(f"row {i} of {len(self)} in {self.path}")
        start, stop = self.starts[i % len(self)], self.starts[i % len(self) + 1]
        with open(self.path, "rb") as file:
            file.seek(start)
            text = _decode(file.read(stop - start), self.path, i)
        return self._parse(text, i % len(self))

    def _find_starts(self):
        raise NotImplementedError

    def _parse(self, text: str, i: int) -> dict:
        raise NotImplementedError


class JsonLines(FileRows):
    """One JSON object a line; blank lines are left out."""

    def _find_starts(self):
        position = 0
        with open(self.path, "rb") as file:
            for line in file:
                if line.strip():
                    yield position
                position += len(line)
        yield position

    def _parse(self, text: str, i: int) -> dict:
        try:
            row = json.loads(text)
        except json.JSONDecodeError as error:
            raise DataError(f"{self.path}, row {i}: not JSON ({error})") from None
        return _checked(row, self.path, i)


class Csv(FileRows):
    """Comma-separated, the first row naming the columns; a quoted field may hold line breaks."""

    def _find_starts(self):
        position, quotes, header = 0, 0, None
        with open(self.path, "rb") as file:
            for line in file:
                if quotes % 2 == 0 and line.strip():
                    if header is not None:
                        yield position
                    header = position if header is None else header
                quotes += line.count(b'"')  # an odd number so far: within a quoted field
                position += len(line)
                if header is not None and not hasattr(self, "columns") and quotes % 2 == 0:
                    file_end = position
                    self.columns = self._read_columns(header, file_end)
        if quotes % 2:
            raise DataError(f"{self.path}: a quoted field is not closed")
        yield position

    def _read_columns(self, start: int, stop: int) -> list[str]:
        with open(self.path, "rb") as file:
            file.seek(start)
            text = _decode(file.read(stop - start), self.path, "the header").removeprefix("\ufeff")
        return next(csv.reader([text]))

    def _parse(self, text: str, i: int) -> dict:
        fields = next(csv.reader(text.splitlines(keepends=True)))
        if len(fields) != len(self.columns):
            raise DataError(f"{self.path}, row {i}: {len(fields)} fields, the header names {len(self.columns)}")
        return dict(zip(self.columns, fields, strict=True))


def open_rows(path) -> Sequence[dict]:
    """The rows of a file by its suffix. A .txt file is one row, {"text": ...}. Raises DataError."""
    path = Path(path)
    if path.suffix not in KINDS:
        raise DataError(f"{path}: a dataset is a {', '.join(KINDS[:-1])} or {KINDS[-1]} file, not {path.suffix!r}")
    try:
        if path.suffix == ".jsonl":
            return JsonLines(path)
        if path.suffix == ".csv":
            return Csv(path)
        text = _decode(path.read_bytes(), path, "the text")
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error
    return [{"text": text}] if path.suffix == ".txt" else _json_rows(text, path)


def _json_rows(text: str, path: Path) -> list[dict]:
    try:
        content = json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(f"{path}: not JSON ({error}); one object a line is .jsonl") from None
    if isinstance(content, dict) and isinstance(content.get("data"), list):
        content = content["data"]
    if not isinstance(content, list) or not content:
        raise DataError(f'{path}: a .json dataset is a list of objects, or SQuAD\'s {{"data": [...]}}')
    rows = [_checked(row, path, i) for i, row in enumerate(content)]
    if all("paragraphs" in row for row in rows):
        return list(_squad_rows(rows))
    return rows


def _squad_rows(articles: list[dict]):
    """SQuAD's nesting (article, paragraph, question) as one row a question."""
    for article in articles:
        for paragraph in article["paragraphs"]:
            for question in paragraph["qas"]:
                answers = question.get("answers", [])
                yield {
                    "id": question.get("id"), "title": article.get("title", ""), "context": paragraph["context"],
                    "question": question["question"],
                    "answers": {"text": [a["text"] for a in answers],
                                "answer_start": [a["answer_start"] for a in answers]},
                }  # fmt: skip


def _decode(raw: bytes, path: Path, where) -> str:
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}, {where if isinstance(where, str) else f'row {where}'}: not UTF-8 ({error})") from None


def _checked(row, path: Path, i: int) -> dict:
    if not isinstance(row, dict):
        raise DataError(f"{path}, row {i}: a row is an object with named fields, not {type(row).__name__}")
    return row
