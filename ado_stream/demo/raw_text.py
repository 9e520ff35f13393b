"""The demo's raw text: one .jsonl per domain in The Pile's format, the same bytes in the same environment.

Files are taken in the order of a hash of their names until a domain has its size; no package fills more than half of
it while others have text, and texts equal but for white space count once. Long files are split at line ends into
documents of DOCUMENT_BYTES, so that each domain has enough documents to hold some out.
"""

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import cast

from ado_stream.demo.environment_files import UNLEARNABLE, EnvironmentFile, find_environment_files, help_topics
from ado_stream.durable import damage_errors, durable_file, write_durably
from ado_stream.errors import DataError
from ado_stream.json_files import decode_json
from ado_stream.regular_files import read_regular
from ado_stream.value_types import JsonObject

# Sizes differ on purpose, as do difficulties, so that a policy has something to choose.
TARGET_BYTES = {
    "c-headers": 10_000_000,
    "cython": 2_500_000,
    "docs": 4_000_000,
    UNLEARNABLE: 12_500_000,
    "json": 5_000_000,
    "licences": 1_000_000,
    "python": 14_000_000,
    "readmes": 2_000_000,
    "stdlib": 8_000_000,
    "stubs": 3_000_000,
    "tables": 2_500_000,
}
MIN_TARGET_BYTES = 250_000
MIN_DOMAIN_BYTES = 100_000
MIN_DOMAINS = 6
DOCUMENT_BYTES = 8 * 1024
PACKAGE_FRAC = 0.5
SUMMARY_NAME = "text.json"


@dataclass(frozen=True)
class DomainText:
    """What was written for one domain."""

    name: str
    path: Path
    files: int
    documents: int
    bytes: int


def write_text(out_dir: Path, size_frac: float = 1.0, held_out_frac: float = 0.0) -> list[DomainText]:
    """Writes OUT/DOMAIN.jsonl for every domain that the environment can fill, and returns what each holds.

    size_frac: of TARGET_BYTES. held_out_frac: of the documents of every domain but the unlearnable one, spread evenly,
    are written to OUT/val/DOMAIN.jsonl instead. Raises DataError when fewer than six domains can be filled.
    """
    out_dir.mkdir(parents=True, exist_ok=True)
    by_domain: dict[str, list[EnvironmentFile]] = defaultdict(list)
    for source in find_environment_files():
        by_domain[source.domain].append(source)
    seen: set[bytes] = set()
    written = []
    for name, target_bytes in TARGET_BYTES.items():
        limit_bytes = max(MIN_TARGET_BYTES, int(target_bytes * size_frac))
        texts = _texts(name, sorted(by_domain[name], key=lambda source: source.order_key), limit_bytes, seen)
        every = 0 if name == UNLEARNABLE or not held_out_frac else round(1.0 / held_out_frac)
        found = _write(name, out_dir / f"{name}.jsonl", texts, every)
        if found.bytes >= MIN_DOMAIN_BYTES:
            written.append(found)
        else:
            found.path.unlink()
            val_path(found.path).unlink(missing_ok=True)
    if len(written) < MIN_DOMAINS:
        names = ", ".join(domain.name for domain in written)
        raise DataError(
            f"demo: this Python environment has text for {len(written)} domains ({names}); {MIN_DOMAINS} are needed.\n"
            "  Install the project with its dependencies into a virtual environment, or use `prepare` on your own text."
        )
    entries = [{**asdict(domain), "path": domain.path.name} for domain in written]
    write_durably(out_dir / SUMMARY_NAME, json.dumps(entries, indent=1) + "\n")
    return written


def read_summary(out_dir: Path) -> list[DomainText] | None:
    """What an earlier `write_text` completed in `out_dir`, or None. Raises StorageError where it is damaged."""
    path = out_dir / SUMMARY_NAME
    if not path.exists():
        return None
    with damage_errors(path):
        entries = decode_json(read_regular(path), list[DomainText], SUMMARY_NAME, DataError)
    fields = cast(list[JsonObject], entries)
    return [DomainText(**{**each, "path": out_dir / each["path"]}) for each in fields]


def _texts(domain: str, files: list[EnvironmentFile], limit_bytes: int, seen: set[bytes]) -> Iterator[tuple[str, str]]:
    """(name, text) until `limit_bytes` are reached; skips texts in `seen` and adds to it."""
    taken_bytes = 0
    by_package: Counter[str] = Counter()
    topics = help_topics() if domain == "docs" else iter(())
    for package, name, text in _candidates(topics, files, by_package, PACKAGE_FRAC * limit_bytes):
        if taken_bytes >= limit_bytes:
            return
        text_hash = hashlib.blake2b(" ".join(text.split()).encode("utf-8", "surrogatepass"), digest_size=16).digest()
        if not text or text_hash in seen:
            continue
        seen.add(text_hash)
        size_bytes = len(text.encode())
        taken_bytes += size_bytes
        by_package[package] += size_bytes
        yield name, text


def _candidates(
    topics: Iterator[tuple[str, str]],
    files: list[EnvironmentFile],
    by_package: Counter[str],
    package_limit_bytes: float,
) -> Iterator[tuple[str, str, str]]:
    """(package, name, text): the help topics, the files of packages still under their limit, then the others."""
    for name, text in topics:
        yield "pydoc", name, text
    deferred = []
    for source in files:
        if by_package[source.package] < package_limit_bytes:
            yield source.package, source.name, source.read()
        else:
            deferred.append(source)
    for source in deferred:
        yield source.package, source.name, source.read()


def val_path(path: Path) -> Path:
    """Where the held-out documents of the domain at `path` are."""
    return path.parent / "val" / path.name


def _write(domain: str, path: Path, texts: Iterator[tuple[str, str]], held_out_every: int) -> DomainText:
    files = documents = size_bytes = 0
    with durable_file(path) as out, durable_file(val_path(path)) if held_out_every else nullcontext(out) as val:
        for name, text in texts:
            files += 1
            for number, document in enumerate(split_text(text)):
                meta = {"pile_set_name": domain, "source": f"{name}#{number}" if number else name}
                held_out = held_out_every and documents % held_out_every == held_out_every - 1
                line = json.dumps({"text": document, "meta": meta}, ensure_ascii=False) + "\n"
                (val if held_out else out).write(line.encode())
                documents += 1
                size_bytes += len(document.encode())
    return DomainText(domain, path, files, documents, size_bytes)


def split_text(text: str, document_bytes: int = DOCUMENT_BYTES) -> list[str]:
    """`text` in documents of about `document_bytes`, split at line ends; a longer line stays whole."""
    parts: list[str] = []
    lines: list[str] = []
    size_bytes = 0
    for line in text.splitlines(keepends=True):
        lines.append(line)
        size_bytes += len(line.encode())
        if size_bytes >= document_bytes:
            parts.append("".join(lines))
            lines, size_bytes = [], 0
    if lines:
        parts.append("".join(lines))
    return parts
