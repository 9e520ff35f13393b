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
from functools import lru_cache
from pathlib import Path

import xxhash

from ado_stream.durable import disk_errors
from ado_stream.errors import ConfigError, NotFound
from ado_stream.prepare import hub_datasets
from ado_stream.prepare.hugging_face_folders import HELD_OUT, TRAIN, data_set_of, is_held_out, open_folder
from ado_stream.regular_files import file_id, open_regular
from ado_stream.suggest import first_names

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
_RECORDS = ("lines", "parquet", "arrow")  # kinds that are converted to each other
_UNFIT = {  # names of folders that say that not all files beside them are of use
    "_temporary": "a job has not finished writing there",
    "_delta_log": "a Delta table keeps files whose rows were replaced",
    ".hoodie": "a Hudi table keeps files whose rows were replaced",
}
_PART_BYTES, _NUM_PARTS = 1 << 16, 16  # of a large file's content that stand for it
_PART = re.compile(r"(.*?)([0-9]{1,9})-of-([0-9]{1,9})(?![0-9])")  # train-00000-of-00003.parquet
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
    def source(self) -> str:
        """The path; of a shard, that of its split."""
        return self.path.rpartition("#")[0] if self.kind == "hf" else self.path

    @property
    def content(self) -> str:
        """A hash of what it is read from, "" where that is not on this machine."""
        return _content(self.source, self.kind)

    @property
    def identities(self) -> frozenset[object]:
        """Of the files that it is read from, those of all its split for a shard: the same for any path of a file."""
        return _identities(self.source, self.kind)


@dataclass
class InputFiles:
    """The files of a run, those of training first, and what of the inputs is not read: counts by reason."""

    files: list[InputFile] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)
    notes: list[str] = field(default_factory=list)  # how ambiguous inputs were interpreted


@disk_errors("the inputs", _UNREADABLE)
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
    for cached in (open_folder, _identities, _content):  # by another run of this process: files may have changed since
        cached.cache_clear()
    found = InputFiles()
    stems: dict[str, str] = {}
    held_out = [file for given in val for file in _find_files(given, "val", by_path, found, stems)]
    named: list[str] = []
    held_out_ids = frozenset[object]().union(*(file.identities for file in held_out))
    for given in inputs:
        for file in _find_files(given, split, by_path, found, stems):
            if file.identities <= held_out_ids:
                found.left_out["file of --val, left out of training"] += 1
            elif file.identities & held_out_ids:
                raise ConfigError(
                    f"{file.source}: files of it are given as --val too. Give its other files by their paths."
                )
            else:
                found.files.append(file)
                if file.kind != "hf" and is_held_out(_below_input(file.path, given)):
                    named.append(file.path)
    if not found.files:
        raise ConfigError("every input file is given as --val too: nothing is left to train on.")
    if named:
        found.notes.append(
            f"trained on, though named as held-out text is: {first_names(named)}; if they are, give them as --val"
        )
    _note_missing_parts([*found.files, *held_out], found)
    _note_empty_files([*found.files, *held_out], found)
    _check_unique(found.files)
    _check_unique(held_out)
    _check_no_copies([*found.files, *held_out])
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


def content_hash(paths: Iterable[str]) -> str:
    """Another one when the content of the files is: of all of it up to a MiB each, then of sixteen parts and the size.

    Times alone may be the same: programs that copy or unpack files set them. Raises DiskError.
    """
    content = xxhash.xxh3_128()
    for path in paths:
        with disk_errors(path, _UNREADABLE), open_regular(path) as file:
            size_bytes = os.fstat(file.fileno()).st_size
            content.update(f"{size_bytes}\0")
            starts: Sequence[int] = range(0, size_bytes, _PART_BYTES)
            if len(starts) > _NUM_PARTS:
                starts = [n * (size_bytes - _PART_BYTES) // (_NUM_PARTS - 1) for n in range(_NUM_PARTS)]
            for start in starts:
                file.seek(start)
                content.update(file.read(_PART_BYTES))
    return content.hexdigest()


def _files(source: str, kind: str) -> list[str]:
    return hub_datasets.files_of(source) if kind == "hf" else [source]


@lru_cache(maxsize=8)  # the shards of a split come one after another
def _identities(source: str, kind: str) -> frozenset[object]:
    files = _files(source, kind) or [source]
    return frozenset(file_id(file) if os.path.exists(file) else file for file in files)


@lru_cache(maxsize=8)
def _content(source: str, kind: str) -> str:
    files = _files(source, kind)
    return content_hash(files) if files and all(map(os.path.exists, files)) else ""


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
        stem = _stem_of_given(path)
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
        if path.is_dir() and open_folder(path) is None:
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


def _note_empty_files(files: Iterable[InputFile], found: InputFiles) -> None:
    """Of lines that are not compressed; other kinds of files without a byte are damaged."""
    if empty := [file.path for file in files if file.kind == "lines" and not file.size_bytes]:
        found.notes.append(f"files without a byte, whose download may have failed: {first_names(empty)}")


def _note_missing_parts(files: Iterable[InputFile], found: InputFiles) -> None:
    """Of sets of files whose names say how many they are: a download may not have been finished."""
    parts: dict[tuple[str, int], set[int]] = {}
    for file in files:
        if match := _PART.match(os.path.basename(file.path)):
            prefix = os.path.join(os.path.dirname(file.path), match[1])
            parts.setdefault((prefix, int(match[3])), set()).add(int(match[2]))
    for (prefix, total), numbers in parts.items():
        if len(numbers) < total:
            found.notes.append(f"{prefix}*: {len(numbers)} of the {total} files that their names count")


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
    whole = open_folder(folder) is not None
    wanted = ("", HELD_OUT if split == "val" else TRAIN)
    for path in sorted(_walk(folder, left_out), key=os.fsencode):
        kind = file_kind(path.name)
        if kind is None:
            left_out[f"{_ending(path.name)} file, not of a known kind"] += 1
            continue
        data_set = data_set_of(path, folder)
        if data_set is not None and (role := data_set.role(path)) not in wanted:
            left_out[f"{role} file of a Hugging Face data set" if role else "file that its data set does not list"] += 1
            continue
        stem = folder.resolve().name if whole else _stem(path.relative_to(folder).parts[0])
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
                if entry.name in _UNFIT and entry.is_dir():
                    raise ConfigError(
                        f"{folder}: {_UNFIT[entry.name]} ({entry.name} is in it).\n"
                        "  Write its rows to another folder, or give its files one by one."
                    )
                if entry.name.startswith("."):
                    left_out["hidden file or folder"] += 1
                elif entry.is_dir():
                    (links if entry.is_symlink() else folders).append(Path(entry.path))
                elif entry.is_symlink() and not os.path.exists(entry.path):  # to a folder, perhaps: a whole domain
                    raise NotFound(f"{entry.path}: the link points to nothing. Mend it, or remove it.")
                else:
                    yield Path(entry.path)


def _known_ending(name: str) -> str | None:
    """The ending of KINDS that `name` has, in capitals or not."""
    return next((ending for ending in KINDS if name.lower().endswith(ending)), None)


def _stem(name: str) -> str:
    ending = _known_ending(name)
    return name[: -len(ending)] if ending and len(name) > len(ending) else name


def _stem_of_given(path: Path) -> str:
    return path.stem if path.suffix.lower() in _GIVEN_ALONE else _stem(path.name)


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
    owners: dict[object, str] = {}
    paths = set[str]()
    for file in files:
        owner = next((owners[each] for each in file.identities if owners.get(each, file.source) != file.source), None)
        if owner is not None or file.path in paths:
            same = f" (as {owner})" if owner else ""
            raise ConfigError(f"{file.path}: given twice{same}. Its documents would be read twice; give it once.")
        paths.add(file.path)
        owners.update(dict.fromkeys(file.identities, file.source))


def _check_no_copies(files: Iterable[InputFile]) -> None:
    """Unpacking or converting a file leaves both, which would be read twice, or held out and trained on."""
    seen: dict[Path, str] = {}
    for file in files:
        path = Path(file.path)
        other = seen.setdefault(path.parent / _stem_of_given(path), file.path) if file.kind in _RECORDS else file.path
        if other != file.path:
            raise ConfigError(
                f"{file.path}: its name differs from {other} in its ending alone, so that it is most likely a copy.\n"
                "  Leave one of them out, or rename one if its text is another."
            )


def _below_input(path: str, given: str | os.PathLike[str]) -> str:
    """The path below the input folder `given`, or the name of an input file."""
    folder = f"{os.path.expanduser(given)}".rstrip("/") + "/"
    return path.removeprefix(folder) if path.startswith(folder) else os.path.basename(path)
