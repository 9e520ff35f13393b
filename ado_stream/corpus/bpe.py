"""Byte-level BPE: trained by the tokenizers library, encoded here several times as fast.

Text is split into words by a pattern of explicit code points, so that Python's `re` and the library's engine
(Oniguruma) split alike, independent of their Unicode tables; each word's ids come from a memo and are joined as bytes.
The result equals `tokenizers.Tokenizer.encode`, and the saved tokenizer.json gives the same ids in any program that
reads it. Byte-level BPE: Radford et al. 2019, section 2.2. The memo helps because words repeat: the merges run for a
few in a hundred of them. benchmarks/bench_prepare_rate.py compares the two encoders.
"""

import json
import re
from collections.abc import Iterable, Iterator
from itertools import islice

import numpy as np
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from ado_stream.value_types import Array, JsonObject, TokenDtype

END_TOKEN = "<|endoftext|>"
_MEMO_WORDS = 1 << 19  # bounds the memory: a full memo is emptied
_MEMO_CHARACTERS = 64  # longer words seldom repeat
_LIST_CHARACTERS = 1 << 20
_WORDS_AT_ONCE = 1 << 16

# Letters: ASCII letters and every code point above Latin-1 punctuation but general and CJK punctuation. A word may
# begin with one space.
_SPACE = r" \t\n\r\f\v"
_LETTERS = r"A-Za-z\u00c0-\u1fff\u2070-\u2fff\u3040-\U0010ffff"
_PATTERN = rf" ?[{_LETTERS}]+|[0-9]{{1,3}}| ?[^{_SPACE}0-9{_LETTERS}]+|[{_SPACE}]+(?![^{_SPACE}])|[{_SPACE}]+"


def train_bpe(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """A byte-level BPE tokenizer of `vocab_size` ids, END_TOKEN being id 0; the same for the same texts."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = _pre_tokenizer()
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_TOKEN],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def can_encode(spec: JsonObject) -> bool:
    """Whether `BpeEncoder` gives the ids of the tokenizer whose tokenizer.json is `spec`.

    Every part and option must be that of `train_bpe`, those of later releases of the library included, except the
    vocabulary, the merges, the decoder, and special tokens, which both encoders treat as plain text.
    """
    reference = Tokenizer(models.BPE())
    reference.pre_tokenizer = _pre_tokenizer()
    expected = json.loads(reference.to_str())
    return _options(spec) == _options(expected) and all(token["special"] for token in spec["added_tokens"])


def _options(spec: JsonObject) -> JsonObject:
    """`spec` without the parts that do not matter to `can_encode`."""
    model = {key: value for key, value in spec["model"].items() if key not in ("vocab", "merges")}
    return {key: value for key, value in spec.items() if key not in ("added_tokens", "decoder")} | {"model": model}


class BpeEncoder:
    """Text to ids, for tokenizers that it `can_encode`. Special tokens in the text are plain text."""

    def __init__(self, tokenizer: Tokenizer, dtype: str):
        self._pattern = re.compile(_PATTERN)
        self._memo = _Memo(tokenizer, np.dtype(dtype))
        self._dtype = np.dtype(dtype)

    def encode(self, text: str) -> Array:
        """(n,) ids of `text`."""
        words = self._words(text)
        parts = []
        while some := list(islice(words, _WORDS_AT_ONCE)):  # one text may fill the memo many times
            if len(self._memo) > _MEMO_WORDS:
                self._memo.clear()
            parts.append(b"".join(map(self._memo.__getitem__, some)))
        return np.frombuffer(b"".join(parts), self._dtype)

    def _words(self, text: str) -> Iterator[str]:
        """The words of `text`: all at once, which is faster, unless the list would be far larger than the text."""
        if len(text) <= _LIST_CHARACTERS:
            return iter(self._pattern.findall(text))
        return (match.group() for match in self._pattern.finditer(text))


class _Memo(dict[str, bytes]):
    """word -> its ids as bytes; the library's model merges a word on its first use."""

    def __init__(self, tokenizer: Tokenizer, dtype: TokenDtype):
        super().__init__()
        self._model = tokenizer.model
        self._dtype = dtype
        self._alphabet = _byte_alphabet()

    def __missing__(self, word: str) -> bytes:
        spelled = word.encode().decode("latin-1").translate(self._alphabet)
        ids = np.array([token.id for token in self._model.tokenize(spelled)], self._dtype).tobytes()
        if len(word) <= _MEMO_CHARACTERS:
            self[word] = ids
        return ids


def _byte_alphabet() -> dict[int, str]:
    """byte -> the character that byte-level BPE writes for it: itself if printable, else one from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {**{byte: chr(byte) for byte in printable}, **{byte: chr(256 + n) for n, byte in enumerate(others)}}


def _pre_tokenizer() -> pre_tokenizers.PreTokenizer:
    # Oniguruma writes code points as \x{...} where Python writes \u.... or \U........
    oniguruma = re.sub(r"\\[uU]0*([0-9a-f]+)", r"\\x{\1}", _PATTERN)
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(oniguruma), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
