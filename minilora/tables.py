"""Tables as text: aligned for a terminal, and in Markdown for a page."""


def format_table(rows: list[tuple]) -> str:
    """Aligned columns, the first to the left."""
    widths = [max(len(str(row[i])) for row in rows) for i in range(len(rows[0]))]
    return "\n".join(
        "  ".join(
            str(c).ljust(w) if i == 0 else str(c).rjust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    )


def markdown_table(heads: list[str], rows: list[tuple], align: str = "") -> str:
    """Markdown; the first column to the left, the others to the right unless `align` says l."""
    rules = ["---", *("---" if align[i : i + 1] == "l" else "---:" for i in range(len(heads) - 1))]
    return "\n".join(f"| {' | '.join(map(str, row))} |" for row in [heads, rules, *rows])
