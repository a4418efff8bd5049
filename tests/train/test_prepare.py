"""From a configuration's files to a training and a validation set."""

import json

import numpy as np
import pytest

import minilora as ml
from minilora.config import RunConfig
from minilora.errors import DataError
from minilora.train.prepare import prepare


@pytest.fixture(scope="module")
def tokenizer():
    return ml.load_model("embedded")[1]


def config(tmp_path, rows, kind="alpaca", **more):
    path = tmp_path / "data.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return RunConfig(datasets=[{"path": str(path), "type": kind}], **more)


def additions(n):
    return [{"instruction": f"add {i}", "output": str(i + 1)} for i in range(n)]


def test_every_example_is_in_one_set(tmp_path, tokenizer):
    data = prepare(config(tmp_path, additions(50), val_set_size=0.2), tokenizer)
    assert (len(data.train), len(data.validation)) == (40, 10)
    texts = [tokenizer.decode(e["input_ids"]) for part in (data.train, data.validation) for e in part]
    assert len(set(texts)) == 50


def test_what_occurs_in_training_is_not_validated_on(tmp_path, tokenizer):
    data = prepare(config(tmp_path, additions(10) * 5, val_set_size=10), tokenizer)
    seen = {e["input_ids"].tobytes() for e in data.train}
    assert not any(e["input_ids"].tobytes() in seen for e in data.validation)
    assert any("occur in training" in note for note in data.notes)


def test_long_examples_are_left_out_and_counted(tmp_path, tokenizer):
    rows = [*additions(5), {"instruction": "x" * 500, "output": "y"}]
    data = prepare(config(tmp_path, rows, sequence_len=128), tokenizer)
    assert len(data.train) == 5 and any("1 of 6 examples" in note for note in data.notes)
    with pytest.raises(DataError, match="6 of 6 examples"):
        prepare(config(tmp_path, rows, sequence_len=4), tokenizer)


def test_a_long_text_is_cut_and_nothing_of_it_lost(tmp_path, tokenizer):
    text = "def f(x):\n    return x + 1\n" * 40
    data = prepare(config(tmp_path, [{"text": text}], "completion", sequence_len=32), tokenizer)
    pieces = sorted(data.train.indices)
    ids = np.concatenate([data.train.store[int(i)]["input_ids"] for i in pieces])
    assert tokenizer.decode(ids[1:-1]) == text


def test_prepared_tokens_are_used_again_until_something_changes(tmp_path, tokenizer):
    said = []
    run = config(tmp_path, additions(5), dataset_prepared_path=str(tmp_path / "prepared"))
    first = prepare(run, tokenizer, said.append)
    again = prepare(run, tokenizer, said.append)
    assert said == ["preparing the datasets"]
    assert [e["input_ids"].tolist() for e in first.train] == [e["input_ids"].tolist() for e in again.train]
    prepare(config(tmp_path, additions(6), dataset_prepared_path=str(tmp_path / "prepared")), tokenizer, said.append)
    assert len(said) == 2


def test_packed_rows_hold_all_examples(tmp_path, tokenizer):
    run = config(tmp_path, additions(40), sequence_len=256, sample_packing=True, pad_to_sequence_len=True)
    data = prepare(run, tokenizer)
    assert len(data.train) < 20 and all(len(row["input_ids"]) == 256 for row in data.train)
    assert sum(int(row["segment_ids"].max()) for row in data.train) == 40


def test_errors_name_file_and_row(tmp_path, tokenizer):
    with pytest.raises(DataError, match=r"data\.jsonl, row 1: field 'output'"):
        prepare(config(tmp_path, [*additions(1), {"instruction": "a"}]), tokenizer)
    with pytest.raises(DataError, match="leaves none"):
        prepare(config(tmp_path, additions(3), val_set_size=3), tokenizer)
