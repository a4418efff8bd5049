"""What is released beside nbgrader's notebook: files for plain pytest, the zip, and the way back from a platform."""

import os
import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
import zipfile
from pathlib import Path

import pytest

nbgrader = pytest.importorskip("nbgrader", reason="nbgrader is missing: pip install 'minilora[course]'")
import nbformat  # noqa: E402
from course.test_answers import ANSWERS, CHECKS, HOMEWORK  # noqa: E402

from minilora.course.build import build  # noqa: E402
from minilora.course.build import nbgrader as run_nbgrader  # noqa: E402
from minilora.course.source import problems, source_notebook  # noqa: E402
from minilora.errors import FileFormatError  # noqa: E402

SOURCES = Path(__file__).parents[2] / "notebooks/homework"


def expected_points(name) -> dict[str, float]:
    return {p.name: p.points for p in vars(CHECKS[name]).values() if hasattr(p, "laws")}


def marks(folder: Path, name: str, **environment) -> dict[str, float]:
    """Problem -> points, of a run of plain pytest in a student's folder, without notebooks: what a student has."""
    subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--junitxml=points.xml", f"{name}_test.py"],
        cwd=folder, env={**os.environ, **environment}, capture_output=True, check=False,
    )  # fmt: skip
    cases = ElementTree.parse(folder / "points.xml").iter("testcase")
    found = {re.search(r"\[(\w+)\]", case.get("name")).group(1): case for case in cases}
    return {
        problem: float(next((p.get("value") for p in case.iter("property") if p.get("name") == "points"), 0))
        for problem, case in found.items()
    }


def test_the_guide_for_instructors_lists_every_homework_with_its_points_and_time():
    guide = (SOURCES.parents[1] / "docs/instructors.md").read_text("utf-8")
    for name in HOMEWORK:
        points, minutes = (
            sum(c) for c in zip(*problems(source_notebook(SOURCES / f"{name}.py")).values(), strict=True)
        )
        assert f"| `{name}` | {points:g} | {minutes // 60} h {minutes % 60} min |" in guide


@pytest.mark.parametrize("name", HOMEWORK)
def test_the_table_says_points_and_minutes_of_every_problem(name):
    table = problems(source_notebook(SOURCES / f"{name}.py"))
    assert {problem: points for problem, (points, _) in table.items()} == expected_points(name)
    assert all(5 <= minutes <= 60 for _, minutes in table.values())
    assert 60 <= sum(minutes for _, minutes in table.values()) <= 180


TABLE = '# %% [markdown] nbgrader={{"grade_id": "a", "locked": true}}\n# {0}\n\n'
CHECK = '# %% nbgrader={"grade_id": "b", "grade": true, "points": 3}\nchecks.divide.score(divide, seed)\n'


@pytest.mark.parametrize("row", ["", "| divide | 2 | 10 min |", "| divide | 3 | 10 |", "| divides | 3 | 10 min |"])
def test_a_table_that_says_otherwise_is_refused(row, tmp_path):
    (tmp_path / "hw9.py").write_text(TABLE.format(row) + CHECK)
    with pytest.raises(FileFormatError, match="table"):
        problems(source_notebook(tmp_path / "hw9.py"))
    (tmp_path / "hw9.py").write_text(TABLE.format("| divide | 3 | 10 min |") + CHECK)
    assert problems(source_notebook(tmp_path / "hw9.py")) == {"divide": (3, 10)}


@pytest.fixture(scope="module")
def course(tmp_path_factory):
    folder = tmp_path_factory.mktemp("course")
    build(SOURCES, folder)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("name", HOMEWORK)
def test_the_zip_is_all_that_a_student_needs(course, name, tmp_path):
    """Unpacked alone: nothing solved gives no points, the solution all of them, a wrong answer's problem loses some."""
    with zipfile.ZipFile(course / f"release/{name}/{name}.zip") as archive:
        archive.extractall(tmp_path / "ada")
    folder = tmp_path / "ada" / name
    files = {f"{name}.ipynb", f"{name}.py", f"{name}_test.py", "README.txt"}
    assert {path.name for path in folder.iterdir()} == files
    assert f"{sum(expected_points(name).values()):g} points" in (folder / "README.txt").read_text()
    assert marks(folder, name) == dict.fromkeys(expected_points(name), 0)
    source = (SOURCES / f"{name}.py").read_text("utf-8")
    solved = "".join(line for line in source.splitlines(True) if not line.startswith("checks."))
    (folder / f"{name}.py").write_text(solved, encoding="utf-8")
    assert marks(folder, name) == expected_points(name)
    wrong = next(a for a in ANSWERS[name].WRONG if a.cell not in ANSWERS[name].USED_BY)
    (folder / f"{name}.py").write_text(f"{solved}\n\n{wrong.source}", encoding="utf-8")
    points = marks(folder, name, MINILORA_COURSE_SECRET="s")
    assert {p for p, most in expected_points(name).items() if points[p] < most} == {wrong.problem}


NOSY = """
def matmul_vjp(a, b, g):
    with open("seen.txt", "a") as file:
        print(a.tolist(), file=file)
    return g @ b.T, a.T @ g
"""


@pytest.mark.slow
def test_each_student_has_other_cases_where_the_course_has_a_secret(course, tmp_path):
    """The same again for the same student, others for another student, and the public ones without a secret."""
    name, seen = "hw1_autograd", []
    for student, secret in (("ada", {"MINILORA_COURSE_SECRET": "s"}), ("bob", {"MINILORA_COURSE_SECRET": "s"}),
                            ("ada", {"MINILORA_COURSE_SECRET": "s"}), ("ada", {}), ("bob", {})):  # fmt: skip
        folder = tmp_path / str(len(seen)) / student / name
        with zipfile.ZipFile(course / f"release/{name}/{name}.zip") as archive:
            archive.extractall(folder.parent)
        with (folder / f"{name}.py").open("a") as file:
            file.write(NOSY)
        assert marks(folder, name, **secret)["matmul_vjp"] == 3
        seen.append((folder / "seen.txt").read_text())
    assert seen[0] == seen[2] and seen[3] == seen[4] and len(set(seen)) == 3


@pytest.mark.slow
def test_a_release_is_the_same_bytes_again(course, tmp_path):
    name = HOMEWORK[0]
    build(SOURCES, tmp_path, [name])
    for file in (course / "release" / name).iterdir():
        assert file.read_bytes() == (tmp_path / "release" / name / file.name).read_bytes(), file.name


@pytest.mark.slow
def test_what_a_platform_gives_back_is_collected(course):
    """A zip of all that was handed in, named in the ways that learning platforms name it."""
    name = HOMEWORK[0]
    text = nbformat.writes(nbformat.read(course / f"release/{name}/{name}.ipynb", as_version=4))
    archive = course / "downloaded" / name / "archive"
    archive.mkdir(parents=True)
    with zipfile.ZipFile(archive / "all.zip", "w") as zipped:
        zipped.writestr(f"ada_{name}.ipynb", text)
        zipped.writestr(f"Bob Bell_1234_file_{name}.ipynb", text)
        zipped.writestr(f"carol_12_345_{name}-2.ipynb", text)
        zipped.writestr(f"Dan Dee_77_file_/{name}.ipynb", text)
        zipped.writestr(f"eve_{name} (1).ipynb", text)  # a browser's second download
        zipped.writestr(f"ada_{name}.py", "")
    run_nbgrader(course, "zip_collect", name)
    collected = {path.parent.name for path in (course / "submitted").glob(f"*/{name}") if any(path.glob("*.ipynb"))}
    assert collected == {"ada", "Bob Bell_1234_file", "carol_12_345", "Dan Dee_77_file", "eve"}
