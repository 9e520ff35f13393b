"""Sphinx: pages in Markdown, reference from docstrings. `make docs` builds it in build/docs; a warning is an error."""

import argparse
import os
import re

import ado_stream
from ado_stream.cli.main import VERBS, verb_parser

project = "ado-stream"
copyright = "ado-stream maintainers"
release = ado_stream.__version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
myst_enable_extensions = ["attrs_inline"]
myst_heading_anchors = 3
highlight_language = "text"  # of indented blocks: formulas and drawings
default_role = "code"  # docstrings quote code as Markdown does
autodoc_typehints = "none"  # docstrings give shapes, dtypes and units
autodoc_member_order = "bysource"
autodoc_mock_imports = ["lightning", "transformers"]  # of the adapters; heavy, and not in the extra `docs`
html_theme = "furo"
html_title = f"ado-stream {release}"


def _pictures(_app, _page, source):
    """GitHub's picture of two themes as the theme's two: its switch, not only the system's, chooses."""
    picture = r'<picture><source media=".+?" srcset="(.+?)">\s*<img alt="(.+?)"\s+src="(.+?)"></picture>'

    def pair(found):
        dark, alt, light = (" ".join(part.split()) for part in found.groups())
        return f"![{alt}]({light}){{.only-light}}\n![{alt}]({dark}){{.only-dark}}"

    source[0] = re.sub(picture, pair, source[0], flags=re.DOTALL)


def _verbs(_app, page, source):
    """The help of every verb, on the page of the command line."""
    if page != "cli":
        return
    os.environ["COLUMNS"] = "110"
    for verb, (purpose, _) in VERBS.items():
        parser, _ = verb_parser(verb, argparse.ArgumentParser, prog=f"ado-stream {verb}")
        source[0] += f"\n## {verb}\n\n{purpose[0].upper()}{purpose[1:]}.\n\n```text\n{parser.format_help()}```\n"


def _whole_first_line(_app, what, _name, _object, _options, lines):
    """Keeps napoleon from taking "(K,) float64: the prior" of a property for its type and its text."""
    if what in ("attribute", "property"):
        lines[:0] = ["..", ""]  # an empty comment: napoleon splits the first line


def setup(app):
    app.connect("autodoc-process-docstring", _whole_first_line, priority=1)  # before napoleon
    app.connect("source-read", _pictures)
    app.connect("source-read", _verbs)
