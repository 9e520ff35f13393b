"""Show decoded samples of every domain of a corpus, the first batches under a mixture, or a step of a recorded run.

Samples are spread evenly over the corpus. Batches are those of a training run with the same batch size and seed, one
canonical node and this mixture throughout. A step of a run is drawn again from its recorded mixtures: the same samples.
"""

import argparse
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import replace

from ado_stream.cli.shared import announce, show_sample
from ado_stream.cli.trace import show_step
from ado_stream.corpus import Corpus, open_corpus
from ado_stream.corpus.checker import Checker, open_checker
from ado_stream.corpus.manifest import SPLITS
from ado_stream.errors import ConfigError
from ado_stream.option_checks import known_name, optional, whole
from ado_stream.value_types import Array, JsonObject
from ado_stream.visible import show_json

ONLY_WITH = {"--batches": ("--batch-size", "--mixture", "--seed")}
NOT_WITH = {"--batches": ("--domain", "--samples"), "--step": ("--batches", "--domain", "--samples", "--split")}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's options."""
    parser.add_argument("corpus", metavar="CORPUS|RUN", help="a prepared corpus; with --step a run's directory")
    parser.add_argument("--step", type=int, metavar="N", help="the samples of the run's step N, as `trace` shows")
    parser.add_argument("--domain", action="append", metavar="NAME", help="only this domain; may be repeated")
    parser.add_argument("--split", choices=SPLITS, default="train")
    parser.add_argument("--samples", type=int, default=2, metavar="N", help="samples of each domain (2)")
    parser.add_argument("--characters", type=int, default=300, metavar="N", help="of each sample; 0 for all (300)")
    parser.add_argument("--batches", type=int, metavar="N", help="show the first N batches instead")
    parser.add_argument("--batch-size", type=int, default=8, metavar="B", help="samples of a batch (8)")
    parser.add_argument("--mixture", metavar="NAME=WEIGHT,...", help="of the batches (by number of tokens)")
    parser.add_argument("--seed", type=int, default=17, help="of the batches (17)")
    parser.add_argument("--json", action="store_true", help="print one JSON object per sample")


def run(args: argparse.Namespace) -> None:
    """Runs the verb."""
    for option, value in (("--samples", args.samples), ("--batches", args.batches), ("--batch-size", args.batch_size)):
        optional(whole, option, value, 1)
    whole("--characters", args.characters)
    if args.step is not None:
        show_step(args.corpus, args.step, args.characters, args.json)
        return
    corpus = open_corpus(args.corpus, args.split)
    samples = _samples(args, corpus) if args.batches is None else _batches(args, corpus)
    for place, tokens in samples:
        text = corpus.tokenizer.decode(tokens)
        if args.json:
            show_json(place, text=text)
            continue
        title = ", ".join(str(value) if key == "domain" else f"{key} {value}" for key, value in place.items())
        show_sample(f"{title}, {len(tokens)} tokens", text, args.characters)


def _samples(args: argparse.Namespace, corpus: Corpus) -> Iterator[tuple[JsonObject, Array]]:
    """(place, tokens) of some samples of every requested domain."""
    names = [domain.name for domain in corpus.domains]
    for name in args.domain or []:
        known_name("domain", name, names, f"split {args.split!r}: ")
    checker = open_checker(args.corpus)
    for name in args.domain or names:
        for number, tokens in _spread(checker, name, args.split, args.samples):
            yield {"domain": name, "sample": number}, tokens


def _batches(args: argparse.Namespace, corpus: Corpus) -> Iterator[tuple[JsonObject, Array]]:
    """(place, tokens) of every sample of the first batches."""
    domains = corpus.domains
    if args.mixture is not None:
        weights = _weights(args.mixture, [domain.name for domain in domains], args.split)
        domains = [replace(domain, prior=weights.get(domain.name, 0.0)) for domain in domains]
    announce(f"drawing {args.batches} batches of {args.corpus}")
    from ado_stream.stream.dataset import AdaptiveStreamingDataset  # imports torch

    dataset = AdaptiveStreamingDataset(domains, args.batch_size, args.seed, mixture_lag=None, seq_len=corpus.seq_len)
    try:
        for batch in itertools.islice(dataset, args.batches):
            rows = zip(batch["domain"].tolist(), batch["tokens"].numpy(), strict=True)
            for slot, (domain, tokens) in enumerate(rows):
                yield {"step": batch["step"], "slot": slot, "domain": dataset.names[domain]}, tokens
    finally:
        dataset.close()


def _weights(mixture: str, names: Sequence[str], split: str) -> dict[str, float]:
    weights = {}
    for part in mixture.split(","):
        name, _, weight = part.rpartition("=")
        try:
            weights[name] = float(weight)
        except ValueError as error:
            raise ConfigError(f"--mixture: {part!r}; expected NAME=WEIGHT, as in code=0.7,wiki=0.3.") from error
        known_name("domain", name, names, f"split {split!r}: ")
    return weights


def _spread(checker: Checker, domain: str, split: str, num_samples: int) -> Iterator[tuple[int, Array]]:
    """(number, tokens) of `num_samples` samples, evenly spaced; only the shards that hold one are read."""
    entries = checker.index(domain, split)
    ends = list(itertools.accumulate(entry["samples"] for entry in entries))
    num_samples = min(num_samples, ends[-1])
    wanted = [(2 * i + 1) * ends[-1] // (2 * num_samples) for i in range(num_samples)]
    for entry, end in zip(entries, ends, strict=True):
        first = end - entry["samples"]
        inside = [number for number in wanted if first <= number < end]
        if inside:
            shard = checker.shard(domain, split, entry)
            yield from ((number, shard[number - first]) for number in inside)
