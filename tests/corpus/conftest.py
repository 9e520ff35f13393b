"""A corpus of three domains with a trained tokenizer and validation text: prepared once, copied to be damaged."""

import functools
import shutil

import pytest

from ado_stream.prepare.coordinator import prepare
from ado_stream.prepare.prepare_config import PrepareConfig
from tests.json_files import edit_json


@pytest.fixture(scope="session")
def make_config(pile):
    """A function: how that corpus is prepared into a folder or a bucket."""

    def config(out) -> PrepareConfig:
        return PrepareConfig(
            tuple(pile[0]), str(out), seq_len=64, domain_key="meta.pile_set_name", tokenizer="bpe:300", val_frac=0.1,
            workers=1, shard_bytes=1 << 16,
        )  # fmt: skip

    return config


@pytest.fixture(scope="session")
def made(make_config, tmp_path_factory):
    """The corpus, not to be changed."""
    return prepare(make_config(tmp_path_factory.mktemp("made") / "corpus"))


@pytest.fixture
def corpus(made, tmp_path):
    """A copy to damage."""
    return shutil.copytree(made, tmp_path / "copy")


@pytest.fixture
def corpus_copy(corpus):
    """A corpus to damage: (folder, function that edits corpus.json)"""
    return corpus, functools.partial(edit_json, corpus / "corpus.json")
