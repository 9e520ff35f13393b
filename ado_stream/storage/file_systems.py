"""Status, listing and ranges of objects in stores that are neither local nor S3, through fsspec's file systems.

Each scheme has a package of its own (gs: gcsfs, az and abfs: adlfs, hf: huggingface_hub, https: aiohttp), with its own
credentials. Calls block, and raise what those packages raise; storage/download.py bounds and classifies them.
"""

from datetime import datetime
from typing import Any
from urllib.parse import urlsplit

import xxhash

from ado_stream.errors import ConfigError
from ado_stream.storage.answers import check_range, replaced
from ado_stream.storage.object_spec import ObjectStatus
from ado_stream.value_types import JsonMapping

# What changes when an object is replaced, by the names of the packages; the first that a store gives.
_VERSIONS = ("generation", "etag", "ETag", "blob_id", "oid", "Content-MD5", "Last-Modified", "mtime", "created")
_SAMPLE_BYTES = 1 << 12  # read at both ends of a file whose store gives no version


def status(url: str) -> ObjectStatus:
    """Size and version of a file, as it is now. Raises FileNotFoundError, ConfigError (no such client)."""
    system, path = _opened(url)
    info = system.info(path)
    if info["type"] != "file" or info.get("mimetype") == "text/html":  # no file of tokens: a login, a list of files
        raise FileNotFoundError(f"{url}: a {'web page' if info['type'] == 'file' else info['type']}")
    return _status(system, path, info)


def list_files(folder_url: str, suffix: str) -> dict[str, ObjectStatus]:
    """{path below the folder: status} of its files at any depth that end with `suffix`."""
    system, root = _opened(folder_url)
    found = {path: info for path, info in system.find(root, detail=True).items() if path.endswith(suffix)}
    return {path.removeprefix(root).lstrip("/"): _status(system, path, info) for path, info in found.items()}


def read(url: str, asked: range, version: str | None) -> bytes:
    """These bytes of a file. Raises AttemptError where others came or, if the answer says so, of another version."""
    return _read(*_opened(url), asked, version)


def _read(system: Any, path: str, asked: range, version: str | None) -> bytes:
    from fsspec.asyn import sync
    from fsspec.implementations.http import HTTPFileSystem

    if isinstance(system, HTTPFileSystem):
        received: bytes = sync(system.loop, _read_http, system, path, asked, version)
        return received
    content: bytes = system.cat_file(path, asked.start, asked.stop)
    if len(content) != len(asked):
        raise EOFError(f"{len(content)} bytes came for a range of {len(asked)}")
    return content


async def _read_http(system: Any, url: str, asked: range, version: str | None) -> bytes:
    """As `read`. fsspec's own takes whatever comes, however much it is."""
    if not asked:
        return b""
    session, options = await system.set_session(), dict(system.kwargs)
    wanted = {"Range": f"bytes={asked.start}-{asked.stop - 1}", "Accept-Encoding": "identity"}
    headers = {**options.pop("headers", {}), **wanted}
    content = bytearray()
    async with session.get(system.encode_url(url), headers=headers, **options) as answer:
        answer.raise_for_status()
        content_range = answer.headers.get("Content-Range", "")
        check_range(asked, content_range, answer.content_length)
        if tag := answer.headers.get("ETag"):
            size = content_range.rpartition("/")[2] or str(asked.stop)
            # A weak tag is of one content, too, and some servers weaken those of some answers.
            if version and size != "*" and version.replace("W/", "") != _version(size, tag).replace("W/", ""):
                raise replaced()
        async for chunk in answer.content.iter_any():
            content += chunk
            if len(content) > len(asked):
                break
    if len(content) != len(asked):
        raise EOFError(f"{'over ' * (len(content) > len(asked))}{len(content)} bytes came for a range of {len(asked)}")
    return bytes(content)


def _opened(url: str) -> tuple[Any, str]:
    """The file system, without cached listings, and the path within it."""
    import fsspec

    options = {}
    if (scheme := urlsplit(url).scheme) in ("http", "https"):  # HTTP_PROXY and NO_PROXY of the environment
        options["client_kwargs"] = {"trust_env": True} | fsspec.config.conf.get(scheme, {}).get("client_kwargs", {})
    try:
        system, path = fsspec.url_to_fs(url, **options)
    except (ImportError, ValueError) as error:
        raise ConfigError(
            f"{url}: files of tokens are read by ranges, here through fsspec: {error}.\n"
            "  Install the client of that scheme (gs: gcsfs, az: adlfs), or use s3:// or a path."
        ) from error
    system.invalidate_cache()
    return system, str(path).rstrip("/")


def _status(system: Any, path: str, info: JsonMapping) -> ObjectStatus:
    if info.get("size") is None:  # in a list of HTTP's
        info = system.info(path)
    if info["size"] is None:
        raise ValueError(f"{path}: the store does not say how large the file is")
    size = int(info["size"])
    version = next((info[name] for name in _VERSIONS if info.get(name)), None)
    if version is None:
        begins = (0, max(0, size - _SAMPLE_BYTES))
        ends = (_read(system, path, range(begin, min(begin + _SAMPLE_BYTES, size)), None) for begin in begins)
        version = xxhash.xxh3_128_hexdigest(b"".join(ends))
    if isinstance(version, datetime):  # a listing of the same file system may have seconds, or an ETag without quotes
        version = version.timestamp()
    return ObjectStatus(size, _version(size, version))


def _version(size: object, version: object) -> str:
    return f"{size}-{version}".replace('"', "")
