"""Rows become text and tokens: only the answer, and the end after it, are targets."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import minilora as ml
from minilora.data.formats import FORMATS, IGNORE, encode_pieces
from minilora.data.store import TokenStore
from minilora.errors import DataError

words = st.text(st.characters(codec="utf-8"), min_size=1, max_size=20)


@pytest.fixture(scope="module")
def tokenizer():
    return ml.load_model("embedded")[1]


@given(words, words, words)
def test_the_targets_are_the_answer_and_the_end(tokenizer, instruction, given_input, output):
    row = {"instruction": instruction, "input": given_input, "output": output}
    example = encode_pieces(FORMATS["alpaca"](row), tokenizer)
    targets = [t for t in example["labels"] if t != IGNORE]
    assert targets == [*tokenizer.encode(output), tokenizer.eos_token_id]
    assert example["labels"][-len(targets) :] == targets == example["input_ids"][-len(targets) :]
    text = tokenizer.decode(example["input_ids"])
    assert instruction in text and given_input in text


def test_masking_is_by_position_not_by_token(tokenizer):
    """The answer is the very text of the prompt: only its second occurrence is a target."""
    pieces = [("x = 1\n", False), ("x = 1\n", True)]
    example = encode_pieces(pieces, tokenizer)
    half = len(tokenizer.encode("x = 1\n"))
    assert example["labels"] == [IGNORE] * (1 + half) + example["input_ids"][1 + half :]


def test_squad_with_and_without_an_answer():
    row = {"context": "Ada wrote it.", "question": "Who?", "answers": {"text": ["Ada"], "answer_start": [0]}}
    assert FORMATS["squad_v2"](row)[1] == ("Ada", True)
    assert FORMATS["squad_v2"](row | {"answers": {"text": [], "answer_start": []}})[1] == ("unanswerable", True)
    with pytest.raises(DataError, match="not at character 3"):
        FORMATS["squad_v2"](row | {"answers": {"text": ["Ada"], "answer_start": [3]}})


@pytest.mark.parametrize(
    ("kind", "row", "words"),
    [
        ("alpaca", {"instruction": "a"}, "'output' is missing; the row has 'instruction'"),
        ("alpaca", {"instruction": "", "output": "b"}, "'instruction' is ''"),
        ("completion", {"txt": "a"}, "'text' is missing"),
        ("squad_v2", {"context": "a", "question": "b"}, "answers"),
        ("chat_template", {"messages": []}, "messages"),
        ("chat_template", {"messages": [{"role": "user", "content": "a"}]}, "assistant"),
    ],
)
def test_bad_rows_say_what_is_missing(kind, row, words):
    with pytest.raises(DataError, match=words):
        FORMATS[kind](row, None)


@given(st.lists(st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=9), min_size=1, max_size=9), st.integers(0, 9))
def test_a_store_gives_back_what_was_added(tmp_path_factory, examples, masked):
    folder = tmp_path_factory.mktemp("store")
    rows = [{"input_ids": ids, "labels": [IGNORE] * min(masked, len(ids)) + ids[masked:]} for ids in examples]
    with TokenStore.write(folder) as add:
        for row in rows:
            add(row)
    store = TokenStore(folder)
    assert store.lengths.tolist() == [len(ids) for ids in examples]
    for i, row in enumerate(rows):
        assert store[i]["input_ids"].tolist() == row["input_ids"] and store[i]["labels"].tolist() == row["labels"]


def test_a_store_cut_short_is_refused(tmp_path):
    with TokenStore.write(tmp_path) as add:
        add({"input_ids": np.arange(9), "labels": np.arange(9)})
    (tmp_path / "ids").write_bytes((tmp_path / "ids").read_bytes()[:-4])
    with pytest.raises(DataError, match="delete it"):
        TokenStore(tmp_path)
    with pytest.raises(DataError, match="no prepared dataset"):
        TokenStore(tmp_path / "nothing")
