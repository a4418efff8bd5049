"""The pages' code runs as it stands: a page's blocks in order, in one namespace and one empty folder.

Python of every page; of the tutorial and the how-to pages shell commands too (```sh). There a ```text block right after
code is what it prints: each of its lines must come. What is not to be run, or prints something else each time, stands
in another fence or away from code.
"""

import contextlib
import io
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from threadpoolctl import threadpool_limits

from minilora import simt
from minilora.quant import CODES

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
GUIDES = [DOCS / "tutorial.md", *sorted((DOCS / "howto").glob("*.md"))]
OTHERS = [page for page in sorted(DOCS.rglob("*.md")) if page not in GUIDES and "_build" not in page.parts]
SLOW = {"tutorial", "own-data", "experiment"}  # over five seconds
ELSEWHERE = {"errata"}  # tests/test_errata.py runs it: two of its blocks need other libraries
COMPILES = {"kernel"}
BLOCK = re.compile(r"^```(python|sh)\n(.*?)^```$(?:\n\n^```text\n(.*?)^```$)?", re.M | re.S)


def blocks(page: Path) -> list[tuple[str, str, str]]:
    """(language, code, what it prints): Python behind as many empty lines as it has before it on its page."""
    text = page.read_text(encoding="utf-8")
    found = [(m[1], "\n" * text.count("\n", 0, m.start(2)) * (m[1] == "python") + m[2], m[3] or "")
             for m in BLOCK.finditer(text)]  # fmt: skip
    if page in GUIDES:
        return found
    return [(language, code, "") for language, code, _ in found if language == "python"]


def cases():
    for page in [*GUIDES, *OTHERS]:
        if blocks(page) and page.stem not in ELSEWHERE:
            yield pytest.param(page, id=page.stem, marks=[pytest.mark.slow] * (page.stem in SLOW))


@pytest.fixture
def place(tmp_path, monkeypatch):
    """An empty folder; `minilora` and `python` in its shell are those of this Python."""
    shims = tmp_path / "bin"
    shims.mkdir()
    for name, arguments in (("python", ""), ("minilora", "-m minilora")):
        (shims / name).write_text(f'#!/bin/sh\nexec "{sys.executable}" {arguments} "$@"\n')
        (shims / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(shims), prepend=os.pathsep)
    monkeypatch.setenv("OPENBLAS_NUM_THREADS", "1")
    folder = tmp_path / "page"
    folder.mkdir()
    monkeypatch.chdir(folder)
    codes = dict(CODES)
    yield folder
    CODES.clear()
    CODES.update(codes)  # without what a page has registered


def run(page: Path, parts):
    namespace = {"__name__": "page"}
    for language, code, expected in parts:
        if language == "sh":
            done = subprocess.run(["sh", "-ec", code], capture_output=True, text=True, timeout=300)
            assert done.returncode == 0, f"{page.name}: {code}{done.stdout}{done.stderr}"
            printed = done.stdout
        else:
            with contextlib.redirect_stdout(io.StringIO()) as out, threadpool_limits(1, user_api="blas"):
                exec(compile(code, str(page), "exec"), namespace)
            printed = out.getvalue()
        lines = [line.strip() for line in printed.splitlines()]
        assert [line for line in expected.splitlines() if line.strip() not in lines] == [], f"{page.name}:\n{printed}"


@pytest.mark.parametrize("page", list(cases()))
def test_a_page_runs(page, place):
    if page.stem in COMPILES and not simt.available():
        pytest.skip("needs NVRTC: pip install 'minilora[simt]'")
    run(page, blocks(page))


def test_the_readme_s_programs_run(place):
    programs = [b for b in blocks(ROOT / "README.md") if b[1].strip().startswith(("import ", "from "))]
    assert programs
    run(ROOT / "README.md", programs)


@pytest.mark.parametrize("page", [*GUIDES, DOCS / "glossary.md"], ids=lambda page: page.stem)
def test_what_a_page_points_to_exists(page):
    text = page.read_text(encoding="utf-8")
    places = {ROOT / place.partition("*")[0] for place in re.findall(r"`((?:minilora|tests|docs)/[^`\s<]*)`", text)}
    places |= {page.parent / place for place in re.findall(r"\]\(([^)#:]+)\)", text)}
    assert [str(place) for place in places if not place.exists()] == []


def test_the_glossary_is_in_order_and_each_term_has_its_file():
    text = (DOCS / "glossary.md").read_text(encoding="utf-8")
    entries = re.findall(r"^(\w[^\n]*)\n((?:  [^\n]*\n)+)", text, re.M)
    terms = [term for term, _ in entries]
    assert terms == sorted(terms, key=str.lower) and len(terms) >= 40
    assert [term for term, words in entries if "`minilora/" not in words] == []
    assert set(re.findall(r"\{term\}`([^`]+)`", text)) <= set(terms)
