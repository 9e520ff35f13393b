"""`ado-stream lint`: a good corpus passes, and whatever is changed in one is found and named."""

import json
import shutil

import pytest

from ado_stream.cli.main import main
from tests.json_files import edit_json


@pytest.fixture(scope="module")
def made(prepare_texts, tmp_path_factory):
    texts = {f"{name}.txt": "".join(f"{name} {n}\n" for n in range(4000)) for name in ("code", "law")}
    return prepare_texts(tmp_path_factory.mktemp("made"), texts, "--seq-len", "31", "--shard-mb", "0.03")


@pytest.fixture
def corpus(made, tmp_path):
    return shutil.copytree(made, tmp_path / "c")


def test_a_good_corpus_passes(corpus, capsys):
    assert main(["lint", str(corpus)]) == 0
    num_shards = len(list(corpus.rglob("shard.*")))
    assert num_shards > 4
    assert capsys.readouterr().out == f"{num_shards} shards checked, no problems\n"


def test_every_bad_shard_is_named(corpus, capsys):
    flipped, cut, gone = (
        corpus / f"{name}.mds.zstd"
        for name in ("code/train/shard.00001", "law/train/shard.00000", "law/train/shard.00002")
    )
    data = bytearray(flipped.read_bytes())
    data[len(data) // 2] ^= 1
    flipped.write_bytes(data)
    cut.write_bytes(cut.read_bytes()[:-1])
    gone.unlink()
    assert main(["lint", str(corpus)]) == 1
    errors = capsys.readouterr().err
    assert f"ShardCorrupt: {flipped}: xxh64" in errors
    assert f"ShardCorrupt: {cut}: " in errors
    assert f"NotFound: {gone}" in errors
    assert main(["lint", str(corpus), "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert len(found["problems"]) == 3


def test_a_token_outside_the_vocabulary_is_found(corpus, capsys):
    edit_json(corpus / "corpus.json", lambda manifest: manifest.update(vocab_size=100))
    assert main(["lint", str(corpus)]) == 1
    assert "the vocabulary ends at 99" in capsys.readouterr().err


def test_shards_of_another_corpus_are_found(corpus, capsys):
    """Good shards with a good index, but not those that corpus.json was written for."""
    (corpus / "code/train").rename(corpus / "kept")
    (corpus / "law/train").rename(corpus / "code/train")
    (corpus / "kept").rename(corpus / "law/train")
    edit_json(
        corpus / "corpus.json",
        lambda m: [m["domains"][a]["splits"]["train"].update(samples=_samples(corpus, a)) for a in ("code", "law")],
    )
    assert main(["lint", str(corpus)]) == 1
    errors = capsys.readouterr().err
    assert "domain 'code': its shards are not those" in errors
    assert "domain 'law': its shards are not those" in errors


def _samples(corpus, domain):
    index = json.loads((corpus / domain / "train/index.json").read_bytes())
    return sum(shard["samples"] for shard in index["shards"])


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b'{"shards": [{}]}', b'{"version": 2, "shards": []}'])
def test_a_bad_index_is_named(corpus, capsys, data):
    (corpus / "law/train/index.json").write_bytes(data)
    assert main(["lint", str(corpus)]) == 1
    assert f"IndexInvalid: {corpus}/law/train/index.json" in capsys.readouterr().err


def test_a_tokenizer_that_the_corpus_cannot_be_opened_with_is_found(corpus, capsys):
    edit_json(corpus / "corpus.json", lambda manifest: manifest.update(tokenizer="tokenizer.json"))
    assert main(["lint", str(corpus)]) == 1
    assert f"NotFound: {corpus}/tokenizer.json: no such file" in capsys.readouterr().err
