"""The site: sphinx-build -W docs docs/_build (pip install '.[docs]'). Lessons are executed once, and kept."""

import shutil
from pathlib import Path

import minilora

HERE = Path(__file__).parent
LESSONS = HERE / "lessons"
LESSONS.mkdir(exist_ok=True)
for notebook in (HERE.parent / "notebooks/lessons").glob("*.ipynb"):  # Sphinx reads its own folder alone
    if not (copy := LESSONS / notebook.name).exists() or copy.read_bytes() != notebook.read_bytes():
        shutil.copyfile(notebook, copy)

project, author, release = "minilora", "The minilora developers", minilora.__version__
copyright = "The minilora developers, MIT licence"
extensions = [
    "myst_nb", "sphinx.ext.autodoc", "sphinx.ext.autosummary", "sphinx.ext.napoleon", "sphinx.ext.mathjax",
    "sphinx.ext.viewcode",
]  # fmt: skip
exclude_patterns = ["_build", "_static", "**.ipynb_checkpoints"]
suppress_warnings = ["mystnb.unknown_mime_type"]

myst_enable_extensions = ["dollarmath", "colon_fence", "deflist"]
myst_heading_anchors = 4
nb_execution_mode = "cache"
nb_execution_cache_path = str(HERE / "_build/.jupyter_cache")
nb_execution_timeout = 180
nb_execution_raise_on_error = True
nb_execution_excludepatterns = ["*.md"]
nb_mime_priority_overrides = [("html", "text/html", 0)]

autosummary_generate = True
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_default_options = {"members": True, "undoc-members": False, "show-inheritance": True}

html_theme = "pydata_sphinx_theme"
html_title = "minilora"
html_static_path = ["_static"]
html_css_files = ["minilora.css"]
html_show_sourcelink = False
html_theme_options = {
    "navbar_align": "left",
    "show_toc_level": 2,
    "footer_start": ["copyright"],
    "footer_end": [],
    "secondary_sidebar_items": ["page-toc"],
}
