"""A small real corpus through prepare, and an input far larger than the memory it may use."""

import json
import resource
import subprocess
import sys

import pytest
import zstandard

from ado_stream.corpus.checker import CorpusChecker
from ado_stream.prepare.coordinator import prepare
from ado_stream.prepare.prepare_config import PrepareConfig


def test_a_real_corpus_has_the_documents_that_its_manifest_counts(real_corpus, tmp_path):
    manifest = json.loads((real_corpus / "manifest.json").read_bytes())["domains"]
    prepare(
        PrepareConfig(
            inputs=tuple(map(str, sorted(real_corpus.glob("train-*.jsonl.zst")))),
            out=str(tmp_path / "out"),
            val=(str(real_corpus / "val.jsonl.zst"),),
            domain_key="meta.pile_set_name",
            tokenizer="bpe:8192",
            seq_len=256,
            workers=2,
        )
    )
    reader = CorpusChecker(tmp_path / "out")
    domains = reader.manifest["domains"]
    assert set(domains) == set(manifest)
    for name, counts in manifest.items():
        assert domains[name]["splits"]["train"]["documents"] == counts["train_docs"]
        assert domains[name]["splits"]["val"]["documents"] == counts["val_docs"]
        assert domains[name]["documents"] == counts["train_docs"] + counts["val_docs"]
        assert domains[name]["bytes"] == counts["train_bytes"] + counts["val_bytes"]
    for domain, split in reader.splits():
        for entry in reader.index(domain, split):
            assert reader.shard(domain, split, entry).max() < 8192


@pytest.mark.slow
def test_memory_does_not_follow_the_size_of_the_input(tmp_path):
    """One .jsonl.zst of 400 MB of text, most of it one domain, in an address space that could not hold its tokens.

    The limit is 1.2 GB of data segment (heap and private maps) a process: 800 MB of tokens and 400 MB of text do not
    fit beside Python, a few pieces of 4 MB and shards of 16 MB do.
    """
    line = json.dumps({"text": "some words that come again and again " * 270}).encode() + b"\n"
    path = tmp_path / "large.jsonl.zst"
    with open(path, "wb") as raw, zstandard.ZstdCompressor().stream_writer(raw) as file:
        for _ in range(400):
            file.write(line * 100)

    def limit():
        resource.setrlimit(resource.RLIMIT_DATA, (1_200_000_000, 1_200_000_000))

    command = [
        sys.executable,
        "-m",
        "ado_stream.cli",
        "prepare",
        path,
        "--out",
        tmp_path / "out",
        "--workers",
        "2",
        "--json",
    ]
    run = subprocess.run(command, preexec_fn=limit, capture_output=True, text=True, timeout=500)
    assert run.returncode == 0, run.stderr
    domain = json.loads(run.stdout)["domains"]["large"]
    assert domain["documents"] == 40_000
    assert domain["bytes"] > 390_000_000
