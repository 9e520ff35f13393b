"""Which files below a Hugging Face data set's folder are of which split, by the rules of the datasets library.

A folder may say so itself: `save_to_disk` lists the files of each split in its state.json, a card lists them under
`configs`. What such a folder does not list is no part of it: `map` writes its cache beside the files. Elsewhere a
word in the path says that a file is held out. Source: datasets 4, data_files.py and arrow_dataset.py.
"""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import TypedDict

from ado_stream.durable import disk_errors
from ado_stream.errors import ConfigError, NotFound
from ado_stream.json_files import decode_json
from ado_stream.regular_files import read_regular
from ado_stream.value_types import JsonObject
from ado_stream.yaml_files import parse_front_matter

TRAIN, HELD_OUT = "training", "held-out"
_INFO, _STATE, _SPLITS, _CARD = "dataset_info.json", "state.json", "dataset_dict.json", "README.md"
SAVED_MARKS = (_STATE, _SPLITS)  # of Dataset.save_to_disk and DatasetDict.save_to_disk
_CARD_BEGIN = re.compile(rb"---\r?\n(.*?)^---\s*$", re.DOTALL | re.MULTILINE)
_MOST_PATTERNS = 100_000  # the aliases of a kilobyte may stand for a billion
_NAME_BYTES = 255  # of what a file system takes
_WORD = r"(?:^|[-._ 0-9/])(?:{})(?=$|[-._ 0-9/])"
_TRAIN_NAME = re.compile(_WORD.format("train|training"))
_HELD_OUT_NAME = re.compile(_WORD.format("validation|valid|val|dev|test|testing|eval|evaluation|heldout|holdout"))


class _File(TypedDict):
    filename: str


class _State(TypedDict):
    _data_files: list[_File]


@dataclass(frozen=True)
class DataSetFolder:
    """The folder of a data set; `files`: the splits of each file that it lists, None where names decide."""

    path: Path
    files: dict[Path, set[str]] | None

    def role(self, file: Path) -> str | None:
        """TRAIN, HELD_OUT, "split 'NAME'" for one that is neither, or None for a file that is no part of it.

        In a folder of one split, which whoever names it has chosen, all is "".
        """
        if self.files is None:
            return HELD_OUT if is_held_out(file.relative_to(self.path).as_posix()) else TRAIN
        splits = self.files.get(file)
        if not splits:
            return None
        if splits == {""}:
            return ""
        if any(map(is_held_out, splits)):
            return HELD_OUT
        return TRAIN if splits & self._trained or not self._trained else f"split {min(splits)!r}"

    @cached_property
    def _trained(self) -> set[str]:
        """The splits whose names say that they are trained on; found once, since there may be thousands of files."""
        names = set[str]().union(*(self.files or {}).values())
        return {name for name in names if _TRAIN_NAME.search(name)}


def is_held_out(name: str) -> bool:
    """Whether a path, or the name of a split, has a word for text that is not trained on."""
    return _HELD_OUT_NAME.search(name) is not None


def data_set_of(file: Path, root: Path) -> DataSetFolder | None:
    """The outermost data set, `root` or below it, that `file` is in."""
    folders = reversed(file.relative_to(root).parents)
    return next((found for folder in folders if (found := open_folder(root / folder))), None)


@cache
def open_folder(folder: Path) -> DataSetFolder | None:
    """What `folder` says of itself; None where it is no data set. Raises NotFound, ConfigError, DiskError."""
    if (folder / _STATE).exists() and (folder / _INFO).exists():
        return DataSetFolder(folder, {file: {""} for file in _saved_files(folder)})
    if (folder / _SPLITS).exists():
        parts = [part for part in sorted(folder.iterdir()) if (part / _STATE).exists()]
        if parts:
            return DataSetFolder(folder, {file: {part.name} for part in parts for file in _saved_files(part)})
    card = _card(folder)
    listed = dict[Path, set[str]]()
    for number, (split, pattern) in enumerate(_patterns(card or {})):
        if number == _MOST_PATTERNS:
            raise ConfigError(
                f"{folder / _CARD}: over {_MOST_PATTERNS:,} patterns of files. Give the files themselves."
            )
        for file in _matches(folder, pattern):
            listed.setdefault(file, set()).add(split)
    if listed:
        return DataSetFolder(folder, listed)
    marked = any((folder / mark).exists() for mark in (_INFO, "dataset_infos.json", _SPLITS))
    return DataSetFolder(folder, None) if marked or (card is not None and (folder / "data").is_dir()) else None


def _saved_files(folder: Path) -> list[Path]:
    """The files that state.json lists, without what `map` cached beside them."""
    path = folder / _STATE
    with disk_errors(path, "Make it readable."):
        state = decode_json(read_regular(path), _State, str(path), ConfigError)
    files = [folder / file["filename"] for file in state["_data_files"]]
    for file in files:
        if not os.path.exists(file):
            raise NotFound(
                f"{file}: no such file, but {path} lists it. Download the data set again, or give its files."
            )
    return files


def _card(folder: Path) -> JsonObject | None:
    """The settings at the head of README.md, None where it has none."""
    path = folder / _CARD
    if not path.is_file():
        return None
    with disk_errors(path, "Make it readable."):
        found = _CARD_BEGIN.match(read_regular(path))
    if found is None:
        return None
    card = parse_front_matter(found[1], str(path))
    return card if isinstance(card, dict) else {}


def _patterns(card: JsonObject) -> Iterator[tuple[str, str]]:
    """(split, pattern) of the files of every configuration; a configuration's data_files have any of three shapes."""
    configs = card.get("configs")
    for config in configs if isinstance(configs, list) else ():
        files = config.get("data_files") if isinstance(config, dict) else None
        for entry in files if isinstance(files, list) else (files,):
            split, paths = ("train", entry) if not isinstance(entry, dict) else (entry.get("split"), entry.get("path"))
            for path in paths if isinstance(paths, list) else (paths,):
                if isinstance(path, str) and path:
                    # no text, with aliases inside, may be too long to become one
                    yield split if isinstance(split, str) and split else "train", path


def _matches(folder: Path, pattern: str) -> Iterator[Path]:
    parts = pattern.split("/")
    try:
        longest = max(len(os.fsencode(part)) for part in parts)
        # What is outside of the folder is no part of it, and many double stars take time without end.
        if longest > _NAME_BYTES or ".." in parts or parts.count("**") > 2:
            return
        with disk_errors(folder, "Make it readable."):
            found = list(folder.glob(pattern))
    except (ValueError, NotImplementedError):  # an absolute path, a URL's odd pattern, what no name can hold
        return
    for path in found:  # of folders only for a pattern that ends with **
        yield from (file for file in path.rglob("*") if file.is_file()) if path.is_dir() else (path,)
