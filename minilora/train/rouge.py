"""ROUGE: how many of a summary's words, word pairs, or words in the same order, a text shares with a reference.

    rouge("the cat sat", "the cat sat down")      # {"rouge1": 0.857, "rouge2": 0.8, "rougeL": 0.857}

Each is the harmonic mean of precision (of the text's) and recall (of the reference's), 0 to 1 (Lin, "ROUGE: A Package
for Automatic Evaluation of Summaries", 2004). Words are runs of ASCII letters and digits in lower case, not stemmed, as
in the package rouge-score.
"""

import re
from collections import Counter


def rouge(text: str, reference: str) -> dict[str, float]:
    ours, theirs = _words(text), _words(reference)
    scores = {f"rouge{n}": _f1(*_shared(ours, theirs, n)) for n in (1, 2)}
    return scores | {"rougeL": _f1(_longest_common_subsequence(ours, theirs), len(ours), len(theirs))}


def _words(text: str) -> list[str]:
    return re.findall(r"[a-z0-9]+", text.lower())


def _shared(ours: list[str], theirs: list[str], n: int) -> tuple[int, int, int]:
    """Runs of n words in both, counted as often as in both; and how many there are in each."""
    a, b = (Counter(zip(*(words[i:] for i in range(n)), strict=False)) for words in (ours, theirs))
    return (a & b).total(), a.total(), b.total()


def _longest_common_subsequence(ours: list[str], theirs: list[str]) -> int:
    """Its length, row by row of the table of dynamic programming."""
    row = [0] * (len(theirs) + 1)
    for word in ours:
        before = 0  # the row above, one to the left
        for j, other in enumerate(theirs, 1):
            before, row[j] = row[j], before + 1 if word == other else max(row[j], row[j - 1])
    return row[-1]


def _f1(shared: int, ours: int, theirs: int) -> float:
    return 2 * shared / (ours + theirs) if shared else 0.0
