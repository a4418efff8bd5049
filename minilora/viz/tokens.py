"""Text token by token, each target shaded by how much it surprised the model: an HTML string.

token_losses({"before": [("def", None), (" {", 3.2)], "after": [("def", None), (" {", 0.1)]}, "One example")
"""

from html import escape

from minilora.errors import DataError
from minilora.viz.charts import FAINT, INK
from minilora.viz.picture import Picture

MOST = 5.0  # nats that are shaded fully
SIGNS = {" ": "␣", "\n": "⏎", "\t": "⇥"}


def token_losses(rows: dict[str, list[tuple[str, float | None]]], title: str) -> Picture:
    """A line of tokens for each row. A loss is in nats; None for a token that is no target: it is grey, and without a
    number. Raises DataError for a loss that is negative or not a number."""
    parts = []
    for name, tokens in rows.items():
        cells = "".join(_cell(name, *token) for token in tokens)
        parts.append(f'<div style="margin:6px 0 2px;font-weight:bold">{escape(name)}</div><div>{cells}</div>')
    total = "; ".join(f"{name}: {_mean(tokens)}" for name, tokens in rows.items())
    said = f"{title}. Under each target its loss in nats; grey tokens are not targets. {total}"
    return Picture(
        f'<figure style="margin:0;color:{INK};font:13px sans-serif" aria-label="{escape(title, quote=True)}">'
        f"{''.join(parts)}"
        f'<figcaption style="margin-top:8px">{escape(said)}</figcaption></figure>'
    )


def _cell(row: str, token: str, loss: float | None) -> str:
    shown = escape("".join(SIGNS.get(c, c) for c in token)) or "·"
    if loss is None:
        look, under = f"background:{FAINT};opacity:0.7", "&#160;"
    elif 0 <= loss < float("inf"):
        look, under = f"background:rgba(192,86,33,{min(1.0, loss / MOST) * 0.75:.2f})", f"{loss:.1f}"
    else:
        raise DataError(f"token_losses: {row!r}, {token!r} has the loss {loss}; give a finite number >= 0, or None")
    return (
        f'<span style="display:inline-block;text-align:center;margin:1px"><span style="display:block;padding:1px 4px;'
        f'border-radius:3px;font-family:monospace;{look}">{shown}</span><small>{under}</small></span>'
    )


def _mean(tokens: list[tuple[str, float | None]]) -> str:
    losses = [loss for _, loss in tokens if loss is not None]
    return f"{sum(losses) / len(losses):.2f} nats per target" if losses else "no target"
