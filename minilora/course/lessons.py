"""Lessons as notebooks: each .ipynb is made from the script in percent format beside it.

write(Path("notebooks/lessons"))           # NN_name.py -> NN_name.ipynb, without outputs, with fixed cell ids
"""

from pathlib import Path

from minilora.errors import MiniloraError
from minilora.files import atomic_write

REPOSITORY = "minilora/minilora"
BADGE = (
    "[![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)]"
    "(https://colab.research.google.com/github/{repository}/blob/main/notebooks/lessons/{name}.ipynb)"
)
INSTALL = """# In Colab, or wherever minilora is missing
import importlib.util

if importlib.util.find_spec("minilora") is None:
    %pip install -q {package}"""


def lesson(path: Path) -> str:
    """The notebook's text. The badge and the installation come before the first cell."""
    import jupytext
    import nbformat
    from nbformat.v4 import new_code_cell, new_markdown_cell

    notebook = jupytext.read(path, fmt="py:percent")
    package = "'minilora[simt]'" if "minilora.simt" in path.read_text(encoding="utf-8") else "minilora"
    notebook.cells[:0] = [
        new_markdown_cell(BADGE.format(repository=REPOSITORY, name=path.stem)),
        new_code_cell(INSTALL.format(package=package), metadata={"tags": ["remove-cell"]}),
    ]
    for number, cell in enumerate(notebook.cells):
        cell.id = f"{path.stem[:2]}-{number:03d}"
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    notebook.metadata = nbformat.from_dict({"kernelspec": kernel, "language_info": {"name": "python"}})
    notebook.nbformat_minor = 5
    return nbformat.writes(notebook) + "\n"


def write(folder: Path) -> list[Path]:
    """Make the notebook of every lesson in the folder; their paths. Raises MiniloraError where there is none."""
    sources = sorted(folder.glob("[0-9][0-9]_*.py"))
    if not sources:
        raise MiniloraError(f"{folder} has no lesson (NN_name.py); go where notebooks/lessons is, or pass --source")
    for source in sources:
        atomic_write(source.with_suffix(".ipynb"), lesson(source))
    return [source.with_suffix(".ipynb") for source in sources]
