"""What the study of quantization error shows of its results: tables of cells, and pictures as SVG text by file name.

Both are functions of what is in results.json, so that they can be made again from it.
"""

from collections.abc import Callable

from minilora.viz import codes as pictures
from minilora.viz.charts import standalone

PICTURED = "64"  # the blocksize of the histogram and of the error by level


def tables(result: dict) -> list[tuple[str, list[tuple]]]:
    """(heading, rows) pairs of one subject; each row a quantizer, each column a blocksize; the first row a header."""
    size, rows = f"{result['weights']:,} weights", result["rows"]
    out = [(f"{result['title']} ({size}): relative weight error, %", grid(rows, figure("relative_error", 100)))]
    if any("expected_mae" in row for row in rows):
        out.append(("the same: mean absolute error, and as expected by the closed form", _beside_theory(rows)))
    if result["measure"]:
        before = _cell(result["unquantized"])
        heading = f"{result['title']}: {result['measure']}, {result['texts']}; not quantized {before}"
        out.append((heading, grid(rows, figure("quality"))))
    return [*out, ("bits per weight, constants included", alike(grid(rows, figure("bits"))))]


def draw(name: str, result: dict, codes: dict[str, list[float]]) -> dict[str, str]:
    """file name -> SVG, for files of their own."""
    title = result["title"]
    quality = "quality" if result["measure"] else "relative_error"
    named, series = {}, {}
    for row in result["rows"]:
        if row["quantizer"] in result["by_level"] and row["blocks"] == PICTURED:
            named[row["quantizer"]] = result["by_level"][row["quantizer"]] | {"mse": row["relative_error"] ** 2}
        series.setdefault(row["quantizer"], []).append((row["bits"], row[quality], row["blocks"]))
    svgs = {
        "levels": pictures.levels_under_histogram(result["histogram"], {n: codes[n] for n in named}, title),
        "error-by-level": pictures.error_by_level(named, title),
        "bits": pictures.bits_against(series, result["measure"] or "relative weight error", title),
    }
    return {f"{kind}-{name}.svg": standalone(svg) for kind, svg in svgs.items()}


def _columns(rows: list[dict]) -> list[str]:
    """Blocksizes from the smallest, then the rest."""
    found = {row["blocks"] for row in rows}
    return sorted(filter(str.isdigit, found), key=int) + [b for b in ("row", "tensor", "own") if b in found]


def grid(rows: list[dict], cell: Callable[[dict], str]) -> list[tuple]:
    """A line for each quantizer, a column for each blocksize; cell: what to write of a row."""
    columns, cells = _columns(rows), {}
    for row in rows:
        cells.setdefault(row["quantizer"], {})[row["blocks"]] = cell(row)
    return [("", *columns), *[(name, *[line.get(c, "") for c in columns]) for name, line in cells.items()]]


def figure(field: str, scale: float = 1) -> Callable[[dict], str]:
    """A cell with a row's field; empty where it has none."""
    return lambda row: "" if row.get(field) is None else _cell(row[field] * scale)


def _beside_theory(rows: list[dict]) -> list[tuple]:
    header, *measured = grid(rows, figure("mae"))
    expected = {name: cells for name, *cells in grid(rows, figure("expected_mae"))[1:]}
    out = [header]
    for name, *cells in measured:
        out += [(name, *cells)] + ([("  expected", *expected[name])] if any(expected[name]) else [])
    return out


def alike(table: list[tuple]) -> list[tuple]:
    """Rows of equal cells as one."""
    header, *rows = table
    names = {}
    for name, *cells in rows:
        if any(cells):
            names.setdefault(tuple(cells), []).append(name)
    return [header, *[(", ".join(group), *cells) for cells, group in names.items()]]


def _cell(value: float) -> str:
    """Four significant digits; 0 for what only rounding keeps from it."""
    return "0" if abs(value) < 1e-9 else f"{value:#.4g}"
