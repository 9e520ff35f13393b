"""Which files an input names, in a fixed order, and the domain that a file's path gives it.

A file given by itself: its domain is its name without extensions. A folder: the first path component below it
(without extensions when that is a file), so `corpus/code/a.txt` and `corpus/code.jsonl` below `corpus` are both
"code". A Hugging Face dataset folder is one domain, named as the folder; its validation and test files are read for
`--val` only. The order is that of the inputs, then of the paths as bytes: never that of the file system.
"""

import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from ado_stream.errors import ConfigError, NotFound

KINDS = {
    ".jsonl": "lines",
    ".jsonl.zst": "lines",
    ".jsonl.gz": "lines",
    ".json.gz": "lines",
    ".txt": "text",
    ".parquet": "parquet",
    ".arrow": "arrow",
}
_HUGGING_FACE_MARKS = ("dataset_info.json", "dataset_infos.json", "dataset_dict.json")
_HELD_OUT = re.compile(r"(validation|valid|val|dev|test)(?=[-_.]|$)")


@dataclass(frozen=True)
class InputFile:
    """One input file: how to read it, and the domain and split of its documents."""

    path: str
    kind: str  # a value of KINDS
    domain: str  # from the path; a domain key overrides it
    split: str  # "train", "val", or "hash" where each document's hash decides
    size_bytes: int


def find_input_files(inputs: Sequence[str | os.PathLike[str]], split: str, by_path: bool) -> list[InputFile]:
    """All readable files of `inputs`, in order; `by_path`: folders are domains.

    Raises NotFound for an input that does not exist, ConfigError for one without a readable file, for a domain's
    folder without one, and for a file given twice.
    """
    found: list[InputFile] = []
    for given in map(Path, inputs):
        if not given.exists():
            raise NotFound(f"{given}: no such file or folder. Check the path.")
        files = list(_below(given, split)) if given.is_dir() else [_single(given, split)]
        if not files:
            raise ConfigError(f"{given}: no readable file below it; known extensions: {', '.join(KINDS)}.")
        if by_path and given.is_dir() and not _is_hugging_face(given):
            _check_no_empty_folder(given, {file.domain for file in files})
        found += files
    _check_unique(found)
    return found


def file_kind(name: str) -> str | None:
    """How a file of this name is read, or None."""
    for ending, kind in KINDS.items():
        if name.endswith(ending):
            return kind
    return None


def _single(path: Path, split: str) -> InputFile:
    kind = file_kind(path.name)
    if kind is None:
        raise ConfigError(f"{path}: unknown kind of file; known extensions: {', '.join(KINDS)}.")
    return InputFile(str(path), kind, _stem(path.name), split, path.stat().st_size)


def _below(folder: Path, split: str) -> Iterable[InputFile]:
    whole = _is_hugging_face(folder)
    name = _text(folder.resolve().name)
    for path in sorted(_walk(folder), key=lambda path: os.fsencode(path)):
        kind = file_kind(path.name)
        parts = path.relative_to(folder).parts
        if kind is None or any(part.startswith(".") for part in parts):
            continue
        in_data_set = whole or (len(parts) > 1 and _is_hugging_face(folder / parts[0]))
        if in_data_set and _is_held_out(parts[-2:]) != (split == "val"):
            continue
        yield InputFile(str(path), kind, name if whole else _stem(parts[0]), split, path.stat().st_size)


def _walk(folder: Path) -> Iterable[Path]:
    for root, _, names in os.walk(folder):
        yield from (Path(root, name) for name in names)


@cache
def _is_hugging_face(folder: Path) -> bool:
    """Whether `folder` is a data set as the datasets library or the hub lays it out."""
    card = folder / "README.md"
    if any((folder / mark).exists() for mark in _HUGGING_FACE_MARKS):
        return True
    return (folder / "data").is_dir() and card.is_file() and card.read_bytes()[:4] == b"---\n"


def _is_held_out(parts: Sequence[str]) -> bool:
    return any(_HELD_OUT.match(part) for part in parts)


def _stem(name: str) -> str:
    for ending in KINDS:
        if name.endswith(ending) and name != ending:
            return _text(name[: -len(ending)])
    return _text(name)


def _text(name: str) -> str:
    """A file's name as valid Unicode: bytes that are not UTF-8 become U+FFFD."""
    return os.fsencode(name).decode(errors="replace")


def _check_no_empty_folder(folder: Path, domains: set[str]) -> None:
    for path in sorted(folder.iterdir()):
        if path.is_dir() and not path.name.startswith(".") and _stem(path.name) not in domains:
            raise ConfigError(
                f"domain {_text(path.name)!r} has no document: no readable file below {path}.\n"
                f"  Known extensions: {', '.join(KINDS)}. Remove the folder, or give the others one by one."
            )


def _check_unique(files: Sequence[InputFile]) -> None:
    seen: set[str] = set()
    for file in files:
        real = os.path.realpath(file.path)
        if real in seen:
            raise ConfigError(f"{file.path}: given twice. Its documents would be read twice; give it once.")
        seen.add(real)
