"""Questions about Python in SQuAD v2's format, from the interpreter's own help pages: spans whose answers are exact.

    write_squad("train.json", "train")              # {"version": "v2.0", "data": [{"title", "paragraphs": [...]}, ...]}

Two kinds of passage in pydoc's topics have a form from which a question and its answer follow: a rule of the grammar
("if_stmt ::= ...") and the description of a method or function below its signature. A third of the questions is asked
of a passage of another topic, which does not answer them: SQuAD's "is_impossible" (arXiv:1806.03822).
"""

import json
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

from minilora.data.stdlib import SPLITS, split_of
from minilora.errors import DataError
from minilora.files import atomic_write

LONGEST = 900  # characters of a passage
_RULE = re.compile(r"^ {3}(?P<name>\w+)\s+::= (?P<answer>.+(?:\n {4,}\S.*)*)", re.MULTILINE)
_METHOD = re.compile(r"^(?P<name>(?:\w+\.)+\w+)\(.*\)\n\n {3}(?P<answer>[A-Z](?:.|\n(?!\n))*?\.)(?=\s|$)", re.MULTILINE)
_QUESTIONS = {_RULE: "What is the grammar of {}?", _METHOD: "What does {} do?"}


@dataclass(frozen=True)
class Question:
    """about: the rule or function. answer and start, its first character in context; "" and -1 where there is none."""

    title: str
    context: str
    about: str
    question: str
    answer: str = ""
    start: int = -1


def passages(text: str) -> Iterator[str]:
    """Whole paragraphs of a topic put together, up to LONGEST characters; a longer paragraph is left out."""
    held = ""
    for paragraph in re.split(r"\n\n(?=\S)", text.strip("\n")):  # an indented one belongs to what it is under
        if len(held) + len(paragraph) + 2 > LONGEST:
            if held:
                yield held
            held = ""
        if len(paragraph) <= LONGEST:
            held = f"{held}\n\n{paragraph}" if held else paragraph
    if held:
        yield held


def questions(split: str) -> list[Question]:
    """All questions of a split, of which one in three cannot be answered from its passage.

    Topics are split as files are; a question whose words or answer occur in an earlier split is left out, since topics
    repeat each other. Raises DataError for an unknown split.
    """
    from pydoc_data.topics import topics

    if split not in SPLITS:
        raise DataError(f"unknown split {split!r}; there are {', '.join(SPLITS)}")
    seen, found = set(), []
    for name in SPLITS[: SPLITS.index(split) + 1]:
        found = []
        for title in sorted(t for t in topics if split_of(t) == name):
            for context in passages(topics[title]):
                for q in _asked_of(title, context):
                    if q.question not in seen and q.answer not in seen:
                        seen |= {q.question, q.answer}
                        found.append(q)
    return [_moved(q, found) if zlib.crc32(q.question.encode()) % 3 == 0 else q for q in found]


def _asked_of(title: str, context: str) -> Iterator[Question]:
    for pattern, words in _QUESTIONS.items():
        for match in pattern.finditer(context):
            name = match["name"]
            yield Question(title, context, name, words.format(name), match["answer"], match.start("answer"))


def _moved(q: Question, others: list[Question]) -> Question:
    """The same question asked of a passage of another topic that does not mention what it is about."""
    away = [o for o in others if o.title != q.title and q.about not in o.context]
    other = away[zlib.crc32(q.context.encode()) % len(away)]
    return Question(other.title, other.context, q.about, q.question)


def write_squad(path, split: str):
    """Write the questions of a split as a SQuAD v2 file."""
    articles: dict[str, dict[str, list]] = {}
    for i, q in enumerate(questions(split)):
        answers = [{"text": q.answer, "answer_start": q.start}] if q.answer else []
        entry = {"id": f"{split}-{i}", "question": q.question, "answers": answers, "is_impossible": not answers}
        articles.setdefault(q.title, {}).setdefault(q.context, []).append(entry)
    data = [
        {"title": title, "paragraphs": [{"context": c, "qas": qas} for c, qas in contexts.items()]}
        for title, contexts in articles.items()
    ]
    atomic_write(path, json.dumps({"version": "v2.0", "data": data}, ensure_ascii=False, indent=1) + "\n")
