"""Grading: nbgrader runs what students handed in; here its marks are read from its gradebook and put in a table.

results = grade(Path("."), "hw1_autograd")           # submitted/<student>/hw1_autograd/hw1_autograd.ipynb
results["ada"]["unbroadcast-check"]                  # 3.0
"""

import hashlib
import os
import subprocess
from pathlib import Path

from minilora.course.build import SECRET, nbgrader
from minilora.errors import MiniloraError


def student_seed() -> int:
    """The seed of the hidden part of a check: of the course's secret, and of the student in whose folder nbgrader runs
    the notebook (autograded/<student>/<homework>), or you run pytest (submitted/<student>/<homework>)."""
    secret, student = os.environ.get("MINILORA_COURSE_SECRET", ""), Path.cwd().parent.name
    return int.from_bytes(hashlib.sha256(f"{secret}/{student}".encode()).digest()[:4], "big")


def grade(course: Path, name: str, say=lambda line: None) -> dict[str, dict[str, float] | None]:
    """student -> check -> points, for all who handed in homework `name`; None for one whose notebook could not be run
    (its kernel died, or it is no notebook any more). Writes grades.csv, and feedback as HTML.

    say(line) is called for each notebook that is missing or has another name, and with nbgrader's first error.
    Raises MiniloraError where nothing was handed in, and where the homework was not built here.
    """
    if not (course / "gradebook.db").exists():
        raise MiniloraError(f"{course} has no gradebook.db: pass --course with the folder that `build` made")
    built = sorted(path.name for path in (course / "release").glob("*") if path.is_dir())
    if name not in built:
        raise MiniloraError(f"{name!r} was not built in {course}; there are: {', '.join(built) or 'none'}")
    students = sorted(path.parent.name for path in (course / "submitted").glob(f"*/{name}") if path.is_dir())
    if not students:
        raise MiniloraError(
            f"nothing is handed in: {course}/submitted/<student>/{name}/{name}.ipynb is where it belongs"
        )
    without = [s for s in students if not (course / "submitted" / s / name / f"{name}.ipynb").is_file()]
    for student in without:
        folder = course / "submitted" / student / name
        found = ", ".join(sorted(path.name for path in folder.iterdir())) or "nothing"
        say(f"{folder} has no {name}.ipynb, it has: {found}")
    secret = (course / SECRET).read_text().strip() if (course / SECRET).exists() else ""
    try:
        nbgrader(course, "autograde", name, "--create", MINILORA_COURSE_SECRET=secret)
    except MiniloraError as error:  # some could not be run, which the gradebook tells; the others were graded
        if "No notebooks found" not in str(error):
            say(str(error))
    nbgrader(course, "generate_feedback", name)
    nbgrader(course, "export", "--to", "grades.csv")
    return {student: _marks(course, name, student) for student in students}


def _marks(course: Path, name: str, student: str) -> dict[str, float] | None:
    from nbgrader.api import Gradebook, MissingEntry

    if not (course / "autograded" / student / name / f"{name}.ipynb").exists():
        return None
    with Gradebook(f"sqlite:///{(course / 'gradebook.db').resolve()}") as gradebook:
        try:
            notebook = gradebook.find_submission_notebook(name, name, student)
        except MissingEntry:
            return None
        return {grade.name: float(grade.score) for grade in notebook.grades}


def check(notebook: Path) -> subprocess.CompletedProcess:
    """A student's own check before handing in: nbgrader's validate. Raises MiniloraError for what is no file."""
    if not notebook.is_file():
        raise MiniloraError(f"{notebook} is no file; name the notebook to check")
    return nbgrader(notebook.parent, "validate", notebook.name)
