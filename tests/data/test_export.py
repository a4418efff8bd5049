"""Files from the interpreter: each row is one that its format reads, and splits share none."""

import itertools

import pytest

from minilora.data.export import KINDS, export
from minilora.data.formats import FORMATS
from minilora.data.rows import open_rows
from minilora.data.stdlib import SPLITS
from minilora.errors import DataError, UnknownNameError


@pytest.mark.parametrize("kind", KINDS)
def test_rows_are_of_the_type_and_splits_share_none(tmp_path, kind):
    suffix, seen = ".json" if kind == "topics-squad" else ".jsonl", {}
    for split in SPLITS:
        path = tmp_path / f"{split}{suffix}"
        rows = open_rows(path) if export(kind, split, path) == KINDS[kind] and path.exists() else []
        assert len(rows) > (100 if split == "train" else 5)
        seen[split] = {row.get("file", row.get("title")) for row in rows}
        for row in list(rows)[:50]:
            assert any(text and target for text, target in FORMATS[KINDS[kind]](row, None))
    for a, b in itertools.combinations(SPLITS, 2):
        assert not seen[a] & seen[b]


def test_bad_names(tmp_path):
    with pytest.raises(UnknownNameError, match="docstrings"):
        export("docstring", "train", tmp_path / "x.jsonl")
    with pytest.raises(UnknownNameError, match="held-out"):
        export("docstrings", "test", tmp_path / "x.jsonl")
    with pytest.raises(DataError, match=r"\.jsonl file"):
        export("docstrings", "train", tmp_path / "x.csv")
