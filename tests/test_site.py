"""What the site says about the code: places exist, nothing public is undocumented, the house stands on its floors."""

import importlib
import inspect
import re
import sys
from pathlib import Path

import pytest

import minilora
from minilora.autograd import PRIMITIVES

DOCS = Path(__file__).parents[1] / "docs"
sys.path.insert(0, str(DOCS))
import house  # noqa: E402
import paper_index  # noqa: E402
import picture  # noqa: E402

PUBLIC = ("minilora", "autograd", "ops", "nn", "quant", "lora", "lowrank", "simt")


def exported(package: str) -> dict[str, object]:
    module = importlib.import_module(package if package == "minilora" else f"minilora.{package}")
    return {name: getattr(module, name) for name in module.__all__}


@pytest.mark.parametrize("package", PUBLIC)
def test_no_public_name_is_undocumented(package):
    """Of what a package exports: each function and class, and each public method or property that a class adds."""
    missing = []
    for name, thing in exported(package).items():
        if inspect.ismodule(thing) or not (inspect.isclass(thing) or callable(thing)):
            continue
        if not inspect.getdoc(thing):
            missing.append(name)
        for part, member in vars(thing).items() if inspect.isclass(thing) else ():
            public = callable(member) or isinstance(member, (property, classmethod, staticmethod))
            if not part.startswith("_") and public and not inspect.getdoc(getattr(thing, part)):
                missing.append(f"{name}.{part}")
    assert missing == []


@pytest.mark.parametrize("package", PUBLIC)
def test_every_package_has_its_page(package):
    page = (DOCS / "api" / f"{package}.md").read_text(encoding="utf-8")
    assert "automodule" in page
    if package == "minilora":
        assert [name for name in minilora.__all__ if name not in PUBLIC and name not in page] == []


def test_every_op_s_rule_is_derived():
    text = (DOCS / "derivations.md").read_text(encoding="utf-8")
    assert [name for name in PRIMITIVES if f"`{name.lstrip('_')}`" not in text] == []


@pytest.mark.parametrize("paper", paper_index.INDEX)
def test_a_paper_s_places_exist(paper):
    for _, _, place in paper_index.INDEX[paper][1]:
        file, _, name = place.partition(":")
        line = (paper_index.PACKAGE / file).read_text(encoding="utf-8").splitlines()[paper_index.line(place) - 1]
        assert not name or re.search(rf"\b(def|class) {name.split('.')[-1]}\b", line)


def test_every_paper_that_the_code_names_is_in_the_index():
    listed = " ".join(number for number, _ in paper_index.INDEX.values())
    named = {}
    for file in paper_index.PACKAGE.rglob("*.py"):
        for number in re.findall(r"arXiv:(\d{4}\.\d{4,5})", file.read_text(encoding="utf-8")):
            named.setdefault(number, file.name)
    assert {number: file for number, file in named.items() if number not in listed} == {}


def test_every_part_imports_only_from_floors_below():
    floor = {name: i for i, (_, names) in enumerate(house.FLOORS) for name in names}
    found = house.imports()
    outside = {"__init__", "__main__"}
    assert found.keys() - outside <= floor.keys()
    upward = [(part, name) for part, names in found.items() if part not in outside
              for name in names if name in floor and floor[name] >= floor[part]]  # fmt: skip
    assert upward == []


def test_the_readme_s_picture_is_what_the_code_draws():
    assert (DOCS / "nf4.svg").read_text(encoding="utf-8").strip() == picture.picture()
