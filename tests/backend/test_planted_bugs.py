"""Would anything notice? Bugs planted in the kernels (planted_bugs.py), each caught for the reason that it should be.

Who caught which, as a table: pytest tests/backend/test_planted_bugs.py -rP, or python tests/backend/planted_bugs.py.
"""

import re
from dataclasses import replace

import pytest
from backend.planted_bugs import BUGS, THROUGH_SHARED, cases, name_of, table_of

from minilora import simt
from minilora.backend.cuda.launch import FOLDER, source
from minilora.backend.simt import SimulatedDevice

pytestmark = pytest.mark.skipif(not simt.available(), reason="needs NVRTC: pip install 'minilora[simt]'")

caught = {}


@pytest.mark.parametrize("case", cases(), ids=name_of)
def test_nothing_is_caught_where_nothing_is_wrong(case):
    case(SimulatedDevice())


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.what)
def test_a_bug_is_caught(bug):
    how = bug.caught()
    caught[bug.what] = how
    assert how is not None, f"{bug.source}: {bug.right!r} -> {bug.wrong!r} in {name_of(bug.case)}"
    assert re.search(bug.by, how), how


def test_shared_memory_instead_of_shuffles_is_no_bug_with_syncwarp():
    bug = next(bug for bug in BUGS if "__syncwarp" in bug.what)
    assert replace(bug, wrong=THROUGH_SHARED).caught() is None


def test_there_are_bugs_in_every_file():
    assert {bug.source for bug in BUGS} == {path.name for path in FOLDER.glob("*.cu")}
    assert len({bug.what for bug in BUGS}) == len(BUGS)
    if caught:
        print(table_of(caught))


def test_a_bug_cannot_vanish():
    """Where a kernel's text is not as a bug knows it, that is an error."""
    bug = BUGS[0]
    assert bug.edit(bug.source, source(bug.source)) != source(bug.source)
    for gone in (replace(bug, right=bug.right + "?"), replace(bug, times=2)):
        with pytest.raises(LookupError, match="times, not"):
            gone.caught()
    with pytest.raises(simt.CompileError):
        replace(bug, wrong="?").caught()
