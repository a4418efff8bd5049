"""A homework's one source, a script in percent format, and the notebooks that are made of it.

    source_notebook(path)        # with solutions and hidden seeds, as nbgrader's source/ wants it
    problems(notebook)           # name -> points and expected minutes
    skeleton(release)            # of a released notebook, its answers' part as a Python file, for plain pytest

In a cell's marker stand the nbgrader fields that matter, what is left out is filled in here:

    # %% [markdown] nbgrader={"grade_id": "intro", "locked": true}            what is only read
    # %% nbgrader={"grade_id": "divide", "solution": true}                    an answer
    # %% nbgrader={"grade_id": "divide-check", "grade": true, "points": 3}    its check

The first cell has a table of the problems, a row each: | name | points | minutes min |

The answer stands between ### BEGIN SOLUTION and ### END SOLUTION, which the student's version lacks.

A check's cell gets a hidden part that is there only when it is graded: it takes the checks from their file again, in
case the student's program has changed them, and a seed that depends on the student.
"""

import re
from pathlib import Path

from minilora.errors import FileFormatError

DEFAULTS = {"grade": False, "locked": False, "solution": False, "task": False, "schema_version": 3}
HIDDEN = """### BEGIN HIDDEN TESTS
import sys
for name in [name for name in sys.modules if name.startswith("minilora.course")]:
    del sys.modules[name]
from minilora.course.checks import {name} as checks
from minilora.course.grade import student_seed
seed = student_seed()
### END HIDDEN TESTS
"""


def source_notebook(path: Path):
    """The nbformat notebook of a source. Raises FileFormatError for cells that nbgrader would not grade as meant."""
    import jupytext

    notebook = jupytext.read(path, fmt="py:percent")
    seen = set()
    for number, cell in enumerate(notebook.cells):
        fields = cell.metadata.get("nbgrader")
        if fields is None or "grade_id" not in fields:
            raise FileFormatError(f"{path}: cell {number} has no nbgrader grade_id: {cell.source[:40]!r}")
        if fields["grade_id"] in seen:
            raise FileFormatError(f"{path}: two cells have the grade_id {fields['grade_id']!r}")
        if fields.get("solution") and ("BEGIN SOLUTION" not in cell.source or "END SOLUTION" not in cell.source):
            raise FileFormatError(f"{path}: {fields['grade_id']!r} needs ### BEGIN SOLUTION and ### END SOLUTION")
        seen.add(fields["grade_id"])
        cell.id = fields["grade_id"]
        cell.metadata = {"nbgrader": DEFAULTS | fields}
        if fields.get("grade") and not fields.get("solution"):
            cell.metadata["nbgrader"]["locked"] = True
            cell.source = HIDDEN.format(name=path.stem) + cell.source
    notebook.metadata.pop("jupytext", None)
    return notebook


def problems(notebook) -> dict[str, tuple[float, int]]:
    """name -> points and expected minutes, as students read it in the first cell's table. Raises FileFormatError where
    the table is not about the problems that are checked, in their order and with their points."""
    rows = re.findall(r"^\| (\w+) \| ([\d.]+) \| (\d+) min \|$", notebook.cells[0].source, re.MULTILINE)
    table = {name: (float(points), int(minutes)) for name, points, minutes in rows}
    checked = {
        name: float(cell.metadata["nbgrader"]["points"])
        for cell in notebook.cells
        for name in re.findall(r"^checks\.(\w+)\.score\(", cell.source, re.MULTILINE)
    }
    listed = {name: points for name, (points, _) in table.items()}
    if not checked or list(listed.items()) != list(checked.items()):
        raise FileFormatError(f"the first cell's table has the points {listed}, the checks have {checked}")
    return table


def skeleton(notebook) -> str:
    """A released notebook's text and answer cells as a script. Checks are left out: pytest runs them."""
    import jupytext
    import nbformat

    cells = [cell for cell in notebook.cells if not cell.metadata["nbgrader"]["grade"]]
    cells = [nbformat.from_dict({**cell, "metadata": {}}) for cell in cells]
    return jupytext.writes(nbformat.v4.new_notebook(cells=cells), fmt="py:percent")
