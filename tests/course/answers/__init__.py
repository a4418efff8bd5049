"""Answers that students hand in, right and wrong, for each homework: what the checks and the grading are tried on.

@wrong(cell, why) and @right(cell, how) put the function below them in the answer's place in the notebook's `cell`.
USED_BY: for a cell whose function later answers call, their checks: they may lose points with it.
"""

import inspect
import textwrap
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Answer:
    """cell: its grade_id, of which the check is `cell`-check. function: as a student would write it."""

    cell: str
    words: str
    function: Callable

    @property
    def problem(self) -> str:
        return self.function.__name__

    @property
    def source(self) -> str:
        lines = textwrap.dedent(inspect.getsource(self.function)).splitlines()
        return "\n".join(lines[next(i for i, line in enumerate(lines) if line.startswith("def ")) :]) + "\n"


def collections() -> tuple[list[Answer], list[Answer], Callable, Callable]:
    """Two lists, and the decorators that fill them: WRONG, RIGHT, wrong, right = collections()."""

    def into(answers: list[Answer]):
        return lambda cell, words: lambda function: answers.append(Answer(cell, words, function)) or function

    wrong, right = [], []
    return wrong, right, into(wrong), into(right)
