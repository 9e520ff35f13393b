"""Check every shard of a corpus against its index: sizes, hashes, counts, and that every token is in the vocabulary.

All problems are listed, not only the first; exit 1 when there is one.
"""

import argparse
import json
import sys
from collections.abc import Callable
from typing import Any

from ado_stream.corpus.checker import CorpusChecker
from ado_stream.corpus.manifest import MANIFEST_NAME, domain_fingerprint
from ado_stream.corpus.mds import HASH
from ado_stream.errors import AdoStreamError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's options."""
    parser.add_argument("corpus", metavar="CORPUS", help="folder or URL that `ado-stream prepare` wrote")
    parser.add_argument("--json", action="store_true", help="print the counts and problems as JSON")


def run(args: argparse.Namespace) -> int:
    """Runs the verb; 1 when there is a problem."""
    reader = CorpusChecker(args.corpus)
    problems: list[str] = []
    num_shards = _check_shards(reader, problems)
    if args.json:
        print(json.dumps({"shards": num_shards, "problems": problems}, ensure_ascii=False))
        return bool(problems)
    for problem in problems:
        print(problem, file=sys.stderr)
    print(f"{num_shards} shards checked, {len(problems) or 'no'} problem{'' if len(problems) == 1 else 's'}")
    return bool(problems)


def _check_shards(reader: CorpusChecker, problems: list[str]) -> int:
    """Checks everything; adds to `problems`; returns the number of shards looked at."""
    num_shards = 0
    hashes: dict[str, dict[str, list[str]]] = {domain: {} for domain in reader.manifest["domains"]}
    for domain, split in reader.splits():
        entries = _noting(problems, reader.index, domain, split) or []
        hashes[domain][split] = [entry["raw_data"]["hashes"].get(HASH) for entry in entries]
        for entry in entries:
            num_shards += 1
            _noting(problems, reader.shard, domain, split, entry)
    for domain, fields in reader.manifest["domains"].items():
        if domain_fingerprint(hashes[domain]) != fields.get("fingerprint"):
            problems.append(
                f"IndexInvalid: domain {domain!r}: its shards are not those that {MANIFEST_NAME} was written for."
            )
    return num_shards


def _noting(problems: list[str], check: Callable[..., Any], *arguments: Any) -> Any:
    """What `check` returns, or None and its error noted."""
    try:
        return check(*arguments)
    except AdoStreamError as error:
        problems.append(f"{type(error).__name__}: {error}")
        return None
