"""Dataset files: every row as written, bad ones named, none held in memory."""

import csv
import json
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minilora.data.rows import open_rows
from minilora.errors import DataError

texts = st.text(st.characters(blacklist_categories=["Cs"], blacklist_characters="\x00\r"), max_size=30)
tables = st.lists(st.fixed_dictionaries({"a": texts, "b": texts}), min_size=1, max_size=8)


def written(folder, name, write):
    path = folder / name
    with open(path, "w", encoding="utf-8", newline="") as file:
        write(file)
    return path


@given(tables)
def test_jsonl_rows_are_what_was_written(tmp_path_factory, rows):
    folder = tmp_path_factory.mktemp("rows")
    path = written(folder, "x.jsonl", lambda f: f.writelines(json.dumps(r) + "\n\n" for r in rows))
    found = open_rows(path)
    assert len(found) == len(rows) and [found[i] for i in range(len(rows))] == rows and found[-1] == rows[-1]


@given(tables)
def test_csv_rows_are_what_the_csv_module_wrote(tmp_path_factory, rows):
    folder = tmp_path_factory.mktemp("rows")

    def write(file):
        out = csv.DictWriter(file, ["a", "b"], quoting=csv.QUOTE_ALL)
        out.writeheader()
        out.writerows(rows)

    found = open_rows(written(folder, "x.csv", write))
    assert [found[i] for i in range(len(found))] == rows


def test_a_large_file_is_not_read_into_memory(tmp_path):
    path = tmp_path / "big.jsonl"
    with open(path, "w") as file:
        for i in range(20_000):
            file.write(json.dumps({"text": f"{i} " + "x" * 1000}) + "\n")
    tracemalloc.start()
    rows = open_rows(path)
    assert rows[12_345]["text"].startswith("12345 ") and len(rows) == 20_000
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < path.stat().st_size / 20


def test_squad_nesting_becomes_one_row_a_question(tmp_path):
    data = {"data": [{"title": "t", "paragraphs": [{"context": "a b", "qas": [
        {"id": "1", "question": "q?", "answers": [{"text": "b", "answer_start": 2}]},
        {"id": "2", "question": "r?", "answers": [], "is_impossible": True}]}]}]}  # fmt: skip
    path = tmp_path / "squad.json"
    path.write_text(json.dumps(data))
    rows = open_rows(path)
    assert [r["answers"]["text"] for r in rows] == [["b"], []] and rows[0]["context"] == "a b"


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("x.parquet", b"PAR1", "jsonl"),
        ("x.jsonl", b"", "no rows"),
        ("x.jsonl", b'{"a": 1}\n{oops\n', "row 1"),
        ("x.jsonl", b"[1]\n", "named fields"),
        ("x.jsonl", b'{"a": "\xff"}\n', "UTF-8"),
        ("x.csv", b'a,b\n1,"2\n', "not closed"),
        ("x.csv", b"a,b\n1\n", "1 fields"),
        ("x.json", b'{"a": 1}', "list of objects"),
        ("x.json", b"{", "jsonl"),
    ],
)
def test_bad_files_are_refused_with_the_place(tmp_path, name, content, words):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(DataError, match=words):
        rows = open_rows(path)
        [rows[i] for i in range(len(rows))]


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(DataError, match=r"nothing\.jsonl"):
        open_rows(tmp_path / "nothing.jsonl")
