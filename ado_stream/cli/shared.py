"""What several verbs share: arguments, options checked before anything is computed, tables and JSON."""

import argparse
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ado_stream.errors import ConfigError
from ado_stream.visible import visible, visible_json


def add_corpus_argument(parser: argparse.ArgumentParser) -> None:
    """CORPUS, a prepared corpus."""
    parser.add_argument(
        "corpus", metavar="CORPUS", help="folder or URL that `ado-stream prepare` wrote, or corpus.yaml"
    )


def add_trained_run_argument(parser: argparse.ArgumentParser) -> None:
    """RUN, a run with a checkpoint."""
    parser.add_argument("run", metavar="RUN", help="run_dir of a training run; its newest complete checkpoint is used")


def check_positive(option: str, value: int) -> None:
    """Raises ConfigError when the value of `option` is less than 1."""
    if value < 1:
        raise ConfigError(f"{option} must be 1 or more, got {value}")


def policy_options(words: list[str]) -> dict[str, Any]:
    """{key: value} of ["tau=3", "weights={web: 1, code: 2}", "fit.every=5"]; values as YAML. Raises ConfigError."""
    from omegaconf import OmegaConf
    from yaml import YAMLError

    for word in words:
        if not word.partition("=")[1] or word.startswith("="):
            raise ConfigError(f"--option {word!r}: expected KEY=VALUE, for example --option start_step=500.")
    try:
        options = OmegaConf.to_container(OmegaConf.from_dotlist(words))
    except YAMLError as error:
        raise ConfigError(f"--option {words}: not KEY=VALUE in YAML ({' '.join(str(error).split())}).") from None
    assert isinstance(options, dict)
    return {str(key): value for key, value in options.items()}


def picture_path(path: str | Path) -> Path:
    """The path of --plot FILE. Raises ConfigError when it cannot be written or is not a picture's."""
    path = Path(path)
    if not path.parent.is_dir() or not os.access(path.parent, os.W_OK):
        raise ConfigError(f"--plot {path}: the folder {path.parent} does not exist or cannot be written.")
    if path.is_dir() or path.suffix not in (".png", ".pdf", ".svg"):
        raise ConfigError(f"--plot {path}: expected a file that ends in .png, .pdf or .svg.")
    return path


def is_main_rank() -> bool:
    """Whether this process is the one of torchrun's that prints."""
    return os.environ.get("RANK", "0") == "0"


def print_json(value: object) -> None:
    """`value` on one line of standard output."""
    print(visible_json(value))


def table_text(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """The lines of a table without a final newline: first column to the left, the others to the right.

    A cell is one line, and `visible`.
    """
    lines = [[visible(cell).replace("\n", "\\n").replace("\t", "\\t") for cell in line] for line in (header, *rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join([first.ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(rest, widths[1:], strict=True))])
        for first, *rest in lines
    )
