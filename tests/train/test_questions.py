"""What a model is examined on, and the scores of the answers that it writes."""

import json

import pytest

from minilora import (
    DataCollatorForLanguageModeling,
    LoraConfig,
    Trainer,
    TrainingArguments,
    generate,
    get_peft_model,
    load_model,
)
from minilora.data.formats import IGNORE
from minilora.data.tasks import encode, load_task
from minilora.errors import DataError, UnknownNameError
from minilora.train.evaluate import evaluate, evaluate_answers
from minilora.train.questions import from_file, from_task
from minilora.train.rouge import rouge

ROOM = 512


@pytest.fixture(scope="module")
def embedded():
    return load_model("embedded")


@pytest.fixture
def tokenizer(embedded):
    return embedded[1]


def lines(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_a_task_s_questions_are_its_held_out_examples(tokenizer):
    held_out = load_task("header_json").held_out[:20]
    questions = from_task("header_json", tokenizer, ROOM, 20)
    assert questions.examples == encode(tokenizer, held_out, ROOM)
    assert questions.prompts == [e.prompt for e in held_out] and questions.references == [
        [e.response] for e in held_out
    ]
    assert len(from_task("header_json", tokenizer, ROOM).examples) == len(load_task("header_json").held_out)


CHAT = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"},
                     {"role": "user", "content": "Bye"}, {"role": "assistant", "content": "So long"}]}  # fmt: skip
ROWS = {
    "alpaca": ({"instruction": "Add.", "input": "1 2", "output": "3"}, "### Response:\n", "3"),
    "squad_v2": ({"context": "Ada wrote it.", "question": "Who?", "answers": {"text": ["Ada"], "answer_start": [0]}},
                 "Question: Who?\nAnswer: ", "Ada"),
    "chat_template": (CHAT, "<|endoftext|>User: Hi\nAssistant: Hello<|endoftext|>\nUser: Bye\nAssistant:", " So long"),
}  # fmt: skip


@pytest.mark.parametrize("kind", ROWS)
def test_a_file_s_questions(tmp_path, tokenizer, kind):
    """The prompt and the reference are the example in two parts; the targets are the reference and its end."""
    row, end, reference = ROWS[kind]
    questions = from_file(lines(tmp_path / "rows.jsonl", row, row, row), kind, tokenizer, ROOM, limit=2)
    assert questions.references == [[reference]] * 2 and questions.prompts[0].endswith(end)
    prompt = tokenizer.prompt(questions.prompts[0], questions.template)
    answer = [*tokenizer.encode(reference), tokenizer.eos_token_id]
    labels = questions.examples[0]["labels"]
    assert questions.examples[0]["input_ids"][: len(prompt)] == prompt
    assert labels[len(prompt) : len(prompt) + len(answer)] == answer and labels[len(prompt) - 1] == IGNORE


def test_all_of_squad_s_answers_are_right(tmp_path, tokenizer):
    context = "Ada Lovelace wrote it in 1843."
    rows = [
        {"context": context, "question": "Who?", "answers": {"text": ["Ada Lovelace", "Ada"], "answer_start": [0, 0]}},
        {"context": context, "question": "Why?", "answers": {"text": [], "answer_start": []}},
    ]
    questions = from_file(lines(tmp_path / "rows.jsonl", *rows), "squad_v2", tokenizer, ROOM)
    assert questions.references == [["Ada Lovelace", "Ada"], ["unanswerable"]]


def test_what_is_too_long_is_left_out_and_counted(tmp_path, tokenizer):
    short, long = ({"instruction": "a" * n, "output": "b"} for n in (1, 2000))
    questions = from_file(lines(tmp_path / "rows.jsonl", short, long, short), "alpaca", tokenizer, ROOM)
    assert (len(questions.examples), questions.left_out) == (2, 1)
    with pytest.raises(DataError, match="each of its 1 examples has more than 512 tokens"):
        from_file(lines(tmp_path / "rows.jsonl", long), "alpaca", tokenizer, ROOM)
    length = len(tokenizer.prompt(questions.prompts[0]))
    assert questions.answerable(tokenizer, length + 2)[2] == 2  # "b" and its end
    with pytest.raises(DataError, match="leaves room for 3 tokens of answer"):
        questions.answerable(tokenizer, length + 2, 3)


def test_bad_files_and_names(tmp_path, tokenizer):
    with pytest.raises(UnknownNameError, match=r"unknown type 'alpacca'\. Did you mean 'alpaca'"):
        from_file(tmp_path / "x.jsonl", "alpacca", tokenizer, ROOM)
    with pytest.raises(DataError, match=r"rows\.jsonl, row 1: field 'output' is missing"):
        from_file(lines(tmp_path / "rows.jsonl", ROWS["alpaca"][0], {"instruction": "x"}), "alpaca", tokenizer, ROOM)
    questions = from_file(lines(tmp_path / "rows.jsonl", {"text": "import os"}), "completion", tokenizer, ROOM)
    with pytest.raises(DataError, match="every token is a target, so there is no prompt"):
        questions.answerable(tokenizer, ROOM)


def test_scores_of_answers(embedded):
    """What the model writes is compared with the reference; its own answer is a match, and another one is not."""
    prompts = ["def f(x):\n", "import", "class A:\n"]
    written = [generate(*embedded, prompt, 8) for prompt in prompts]
    references = [["another", written[0] + "\n "], ["nothing of the kind"], [written[2]]]
    scores = evaluate_answers(*embedded, prompts, references, 8, batch_size=2)
    assert scores["answers"] == written and scores["exact_match"] == 2 / 3
    for name in ("rouge1", "rouge2", "rougeL"):
        each = [rouge(a, rights[-1])[name] for a, rights in zip(written, references, strict=True)]
        assert scores[name] == pytest.approx(sum(each) / 3)
    with pytest.raises(DataError, match="empty"):
        evaluate_answers(*embedded, [], [], 8)


def test_dropout_is_off_while_answers_are_written(tokenizer):
    model = get_peft_model(load_model("embedded")[0], LoraConfig(r=2, lora_dropout=0.5))
    for p in model.trainable().values():
        p.data = p.data + 0.05
    expected = generate(model.eval(), tokenizer, "import", 8)
    assert evaluate_answers(model.train(), tokenizer, ["import"], [["x"]], 8)["answers"] == [expected]
    assert model.training


def test_a_trained_model_writes_what_its_targets_promise(tmp_path, tokenizer):
    """Exact match on targets is that of greedy answers, where text has one spelling in tokens."""
    model = get_peft_model(load_model("embedded")[0], LoraConfig(r=8, target_modules="all-linear"))
    questions = from_task("header_json", tokenizer, ROOM, 8)
    args = TrainingArguments(tmp_path, max_steps=40, learning_rate=1e-2, per_device_train_batch_size=8)
    Trainer(model, args, questions.examples, data_collator=DataCollatorForLanguageModeling(tokenizer)).train()
    on_targets = evaluate(model, questions.examples)["exact_match"]
    prompts, references, new = questions.answerable(tokenizer, ROOM)
    assert evaluate_answers(model, tokenizer, prompts, references, new)["exact_match"] == on_targets > 0.5
