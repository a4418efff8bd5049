"""Three tasks made by grammars, in the form of those on which the LoRA paper's table 4 tunes GPT-3.

    task = load_grammar_task("wikisql", train=3000)
    task.train[0].prompt, task.train[0].response
    task.trivial_rules()                                    # what one gets without learning

wikisql: a table's columns and a question -> SQL (grammar_sql.py; exact match). multinli: premise and hypothesis ->
entailment, neutral or contradiction (grammar_nli.py; exact match, which is accuracy). samsum: a dialogue -> its summary
(grammar_dialogue.py; ROUGE). They stand for the data sets of these names and share nothing with them but the form. A
name or noun of one split occurs in no other (grammar_words.py).
"""

import operator
import random
from collections.abc import Callable
from dataclasses import dataclass

from minilora.data import grammar_dialogue, grammar_nli, grammar_sql
from minilora.data.grammar_words import split_words
from minilora.data.tasks import ANSWER, Example, Task
from minilora.errors import ConfigError, DataError, unknown_name

GRAMMARS = {"wikisql": grammar_sql, "multinli": grammar_nli, "samsum": grammar_dialogue}


@dataclass
class GrammarTask(Task):
    def trivial_rules(self, figure: Callable[[str, str], float] = operator.eq) -> dict[str, float]:
        """The mean figure of an answer and its reference, on the held-out examples, of rules that see too little."""
        rules = GRAMMARS[self.name].rules(self.train)
        return {
            name: sum(figure(rule(e.prompt), e.response) for e in self.held_out) / len(self.held_out)
            for name, rule in rules.items()
        }


def load_grammar_task(
    name: str, seed: int = 0, train: int = 4096, validation: int = 256, held_out: int = 256
) -> GrammarTask:  # fmt: skip
    """So many examples of each split, no prompt twice; the same seed gives the same ones.

    Raises UnknownNameError, ConfigError for a size that is no positive integer, DataError when the grammar has not so
    many prompts.
    """
    if name not in GRAMMARS:
        raise unknown_name("task", name, GRAMMARS)
    splits = []
    for split, size in (("train", train), ("validation", validation), ("held-out", held_out)):
        if type(size) is not int or size < 1:
            raise ConfigError(f"{name} needs at least one {split} example, not {size!r}")
        words, rng, found = split_words(split, seed), random.Random(f"{name} {split} {seed}"), {}
        for _ in range(20 * size + 100):
            prompt, response = GRAMMARS[name].example(rng, words, len(found))
            found[prompt] = response
            if len(found) == size:
                break
        else:
            raise DataError(f"{name} made only {len(found)} different {split} prompts of {size}; ask for fewer")
        splits.append([Example(p + ANSWER, r, f"{name}, {split}, {i}") for i, (p, r) in enumerate(found.items())])
    return GrammarTask(name, *splits)
