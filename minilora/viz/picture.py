"""Pictures that a notebook draws: a string of SVG or HTML that shows itself as the last value of a cell.

Picture(memory_bars(rows))                 # in a notebook: the picture; elsewhere: its title
str(picture)                               # the text, for a file
"""

import re
from html import unescape


class Picture(str):
    """SVG or HTML text. It has no script, and is drawn in a page's colours where that sets them (see charts.py)."""

    __slots__ = ()

    def _repr_html_(self) -> str:
        return f'<div style="max-width:760px">{self}</div>'

    def __repr__(self) -> str:
        title = re.search(r"<title>(.*?)</title>", self)
        return f"Picture({unescape(title[1]) if title else len(self)})"
