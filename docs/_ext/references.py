"""Links from a page to a file of the repository become links to where it is read on the web."""

from pathlib import Path

from docutils import nodes

ROOT = Path(__file__).parents[2]
WEB = "https://github.com/minilora/minilora/blob/main/"


def resolve(app, env, node, contnode):
    """[text](../minilora/file.py) in Markdown: Sphinx asks for each target that is no page of its own."""
    target = node.get("reftarget", "")
    path = (Path(env.doc2path(node["refdoc"])).parent / target.partition("#")[0]).resolve()
    if not path.is_file() or ROOT not in path.parents:
        return None
    link = nodes.reference("", "", internal=False, refuri=WEB + path.relative_to(ROOT).as_posix())
    link += contnode.children or [contnode]
    return link


def setup(app):
    app.connect("missing-reference", resolve)
    return {"parallel_read_safe": True}
