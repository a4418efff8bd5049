"""nbgrader really builds and grades each homework, headless: right and wrong answers, and programs that misbehave."""

import shutil
from pathlib import Path

import pytest

nbgrader = pytest.importorskip("nbgrader", reason="nbgrader is missing: pip install 'minilora[course]'")
import nbformat  # noqa: E402
from course.test_answers import ANSWERS, HOMEWORK  # noqa: E402

from minilora.course.__main__ import main  # noqa: E402
from minilora.course.build import build  # noqa: E402
from minilora.course.grade import grade  # noqa: E402
from minilora.errors import FileFormatError, MiniloraError  # noqa: E402

SOURCES = Path(__file__).parents[2] / "notebooks/homework"
TRAPS = {  # what a student wrote in the first answer's cell -> its points, of 3; None: whatever the answer deserves
    "syntax": ("def unbroadcast(g, shape)\n    return g", 0),
    "loop": ("while True:\n    pass", 0),
    "loop-inside": ("def unbroadcast(g, shape):\n    while True:\n        pass", 0),
    "exit": ("def unbroadcast(g, shape):\n    exit()", 0),
    "exit-outside": ("exit()", 0),
    "constant": ("import numpy\ndef unbroadcast(g, shape):\n    return numpy.float64(3)", 0),
    "patched": (
        "import numpy\nfrom minilora.course import check\nfrom minilora.course.checks import hw1_autograd\n"
        "check.Problem.score = lambda *a: 3.0\nhw1_autograd.unbroadcast.score = lambda *a: 3.0\n"
        "hw1_autograd.unbroadcast.laws.clear()\ncheck.equal = hw1_autograd.equal = lambda *a: None\n"
        "numpy.allclose = lambda *a, **k: True\ndef unbroadcast(g, shape):\n    return g",
        1.5,
    ),
}
NOISE = """    import logging, sys, warnings
    print("to stderr", file=sys.stderr)
    logging.warning("a log line")
    warnings.warn("a warning")
"""


@pytest.fixture(scope="module")
def course(tmp_path_factory):
    folder = tmp_path_factory.mktemp("course")
    build(SOURCES, folder)
    return folder


def hand_in(course, name, student, answers: dict[str, str], original="release"):
    """The released notebook (or the source, with its solutions) with `answers` in its cells, by grade_id."""
    notebook = nbformat.read(course / original / name / f"{name}.ipynb", as_version=4)
    for cell in notebook.cells:
        cell.source = answers.get(cell.metadata["nbgrader"]["grade_id"], cell.source)
    folder = course / "submitted" / student / name
    folder.mkdir(parents=True)
    nbformat.write(notebook, folder / f"{name}.ipynb")


def solution(course, name) -> dict[str, str]:
    notebook = nbformat.read(course / "source" / name / f"{name}.ipynb", as_version=4)
    return {c.metadata["nbgrader"]["grade_id"]: c.source for c in notebook.cells if c.metadata["nbgrader"]["solution"]}


def together(answers: list, kind: str) -> dict[str, dict]:
    """student -> cell -> answer: the k-th to each problem in one notebook, as a kernel costs more than its checks."""
    students = {}
    for answer in answers:
        k = sum(answer.cell in cells for cells in students.values())
        students.setdefault(f"{kind}-{k}", {})[answer.cell] = answer
    return students


@pytest.mark.slow
@pytest.mark.parametrize("name", HOMEWORK)
def test_marks(course, name):
    full = solution(course, name)
    hand_in(course, name, "solution", full)
    hand_in(course, name, "skeleton", {})
    students = together(ANSWERS[name].WRONG, "wrong") | together(ANSWERS[name].RIGHT, "right")
    for student, answers in students.items():
        hand_in(course, name, student, full | {cell: answer.source for cell, answer in answers.items()})
    marks = grade(course, name)
    points = marks["solution"]
    assert sum(points.values()) == sum(
        c.metadata["nbgrader"]["points"]
        for c in nbformat.read(course / f"release/{name}/{name}.ipynb", 4).cells
        if c.metadata["nbgrader"]["grade"]
    )
    assert not any(marks["skeleton"].values())
    for student, answers in students.items():
        blamed = {check for check in points if marks[student][check] < points[check]}
        wrong = {f"{cell}-check" for cell in answers if student.startswith("wrong")}
        users = set().union(*(ANSWERS[name].USED_BY.get(cell, set()) for cell in answers if wrong))
        assert wrong <= blamed <= wrong | users, (student, [answer.words for answer in answers.values()])


@pytest.mark.slow
def test_programs_that_misbehave(course, monkeypatch):
    """Only the answer in question loses its points, whatever it does; one that kills the kernel is reported."""
    name = "hw1_autograd"
    shutil.rmtree(course / "submitted", ignore_errors=True)
    config = (course / "nbgrader_config.py").read_text()
    (course / "nbgrader_config.py").write_text(config.replace("timeout = 60", "timeout = 15"))
    full = solution(course, name)
    for student, (code, _) in TRAPS.items():
        hand_in(course, name, student, full | {"unbroadcast": code})
    head, body = full["unbroadcast"].split("\n", 1)
    hand_in(
        course,
        name,
        "noisy",
        full | {"unbroadcast": f"{head}\n{NOISE}{body}\nwith open(2, 'w', closefd=False) as err: err.write('raw')"},
    )
    hand_in(course, name, "killed", full | {"unbroadcast": "import os\nos._exit(1)"})
    hand_in(course, name, "checks-changed", {c: s for c, s in full.items() if c != "unbroadcast"}
            | {"unbroadcast-check": "3.0"})  # fmt: skip
    (course / "submitted/torn" / name).mkdir(parents=True)
    (course / f"submitted/torn/{name}/{name}.ipynb").write_text('{"cells": [')
    hand_in(course, name, "renamed", full)
    (course / f"submitted/renamed/{name}/{name}.ipynb").rename(course / f"submitted/renamed/{name}/mine.ipynb")
    said = []
    marks = grade(course, name, said.append)
    assert marks["killed"] is None and marks["torn"] is None and marks["renamed"] is None
    assert any("renamed" in line and "mine.ipynb" in line for line in said)
    assert marks["noisy"]["unbroadcast-check"] == 3
    assert marks["checks-changed"]["unbroadcast-check"] == 0
    for student, (_, points) in TRAPS.items():
        assert marks[student]["unbroadcast-check"] == points, student
        if student not in ("loop", "exit-outside", "syntax"):
            assert marks[student]["matmul-check"] == 3, student
    assert "noisy" in (course / "grades.csv").read_text()


@pytest.mark.slow
def test_check_says_by_its_exit_code_whether_all_points_are_reached(course):
    for folder, code in (("source", 0), ("release", 1)):
        assert main(["check", str(course / folder / "hw1_autograd/hw1_autograd.ipynb")]) == code


def test_no_word_of_a_solution_reaches_a_student(course):
    for name in HOMEWORK:
        lines = {line.strip() for source in solution(course, name).values() for line in source.splitlines()}
        answers = {line for line in lines if len(line.split()) > 2 and not line.startswith(("def ", "class ", "###"))}
        assert answers
        for file in (course / "release" / name).iterdir():
            if file.suffix != ".zip":
                text = file.read_text("utf-8")
                assert "SOLUTION" not in text and "HIDDEN" not in text
                assert not [line for line in answers if line in text], file


@pytest.mark.parametrize("folder", ["release", "source"])
def test_what_was_changed_is_not_written_over(course, folder):
    file = course / folder / "hw1_autograd/hw1_autograd.ipynb"
    released = file.read_text()
    file.write_text(released + " ")
    with pytest.raises(MiniloraError, match="was changed since it was built"):
        build(SOURCES, course)
    assert file.read_text() == released + " "
    file.write_text(released)
    build(SOURCES, course, ["hw1_autograd"])


def test_seeds_differ_by_student_and_course(tmp_path, monkeypatch):
    from minilora.course.grade import student_seed

    seeds = set()
    for secret in ("a", "b"):
        for student in ("ada", "bob"):
            (tmp_path / student / "hw").mkdir(parents=True, exist_ok=True)
            monkeypatch.chdir(tmp_path / student / "hw")
            monkeypatch.setenv("MINILORA_COURSE_SECRET", secret)
            seeds |= {student_seed()}
            assert student_seed() in seeds
    assert len(seeds) == 4


CELL = '# %% nbgrader={{"grade_id": "a"{0}}}\n{1}\n'


@pytest.mark.parametrize(
    "text, words",
    [
        ("# %%\nx = 1\n", "no nbgrader grade_id"),
        (CELL.format("", "x = 1") * 2, "two cells"),
        (CELL.format(', "solution": true', "x = 1"), "BEGIN SOLUTION"),
    ],
)
def test_sources_that_do_not_fit(text, words, tmp_path):
    (tmp_path / "hw9.py").write_text(text)
    with pytest.raises(FileFormatError, match=words):
        build(tmp_path, tmp_path / "course")


POINTS = """# %% [markdown] nbgrader={{"grade_id": "a", "locked": true}}
# | unbroadcast | {0} | 10 min |

# %% nbgrader={{"grade_id": "b", "grade": true, "points": {0}}}
checks.unbroadcast.score(unbroadcast, seed)
"""


@pytest.mark.parametrize("name, words", [("hw1_autograd", "has 4 points in the table, 3 in"), ("hw9", "cannot be")])
def test_points_that_the_laws_do_not_give_are_refused(name, words, tmp_path):
    (tmp_path / f"{name}.py").write_text(POINTS.format(4))
    with pytest.raises(FileFormatError, match=words):
        build(tmp_path, tmp_path / "course")


def test_commands_say_what_is_wrong(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["build"]) == 1 and "no homework" in capsys.readouterr().err
    assert main(["build", "hw99", "--source", str(SOURCES)]) == 1 and "hw1_autograd" in capsys.readouterr().err
    assert main(["grade", "hw1_autograd"]) == 1 and "gradebook" in capsys.readouterr().err
    (tmp_path / "release/hw1_autograd").mkdir(parents=True)
    (tmp_path / "gradebook.db").touch()
    assert main(["grade", "hw99"]) == 1 and "there are: hw1_autograd" in capsys.readouterr().err
    assert main(["grade", "hw1_autograd"]) == 1 and "nothing is handed in" in capsys.readouterr().err
    assert main(["check", "nothing.ipynb"]) == 1 and "is no file" in capsys.readouterr().err
