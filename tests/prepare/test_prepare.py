"""Text in, shards out: the tokens are those of the documents in order, whatever the workers, and the counts are true.

The oracle is built here from the documents themselves: bytes, 256 after each, cut at seq_len + 1.
"""

import ctypes
import errno
import fcntl
import json
import os
import re
import shutil
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tokenizers
import xxhash

import ado_stream as ado
from ado_stream.corpus import tokenizer as tokenizer_module
from ado_stream.corpus.checker import CorpusChecker
from ado_stream.corpus.manifest import domain_folder
from ado_stream.durable import DiskError, write_durably
from ado_stream.errors import ConfigError, DataError, NotFound, StorageError
from ado_stream.prepare.coordinator import prepare
from ado_stream.prepare.input_files import find_input_files
from ado_stream.prepare.packing import Packer
from ado_stream.prepare.prepare_config import PrepareConfig
from ado_stream.prepare.spool import Spool
from ado_stream.prepare.workspace import Plan

SEQ_LEN = 64


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch):
    """Many pieces, many shards and a commit after each, so that every path is walked."""
    monkeypatch.setattr("ado_stream.prepare.documents.PIECE_BYTES", 20_000)
    monkeypatch.setattr("ado_stream.prepare.line_blocks._READ_BYTES", 4_000)
    monkeypatch.setattr("ado_stream.prepare.packing._COMMIT_EVERY_S", 0.0)


def _config(inputs, out, **settings):
    defaults = {
        "seq_len": SEQ_LEN,
        "domain_key": "meta.pile_set_name",
        "workers": 1,
        "shard_bytes": 1 << 15,
    }
    return PrepareConfig(tuple(map(str, inputs)), str(out), **{**defaults, **settings})


def _tokens(out, domain, split="train"):
    """All tokens of a domain's split, in order, read back and verified."""
    reader = CorpusChecker(out)
    shards = [reader.shard(domain, split, entry) for entry in reader.index(domain, split)]
    return np.concatenate(shards), len(shards)


def _joined(documents, domain):
    texts = [document["text"].encode() for document in documents if document["meta"]["pile_set_name"] == domain]
    return [token for text in texts for token in [*text, 256]], texts


def test_the_tokens_are_the_documents_in_order(pile, tmp_path):
    files, documents = pile
    assert prepare(_config(files, tmp_path / "out")) == tmp_path / "out"
    manifest = json.loads((tmp_path / "out/corpus.json").read_bytes())
    assert set(manifest["domains"]) == {"Books", "Code", "Wikipedia (en)"}
    for domain, counts in manifest["domains"].items():
        expected, texts = _joined(documents, domain)
        samples, num_shards = _tokens(tmp_path / "out", domain)
        whole = len(expected) // (SEQ_LEN + 1)
        assert num_shards > 1
        assert samples.shape == (whole, SEQ_LEN + 1)
        assert samples.ravel().tolist() == expected[: whole * (SEQ_LEN + 1)]
        assert counts["documents"] == len(texts)
        assert counts["bytes"] == sum(map(len, texts))
        assert counts["splits"] == {
            "train": {
                "documents": len(texts),
                "tokens": whole * (SEQ_LEN + 1),
                "samples": whole,
                "dropped_tokens": len(expected) - whole * (SEQ_LEN + 1),
            }
        }
    assert manifest | {"domains": 0, "fingerprint": 0, "source": 0} == {
        "version": 1,
        "seq_len": SEQ_LEN,
        "tokenizer": "bytes",
        "vocab_size": 257,
        "token_dtype": "uint16",
        "refused": {},
        "domains": 0,
        "fingerprint": 0,
        "source": 0,
    }
    assert sorted(os.listdir(tmp_path / "out")) == sorted(
        ["corpus.json", *(domain["path"] for domain in manifest["domains"].values())]
    )


def test_workers_change_no_byte(pile, tmp_path, tree_hashes):
    trees = []
    for workers in (1, 2, 3):
        out = tmp_path / str(workers)
        prepare(_config(pile[0], out, tokenizer="bpe:400", workers=workers, val_frac=0.2))
        trees.append(tree_hashes(out))
    assert trees[0] == trees[1] == trees[2]
    assert len(trees[0]) > 10


def test_bpe_decodes_to_the_documents(pile, tmp_path):
    prepare(_config(pile[0], tmp_path / "out", tokenizer="bpe:400"))
    corpus = ado.open_corpus(tmp_path / "out")
    assert corpus.tokenizer.vocab_size == 400
    for domain in ("Books", "Wikipedia (en)"):
        samples, _ = _tokens(tmp_path / "out", domain)
        decoded = corpus.tokenizer.decode(samples.ravel())
        whole = "".join(text.decode() + "<|endoftext|>" for text in _joined(pile[1], domain)[1])
        assert len(decoded) > 0.99 * len(whole)
        assert whole.startswith(decoded.rstrip("\ufffd"))


def test_the_seed_of_the_sample_changes_the_tokenizer(pile, tmp_path, monkeypatch):
    monkeypatch.setattr("ado_stream.prepare.coordinator._SAMPLE_BYTES_PER_TOKEN", 40)
    written = []
    for seed in (1, 2, 1):
        out = tmp_path / str(len(written))
        prepare(_config(pile[0], out, tokenizer="bpe:400", seed=seed))
        written.append((out / "tokenizer.json").read_bytes())
    assert written[0] == written[2] != written[1]


def test_a_validation_fraction_goes_by_the_hash_of_the_text(pile, tmp_path):
    prepare(_config(pile[0], tmp_path / "out", val_frac=0.25))
    hashed = {
        True: [d for d in pile[1] if xxhash.xxh64(d["text"].encode()).intdigest() / 2**64 < 0.25],
        False: [d for d in pile[1] if xxhash.xxh64(d["text"].encode()).intdigest() / 2**64 >= 0.25],
    }
    assert 100 < len(hashed[True]) < 200
    for split, documents in (("val", hashed[True]), ("train", hashed[False])):
        expected = _joined(documents, "Books")[0]
        samples, _ = _tokens(tmp_path / "out", "Books", split)
        assert samples.ravel().tolist() == expected[: samples.size]
    counts = json.loads((tmp_path / "out/corpus.json").read_bytes())["domains"]["Books"]
    assert counts["documents"] == sum(split["documents"] for split in counts["splits"].values())


def test_validation_files_make_the_validation_split(pile, tmp_path):
    prepare(_config(pile[0][:2], tmp_path / "out", val=(pile[0][2],)))
    for split, documents in (("train", pile[1][:400]), ("val", pile[1][400:])):
        expected = _joined(documents, "Code")[0]
        samples, _ = _tokens(tmp_path / "out", "Code", split)
        assert samples.ravel().tolist() == expected[: samples.size]
        corpus = ado.open_corpus(tmp_path / "out", split)
        assert all(domain.local.endswith(f"/{split}") for domain in corpus.domains)


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # files that it leaves to the garbage collector
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_streaming_reads_every_domain(pile, tmp_path):
    from streaming import StreamingDataset

    prepare(_config(pile[0], tmp_path / "out", shard_bytes=1 << 20))
    domain = ado.open_corpus(tmp_path / "out").domains[0]
    samples, _ = _tokens(tmp_path / "out", domain.name)
    dataset = StreamingDataset(local=domain.local, shuffle=False, batch_size=1, validate_hash="xxh64")
    assert len(dataset) == len(samples)
    assert np.array_equal(np.stack([dataset[n]["tokens"] for n in range(0, len(samples), 7)]), samples[::7])


def test_a_complete_corpus_is_left_as_it_is_and_others_are_refused(pile, tmp_path):
    out = tmp_path / "out"
    prepare(_config(pile[0], out))
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    prepare(_config(pile[0], out, workers=2))
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before
    with pytest.raises(ConfigError, match="a corpus of other input or settings"):
        prepare(_config(pile[0], out, seq_len=32))


def test_a_folder_with_something_else_in_it_is_refused(pile, tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(ConfigError, match=r"not empty: thesis.tex"):
        prepare(_config(pile[0], tmp_path))


def _fingerprints(out):
    manifest = json.loads((Path(out) / "corpus.json").read_bytes())
    return manifest["fingerprint"], {name: d["fingerprint"] for name, d in manifest["domains"].items()}


def test_the_fingerprint_follows_the_tokens_alone(pile, tmp_path, write_jsonl):
    changed = json.loads(json.dumps(pile[1]))
    changed[next(n for n, d in enumerate(changed) if d["meta"]["pile_set_name"] == "Code")]["text"] += "!"
    prepare(_config(pile[0], tmp_path / "a"))
    prepare(_config([write_jsonl(tmp_path / "same.jsonl", pile[1])], tmp_path / "b"))
    prepare(_config([write_jsonl(tmp_path / "changed.jsonl", changed)], tmp_path / "c"))
    assert _fingerprints(tmp_path / "a") == _fingerprints(tmp_path / "b")
    whole, domains = _fingerprints(tmp_path / "a")
    other_whole, other_domains = _fingerprints(tmp_path / "c")
    assert whole != other_whole
    assert {name for name in domains if domains[name] != other_domains[name]} == {"Code"}


def test_an_empty_domain_is_named(pile, tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "full.jsonl").write_text(json.dumps({"text": "long enough " * 20}) + "\n")
    (folder / "hollow.jsonl").write_text("\n")
    with pytest.raises(ConfigError, match="domain 'hollow' has no document"):
        prepare(_config([folder], tmp_path / "out", domain_key=None))
    (folder / "hollow.jsonl").write_text('{"text": 3}\n{"text"\n{"text": ""}\n')
    with pytest.raises(ConfigError, match="Left out: 1 x no text, 1 x unreadable line, 1 x empty document"):
        prepare(_config([folder], tmp_path / "out", domain_key=None, skip_errors=True))
    (folder / "hollow.jsonl").write_text('{"text": "short"}\n')
    with pytest.raises(
        ConfigError, match=r"domain 'hollow': 1 training documents with 6 tokens are less than one .* 65"
    ):
        prepare(_config([folder], tmp_path / "out", domain_key=None))
    with pytest.raises(ConfigError, match="domain 'hollow' has validation documents only"):
        prepare(
            _config([folder / "full.jsonl"], tmp_path / "out", domain_key=None, val=(str(folder / "hollow.jsonl"),))
        )
    assert not [path for path in (tmp_path / "out").rglob("*") if path.is_file() and path.name != "lock"]


def test_an_unreadable_line_is_named_and_skipping_goes_on_from_there(pile, tmp_path, tree_hashes, write_jsonl):
    good = pile[1][:300]
    bad = write_jsonl(tmp_path / "bad.jsonl", good)
    lines = bad.read_bytes().splitlines(keepends=True)
    bad.write_bytes(b"".join([*lines[:250], b'{"meta": {}}\n', *lines[250:]]))
    for workers in (1, 2):
        with pytest.raises(DataError, match=r"bad.jsonl:251: no text"):
            prepare(_config([bad], tmp_path / "out", workers=workers))
    assert (tmp_path / "out/.prepare/journal.json").exists()  # work was done, and is gone on with
    prepare(_config([bad], tmp_path / "out", skip_errors=True))
    prepare(_config([write_jsonl(tmp_path / "good.jsonl", good)], tmp_path / "clean"))
    skipped, clean = tree_hashes(tmp_path / "out"), tree_hashes(tmp_path / "clean")
    assert skipped.pop("corpus.json") != clean.pop("corpus.json")
    assert skipped == clean
    assert json.loads((tmp_path / "out/corpus.json").read_bytes())["refused"] == {"no text": 1}


def test_unfinished_work_over_other_settings_is_not_thrown_away(pile, tmp_path):
    bad = tmp_path / "bad.jsonl"
    bad.write_bytes(Path(pile[0][1]).read_bytes() + b"{}\n")
    with pytest.raises(DataError, match="bad.jsonl:201"):
        prepare(_config([bad], tmp_path / "out"))
    with pytest.raises(ConfigError, match=r"an unfinished run over other input or settings; changed since: seq_len\."):
        prepare(_config([bad], tmp_path / "out", seq_len=32))
    bad.write_bytes(Path(pile[0][1]).read_bytes())
    with pytest.raises(
        ConfigError, match=r"changed since: .*bad.jsonl\.\n  Remove this folder and run the command again"
    ):
        prepare(_config([bad], tmp_path / "out"))


def test_a_corpus_is_not_written_into_its_own_input(pile, tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    for out in (folder, folder / "corpus", tmp_path / "x" / ".." / "in" / "deep" / "corpus"):
        for inputs in ({"inputs": [folder]}, {"inputs": pile[0], "val": (str(folder),)}):
            with pytest.raises(ConfigError, match="is inside the input"):
                _config(out=out, **inputs)
    (tmp_path / "link").symlink_to(folder)
    with pytest.raises(ConfigError, match="is inside the input"):
        _config([folder], tmp_path / "link" / "corpus")


def test_a_refused_run_leaves_no_working_folder(pile, tmp_path):
    prepare(_config(pile[0], tmp_path / "out"))
    with pytest.raises(ConfigError, match="a corpus of other input or settings is there already"):
        prepare(_config(pile[0], tmp_path / "out", seq_len=32))
    assert not (tmp_path / "out/.prepare").exists()


@pytest.mark.parametrize("damage", [Path.unlink, lambda path: os.truncate(path, 9)])
def test_a_complete_corpus_that_lost_a_file_is_not_taken_for_whole(pile, tmp_path, damage):
    config = _config(pile[0], tmp_path / "out")
    prepare(config)
    assert prepare(config) == tmp_path / "out"
    shard = sorted((tmp_path / "out").rglob("shard.*"))[-1]
    damage(shard)
    with pytest.raises(StorageError, match=rf"{shard}: (gone|of another size) since the corpus.*\n.*Remove .*/out and"):
        prepare(config)
    (shard.parent / "index.json").unlink()
    with pytest.raises(NotFound, match="index.json"):
        prepare(config)


def test_a_lock_whose_file_was_removed_is_not_held(tmp_path, monkeypatch):
    """Opened before its holder removed the working folder, locked after: another process may lock the new file."""
    from ado_stream.prepare import workspace
    from ado_stream.storage import object_locks

    opened = object_locks._open_lock

    @contextmanager
    def late(path):
        with opened(path) as descriptor:
            shutil.rmtree(tmp_path / "out")
            yield descriptor

    monkeypatch.setattr(object_locks, "_open_lock", late)
    with pytest.raises(ConfigError, match="another process"), workspace.locked(tmp_path / "out"):
        pass


@pytest.mark.parametrize("changed", ["tokenizer.json", "tokenizer_config.json"])
def test_a_tokenizer_of_other_content_is_another_corpus(pile, tmp_path, changed):
    from ado_stream.corpus.tokenizer import train_tokenizer

    words = [document["text"] for document in pile[1][:50]]
    train_tokenizer(words, "bpe:300").save(tmp_path)
    config = _config(pile[0], tmp_path / "out", tokenizer=str(tmp_path / "tokenizer.json"))
    prepare(config)
    prepare(config)  # the same content: nothing to do
    if changed == "tokenizer.json":
        name = json.loads((tmp_path / "tokenizer_config.json").read_bytes())["name"]
        train_tokenizer(words, "bpe:299").save(tmp_path)
        options = json.loads((tmp_path / "tokenizer_config.json").read_bytes()) | {"name": name}
    else:
        options = json.loads((tmp_path / changed).read_bytes()) | {"eos_token": "a"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(options))
    with pytest.raises(ConfigError, match="a corpus of other input or settings is there already"):
        prepare(config)


@pytest.mark.parametrize("size", [60, 3 << 20])
def test_other_text_of_the_same_size_and_time_is_another_corpus(tmp_path, size):
    """Programs that copy or unpack files set their times."""
    path = tmp_path / "a.jsonl"
    for text in ("x", "y"):
        path.write_text(json.dumps({"text": text * size}))
        os.utime(path, (1, 1))
        config = PrepareConfig((str(path),), str(tmp_path / "out"), seq_len=31, workers=1)
        if text == "x":
            prepare(config)
            source = json.loads((tmp_path / "out/corpus.json").read_bytes())["source"]
            prepare(config)
    with pytest.raises(ConfigError, match="a corpus of other input"):
        prepare(config)
    path.write_text(json.dumps({"text": "x" * size}))
    os.utime(path, (1, 1))
    prepare(config)
    manifest = (tmp_path / "out/corpus.json").read_text()
    older = Plan.of(config, find_input_files(config.inputs, "train", True).files, None).older_fingerprint
    (tmp_path / "out/corpus.json").write_text(manifest.replace(source, older))  # of a release without hashes
    prepare(config)


@pytest.mark.parametrize("change", ["grown", "rewritten", "removed"])
def test_a_file_that_changes_while_it_is_read_is_refused_and_the_next_run_reads_it_whole(tmp_path, change, monkeypatch):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "' + "x" * 99 + '"}\n')
    config = PrepareConfig((str(path),), str(tmp_path / "out"), seq_len=31, workers=1)
    finish = Packer.finish

    def change_and_finish(packer):
        text = path.read_text()
        path.write_text(text * 2 if change == "grown" else text.replace("xx", "yy"))
        if change == "removed":
            path.rename(path.with_suffix(".old"))
        return finish(packer)

    with monkeypatch.context() as context:
        context.setattr(Packer, "finish", change_and_finish)
        with pytest.raises(ConfigError, match=r"a\.jsonl: changed or removed while it was read"):
            prepare(config)
    assert not (tmp_path / "out/corpus.json").exists()
    if change == "removed":
        path.with_suffix(".old").rename(path)
    prepare(config)
    entry = json.loads((tmp_path / "out/corpus.json").read_bytes())["domains"]["a"]
    assert entry["documents"] == (2 if change == "grown" else 1)


def test_two_runs_at_once_are_refused(pile, tmp_path):
    (tmp_path / "out/.prepare").mkdir(parents=True)
    with open(tmp_path / "out/.prepare/lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(ConfigError, match="another process is writing"):
            prepare(_config(pile[0], tmp_path / "out"))


def test_what_the_journal_and_the_manifest_count_is_on_the_disk_before_them(pile, tmp_path, monkeypatch):
    """What a power cut leaves is what the last sync of the file system found."""
    work = tmp_path / "out/.prepare"
    on_disk: dict[str, int] = {}
    checked = []

    def sync(path):
        on_disk.clear()
        on_disk.update({str(file.relative_to(work)): file.stat().st_size for file in path.rglob("*") if file.is_file()})

    def write(path, data):
        checked.append(path.name)
        if path.name == "journal.json":
            state = json.loads(data)
            lines = (work / "published.jsonl").read_bytes()[: state["published_bytes"]].splitlines()
            published = {(domain, split, shard): entry for domain, split, shard, entry in map(json.loads, lines)}
            assert on_disk["published.jsonl"] == state["published_bytes"]
            for (domain, split, _), entry in published.items():
                file = f"corpus/{domain_folder(domain)}/{split}/{entry['zip_data']['basename']}"
                assert on_disk[file] == entry["zip_data"]["bytes"]
            for domain, split, spool in state["spools"]:
                stem = f"spool/{domain_folder(domain)}.{split}"
                for shard in range(spool["shard"]):
                    assert (domain, split, shard) in published or on_disk[f"{stem}.{shard:05}"] > 0
                assert on_disk.get(f"{stem}.{spool['shard']:05}", 0) == spool["shard_fill_bytes"]
        elif path.name == "manifest":
            found = {str(file.relative_to(work)): file.stat().st_size for file in work.rglob("*.*") if file.is_file()}
            corpus = {file: size for file, size in found.items() if file.startswith("corpus/")}
            assert len([file for file in corpus if file.endswith("index.json")]) > 1
            assert corpus.items() <= on_disk.items()
        write_durably(path, data)

    monkeypatch.setattr("ado_stream.prepare.packing.sync_file_system", sync)
    monkeypatch.setattr("ado_stream.prepare.journal.write_durably", write)
    monkeypatch.setattr("ado_stream.prepare.coordinator.write_durably", write)
    prepare(_config(pile[0], tmp_path / "out"))
    assert checked.count("journal.json") > 5
    assert "manifest" in checked


def test_syncs_do_not_grow_with_the_domains(tmp_path, monkeypatch):
    """An fsync a domain a commit made a thousand domains take minutes."""
    num_syncs = {}
    monkeypatch.setattr("ado_stream.prepare.packing._COMMIT_EVERY_S", 1e9)
    for num_domains in (2, 60):
        path = tmp_path / f"{num_domains}.jsonl"
        path.write_text("".join(json.dumps({"text": "t" * 999, "d": f"d{n % num_domains}"}) + "\n" for n in range(60)))
        calls = []
        for name in ("os.fsync", "ado_stream.prepare.packing.sync_file_system"):
            monkeypatch.setattr(name, calls.append)
        prepare(_config([path], tmp_path / f"out{num_domains}", domain_key="d"))
        num_syncs[num_domains] = len(calls)
    assert num_syncs[60] == num_syncs[2] < 20


def test_a_disk_that_fails_to_sync_is_one_clear_error(pile, tmp_path, monkeypatch):
    def fail(descriptor):
        ctypes.set_errno(errno.EIO)
        return -1

    monkeypatch.setattr("ado_stream.durable._libc", SimpleNamespace(syncfs=fail))
    with pytest.raises(DiskError, match=r"\.prepare: Input/output error.\n  Finished work is kept"):
        prepare(_config(pile[0], tmp_path / "out"))


@pytest.mark.parametrize(("method", "call"), [("append", 30), ("flush", 3)])
def test_a_full_disk_is_one_clear_error_and_the_next_run_goes_on(
    pile, tmp_path, tree_hashes, monkeypatch, method, call
):
    works = getattr(Spool, method)
    calls = []

    def full(self, *arguments):
        calls.append(1)
        if len(calls) == call:
            raise OSError(28, "No space left on device", str(self.stem))
        return works(self, *arguments)

    monkeypatch.setattr(Spool, method, full)
    with pytest.raises(StorageError, match=r"No space left on device.\n  Finished work is kept"):
        prepare(_config(pile[0], tmp_path / "out"))
    prepare(_config(pile[0], tmp_path / "out"))
    prepare(_config(pile[0], tmp_path / "clean"))
    assert tree_hashes(tmp_path / "out") == tree_hashes(tmp_path / "clean")


def test_a_spool_is_opened_when_its_shard_is_full_or_memory_is(pile, tmp_path, tree_hashes, monkeypatch):
    """Opening it for each block of each domain was most of what a thousand domains cost."""
    monkeypatch.setattr("ado_stream.prepare.packing._COMMIT_EVERY_S", 1e9)
    opened = []

    def counted(*arguments):
        opened.append(arguments)
        return open(*arguments)

    monkeypatch.setattr("ado_stream.prepare.spool.open", counted, raising=False)
    num_opened = []
    for limit in (1 << 26, 1):
        monkeypatch.setattr("ado_stream.prepare.packing._WAITING_BYTES", limit)
        prepare(_config(pile[0], tmp_path / str(limit)))
        num_opened.append(len(opened))
        opened.clear()
    manifest = json.loads((tmp_path / "1" / "corpus.json").read_bytes())
    files = list((tmp_path / "1").rglob("*.mds.zstd"))
    assert num_opened[0] <= len(files) + len(manifest["domains"]) < num_opened[1]
    assert tree_hashes(tmp_path / "1") == tree_hashes(tmp_path / str(1 << 26))


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"seq_len": 0}, "seq_len is 0; expected a whole number, 1 or more"),
        ({"seq_len": 1e3}, "seq_len is 1000.0; expected a whole number"),
        ({"seq_len": 10**30}, "seq_len is 1000.*; expected a whole number, 9007199254740992 at most"),
        ({"val_frac": 1.0}, "validation fraction is 1, which leaves nothing to train on"),
        ({"val_frac": float("nan")}, "validation fraction is nan; expected a finite number from 0 to 1"),
        ({"val_frac": 0.1, "val": ("x",)}, "choose one of them"),
        ({"workers": 0}, "workers is 0; expected a whole number, 1 or more"),
        ({"workers": 10**20}, "workers is 1000.*; expected a whole number, 4096 at most"),
        ({"shard_bytes": 10}, "shard_bytes is 10; expected a whole number, 4096 or more"),
        ({"tokenizer": "bpe:ten"}, "N must be an integer of at least 257"),
        ({"tokenizer": "bpe:\u00b2\u00b2\u00b2"}, "N must be an integer of at least 257"),
        ({"tokenizer": "bpe:" + "9" * 5000}, "and 8 digits, as in bpe:8192"),
        ({"tokenizer": ""}, "tokenizer is ''; expected a text"),
        ({"text_key": None}, "text_key is None; expected a text"),
        ({"domain_key": ""}, "domain_key is ''; expected a text"),
        ({"skip_errors": "no"}, "skip_errors is 'no'; expected true or false"),
        ({"out": ""}, "out is ''; expected a path"),
        ({"out": "a\0b"}, "no path holds a NUL"),
        ({"out": "a.yaml/"}, "out is 'a.yaml/': that names the list of a corpus.yaml"),
        ({"out": "s3://b/a.yml"}, "out is 's3://b/a.yml': that names the list"),
        ({"inputs": ()}, "no input"),
        ({"inputs": ("",)}, "inputs is ''; expected a path"),
        ({"inputs": None}, "inputs is None; expected paths"),
        ({"val": (3,)}, "val is 3; expected a path"),
    ],
)
def test_settings_that_cannot_be(wrong, says):
    with pytest.raises(ConfigError, match=says):
        PrepareConfig(**({"inputs": ("in",), "out": "out"} | wrong))


def test_settings_from_python_are_those_of_the_command(pile, tmp_path, tree_hashes):
    """Path objects, a list or one path for many, and NumPy's numbers, in the hash of the settings too."""
    given = {"seq_len": SEQ_LEN, "text_key": "text", "workers": 2, "shard_bytes": 1 << 15}
    path = Path(pile[0][0])
    prepare(PrepareConfig((str(path),), str(tmp_path / "wanted"), **given))
    given = {name: np.int64(value) if isinstance(value, int) else value for name, value in given.items()}
    for number, inputs in enumerate((path, [path], (str(each) for each in [path]))):
        prepare(PrepareConfig(inputs, tmp_path / str(number), **given))
        assert tree_hashes(tmp_path / str(number)) == tree_hashes(tmp_path / "wanted")


def test_an_input_that_is_not_there_is_named_as_it_was_given(tmp_path):
    for name in ("nowhere.jsonl", "s3://bucket/x.jsonl", "~nobody-of-that-name/x"):
        with pytest.raises(NotFound, match=f"^{name}: no such file or folder"):
            prepare(_config([name], tmp_path))


def test_a_folder_that_cannot_be_written_is_a_disk_error(unprivileged_folder):
    text, out = unprivileged_folder / "text.jsonl", unprivileged_folder / "closed"
    text.write_text(json.dumps({"text": "words"}) + "\n")
    out.mkdir(0o500)
    with pytest.raises(DiskError, match=rf"(?s){out}.*[Pp]ermission denied|[Pp]ermission denied.*{out}"):
        prepare(_config([str(text)], out / "corpus"))


@pytest.mark.parametrize("executor", ["local", "ray"])
def test_a_domain_that_is_named_as_the_folder_of_another_is_refused(tmp_path, write_jsonl, threads, executor):
    names = ["Wikipedia (en)", domain_folder("Wikipedia (en)")]
    texts = [{"text": "some text " * 9, "set": name} for name in names]
    config = _config([write_jsonl(tmp_path / "in.jsonl", texts)], tmp_path / "out", domain_key="set", executor=executor)
    with pytest.raises(ConfigError, match=rf"'{re.escape(names[0])}' and '{names[1]}' would have the same folder"):
        prepare(config)


@pytest.mark.parametrize("packing", ["join", "best-fit"])
def test_no_text_ends_a_document(tmp_path, write_jsonl, packing):
    """Where the end token is a word of the vocabulary, and not special, a text may spell it."""
    words = {"[UNK]": 0, "</s>": 1, "hello": 2, "world": 3}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    texts = [{"text": text} for text in ("hello world", "hello </s> world", "</s>", "world")]
    config = PrepareConfig(
        (str(write_jsonl(tmp_path / "a.jsonl", texts)),), str(tmp_path / "out"), seq_len=1, packing=packing, workers=1,
        tokenizer=str(tmp_path / "tokenizer.json"),
    )  # fmt: skip
    with pytest.raises(DataError, match=r"'a': the document that begins with 'hello </s> world': end token in the"):
        prepare(config)
    prepare(replace(config, skip_errors=True))
    manifest = json.loads((tmp_path / "out/corpus.json").read_bytes())
    assert manifest["refused"] == {"end token in the text": 2}
    assert manifest["refused_bytes"] == {"end token in the text": 20}
    assert (manifest["domains"]["a"]["documents"], manifest["domains"]["a"]["bytes"]) == (2, 16)
    if packing == "join":
        assert _tokens(tmp_path / "out", "a")[0].ravel().tolist() == [2, 3, 1, 3]


def test_a_document_too_long_for_the_tokenizers_library_is_refused_alone(tmp_path, write_jsonl, monkeypatch):
    """It takes some 180 bytes of memory for each byte of a text, so 23 GB for the longest line."""
    monkeypatch.setattr(tokenizer_module, "_LIBRARY_TEXT_BYTES", 11)
    library = tokenizers.Tokenizer(tokenizers.models.WordLevel({"</s>": 0, "hello": 1, "?": 2}, unk_token="?"))
    library.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    library.save(str(tmp_path / "tokenizer.json"))
    texts = [{"text": text} for text in ("hello hello", "hello world!", "hello")]
    path = write_jsonl(tmp_path / "a.jsonl", texts)
    config = PrepareConfig((path,), tmp_path / "out", seq_len=1, tokenizer=str(tmp_path / "tokenizer.json"), workers=1)
    with pytest.raises(
        DataError, match=r"with 'hello world!': document too long \(12 bytes; at most 11 with tokenizer"
    ):
        prepare(config)
    prepare(replace(config, skip_errors=True))
    assert _tokens(tmp_path / "out", "a")[0].ravel().tolist() == [1, 1, 0, 1]
    assert json.loads((tmp_path / "out/corpus.json").read_bytes())["refused_bytes"] == {"document too long": 12}


def test_a_tokenizer_that_loses_characters_is_named_before_any_work(tmp_path, write_jsonl, caplog):
    library = tokenizers.Tokenizer(tokenizers.models.BPE({"a": 0, "b": 1, "</s>": 2}, []))
    library.save(str(tmp_path / "tokenizer.json"))
    path = write_jsonl(tmp_path / "a.jsonl", [{"text": "abcba"}])
    prepare(PrepareConfig((path,), tmp_path / "out", seq_len=1, tokenizer=str(tmp_path / "tokenizer.json"), workers=1))
    assert "characters outside its vocabulary are left out of the text" in caplog.text


def test_too_many_domains_point_to_the_key(tmp_path, monkeypatch):
    monkeypatch.setattr("ado_stream.prepare.packing.MAX_DOMAINS", 5)
    path = tmp_path / "ids.jsonl"
    path.write_text("".join(json.dumps({"text": "t", "id": f"id {n}"}) + "\n" for n in range(20)))
    with pytest.raises(ConfigError, match="more than 5 domains.*\n.*--domain-key"):
        prepare(_config([path], tmp_path / "out", domain_key="id"))


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_a_long_document_takes_at_most_seven_bytes_of_memory_a_byte_in_any_process(tmp_path, workers):
    """The line, and tokens of two bytes twice, before and after the end token is added: five; six with an answer."""
    code = (
        "import sys\nfrom ado_stream.prepare.prepare_config import PrepareConfig\n"
        "from ado_stream.prepare.coordinator import prepare\nfrom resource import RUSAGE_CHILDREN, getrusage\n"
        "if __name__ == '__main__':\n"
        f"    prepare(PrepareConfig((sys.argv[1],), sys.argv[2], seq_len=64, workers={workers}))\n"
        "    own = next(line for line in open('/proc/self/status') if line.startswith('VmHWM'))\n"
        "    print(max(int(own.split()[1]), getrusage(RUSAGE_CHILDREN).ru_maxrss))\n"
    )
    (tmp_path / "run.py").write_text(code)
    peaks = {}
    for name, size in (("short", 1000), ("long", 40_000_000)):
        path = tmp_path / f"{name}.jsonl"
        path.write_text("".join(json.dumps({"text": "a b " * (n // 4)}) + "\n" for n in (1000, size, 1000)))
        command = [sys.executable, str(tmp_path / "run.py"), str(path), str(tmp_path / f"{name}-out")]
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300)
        peaks[name] = 1024 * int(done.stdout)
    assert peaks["long"] - peaks["short"] < 7 * 40_000_000
