"""HTML pieces of the report: escaping, tables, figures, the page around them. No script, no network, no font file."""

import base64
import html
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ado_stream.visible import visible

CSS = """
:root { color-scheme: light dark; --ink: #1c1f24; --soft: #5d6673; --line: #e3e6ea; --wash: #f6f7f9; --paper: #fff;
  --lower: #0a6b4b; --higher: #a33a12; }
@media screen and (prefers-color-scheme: dark) {
  :root { --ink: #e6e8eb; --soft: #a3acb9; --line: #2f343c; --wash: #1e2126; --paper: #141414; --lower: #57c9a1;
    --higher: #f0926c; }
  figure img, .swatch { filter: invert(.922) hue-rotate(180deg); }  /* white becomes the paper, hues stay */
}
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 3rem 1.5rem 5rem; max-width: 1080px; background: var(--paper); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", "DejaVu Sans", sans-serif; }
h1 { font-size: 2rem; line-height: 1.2; letter-spacing: -0.015em; margin: 0 0 .4rem; }
h2 { font-size: 1.2rem; letter-spacing: -0.005em; margin: 3rem 0 .6rem; }
p { margin: .5rem 0; max-width: 52rem; }
.soft, figcaption { color: var(--soft); }
.verdict { background: var(--wash); border-left: 4px solid var(--ink); padding: .9rem 1.2rem; margin: 1.6rem 0; }
.verdict strong { font-size: 1.1rem; }
.verdict ul { margin: .4rem 0 0; padding-left: 1.1rem; color: var(--soft); font-size: .92rem; }
figure { margin: 0; }
figure img { width: 100%; height: auto; display: block; margin-top: .6rem; }
figcaption { font-size: .95rem; max-width: 52rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; width: 100%; }
th, td { padding: .32rem .7rem; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap; }
th { font-weight: 600; color: var(--soft); border-bottom: 1.5px solid #9aa2ad; vertical-align: bottom; }
th:first-child, td:first-child { text-align: left; padding-left: 0; }
table.facts td { text-align: left; white-space: normal; overflow-wrap: anywhere; vertical-align: top; }
table.facts td:first-child { color: var(--soft); white-space: nowrap; }
table.facts th { text-align: left; }
tr.total td { font-weight: 600; }
tr.first-total td { border-top: 1.5px solid #9aa2ad; }
.swatch { display: inline-block; width: .7em; height: .7em; border-radius: 2px; margin-right: .55em; }
code, pre { font: .86rem/1.5 ui-monospace, "SFMono-Regular", Menlo, Consolas, "DejaVu Sans Mono", monospace; }
pre { background: var(--wash); padding: .8rem 1rem; overflow-x: auto; }
.lower { color: var(--lower); } .higher { color: var(--higher); }
@media print { body { padding: 0; max-width: none; } figure, table { break-inside: avoid; } }
"""


@dataclass(frozen=True)
class Cell:
    """A table cell's text with an optional CSS class and a colour swatch before it."""

    text: str
    kind: str = ""
    swatch: str = ""


def text(value: object) -> str:
    """`value` escaped for HTML, what cannot be seen spelled out."""
    return html.escape(visible(str(value)))


def table(header: Sequence[str], rows: Iterable[Sequence[str | Cell]], kind: str = "", num_total: int = 0) -> str:
    """A table; its last `num_total` rows are styled as totals."""
    rows = list(rows)
    head = "".join(f"<th>{text(name)}</th>" for name in header)
    body = []
    for number, row in enumerate(rows):
        total = number - (len(rows) - num_total)
        mark = "" if total < 0 else ' class="total first-total"' if total == 0 else ' class="total"'
        body.append(f"<tr{mark}>{''.join(map(_cell, row))}</tr>")
    return (
        f'<div class="scroll"><table class="{kind}"><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(body)}</tbody></table></div>"
    )


def _cell(cell: str | Cell) -> str:
    if isinstance(cell, str):
        return f"<td>{text(cell)}</td>"
    kind = f' class="{cell.kind}"' if cell.kind else ""
    swatch = f'<span class="swatch" style="background:{cell.swatch}"></span>' if cell.swatch else ""
    return f"<td{kind}>{swatch}{text(cell.text)}</td>"


def section(title: str, *parts: str) -> str:
    """A heading and the parts under it."""
    return f"<section><h2>{text(title)}</h2>{''.join(parts)}</section>"


def table_section(title: str, note: str, table_html: str) -> str:
    """A section of one table with a note above it."""
    return section(title, paragraph(note, "soft"), table_html)


def picture(title: str, caption: str, png: bytes) -> str:
    """A section with one inlined PNG; the caption is its alternative text too."""
    data = base64.b64encode(png).decode()
    image = f'<img alt="{text(caption)}" src="data:image/png;base64,{data}">'
    return section(title, f"<figure><figcaption>{text(caption)}</figcaption>{image}</figure>")


def paragraph(sentence: str, kind: str = "") -> str:
    """A paragraph of plain text."""
    return f'<p class="{kind}">{text(sentence)}</p>' if kind else f"<p>{text(sentence)}</p>"


def verdict(headline: str, sentences: Sequence[str], notes: Sequence[str]) -> str:
    """The box at the top: headline, findings, and caveats."""
    listed = "".join(f"<li>{text(note)}</li>" for note in notes)
    return (
        f'<div class="verdict"><strong>{text(headline)}</strong>'
        f"{''.join(map(paragraph, sentences))}{f'<ul>{listed}</ul>' if listed else ''}</div>"
    )


def page(title: str, body: Iterable[str]) -> str:
    """A whole HTML document."""
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{text(title)}</title>'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{CSS}</style></head>\n'
        f"<body>{chr(10).join(body)}</body></html>\n"
    )
