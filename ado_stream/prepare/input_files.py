"""Which files the inputs name, in a fixed order, the domain that a file's path gives it, and what is left out and why.

A file given by itself, which may be a .json, too: its domain is its name without extensions. A folder: the first path
component below it (without extensions when that is a file), so `corpus/code/a.txt` and `corpus/code.jsonl` below
`corpus` are both "code". A Hugging Face dataset folder is one domain, named as the folder; its validation and test
files are read for `--val` only. `hf:NAME:CONFIG:SPLIT` is one domain, too (hub_datasets.py). The order is that of the
inputs, then of the paths as bytes: never that of the file system.

Every file below an input is read, counted in `left_out` with its ending and the reason, or refused by name. Files are
the same when device and inode are.
"""

import os
import re
import stat
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from ado_stream.durable import disk_errors
from ado_stream.errors import ConfigError, NotFound
from ado_stream.prepare import hub_datasets

KINDS = {
    ".jsonl": "lines",
    ".jsonl.zst": "lines",
    ".jsonl.gz": "lines",
    ".json.zst": "lines",
    ".json.gz": "lines",
    ".txt": "text",
    ".parquet": "parquet",
    ".arrow": "arrow",
}
_GIVEN_ALONE = {".json": "lines"}  # below a folder these are more often settings
_HUGGING_FACE_MARKS = ("dataset_info.json", "dataset_infos.json", "dataset_dict.json")
_HELD_OUT = re.compile(r"(validation|valid|val|dev|test)(?=[-_.]|$)")
_UNREADABLE = "Make it readable, or leave it out."


@dataclass(frozen=True)
class InputFile:
    """One input file: how to read it, and the domain and split of its documents."""

    path: str
    kind: str  # a value of KINDS, or "hf": a shard of a data set
    domain: str  # from the path; a domain key overrides it
    split: str  # "train", "val", or "hash" where each document's hash decides
    size_bytes: int
    stamp: int | str  # another one when the content is: time of the last change, or a data set's own fingerprint

    @property
    def identity(self) -> object:
        """The same for two paths exactly when they name one file."""
        return (self.path, self.stamp) if self.kind == "hf" else file_id(self.path)


@dataclass
class InputFiles:
    """The files of a run, those of training first, and what of the inputs is not read: counts by reason."""

    files: list[InputFile] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)
    notes: list[str] = field(default_factory=list)  # how ambiguous inputs were interpreted


def find_input_files(
    inputs: Sequence[str | os.PathLike[str]],
    split: str,
    by_path: bool,
    val: Sequence[str | os.PathLike[str]] = (),
) -> InputFiles:
    """All readable files of `inputs`, then those of `val`, which `inputs` lose; `by_path`: paths are domains.

    Raises NotFound for an input that does not exist, ConfigError for one without a readable file, for a domain's
    folder without one, for a domain of `val` alone, for a file given twice and for two domains of one name; DiskError
    for what cannot be read.
    """
    found = InputFiles()
    stems: dict[str, str] = {}
    held_out = [file for given in val for file in _find_files(given, "val", by_path, found, stems)]
    held_out_ids = {file.identity for file in held_out}
    for given in inputs:
        for file in _find_files(given, split, by_path, found, stems):
            if file.identity in held_out_ids:
                found.left_out["file of --val, left out of training"] += 1
            else:
                found.files.append(file)
    if not found.files:
        raise ConfigError("every input file is given as --val too: nothing is left to train on.")
    _check_unique(found.files)
    _check_unique(held_out)
    trained_on = {file.domain for file in found.files}
    for file in held_out if by_path else ():
        if file.domain not in trained_on:
            raise ConfigError(
                f"{file.path}: its domain {file.domain!r} has validation documents only, none to train on.\n"
                "  Name files of --val, or their folders, as those of their domain, or give --domain-key."
            )
    found.files += held_out
    return found


def file_kind(name: str) -> str | None:
    """How a file of this name is read, or None."""
    ending = _known_ending(name)
    return KINDS[ending] if ending else None


def file_id(path: str | os.PathLike[str]) -> tuple[int, int]:
    """The same for two paths exactly when they name one file."""
    status = os.stat(path)
    return status.st_dev, status.st_ino


def _find_files(
    given: str | os.PathLike[str], split: str, by_path: bool, found: InputFiles, stems: dict[str, str]
) -> list[InputFile]:
    """The files of one input; adds to `found` what is left out, and to `stems` {domain: what it is made of}."""
    if os.fspath(given).startswith(hub_datasets.PREFIX):
        shards = hub_datasets.find_shards(os.fspath(given), split)
        return [InputFile(str(shard), "hf", shard.domain, split, size, stamp) for shard, size, stamp in shards]
    path = Path(os.path.expanduser(given))
    if not path.exists():
        reason = "the link points to nothing" if path.is_symlink() else "no such file or folder of this machine"
        raise NotFound(f"{given}: {reason}. Check the path{', or copy the data here' if '://' in str(given) else ''}.")
    left_out: Counter[str] = Counter()
    if path.is_dir():
        files = list(_below(path, split, left_out))
    else:
        kind = file_kind(path.name) or _GIVEN_ALONE.get(path.suffix.lower())
        if kind is None:
            known = ", ".join((*KINDS, *_GIVEN_ALONE))
            raise ConfigError(f"{path}: unknown kind of file; known extensions: {known}.")
        stem = path.stem if path.suffix.lower() in _GIVEN_ALONE else _stem(path.name)
        files = [(_input_file(path, kind, stem, split), stem)]
    found.left_out += left_out
    if not files:
        there = f" (there: {', '.join(left_out)})" if left_out else ""
        raise ConfigError(f"{path}: no readable file below it{there}; known extensions: {', '.join(KINDS)}.")
    if by_path:
        for file, stem in files:
            if stems.setdefault(file.domain, stem) != stem:
                raise ConfigError(
                    f"{path}: {stems[file.domain]!r} and {stem!r} are not UTF-8 and would both be domain "
                    f"{file.domain!r}.\n  Rename one of them."
                )
        if path.is_dir() and not _is_hugging_face(path):
            _check_no_empty_folder(path, {file.domain for file, _ in files})
            _note_flat_texts(path, [file for file, _ in files], found)
    return [file for file, _ in files]


def _note_flat_texts(folder: Path, files: Sequence[InputFile], found: InputFiles) -> None:
    texts = sum(file.kind == "text" and Path(file.path).parent == folder for file in files)
    if texts > 1:
        found.notes.append(
            f"{folder}: each of the {texts} .txt files directly in it is a domain of its own; "
            "to make them one domain, move them into a folder below it"
        )


def _input_file(path: Path, kind: str, stem: str, split: str) -> InputFile:
    with disk_errors(path, _UNREADABLE):
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise ConfigError(f"{path}: not a regular file. Write its content to a file first.")
        if not os.access(path, os.R_OK, effective_ids=True):
            raise PermissionError(13, "Permission denied", str(path))
    return InputFile(str(path), kind, _text(stem), split, status.st_size, status.st_mtime_ns)


def _below(folder: Path, split: str, left_out: Counter[str]) -> Iterator[tuple[InputFile, str]]:
    """Every file to be read with the name that its domain is made of; counts the others."""
    whole = _is_hugging_face(folder)
    for path in sorted(_walk(folder, left_out), key=os.fsencode):
        kind = file_kind(path.name)
        parts = path.relative_to(folder).parts
        if kind is None:
            left_out[f"{_ending(path.name)} file, not of a known kind"] += 1
            continue
        in_data_set = whole or (len(parts) > 1 and _is_hugging_face(folder / parts[0]))
        if in_data_set and _is_held_out(parts[-2:]) != (split == "val"):
            left_out[f"{'training' if split == 'val' else 'held-out'} file of a Hugging Face data set"] += 1
            continue
        stem = folder.resolve().name if whole else _stem(parts[0])
        yield _input_file(path, kind, stem, split), stem


def _walk(root: Path, left_out: Counter[str]) -> Iterator[Path]:
    """Every file below `root` that is not hidden. A folder is entered once, by its own path before any link to it."""
    entered: set[tuple[int, int]] = set()
    folders, links = [root], list[Path]()
    while folders or links:
        folder = (folders or links).pop(0)
        with disk_errors(folder, _UNREADABLE), os.scandir(folder) as entries:
            if (identity := file_id(folder)) in entered:
                left_out["link to a folder that is read already"] += 1
                continue
            entered.add(identity)
            for entry in sorted(entries, key=lambda entry: os.fsencode(entry.name)):
                if entry.name.startswith("."):
                    left_out["hidden file or folder"] += 1
                elif entry.is_dir():
                    (links if entry.is_symlink() else folders).append(Path(entry.path))
                elif entry.is_symlink() and not os.path.exists(entry.path):  # to a folder, perhaps: a whole domain
                    raise NotFound(f"{entry.path}: the link points to nothing. Mend it, or remove it.")
                else:
                    yield Path(entry.path)


@cache
def _is_hugging_face(folder: Path) -> bool:
    """Whether `folder` is a data set as the datasets library or the hub lays it out."""
    card = folder / "README.md"
    if any((folder / mark).exists() for mark in _HUGGING_FACE_MARKS):
        return True
    return (folder / "data").is_dir() and card.is_file() and card.read_bytes()[:4] == b"---\n"


def _is_held_out(parts: Sequence[str]) -> bool:
    return any(_HELD_OUT.match(part) for part in parts)


def _known_ending(name: str) -> str | None:
    """The ending of KINDS that `name` has, in capitals or not."""
    return next((ending for ending in KINDS if name.lower().endswith(ending)), None)


def _stem(name: str) -> str:
    ending = _known_ending(name)
    return name[: -len(ending)] if ending and len(name) > len(ending) else name


def _ending(name: str) -> str:
    """The extensions of a file's name that say what it is: ".jsonl.xz" of "a.b.jsonl.xz"."""
    last = Path(name).suffix
    before = Path(name[: len(name) - len(last)]).suffix
    return (before if before.lower() in (".jsonl", ".json", ".txt", ".csv", ".tar") else "") + last or "nameless"


def _text(name: str) -> str:
    """A file's name as valid Unicode: bytes that are not UTF-8 become U+FFFD."""
    return os.fsencode(name).decode(errors="replace")


def _check_no_empty_folder(folder: Path, domains: set[str]) -> None:
    for path in sorted(folder.iterdir()):
        if path.is_dir() and not path.name.startswith(".") and _text(_stem(path.name)) not in domains:
            if path.is_symlink() and any(file_kind(each.name) for each in _walk(path, Counter())):
                continue  # its files are read by another path
            raise ConfigError(
                f"domain {_text(path.name)!r} has no document: no readable file below {path}.\n"
                f"  Known extensions: {', '.join(KINDS)}. Remove the folder, or give the others one by one."
            )


def _check_unique(files: Iterable[InputFile]) -> None:
    seen: dict[object, str] = {}
    for file in files:
        identity = file.identity
        if identity in seen:
            same = "" if seen[identity] == file.path else f" (as {seen[identity]})"
            raise ConfigError(f"{file.path}: given twice{same}. Its documents would be read twice; give it once.")
        seen[identity] = file.path
