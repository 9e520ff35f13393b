"""When a checkpoint directory counts: the commit marker, the check of every byte it names, finding the newest.

A checkpoint is RUN/checkpoints/step_00000300/, standing for 300 finished steps. Invariant: COMMIT.json is written last,
after all other files are on disk, and holds the size and xxh64 of each; a directory without it, or with a file that
does not match, is torn and is never loaded. Nothing here unpickles.
"""

import itertools
import json
import re
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import xxhash

from ado_stream.durable import sync, write_durably
from ado_stream.errors import CheckpointError

MARKER = "COMMIT.json"
VERSION = 1
_NAME = re.compile(r"step_(\d{8,})")
_READ_BYTES = 1 << 22
_HASH_THREADS = 4


def directory_of(checkpoints: Path, step: int) -> Path:
    """Where the checkpoint of `step` finished steps lies."""
    return checkpoints / f"step_{step:08d}"


def step_of(directory: Path) -> int:
    """The number of finished steps in a checkpoint directory's name. Raises CheckpointError for another name."""
    match = _NAME.fullmatch(directory.name)
    if match is None:
        raise CheckpointError(f"{directory}: not a checkpoint directory; expected a name such as step_00000300.")
    return int(match[1])


def newest_first(checkpoints: Path) -> list[Path]:
    """Checkpoint directories, committed or torn, the newest first."""
    if not checkpoints.is_dir():
        return []
    found = [each for each in checkpoints.iterdir() if each.is_dir() and _NAME.fullmatch(each.name)]
    return sorted(found, key=step_of, reverse=True)


def make_fresh(directory: Path) -> None:
    """An empty `directory`; what a killed save left there under the same name is removed."""
    if directory.exists():
        shutil.rmtree(directory)
    directory.mkdir(parents=True)


def commit(directory: Path) -> None:
    """Makes `directory` count: hashes what is in it, then writes the marker by rename."""
    paths = sorted(path for path in directory.iterdir() if path.name != MARKER)
    with ThreadPoolExecutor(_HASH_THREADS) as pool:
        hashes = list(pool.map(_hash, paths))
    files = {
        path.name: {"bytes": path.stat().st_size, "xxh64": digest} for path, digest in zip(paths, hashes, strict=True)
    }
    write_durably(directory / MARKER, json.dumps({"version": VERSION, "files": files}, indent=1))
    sync(directory.parent)


def fault_of(directory: Path) -> str | None:
    """Why a checkpoint cannot be trusted, or None: every file is there, of its size and with its hash."""
    try:
        marker = json.loads((directory / MARKER).read_text())
        files = {str(name): (int(each["bytes"]), str(each["xxh64"])) for name, each in marker["files"].items()}
        version = marker["version"]
    except FileNotFoundError:
        return f"{MARKER} is missing; its save was not finished"
    except (ValueError, KeyError, TypeError, AttributeError):
        return f"{MARKER} cannot be read"
    if version != VERSION:
        return f"{MARKER} is of version {version}; this ado-stream reads version {VERSION}"
    strangers = sorted({path.name for path in directory.iterdir()} - files.keys() - {MARKER})
    if strangers:
        return f"{strangers[0]} is not of this checkpoint"
    with ThreadPoolExecutor(_HASH_THREADS) as pool:
        faults = pool.map(lambda item: _file_fault(directory / item[0], *item[1]), files.items())
        return next((fault for fault in faults if fault), None)


def newest_sound(checkpoints: Path) -> tuple[Path | None, list[str]]:
    """(the newest checkpoint that can be trusted or None, why each newer one was passed over)."""
    passed_over: list[str] = []
    for directory in newest_first(checkpoints):
        fault = fault_of(directory)
        if fault is None:
            return directory, passed_over
        passed_over.append(f"{directory.name}: {fault}")
    return None, passed_over


def prune(checkpoints: Path, keep: int) -> None:
    """Removes all but the newest `keep` committed checkpoints, and torn ones older than those."""
    committed = [each for each in newest_first(checkpoints) if (each / MARKER).exists()]
    if len(committed) <= keep:
        return
    oldest_kept = step_of(committed[keep - 1])
    for directory in newest_first(checkpoints):
        if step_of(directory) < oldest_kept:
            (directory / MARKER).unlink(missing_ok=True)  # first: a half-removed one must not look committed
            shutil.rmtree(directory)


def set_aside_newer(checkpoints: Path, step: int) -> None:
    """Renames checkpoints beyond `step`, which a run that restarts at `step` leaves behind."""
    for directory in newest_first(checkpoints):
        if step_of(directory) > step:
            set_aside(directory)


def set_aside(path: Path) -> None:
    """Renames `path`, if it is there, to the first free abandoned_N_NAME beside it."""
    if path.exists():
        names = (path.with_name(f"abandoned_{number}_{path.name}") for number in itertools.count())
        path.rename(next(name for name in names if not name.exists()))


def _hash(path: Path) -> str:
    digest = xxhash.xxh64()
    with open(path, "rb") as file:
        while chunk := file.read(_READ_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def _file_fault(path: Path, num_bytes: int, expected: str) -> str | None:
    try:
        found_bytes = path.stat().st_size
    except FileNotFoundError:
        return f"{path.name} is missing"
    if found_bytes != num_bytes:
        return f"{path.name} has {found_bytes} bytes, {num_bytes} were saved"
    found = _hash(path)
    return None if found == expected else f"{path.name} has xxh64 {found}, {expected} was saved"
