"""One QLoRA layer as a picture: what is stored in which type, what flows forward, and where the gradient goes.

qlora_layer(128, 352, 8)                    # forward: equation 5 of arXiv:2305.14314
qlora_layer(128, 352, 8, backward=True)
"""

from minilora.errors import DataError
from minilora.viz.charts import BLUE, FAINT, GROUND, INK, ORANGE, document, text
from minilora.viz.picture import Picture

HEIGHT = 310
_GREY = "var(--grey,#718096)"
_BOXES = {  # left, top, width, height
    "c1": (150, 40, 92, 44), "c2": (252, 40, 92, 44), "codes": (354, 40, 120, 44), "W": (252, 126, 120, 44),
    "X": (14, 172, 74, 44), "L1": (190, 226, 92, 44), "L2": (342, 226, 92, 44), "+": (496, 182, 24, 24),
    "Y": (552, 172, 74, 44),
}  # fmt: skip
_FORWARD = [("X", "W"), ("W", "+"), ("X", "L1"), ("L1", "L2"), ("L2", "+"), ("+", "Y")]


def qlora_layer(d_in: int, d_out: int, r: int, backward: bool = False) -> Picture:
    """The paper's letters: X (b, d_in), W (d_in, d_out), L1 (d_in, r), L2 (r, d_out); c2 are the blocks' absmax in 8
    bits, c1 the float32 that scale them. Dashed boxes are stored and never change. Raises DataError for a size below 1.
    """
    if min(d_in, d_out, r) < 1:
        raise DataError(f"sizes are at least 1, not d_in={d_in}, d_out={d_out}, r={r}")
    n = d_in * d_out
    blocks = -(-n // 64)
    words = {
        "c1": ("c₁, float32", f"{4 * -(-blocks // 256):,} B"),
        "c2": ("c₂, 8 bits", f"{blocks:,} B"),
        "codes": ("W, NF4", f"{-(-n // 2):,} B"),
        "W": ("W, bfloat16", "dequantized again" if backward else "a tile at a time"),
        "X": ("∂E/∂X" if backward else "X", f"b × {d_in:,}"),
        "L1": ("∂E/∂L₁" if backward else "L₁", f"{d_in:,} × {r:,}"),
        "L2": ("∂E/∂L₂" if backward else "L₂", f"{r:,} × {d_out:,}"),
        "Y": ("∂E/∂Y" if backward else "Y", f"b × {d_out:,}"),
        "+": ("+", ""),
    }
    colour = ORANGE if backward else BLUE
    parts = [
        f'<defs><marker id="tip-{backward:d}" markerWidth="8" markerHeight="8" refX="6" refY="3" orient="auto">'
        f'<path d="M0 0l6 3l-6 3z" fill="{colour}"/></marker></defs>'
    ]
    for a, b in _FORWARD:
        parts.append(_arrow(*((b, a) if backward else (a, b)), colour, f"tip-{backward:d}"))
    for name in ("c1", "c2", "codes"):
        x, y, wide, high = _BOXES[name]
        parts.append(
            f'<line x1="{x + wide / 2}" y1="{y + high}" x2="{_BOXES["W"][0] + 60}" y2="{_BOXES["W"][1]}" '
            f'stroke="{_GREY}" stroke-dasharray="4 3"/>'
        )
    parts.append(text(484, 66, "stored, and no gradient" if backward else "stored", fill=_GREY))
    parts.append(text(384, 112, "doubleDequant, equation 6", fill=_GREY))
    for name, (first, second) in words.items():
        parts += _box(name, first, second, colour, trained=name in ("L1", "L2"))
    said = (
        "Backward: the gradient of Y goes to L2 and L1, which are trained, and through W, dequantized again, to X. "
        "Nothing goes to the stored codes and constants."
        if backward
        else "Forward: X times W, which is dequantized from codes, c2 and c1, plus X times L1 times L2, gives Y."
    )
    lines = (
        (
            "∂E/∂L₂ = s (X L₁)ᵀ ∂E/∂Y  and  ∂E/∂L₁ = s Xᵀ ∂E/∂Y L₂ᵀ : no W in them",
            "∂E/∂X = ∂E/∂Y Wᵀ + s ∂E/∂Y L₂ᵀ L₁ᵀ : for the layers before",
        )
        if backward
        else ("Y = X doubleDequant(c₁, c₂, W) + s X L₁ L₂", "equation 5, with the factor s of equation 3")
    )
    parts += [text(14, HEIGHT - 20 + 18 * i, line) for i, line in enumerate(lines)]
    direction = "backward" if backward else "forward"
    parts.append(text(14, 20, f"A QLoRA layer, {direction}", bold=True))
    return document(f"A QLoRA layer, {direction}", HEIGHT + 8, parts, said)


def _box(name: str, first: str, second: str, colour: str, trained: bool) -> list[str]:
    x, y, wide, high = _BOXES[name]
    stored = name in ("c1", "c2", "codes")
    frame = f'stroke="{_GREY}" stroke-dasharray="4 3"' if stored else f'stroke="{colour if trained else INK}"'
    thick = 2.5 if trained else 1.2
    parts = [
        f'<rect x="{x}" y="{y}" width="{wide}" height="{high}" rx="6" fill="{FAINT if stored else GROUND}" {frame} '
        f'stroke-width="{thick}"><title>{first}: {second}</title></rect>'
    ]
    if not second:
        return [*parts, text(x + wide / 2, y + high / 2 + 4, first, "middle", bold=True)]
    return [*parts, text(x + wide / 2, y + 18, first, "middle", bold=True),
            text(x + wide / 2, y + 35, second, "middle")]  # fmt: skip


def _arrow(a: str, b: str, colour: str, tip: str) -> str:
    """From the side of a to the nearer side of b."""
    (ax, ay, aw, ah), (bx, by, bw, bh) = _BOXES[a], _BOXES[b]
    x1, x2 = (ax + aw, bx - 2) if ax < bx else (ax, bx + bw + 2)
    return (
        f'<line x1="{x1}" y1="{ay + ah / 2:g}" x2="{x2}" y2="{by + bh / 2:g}" stroke="{colour}" stroke-width="2" '
        f'marker-end="url(#{tip})"/>'
    )
