"""The site: sphinx-build -W docs docs/_build (pip install '.[docs]'). Lessons are executed once, and kept."""

import re
import shutil
import sys
from pathlib import Path

import minilora

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))
import house  # noqa: E402
import paper_index  # noqa: E402

LESSONS = HERE / "lessons"
LESSONS.mkdir(exist_ok=True)
for notebook in (HERE.parent / "notebooks/lessons").glob("*.ipynb"):  # Sphinx reads its own folder alone
    if not (copy := LESSONS / notebook.name).exists() or copy.read_bytes() != notebook.read_bytes():
        shutil.copyfile(notebook, copy)
(HERE / "paper-to-code.md").write_text(paper_index.page(), encoding="utf-8")  # lines of this very version
(HERE / "house.svg").write_text(house.standalone(house.picture()), encoding="utf-8")

project, author, release = "minilora", "The minilora developers", minilora.__version__
copyright = "The minilora developers, MIT licence"
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.mathjax", "sphinx.ext.viewcode"]
exclude_patterns = ["_build", "_static", "**.ipynb_checkpoints"]
suppress_warnings = ["mystnb.unknown_mime_type"]

myst_enable_extensions = ["dollarmath", "colon_fence", "deflist"]
myst_heading_anchors = 4
nb_execution_mode = "cache"
nb_execution_cache_path = str(HERE / "_build/.jupyter_cache")
nb_execution_timeout = 900  # of the whole lesson, on a busy machine
nb_execution_raise_on_error = True
nb_execution_excludepatterns = ["*.md"]
nb_mime_priority_overrides = [("html", "text/html", 0)]

autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
python_maximum_signature_line_length = 90

html_theme = "pydata_sphinx_theme"
html_title = "minilora"
html_static_path = ["_static"]
html_css_files = ["minilora.css"]
html_show_sourcelink = False
html_context = {"default_mode": "auto"}  # light or dark, as the reader has it
html_sidebars = {"**": ["globaltoc.html"]}
html_theme_options = {
    "navbar_center": [],
    "navbar_align": "left",
    "show_toc_level": 2,
    "footer_start": ["copyright"],
    "footer_end": [],
    "secondary_sidebar_items": ["page-toc"],
}


def docstring_as_text(app, what, name, obj, options, lines: list[str]):
    """Our docstrings are plain text, with indented examples: say so to Sphinx, which reads reStructuredText."""
    found, example = [], False
    for line in lines:
        if line.startswith("    ") and not example and not (found and found[-1].strip()):
            found += ["::", ""]
            example = True
        elif example and line.strip() and not line.startswith("    "):
            example = False
        if not example:
            line = re.sub(r"`([^`]+)`", r"``\1``", re.sub(r"([*|])|(?<=\w)(_)(?!\w)", r"\\\1\2", line))
        found.append(line)
    lines[:] = found


def setup(app):
    app.connect("autodoc-process-docstring", docstring_as_text)
