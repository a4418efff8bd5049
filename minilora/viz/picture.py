"""Pictures that a notebook draws: a string of SVG or HTML that shows itself as the last value of a cell.

Picture(memory_bars(rows))                 # in a notebook: the picture; elsewhere: its title
str(picture)                               # the text, for a file
pages([first, second])                     # one at a time, with previous and next
"""

import re
from collections.abc import Sequence
from html import unescape
from itertools import count

_shown = count()


class Picture(str):
    """SVG or HTML text. It has no script, and is drawn in a page's colours where that sets them (see charts.py)."""

    __slots__ = ()

    def _repr_html_(self) -> str:
        return f'<div style="max-width:760px">{self}</div>'

    def __repr__(self) -> str:
        title = re.search(r"<title>(.*?)</title>", self)
        return f"Picture({unescape(title[1]) if title else len(self)})"


def pages(parts: Sequence[str]) -> Picture:
    """HTML with all of them, of which one is seen: radio buttons decide, and no script."""
    name, last, buttons, shown = f"pages-{next(_shown)}", len(parts) - 1, [], []
    for i, part in enumerate(parts):
        ways = [(i - 1, "previous")] * (i > 0) + [(i + 1, "next")] * (i < last)
        links = " ".join(
            f'<label for="{name}-{to}" style="cursor:pointer;text-decoration:underline">{word}</label>'
            for to, word in ways
        )
        checked = ' checked="checked"' * (i == 0)
        buttons.append(f'<input type="radio" name="{name}" id="{name}-{i}" aria-label="step {i + 1}"{checked}/>')
        shown.append(f'<div class="{name} at-{i}"><p>Step {i + 1} of {last + 1}: {links}</p>{part}</div>')
    which = ",".join(f"#{name}-{i}:checked~.{name}.at-{i}" for i in range(len(parts)))
    style = f"<style>.{name}{{display:none}} {which}{{display:block}}</style>"
    return Picture(f"<div>{style}{''.join(buttons + shown)}</div>")
