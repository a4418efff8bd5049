"""Student versions of the homework: nbgrader's notebooks, a zip for a learning platform, and files for plain pytest.

    build(Path("notebooks/homework"), Path("."))          # ./release/hw1_autograd/hw1_autograd.ipynb, .zip, .py ..

A course folder has nbgrader's layout (source, release, submitted, autograded, gradebook.db, nbgrader_config.py). What
is there already is replaced only if it is as build left it: a file that someone worked in is never written over.
"""

import hashlib
import json
import os
import re
import secrets
import subprocess
import sys
import zipfile
from pathlib import Path

from minilora.course.source import skeleton, source_notebook
from minilora.errors import FileFormatError, MiniloraError
from minilora.files import atomic_write

CONFIG = '''"""nbgrader's settings for this course; yours to change (build does not write over it)."""

c = get_config()  # noqa: F821
c.CourseDirectory.course_id = "minilora"
c.ClearSolutions.code_stub = {"python": "raise NotImplementedError  # your answer"}
c.Execute.timeout = 60  # seconds a cell; a loop without end is interrupted then, and the next cell goes on
c.Execute.extra_arguments = [
    "--HistoryManager.hist_file=:memory:",
    "--IPKernelApp.exec_lines=import sys; exit = quit = sys.exit",  # exit() ends a cell, not the kernel
]
'''
PYTEST = '''"""Run as: pytest {name}_test.py  (the laws of the homework, on the answers in {name}.py)"""

import {name} as answers
import pytest

from minilora.course.checks import {name} as checks


@pytest.mark.parametrize("problem", {problems!r})
def test_{name}(problem):
    points = getattr(checks, problem).score(getattr(answers, problem))
    assert points == getattr(checks, problem).points
'''
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
    files = [folder / f"{name}.ipynb", folder / f"{name}.py", folder / f"{name}_test.py", folder / f"{name}.zip"]
    written = json.loads((course / MANIFEST).read_text()) if (course / MANIFEST).exists() else {}
    for file in files:
        if file.exists() and written.get(str(file.relative_to(course))) != _digest(file):
            raise MiniloraError(f"{file} was changed since it was built; move it away, nothing is written over it")
    notebook = source_notebook(path)
    text = nbformat.writes(notebook)
    (course / "source" / name).mkdir(parents=True, exist_ok=True)
    atomic_write(course / "source" / name / f"{name}.ipynb", text + "\n")
    nbgrader(course, "generate_assignment", name, "--create", "--force")
    released = nbformat.read(files[0], as_version=4)
    if leaked := [line for line in _solution_lines(text) if line in "\n".join(c.source for c in released.cells)]:
        raise FileFormatError(f"{name}: the student's notebook still has a line of the solution: {leaked[0]!r}")
    problems = [c.source.split(".")[1] for c in released.cells if c.metadata["nbgrader"]["grade"]]
    atomic_write(files[1], skeleton(released))
    atomic_write(files[2], PYTEST.format(name=name, problems=problems))
    with zipfile.ZipFile(files[3], "w", zipfile.ZIP_DEFLATED) as archive:
        for file in files[:3]:
            archive.write(file, f"{name}/{file.name}")
    written |= {str(file.relative_to(course)): _digest(file) for file in files}
    atomic_write(course / MANIFEST, json.dumps(written, indent=1) + "\n")
    return folder


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
