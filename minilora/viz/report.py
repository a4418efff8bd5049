"""A run's report: one HTML page, self-contained, no script."""

from html import escape

_STYLE = """
:root{--ink:#1a202c;--faint:#e2e8f0;--blue:#2b6cb0;--orange:#c05621;--green:#2f855a;--violet:#6b46c1;--grey:#718096;--paper:#fff;--box:#f7fafc}
@media(prefers-color-scheme:dark){:root{--ink:#e2e8f0;--faint:#2d3748;--blue:#63b3ed;--orange:#f6ad55;
--green:#68d391;--violet:#b794f4;--grey:#a0aec0;--paper:#171923;--box:#1f2533}}
body{font:16px/1.5 system-ui,sans-serif;color:var(--ink);background:var(--paper);max-width:46rem;margin:2rem auto;
padding:0 1rem}
h1{font-size:1.5rem;margin-bottom:.2rem}h2{font-size:1.1rem;margin-top:2rem}
table{border-collapse:collapse;width:100%}td,th{padding:.35rem .6rem;border-bottom:1px solid var(--faint);
text-align:right;font-variant-numeric:tabular-nums}td:first-child,th:first-child{text-align:left}
pre{background:var(--box);padding:.7rem;border-radius:6px;white-space:pre-wrap;overflow-wrap:anywhere;margin:.3rem 0}
section{border:1px solid var(--faint);border-radius:8px;padding:.5rem 1rem .8rem;margin:1rem 0}
h3{font-size:1rem;margin:.3rem 0}dt{font-size:.8rem;letter-spacing:.03em;opacity:.75;margin-top:.6rem}dd{margin:0}
.right{border-left:4px solid var(--green)}.wrong{border-left:4px solid var(--orange)}
figure{margin:1.6rem 0}figcaption{font-size:.9rem}svg{width:100%;height:auto}
"""


def table(rows: list[tuple]) -> str:
    """Rows of cells, the first row a header."""
    head, *body = rows
    cells = lambda row, tag: "".join(f"<{tag}>{escape(str(cell))}</{tag}>" for cell in row)  # noqa: E731
    lines = "".join(f"<tr>{cells(row, 'td')}</tr>" for row in body)
    return f"<table><tr>{cells(head, 'th')}</tr>{lines}</table>"


def _generation(number: int, example: tuple[str, str, str, str]) -> str:
    prompt, expected, before, after = example
    parts = [f"<dt>prompt</dt><dd><pre>{escape(prompt)}</pre></dd>"]
    for label, text in (("before", before), ("after", after)):
        right = text == expected
        parts.append(
            f"<dt>{label} training: {'right' if right else 'wrong'}</dt>"
            f'<dd><pre class="{"right" if right else "wrong"}">{escape(text) or "(nothing)"}</pre></dd>'
        )
    if after != expected:
        parts.append(f"<dt>expected</dt><dd><pre>{escape(expected)}</pre></dd>")
    return f"<section><h3>Example {number}</h3><dl>{''.join(parts)}</dl></section>"


def report_page(
    title: str, subtitle: str, tables: list[tuple[str, list[tuple]]], figures: list[tuple[str, str]],
    generations: list[tuple[str, str, str, str]], recipe: str,
) -> str:  # fmt: skip
    """tables: (heading, rows); figures: (svg, caption); generations: (prompt, expected, before, after)."""
    parts = [f"<h1>{escape(title)}</h1><p>{escape(subtitle)}</p>"]
    parts += [f"<h2>{escape(heading)}</h2>{table(rows)}" for heading, rows in tables]
    parts += [f"<figure>{svg}<figcaption>{escape(caption)}</figcaption></figure>" for svg, caption in figures]
    if generations:
        parts.append(
            f"<h2>Held-out examples</h2>{''.join(map(_generation, range(1, 1 + len(generations)), generations))}"
        )
    parts.append(f"<h2>Recipe</h2><pre>{escape(recipe)}</pre>")
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        f'<meta name="viewport" content="width=device-width"><style>{_STYLE}</style></head>'
        f"<body>{''.join(parts)}</body></html>\n"
    )
