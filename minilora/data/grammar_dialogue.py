"""Short dialogues and what came of them, in the form of SAMSum (arXiv:1911.12237).

    Ada: tea at the pier on friday?
    Leo: not friday, monday is better
    Ada: fine
    >>> Ada and Leo will have tea at the pier on monday.

Four stories (to meet, to borrow, to find, to fetch), each with turns that change its end. The summary has who, what,
where and when of what was agreed, so that the first or the last line alone does not have it.
"""

import random
from collections.abc import Callable

from minilora.data.grammar_words import Words
from minilora.data.tasks import Example

DAYS = ["monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday"]
MEALS = ["tea", "lunch", "dinner", "coffee"]
TWIST = 0.6  # of the dialogues: so many whose first proposal is not what comes of it


def example(rng: random.Random, words: Words, i: int) -> tuple[str, str]:
    """(dialogue, summary); the stories take turns with i."""
    ask, answer = rng.sample(words.names, 2)
    story = (_meet, _borrow, _find, _fetch)[i % 4]
    lines, summary = story(rng, words, ask, answer, rng.random() < TWIST)
    return "\n".join(f"{(ask, answer)[i % 2]}: {line}" for i, line in enumerate(lines)), summary


def _meet(rng, words: Words, ask: str, answer: str, twist: bool):
    meal, (day, other), (place, there) = rng.choice(MEALS), rng.sample(DAYS, 2), rng.sample(words.places, 2)
    opening = rng.choice((f"{meal} at the {place} on {day}?", f"how about {meal} on {day} at the {place}?"))
    agreed = f"{ask} and {answer} will have {meal} at the {{}} on {{}}."
    if not twist:
        return [opening, rng.choice(("yes, gladly", "good, see you"))], agreed.format(place, day)
    return rng.choice((
        ([opening, f"not {day}, {other} is better", "fine"], agreed.format(place, other)),
        ([opening, f"rather at the {there}", "fine"], agreed.format(there, day)),
        ([opening, rng.choice(("sorry, no", "i have no time"))], f"{answer} has no time for {meal} with {ask}."),
    ))  # fmt: skip


def _borrow(rng, words: Words, ask: str, answer: str, twist: bool):
    thing, instead, day = *rng.sample(words.things, 2), rng.choice(DAYS)
    opening = rng.choice((f"may i have your {thing} until {day}?", f"lend me your {thing}, please, until {day}"))
    lends = f"{answer} lends {ask} the {{}} until {day}."
    if not twist:
        return [opening, rng.choice(("of course", "yes, take it"))], lends.format(thing)
    return rng.choice((
        ([opening, f"it broke, take the {instead}", "thanks"], lends.format(instead)),
        ([opening, "no, i need it"], f"{answer} needs the {thing}, {ask} does not get it."),
    ))  # fmt: skip


def _find(rng, words: Words, ask: str, answer: str, twist: bool):
    thing, (place, there) = rng.choice(words.things), rng.sample(words.places, 2)
    opening = rng.choice((f"where is my {thing}?", f"did you see my {thing}?"))
    found = f"{ask} left the {thing} at the {{}}."
    lines = [opening, rng.choice((f"look at the {place}", f"is it at the {place}?"))]
    if not twist:
        return [*lines, "yes, it was"], found.format(place)
    return rng.choice((
        ([*lines, "no", f"then at the {there}", "yes, it was"], found.format(there)),
        ([*lines, "no, it is lost"], f"{ask} lost the {thing}."),
    ))  # fmt: skip


def _fetch(rng, words: Words, ask: str, answer: str, twist: bool):
    thing, day = rng.choice(words.things), rng.choice(DAYS)
    opening = rng.choice((f"can you buy a new {thing} on {day}?", f"we need a new {thing} by {day}"))
    buys = f"{{}} will buy a {thing} on {day}."
    if not twist:
        return [opening, rng.choice(("i will", "yes, gladly"))], buys.format(answer)
    return [opening, rng.choice(("sorry, no", "i have no time")), "then i will"], buys.format(ask)


def rules(train: list[Example]) -> dict[str, Callable[[str], str]]:
    """Summaries that need no learning: name -> a function of the prompt."""
    return {
        "the whole dialogue": lambda prompt: prompt.rpartition("\n")[0],
        "the first line": lambda prompt: prompt.split("\n")[0],
        "the last line": lambda prompt: prompt.split("\n")[-2],
    }
