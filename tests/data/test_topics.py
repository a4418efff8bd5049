"""Questions from the help pages: answers are exact spans, splits share nothing, and the file is SQuAD's."""

import itertools

import pytest

from minilora.data.formats import squad_v2
from minilora.data.rows import open_rows
from minilora.data.stdlib import SPLITS
from minilora.data.topics import LONGEST, questions, write_squad
from minilora.errors import DataError


def test_answers_are_spans_and_what_cannot_be_answered_is_not_mentioned():
    for split in SPLITS:
        found = questions(split)
        for q in found:
            assert len(q.context) <= LONGEST and q.about in q.question
            if q.answer:
                assert q.context[q.start : q.start + len(q.answer)] == q.answer and q.about in q.context
            else:
                assert q.start == -1 and q.about not in q.context
        assert 0 < sum(not q.answer for q in found) < len(found) / 2
    assert len(questions("train")) > 100


def test_a_known_rule_and_a_known_method():
    found = {q.question: q.answer for split in SPLITS for q in questions(split)}
    assert found["What is the grammar of assert_stmt?"] in ('"assert" expression ["," expression]', "")
    assert any(a.startswith("Exit the runtime context") for a in found.values())


def test_splits_share_no_question_answer_or_topic():
    splits = [questions(split) for split in SPLITS]
    for a, b in itertools.combinations(splits, 2):
        assert not {q.question for q in a} & {q.question for q in b}
        assert not {q.answer for q in a if q.answer} & {q.answer for q in b if q.answer}
        assert not {q.title for q in a} & {q.title for q in b}


def test_the_file_is_squads_and_its_rows_are_the_questions(tmp_path):
    path = tmp_path / "train.json"
    write_squad(path, "train")
    rows = open_rows(path)
    assert len(rows) == len(questions("train"))
    ours = {(q.question, q.context): q.answer for q in questions("train")}
    for row in rows:
        (_, _), (answer, target) = squad_v2(row)
        assert target and answer == (ours[row["question"], row["context"]] or "unanswerable")


def test_an_unknown_split_is_named():
    with pytest.raises(DataError, match="held-out"):
        questions("test")
