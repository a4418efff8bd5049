"""SQuAD's two scores of an answer, each the best against all the answers that people gave.

    squad(["in the Norman conquest"], [["Norman conquest", "the conquest"]])    # {"exact": 0.0, "f1": 0.8, ...}

Exact match and F1 over words, both after lower case, without punctuation and articles (Rajpurkar et al., 2016, section
6.1). Version 2 has questions without an answer (Rajpurkar et al., 2018): there only saying so is right, and scores 1.
"""

import re
import string
from collections import Counter

from minilora.data.formats import UNANSWERABLE

_PUNCTUATION = str.maketrans("", "", string.punctuation)


def squad(answers: list[str], accepted: list[list[str]]) -> dict[str, float]:
    """{"exact", "f1", "HasAns_exact", "HasAns_f1", "NoAns_exact"}: means from 0 to 1, over all questions, over those
    with an answer, over those without; the last three only where there are such questions.

    accepted: of each question all right answers, or [UNANSWERABLE]. Names as in the task's own evaluation script.
    """
    scores = [
        (max(_exact(answer, right) for right in rights), max(_f1(answer, right) for right in rights))
        for answer, rights in zip(answers, accepted, strict=True)
    ]
    has = [score for score, rights in zip(scores, accepted, strict=True) if rights != [UNANSWERABLE]]
    none = [score for score, rights in zip(scores, accepted, strict=True) if rights == [UNANSWERABLE]]
    means = {"exact": _mean(scores, 0), "f1": _mean(scores, 1)}
    if has:
        means |= {"HasAns_exact": _mean(has, 0), "HasAns_f1": _mean(has, 1)}
    return means | ({"NoAns_exact": _mean(none, 0)} if none else {})


def words(text: str) -> list[str]:
    """Those that are compared."""
    return re.sub(r"\b(a|an|the)\b", " ", text.lower().translate(_PUNCTUATION)).split()


def _exact(answer: str, right: str) -> float:
    return float(words(answer) == words(right))


def _f1(answer: str, right: str) -> float:
    ours, theirs = words(answer), words(right)
    if UNANSWERABLE in (" ".join(ours), right) or not (ours and theirs):
        return float(ours == theirs)
    shared = (Counter(ours) & Counter(theirs)).total()
    return 2 * shared / (len(ours) + len(theirs))


def _mean(scores: list[tuple], which: int) -> float:
    return sum(score[which] for score in scores) / len(scores)
