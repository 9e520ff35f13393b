"""Check every shard of a corpus against its index: sizes, hashes, counts, tokens within the vocabulary; its tokenizer.

All problems are listed, not only the first; exit 1 when there is one.
"""

import argparse
from collections.abc import Callable, Sequence
from typing import Any, ParamSpec, TypeVar

from ado_stream.cli.shared import add_corpus_argument
from ado_stream.corpus.checker import Checker, open_checker
from ado_stream.corpus.corpus import open_corpus
from ado_stream.errors import AdoStreamError
from ado_stream.visible import show, show_json

_P = ParamSpec("_P")
_R = TypeVar("_R")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's options."""
    add_corpus_argument(parser)
    parser.add_argument("--json", action="store_true", help="print the counts and problems as JSON")


def run(args: argparse.Namespace) -> int:
    """Runs the verb; 1 when there is a problem."""
    problems: list[str] = []
    checker = open_checker(args.corpus)
    _collect(problems, open_corpus, args.corpus)  # the tokenizer
    num_shards = _check_shards(checker, problems)
    if args.json:
        show_json({"shards": num_shards, "problems": problems})
    else:
        for problem in problems:
            show(problem, error=True)
        show(f"{num_shards} shards checked, {len(problems) or 'no'} problem{'' if len(problems) == 1 else 's'}")
    return bool(problems)


def _check_shards(checker: Checker, problems: list[str]) -> int:
    """Checks everything; adds to `problems`; returns the number of shards checked."""
    num_shards = 0
    entries: dict[str, dict[str, Sequence[Any]]] = {domain: {} for domain in checker.manifest["domains"]}
    for domain, split in checker.splits():
        entries[domain][split] = _collect(problems, checker.index, domain, split) or []
        for entry in entries[domain][split]:
            num_shards += 1
            _collect(problems, checker.shard, domain, split, entry)
    for domain in entries:
        _collect(problems, checker.check_fingerprint, domain, entries[domain])
    return num_shards


def _collect(problems: list[str], check: Callable[_P, _R], *args: _P.args, **kwargs: _P.kwargs) -> _R | None:
    """What `check` returns, or None after adding its error to `problems`."""
    try:
        return check(*args, **kwargs)
    except AdoStreamError as error:
        problems.append(f"{type(error).__name__}: {error}")
        return None
