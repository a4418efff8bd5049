"""Which sectors of memory a warp touches, as a picture: SVG text.

    sectors({"neighbours": 4 * np.arange(32), "32 bytes apart": 32 * np.arange(32)}, "A warp reads 32 floats")

A GPU's memory moves in sectors, 32 bytes at a multiple of 32 (NVIDIA, CUDA C++ Programming Guide, "Device Memory
Accesses").
"""

import numpy as np

from minilora.viz.charts import INK, ORANGE, WIDTH, document, text
from minilora.viz.picture import Picture

SECTOR, ACROSS = 32, 16  # bytes; sectors in a row


def sectors(patterns: dict[str, np.ndarray], title: str, nbytes: int = 4) -> Picture:
    """SVG: for each pattern the sectors that a warp's accesses touch, the bytes that were asked for filled.

    patterns: name -> byte address of each lane. nbytes: of an access.
    """
    parts, y, said = [text(12, 16, title, bold=True)], 44.0, []
    wide = (WIDTH - 24) / ACROSS
    for name, addresses in patterns.items():
        asked = np.unique(np.asarray(addresses)[:, None] + np.arange(nbytes))
        touched = np.unique(asked // SECTOR)
        said.append(f"{name}: {len(touched)} sectors of {SECTOR} bytes for {len(asked)} bytes")
        parts.append(text(12, y - 6, said[-1]))
        for i, sector in enumerate(touched):
            x, top = 12 + wide * (i % ACROSS), y + 24 * (i // ACROSS)
            inside = asked[asked // SECTOR == sector] % SECTOR
            for start in inside[np.diff(inside, prepend=-9) > 1]:  # of each run of neighbouring bytes
                length = next(n for n in range(1, SECTOR + 2) if start + n not in inside)
                parts.append(
                    f'<rect x="{x + start / SECTOR * (wide - 4):.1f}" y="{top}" height="18" '
                    f'width="{length / SECTOR * (wide - 4):.1f}" fill="{ORANGE}"/>'
                )
            parts.append(f'<rect x="{x:.1f}" y="{top}" width="{wide - 4:.1f}" height="18" fill="none" stroke="{INK}"/>')
        y += 24 * -(-len(touched) // ACROSS) + 30
    return document(title, y - 18, parts, "; ".join(said))
