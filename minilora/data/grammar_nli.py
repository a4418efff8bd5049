"""A premise, a hypothesis, and what the one says of the other, in the form of MultiNLI (arXiv:1704.05426).

    Ada has at most 4 lanterns
    Ada has at least 3 lanterns
    >>> neutral

The relation is found by trying all worlds, which here are all numbers of things: a premise entails a hypothesis that is
true in every world where it is true, contradicts one that is true in none of them, and is neutral to others.

A premise says exactly, at least or at most how many, a hypothesis always at least how many. Each kind of premise goes
with two labels, and all its numbers with both, so that it alone gives away half the labels. The hypothesis alone gives
away somewhat more, as small numbers are entailed more often. (So do MultiNLI's, arXiv:1803.02324.)
"""

import random
from collections import Counter
from collections.abc import Callable
from functools import cache
from itertools import product

from minilora.data.grammar_words import Words
from minilora.data.tasks import Example

LABELS = ("entailment", "neutral", "contradiction")
KINDS = {  # whether a statement holds where there are n things
    "exactly": lambda n, k: n == k,
    "at least": lambda n, k: n >= k,
    "at most": lambda n, k: n <= k,
}
NUMBERS = range(3, 9)  # of premises; a hypothesis may have one less and one more
Form = tuple[str, int]  # a kind and its number


def relation(premise: Form, hypothesis: Form) -> str:
    worlds = range(max(premise[1], hypothesis[1]) + 2)  # more things make no difference
    found = {holds(hypothesis, n) for n in worlds if holds(premise, n)}
    return {(True,): "entailment", (False,): "contradiction"}.get(tuple(found), "neutral")


def holds(form: Form, n: int) -> bool:
    return KINDS[form[0]](n, form[1])


@cache
def pairs(label: str) -> list[tuple[Form, list[Form]]]:
    """Every premise that goes with the label, and the hypotheses with which it does."""
    hypotheses = [("at least", k) for k in range(NUMBERS[0] - 1, NUMBERS[-1] + 2)]
    found = [(p, [h for h in hypotheses if relation(p, h) == label]) for p in product(KINDS, NUMBERS)]
    return [(p, hs) for p, hs in found if hs]


def example(rng: random.Random, words: Words, i: int) -> tuple[str, str]:
    """(premise and hypothesis, label); the labels take turns with i."""
    label, name, thing = LABELS[i % len(LABELS)], rng.choice(words.names), rng.choice(words.things)
    premise, hypotheses = rng.choice(pairs(label))
    statements = [f"{name} has {kind} {number} {thing}s" for kind, number in (premise, rng.choice(hypotheses))]
    return "\n".join(statements), label


def rules(train: list[Example]) -> dict[str, Callable[[str], str]]:
    """The likeliest label of one statement's form: name -> a function of the prompt."""
    return {
        "the likeliest label of the premise alone": _likeliest(train, 0),
        "the likeliest label of the hypothesis alone": _likeliest(train, 1),
    }


def _likeliest(train: list[Example], line: int) -> Callable[[str], str]:
    def form(prompt: str) -> list[str]:
        return prompt.split("\n")[line].split()[2:-1]  # between "Ada has" and the thing

    counts = Counter((*form(e.prompt), e.response) for e in train)
    return lambda prompt: max(LABELS, key=lambda label: counts[*form(prompt), label])
