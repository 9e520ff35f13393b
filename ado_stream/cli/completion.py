"""Print a completion script for a shell: the verbs, their options and files.

bash: `ado-stream completion bash > ~/.local/share/bash-completion/completions/ado-stream`; zsh: as `_ado-stream` in a
folder of $fpath.
"""

import argparse
import sys

from ado_stream.errors import ConfigError

FILES = ("inputs", "corpus", "config", "run", "runs", "losses", "spec", "out", "plot", "val")  # that are paths


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's options."""
    parser.add_argument("shell", choices=["bash", "zsh"])


def run(args: argparse.Namespace) -> None:
    """Prints the script that shtab makes of all verbs' parsers."""
    from ado_stream.cli.main import VERBS, verb_parser

    try:
        import shtab
    except ImportError:
        raise ConfigError("completion needs the package shtab: pip install 'ado-stream[completion]'.") from None
    parser = argparse.ArgumentParser(prog="ado-stream")
    verbs = parser.add_subparsers()
    for name, (purpose, _) in VERBS.items():
        verb, _ = verb_parser(name, verbs.add_parser, name, help=purpose)
        for action in verb._actions:
            if action.dest in FILES:
                action.complete = shtab.FILE  # type: ignore[attr-defined]
    sys.stdout.write(shtab.complete(parser, args.shell) + "\n")
