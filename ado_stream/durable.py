"""Small files that are on the disk whole or not at all, also after a power cut. Standard library only."""

import os
from pathlib import Path


def write_durably(path: Path, data: bytes | str) -> None:
    """Writes `path` by a temporary name beside it, fsync of the file, rename and fsync of the folder.

    `data` as text is written as UTF-8. The folder is made when it is missing. Raises OSError; the old file, if there
    was one, is then unchanged.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    with open(temporary, "wb") as file:
        file.write(data.encode() if isinstance(data, str) else data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Makes the names in `folder` durable: renames, creations and removals so far survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
