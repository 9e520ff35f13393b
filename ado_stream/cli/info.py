"""Show what a prepared corpus holds: documents, bytes, tokens and samples of every domain."""

import argparse

from ado_stream.cli.shared import add_corpus_argument, print_json, table_text
from ado_stream.corpus import load_manifest
from ado_stream.corpus.manifest import Manifest, num_samples
from ado_stream.visible import visible


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's options."""
    add_corpus_argument(parser)
    parser.add_argument("--json", action="store_true", help="print corpus.json")


def run(args: argparse.Namespace) -> None:
    """Runs the verb."""
    print_corpus(load_manifest(args.corpus), args.json)


def print_corpus(manifest: Manifest, as_json: bool) -> None:
    """corpus.json, or a table of the domains, largest first, and a line about the whole corpus."""
    if as_json:
        print_json(manifest)
        return
    domains = manifest["domains"]
    train_tokens = {
        name: domain["splits"]["train"]["tokens"] if "train" in domain["splits"] else 0
        for name, domain in domains.items()
    }
    total_tokens = sum(train_tokens.values())
    rows = [
        [
            name,
            f"{domains[name]['documents']:,}",
            f"{domains[name]['bytes'] / 1e6:,.2f}",
            f"{train_tokens[name]:,}",
            f"{num_samples(domains[name], 'train'):,}",
            f"{train_tokens[name] / max(1, total_tokens):.2%}",
            f"{num_samples(domains[name], 'val'):,}",
        ]
        for name in sorted(train_tokens, key=lambda name: -train_tokens[name])
    ]
    print(table_text(("domain", "documents", "MB", "train tokens", "train samples", "share", "val samples"), rows))
    documents = sum(domain["documents"] for domain in domains.values())
    text_bytes = sum(domain["bytes"] for domain in domains.values())
    print(
        f"{len(domains)} domains, {documents:,} documents, {text_bytes / 1e6:,.1f} MB of text, "
        f"{total_tokens:,} training tokens; tokenizer {visible(manifest['tokenizer'])}, "
        f"vocabulary {manifest['vocab_size']:,}, samples of {manifest['seq_len'] + 1} tokens"
    )
    if manifest.get("val_in_train"):
        print(
            f"{manifest['val_in_train']:,} validation documents have exactly the text of a training document; "
            "to leave those out, prepare with --drop-duplicates-of-val"
        )
    for reason, count in manifest.get("refused", {}).items():
        num_bytes = manifest.get("refused_bytes", {}).get(reason)
        print(f"left out: {count:,} x {visible(reason)}{f' ({num_bytes:,} bytes)' if num_bytes else ''}")
