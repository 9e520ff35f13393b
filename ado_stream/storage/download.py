"""One remote object to one complete, verified local file, or to bytes in memory.

Invariants: the destination appears only with the size and hashes asked for; no code path leaves a temporary file; every
attempt is bounded by the read timeout, all of them by the total deadline. What is parsed (index.json, corpus.json,
tokenizers) is read as bytes and never from a file that another process could replace meanwhile.
Local paths and file:// are copied here, s3:// goes through storage/s3.py, every other scheme (gs, azure, oci, hf, sftp,
dbfs, alipan) through MosaicML Streaming's downloaders (streaming.base.storage.download), imported on first use; parts,
which those cannot read, through storage/file_systems.py.
"""

import itertools
import os
import re
import tempfile
import urllib.parse
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import xxhash

from ado_stream.errors import AccessDenied, ConfigError, IndexInvalid, NotFound, StorageError, Throttled
from ado_stream.regular_files import PERMANENT, check_regular, file_id, open_regular
from ado_stream.storage import file_systems, s3
from ado_stream.storage.answers import replaced
from ado_stream.storage.complete_file import CompleteFile
from ado_stream.storage.object_spec import ObjectStatus, Part
from ado_stream.storage.parallel_reads import watched
from ado_stream.storage.retry import AttemptError, DownloadMonitor, RetryPolicy, retry_after_s, with_retries
from ado_stream.storage.verify import CHUNK_BYTES

T = TypeVar("T")
_MAX_METADATA_BYTES = 1 << 28  # the index of half a million shards
_PART_BYTES = 1 << 22  # asked for at once where bytes arrive together: a slow link is no stall
_scratch_numbers = itertools.count()
_SCHEME = re.compile(r"^([a-zA-Z][a-zA-Z0-9+.-]+):/")
_URL = re.compile(r"[a-z0-9-]+://[^/]|dbfs:/")


@dataclass(frozen=True)
class Download:
    """What a download cost, and the status of its file before other processes could replace it."""

    num_bytes: int
    attempts: int
    status: os.stat_result


def download(
    remote_url: str,
    destination: Path,
    *,
    expected_bytes: int | None = None,
    hashes: Mapping[str, str] | None = None,
    retry: RetryPolicy | None = None,
    part: Part | None = None,
    seal: bool = False,
) -> Download:
    """Bytes and attempts it took to make `destination` from `remote_url` (a URL or a local path).

    The caller holds the lock of `destination`, as NodeCache does, or is its only writer. part: of the object, of
    `expected_bytes`. seal: the file (verify.py).

    Raises:
        NotFound, AccessDenied: at once; Throttled, StorageError: after every retry, naming URL, attempts and seconds.
        ContentError: complete bytes of the wrong size or hash; the destination was not touched.
        DataError: the object is not the version that `part` is of.
        DiskError: the local disk failed. StoppedError: `retry.stop` was set. ConfigError: a scheme without its client.
    """
    monitor = DownloadMonitor(retry or RetryPolicy(), remote_url)
    with CompleteFile(destination, expected_bytes, hashes or {}, seal) as file:

        def attempt() -> None:
            file.restart()
            if part is None:
                _receive(remote_url, file.write, file.temporary, monitor)
            else:
                _receive_part(remote_url, file.write, monitor, part, expected_bytes or 0)

        _, attempts = with_retries(attempt, monitor)
        return Download(file.verifier.num_bytes, attempts, file.commit())


def download_bytes(remote_url: str, retry: RetryPolicy | None = None, max_bytes: int = _MAX_METADATA_BYTES) -> bytes:
    """The content of `remote_url` (a URL or a local path), which must have at most `max_bytes`.

    Raises as `download`, and IndexInvalid when it is larger.
    """
    found = download_if_changed(remote_url, "", retry, max_bytes)
    assert found is not None
    return found[0]


def download_if_changed(
    remote_url: str, tag: str, retry: RetryPolicy | None = None, max_bytes: int = _MAX_METADATA_BYTES
) -> tuple[bytes, str] | None:
    """(content, tag) of `remote_url`; None when it still has this `tag`, which a store reports without sending it.

    Raises as `download_bytes`.
    """
    monitor = DownloadMonitor(retry or RetryPolicy(), remote_url)
    content = bytearray()

    def write(chunk: bytes) -> None:
        if len(content) + len(chunk) > max_bytes:
            raise IndexInvalid(f"{remote_url}: over {max_bytes} bytes, too large for such a file. Check the URL.")
        content.extend(chunk)

    def attempt() -> str | None:
        content.clear()
        return _receive(remote_url, write, Path(folder) / "object", monitor, tag)

    with tempfile.TemporaryDirectory(prefix="ado-", ignore_cleanup_errors=True) as folder:
        found, _ = with_retries(attempt, monitor)
    if found == "":  # the store has no tags: one of the content
        found = xxhash.xxh3_128_hexdigest(content)
    return None if found is None or found == tag else (bytes(content), found)


def download_part(
    remote_url: str, begin: int, end: int, version: str | None, retry: RetryPolicy | None = None
) -> bytes:
    """Bytes [begin, end) of that version of the object at `remote_url`. Raises as `download`."""
    monitor = DownloadMonitor(retry or RetryPolicy(), remote_url)
    content = bytearray()

    def attempt() -> None:
        content.clear()
        _receive_part(remote_url, content.extend, monitor, Part(begin, version), end - begin)

    with_retries(attempt, monitor)
    return bytes(content)


def object_version(remote_url: str, retry: RetryPolicy | None = None) -> str | None:
    """What changes when the object at `remote_url` is replaced: its ETag, or the size and time of a local file.

    None for a store whose client gives neither. Raises as `download`.
    """
    if local_path(remote_url) is None and not is_s3(remote_url) and not remote_url.startswith("hf://"):
        return None
    return object_status(remote_url, retry).version


def object_status(remote_url: str, retry: RetryPolicy | None = None) -> ObjectStatus:
    """Size and version of the object at `remote_url`. Raises as `download`."""
    monitor = DownloadMonitor(retry or RetryPolicy(), remote_url)
    found, _ = with_retries(lambda: _status_at(remote_url, monitor), monitor)
    return found


def list_objects(folder_url: str, suffix: str, retry: RetryPolicy | None = None) -> dict[str, ObjectStatus]:
    """{path below the folder: status} of the objects at any depth that end with `suffix`, sorted by path.

    Raises as `download`; what is not there has no objects.
    """
    monitor = DownloadMonitor(retry or RetryPolicy(), folder_url)
    path = local_path(folder_url)

    def attempt() -> dict[str, ObjectStatus]:
        if path is not None:
            return _list_files(path, suffix)
        if is_s3(folder_url):
            return s3.list_objects(folder_url, monitor)
        return _watched(lambda: file_systems.list_files(folder_url, suffix), monitor.check)

    found, _ = with_retries(attempt, monitor)
    return {name: found[name] for name in sorted(found) if name.endswith(suffix)}


def _list_files(folder: Path, suffix: str) -> dict[str, ObjectStatus]:
    """Follows links to folders, each folder once. Raises AttemptError for one that cannot be read."""
    found: dict[str, ObjectStatus] = {}
    entered: set[tuple[int, int]] = set()
    for each, below, names in os.walk(folder, onerror=_raise_unless_gone, followlinks=True):
        if (identity := file_id(each)) in entered:
            below.clear()
            continue
        entered.add(identity)
        below.sort(key=lambda name: (os.path.islink(os.path.join(each, name)), name))  # noqa: B023 - used at once
        paths = (os.path.relpath(os.path.join(each, name), folder) for name in names)
        found |= {path: _file_status(folder / path) for path in paths if path.endswith(suffix)}
    return found


def _raise_unless_gone(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError | NotADirectoryError):
        raise _classified(error) from error


def _status_at(url: str, monitor: DownloadMonitor) -> ObjectStatus:
    path = local_path(url)
    if path is not None:
        return _file_status(path)
    return s3.object_status(url, monitor) if is_s3(url) else _watched(lambda: file_systems.status(url), monitor.check)


def _file_status(path: Path) -> ObjectStatus:
    try:
        status = os.stat(path)
        check_regular(path, status)
        return _object_status(status)
    except OSError as error:
        raise _classified(error) from error


def _object_status(status: os.stat_result) -> ObjectStatus:
    return ObjectStatus(status.st_size, f"{status.st_size}-{status.st_mtime_ns}")


def local_path(remote_url: str) -> Path | None:
    """The path behind a plain path or file:// URL; None for any other scheme."""
    scheme = _SCHEME.match(remote_url)
    if scheme is None:
        return Path(remote_url)
    if scheme[1].lower() == "file":
        return Path(urllib.parse.unquote(re.sub("^.{4}:(//[^/]*)?", "", remote_url)))  # ? and # are part of names
    return None


def is_s3(remote_url: str) -> bool:
    """Whether this is a URL of S3."""
    return remote_url[:5].lower() == "s3://"


def _receive(
    remote_url: str, write: Callable[[bytes], None], temporary: Path, monitor: DownloadMonitor, unless: str = ""
) -> str | None:
    """Passes the content to `write`; returns its tag ("": none), or None, passing nothing, when that is `unless`."""
    path = local_path(remote_url)
    if path is not None:
        _copy(path, write, monitor)
    elif is_s3(remote_url):
        return s3.get_object(remote_url, write, monitor, unless)
    else:
        _receive_through_streaming(remote_url, write, temporary, monitor)
    return ""


def _receive_part(
    remote_url: str, write: Callable[[bytes], object], monitor: DownloadMonitor, part: Part, num_bytes: int
) -> None:
    path, end = local_path(remote_url), part.begin + num_bytes
    if path is not None:
        _copy(path, write, monitor, part, num_bytes)
    elif is_s3(remote_url):
        s3.get_object(remote_url, write, monitor, part=range(part.begin, end), version=part.version)
    else:
        for begin in range(part.begin, end, _PART_BYTES):
            asked = range(begin, min(end, begin + _PART_BYTES))
            content = _watched(partial(file_systems.read, remote_url, asked, part.version), lambda: monitor.received(0))
            monitor.received(len(asked))
            write(content)
        if _status_at(remote_url, monitor).version != part.version:  # after the reads: no store has it in all of them
            raise replaced()


def _copy(
    path: Path,
    write: Callable[[bytes], object],
    monitor: DownloadMonitor,
    part: Part | None = None,
    max_bytes: int = 1 << 62,
) -> None:
    try:
        with open_regular(path, buffering=0) as source:
            if part is not None:
                if _object_status(os.fstat(source.fileno())).version != part.version:
                    raise replaced()
                source.seek(part.begin)
            while max_bytes and (chunk := source.read(min(CHUNK_BYTES, max_bytes))):
                max_bytes -= len(chunk)
                monitor.received(len(chunk))
                write(chunk)
            if part is not None and max_bytes:
                raise replaced()
    except OSError as error:
        raise _classified(error) from error


def _receive_through_streaming(
    remote_url: str, write: Callable[[bytes], None], temporary: Path, monitor: DownloadMonitor
) -> None:
    """Has Streaming's downloader write a scratch file beside `temporary`, then passes its bytes to `write`.

    The scratch file of an abandoned thread is removed here or, if it writes on, as a leftover by the next holder of the
    object's lock.
    """
    scratch = temporary.with_name(f"{temporary.name}.{next(_scratch_numbers)}")

    def work() -> None:
        _streaming_downloader(remote_url).download(remote_url, str(scratch), monitor.policy.read_timeout_s)

    try:
        _watched(work, monitor.check)
        if not scratch.exists():
            raise AttemptError(StorageError, "the downloader returned without a file", transient=True)
        _copy(scratch, write, monitor)
    finally:
        with suppress(FileNotFoundError):
            scratch.unlink()


def _watched(work: Callable[[], T], check: Callable[[], None]) -> T:
    """As `watched`; what the clients of the clouds raise, classified."""

    def classified() -> T:
        try:
            return work()
        except Exception as error:
            raise _classified(error) from error

    return watched(classified, check)


def _streaming_downloader(remote_url: str) -> Any:
    try:
        if not _URL.match(remote_url):  # which some of the clients take for another bucket's
            raise ValueError
        from streaming.base.storage.download import CloudDownloader

        return CloudDownloader.get(remote_url)
    except ImportError as error:
        raise ConfigError(
            f"{remote_url}: its client is not installed ({error}).\n  pip install 'mosaicml-streaming[all]'"
        ) from error
    except ValueError as error:
        raise ConfigError(
            f"{remote_url}: unknown kind of remote.\n"
            "  Use s3://, gs://, azure://, oci://, hf://, sftp://, dbfs:/ or a local path."
        ) from error


def _classified(error: BaseException) -> BaseException:
    """The failure as an AttemptError. Cloud clients share no base class, but their errors have an HTTP status."""
    if isinstance(error, ConfigError | AttemptError):
        return error
    cause = error.__cause__
    if isinstance(error, FileNotFoundError) and not isinstance(cause, FileNotFoundError | KeyError | None):
        error = cause  # fsspec's file system of https says so whatever failed
    response = getattr(error, "response", None)
    statuses = ((error, "status_code"), (error, "status"), (error, "code"), (response, "status_code"))
    values = (getattr(owner, name, None) for owner, name in statuses)
    status = next((value for value in values if isinstance(value, int)), 0)
    reason = getattr(error, "strerror", None) or f"{type(error).__name__}: {error}".partition("\n")[0]
    if status == 404 or isinstance(error, FileNotFoundError):
        return AttemptError(NotFound, reason, transient=False)
    if status in (401, 403) or isinstance(error, PermissionError):
        return AttemptError(AccessDenied, reason, transient=False)
    wait_s = retry_after_s(getattr(response, "headers", None) or getattr(error, "headers", None))
    if status in (429, 503):
        return AttemptError(Throttled, reason, transient=True, wait_s=wait_s)
    permanent = isinstance(error, (IsADirectoryError, NotADirectoryError, ValueError, TypeError)) or 400 <= status < 500
    permanent = permanent or (isinstance(error, OSError) and error.errno in PERMANENT)
    return AttemptError(StorageError, reason, transient=not permanent, wait_s=wait_s)
