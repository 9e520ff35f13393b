"""A corpus that somebody else wrote: typed errors only, whatever its files hold, and no memory for what they claim."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import xxhash
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

import ado_stream as ado
from ado_stream.cli.main import main
from ado_stream.corpus.checker import CorpusChecker
from ado_stream.corpus.manifest import decode_manifest
from ado_stream.corpus.mds import ShardFormat
from ado_stream.errors import ConfigError, IndexInvalid, NotFound, ShardCorrupt, StorageError
from ado_stream.prepare.prepare_config import PrepareConfig
from ado_stream.storage.download import local_path
from tests.json_files import edit_json

ODD_MANIFESTS = {
    "seq_len 0, vocab_size 300": lambda m: m.update(seq_len=0),
    "token_dtype 'float64'": lambda m: m.update(token_dtype="float64"),
    "vocab_size True: expected a count": lambda m: m.update(vocab_size=True),
    "'Books': documents -1: expected a count": lambda m: m["domains"]["Books"].update(documents=-1),
    "'Books': splits: 'train': keys missing: documents": lambda m: m["domains"]["Books"]["splits"].update(train={}),
    r"domains \[\]: expected an object": lambda m: m.update(domains=[]),
    "refused: 'a' 'b': expected a count": lambda m: m.update(refused={"a": "b"}),
    "path 'n+' must be a plain path": lambda m: m["domains"]["Books"].update(path="n" * 300),
}


@pytest.mark.parametrize("message", ODD_MANIFESTS)
def test_a_manifest_of_another_shape_is_refused(corpus, message):
    edit_json(corpus / "corpus.json", ODD_MANIFESTS[message])
    with pytest.raises(IndexInvalid, match=message):
        ado.open_corpus(corpus)


@pytest.mark.parametrize("data", [b"[" * 100_000, b"\xff", b'{"version": 1, "seq_len": "\\ud800"}', b"1" * 9000])
def test_what_is_no_json_is_refused(data):
    with pytest.raises(IndexInvalid, match="cannot be read as JSON"):
        decode_manifest(data, "corpus.json")


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=5)
    | st.sampled_from(["../x", "\ud800", "/", "n" * 300, "bytes", "tokenizer.json", "\0", 2**63, -1, 1]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


def _changed(draw, value):
    """`value` with one part of it, at any depth, replaced by any JSON or removed."""
    if not isinstance(value, (dict, list)) or not value or draw(st.integers(0, 5)) == 0:
        return draw(JSON)
    changed = value.copy()
    key = draw(st.sampled_from(sorted(value) if isinstance(value, dict) else range(len(value))))
    if draw(st.integers(0, 5)) == 0:
        del changed[key]
    else:
        changed[key] = _changed(draw, value[key])
    return changed


@pytest.mark.parametrize("name", ["corpus.json", "Books/train/index.json", "tokenizer_config.json", "tokenizer.json"])
@settings(max_examples=60)
@given(data=st.data())
def test_whatever_a_file_of_a_corpus_holds_no_other_error_is_raised(made, corpus, capsys, name, data):
    (corpus / name).write_text(json.dumps(_changed(data.draw, json.loads((made / name).read_bytes()))))
    for verb in (["info"], ["lint"], ["preview", "--samples", "1", "--domain", "Books"]):
        assert main([verb[0], str(corpus), *verb[1:]]) in (0, 1)
    capsys.readouterr()


def _forge(corpus, raw_bytes, samples, data):
    """Makes `data` the only shard of a domain, with the sizes and hashes that its index needs."""
    path = corpus / "Books/train/index.json"
    index = json.loads(path.read_bytes())
    entry = index["shards"][0]
    (path.parent / entry["zip_data"]["basename"]).write_bytes(data)
    entry["zip_data"].update(bytes=len(data), hashes={"xxh64": xxhash.xxh64_hexdigest(data)})
    entry["raw_data"].update(bytes=raw_bytes)
    entry["samples"] = samples
    path.write_text(json.dumps(index | {"shards": [entry]}))
    edit_json(corpus / "corpus.json", lambda m: m["domains"]["Books"]["splits"]["train"].update(samples=samples))


def _format(corpus):
    entry = json.loads((corpus / "Books/train/index.json").read_bytes())["shards"][0]
    return ShardFormat(65, "uint16", entry["size_limit"])


def test_a_decompression_bomb_takes_no_memory(corpus):
    """1.5 GB of zeros in 50 kB, with an index and a manifest that claim them."""
    samples = (3 << 29) // (_format(corpus).sample_bytes + 4)
    raw_bytes = _format(corpus).raw_bytes(samples)
    compressor = zstandard.ZstdCompressor().compressobj(size=raw_bytes)
    parts = [compressor.compress(bytes(1 << 20)) for _ in range(raw_bytes >> 20)]
    _forge(
        corpus,
        raw_bytes,
        samples,
        b"".join([*parts, compressor.compress(bytes(raw_bytes % (1 << 20))), compressor.flush()]),
    )
    code = (
        "import resource\nfrom ado_stream.corpus.checker import CorpusChecker\n"
        f"checker = CorpusChecker({str(corpus)!r})\nentries = checker.index('Books', 'train')\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "try:\n    checker.shard('Books', 'train', entries[0])\nexcept Exception as error:\n    print(error)\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert "a decompression bomb" in done.stdout
    assert int(done.stdout.split()[-1]) < 50_000  # kB


def test_a_frame_of_another_size_than_the_index_says_is_refused(corpus):
    shard_format = _format(corpus)
    raw_bytes = shard_format.raw_bytes(10)
    huge = bytearray(zstandard.compress(bytes(1000)))
    assert huge[4] >> 6 == 1  # the frame says its size in two bytes from the sixth on
    claims = bytes([*huge[:4], huge[4] | 0xC0, *(1 << 40).to_bytes(8, "little"), *huge[7:]])
    for data, message in (
        (zstandard.compress(bytes(raw_bytes + 9)), "decompresses to more bytes"),
        (zstandard.compress(bytes(raw_bytes - 9)), r"decompresses to [\d,]+ bytes"),
        (claims, "not a zstd frame|decompresses to"),
    ):
        _forge(corpus, raw_bytes, 10, data)
        checker = CorpusChecker(corpus)
        with pytest.raises(ShardCorrupt, match=message):
            checker.shard("Books", "train", checker.index("Books", "train")[0])


def test_a_shard_of_another_size_than_its_samples_is_refused_unread(corpus):
    checker = CorpusChecker(corpus)
    entry = checker.index("Books", "train")[0]
    with pytest.raises(IndexInvalid, match="raw bytes, but .* samples of this corpus have"):
        checker.shard("Books", "train", {**entry, "samples": entry["samples"] + 1})


def test_a_corpus_without_its_tokenizer_is_not_completed_from_the_hub(corpus, monkeypatch):
    monkeypatch.chdir(corpus.parent)
    (corpus / "tokenizer.json").unlink()
    with pytest.raises(NotFound, match="tokenizer.json: no such file"):
        ado.open_corpus("copy")


@pytest.mark.parametrize(
    "url",
    [
        "S3://bucket/x",
        "s3:/bucket/x",
        "s3://",
        "s3:///x",
        " s3://b/x",
        "s3 ://b/x",
        "s3:b/x",
        "s3//b/x",
        "GS //b/x",
        "s3;//b/x",
        "file:x",
        "file://host/x",
        "file://x",
        "S3a://b/x",
        "gcs://b/x",
        "http://h/x",
        "FILE:///x",
    ],
)
def test_a_url_that_no_client_reads_is_refused_at_once(url):
    with pytest.raises(ConfigError, match="not a URL that can be read or written"):
        ado.open_corpus(url)
    with pytest.raises(ConfigError, match="not a URL that can be read or written"):
        PrepareConfig(("in",), url)


@pytest.mark.parametrize("path", ["s3/b/x", "s3.d//x", "s3", "C:/x", "a:b/c", "./s3://b", "files//x"])
def test_a_path_that_is_like_a_url_is_a_folder(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert PrepareConfig(("in",), path).local_out == Path(path)


def test_a_file_url_is_the_folder_that_it_names(tmp_path):
    folder = tmp_path / "a b#1?é"
    for url in (folder.as_uri(), f"file://localhost{folder}", f"file://{folder}"):
        assert PrepareConfig(("in",), url).local_out == folder == local_path(url)


@pytest.mark.parametrize("url", ["s3://bucket/run#1", "s3://bucket/run?v=2", "gs://b/a\nb"])
def test_a_url_whose_keys_an_upload_would_cut_is_refused(url):
    with pytest.raises(ConfigError, match="uploads drop what follows"):
        PrepareConfig(("in",), url)


def test_a_tokenizer_of_another_vocabulary_is_refused(corpus):
    """Its decoder would raise, or show other text."""
    path = corpus / "corpus.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"tokenizer": "bytes"}))
    with pytest.raises(IndexInvalid, match=r"corpus.json: vocab_size 300, but its tokenizer 'bytes' has 257 ids"):
        ado.open_corpus(corpus)


@pytest.mark.parametrize(
    ("vocabulary", "config", "says"),
    [
        ({"far": 2**31}, {}, "ids up to 2,147,483,648 for 301 tokens"),  # the library writes out each that is missing
        ({}, {"eos_token": ["a"]}, "'eos_token' in its tokenizer_config"),
    ],
)
def test_a_tokenizer_of_odd_shape_is_named_by_its_file(corpus, vocabulary, config, says):
    spec = json.loads((corpus / "tokenizer.json").read_text())
    spec["model"]["vocab"] |= vocabulary
    (corpus / "tokenizer.json").write_text(json.dumps(spec))
    (corpus / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|endoftext|>"} | config))
    with pytest.raises(ConfigError, match=rf"^tokenizer '{corpus}/tokenizer.json': {says}"):
        ado.open_corpus(corpus)


def test_an_endpoint_that_does_not_answer_is_named_after_two_seconds(tmp_path, monkeypatch, caplog):
    """The socket takes the connection and never answers."""
    import socket

    from ado_stream.corpus import corpus as module
    from ado_stream.storage.download import download_bytes
    from ado_stream.storage.retry import RetryPolicy

    with socket.create_server(("127.0.0.1", 0)) as server:
        endpoint = f"127.0.0.1:{server.getsockname()[1]}"
        monkeypatch.setenv("S3_ENDPOINT_URL", f"http://user:password@{endpoint}")
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
        monkeypatch.setattr("ado_stream.storage.slow_notice._AFTER_S", 0.1)
        quick = RetryPolicy(attempts=1, read_timeout_s=1.0)
        monkeypatch.setattr(module, "download_bytes", lambda url: download_bytes(url, retry=quick))
        with pytest.raises(StorageError):
            ado.open_corpus("s3://bucket/corpus")
        with pytest.raises(StorageError):
            ado.AdaptiveStreamingDataset([ado.Domain("a", "s3://bucket/a", str(tmp_path))], retry=quick)
    for url in ("s3://bucket/corpus", "s3://bucket/a"):
        assert f"waiting for {url} (S3_ENDPOINT_URL: {endpoint})" in caplog.text
    assert "password" not in caplog.text
