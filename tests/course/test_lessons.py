"""Lessons: notebook and script are a pair, each runs from start to end, and its exercises can be solved."""

import importlib
import time
from pathlib import Path

import pytest

jupytext = pytest.importorskip("jupytext", reason="jupytext is missing: pip install 'minilora[notebooks]'")
import nbformat  # noqa: E402

from minilora.course.lessons import lesson, write  # noqa: E402
from minilora.errors import MiniloraError  # noqa: E402

LESSONS = sorted((Path(__file__).parents[2] / "notebooks/lessons").glob("[0-9][0-9]_*.py"))
by_name = pytest.mark.parametrize("path", LESSONS, ids=lambda path: path.stem)


@by_name
def test_the_notebook_is_the_scripts(path):
    text = path.with_suffix(".ipynb").read_text(encoding="utf-8")
    assert text == lesson(path), "run: python -m minilora.course lessons"
    notebook = nbformat.reads(text, as_version=4)
    nbformat.validate(notebook)
    assert not any(cell.get("outputs") or cell.get("execution_count") for cell in notebook.cells)
    assert len({cell.id for cell in notebook.cells}) == len(notebook.cells)


@by_name
def test_its_form(path):
    """A question first; a prediction before something is run; an exercise that checks itself; the sources."""
    text = path.read_text(encoding="utf-8")
    first = text.split("# %%")[1]
    assert first.startswith(f" [markdown]\n# # {int(path.stem[:2])}. ") and "?" in first
    assert "efore you run" in text
    assert "Exercise" in text and ".check(" in text
    words = sum(len(cell.split()) for cell in text.split("# %% [markdown]")[1:])
    assert words < 15 * 250, "more than 15 minutes to read"


@by_name
def test_its_exercises_can_be_solved(path, capsys):
    answers = importlib.import_module("course.lesson_answers").ANSWERS[path.stem]
    checks = importlib.import_module(f"minilora.course.checks.lesson{path.stem[:2]}")
    problems = {name: p for name, p in vars(checks).items() if hasattr(p, "laws")}
    text = path.read_text(encoding="utf-8")
    assert problems and answers.keys() == problems.keys()
    for name, problem in problems.items():
        assert f"checks.{name}.check({name})" in text
        assert problem.score(answers[name]) == problem.points
        assert problem.score(lambda *args: None) < problem.points


@pytest.mark.slow
@by_name
def test_it_runs_in_a_kernel(path, tmp_path):
    from nbclient import NotebookClient

    notebook = nbformat.read(path.with_suffix(".ipynb"), as_version=4)
    began = time.perf_counter()
    NotebookClient(notebook, timeout=180, kernel_name="python3", resources={"metadata": {"path": tmp_path}}).execute()
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    said = [o for o in outputs if o.get("name") == "stderr" and "zmq" not in o.text]  # the kernel's own sockets aside
    assert not said and not [o for o in outputs if o.output_type == "error"]
    assert sum("text/html" in o.get("data", {}) for o in outputs) >= 1, "no picture"
    assert time.perf_counter() - began < 180  # 60 s on an idle machine


def test_a_folder_without_lessons(tmp_path):
    with pytest.raises(MiniloraError, match="no lesson"):
        write(tmp_path)
