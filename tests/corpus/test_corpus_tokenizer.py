"""Tokenizers give the ids that the tokenizers library gives, and their text back."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Library
from tokenizers import models, normalizers, pre_tokenizers

from ado_stream.corpus.tokenizer import ByteTokenizer, load_tokenizer, train_tokenizer
from ado_stream.errors import ConfigError, DataError, NotFound

TEXTS = [
    "The quick brown fox, it's said, jumps over 13 lazy dogs and 2024 more. " * 3,
    "def main(argv: list[str]) -> int:\n    return sum(len(a) for a in argv)\n\n\t# Zürich, “quoted” — naïve\r\n",
    "東京は日本の首都です。 Ελληνικά и русский 🙂🙂 العربية\u00a0end\u3000",
]
HARD = [
    "",
    " ",
    "  x",
    "x  ",
    "\n\n x\n",
    "a\x00b",
    "\u2028\u2029\u0085",
    "1234567",
    "<|endoftext|>",
    "\U0010ffff",
    "ı İ ß ﬁ",
]


@pytest.fixture(scope="module")
def bpe():
    return train_tokenizer(TEXTS, "bpe:300")


@pytest.fixture(scope="module")
def library(bpe, tmp_path_factory):
    """The same tokenizer as any other program reads it from the file."""
    folder = tmp_path_factory.mktemp("tokenizer")
    return Library.from_file(str(folder / bpe.save(folder)))


def _by_library(library, text):
    library.encode_special_tokens = True
    return library.encode(text, add_special_tokens=False).ids


@given(st.text())
def test_bytes_round_trip(text):
    tokenizer = ByteTokenizer()
    ids = tokenizer.encode(text)
    assert ids.tolist() == list(text.encode())
    assert tokenizer.decode(ids) == text


def test_bytes_spell_out_the_end_and_mark_what_is_not_text():
    tokenizer = load_tokenizer("bytes")
    assert (tokenizer.vocab_size, tokenizer.end_id, tokenizer.dtype, tokenizer.name) == (257, 256, "uint16", "bytes")
    assert tokenizer.decode([0xC3, 256, 65]) == "\ufffd<|endoftext|>A"


@pytest.mark.parametrize("text", HARD + TEXTS)
def test_our_bpe_encoder_equals_the_library(bpe, library, text):
    assert bpe.encode(text).tolist() == _by_library(library, text)


@settings(max_examples=300)
@given(
    st.text(
        st.one_of(st.characters(exclude_categories=["Cs"]), st.sampled_from(" \t\n\r\f\v\u00a0\u200003aZ'é-")),
        max_size=60,
    )
)
def test_our_bpe_encoder_equals_the_library_on_any_text(bpe, library, text):
    ids = bpe.encode(text)
    assert ids.tolist() == _by_library(library, text)
    assert bpe.decode(ids) == text


def test_a_long_text_and_a_full_memo_change_nothing(bpe, monkeypatch):
    from ado_stream.corpus import bpe as module

    expected = bpe.encode(TEXTS[1] * 20)
    monkeypatch.setattr(module, "_LIST_CHARACTERS", 10)
    monkeypatch.setattr(module, "_MEMO_WORDS", 3)
    assert np.array_equal(bpe.encode(TEXTS[1] * 20), expected)
    assert len(bpe._fast._memo) < 100


def test_training_is_deterministic(bpe, tmp_path):
    again = train_tokenizer(TEXTS, "bpe:300")
    for folder, tokenizer in (("a", bpe), ("b", again)):
        (tmp_path / folder).mkdir()
        tokenizer.save(tmp_path / folder)
    assert (tmp_path / "a/tokenizer.json").read_bytes() == (tmp_path / "b/tokenizer.json").read_bytes()


def test_saved_and_loaded_it_is_the_same(bpe, tmp_path):
    bpe.save(tmp_path)
    for place in (tmp_path, tmp_path / "tokenizer.json"):
        loaded = load_tokenizer(place)
        assert (loaded.vocab_size, loaded.end_id, loaded.name) == (300, bpe.end_id, "bpe:300")
        assert loaded._fast is not None
        assert np.array_equal(loaded.encode(TEXTS[1]), bpe.encode(TEXTS[1]))


def test_a_fingerprint_tells_tokenizers_apart_by_what_they_do(bpe, tmp_path):
    """Not by their names or places."""
    bpe.save(tmp_path)
    (tmp_path / "tokenizer.json").rename(tmp_path / "copy.json")
    assert load_tokenizer(tmp_path / "copy.json").fingerprint == bpe.fingerprint
    others = {train_tokenizer(TEXTS, "bpe:299").fingerprint, train_tokenizer(TEXTS[::2] * 9, "bpe:300").fingerprint}
    assert len({bpe.fingerprint, ByteTokenizer().fingerprint} | others) == 4


def test_a_special_token_spelled_in_the_text_does_not_end_the_document(bpe):
    assert bpe.end_id not in bpe.encode("a <|endoftext|> b")
    assert bpe.decode(bpe.encode("a <|endoftext|> b")) == "a <|endoftext|> b"


@pytest.fixture
def foreign(tmp_path):
    """A word-level tokenizer.json with truncation, padding and a normalizer, as a model's might have."""
    vocabulary = {word: n for n, word in enumerate(["[UNK]", "</s>", "a", "b", "[PAD]"])} | {"last": 70_000}
    library = Library(models.WordLevel(vocabulary, unk_token="[UNK]"))
    library.pre_tokenizer = pre_tokenizers.Whitespace()
    library.normalizer = normalizers.Lowercase()
    library.add_special_tokens(["</s>"])
    library.enable_truncation(2)
    library.enable_padding(length=8, pad_id=4)
    library.save(str(tmp_path / "tokenizer.json"))
    return tmp_path


def test_a_given_tokenizer_is_neither_cut_nor_padded(foreign):
    tokenizer = load_tokenizer(foreign / "tokenizer.json")
    ids = tokenizer.encode("A b A b last x")
    assert ids.tolist() == [2, 3, 2, 3, 70_000, 0]
    assert ids.dtype == np.uint32
    assert (tokenizer.vocab_size, tokenizer.dtype, tokenizer.end_id) == (70_001, "uint32", 1)
    assert 1 not in tokenizer.encode("a </s> b")  # the end token's name in a text does not end it


def test_the_end_token_is_the_configs_where_there_is_one(foreign):
    (foreign / "tokenizer_config.json").write_text(json.dumps({"eos_token": {"content": "last"}}))
    assert load_tokenizer(foreign).end_id == 70_000
    (foreign / "tokenizer_config.json").write_text(json.dumps({"eos_token": "nowhere"}))
    with pytest.raises(ConfigError, match="'nowhere' is not in its vocabulary"):
        load_tokenizer(foreign)


def test_what_cannot_be_is_said(tmp_path):
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ConfigError, match="tokenizer"):
        load_tokenizer(tmp_path)
    with pytest.raises(ConfigError, match="has to be trained"):
        load_tokenizer("bpe:300")
    Library(models.WordLevel({"[UNK]": 0}, unk_token="[UNK]")).save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(ConfigError, match="has no end token"):
        load_tokenizer(tmp_path)
    with pytest.raises(ConfigError, match="at least 257"):
        train_tokenizer(TEXTS, "bpe:256")
    with pytest.raises(DataError, match="too little text for 5000; ask for bpe:"):
        train_tokenizer(TEXTS, "bpe:5000")


@pytest.mark.parametrize("spec", ["BYTES", "byte", "bpe", "BPE"])
def test_a_misspelled_word_of_ours_is_no_name_on_the_hub(monkeypatch, spec):
    monkeypatch.setattr("tokenizers.Tokenizer", None)  # the library's own class cannot be changed
    with pytest.raises(ConfigError, match=rf"tokenizer '{spec}': Expected bytes, bpe:N"):
        load_tokenizer(spec)


def test_a_folder_of_such_a_name_is_a_path(tmp_path, monkeypatch):
    (tmp_path / "bpe").mkdir()
    monkeypatch.chdir(tmp_path)
    for spec in ("bpe", Path("bpe"), Path("bytes2")):
        with pytest.raises(NotFound):
            load_tokenizer(spec)


def test_a_hub_that_cannot_be_reached_is_one_error_without_its_retries(tmp_path):
    """In a process of its own, where the hub's library is imported for the first time; nothing listens on that port."""
    code = (
        "import time\n"
        "time.sleep = lambda _: None\n"  # between its retries
        "from ado_stream.cli.main import main\n"
        "raise SystemExit(main(['prepare', 'text.jsonl', '--out', 'corpus', '--tokenizer', 'gpt2']))"
    )
    (tmp_path / "text.jsonl").write_text('{"text": "a b c"}\n')
    environment = {**os.environ, "HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 1
    lines = [line for line in done.stderr.splitlines() if not line.startswith("waiting for the Hugging Face hub")]
    assert lines[0].startswith("StorageError: tokenizer 'gpt2': not fetched from the Hugging Face hub: ")
    assert len(lines) == 2
