"""python -m minilora.course build | check | grade | lessons"""

import argparse
import sys
from pathlib import Path

from minilora.errors import MiniloraError


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m minilora.course", description="homework, by jupytext and nbgrader")
    commands = parser.add_subparsers(dest="command", required=True)
    build = commands.add_parser("build", help="make the students' versions: ./release")
    build.add_argument("homework", nargs="*", help="names, such as hw1_autograd (default: all)")
    build.add_argument("--source", type=Path, default=Path("notebooks/homework"), help="where the sources are")
    check = commands.add_parser("check", help="run a notebook from the start and say which checks do not hold")
    check.add_argument("notebook", type=Path)
    grade = commands.add_parser("grade", help="grade what lies in ./submitted, write grades.csv and feedback")
    grade.add_argument("homework")
    lessons = commands.add_parser("lessons", help="make the lessons' notebooks from their scripts")
    lessons.add_argument("--source", type=Path, default=Path("notebooks/lessons"), help="where the scripts are")
    for command in (build, grade):
        command.add_argument("--course", type=Path, default=Path(), help="the course's folder (default: this one)")
    args = parser.parse_args(arguments)
    try:
        import jupytext  # noqa: F401

        if args.command != "lessons":
            import nbgrader  # noqa: F401
    except ImportError as error:
        print(f"{error.name} is missing: pip install 'minilora[course]'", file=sys.stderr)
        return 1
    try:
        return {"build": _build, "check": _check, "grade": _grade, "lessons": _lessons}[args.command](args)
    except MiniloraError as error:
        print(f"course {args.command}: {error}", file=sys.stderr)
        return 1


def _build(args) -> int:
    from minilora.course.build import build

    for folder in build(args.source, args.course, args.homework):
        print(f"wrote {folder}/")
    return 0


def _check(args) -> int:
    from minilora.course.grade import check

    said = check(args.notebook).stdout
    print(said)
    return 1 if "VALIDATION FAILED" in said else 0


def _grade(args) -> int:
    from minilora.course.grade import grade
    from minilora.tables import format_table

    results = grade(args.course, args.homework, print)
    checks = next((list(marks) for marks in results.values() if marks), [])
    rows = [("student", *checks, "sum")]
    for student, marks in results.items():
        if marks is None:
            rows.append((student, *("" for _ in checks), "could not be run"))
        else:
            rows.append((student, *(f"{marks[c]:g}" for c in checks), f"{sum(marks.values()):g}"))
    print(format_table(rows))
    print(f"\nwrote {args.course / 'grades.csv'} and feedback/")
    return 1 if None in results.values() else 0


def _lessons(args) -> int:
    from minilora.course.lessons import write

    for path in write(args.source):
        print(f"wrote {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
