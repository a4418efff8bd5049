"""Attention as a heat map: which position looks at which, and what its mask forbids.

    attention_map(weights, ["the", "cat", "sat"])            # weights (T, T): row = query, column = key
    attention_map(weights, tokens, segments=[1, 1, 2])       # packed: each segment sees itself alone
    attention_map(None, tokens, segments=[1, 1, 2])          # the mask by itself
    attention_map(weights, tokens, names=["head 0", ..])     # weights (H, T, T): a map each

A query sees the keys up to its own position, of its own segment. The more a key weighs, the fuller its blue. Weight
that falls where nothing may be seen is a leak, and orange.
"""

from collections.abc import Sequence
from html import escape

import numpy as np

from minilora.errors import DataError
from minilora.viz.charts import BLUE, FAINT, INK, ORANGE, WIDTH, document, text
from minilora.viz.picture import Picture

LEFT, TOP, GAP, LETTERS = 84.0, 46.0, 14.0, 10  # pixels beside and above the maps, between two; letters of a label
LARGEST, SMALLEST = 30.0, 8.0  # pixels of a cell's side; the labels are left out where it is smaller


def attention_map(
    weights, tokens: Sequence[str], segments: Sequence[int] | None = None, names: Sequence[str] | None = None,
    title: str = "Attention",
) -> Picture:  # fmt: skip
    """weights (T, T) or (H, T, T), not negative, or None; tokens: T texts; segments: T numbers, of runs of tokens that
    belong together; names: of the H maps.

    Raises DataError for sizes that do not fit.
    """
    T = len(tokens)
    segments = np.zeros(T, int) if segments is None else np.asarray(segments)
    W = None if weights is None else np.asarray(weights, float)
    maps = [None] if W is None else list(W if W.ndim == 3 else W[None])
    names = [""] * len(maps) if names is None else list(names)
    if (
        not T
        or segments.shape != (T,)
        or len(names) != len(maps)
        or any(m is not None and m.shape != (T, T) for m in maps)
    ):
        shape = None if W is None else W.shape
        raise DataError(f"attention_map of {T} tokens takes weights ({T}, {T}) or (H, {T}, {T}), {T} segments and H "
                        f"names; got weights {shape}, segments {segments.shape}, {len(names)} names")  # fmt: skip
    if W is not None and not (np.isfinite(W).all() and (W >= 0).all()):
        raise DataError("attention weights are finite and not negative; give them after the softmax")
    across = min(len(maps), 4)
    cell = min(LARGEST, (WIDTH - LEFT - 16 - GAP * (across - 1)) / across / T)
    labelled, side = cell >= SMALLEST, cell * T
    below = 8 + 7 * max(map(len, map(_short, tokens))) if labelled else 8
    parts = [*_legend(segments, maps)]
    for i, (name, weight) in enumerate(zip(names, maps, strict=True)):
        x, y = LEFT + i % across * (side + GAP), TOP + i // across * (side + below + 26)
        parts += _panel(weight, tokens, segments, x, y, cell)
        parts.append(text(x, y - 6, name))
        for t in range(T) if labelled else ():
            if not i % across:
                parts.append(text(x - 6, y + (t + 0.5) * cell + 4, _short(tokens[t]), "end"))
            at = x + (t + 0.5) * cell + 4, y + side + 6
            parts.append(
                f'<text transform="translate({at[0]:.1f} {at[1]:.1f}) rotate(-90)" text-anchor="end">'
                f"{escape(_short(tokens[t]))}</text>"
            )
    rows = -(-len(maps) // across)
    height = TOP + rows * (side + below + 26)
    parts.append(text(LEFT, height - 8, "rows: the position that looks; columns: the position looked at"))
    return document(title, height, parts, _described(T, segments, len(maps)))


def _panel(weight, tokens, segments, x: float, y: float, cell: float) -> list[str]:
    parts = []
    for q in range(len(tokens)):
        for k in range(len(tokens)):
            same, w = segments[q] == segments[k], 0.0 if weight is None else float(weight[q, k])
            seen = k <= q and same
            said = f"{_short(tokens[q])} ({q}) at {_short(tokens[k])} ({k}): "
            if seen:
                colour, full = BLUE, 0.75 if weight is None else min(w, 1.0)
                said += "seen" if weight is None else f"{w:.3f}"
            else:
                colour, full = (ORANGE, min(w, 1.0)) if w else (FAINT, 0.0 if k > q else 1.0)
                said += f"a leak of {w:.3f}" if w else "it comes later" if k > q else "another segment"
            parts.append(
                f'<rect x="{x + k * cell:.1f}" y="{y + q * cell:.1f}" width="{cell:.1f}" height="{cell:.1f}" '
                f'fill="{colour}" fill-opacity="{full:.3f}" stroke="{FAINT}" stroke-width="0.5">'
                f"<title>{escape(said)}</title></rect>"
            )
    for t in range(1, len(tokens)):  # a line where a segment begins
        if segments[t] != segments[t - 1]:
            at, side = t * cell, len(tokens) * cell
            for x1, x2, y1, y2 in ((x, x + side, y + at, y + at), (x + at, x + at, y, y + side)):
                parts.append(f'<line x1="{x1:.1f}" x2="{x2:.1f}" y1="{y1:.1f}" y2="{y2:.1f}" stroke="{INK}"/>')
    return parts


def _legend(segments, maps) -> list[str]:
    entries = [("seen: the fuller, the more it weighs" if maps[0] is not None else "seen", BLUE, 1.0)]
    if len(set(segments.tolist())) > 1:
        entries.append(("another segment", FAINT, 1.0))
    entries.append(("later", FAINT, 0.0))
    unseen = segments[:, None] != segments
    if any(m is not None and (np.triu(m, 1).any() or m[unseen].any()) for m in maps):
        entries.append(("a leak", ORANGE, 1.0))
    parts, x = [], LEFT
    for words, colour, full in entries:
        parts.append(
            f'<path d="M{x:g} 8h10v10h-10z" fill="{colour}" fill-opacity="{full:g}" stroke="{FAINT}"/>'
            + text(x + 15, 17, words)
        )
        x += 34 + 6.5 * len(words)
    return parts


def _described(T: int, segments, maps: int) -> str:
    count = 1 + int((segments[1:] != segments[:-1]).sum())
    packed = f" in {count} segments, each of which sees itself alone" if count > 1 else ""
    return f"{maps} map(s) of {T} positions{packed}; a position sees itself and what comes before it."


def _short(token: str) -> str:
    shown = token.replace("\n", "↵").replace(" ", "·")
    return shown if len(shown) <= LETTERS else shown[: LETTERS - 1] + "…"
