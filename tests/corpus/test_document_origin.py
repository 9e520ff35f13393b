"""The documents that samples were cut from, against plain loops over the documents."""

import json
from pathlib import Path

import numpy as np
import pytest
import yaml

from ado_stream.corpus import open_corpus
from ado_stream.corpus.document_origin import locate_documents
from ado_stream.corpus.manifest import num_samples
from ado_stream.errors import IndexInvalid
from ado_stream.prepare.coordinator import prepare
from ado_stream.prepare.prepare_config import PrepareConfig
from ado_stream.stream import flat_index
from tests.json_files import edit_json
from tests.stream.flat_data import make_documents, write_megatron, write_raw


def ranges(lengths: list[int], begins, width: int) -> list[tuple[int, int]]:
    """(first, last) document of the `width` tokens from each of `begins` on, of documents of these lengths."""
    owner = [number for number, length in enumerate(lengths) for _ in range(length)]
    return [(owner[begin], owner[begin + width - 1]) for begin in begins]


@pytest.mark.parametrize("split", ["train", "val"])
def test_documents_of_joined_samples(made, pile, split):
    """Of all domains, in many shards; those held out by their hash are counted in their own split."""
    corpus = open_corpus(made, split)
    for domain in corpus.domains:
        everything = [each["text"] for each in pile[1] if each["meta"]["pile_set_name"] == domain.name]
        index = json.loads((Path(domain.local) / "index.json").read_bytes())
        num = num_samples(corpus.manifest["domains"][domain.name], split)
        found = locate_documents(corpus, domain, np.arange(num))
        assert len(index["shards"]) > (1 if split == "train" else 0)
        lengths = of_split(corpus, domain.name, everything, made, split)
        expected = ranges(lengths, range(0, num * 65, 65), 65)
        assert [(each.first, each.last) for each in found] == expected
        some = np.array([num - 1, 0, num // 2])
        assert locate_documents(corpus, domain, some) == [found[number] for number in some]


def of_split(corpus, domain, texts, made, split) -> list[int]:
    """Tokens of each document of the split: which those are is what the shards hold, in the order of the input."""
    import xxhash

    val = [xxhash.xxh64_intdigest(text.encode()) < 0.1 * 2**64 for text in texts]
    return [
        len(corpus.tokenizer.encode(text)) + 1
        for text, held_out in zip(texts, val, strict=True)
        if held_out == (split == "val")
    ]


def test_samples_of_best_fit_say_no_documents(pile, tmp_path):
    config = PrepareConfig(
        tuple(pile[0]), str(tmp_path / "c"), seq_len=64, domain_key="meta.pile_set_name", packing="best-fit", workers=1
    )
    corpus = open_corpus(prepare(config))
    assert locate_documents(corpus, corpus.domains[0], np.arange(4)) is None


def test_a_corpus_that_was_prepared_before_says_none(corpus):
    opened = open_corpus(corpus)
    domain = opened.domains[0]
    for path in (Path(domain.local) / "index.json",):
        edit_json(path, lambda index: index.pop("first_documents"))
    assert locate_documents(opened, domain, np.arange(4)) is None


def test_numbers_that_do_not_fit_the_shards_are_refused(corpus):
    opened = open_corpus(corpus)
    domain = opened.domains[0]
    for value in ([0], "many", [0, "x"]):
        edit_json(Path(domain.local) / "index.json", lambda index, value=value: index.update(first_documents=value))
        with pytest.raises(IndexInvalid, match="first_documents"):
            locate_documents(opened, domain, np.arange(4))


def test_documents_of_megatron_files(tmp_path, monkeypatch):
    """By the .idx alone: two files, shards of a few samples, numbers of each file."""
    monkeypatch.setattr(flat_index, "SHARD_BYTES", 300)
    files = {"a": make_documents(1), "b": make_documents(2)}
    for name, documents in files.items():
        write_megatron(tmp_path / "web" / name, documents)
    write_raw(tmp_path / "code.npy", np.concatenate(make_documents(3)))
    domains = {
        "web": {"format": "megatron", "path": "web"},
        "code": {"format": "npy", "path": "code.npy", "token_dtype": "uint16"},
    }
    content = {"seq_len": 16, "tokenizer": "bytes", "end_token": 0, "domains": domains}
    (tmp_path / "corpus.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    corpus = open_corpus(tmp_path / "corpus.yaml")
    expected = []
    for name, documents in files.items():
        lengths = [len(document) for document in documents]
        begins = range(0, sum(lengths) - 16, 16)
        expected += [(*each, f"{tmp_path}/web/{name}.bin") for each in ranges(lengths, begins, 17)]
    assert [tuple(each) for each in locate_documents(corpus, corpus.domains[0], np.arange(len(expected)))] == expected
    assert locate_documents(corpus, corpus.domains[1], np.arange(4)) is None
