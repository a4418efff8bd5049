from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minilora.train.rouge import _longest_common_subsequence, rouge

texts = st.lists(st.sampled_from("abc"), max_size=7).map(" ".join)


@given(texts, texts)
def test_rouge_l_by_trying_every_subsequence(a, b):
    def subsequences(words):
        return {tuple(words[i] for i in s) for n in range(len(words) + 1) for s in combinations(range(len(words)), n)}

    common = subsequences(a.split()) & subsequences(b.split())
    assert _longest_common_subsequence(a.split(), b.split()) == max(map(len, common))


@given(texts, texts)
def test_laws(a, b):
    scores = rouge(a, b)
    assert scores == rouge(b, a) and all(0 <= s <= 1 for s in scores.values())
    assert scores["rougeL"] <= scores["rouge1"] and (scores["rouge1"] > 0) == bool(set(a.split()) & set(b.split()))
    if a.split():
        assert rouge(a.upper() + "!", a)["rougeL"] == 1


def test_example():
    assert rouge("the cat sat", "the cat sat down") == pytest.approx(
        {"rouge1": 6 / 7, "rouge2": 4 / 5, "rougeL": 6 / 7}
    )


@pytest.mark.peers
@given(texts, texts)
def test_as_the_package_rouge_score(a, b):
    scorer = pytest.importorskip("rouge_score.rouge_scorer", reason="rouge-score is not installed")
    theirs = scorer.RougeScorer(["rouge1", "rouge2", "rougeL"]).score(b, a)
    assert rouge(a, b) == pytest.approx({name: s.fmeasure for name, s in theirs.items()})
