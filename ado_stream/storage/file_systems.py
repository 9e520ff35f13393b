"""Status, listing and ranges of objects in stores that are neither local nor S3, through fsspec's file systems.

Each scheme has a package of its own (gs: gcsfs, az and abfs: adlfs, hf: huggingface_hub, https: aiohttp), with its own
credentials. Calls block, and raise what those packages raise; storage/download.py bounds and classifies them.
"""

from datetime import datetime
from typing import Any

import xxhash

from ado_stream.errors import ConfigError
from ado_stream.storage.object_spec import ObjectStatus
from ado_stream.value_types import JsonMapping

# What changes when an object is replaced, by the names of the packages; the first that a store gives.
_VERSIONS = ("generation", "etag", "ETag", "blob_id", "oid", "Content-MD5", "Last-Modified", "mtime", "created")
_SAMPLE_BYTES = 1 << 12  # read at both ends of a file whose store gives no version


def status(url: str) -> ObjectStatus:
    """Size and version of a file, as it is now. Raises FileNotFoundError, ConfigError (no such client)."""
    system, path = _opened(url)
    info = system.info(path)
    if info["type"] != "file":
        raise FileNotFoundError(f"{url}: a {info['type']}")
    if info["size"] is None:
        raise ValueError("the store does not say how large the file is")
    return _status(system, path, info)


def list_files(folder_url: str) -> dict[str, ObjectStatus]:
    """{path below the folder: status} of its files at any depth."""
    system, root = _opened(folder_url)
    found = system.find(root, detail=True)
    return {path.removeprefix(root).lstrip("/"): _status(system, path, info) for path, info in found.items()}


def read(url: str, begin: int, end: int) -> bytes:
    """Bytes [begin, end) of a file, of whichever version."""
    system, path = _opened(url)
    content: bytes = system.cat_file(path, begin, end)
    return content


def _opened(url: str) -> tuple[Any, str]:
    """The file system, without cached listings, and the path within it."""
    import fsspec

    try:
        system, path = fsspec.url_to_fs(url)
    except (ImportError, ValueError) as error:
        raise ConfigError(
            f"{url}: files of tokens are read by ranges, here through fsspec: {error}.\n"
            "  Install the client of that scheme (gs: gcsfs, az: adlfs), or use s3:// or a path."
        ) from error
    system.invalidate_cache()
    return system, str(path).rstrip("/")


def _status(system: Any, path: str, info: JsonMapping) -> ObjectStatus:
    size = int(info["size"])
    version = next((info[name] for name in _VERSIONS if info.get(name)), None)
    if version is None:
        begins = (0, max(0, size - _SAMPLE_BYTES))
        ends = (system.cat_file(path, begin, min(begin + _SAMPLE_BYTES, size)) for begin in begins)
        version = xxhash.xxh3_128_hexdigest(b"".join(ends))
    if isinstance(version, datetime):  # a listing of the same file system may have seconds, or an ETag without quotes
        version = version.timestamp()
    return ObjectStatus(size, f"{size}-{version}".replace('"', ""))
