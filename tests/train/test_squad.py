"""SQuAD's scores: of many right answers the best counts, and where there is none only saying so is right."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minilora.data.formats import UNANSWERABLE
from minilora.train.squad import squad, words

texts = st.text("ab the,.! X", min_size=1, max_size=12)
NONE = [UNANSWERABLE]


@given(texts, st.lists(texts, min_size=1, max_size=3))
def test_laws(answer, accepted):
    scores = squad([answer], [accepted])
    assert 0 <= scores["exact"] <= scores["f1"] <= 1
    assert scores["exact"] == any(words(answer) == words(right) for right in accepted)
    assert squad([answer.upper() + "!"], [accepted])["f1"] == scores["f1"]  # neither case nor punctuation counts
    assert squad([answer], [[*accepted, "b a"]])["f1"] >= scores["f1"]  # one more right answer takes nothing away
    assert squad([accepted[-1]], [accepted])["exact"] == 1


def test_by_hand():
    assert words("The  Norman-conquest, in an abbey.") == ["normanconquest", "in", "abbey"]
    scores = squad(["in the Norman conquest"], [["Norman conquest", "conquest"]])
    assert scores["exact"] == 0 and scores["f1"] == pytest.approx(2 * 2 / (3 + 2))


def test_questions_without_an_answer():
    answers, accepted = ["Unanswerable.", "1066", "unanswerable", "in 1066"], [NONE, NONE, ["1066"], ["1066"]]
    scores = squad(answers, accepted)
    assert scores == pytest.approx(
        {"exact": 1 / 4, "f1": (1 + 2 / 3) / 4, "HasAns_exact": 0, "HasAns_f1": 1 / 3, "NoAns_exact": 1 / 2}
    )
    assert "HasAns_f1" not in squad(["x"], [NONE]) and "NoAns_exact" not in squad(["x"], [["x"]])
