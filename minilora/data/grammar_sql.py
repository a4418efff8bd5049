"""Questions about a table and the SQL that asks them, in the form of WikiSQL (arXiv:1709.00103):
select AGGREGATE(column) from table where column OPERATOR value

    raven(pump_hill, otter_nail, lake_moth)
    the largest pump where the otter is above 37
    >>> select max(pump_hill) from raven where otter_nail > 37

A question names a column by its first half; the other half must be looked up in the table. The SQL runs in sqlite3.
"""

import random
from collections import Counter
from collections.abc import Callable

from minilora.data.grammar_words import Words
from minilora.data.tasks import Example

AGGREGATES = {
    "the": "{}", "the largest": "max({})", "the smallest": "min({})", "the mean": "avg({})", "the total": "sum({})",
    "the number of": "count({})",
}  # fmt: skip
OPERATORS = {"is": "=", "is above": ">", "is below": "<"}
COLUMNS = 3


def example(rng: random.Random, words: Words, i: int) -> tuple[str, str]:
    """(table and question, SQL); the aggregates take turns with i."""
    table, *nouns = rng.sample(words.nouns(), 2 * COLUMNS + 1)
    columns = {head: f"{head}_{tail}" for head, tail in zip(nouns[::2], nouns[1::2], strict=True)}
    asked, tested = rng.sample(list(columns), 2)
    aggregate, compare = list(AGGREGATES)[i % len(AGGREGATES)], rng.choice(list(OPERATORS))
    value = f"'{rng.choice(words.names)}'" if compare == "is" else str(rng.randint(10, 99))
    return (
        f"{table}({', '.join(columns.values())})\n{aggregate} {asked} where the {tested} {compare} {value}",
        f"select {AGGREGATES[aggregate].format(columns[asked])} from {table} "
        f"where {columns[tested]} {OPERATORS[compare]} {value}",
    )


def rules(train: list[Example]) -> dict[str, Callable[[str], str]]:
    """Answers that need no learning: name -> a function of the prompt."""
    common = Counter(e.response for e in train).most_common(1)[0][0]
    return {
        "the most common answer": lambda prompt: common,
        "the question itself": lambda prompt: prompt.split("\n")[1],
    }
