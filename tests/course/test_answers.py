"""The homework's laws, on answers as students write them: no notebook yet (test_grading.py has those)."""

import importlib
from pathlib import Path

import pytest

from minilora import simt

HOMEWORK = sorted(p.stem for p in (Path(__file__).parents[2] / "notebooks/homework").glob("hw*.py"))
ANSWERS = {name: importlib.import_module(f"course.answers.{name}") for name in HOMEWORK}
CHECKS = {name: importlib.import_module(f"minilora.course.checks.{name}") for name in HOMEWORK}
SOLVED = {}


def solutions(name: str) -> dict:
    """What the homework's source defines when it is run as it stands."""
    if name not in SOLVED:
        path = Path(__file__).parents[2] / f"notebooks/homework/{name}.py"
        code = "".join(line for line in path.read_text("utf-8").splitlines(True) if not line.startswith("checks."))
        exec(compile(code, str(path), "exec"), SOLVED.setdefault(name, {}))
    return SOLVED[name]


def marks(name: str) -> list:
    """Kernels are compiled and simulated."""
    missing = pytest.mark.skipif(not simt.available(), reason="NVRTC is missing: pip install 'minilora[simt]'")
    return [pytest.mark.slow, missing] if name == "hw5_kernels" else []


def cases(kind: str):
    return [
        pytest.param(name, answer, id=f"{name}-{answer.cell}-{answer.words}", marks=marks(name))
        for name, module in ANSWERS.items()
        for answer in getattr(module, kind)
    ]


def score(name, answer) -> tuple[float, float]:
    problem = getattr(CHECKS[name], answer.problem)
    place = dict(solutions(name))
    exec(answer.source, place)  # beside the solutions of the other problems
    return problem.score(place[answer.problem]), problem.points


@pytest.mark.parametrize("name, answer", cases("WRONG"))
def test_a_wrong_answer_loses_points_and_is_told_why(name, answer, capsys):
    points, full = score(name, answer)
    assert points < full
    assert "Often this means" in capsys.readouterr().out


@pytest.mark.parametrize("name, answer", cases("RIGHT"))
def test_another_right_answer_has_all_points(name, answer):
    points, full = score(name, answer)
    assert points == full


@pytest.mark.parametrize("name", [pytest.param(name, marks=marks(name)) for name in HOMEWORK])
def test_there_are_enough_of_both_and_solutions_hold_for_other_seeds(name):
    assert len(ANSWERS[name].WRONG) >= 8 and len(ANSWERS[name].RIGHT) >= 4
    source = (Path(__file__).parents[2] / f"notebooks/homework/{name}.py").read_text("utf-8")
    for problem in vars(CHECKS[name]).values():
        if hasattr(problem, "laws"):
            assert f"checks.{problem.name}.score({problem.name}, seed)" in source
            assert f'"points": {problem.points}}}' in source
            for seed in (1, 2):
                assert problem.score(solutions(name)[problem.name], seed) == problem.points
