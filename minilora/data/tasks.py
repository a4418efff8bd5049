"""Two tasks made from the standard library's functions, their answers exact, by `ast`.

    task = load_task("header_json")
    task.train[0].prompt, task.train[0].response

header_json: a function's header -> JSON {name, params, defaults}. docstring_json: with the first line of its docstring,
which goes into the JSON too. Split by file (see stdlib.py). No prompt of an earlier split (training, validation,
held-out, in this order) occurs in a later one, and examples whose answer occurs there are left out as well: copying
from memory cannot score, and what was chosen on validation was not chosen on a held-out example.
"""

import ast
import json
import random
import warnings
from collections import Counter
from dataclasses import dataclass, field
from functools import cache

from minilora.data.stdlib import SPLITS, source_files
from minilora.errors import DataError, unknown_name

ANSWER = "\n>>> "  # separates prompt and answer
_MAX_PROMPT, _MAX_TOTAL = 200, 320  # characters


@dataclass(frozen=True)
class Example:
    prompt: str
    response: str
    file: str


@dataclass
class Task:
    """Examples by split, shuffled once; excluded: how many were left out as their answer occurs in an earlier split."""

    name: str
    train: list[Example]
    validation: list[Example]
    held_out: list[Example]
    excluded: dict[str, int] = field(default_factory=dict)

    def trivial_rules(self) -> dict[str, float]:
        """Exact match on the held-out examples of rules that learn nothing: any task they solve shows nothing."""
        common = Counter(e.response for e in self.train).most_common(1)[0][0]
        rules = {
            "copy the prompt": lambda e: e.prompt.removesuffix(ANSWER),
            "the most common answer": lambda e: common,
            "name only": lambda e: json.dumps({"name": _name(e.prompt), "params": [], "defaults": {}}),
        }
        return {
            name: sum(rule(e) == e.response for e in self.held_out) / len(self.held_out) for name, rule in rules.items()
        }


def _name(prompt: str) -> str:
    return prompt.removeprefix("def ").partition("(")[0]


def _functions(split: str):
    for file in source_files(split):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # invalid escapes in old sources
                tree = ast.parse(file.text)
        except SyntaxError:
            continue  # lib2to3's and idlelib's deliberate ones
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef):
                yield file.name, node


def _signature(node: ast.FunctionDef) -> tuple[str, dict] | None:
    """The header without annotations, and {name, params, defaults}; None for *args, **kwargs or no parameter."""
    a = node.args
    positional = a.posonlyargs + a.args
    defaults = [None] * (len(positional) - len(a.defaults)) + a.defaults + a.kw_defaults
    params = list(zip(positional + a.kwonlyargs, defaults, strict=True))
    if params and params[0][0].arg in ("self", "cls"):
        params = params[1:]
    if not params or a.vararg or a.kwarg:
        return None
    for arg in positional + a.kwonlyargs:
        arg.annotation = None
    answer = {
        "name": node.name,
        "params": [p.arg for p, _ in params],
        "defaults": {p.arg: ast.unparse(d) for p, d in params if d is not None},
    }
    return f"def {node.name}({ast.unparse(a)}):", answer


def _header_json(node: ast.FunctionDef) -> tuple[str, str] | None:
    signature = _signature(node)
    return signature and (signature[0], json.dumps(signature[1]))


def _docstring_json(node: ast.FunctionDef) -> tuple[str, str] | None:
    doc, signature = ast.get_docstring(node), _signature(node)
    if not doc or not signature:
        return None
    doc = doc.strip().split("\n")[0].strip()
    return f'{signature[0]}\n    """{doc}"""', json.dumps(signature[1] | {"doc": doc})


TASKS = {"header_json": _header_json, "docstring_json": _docstring_json}


@cache
def load_task(name: str) -> Task:
    """Build a task from the running interpreter's library. Raises UnknownNameError, DataError."""
    if name not in TASKS:
        raise unknown_name("task", name, TASKS)
    splits = {}
    for split in SPLITS:
        unique = {}
        for file, node in _functions(split):
            pair = TASKS[name](node)
            if pair and len(pair[0]) <= _MAX_PROMPT and len("".join(pair)) <= _MAX_TOTAL and "".join(pair).isascii():
                unique[pair[0]] = Example(pair[0] + ANSWER, pair[1], file)
        splits[split] = list(unique.values())
        random.Random(split).shuffle(splits[split])
    excluded = {}
    for i, split in enumerate(SPLITS[1:], 1):  # validation against training, held-out against both
        earlier = [e for s in SPLITS[:i] for e in splits[s]]
        prompts, answers = {e.prompt for e in earlier}, {e.response for e in earlier}
        fresh = [e for e in splits[split] if e.prompt not in prompts]
        kept = [e for e in fresh if e.response not in answers]
        excluded[split], splits[split] = len(fresh) - len(kept), kept
        if not kept:
            raise DataError(f"task {name!r} has no {split} example in this Python's library")
    return Task(name, splits["train"], splits["validation"], splits["held-out"], excluded)


def encode(tokenizer, examples: list[Example], max_length: int) -> list[dict[str, list[int]]]:
    """Token numbers, begun and ended as the tokenizer does; only the response and that end are targets.

    Raises DataError for an example of more than max_length tokens, naming it.
    """
    rows = []
    for i, example in enumerate(examples):
        prompt = [*tokenizer.begin(), *tokenizer.encode(example.prompt)]
        response = [*tokenizer.encode(example.response), tokenizer.eos_token_id]
        if len(prompt) + len(response) > max_length:
            raise DataError(
                f"example {i} ({example.file}) has {len(prompt) + len(response)} tokens, more than sequence_len "
                f"{max_length}; raise it, or drop the example"
            )
        rows.append({"input_ids": prompt + response, "labels": [-100] * len(prompt) + response})
    return rows
