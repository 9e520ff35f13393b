"""Where a corpus goes: a local folder, or an object store by way of a staging folder.

A local corpus is built in the working folder and moved to its destination once it is whole, corpus.json last; a
remote one is uploaded shard by shard, so that the disk need not hold it, and corpus.json comes last too. Uploads go
through streaming's CloudUploader (s3, gs, azure, oci, hf, ...), imported for remote corpora alone.
"""

import os
from abc import ABC, abstractmethod
from functools import cached_property
from pathlib import Path
from typing import Any

from ado_stream.corpus.manifest import MANIFEST_NAME
from ado_stream.durable import write_durably
from ado_stream.errors import ConfigError, NotFound, StorageError
from ado_stream.redact import without_user
from ado_stream.regular_files import read_regular
from ado_stream.storage.download import download
from ado_stream.storage.slow_notice import slow_notice

_UPLOAD_ATTEMPTS = 5


class CorpusOutput(ABC):
    """A corpus' destination; files are named by their path inside the corpus, and written in `staging` first."""

    publishes_at_once: int
    indexes_at_once: int  # small files, which wait for answers alone

    def __init__(self, staging: Path):
        self._staging = staging

    def local_path(self, name: str) -> Path:
        """Where to write the file `name` before `publish`; its folder exists."""
        path = self._staging / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    @abstractmethod
    def check_writable(self) -> None:
        """Raises an AdoStreamError when nothing can be written there."""

    @abstractmethod
    def publish(self, name: str) -> None:
        """Takes over the complete file at `local_path(name)`."""

    def lost(self, name: str, num_bytes: int) -> bool:
        """Whether the file `name`, of `num_bytes`, which an earlier run published, is known to be gone."""
        return False

    @abstractmethod
    def check_whole(self) -> None:
        """Raises StorageError, NotFound or IndexInvalid where a file of a complete corpus is known to be gone."""

    @abstractmethod
    def complete(self, manifest: bytes) -> None:
        """Makes all published files visible under their names, and corpus.json last."""

    @abstractmethod
    def manifest(self) -> bytes | None:
        """corpus.json of a complete corpus, None where there is none."""


class LocalOutput(CorpusOutput):
    """A folder of this machine; `staging` is on the same file system."""

    publishes_at_once = 1  # there is nothing to do
    indexes_at_once = 1

    def __init__(self, folder: Path, staging: Path):
        super().__init__(staging)
        self._folder = folder

    def check_writable(self) -> None:
        """Raises ConfigError when something else is in the folder: it would become part of the corpus."""
        self._folder.mkdir(parents=True, exist_ok=True)
        others = sorted(path.name for path in self._folder.iterdir() if path != self._staging.parent)
        if others:
            raise ConfigError(
                f"{self._folder}: not empty: {', '.join(others[:3])}{', ...' if len(others) > 3 else ''}.\n"
                "  Choose an --out that is empty or does not exist."
            )

    def publish(self, name: str) -> None:
        """Nothing to do before the corpus is whole."""

    def lost(self, name: str, num_bytes: int) -> bool:
        path = self._staging / name
        return not path.is_file() or path.stat().st_size != num_bytes

    def complete(self, manifest: bytes) -> None:
        for path in sorted(self._staging.iterdir()):
            os.replace(path, self._folder / path.name)
        write_durably(self._folder / MANIFEST_NAME, manifest)

    def check_whole(self) -> None:
        from ado_stream.corpus.checker import CorpusChecker, stored_entry

        checker = CorpusChecker(self._folder)
        for domain, split in checker.splits():
            for entry in checker.index(domain, split):
                path = Path(checker.location(domain, split, entry))
                if not path.is_file() or path.stat().st_size != stored_entry(entry)["bytes"]:
                    raise StorageError(
                        f"{path}: {'of another size' if path.is_file() else 'gone'} since the corpus was prepared.\n"
                        f"  Nothing was changed. Remove {self._folder} and run the same command again."
                    )

    def manifest(self) -> bytes | None:
        path = self._folder / MANIFEST_NAME
        return read_regular(path) if path.exists() else None


class RemoteOutput(CorpusOutput):
    """A folder of an object store; `staging` holds what is not uploaded yet."""

    publishes_at_once = 4
    indexes_at_once = 32

    def __init__(self, url: str, staging: Path):
        super().__init__(staging)
        self._url = url.rstrip("/")

    def check_writable(self) -> None:
        """Makes the client, which looks for the bucket. Raises StorageError."""
        self._uploader  # noqa: B018 - made here, so that a wrong URL costs seconds and not hours

    def publish(self, name: str) -> None:
        """Uploads the file and removes it here. Raises StorageError after the last attempt."""
        try:
            self._uploader.upload_file(name)
        except Exception as error:  # every store's client has its own exceptions
            raise StorageError(
                f"{self._url}/{name}: upload failed after {_UPLOAD_ATTEMPTS} attempts: "
                f"{without_user(str(error), self._url)}.\n"
                "  Check the credentials and the URL; the same command resumes the run."
            ) from None
        self.local_path(name).unlink(missing_ok=True)

    def complete(self, manifest: bytes) -> None:
        write_durably(self.local_path(MANIFEST_NAME), manifest)
        self.publish(MANIFEST_NAME)

    def check_whole(self) -> None:
        """Nothing: a store does not lose what was uploaded, and `lint` asks it for all."""

    def manifest(self) -> bytes | None:
        path = self.local_path(MANIFEST_NAME)
        try:
            with slow_notice(self._url):
                download(f"{self._url}/{MANIFEST_NAME}", path)
        except NotFound:
            return None
        data = path.read_bytes()
        path.unlink()
        return data

    @cached_property
    def _uploader(self) -> Any:
        from streaming.base.storage.upload import CloudUploader

        try:
            with slow_notice(self._url):
                return CloudUploader.get(
                    (str(self._staging), self._url), keep_local=True, retry=_UPLOAD_ATTEMPTS, exist_ok=True
                )
        except Exception as error:  # every store's client has its own exceptions
            raise StorageError(
                f"{self._url}: cannot be written: {without_user(str(error), self._url)}.\n"
                "  Check the URL, the credentials and S3_ENDPOINT_URL."
            ) from None
