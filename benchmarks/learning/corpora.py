"""The text of the trials: wanted domains, given or of the Python environment, and the three domains that are made.

Invariant: the same input gives the same corpus; made text depends on a seed alone.
"""

import base64
import hashlib
import io
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import zstandard

from ado_stream.demo.environment_files import UNLEARNABLE as HASHES
from ado_stream.demo.raw_text import write_text
from ado_stream.prepare.coordinator import prepare
from ado_stream.prepare.prepare_config import PrepareConfig
from benchmarks.common import QUICK, size
from benchmarks.learning.scenarios import DUPLICATES, EXHAUSTED, UNLEARNABLE, Sizes

DOMAIN_KEY = "meta.pile_set_name"
_TEST_TEXT = Path(__file__).parents[2] / "tests/data/corpus"
_UNLEARNABLE_BYTES = size(30_000_000, 20_000)  # at least; of two fifths of what a run reads, and more
_BYTES_PER_TOKEN = 2.5
_NUM_ORIGINALS, _DUPLICATE_BYTES = 24, size(24_000_000, 20_000)
_CHANGED_FRAC = 0.02  # of a near-duplicate's words


def make_corpus(folder: Path, text: list[str], val: list[str], sizes: Sizes) -> Path:
    """FOLDER/corpus: the wanted domains and those that are made. `text` empty: the Python environment's.

    text, val: .jsonl or .jsonl.zst with a domain under meta.pile_set_name. The Exhausted domain, a fifth of what a run
    reads, has the text of a tenth of its steps.
    """
    corpus = folder / "corpus"
    if (corpus / "corpus.json").exists():
        return corpus
    folder.mkdir(parents=True, exist_ok=True)
    if not text and QUICK:
        text, val = ([str(path) for path in sorted(_TEST_TEXT.glob(f"{split}*"))] for split in ("train", "val"))
    elif not text:
        text = [str(domain.path) for domain in write_text(folder / "text") if domain.name != HASHES]
    held_out: dict[str, Any] = {"val": tuple(val)} if val else {"val_frac": 0.05}
    held_out |= size({}, {"workers": 1})
    wanted = PrepareConfig(
        tuple(text), str(folder / "wanted"), sizes.seq_len, tokenizer=sizes.tokenizer, domain_key=DOMAIN_KEY, **held_out
    )
    prepare(wanted)
    run_tokens = sizes.steps * sizes.batch_size * sizes.seq_len
    unlearnable_bytes = max(_UNLEARNABLE_BYTES, int(0.4 * run_tokens * _BYTES_PER_TOKEN))
    exhausted_tokens = sizes.steps * sizes.batch_size // 10 * sizes.seq_len // 5
    made = [
        _write(folder / "unlearnable.jsonl", UNLEARNABLE, unlearnable(1), unlearnable_bytes),
        _write(folder / "duplicates.jsonl", DUPLICATES, near_duplicates(_originals(text), 2), _DUPLICATE_BYTES),
        _write(folder / "exhausted.jsonl", EXHAUSTED, iter(_originals(text, skip=200)), int(3.0 * exhausted_tokens)),
    ]
    tokenizer = str(folder / "wanted" / "tokenizer.json")
    prepare(
        PrepareConfig(
            (*text, *made), str(corpus), sizes.seq_len, tokenizer=tokenizer, domain_key=DOMAIN_KEY, **held_out
        )
    )
    return corpus


def unlearnable(seed: int) -> Iterator[str]:
    """Documents whose next token nobody can tell: SHA-256 hashes, base64 of random bytes, random numbers."""
    generator = random.Random(seed)
    lines = (
        lambda: hashlib.sha256(generator.randbytes(16)).hexdigest(),
        lambda: base64.b64encode(generator.randbytes(48)).decode(),
        lambda: str(generator.randrange(10**18)),
    )
    while True:
        line = generator.choice(lines)
        yield "\n".join(line() for _ in range(generator.randrange(20, 120)))


def near_duplicates(originals: list[str], seed: int) -> Iterator[str]:
    """The originals over and over, a few of their words replaced by other words of theirs."""
    generator = random.Random(seed)
    while True:
        words = generator.choice(originals).split(" ")
        for _ in range(max(1, int(_CHANGED_FRAC * len(words)))):
            words[generator.randrange(len(words))] = generator.choice(words)
        yield " ".join(words)


def _originals(text: list[str], skip: int = 0) -> list[str]:
    """Documents of the domain that comes first in `text`: a few, or, past `skip` of them, as many as there are."""
    first, found = None, []
    for path in text:
        for record in _records(Path(path)):
            domain = record["meta"]["pile_set_name"]
            first = domain if first is None else first
            if domain == first:
                found.append(record["text"])
        if len(found) > skip + _NUM_ORIGINALS:
            break
    return found[skip:] if skip and len(found) > 2 * skip else found[:_NUM_ORIGINALS]


def _records(path: Path) -> Iterator[dict]:
    with open(path, "rb") as file:
        raw = zstandard.ZstdDecompressor().stream_reader(file) if path.suffix == ".zst" else file
        for line in io.TextIOWrapper(raw, encoding="utf-8"):
            yield json.loads(line)


def _write(path: Path, domain: str, documents: Iterator[str], size_bytes: int) -> str:
    written = 0
    with open(path, "w", encoding="utf-8") as file:
        for text in documents:
            file.write(json.dumps({"text": text, "meta": {"pile_set_name": domain}}) + "\n")
            written += len(text.encode())
            if written >= size_bytes:
                break
    return str(path)
