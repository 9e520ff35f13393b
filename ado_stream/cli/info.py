"""Show what a prepared corpus holds: documents, bytes, tokens and samples of every domain."""

import argparse
import json

from ado_stream.cli.options import table_text
from ado_stream.corpus import load_manifest
from ado_stream.corpus.manifest import Manifest, num_samples


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's options."""
    parser.add_argument("corpus", metavar="CORPUS", help="folder or URL that `ado-stream prepare` wrote")
    parser.add_argument("--json", action="store_true", help="print corpus.json")


def run(args: argparse.Namespace) -> None:
    """Runs the verb."""
    manifest = load_manifest(args.corpus)
    if args.json:
        print(json.dumps(manifest, ensure_ascii=False))
    else:
        print_sizes(manifest)


def print_sizes(manifest: Manifest) -> None:
    """A table of the corpus' domains, largest first, and a line about all of it."""
    train_tokens = {name: domain["splits"]["train"]["tokens"] for name, domain in manifest["domains"].items()}
    total_tokens = sum(train_tokens.values())
    rows = []
    for name in sorted(train_tokens, key=lambda name: -train_tokens[name]):
        domain = manifest["domains"][name]
        rows.append(
            [
                name,
                f"{domain['documents']:,}",
                f"{domain['bytes'] / 1e6:,.2f}",
                f"{train_tokens[name]:,}",
                f"{domain['splits']['train']['samples']:,}",
                f"{train_tokens[name] / total_tokens:.2%}",
                f"{num_samples(domain, 'val'):,}",
            ]
        )
    print(table_text(("domain", "documents", "MB", "train tokens", "train samples", "share", "val samples"), rows))
    documents = sum(domain["documents"] for domain in manifest["domains"].values())
    text_bytes = sum(domain["bytes"] for domain in manifest["domains"].values())
    print(
        f"{len(train_tokens)} domains, {documents:,} documents, {text_bytes / 1e6:,.1f} MB of text, "
        f"{total_tokens:,} training tokens; tokenizer {manifest['tokenizer']}, vocabulary {manifest['vocab_size']:,}, "
        f"samples of {manifest['seq_len'] + 1} tokens"
    )
    for reason, count in manifest.get("refused", {}).items():
        print(f"left out: {count:,} x {reason}")
