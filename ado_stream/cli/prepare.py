"""Turn raw text into shards, one data set per domain and split, with corpus.json.

The same command resumes a run that was killed.
"""

import argparse
import os
from dataclasses import fields

from ado_stream.cli.info import print_corpus
from ado_stream.corpus import load_manifest
from ado_stream.corpus.manifest import JOIN, PACKINGS
from ado_stream.option_checks import number
from ado_stream.prepare.coordinator import prepare
from ado_stream.prepare.prepare_config import LOCAL, PrepareConfig
from ado_stream.visible import show


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's options."""
    parser.add_argument(
        "inputs",
        nargs="+",
        metavar="IN",
        help=".jsonl[.zst|.gz], .json, .txt, .parquet, .arrow files, folders of them, hf:NAME[:CONFIG[:SPLIT]]",
    )
    parser.add_argument("--out", required=True, metavar="DIR-or-URL", help="where the corpus goes")
    domain = parser.add_mutually_exclusive_group()
    domain.add_argument("--domain-key", metavar="KEY", help="dotted key of a record's domain: meta.pile_set_name")
    domain.add_argument(
        "--domain-from", choices=["folder"], default="folder", help="the domain is the first name below IN (default)"
    )
    parser.add_argument("--text-key", default="text", metavar="KEY", help="dotted key of a record's text (text)")
    parser.add_argument(
        "--tokenizer", default="bytes", help="bytes (default), bpe:N, or a Hugging Face tokenizer file, folder or name"
    )
    parser.add_argument(
        "--seq-len", type=int, default=1024, metavar="T", help="sequence length; a sample has one more (1024)"
    )
    val = parser.add_mutually_exclusive_group()
    val.add_argument("--val", nargs="+", default=[], metavar="IN", help="files or folders of validation text")
    val.add_argument("--val-fraction", type=float, default=0.0, metavar="F", help="of the documents, by hash (0)")
    parser.add_argument(
        "--drop-duplicates-of-val",
        action="store_true",
        help="leave out training documents that have exactly the text of a document of --val",
    )
    parser.add_argument(
        "--packing",
        choices=PACKINGS,
        default=JOIN,
        help="join: documents end to end (default); best-fit: whole where they fit, the rest of a sample padded",
    )
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)), help="processes (one per core)")
    parser.add_argument(
        "--executor",
        default=LOCAL,
        metavar="NAME",
        help="local (default), ray (the cluster of this machine or of RAY_ADDRESS), ray://HOST:PORT",
    )
    parser.add_argument(
        "--on-error", choices=["stop", "skip"], default="stop", help="unreadable records: stop (default) or skip"
    )
    parser.add_argument("--seed", type=int, default=17, help="of the sample that a BPE is trained on (17)")
    parser.add_argument("--shard-mb", type=float, default=16.0, metavar="MB", help="size of a raw shard in MiB (16)")
    parser.add_argument("--json", action="store_true", help="print corpus.json, and no progress bar")


def run(args: argparse.Namespace) -> None:
    """Runs the verb."""
    of_one_name = {field.name: getattr(args, field.name) for field in fields(PrepareConfig) if field.name in args}
    out = prepare(
        PrepareConfig(
            **of_one_name,
            val_frac=args.val_fraction,
            skip_errors=args.on_error == "skip",
            shard_bytes=round(number("--shard-mb", args.shard_mb, 0, 2048) * 2**20),
            progress=not args.json,
        )
    )
    print_corpus(load_manifest(out), args.json)
    if not args.json:
        show(f"written to {out}")
