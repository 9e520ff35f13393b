"""Text to token ids and back: bytes, BPE trained on the corpus, or a Hugging Face tokenizer.

A corpus stores its tokenizer as the word "bytes", or as tokenizer.json beside tokenizer_config.json (Hugging Face's
own two files; the second one names the end token). Every document is followed by the end token; text that spells a
special token is encoded as ordinary text, so that no text can end a document.
"""

import json
import math
import os
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import xxhash

from ado_stream.durable import disk_errors
from ado_stream.errors import AdoStreamError, ConfigError, DataError, NotFound, StorageError
from ado_stream.json_files import decode_json
from ado_stream.regular_files import read_regular
from ado_stream.storage.slow_notice import slow_notice
from ado_stream.value_types import Array, JsonObject

if TYPE_CHECKING:
    from tokenizers import Tokenizer as HuggingFace

TOKENIZER_NAME = "tokenizer.json"
TOKENIZER_CONFIG_NAME = "tokenizer_config.json"
BYTES = "bytes"
_END_TOKENS = ("<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>", "<|eos|>", "[SEP]")
_FIM_TOKENS = (  # prefix, suffix, middle as StarCoder 2 and Qwen, StarCoder, Code Llama, DeepSeek, Codestral spell them
    ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"),
    ("<fim_prefix>", "<fim_suffix>", "<fim_middle>"),
    ("\u2581<PRE>", "\u2581<SUF>", "\u2581<MID>"),
    ("<\uff5cfim\u2581begin\uff5c>", "<\uff5cfim\u2581hole\uff5c>", "<\uff5cfim\u2581end\uff5c>"),
    ("[PREFIX]", "[SUFFIX]", "[MIDDLE]"),
)
_EXPECTED = "Expected bytes, bpe:N, a tokenizer.json, a folder that holds one, or a name on the Hugging Face hub."
_MOST_HOLES = 1 << 20
_MOST_GROWTH = 1000
_CHARACTER_MAP_GROWTH = 32  # NFKC makes 18 characters of one at most
_LIBRARY_TEXT_BYTES = 1 << 24  # the tokenizers library takes some 180 bytes of memory for each
_MIN_BPE = 257  # 256 bytes and the end token


class Tokenizer(ABC):
    """Text to ids and back. Ids are uint16 where the vocabulary allows it, else uint32."""

    name: str
    vocab_size: int
    end_id: int
    loses_characters = False  # text may be without ids, and without a word
    max_text_bytes: int | None = None  # of a text that `encode_batch` takes in bounded memory; None: of any
    fim_tokens: tuple[int, int, int] | None = None  # prefix, suffix and middle of fill-in-the-middle, where it has them

    @property
    def dtype(self) -> str:
        """NumPy name of the smallest of uint16 and uint32 that holds every id."""
        return "uint16" if self.vocab_size <= 1 << 16 else "uint32"

    @property
    @abstractmethod
    def fingerprint(self) -> str:
        """Equal for tokenizers that give the same ids, independent of names and paths."""

    def encode(self, text: str) -> Array:
        """(n,) ids of `text`, without the end token."""
        return self.encode_batch([text])[0]

    @abstractmethod
    def encode_batch(self, texts: Sequence[str]) -> list[Array]:
        """The ids of every text."""

    @abstractmethod
    def decode(self, ids: Iterable[int]) -> str:
        """The text of `ids`; the end token is spelled out, bytes that are not UTF-8 become U+FFFD."""

    @abstractmethod
    def save(self, folder: str | os.PathLike[str]) -> str:
        """Writes what `load_tokenizer` needs into `folder`; returns the "tokenizer" of corpus.json."""


class ByteTokenizer(Tokenizer):
    """The UTF-8 bytes themselves, 0 to 255, and 256 as the end token."""

    name = BYTES
    vocab_size = 257
    end_id = 256
    fingerprint = BYTES

    def encode_batch(self, texts: Sequence[str]) -> list[Array]:
        return [np.frombuffer(text.encode(), np.uint8).astype(np.uint16) for text in texts]

    def decode(self, ids: Iterable[int]) -> str:
        parts = [b""]
        for token in ids:  # ids beyond the vocabulary: marks of fill-in-the-middle that were given
            special = b"<|endoftext|>" if token == self.end_id else f"<|{token}|>".encode()
            parts.append(special if token >= self.end_id else bytes((int(token),)))
        return b"".join(parts).decode(errors="replace")

    def save(self, folder: str | os.PathLike[str]) -> str:
        return BYTES


class HuggingFaceTokenizer(Tokenizer):
    """Any tokenizer of the tokenizers library; `end_token` must be in its vocabulary."""

    def __init__(self, tokenizer: "HuggingFace", end_token: str, name: str):
        from ado_stream.corpus.bpe import BpeEncoder, can_encode

        end_id = tokenizer.token_to_id(end_token)
        if end_id is None:
            raise ConfigError(f"{name}: the end token {end_token!r} is not in its vocabulary.")
        tokenizer.no_truncation()
        tokenizer.no_padding()
        tokenizer.encode_special_tokens = True
        self.name = name
        self.end_id = end_id
        vocabulary = tokenizer.get_vocab(with_added_tokens=True)
        self.vocab_size = max(vocabulary.values()) + 1
        if self.vocab_size > 2 * len(vocabulary) + _MOST_HOLES:  # the library writes out each id that is missing
            raise ConfigError(
                f"tokenizer {name!r}: ids up to {self.vocab_size - 1:,} for {len(vocabulary):,} tokens; expected ids "
                "without holes."
            )
        self._end_token = end_token
        self._tokenizer = tokenizer
        marks = [tuple(vocabulary[each] for each in names) for names in _FIM_TOKENS if vocabulary.keys() >= {*names}]
        self.fim_tokens = marks[0] if marks else None
        spec = json.loads(tokenizer.to_str())
        if spec["model"].get("dropout"):
            raise ConfigError(
                f"tokenizer {name!r}: its BPE has dropout {spec['model']['dropout']}, so that its ids are random.\n"
                "  Set 'dropout' to null in its tokenizer.json."
            )
        if (growth := _growth(spec["normalizer"]) * _growth(spec["decoder"])) > _MOST_GROWTH:
            raise ConfigError(
                f"tokenizer {name!r}: what it replaces may grow to {growth:,} times the text: a bomb, or a mistake.\n"
                "  Correct 'normalizer' and 'decoder' in its tokenizer.json."
            )
        self.loses_characters = _loses_characters(spec)
        self._fast = BpeEncoder(tokenizer, self.dtype) if can_encode(spec) else None
        self.max_text_bytes = None if self._fast else _LIBRARY_TEXT_BYTES

    @property
    def fingerprint(self) -> str:
        return xxhash.xxh64_hexdigest(f"{self.end_id} {self._tokenizer.to_str()}".encode())

    def encode_batch(self, texts: Sequence[str]) -> list[Array]:
        if self._fast is not None:
            return [self._fast.encode(text) for text in texts]
        advice = "Give it an unknown token that covers such text, or use another tokenizer."
        with _library_errors(self.name, advice, DataError):
            encodings = self._tokenizer.encode_batch(list(texts), add_special_tokens=False)
        return [np.array(encoding.ids, self.dtype) for encoding in encodings]

    def decode(self, ids: Iterable[int]) -> str:
        text: str = self._tokenizer.decode([int(token) for token in ids], skip_special_tokens=False)
        return text

    def save(self, folder: str | os.PathLike[str]) -> str:
        folder = Path(folder)
        self._tokenizer.save(str(folder / TOKENIZER_NAME), pretty=False)
        config = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_input_names": ["input_ids", "attention_mask"],  # else token_type_ids too, which decoders refuse
            "eos_token": self._end_token,
            "name": self.name,
        }
        (folder / TOKENIZER_CONFIG_NAME).write_text(json.dumps(config, indent=1) + "\n")
        return TOKENIZER_NAME


def bpe_vocabulary(spec: str) -> int | None:
    """N of "bpe:N", None for another spec. Raises ConfigError for an invalid N."""
    if not spec.startswith("bpe:"):
        return None
    size = spec.removeprefix("bpe:")
    if not re.fullmatch("[0-9]{3,8}", size) or int(size) < _MIN_BPE:
        raise ConfigError(
            f"tokenizer {spec!r:.80}: N must be an integer of at least {_MIN_BPE} and 8 digits, as in bpe:8192."
        )
    return int(size)


def train_tokenizer(texts: Iterable[str], spec: str) -> Tokenizer:
    """The tokenizer of a "bpe:N" spec, trained on `texts`. Raises DataError when the texts give fewer than N ids."""
    from ado_stream.corpus.bpe import END_TOKEN, train_bpe

    size = bpe_vocabulary(spec)
    assert size is not None
    trained = train_bpe(texts, size)
    if trained.get_vocab_size() < size:
        raise DataError(
            f"tokenizer {spec}: the text gives only {trained.get_vocab_size()} different tokens.\n"
            f"  That is too little text for {size}; ask for bpe:{trained.get_vocab_size()} or fewer, or use bytes."
        )
    return HuggingFaceTokenizer(trained, END_TOKEN, spec)


@disk_errors("the tokenizer", "Make it readable.")
def load_tokenizer(spec: str | os.PathLike[str]) -> Tokenizer:
    """The tokenizer of `spec`: "bytes", a tokenizer.json, a folder that holds one, or a name on the Hugging Face hub.

    Raises NotFound for a path without one, ConfigError: unreadable, unknown on the hub, without an end token.
    """
    is_path, spec = isinstance(spec, os.PathLike), str(spec)
    if spec == BYTES:
        return ByteTokenizer()
    if bpe_vocabulary(spec) is not None:
        raise ConfigError(f"tokenizer {spec!r} has to be trained; give the tokenizer.json that `prepare` wrote.")
    if is_path or _is_path(spec):
        return load_tokenizer_file(Path(os.path.expanduser(spec)), spec)
    if spec.lower() in (BYTES, "byte", "bpe"):  # anybody may publish one of that name
        raise ConfigError(f"tokenizer {spec!r}: {_EXPECTED}")
    from huggingface_hub.utils import logging as hub_log
    from tokenizers import Tokenizer as HuggingFace

    level = hub_log.get_verbosity()
    hub_log.set_verbosity_error()  # type: ignore[no-untyped-call]  # it logs each of its retries at length
    try:
        with slow_notice(f"the Hugging Face hub, tokenizer {spec!r}"), _library_errors(spec, _EXPECTED):
            tokenizer = HuggingFace.from_pretrained(spec)
    except OSError as error:
        reason = str(error).partition("\n")[0].rstrip(".")
        raise StorageError(
            f"tokenizer {spec!r}: not fetched from the Hugging Face hub: {reason}.\n  {_EXPECTED}"
        ) from error
    finally:
        hub_log.set_verbosity(level)
    return _loaded(spec, tokenizer, {})


def load_tokenizer_file(path: Path, spec: str | None = None) -> Tokenizer:
    """The tokenizer of a tokenizer.json, or of a folder that holds one; never one of the Hugging Face hub.

    `spec` is its name unless the configuration beside it has one. Raises NotFound, ConfigError.
    """
    from tokenizers import Tokenizer as HuggingFace

    spec = spec or str(path)
    path = path / TOKENIZER_NAME if path.is_dir() else path
    if not path.is_file():
        raise NotFound(f"tokenizer {spec!r}: {path}: no such file.\n  {_EXPECTED}")
    with disk_errors(path, "Make it readable."), _library_errors(spec, _EXPECTED):
        tokenizer = HuggingFace.from_buffer(read_regular(path))
    return _loaded(spec, tokenizer, _config_beside(path))


def _is_path(spec: str) -> bool:
    """Whether `spec` is a path: it is here, its folder is, or no name on the hub is written so."""
    path = Path(spec).expanduser()
    if path.exists() or spec.startswith((".", "~", "/")) or path.suffix == ".json":
        return True
    return len(path.parts) > 2 or (len(path.parts) == 2 and path.parent.is_dir())


def _loaded(spec: str, tokenizer: "HuggingFace", config: JsonObject) -> Tokenizer:
    name = config.get("name", spec)
    if not isinstance(name, str):
        raise ConfigError(f"tokenizer {spec!r}: 'name' in its {TOKENIZER_CONFIG_NAME} is {name!r}; expected text.")
    return HuggingFaceTokenizer(tokenizer, _end_token(spec, tokenizer, config), name)


def _growth(part: JsonObject | None) -> int:
    """How many times as long a normalizer or decoder may make a text, of the parts for which that has no bound."""
    part = part or {}
    if part.get("type") == "Sequence":
        return math.prod(map(_growth, part.get("normalizers") or part.get("decoders") or ()))
    if part.get("type") == "Precompiled":
        return _CHARACTER_MAP_GROWTH
    if part.get("type") == "Prepend":
        return 1 + len(part["prepend"])
    if part.get("type") != "Replace":
        return 1
    replaced = len(part["pattern"].get("String", ""))  # 0: of a regular expression, which may match nothing
    return math.ceil(len(part["content"]) / replaced) or 1 if replaced else 1 + len(part["content"])


def _loses_characters(spec: JsonObject) -> bool:
    """Whether text has characters that the library leaves out: of a BPE alone, the other models raise an error."""
    from tokenizers.pre_tokenizers import ByteLevel

    model, parts = spec["model"], json.dumps([spec["normalizer"], spec["pre_tokenizer"]])
    if model["type"] != "BPE" or model.get("unk_token") is not None:
        return False
    by_byte = [f"<0x{byte:02X}>" for byte in range(256)] if model.get("byte_fallback") else ["\0"]
    spelled = ByteLevel.alphabet() if '"ByteLevel"' in parts else by_byte
    return not model["vocab"].keys() >= {*spelled}


@contextmanager
def _library_errors(name: str, advice: str, error_type: type[AdoStreamError] = ConfigError) -> Iterator[None]:
    """Turns any error of the tokenizers library into `error_type`: bare Exception, or a panic of its Rust code."""
    try:
        yield
    except (OSError, AdoStreamError):
        raise
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise error_type(f"tokenizer {name!r}: {str(error).partition(chr(10))[0].rstrip('.')}.\n  {advice}") from error


def _config_beside(path: Path) -> JsonObject:
    file = path.parent / TOKENIZER_CONFIG_NAME
    if not os.path.lexists(file):  # a link to nothing is an error: without its end token another one would be taken
        return {}
    with disk_errors(file, "Make it readable."):
        return decode_json(read_regular(file), JsonObject, str(file), ConfigError)


def _end_token(spec: str, tokenizer: "HuggingFace", config: JsonObject) -> str:
    token = config.get("eos_token")
    if isinstance(token, dict):
        token = token.get("content") or token
    if token is not None and not isinstance(token, str):
        raise ConfigError(
            f"tokenizer {spec!r}: 'eos_token' in its {TOKENIZER_CONFIG_NAME} is {token!r}; expected one token's text."
        )
    if token is not None:
        return token
    for candidate in _END_TOKENS:
        if tokenizer.token_to_id(candidate) is not None:
            return candidate
    raise ConfigError(
        f"tokenizer {spec!r} has no end token: none of {', '.join(_END_TOKENS)} is in its vocabulary.\n"
        f"  Put a {TOKENIZER_CONFIG_NAME} beside it that names one under 'eos_token'."
    )
