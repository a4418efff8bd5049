"""Student versions of the homework: nbgrader's notebooks, a zip for a learning platform, and files for plain pytest.

    build(Path("notebooks/homework"), Path("."))          # ./release/hw1_autograd/hw1_autograd.ipynb, .zip, .py ..

A course folder has nbgrader's layout (source, release, submitted, autograded, gradebook.db, nbgrader_config.py). What
is there already is replaced only if it is as build left it: a file that someone worked in is never written over.
"""

import hashlib
import importlib
import json
import os
import re
import secrets
import subprocess
import sys
import zipfile
from pathlib import Path

from minilora.course.source import problems, skeleton, source_notebook
from minilora.errors import FileFormatError, MiniloraError
from minilora.files import atomic_write

CONFIG = r'''"""nbgrader's settings for this course; yours to change (build does not write over it)."""

c = get_config()  # noqa: F821
c.CourseDirectory.course_id = "minilora"
c.ClearSolutions.code_stub = {"python": "raise NotImplementedError  # your answer"}
c.Execute.timeout = 60  # seconds a cell; a loop without end is interrupted then, and the next cell goes on
c.Execute.extra_arguments = [
    "--HistoryManager.hist_file=:memory:",
    "--IPKernelApp.exec_lines=import sys; exit = quit = sys.exit",  # exit() ends a cell, not the kernel
]
# For zip_collect: what the learning platform put before the notebook's name, or its folder's name, is the student.
c.FileNameCollectorPlugin.named_regexp = (
    r".*[/\\](?P<student_id>[^/\\]+?)[_/\\]+(?P<file_id>hw\d+_\w+?)(?:-\d+| ?\(\d+\))?\.ipynb$"
)
'''
PYTEST = '''"""Run as: pytest {name}_test.py  (the laws of the homework, on the answers in {name}.py)

Where a course's secret is set, the cases are those of the student in whose folder this runs. The points of each problem
are properties in the report of --junitxml.
"""

import os

import {name} as answers
import pytest

from minilora.course.checks import {name} as checks
from minilora.course.grade import student_seed

SEED = student_seed() if "MINILORA_COURSE_SECRET" in os.environ else 0


@pytest.mark.parametrize("name", {problems!r})
def test_{name}(name, record_property):
    problem = getattr(checks, name)
    points = problem.score(getattr(answers, name), SEED)
    record_property("points", points)
    assert points == problem.points
'''
README = """Homework {name}: {points:g} points, about {hours}

1. pip install {package}
2. Write your answers in {name}.ipynb, in Jupyter (pip install notebook). Each problem ends in a cell that checks yours.
   Or, without notebooks, write them in {name}.py, and run: pytest {name}_test.py (pip install pytest)
3. Hand in {name}.ipynb, or {name}.py where your course asks for it, under this name.
"""
MANIFEST, SECRET = ".written.json", ".course-secret"


def build(sources: Path, course: Path, names: list[str] | None = None) -> list[Path]:
    """Make the release of each homework in `sources` (or of those named); the folders made.

    Raises FileFormatError for a source that is not as it should be, MiniloraError for a name that is not there, for a
    file that someone has changed, and for what nbgrader refuses.
    """
    found = {path.stem: path for path in sorted(sources.glob("hw*.py"))}
    if not found:
        raise MiniloraError(
            f"{sources} has no homework (hw*.py); run this where notebooks/homework is, or pass --source"
        )
    for name in names or ():
        if name not in found:
            raise MiniloraError(f"no homework {name!r} in {sources}; there are: {', '.join(found)}")
    course.mkdir(parents=True, exist_ok=True)
    for file, text in (("nbgrader_config.py", CONFIG), (SECRET, secrets.token_hex() + "\n")):
        if not (course / file).exists():
            atomic_write(course / file, text)
    return [_release(path, course) for name, path in found.items() if name in (names or found)]


def _release(path: Path, course: Path) -> Path:
    import nbformat

    name, folder = path.stem, course / "release" / path.stem
    files = [folder / file for file in (f"{name}.ipynb", f"{name}.py", f"{name}_test.py", "README.txt", f"{name}.zip")]
    source = course / "source" / name / f"{name}.ipynb"
    written = json.loads((course / MANIFEST).read_text()) if (course / MANIFEST).exists() else {}
    for file in [source, *files]:
        if file.exists() and written.get(str(file.relative_to(course))) != _digest(file):
            raise MiniloraError(f"{file} was changed since it was built; move it away, nothing is written over it")
    notebook = source_notebook(path)
    table = problems(notebook)
    _hold_points_equal(name, table)
    text = nbformat.writes(notebook)
    source.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(source, text + "\n")
    written[str(source.relative_to(course))] = _digest(source)
    atomic_write(course / MANIFEST, json.dumps(written, indent=1) + "\n")  # also where nbgrader refuses it
    nbgrader(course, "generate_assignment", name, "--create", "--force")
    released = nbformat.read(files[0], as_version=4)
    if leaked := [line for line in _solution_lines(text) if line in "\n".join(c.source for c in released.cells)]:
        raise FileFormatError(f"{name}: the student's notebook still has a line of the solution: {leaked[0]!r}")
    atomic_write(files[1], skeleton(released))
    atomic_write(files[2], PYTEST.format(name=name, problems=list(table)))
    points, minutes = (sum(column) for column in zip(*table.values(), strict=True))
    hours = f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min"
    package = "'minilora[simt]'" if "minilora[simt]" in notebook.cells[0].source else "minilora"
    atomic_write(files[3], README.format(name=name, points=points, hours=hours, package=package))
    with zipfile.ZipFile(files[4], "w") as archive:  # the same bytes each time: without the files' dates
        for file in files[:4]:
            entry = zipfile.ZipInfo(f"{name}/{file.name}")
            archive.writestr(entry, file.read_bytes(), zipfile.ZIP_DEFLATED)
    written |= {str(file.relative_to(course)): _digest(file) for file in files}
    atomic_write(course / MANIFEST, json.dumps(written, indent=1) + "\n")
    return folder


def _hold_points_equal(name: str, table: dict[str, tuple[float, int]]):
    """Raise FileFormatError where the laws' file gives a problem other points than its table says."""
    laws = f"minilora/course/checks/{name}.py"
    try:
        checks = importlib.import_module(f"minilora.course.checks.{name}")
    except ModuleNotFoundError as error:
        raise FileFormatError(f"{name}: {laws} cannot be imported: {error}") from None
    for problem, (points, _) in table.items():
        gives = getattr(getattr(checks, problem, None), "points", None)
        if gives != points:
            raise FileFormatError(f"{name}: {problem} has {points:g} points in the table, {gives} in {laws}")


def nbgrader(course: Path, *arguments: str, **environment: str):
    """Run nbgrader's own command in the course's folder. environment: variables for it. Raises MiniloraError with the
    first error that it prints."""
    tools = Path(sys.executable).parent  # nbgrader calls alembic by name, which needs no activated environment then
    done = subprocess.run(
        [sys.executable, "-m", "nbgrader", *arguments], cwd=course, capture_output=True, text=True,
        env=os.environ | environment | {"PATH": f"{tools}{os.pathsep}{os.environ.get('PATH', '')}"},
    )  # fmt: skip
    if done.returncode:
        said = re.findall(r"^ *(\w*(?:Error|Exception): .*)|ERROR\] (.*)", done.stdout + done.stderr, re.MULTILINE)
        first = next((a or b for a, b in [*[pair for pair in said if pair[0]], *said]), "no word")
        raise MiniloraError(f"nbgrader {' '.join(arguments)} failed: {first}")
    return done


def _solution_lines(text: str) -> list[str]:
    """Lines between the solution marks that say something: no braces, no single word."""
    lines, inside = [], False
    for cell in json.loads(text)["cells"]:
        for line in "".join(cell["source"]).splitlines():
            if "BEGIN SOLUTION" in line or "END SOLUTION" in line:
                inside = "BEGIN" in line
            elif inside and len(line.split()) > 2:
                lines.append(line)
    return lines


def _digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()
