"""A corpus of any bytes: whatever a file of it holds, the verbs and the stream end well or with a typed error."""

import json
import shutil
import warnings
from contextlib import suppress

import numpy as np
import pytest
import xxhash
import zstandard

import ado_stream as ado
from ado_stream.cli.main import main
from ado_stream.corpus.checker import CorpusChecker
from ado_stream.corpus.tokenizer import load_tokenizer
from ado_stream.errors import AdoStreamError
from ado_stream.prepare.coordinator import prepare
from ado_stream.prepare.prepare_config import PrepareConfig
from ado_stream.stream.sample_reader import SampleReader
from tests.fuzz.mutations import changed_file, damaged, fuzz

BOOKS = "Books/train"


@pytest.fixture(scope="module")
def made(pile, tmp_path_factory):
    out = tmp_path_factory.mktemp("made") / "corpus"
    settings = {"domain_key": "meta.pile_set_name", "tokenizer": "bpe:300", "seq_len": 64, "val_frac": 0.1}
    prepare(PrepareConfig(tuple(pile[0]), str(out), workers=1, shard_bytes=1 << 16, **settings))
    return out


@pytest.fixture
def corpus(made, tmp_path):
    return shutil.copytree(made, tmp_path / "copy")


def _read_stream(corpus, vocab_size):
    """Some samples of every domain, as validation reads them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # an index may have lost its hashes
        for domain in ado.open_corpus(corpus).domains:
            reader = SampleReader(domain, vocab_size=vocab_size)
            reader.read(np.unique(np.linspace(0, reader.num_samples - 1, 5).astype(np.int64)))


@pytest.mark.parametrize("name", ["corpus.json", "index.json"])
def test_fuzz_json_of_a_corpus(made, corpus, capsys, name):
    path = corpus / (f"{BOOKS}/{name}" if name == "index.json" else name)
    content = path.read_bytes()

    def check(data):
        path.write_bytes(changed_file(data, content))
        for verb in (["info"], ["lint"], ["preview", "--samples", "1", "--domain", "Books"]):
            assert main([verb[0], str(corpus), *verb[1:]]) in (0, 1)
        with suppress(AdoStreamError):
            _read_stream(corpus, 300)
        capsys.readouterr()

    fuzz(check)


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
def test_fuzz_tokenizers(made, corpus, name):
    content = (corpus / name).read_bytes()

    def check(data):
        (corpus / name).write_bytes(changed_file(data, content))
        with suppress(AdoStreamError):
            tokenizer = load_tokenizer(corpus)
            ids = tokenizer.encode("Zürich 12 <|endoftext|> 東京\n\n the of")
            assert isinstance(tokenizer.decode(ids), str)
            tokenizer.decode([tokenizer.end_id, tokenizer.vocab_size - 1, 0])
            assert tokenizer.fingerprint
            tokenizer.save(corpus.parent)

    fuzz(check)


@pytest.mark.parametrize("stored", ["raw", "zstd"])
def test_fuzz_shards(made, corpus, stored):
    """The index has the sizes and hashes of the damaged bytes, as whoever forges a shard would write them."""
    path = corpus / BOOKS / "index.json"
    index = json.loads(path.read_bytes())
    entry = index["shards"][0]
    compressed = corpus / BOOKS / entry["zip_data"]["basename"]
    raw = zstandard.decompress(compressed.read_bytes())
    content = raw if stored == "raw" else compressed.read_bytes()

    def file_entry(name, value):
        return {"basename": name, "bytes": len(value), "hashes": {"xxh64": xxhash.xxh64_hexdigest(value)}}

    def check(data):
        forged = damaged(data, content)
        shutil.rmtree(corpus)
        shutil.copytree(made, corpus)
        if stored == "raw":
            (corpus / BOOKS / entry["raw_data"]["basename"]).write_bytes(forged)
            changes = {"raw_data": file_entry(entry["raw_data"]["basename"], forged), "zip_data": None}
        else:
            compressed.write_bytes(forged)
            changes = {"zip_data": file_entry(compressed.name, forged)}
        path.write_text(json.dumps(index | {"shards": [entry | changes, *index["shards"][1:]]}))
        checker = CorpusChecker(corpus)
        with suppress(AdoStreamError):
            for each in checker.index("Books", "train"):
                checker.shard("Books", "train", each)
        with suppress(AdoStreamError):
            _read_stream(corpus, 300)

    fuzz(check)
