"""Small files that become visible only complete."""

import os
from pathlib import Path


def write_whole(path: Path, data: bytes) -> None:
    """Writes `data` to `path` by a temporary name in the same folder, fsync and rename."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    with open(temporary, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
