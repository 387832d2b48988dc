"""One HTML file that needs nothing else: headings, tables, dialogues, pictures.

Here: the pieces of a page and its style. All text is escaped. Not here: what is reported.
"""

import base64
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path

_STYLE = """
:root { color-scheme: light dark;
  --ink: #1c2024; --quiet: #60646c; --paper: #fff; --rule: #d9d9e0; --block: #f3f4f6; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #edeef0; --quiet: #b0b4ba; --paper: #15171a; --rule: #3a3f45; --block: #212428; }
}
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem;
       color: var(--ink); background: var(--paper); }
h1 { font-size: 1.7rem; } h2 { font-size: 1.25rem; margin-top: 2.2rem; }
table { border-collapse: collapse; margin: 1rem 0; } caption { text-align: left; color: var(--quiet); }
th, td { border-bottom: 1px solid var(--rule); padding: .3rem .9rem .3rem 0; text-align: left; }
td { font-variant-numeric: tabular-nums; }
pre { background: var(--block); padding: .8rem; overflow-x: auto; white-space: pre-wrap; }
figure { margin: 1rem 0; } figcaption { color: var(--quiet); } img, svg { max-width: 100%; height: auto; }
svg text { fill: currentColor; font-size: 12px; } svg .grid { stroke: var(--rule); }
svg .whisker { stroke-width: 2; }
.said { border-left: 3px solid #8b8d98; padding-left: .8rem; margin: .6rem 0; }
.right { border-color: #30a46c; } .wrong { border-color: #e5484d; }
.who { color: var(--quiet); font-size: .85rem; } .thought { color: var(--quiet); white-space: pre-wrap; }
"""


def page(title: str, parts: Iterable[str]) -> str:
    """A whole page of parts made by the functions below."""
    body = "\n".join(parts)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head>\n"
        f"<body><h1>{escape(title)}</h1>\n{body}\n</body></html>\n"
    )


def heading(text: str) -> str:
    """A heading of the second level."""
    return f"<h2>{escape(text)}</h2>"


def paragraph(text: str) -> str:
    """Running text."""
    return f"<p>{escape(text)}</p>"


def verbatim(text: str) -> str:
    """Text as it stands: code, commands, prompts with their control tokens."""
    return f"<pre>{escape(text)}</pre>"


def table(header: Sequence[str], rows: Iterable[Sequence[object]], caption: str = "") -> str:
    """A table; cells are whatever `str` makes of them."""
    head = "".join(f"<th>{escape(cell)}</th>" for cell in header)
    body = "".join(
        "<tr>" + "".join(f"<td>{escape(str(cell))}</td>" for cell in row) + "</tr>" for row in rows
    )
    above = f"<caption>{escape(caption)}</caption>" if caption else ""
    return f"<table>{above}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def said(who: str, text: str, thought: str = "", right: bool | None = None) -> str:
    """One turn of a dialogue. right: colours it green or red; None leaves it grey."""
    mark = {True: " right", False: " wrong", None: ""}[right]
    inner = f'<div class="thought">{escape(thought)}</div>' if thought else ""
    return (
        f'<div class="said{mark}"><div class="who">{escape(who)}</div>{inner}'
        f"<div>{escape(text)}</div></div>"
    )


def picture(png: Path, caption: str) -> str:
    """A PNG file, embedded."""
    data = base64.b64encode(png.read_bytes()).decode()
    return (
        f'<figure><img alt="{escape(caption)}" src="data:image/png;base64,{data}">'
        f"<figcaption>{escape(caption)}</figcaption></figure>"
    )


def drawing(svg: str, caption: str) -> str:
    """An SVG picture; its markup goes in as it is."""
    return f"<figure>{svg}<figcaption>{escape(caption)}</figcaption></figure>"


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """The same table in Markdown."""
    lines = [list(header), ["---"] * len(header), *([str(cell) for cell in row] for row in rows)]
    return "\n".join(
        "| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines
    )


def text_table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """The same table for a terminal: columns as wide as they need."""
    cells = [list(header), *([str(cell) for cell in row] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return "\n".join(
        "  " + "  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip()
        for row in cells
    )
