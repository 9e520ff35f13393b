"""A corpus opens from a folder and from an object store, and a corpus.json that cannot be trusted is refused."""

import itertools
import json
import os
import shutil
import subprocess

import numpy as np
import pytest

import ado_stream as ado
from ado_stream.corpus.checker import CorpusChecker
from ado_stream.corpus.manifest import decode_manifest
from ado_stream.errors import ConfigError, DataError, IndexInvalid, NotFound, ShardCorrupt, StorageError
from ado_stream.prepare.coordinator import prepare
from ado_stream.prepare.prepare_config import PrepareConfig


def test_a_local_corpus_opens(made):
    corpus = ado.open_corpus(made)
    domains, tokenizer, seq_len = corpus
    assert [domain.name for domain in domains] == list(corpus.manifest["domains"])
    assert all(domain.remote is None and os.path.exists(f"{domain.local}/index.json") for domain in domains)
    assert (tokenizer.vocab_size, seq_len) == (300, 64)
    assert ado.open_corpus(f"file://{made}").domains == domains
    assert ado.open_corpus(made, "val").domains[0].local.endswith("/val")


def test_a_corpus_is_shown_in_one_line(made):
    counts = json.loads((made / "corpus.json").read_bytes())["domains"].values()
    tokens = sum(domain["splits"]["val"]["tokens"] for domain in counts)
    assert repr(ado.open_corpus(made, "val")) == (
        f"Corpus('{made}', split='val': {len(counts)} domains, {tokens:,} tokens, tokenizer bpe:300, seq_len 64)"
    )


@pytest.mark.parametrize("mount", [pytest.param(True, marks=pytest.mark.privileged), False])
def test_a_corpus_that_may_not_be_written_is_read_through_a_cache_folder(made, tmp_path, mount):
    """cache_dir for a local folder: the batches are those of the corpus in place, and nothing is written there."""
    place, folder = tmp_path / "writable", tmp_path / "corpus"
    for each in (place, folder):
        shutil.copytree(made, each)
    if mount:
        subprocess.run(["mount", "--bind", "-r", str(folder), str(folder)], check=True)
    try:
        before = sorted(folder.rglob("*"))
        batches = []
        for corpus in (ado.open_corpus(place), ado.open_corpus(folder, cache_dir=tmp_path / "cache")):
            with ado.AdaptiveLoader(ado.AdaptiveStreamingDataset(corpus.domains, 8, mixture_lag=None)) as loader:
                batches.append([batch["tokens"].numpy() for batch in itertools.islice(loader, 20)])
        assert np.array_equal(*map(np.stack, batches))
        assert sorted(folder.rglob("*")) == before
        assert ado.open_corpus(folder, "val", cache_dir=tmp_path / "cache").domains[0].local.startswith(str(tmp_path))
        if mount:
            with pytest.raises(ConfigError, match="not writable"):
                ado.AdaptiveStreamingDataset(ado.open_corpus(folder).domains, 8)
    finally:
        if mount:
            subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize("path", ["/" + "x" * 256, "/x" * 2100, "\ud800"])
def test_what_can_be_no_path_is_said_to_be_none(path):
    with pytest.raises(ConfigError, match="cannot be a path"):
        ado.open_corpus(path)


def test_what_is_not_there_is_said(made, tmp_path, corpus_copy):
    with pytest.raises(NotFound, match="corpus.json: no such file"):
        ado.open_corpus(tmp_path)
    with pytest.raises(ConfigError, match="split is 'test'"):
        ado.open_corpus(made, "test")
    folder, edit = corpus_copy
    edit(lambda manifest: [domain["splits"].pop("val") for domain in manifest["domains"].values()])
    with pytest.raises(ConfigError, match="no sample in split 'val'"):
        ado.open_corpus(folder, "val")


def _set_path(path):
    def change(manifest):
        next(iter(manifest["domains"].values()))["path"] = path

    return change


UNTRUSTED = {
    "path '../../etc'": _set_path("../../etc"),
    "path '/etc'": _set_path("/etc"),
    "path 'a/../../b'": _set_path("a/../../b"),
    "path ''": _set_path(""),
    "path 7: expected text": _set_path(7),
    r"path 'a\\x00b'": _set_path("a\0b"),
    "have the same path": lambda m: [domain.update(path="same") for domain in m["domains"].values()],
    "version 9": lambda m: m.update(version=9),
    "keys missing: seq_len": lambda m: m.pop("seq_len"),
    "no domains": lambda m: m.update(domains={}),
    "tokenizer '../t.json'": lambda m: m.update(tokenizer="../t.json"),
    "keys missing: splits": lambda m: next(iter(m["domains"].values())).pop("splits"),
    "split 'test'": lambda m: next(iter(m["domains"].values()))["splits"].update(
        test=dict.fromkeys(("documents", "tokens", "samples", "dropped_tokens"), 1)
    ),
}


@pytest.mark.parametrize("message", UNTRUSTED)
def test_a_manifest_that_cannot_be_trusted_is_refused(corpus_copy, message):
    folder, edit = corpus_copy
    edit(UNTRUSTED[message])
    with pytest.raises(IndexInvalid, match=message):
        ado.open_corpus(folder)


def test_a_name_given_twice_or_a_file_cut_short_is_refused():
    with pytest.raises(IndexInvalid, match="'a' is given twice"):
        decode_manifest(b'{"version": 1, "domains": {"a": {}, "a": {}}}', "corpus.json")
    with pytest.raises(IndexInvalid, match="cannot be read"):
        decode_manifest(b'{"version": 1, "dom', "corpus.json")


def _index(folder, domain="Books"):
    path = folder / domain / "train/index.json"
    return path, json.loads(path.read_bytes())


def test_the_reader_trusts_no_shard(corpus_copy):
    folder, edit = corpus_copy
    reader = CorpusChecker(folder)
    entry = reader.index("Books", "train")[0]
    shard = folder / "Books/train" / entry["zip_data"]["basename"]
    good = shard.read_bytes()
    for data, message in (
        (good[:-1], "bytes, but its index says"),
        (good[:100] + bytes([good[100] ^ 1]) + good[101:], "xxh64 .* but its index says"),
    ):
        shard.write_bytes(data)
        with pytest.raises(ShardCorrupt, match=rf"Books/train/shard.00000.mds.zstd: .*{message}"):
            reader.shard("Books", "train", entry)
    shard.unlink()
    with pytest.raises(NotFound, match="shard.00000.mds.zstd: No such file"):
        reader.shard("Books", "train", entry)
    shard.write_bytes(good)
    edit(lambda manifest: manifest.update(vocab_size=200))
    with pytest.raises(DataError, match=r"row \d+, position \d+: token \d+, but the vocabulary ends at 199"):
        CorpusChecker(folder).shard("Books", "train", entry)


@pytest.mark.parametrize("name", ["../../evil", "/etc/passwd", "a\0b", ""])
def test_the_reader_follows_no_name_out_of_the_corpus(corpus_copy, name):
    folder, _ = corpus_copy
    path, index = _index(folder)
    index["shards"][0]["zip_data"]["basename"] = name
    path.write_text(json.dumps(index))
    with pytest.raises(IndexInvalid, match="expected a plain file name"):
        CorpusChecker(folder).index("Books", "train")


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # sockets that boto3 leaves to the garbage collector
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_an_object_store_holds_the_same_corpus(s3_client, pile, make_config, made, tmp_path, tree_hashes, monkeypatch):
    s3_client.create_bucket(Bucket="texts")
    bucket = "s3://texts"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert prepare(make_config(f"{bucket}/deep/corpus")) == f"{bucket}/deep/corpus"
    for entry in s3_client.list_objects_v2(Bucket="texts")["Contents"]:
        path = tmp_path / "fetched" / entry["Key"].removeprefix("deep/corpus/")
        path.parent.mkdir(parents=True, exist_ok=True)
        s3_client.download_file("texts", entry["Key"], str(path))
    assert tree_hashes(tmp_path / "fetched") == tree_hashes(made)
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]

    corpus = ado.open_corpus(f"{bucket}/deep/corpus", cache_dir=tmp_path / "local")
    here = ado.open_corpus(made)
    assert corpus.manifest == here.manifest
    assert np.array_equal(corpus.tokenizer.encode("some text"), here.tokenizer.encode("some text"))
    assert corpus.domains[0].remote == f"{bucket}/deep/corpus/{here.manifest['domains']['Books']['path']}/train"
    assert corpus.domains[0].local == str(tmp_path / "local/Books/train")
    reader = CorpusChecker(f"{bucket}/deep/corpus")
    assert len(reader.shard("Books", "train", reader.index("Books", "train")[0])) > 0

    prepare(make_config(f"{bucket}/deep/corpus"))  # complete: nothing to do
    with pytest.raises(ConfigError, match="a corpus of other input or settings"):
        prepare(PrepareConfig(tuple(pile[0]), f"{bucket}/deep/corpus", domain_key="meta.pile_set_name", workers=1))
    with pytest.raises(StorageError, match="s3://nowhere/corpus"):
        prepare(make_config("s3://nowhere/corpus"))
    with pytest.raises(NotFound):
        ado.open_corpus(f"{bucket}/nothing/here", cache_dir=tmp_path / "none")
