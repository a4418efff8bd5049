import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minilora.data.collate import IGNORE, Batches, DataCollatorForLanguageModeling
from minilora.data.pretrain import PretrainingBatches, windows
from minilora.data.stdlib import SPLITS, source_files, split_of
from minilora.data.tasks import TASKS, encode, load_task
from minilora.errors import DataError, UnknownNameError
from minilora.models.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.train((f.text for f in source_files("validation")[:20]), 400)


def example(n, targets=1):
    return {"input_ids": list(range(n)), "labels": [IGNORE] * (n - targets) + list(range(targets))}


def test_splits_are_by_file_and_disjoint():
    names = {split: {f.name for f in source_files(split)} for split in SPLITS}
    assert all(names.values()) and len(set.union(*names.values())) == sum(map(len, names.values()))
    assert len(names["train"]) > 2 * len(names["held-out"])
    assert split_of("argparse.py") == split_of("argparse.py")
    with pytest.raises(DataError, match="validation"):
        source_files("test")


@pytest.mark.parametrize("name", TASKS)
def test_tasks_leak_nothing(name):
    task = load_task(name)
    assert len(task.held_out) >= 256 and len(task.validation) >= 256
    seen = {e.prompt for e in task.train}, {e.response for e in task.train}
    for e in task.held_out + task.validation:
        assert e.prompt not in seen[0] and e.response not in seen[1]
    chosen = {e.prompt for e in task.validation}, {e.response for e in task.validation}
    assert not any(e.prompt in chosen[0] or e.response in chosen[1] for e in task.held_out)
    assert {split_of(e.file) for e in task.held_out} == {"held-out"}
    assert max(task.trivial_rules().values()) < 0.02
    assert load_task(name).train == task.train


def test_answers_are_what_python_says():
    """Each header, compiled and inspected, has the parameters and defaults of its answer."""
    import ast

    for e in load_task("header_json").held_out[:200]:
        answer, node = json.loads(e.response), ast.parse(e.prompt.partition("\n>>> ")[0] + " pass").body[0]
        names = [a.arg for a in node.args.posonlyargs + node.args.args + node.args.kwonlyargs]
        assert answer["name"] == node.name and answer["params"] in (names, names[1:])
        assert set(answer["defaults"]) <= set(answer["params"])


def test_unknown_task():
    with pytest.raises(UnknownNameError, match="Did you mean 'header_json'"):
        load_task("header_jsn")


def test_only_the_response_is_a_target(tokenizer):
    for e, row in zip(load_task("header_json").train[:50], encode(tokenizer, load_task("header_json").train[:50], 400),
                      strict=True):  # fmt: skip
        targets = [t for t in row["labels"] if t != IGNORE]
        assert tokenizer.decode(targets) == e.response + "<|endoftext|>"
        assert row["input_ids"][-len(targets) :] == targets
    with pytest.raises(DataError, match=r"tokens, more than sequence_len 10; raise it"):
        encode(tokenizer, load_task("header_json").train[:1], 10)


@given(st.lists(st.integers(2, 12), min_size=1, max_size=6))
def test_collating_pads_on_the_right_and_masks_by_position(lengths):
    rows = [example(n) for n in lengths]
    batch = DataCollatorForLanguageModeling()(rows)
    assert batch["attention_mask"].sum(1).tolist() == lengths
    for row, ids, labels, mask in zip(
        rows, *(batch[k] for k in ("input_ids", "labels", "attention_mask")), strict=True
    ):
        assert ids[mask].tolist() == row["input_ids"] and labels[mask].tolist() == row["labels"]
        assert (labels[~mask] == IGNORE).all()


def test_bad_batches():
    collate = DataCollatorForLanguageModeling(max_length=8)
    with pytest.raises(DataError, match="example 1 of the batch has 9 tokens, more than 8"):
        collate([example(3), example(9)])
    with pytest.raises(DataError, match="none of the 2 examples of this batch has a target"):
        collate([example(3, 0), example(4, 0)])
    with pytest.raises(DataError, match="no examples"):
        collate([])
    with pytest.raises(DataError, match="training set is empty"):
        Batches([], 4)
    with pytest.raises(DataError, match=r"^batch 1 \(training examples \d\): none of the 1 examples"):
        batches = Batches([example(3, 0), example(3, 0)], 1)
        batches.batch(1)


@given(st.integers(1, 50), st.integers(1, 9), st.integers(0, 3))
def test_an_epoch_takes_each_example_at_most_once(n, batch_size, seed):
    data = [{"input_ids": [i, i], "labels": [i, i]} for i in range(n)]
    batches = Batches(data, batch_size, seed=seed)
    seen = [i for step in range(batches.per_epoch) for i in batches.batch(step)["input_ids"][:, 0].tolist()]
    assert len(seen) == len(set(seen)) == batches.per_epoch * min(batch_size, n)
    again = Batches(data, batch_size, seed=seed)
    assert np.array_equal(batches.batch(0)["input_ids"], again.batch(0)["input_ids"])


def test_pretraining_batches_repeat_themselves_and_their_seed():
    batches = PretrainingBatches(np.arange(1000, dtype=np.uint16), 1000, 64, 32, seed=3)
    a, b = batches.batch(7), PretrainingBatches(np.arange(1000, dtype=np.uint16), 1000, 64, 32, seed=3).batch(7)
    np.testing.assert_array_equal(a["input_ids"], b["input_ids"])
    assert not np.array_equal(a["input_ids"], batches.batch(8)["input_ids"])
    text = np.diff(a["input_ids"], axis=1) == 1
    repeated = ~text.all(1)
    assert 0 < repeated.sum() < 24
    for row in a["input_ids"][repeated]:
        assert any(np.array_equal(row[p:], row[:-p]) for p in range(8, 16))


@given(st.integers(2, 200), st.integers(2, 30))
def test_windows_make_every_token_but_the_first_a_target_once(n, length):
    rows = windows(np.arange(n, dtype=np.uint16), length)
    assert [t for row in rows for t in row["labels"][1:] if t != IGNORE] == list(range(1, n))


def test_special_tokens_in_a_text_are_text(tokenizer):
    assert tokenizer.encode("<|endoftext|>", parse_special=True) == [tokenizer.eos_token_id]
    ids = tokenizer.encode("<|endoftext|>")
    assert tokenizer.eos_token_id not in ids and tokenizer.decode(ids) == "<|endoftext|>"


@given(st.text(max_size=40))
def test_the_tokenizer_is_lossless(text):
    tokenizer = test_the_tokenizer_is_lossless.tokenizer
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert "".join(tokenizer.stream(tokenizer.encode(text))) in (text, text.rstrip("\ufffd"))


test_the_tokenizer_is_lossless.tokenizer = Tokenizer.train(["def f(x):\n    return 12\n"], 300)
