"""In the browser: minilora needs nothing that Pyodide lacks, and JupyterLite finds the lessons and the wheel.

Three lessons are run beside NumPy alone, and what they loaded is held against Pyodide: packages against its lock file,
modules of the standard library by importing them in Pyodide itself, in Node. A whole lesson is not run there: npm has
Pyodide's interpreter, but NumPy's wheel for it is neither on npm nor on PyPI, only on Pyodide's own server.
"""

import json
import re
import shutil
import subprocess
import sys
from email import message_from_string
from pathlib import Path
from zipfile import ZipFile

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
LESSONS = ROOT / "notebooks/lessons"
PYODIDE = "pyodide@314.0.6"  # the version that jupyterlite-pyodide-kernel 0.8 takes
LESSON = """
import ast, json, pathlib, re, sys

source, result = map(pathlib.Path, sys.argv[1:])
namespace = {"__name__": "lesson"}
for cell in re.split("^# %%", source.read_text(encoding="utf-8"), flags=re.M)[1:]:
    head, _, code = cell.partition("\\n")
    if "[markdown]" in head:
        continue
    tree = ast.parse(code)
    last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
    exec(compile(tree, source.name, "exec"), namespace)
    value = last and eval(compile(ast.Expression(last.value), source.name, "eval"), namespace)
    if hasattr(value, "_repr_html_"):
        value._repr_html_()  # as a notebook shows it
modules = [name for name, module in sys.modules.items() if getattr(module, "__spec__", None)]
result.write_text(json.dumps(modules))
"""
IN_PYODIDE = """
import {loadPyodide} from "PYODIDE/pyodide.mjs"
import fs from "fs"
const pyodide = await loadPyodide()
const given = JSON.parse(fs.readFileSync(process.argv[2], "utf8"))
pyodide.globals.set("given", pyodide.toPy(given))
pyodide.runPython(`
import importlib, warnings
warnings.simplefilter("error")
for name, source in given["sources"].items():
    compile(source, name, "exec")
warnings.simplefilter("ignore")
missing = []
for name in given["modules"]:
    try:
        importlib.import_module(name)
    except ImportError as error:
        missing.append(str(error))
`)
console.log(JSON.stringify(pyodide.globals.get("missing").toJs()))
"""


def run(*command, **options) -> str:
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=300, **options)
    assert done.returncode == 0, f"{command}:\n{done.stdout}{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    run(sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", folder, ROOT)
    (built,) = folder.iterdir()
    return built


@pytest.fixture(scope="module")
def bare(wheel, tmp_path_factory) -> Path:
    """A Python that has NumPy and minilora's wheel alone."""
    venv = tmp_path_factory.mktemp("bare") / "venv"
    run(sys.executable, "-m", "venv", venv)
    python = venv / "bin/python"
    run(python, "-m", "pip", "install", "-q", "numpy>=2")
    run(python, "-m", "pip", "install", "-q", "--no-deps", wheel)
    return python


@pytest.fixture(scope="module")
def loaded(bare, tmp_path_factory) -> dict[str, set[str]]:
    """The modules that each lesson has loaded when it ends."""
    folder = tmp_path_factory.mktemp("loaded")
    for number in ("01", "05", "08"):
        (lesson,) = LESSONS.glob(f"{number}_*.py")
        run(bare, "-c", LESSON, lesson, folder / f"{number}.json", cwd=folder)
    return {file.stem: set(json.loads(file.read_text())) for file in folder.glob("*.json")}


@pytest.fixture(scope="module")
def lock(npm) -> dict:
    return json.loads((npm(PYODIDE) / "pyodide-lock.json").read_text(encoding="utf-8"))["packages"]


def test_the_wheel_is_pure_and_needs_numpy_alone(wheel, bare):
    assert wheel.name.endswith("-py3-none-any.whl")
    with ZipFile(wheel) as archive:
        assert [name for name in archive.namelist() if re.search(r"\.(so|pyd|dll|dylib)$", name)] == []
    assert "minilora" in run(bare, "-c", "import minilora; print(minilora.__file__)", cwd=bare.parent)


def test_pyodide_has_what_the_wheel_asks_for_there(wheel, lock):
    requirements = pytest.importorskip("packaging.requirements")
    with ZipFile(wheel) as archive:
        (metadata,) = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        asked = message_from_string(archive.read(metadata).decode()).get_all("Requires-Dist")
    wanted = [requirements.Requirement(line) for line in asked]
    there = {"sys_platform": "emscripten", "platform_system": "Emscripten", "extra": ""}
    wanted = [r for r in wanted if r.marker is None or r.marker.evaluate(there)]
    assert "numpy" in [r.name for r in wanted]
    assert [str(r) for r in wanted if r.name not in lock or lock[r.name]["version"] not in r.specifier] == []


def test_the_lessons_load_only_packages_that_pyodide_has(loaded, lock):
    known = {name.split(".")[0] for package in lock.values() for name in package["imports"]}
    for number, modules in loaded.items():
        packages = {name.split(".")[0] for name in modules} - set(sys.stdlib_module_names)
        assert {"minilora", "numpy"} <= packages
        assert packages - {"minilora"} <= known, number
        assert not packages & {"scipy", "tokenizers"}, number


def test_pyodide_imports_the_lessons_modules_and_compiles_minilora(loaded, npm, tmp_path):
    if shutil.which("node") is None:
        pytest.skip("node is missing (apt-get install nodejs)")
    modules = {name for name in set().union(*loaded.values()) if name.split(".")[0] in sys.stdlib_module_names}
    public = sorted(name for name in modules if not any(part.startswith("_") for part in name.split(".")))
    sources = {str(file): file.read_text(encoding="utf-8") for file in (ROOT / "minilora").rglob("*.py")}
    (tmp_path / "given.json").write_text(json.dumps({"modules": public, "sources": sources}))
    (tmp_path / "run.mjs").write_text(IN_PYODIDE.replace("PYODIDE", npm(PYODIDE).as_posix()))
    assert len(public) > 50
    assert json.loads(run("node", tmp_path / "run.mjs", tmp_path / "given.json").splitlines()[-1]) == []


def test_jupyterlite_lists_the_lessons_and_the_wheel(tmp_path):
    """By the commands of docs/browser.md."""
    pytest.importorskip("jupyterlite_pyodide_kernel", reason="JupyterLite is missing (pip install '.[lite]')")
    for name in ("pyproject.toml", "README.md", "LICENSE", "minilora", "notebooks"):
        (tmp_path / name).symlink_to(ROOT / name)
    page = (ROOT / "docs/browser.md").read_text(encoding="utf-8")
    (commands,) = [block for block in re.findall(r"^```sh\n(.*?)^```", page, re.M | re.S) if "lite build" in block]
    here = f"alias pip='{sys.executable} -m pip' jupyter='{sys.executable} -m jupyter'\n"
    run("sh", "-ec", here + commands, cwd=tmp_path)

    site = tmp_path / "build/lite/_output"
    listed = json.loads((site / "api/contents/all.json").read_text())["content"]
    assert {entry["name"] for entry in listed} == {lesson.name for lesson in LESSONS.glob("*.ipynb")}
    (release,) = json.loads((site / "pypi/all.json").read_text())["minilora"]["releases"].values()
    assert (site / "pypi" / release[0]["filename"]).is_file()
    settings = json.loads((site / "jupyter-lite.json").read_text())["jupyter-config-data"]["litePluginSettings"]
    urls = [url for plugin in settings.values() for url in plugin["pipliteUrls"]]
    assert any(url.startswith("./pypi/all.json") for url in urls)
