"""HTML pieces of the report: escaping, tables, figures, the page around them. No network, no font file."""

import html
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ado_stream.visible import visible

CSS = """
:root { color-scheme: light dark; --ink: #1c1f24; --soft: #5d6673; --line: #e3e6ea; --wash: #f6f7f9; --paper: #fff;
  --lower: #0a6b4b; --higher: #a33a12; }
@media screen and (prefers-color-scheme: dark) {
  :root { --ink: #e6e8eb; --soft: #a3acb9; --line: #2f343c; --wash: #1e2126; --paper: #141414; --lower: #57c9a1;
    --higher: #f0926c; }
  figure svg, .swatch { filter: invert(.922) hue-rotate(180deg); }  /* white becomes the paper, hues stay */
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
figure { margin: 0; overflow-x: auto; }
figure svg { width: 100%; min-width: 46rem; height: auto; display: block; margin-top: .6rem; }
svg [data-d]:not([data-d=""]), tr[data-d], th { cursor: pointer; }
th[aria-sort=descending]::after { content: " ↓"; } th[aria-sort=ascending]::after { content: " ↑"; }
#tip { position: fixed; z-index: 1; pointer-events: none; max-width: 22rem; padding: .2rem .5rem; font-size: .85rem;
  background: var(--ink); color: var(--paper); border-radius: 3px; overflow-wrap: anywhere; }
#tip[hidden], button[hidden] { display: none; }
nav { font-size: .92rem; columns: 16rem; margin: 1rem 0; } nav a { display: block; color: inherit; }
.domains { max-height: 9rem; overflow-y: auto; margin: .6rem 0; }
.domains button { font: inherit; font-size: .88rem; color: inherit; background: var(--wash);
  border: 1px solid var(--line); border-radius: 3px; margin: .15rem .3rem .15rem 0; cursor: pointer; max-width: 100%;
  overflow-wrap: anywhere; }
input { font: inherit; padding: .15rem .5rem; max-width: 100%; }
figcaption { font-size: .95rem; max-width: 52rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; width: 100%; }
th, td { padding: .32rem .7rem; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap; }
th { font-weight: 600; color: var(--soft); border-bottom: 1.5px solid #9aa2ad; vertical-align: bottom;
  white-space: normal; }
th:first-child, td:first-child { text-align: left; padding-left: 0; }
td.prose, table:has(td.prose) th:last-child { text-align: left; white-space: normal; }
table.facts td { text-align: left; min-width: 9rem; white-space: normal; overflow-wrap: anywhere; vertical-align: top; }
table.facts td:first-child { color: var(--soft); white-space: nowrap; }
table.facts th { text-align: left; }
tr.total td { font-weight: 600; }
tr.first-total td { border-top: 1.5px solid #9aa2ad; }
.swatch { display: inline-block; width: .7em; height: .7em; border-radius: 2px; margin-right: .55em; }
code, pre { font: .86rem/1.5 ui-monospace, "SFMono-Regular", Menlo, Consolas, "DejaVu Sans Mono", monospace; }
pre { background: var(--wash); padding: .8rem 1rem; overflow-x: auto; }
.lower { color: var(--lower); } .higher { color: var(--higher); }
@media (max-width: 600px) { body { padding: 1.2rem .9rem 3rem; } h1 { font-size: 1.5rem; overflow-wrap: anywhere; } }
@media print { body { padding: 0; max-width: none; } figure, table { break-inside: avoid; } }
"""
SCRIPT = (Path(__file__).parent / "page.js").read_text()


@dataclass(frozen=True)
class Cell:
    """A table cell's text with an optional CSS class and a colour swatch before it; domain: the number of its row's."""

    text: str
    kind: str = ""
    swatch: str = ""
    domain: int | None = None


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
        domain = row[0].domain if isinstance(row[0], Cell) else None
        mark += "" if domain is None else f' data-d="{domain}"'
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
    return f'<section id="{_anchor(title)}"><h2>{text(title)}</h2>{"".join(parts)}</section>'


def _anchor(title: str) -> str:
    return "s-" + re.sub(r"[^a-zA-Z0-9]+", "-", title)


def contents(titles: Iterable[str], colors: dict[str, str]) -> str:
    """Links to the sections, and a button for each domain, which shows it alone; with a search where there are many."""
    links = "".join(f'<a href="#{_anchor(title)}">{text(title)}</a>' for title in titles)
    buttons = "".join(
        f'<button data-d="{number}"><span class="swatch" style="background:{color}"></span>{text(name)}</button>'
        for number, (name, color) in enumerate(colors.items())
    )
    search = '<input id="search" type="search" placeholder="find a domain" aria-label="find a domain">'
    return f'<nav>{links}</nav>{search if len(colors) > 12 else ""}<div class="domains">{buttons}</div>'


def table_section(title: str, note: str, table_html: str) -> str:
    """A section of one table with a note above it."""
    return section(title, paragraph(note, "soft"), table_html)


def picture(title: str, caption: str, svg: str) -> str:
    """A section with one figure."""
    return section(title, f"<figure><figcaption>{text(caption)}</figcaption>{svg}</figure>")


def listed(sentences: Iterable[str]) -> str:
    """A list of sentences."""
    return f"<ul>{''.join(f'<li>{text(each)}</li>' for each in sentences)}</ul>"


def paragraph(sentence: str, kind: str = "") -> str:
    """A paragraph of plain text."""
    return f'<p class="{kind}">{text(sentence)}</p>' if kind else f"<p>{text(sentence)}</p>"


def verdict(headline: str, sentences: Sequence[str], notes: Sequence[str]) -> str:
    """The box at the top: headline, findings, and caveats."""
    return (
        f'<div class="verdict"><strong>{text(headline)}</strong>'
        f"{''.join(map(paragraph, sentences))}{listed(notes) if notes else ''}</div>"
    )


def page(title: str, body: Iterable[str], live: bool = False) -> str:
    """A whole HTML document. live: it asks its server for changes."""
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{text(title)}</title>'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{CSS}</style></head>\n'
        f'<body{" data-live" if live else ""}><main>{chr(10).join(body)}</main><div id="tip" hidden></div>\n'
        f"<script>{SCRIPT}</script></body></html>\n"
    )
