"""Ids are the library's own for any tokenizer, and our encoder is used exactly where it gives the same."""

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, models, normalizers, pre_tokenizers, processors
from tokenizers import Tokenizer as Library

from ado_stream.corpus.tokenizer import HuggingFaceTokenizer, load_tokenizer, load_tokenizer_file, train_tokenizer
from ado_stream.errors import ConfigError, DataError, NotFound, StorageError

END = "<|endoftext|>"
TEXTS = [
    "The quick brown fox, it's said, jumps over 13 lazy dogs and 2024 more. " * 3,
    "# Zürich, “quoted” — naïve\r\n\n\t東京は日本の首都です。 Ελληνικά 🙂",
]
PRE_TOKENIZERS = [
    lambda: pre_tokenizers.ByteLevel(add_prefix_space=True),
    lambda: pre_tokenizers.ByteLevel(add_prefix_space=False),
    lambda: pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    lambda: pre_tokenizers.Metaspace(),
    lambda: pre_tokenizers.Metaspace(prepend_scheme="never", split=False),
    lambda: pre_tokenizers.Whitespace(),
    lambda: pre_tokenizers.WhitespaceSplit(),
    lambda: pre_tokenizers.BertPreTokenizer(),
    lambda: pre_tokenizers.Punctuation(),
    lambda: pre_tokenizers.Digits(individual_digits=True),
    lambda: pre_tokenizers.UnicodeScripts(),
    lambda: pre_tokenizers.CharDelimiterSplit("e"),
    lambda: pre_tokenizers.Split("o", "merged_with_next"),
    lambda: pre_tokenizers.Sequence([pre_tokenizers.Digits(), pre_tokenizers.ByteLevel()]),
]
NORMALIZERS = [
    lambda: normalizers.NFC(),
    lambda: normalizers.NFD(),
    lambda: normalizers.NFKC(),
    lambda: normalizers.NFKD(),
    lambda: normalizers.Lowercase(),
    lambda: normalizers.StripAccents(),
    lambda: normalizers.Strip(),
    lambda: normalizers.Nmt(),
    lambda: normalizers.BertNormalizer(),
    lambda: normalizers.Prepend("x"),
    lambda: normalizers.Replace("a", "o"),
    lambda: normalizers.ByteLevel(),
    lambda: normalizers.Sequence([normalizers.NFD(), normalizers.Lowercase()]),
]
POST_PROCESSORS = [
    lambda: processors.ByteLevel(trim_offsets=False),
    lambda: processors.TemplateProcessing(single=f"{END} $A", special_tokens=[(END, 0)]),
]
WORDS = ["fox", " ", "the", "13", "2024", "Zürich", "<x>", "a", "é", "e\u0301", "A", "\n", "</s>", "東京", END]


@pytest.fixture(scope="module")
def trained():
    """tokenizer.json of a BPE that `prepare` trained."""
    return train_tokenizer(TEXTS, "bpe:300")._tokenizer.to_str()


@st.composite
def variants(draw):
    """Changes to a trained tokenizer: of its parts and options, and added tokens; often only a few."""
    flag = st.booleans()
    options = {
        "byte_fallback": flag,
        "ignore_merges": flag,
        "fuse_unk": flag,
        "unk_token": st.sampled_from([None, END]),
        "continuing_subword_prefix": st.sampled_from([None, ""]),
        "end_of_word_suffix": st.sampled_from([None, ""]),
    }
    added = st.builds(
        AddedToken,
        st.sampled_from(["fox", " fox", "the", "13", "Zürich", "<x>", "a", "</s>", "\n"]),
        single_word=flag,
        lstrip=flag,
        rstrip=flag,
        normalized=flag,
        special=flag,
    )
    parts = {"pre_tokenizer": PRE_TOKENIZERS, "normalizer": NORMALIZERS, "post_processor": POST_PROCESSORS}
    return {
        "parts": {part: draw(st.sampled_from(made)) for part, made in parts.items() if draw(st.integers(0, 2)) == 0},
        "model": {key: draw(values) for key, values in options.items() if draw(st.integers(0, 3)) == 0},
        "added": draw(st.lists(added, max_size=3)),
    }


def _variant(spec, parts=(), model=(), added=()):
    content = json.loads(spec)
    content["model"].update(model)
    library = Library.from_str(json.dumps(content))
    for part, make in dict(parts).items():
        setattr(library, part, make())
    library.add_tokens(list(added))
    return library.to_str()


def _ours(spec):
    return HuggingFaceTokenizer(Library.from_str(spec), END, "variant")


@settings(max_examples=300)
@given(
    variant=variants(),
    words=st.lists(st.sampled_from(WORDS) | st.text(st.characters(exclude_categories=["Cs"]), max_size=5), max_size=15),
)
def test_ids_of_generated_tokenizers_are_the_librarys(trained, variant, words):
    spec = _variant(trained, **variant)
    library = Library.from_str(spec)
    library.encode_special_tokens = True
    text = "".join(words)
    assert _ours(spec).encode(text).tolist() == library.encode(text, add_special_tokens=False).ids


DIFFERENT = [
    {"added": [AddedToken("fox", special=False)]},
    {"model": {"ignore_merges": True}},
    {"model": {"byte_fallback": True}},
    {"model": {"fuse_unk": True}},
    {"parts": {"normalizer": NORMALIZERS[0]}},
    {"parts": {"pre_tokenizer": PRE_TOKENIZERS[1]}},
    {"parts": {"post_processor": POST_PROCESSORS[1]}},
]


def test_our_encoder_is_used_where_it_applies_and_only_there(trained):
    for same in ({}, {"added": [AddedToken("<x>", special=True)]}):
        assert _ours(_variant(trained, **same))._fast is not None
    for change in DIFFERENT:
        assert _ours(_variant(trained, **change))._fast is None, change


def test_an_option_of_a_later_release_is_not_overlooked(trained):
    from ado_stream.corpus.bpe import can_encode

    spec = json.loads(trained)
    assert can_encode(spec)
    assert not can_encode(spec | {"phase": "new"})
    assert not can_encode(spec | {"model": spec["model"] | {"max_merges": 3}})


def test_random_ids_are_refused(trained, tmp_path):
    (tmp_path / "tokenizer.json").write_text(_variant(trained, model={"dropout": 0.1}))
    with pytest.raises(ConfigError, match="has dropout 0.1, so that its ids are random"):
        load_tokenizer(tmp_path)


def test_text_that_the_tokenizer_has_no_ids_for_is_an_error(tmp_path):
    Library(models.WordLevel({"a": 0, "</s>": 1}, unk_token="[UNK]")).save(str(tmp_path / "tokenizer.json"))
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.encode("a").tolist() == [0]
    with pytest.raises(DataError, match=r"Missing \[UNK\] token.*\n  Give it an unknown token"):
        tokenizer.encode("b")


ALPHABET = sorted(pre_tokenizers.ByteLevel.alphabet())
BYTE_LEVEL = pre_tokenizers.ByteLevel(add_prefix_space=False)
LOSSES = {
    "no unknown token": ({"a": 0, "</s>": 1}, {}, None, True),
    "an unknown token": ({"a": 0, "</s>": 1}, {"unk_token": "a"}, None, False),
    "bytes": ({letter: n for n, letter in enumerate([*ALPHABET, "</s>"])}, {}, BYTE_LEVEL, False),
    "a byte too few": ({letter: n for n, letter in enumerate([*ALPHABET[1:], "</s>"])}, {}, BYTE_LEVEL, True),
    "byte fallback": (
        {f"<0x{n:02X}>": n for n in range(256)} | {"</s>": 256}, {"byte_fallback": True}, None, False,
    ),
    "byte fallback without bytes": ({"a": 0, "</s>": 1}, {"byte_fallback": True}, None, True),
}  # fmt: skip


@pytest.mark.parametrize("case", LOSSES)
def test_a_tokenizer_that_loses_characters_is_known(tmp_path, case):
    vocabulary, options, pre_tokenizer, loses = LOSSES[case]
    library = Library(models.BPE(vocabulary, [], **options))
    if pre_tokenizer is not None:
        library.pre_tokenizer = pre_tokenizer
    library.save(str(tmp_path / "tokenizer.json"))
    tokenizer = load_tokenizer(tmp_path)
    texts = [chr(n) for n in (*range(1, 0x300), 0x4E00, 0x1F600)]
    assert tokenizer.loses_characters == loses == any(tokenizer.encode(text).size == 0 for text in texts)


GROWING = {"type": "Replace", "pattern": {"String": "a"}, "content": "a" * 10}
BOMBS = {
    "replacements of replacements": [GROWING] * 4,
    "in a sequence of sequences": [{"type": "Sequence", "PARTS": [GROWING] * 2}] * 2,
    "where nothing stood": [{"type": "Replace", "pattern": {"Regex": ""}, "content": "a" * 1000}],
}


@pytest.mark.parametrize("case", BOMBS)
@pytest.mark.parametrize("part", ["normalizer", "decoder"])
def test_a_tokenizer_that_blows_a_text_up_is_refused(trained, tmp_path, case, part):
    """Of 24 tokens a preview would else make a text without end, and the library ends the process."""
    spec = json.loads(trained)
    spec[part] = {"type": "Sequence", "PARTS": BOMBS[case]}
    (tmp_path / "tokenizer.json").write_text(json.dumps(spec).replace("PARTS", f"{part}s"))
    with pytest.raises(ConfigError, match=r"may grow to [0-9,]+ times the text"):
        load_tokenizer(tmp_path)
    usual = [{"type": "Replace", "pattern": {"String": "``"}, "content": '"'}] * 20
    spec[part] = {"type": "Sequence", f"{part}s": [*usual, {**GROWING, "content": "a" * 100}]}
    (tmp_path / "tokenizer.json").write_text(json.dumps(spec))
    load_tokenizer(tmp_path)


def test_a_configuration_that_is_a_link_to_nothing_is_refused(trained, tmp_path):
    """As where a cache lost its blobs. Without the end token that it names another one would be taken."""
    (tmp_path / "tokenizer.json").write_text(trained)
    (tmp_path / "tokenizer_config.json").symlink_to("blob")
    with pytest.raises(StorageError, match=r"tokenizer_config.json: No such file"):
        load_tokenizer(tmp_path)


ODD_CONFIGS = {
    r"'eos_token' .* is \['</s>'\]; expected one token's text": {"eos_token": ["</s>"]},
    "'eos_token' .* is 3; expected": {"eos_token": {"content": 3}},
    "'eos_token' .* is {'lstrip': True}; expected": {"eos_token": {"lstrip": True}},
    r"tokenizer_config.json \['</s>'\]: expected an object": ["</s>"],
    "'name' .* is 3; expected text": {"name": 3},
}


@pytest.mark.parametrize("message", ODD_CONFIGS)
def test_a_configuration_of_odd_shape_is_refused(trained, tmp_path, message):
    (tmp_path / "tokenizer.json").write_text(trained)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(ODD_CONFIGS[message]))
    with pytest.raises(ConfigError, match=message):
        load_tokenizer(tmp_path)


def test_the_file_of_a_corpus_is_never_looked_for_on_the_hub(tmp_path, monkeypatch):
    asked = []

    class Stub:  # the library's own class cannot be changed
        @staticmethod
        def from_pretrained(name):
            asked.append(name)
            raise ValueError("no network\nand five screens more")

    monkeypatch.setattr("tokenizers.Tokenizer", Stub)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "corpus").mkdir()
    written = (
        "corpus/tokenizer.json",
        "corpus",
        "corpus/tokens",
        "./gpt2",
        "~/gpt2",
        "a/b/c",
        "/gpt2",
        "tokenizer.json",
    )
    for spec in (*written, Path("gpt2"), Path("owner/name")):
        with pytest.raises(NotFound, match="no such file"):
            load_tokenizer(spec)
    with pytest.raises(NotFound, match="no such file"):
        load_tokenizer_file(tmp_path / "gpt2")
    assert asked == []
    for spec in ("gpt2", "owner/name"):
        with pytest.raises(ConfigError, match=f"tokenizer '{spec}': no network.\n  Expected") as caught:
            load_tokenizer(spec)
        assert "screens" not in str(caught.value)
    assert asked == ["gpt2", "owner/name"]
