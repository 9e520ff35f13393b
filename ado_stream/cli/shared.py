"""What several verbs share: arguments, options checked before anything is computed, tables and JSON."""

import argparse
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ado_stream.errors import ConfigError
from ado_stream.visible import one_line, show

if TYPE_CHECKING:
    from ado_stream.report.run_data import Run


def add_corpus_argument(parser: argparse.ArgumentParser) -> None:
    """CORPUS, a prepared corpus."""
    parser.add_argument(
        "corpus", metavar="CORPUS", help="folder or URL that `ado-stream prepare` wrote, or corpus.yaml"
    )


def add_trained_run_argument(parser: argparse.ArgumentParser) -> None:
    """RUN, a run with a checkpoint."""
    parser.add_argument("run", metavar="RUN", help="run_dir of a training run; its newest complete checkpoint is used")


def picture_path(path: str | Path) -> Path:
    """The path of --plot FILE. Raises ConfigError when it cannot be written or is not a picture's."""
    path = Path(path)
    if not path.parent.is_dir() or not os.access(path.parent, os.W_OK):
        raise ConfigError(f"--plot {path}: the folder {path.parent} does not exist or cannot be written.")
    if path.is_dir() or path.suffix not in (".png", ".pdf", ".svg"):
        raise ConfigError(f"--plot {path}: expected a file that ends in .png, .pdf or .svg.")
    return path


def load_one_run(path: str) -> "Run":
    """The recorded run in a directory. Raises ConfigError when it holds several, and as `load_runs`."""
    from ado_stream.report.run_data import load_runs

    run, *others = load_runs([path])
    if others:
        raise ConfigError(f"{path} holds {1 + len(others)} runs; name one of them, such as {run.path}.")
    return run


def is_main_rank() -> bool:
    """Whether this process is the one of torchrun's that prints."""
    return os.environ.get("RANK", "0") == "0"


def announce(text: str) -> None:
    """Says on standard error what the verb does, before it imports or computes for seconds."""
    if is_main_rank():
        show(f"{text} ...", error=True)


def show_sample(title: str, text: str, characters: int) -> None:
    """Prints a sample's title and the first `characters` of its text; 0: all of it."""
    shown = text[: characters or None]
    show(f"--- {one_line(title)}\n{shown}{'' if shown == text else ' ...'}\n")


def table_text(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """The lines of a table without a final newline: first column to the left, the others to the right.

    A cell is one line, and `visible`.
    """
    lines = [[one_line(cell) for cell in line] for line in (header, *rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join([first.ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(rest, widths[1:], strict=True))])
        for first, *rest in lines
    )
