"""Show decoded samples of every domain of a corpus, spread evenly over it."""

import argparse
import itertools
import json
from collections.abc import Iterator

import numpy as np

from ado_stream.errors import ConfigError
from ado_stream.prepare.manifest import SPLITS
from ado_stream.prepare.reading import CorpusReader


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("corpus", metavar="CORPUS", help="folder or URL that `ado-stream prepare` wrote")
    parser.add_argument("--domain", action="append", metavar="NAME", help="only this domain; may be repeated")
    parser.add_argument("--split", choices=SPLITS, default="train")
    parser.add_argument("--samples", type=int, default=2, metavar="N", help="samples of each domain (2)")
    parser.add_argument("--characters", type=int, default=300, metavar="N", help="of each sample; 0 for all (300)")
    parser.add_argument("--json", action="store_true", help="one JSON object a sample")


def run(args: argparse.Namespace) -> None:
    from ado_stream.corpus import open_corpus

    corpus = open_corpus(args.corpus, args.split)
    reader = CorpusReader(args.corpus)
    names = [domain.name for domain in corpus.domains]
    for name in args.domain or []:
        if name not in names:
            raise ConfigError(f"no domain {name!r} in split {args.split!r}; there are: {', '.join(names)}.")
    for name in args.domain or names:
        for number, tokens in _samples(reader, name, args.split, args.samples):
            text = corpus.tokenizer.decode(tokens)
            if args.json:
                print(json.dumps({"domain": name, "sample": number, "text": text}, ensure_ascii=False))
            else:
                shown = text[: args.characters or None]
                print(f"--- {name}, sample {number}, {len(tokens)} tokens\n{shown}{'' if shown == text else ' ...'}\n")


def _samples(reader: CorpusReader, domain: str, split: str, num_samples: int) -> Iterator[tuple[int, np.ndarray]]:
    """(number, tokens) of `num_samples` samples, evenly spaced; only the shards that hold one are read."""
    entries = reader.index(domain, split)
    ends = list(itertools.accumulate(entry["samples"] for entry in entries))
    wanted = sorted({(2 * i + 1) * ends[-1] // (2 * num_samples) for i in range(num_samples)})
    for entry, end in zip(entries, ends, strict=True):
        first = end - entry["samples"]
        inside = [number for number in wanted if first <= number < end]
        if inside:
            shard = reader.shard(domain, split, entry)
            yield from ((number, shard[number - first]) for number in inside)
