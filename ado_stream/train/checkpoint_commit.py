"""Committing checkpoint directories, verifying them, and finding the newest valid one.

RUN/checkpoints/step_00000300/ is the state after 300 finished steps. Invariant: COMMIT.json is written last, after all
other files are on disk, with the size and xxh64 of each; a directory without it, or with a file that does not match, is
incomplete and is never loaded. Nothing here unpickles.
"""

import itertools
import json
import re
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypedDict, cast

import xxhash

from ado_stream.durable import sync, write_durably
from ado_stream.errors import CheckpointError
from ado_stream.json_files import check_type, decode_json
from ado_stream.regular_files import open_regular, read_regular

MARKER = "COMMIT.json"
VERSION = 1
_NAME = re.compile(r"step_(\d{8,})")
_READ_BYTES = 1 << 22
_HASH_THREADS = 4


class _File(TypedDict):
    bytes: int
    xxh64: str


class _Versioned(TypedDict):
    version: int


class _Marker(_Versioned):
    files: dict[str, _File]


def checkpoint_dir(checkpoints: Path, step: int) -> Path:
    """The directory of the checkpoint after `step` finished steps."""
    return checkpoints / f"step_{step:08d}"


def checkpoint_step(directory: Path) -> int:
    """The number of finished steps in a checkpoint directory's name. Raises CheckpointError for another name."""
    match = _NAME.fullmatch(directory.name)
    if match is None:
        raise CheckpointError(f"{directory}: not a checkpoint directory; expected a name such as step_00000300.")
    return int(match[1])


def list_checkpoints(checkpoints: Path) -> list[Path]:
    """Checkpoint directories, committed or not, the newest first."""
    if not checkpoints.is_dir():
        return []
    directories = [each for each in checkpoints.iterdir() if each.is_dir() and _NAME.fullmatch(each.name)]
    return sorted(directories, key=checkpoint_step, reverse=True)


def create_empty(directory: Path) -> None:
    """Creates `directory` empty, removing what an interrupted save left there."""
    if directory.is_dir() and not directory.is_symlink():
        shutil.rmtree(directory)
    else:
        directory.unlink(missing_ok=True)
    directory.mkdir(parents=True)


def commit(directory: Path) -> None:
    """Hashes every file of `directory`, then writes the marker atomically; from then on the checkpoint is valid."""
    paths = sorted(path for path in directory.iterdir() if path.name != MARKER)
    with ThreadPoolExecutor(_HASH_THREADS) as pool:
        hashes = list(pool.map(_hash, paths))
    files = {
        path.name: {"bytes": path.stat().st_size, "xxh64": digest} for path, digest in zip(paths, hashes, strict=True)
    }
    write_durably(directory / MARKER, json.dumps({"version": VERSION, "files": files}, indent=1))
    sync(directory.parent)  # the directory's own name; write_durably has synced the names inside of it


def find_fault(directory: Path) -> str | None:
    """Why a checkpoint is not valid; None when every file is there with the size and hash in the marker."""
    if not (directory / MARKER).exists():
        return f"{MARKER} is missing; the save did not finish"
    try:
        marker = decode_json(read_regular(directory / MARKER), _Versioned, MARKER, CheckpointError)
        if marker["version"] != VERSION:
            return f"{MARKER} has version {marker['version']}; this ado-stream reads version {VERSION}"
        check_type(marker, _Marker, MARKER, CheckpointError)
        files, found = cast(_Marker, marker)["files"], {path.name for path in directory.iterdir()} - {MARKER}
        if files.keys() != found:  # so that a listed name is never a path elsewhere
            name = min(files.keys() ^ found)
            return f"{name} is not listed in {MARKER}" if name in found else f"{name:.60} is missing"
        with ThreadPoolExecutor(_HASH_THREADS) as pool:
            faults = pool.map(lambda name: _file_fault(directory / name, **files[name]), files)
            return next((fault for fault in faults if fault), None)
    except CheckpointError as error:
        return str(error)
    except OSError as error:
        return f"{Path(error.filename or directory).name} cannot be read: {error.strerror}"


def newest_valid(checkpoints: Path) -> tuple[Path | None, list[str]]:
    """(the newest valid checkpoint or None, "NAME: REASON" of each newer one that was skipped)."""
    skipped: list[str] = []
    for directory in list_checkpoints(checkpoints):
        fault = find_fault(directory)
        if fault is None:
            return directory, skipped
        skipped.append(f"{directory.name}: {fault}")
    return None, skipped


def prune(checkpoints: Path, keep: int) -> None:
    """Removes all but the newest `keep` committed checkpoints, and uncommitted ones older than those."""
    committed = [each for each in list_checkpoints(checkpoints) if (each / MARKER).exists()]
    if len(committed) <= keep:
        return
    oldest_kept = checkpoint_step(committed[keep - 1])
    for directory in list_checkpoints(checkpoints):
        if checkpoint_step(directory) < oldest_kept:
            (directory / MARKER).unlink(missing_ok=True)  # first, so that a partly removed directory is not committed
            shutil.rmtree(directory)


def set_aside_newer(checkpoints: Path, step: int) -> None:
    """Renames checkpoints after `step`, which a run that resumes at `step` will write again."""
    for directory in list_checkpoints(checkpoints):
        if checkpoint_step(directory) > step:
            set_aside(directory)


def set_aside(path: Path) -> None:
    """Renames `path`, if it exists, to the first free abandoned_N_NAME in the same folder."""
    if path.exists():
        names = (path.with_name(f"abandoned_{number}_{path.name}") for number in itertools.count())
        path.rename(next(name for name in names if not name.exists()))


def _hash(path: Path) -> str:
    digest = xxhash.xxh64()
    with open_regular(path) as file:
        while chunk := file.read(_READ_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def _file_fault(path: Path, bytes: int, xxh64: str) -> str | None:
    """Why a file is not the one in the marker. Raises OSError where it cannot be read."""
    found_bytes = path.stat().st_size
    if found_bytes != bytes:
        return f"{path.name} has {found_bytes} bytes, saved were {bytes}"
    found = _hash(path)
    return None if found == xxh64 else f"{path.name} has xxh64 {found}, saved was {xxh64}"
