"""Real data without a download: files made from the running interpreter, to be named in a configuration's `datasets`.

    export("docstrings", "train", "docstrings.jsonl")        # then {path: docstrings.jsonl, type: completion}

docstrings      the standard library's functions: header and docstring, as text (completion)
function-json   a function's header -> its JSON description, as instruction and output (alpaca)
topics-squad    questions about Python's help pages whose answers are exact spans (squad_v2)

Splits are by source file or topic, and share no text (see stdlib.py, tasks.py, topics.py).
"""

import ast
import json
import warnings
from collections.abc import Iterator
from pathlib import Path

from minilora.data.stdlib import SPLITS, source_files
from minilora.data.tasks import ANSWER, load_task
from minilora.data.topics import write_squad
from minilora.errors import DataError, unknown_name
from minilora.files import atomic_write

KINDS = {"docstrings": "completion", "function-json": "alpaca", "topics-squad": "squad_v2"}


def export(kind: str, split: str, path) -> str:
    """Write a split to a file; returns the `type` to name in a configuration. Raises UnknownNameError, DataError."""
    if kind not in KINDS:
        raise unknown_name("dataset", kind, KINDS)
    if split not in SPLITS:
        raise unknown_name("split", split, SPLITS)
    wanted = ".json" if kind == "topics-squad" else ".jsonl"
    if Path(path).suffix != wanted:
        raise DataError(f"{kind} is written as a {wanted} file, not {Path(path).name!r}")
    if kind == "topics-squad":
        write_squad(path, split)
    else:
        rows = _docstrings(split) if kind == "docstrings" else _function_json(split)
        atomic_write(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return KINDS[kind]


def _docstrings(split: str) -> Iterator[dict]:
    for file in source_files(split):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # invalid escapes in old sources
                tree = ast.parse(file.text)
        except SyntaxError:
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef) and (doc := ast.get_docstring(node)):
                yield {"text": f'def {node.name}({ast.unparse(node.args)}):\n    """{doc}"""\n', "file": file.name}


def _function_json(split: str) -> Iterator[dict]:
    task = load_task("header_json")
    for example in {"train": task.train, "validation": task.validation, "held-out": task.held_out}[split]:
        yield {"instruction": example.prompt.removesuffix(ANSWER), "output": example.response, "file": example.file}
