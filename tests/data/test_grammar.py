"""Generated tasks: what is promised of every split, and of each grammar's answers."""

import operator
import re
import sqlite3
from collections import Counter
from itertools import product
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minilora.data import grammar_nli
from minilora.data.grammar import GRAMMARS, load_grammar_task
from minilora.data.grammar_dialogue import DAYS
from minilora.data.grammar_words import LEXICON, SHARES, split_words
from minilora.data.tasks import ANSWER, encode
from minilora.errors import ConfigError, DataError, UnknownNameError
from minilora.models.registry import load_model

SIZES = {"train": 300, "validation": 100, "held_out": 100}
seeds = st.integers(0, 2**32)


def load(name, seed=0):
    return load_grammar_task(name, seed, **SIZES)


def splits(task) -> list:
    return [getattr(task, split) for split in SIZES]


def lexicon_words(examples) -> set[str]:
    """Those of the lexicon that the examples say, in the singular."""
    said = {w for e in examples for w in re.findall("[a-z]+", (e.prompt + e.response).lower())}
    return {word for word in LEXICON.all() if {word.lower(), word.lower() + "s"} & said}


@pytest.fixture(scope="module", params=GRAMMARS)
def task(request):
    return load(request.param)


# Of all three.


@given(seeds)
def test_words_are_dealt_out_once(seed):
    dealt = [split_words(split, seed) for split in SHARES]
    assert sorted(word for words in dealt for word in words.all()) == sorted(LEXICON.all())
    assert dealt == [split_words(split, seed) for split in SHARES]


def test_a_word_is_of_one_kind_and_has_a_regular_plural():
    assert len({word.lower() for word in LEXICON.all()}) == len(LEXICON.all())
    assert not [thing for thing in LEXICON.things if re.search("(s|x|z|ch|sh|[^aeiou]y)$", thing)]


@given(st.sampled_from(sorted(GRAMMARS)), seeds)
def test_the_same_seed_gives_the_same_examples(name, seed):
    sizes = {"train": 20, "validation": 10, "held_out": 10}
    a, b, other = (load_grammar_task(name, s, **sizes) for s in (seed, seed, seed + 1))
    assert a == b and a.train != other.train
    assert [len(split) for split in splits(a)] == [20, 10, 10]


def test_splits_share_neither_words_nor_examples(task):
    prompts = [{e.prompt for e in split} for split in splits(task)]
    words = [lexicon_words(split) for split in splits(task)]
    for parts in (prompts, words):
        assert all(parts) and len(set.union(*parts)) == sum(map(len, parts))
    assert list(map(len, prompts)) == list(SIZES.values())


def test_texts_fit_the_embedded_model(task):
    _, tokenizer = load_model("embedded")
    for split in splits(task):
        assert max(len(row["input_ids"]) for row in encode(tokenizer, split, 160)) <= 160
        for e in split:
            assert tokenizer.decode(tokenizer.encode(e.prompt + e.response)) == e.prompt + e.response
            assert e.prompt.endswith(ANSWER) and (e.prompt + e.response).isascii()


def test_rules_that_see_too_little_do_not_solve_it(task):
    rules = task.trivial_rules()
    assert rules and max(rules.values()) < 0.65
    assert set(task.trivial_rules(lambda answer, reference: 1.0).values()) == {1.0}


def test_kinds_of_examples_take_turns():
    labels = Counter(e.response for e in load("multinli").held_out)
    assert labels.keys() == set(grammar_nli.LABELS) and max(labels.values()) - min(labels.values()) <= 1
    aggregates = Counter(re.match(r"select (\w+\()?", e.response)[1] for e in load("wikisql").held_out)
    assert len(aggregates) == 6 and max(aggregates.values()) - min(aggregates.values()) <= 1


@pytest.mark.parametrize("size", [0, -1, 2.5, True, "9"])
def test_a_size_that_is_none(size):
    with pytest.raises(ConfigError, match="at least one validation example"):
        load_grammar_task("wikisql", train=4, validation=size)


def test_an_unknown_task():
    with pytest.raises(UnknownNameError, match="Did you mean 'wikisql'"):
        load_grammar_task("wikisq")


def test_more_examples_than_there_are(monkeypatch):
    coin = SimpleNamespace(example=lambda rng, words, i: (rng.choice(words.names), rng.choice(("heads", "tails"))))
    monkeypatch.setitem(GRAMMARS, "coin", coin)
    names = {split: len(split_words(split, 0).names) for split in SHARES}
    sizes = {"train": names["train"], "validation": names["validation"], "held_out": names["held-out"]}
    assert list(map(len, splits(load_grammar_task("coin", **sizes)))) == list(sizes.values())
    with pytest.raises(DataError, match=f"made only {names['held-out']} different held-out prompts of .*; ask for"):
        load_grammar_task("coin", **sizes | {"held_out": names["held-out"] + 1})


# SQL: executed, it answers the question.

COMPARE = {"is": operator.eq, "is above": operator.gt, "is below": operator.lt}
AGGREGATES = {
    "the number of": len, "the largest": max, "the smallest": min, "the total": sum,
    "the mean": lambda values: sum(values) / len(values),
}  # fmt: skip


@given(seeds)
def test_sql_answers_the_question(seed):
    for e in load_grammar_task("wikisql", seed, train=6, validation=1, held_out=6).held_out:
        header, question = e.prompt.removesuffix(ANSWER).split("\n")
        table, columns = header.removesuffix(")").split("(")
        columns = columns.split(", ")
        ask, _, condition = question.partition(" where the ")
        head, compare, value = re.fullmatch(r"(\w+) (is above|is below|is) '?(\w+)'?", condition).groups()
        aggregate, _, asked = ask.rpartition(" ")

        def column(head, columns=columns):
            (found,) = (i for i, name in enumerate(columns) if name.startswith(f"{head}_"))
            return found

        tested, wanted = column(head), column(asked)
        assert tested != wanted
        goal = value if compare == "is" else int(value)
        near = [value, "Nobody"] if compare == "is" else [goal + d for d in (-1, 0, 1)]
        rows = [tuple(near[j % len(near)] if i == tested else 10 * i + j for i in range(3)) for j in range(6)]
        kept = [row[wanted] for row in rows if COMPARE[compare](row[tested], goal)]
        expected = [AGGREGATES[aggregate](kept)] if aggregate in AGGREGATES else kept
        with sqlite3.connect(":memory:") as db:
            db.execute(f"create table {table} ({', '.join(columns)})")
            db.executemany(f"insert into {table} values (?, ?, ?)", rows)
            assert kept and [row for (row,) in db.execute(e.response)] == expected


# Premise and hypothesis.


def test_a_label_is_the_relation():
    """By intervals: the premise's numbers lie within the hypothesis's, outside, or neither."""
    ends = {"exactly": lambda k: (k, k), "at least": lambda k: (k, 99), "at most": lambda k: (0, k)}
    for e in load("multinli").train:
        (a, b), (c, d) = (
            ends[kind](int(k))
            for kind, k in (re.fullmatch(r"\w+ has (.+) (\d) \w+s", line).groups() for line in e.prompt.split("\n")[:2])
        )
        apart = b < c or d < a
        assert e.response == ("entailment" if c <= a and b <= d else "contradiction" if apart else "neutral")


def test_relations_obey_logic():
    forms = list(product(grammar_nli.KINDS, range(1, 5)))
    relation = grammar_nli.relation
    for p, h in product(forms, forms):
        assert relation(p, p) == "entailment"
        assert (relation(p, h) == "contradiction") == (relation(h, p) == "contradiction")
        for g in forms:
            if relation(p, h) == relation(h, g) == "entailment":
                assert relation(p, g) == "entailment"


def test_the_premise_alone_gives_away_half():
    """Two labels for each kind, and for these all numbers."""
    found = {label: Counter(kind for (kind, _), _ in grammar_nli.pairs(label)) for label in grammar_nli.LABELS}
    for kind in grammar_nli.KINDS:
        assert sorted(found[label][kind] for label in found) == [0, len(grammar_nli.NUMBERS), len(grammar_nli.NUMBERS)]


# Dialogues.


def test_a_summary_says_what_was_said():
    """Names, things, places and days of a summary are the dialogue's; two speak in turn; it ends as it went."""
    content = {*(w.lower() for w in LEXICON.all()), *DAYS}
    for e in load("samsum").train:
        dialogue = e.prompt.removesuffix(ANSWER)
        speakers, lines = zip(*(line.split(": ", 1) for line in dialogue.split("\n")), strict=True)
        assert speakers == (speakers[:2] * 3)[: len(speakers)] and len(set(speakers)) == 2
        said, told = (set(re.findall("[a-z]+", text.lower())) for text in (dialogue, e.response))
        assert told & content <= said and told & {name.lower() for name in speakers}
        if lines[-1] == "fine":
            day = re.match(r"not (\w+), (\w+) is better", lines[1])
            assert day is None or (day[2] in told and day[1] not in told)
