"""Where a corpus goes: a local folder, or an object store by way of a staging folder.

A file appears under its final name only complete: locally by rename, remotely because object stores show whole
objects alone. Uploads go through streaming's CloudUploader (s3, gs, azure, oci, hf, ...), imported when needed.
"""

import os
import shutil
import threading
from pathlib import Path
from typing import Any, Protocol

from ado_stream.errors import NotFound, StorageError
from ado_stream.prepare.fetch import fetch
from ado_stream.prepare.files import write_whole

_UPLOAD_ATTEMPTS = 5


class Target(Protocol):
    """A corpus' place, addressed by paths relative to it."""

    def local_path(self, place: str) -> Path:
        """Where a worker puts the file `place`, to be published after; its folder exists."""

    def publish(self, place: str) -> None:
        """Brings the file at `local_path(place)` to its place."""

    def write(self, place: str, data: bytes) -> None:
        """Writes a small file to its place."""

    def read(self, place: str) -> bytes | None:
        """A small file's content, None if there is none."""


class LocalTarget:
    """A folder of this machine."""

    def __init__(self, folder: Path):
        self._folder = folder

    def local_path(self, place: str) -> Path:
        path = self._folder / place
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def publish(self, place: str) -> None:
        """Nothing to do: the file is in its place."""

    def write(self, place: str, data: bytes) -> None:
        write_whole(self._folder / place, data)

    def read(self, place: str) -> bytes | None:
        path = self._folder / place
        return path.read_bytes() if path.exists() else None


class RemoteTarget:
    """A folder of an object store."""

    def __init__(self, url: str, staging: Path):
        self._url = url.rstrip("/")
        self._staging = staging
        self._uploaders: dict[str, Any] = {}
        self._lock = threading.Lock()

    def local_path(self, place: str) -> Path:
        path = self._staging / place
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def publish(self, place: str) -> None:
        """Uploads the file and removes it here. Raises StorageError after the last attempt."""
        folder, name = os.path.split(place)
        try:
            self._uploader(folder).upload_file(name)
        except Exception as error:  # every store's client has its own exceptions
            raise StorageError(
                f"{self._url}/{place}: upload failed after {_UPLOAD_ATTEMPTS} attempts: {error}.\n"
                "  Check the credentials and the URL; the same command goes on where this one stopped."
            ) from error
        self.local_path(place).unlink(missing_ok=True)

    def write(self, place: str, data: bytes) -> None:
        write_whole(self.local_path(place), data)
        self.publish(place)

    def read(self, place: str) -> bytes | None:
        local = self.local_path(place)
        try:
            fetch(f"{self._url}/{place}", local)
        except NotFound:
            return None
        data = local.read_bytes()
        local.unlink()
        return data

    def _uploader(self, folder: str) -> Any:
        with self._lock:
            if folder not in self._uploaders:
                from streaming.base.storage import CloudUploader

                local = str(self._staging / folder)
                remote = f"{self._url}/{folder}".rstrip("/")
                self._uploaders[folder] = CloudUploader.get((local, remote), keep_local=True, retry=_UPLOAD_ATTEMPTS)
            return self._uploaders[folder]


def clear(folder: Path) -> None:
    """Removes a working folder."""
    shutil.rmtree(folder, ignore_errors=True)
