"""One small file from an object store to local disk."""

import os
from pathlib import Path

from ado_stream.errors import NotFound, StorageError

_TIMEOUT_S = 60.0


def fetch(url: str, path: Path) -> None:
    """Downloads `url` to `path`, which appears only complete. Raises NotFound, StorageError."""
    from streaming.base.storage import CloudDownloader

    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.download")
    temporary.unlink(missing_ok=True)
    try:
        CloudDownloader.get(url).download(url, str(temporary), _TIMEOUT_S)
    except FileNotFoundError as error:
        raise NotFound(f"{url}: no such object. Check the URL.") from error
    except Exception as error:  # every store's client has its own exceptions
        raise StorageError(f"{url}: download failed: {error}. Check the URL and the credentials.") from error
    os.replace(temporary, path)
