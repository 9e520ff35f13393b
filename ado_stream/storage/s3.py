"""One S3 request that is bounded in time: a body is read as it arrives.

Why not Streaming's S3Downloader: its boto3 transfer retries by itself three times, never retries a cut body without
starting over, and reads in chunks that a slow sender can delay without limit. Here botocore makes exactly one attempt
and `read1` returns what one recv returned, so that stalls and trickles are noticed; retries are in storage/retry.py.
Kept from Streaming: S3_ENDPOINT_URL, MOSAICML_STREAMING_AWS_REQUESTER_PAYS, the default session's credentials, and
unsigned access when there are none.
"""

import os
import threading
import urllib.parse
from collections.abc import Callable
from typing import Any, TypeVar

from ado_stream.errors import AccessDenied, ConfigError, DataError, NotFound, StorageError, Throttled
from ado_stream.storage.object_spec import ObjectStatus
from ado_stream.storage.retry import AttemptError, DownloadMonitor
from ado_stream.storage.verify import CHUNK_BYTES
from ado_stream.value_types import JsonMapping

T = TypeVar("T")
CONNECT_TIMEOUT_S = 10.0
POOL_CONNECTIONS = 64
NOT_FOUND = {"404", "NoSuchKey", "NoSuchBucket", "NotFound"}
DENIED = {
    "401",
    "403",
    "AccessDenied",
    "ExpiredToken",
    "ExpiredTokenException",
    "InvalidAccessKeyId",
    "InvalidToken",
    "RequestTimeTooSkewed",
    "SignatureDoesNotMatch",
}
THROTTLED = {
    "429",
    "503",
    "SlowDown",
    "ServiceUnavailable",
    "Throttling",
    "ThrottlingException",
    "RequestLimitExceeded",
}
TRANSIENT = {"400", "RequestTimeout", "InternalError"}

_clients: dict[tuple[object, ...], Any] = {}
_clients_lock = threading.Lock()


def get_object(
    url: str,
    write: Callable[[bytes], object],
    monitor: DownloadMonitor,
    unless: str = "",
    part: range | None = None,
    version: str | None = None,
) -> str | None:
    """Passes the object's bytes to `write` in one attempt and returns its ETag, "" where the store gives none.

    None, and no bytes, when its ETag is `unless`. Raises AttemptError when the attempt did not work, or the object's
    ETag is not `version`.

    Args:
        url: s3://bucket/key.
        write: takes each chunk; what it raises passes through.
        monitor: counts every chunk; ends the attempt when it stalls, is late, or is to stop.
        part: only these bytes.
    """
    # If-Match compares strongly: a weak tag matches nothing. Not every store obeys it: hence the check below.
    if_match = None if version is None or version.startswith("W/") else version
    options = {"IfNoneMatch": unless, "IfMatch": if_match, "Range": part and f"bytes={part.start}-{part.stop - 1}"}

    def read(response: JsonMapping) -> str:
        tag = str(response.get("ETag", ""))
        if version and tag.removeprefix("W/") != version.removeprefix("W/"):
            response["Body"].close()
            raise replaced()
        _read_body(response, write, monitor)
        return tag

    return _request("get_object", url, monitor, read, {key: value for key, value in options.items() if value})


def object_status(url: str, monitor: DownloadMonitor) -> ObjectStatus:
    """The object's size and ETag, in one attempt. Raises as `get_object`."""
    found = _request("head_object", url, monitor, _status, {})
    assert found is not None
    return found


def list_objects(folder_url: str, monitor: DownloadMonitor) -> dict[str, ObjectStatus]:
    """{key below the folder: status} of all its objects, in one attempt. Raises as `get_object`."""
    found: dict[str, ObjectStatus] = {}
    more: str | None = ""

    def read(response: JsonMapping) -> str | None:
        monitor.begin_attempt()  # a page is no stall
        monitor.check()
        found.update({entry["Key"]: _status(entry) for entry in response.get("Contents", [])})
        return response.get("NextContinuationToken")

    while more is not None:
        more = _request("list_objects_v2", folder_url, monitor, read, {"ContinuationToken": more} if more else {})
    prefix = _key(folder_url).rstrip("/") + "/"
    return {key.removeprefix(prefix): status for key, status in found.items()}


def replaced() -> AttemptError:
    """The failure of a read of part of an object that was replaced after its index was opened."""
    return AttemptError(DataError, "the file was replaced or changed since it was opened", transient=False)


def _status(entry: JsonMapping) -> ObjectStatus:
    return ObjectStatus(int(entry["Size"] if "Size" in entry else entry["ContentLength"]), str(entry.get("ETag", "")))


def _key(url: str) -> str:
    return urllib.parse.urlunsplit(("", "", *urllib.parse.urlsplit(url)[2:])).lstrip("/")


def _request(
    operation: str, url: str, monitor: DownloadMonitor, read: Callable[[JsonMapping], T], options: dict[str, str]
) -> T | None:
    """`read(response)`, which may still receive a body; None: not modified."""
    import urllib3.exceptions
    from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError, ParamValidationError

    parts = urllib.parse.urlsplit(url)
    place = {"Prefix": _key(url).rstrip("/") + "/"} if operation == "list_objects_v2" else {"Key": _key(url)}
    request = {"Bucket": parts.netloc, **place, **options}
    if parts.netloc in _requester_pays():
        request["RequestPayer"] = "requester"
    try:
        try:
            response = getattr(_client(monitor.policy.read_timeout_s), operation)(**request)
        except NoCredentialsError:
            response = getattr(_client(monitor.policy.read_timeout_s, unsigned=True), operation)(**request)
        return read(response)
    except ClientError as error:
        if error.response.get("ResponseMetadata", {}).get("HTTPStatusCode") == 304:  # IfNoneMatch: the same ETag
            return None
        raise _classified(error) from error
    except (BotoCoreError, urllib3.exceptions.HTTPError, OSError) as error:
        transient = not isinstance(error, ParamValidationError)  # which no bucket can be called
        raise AttemptError(StorageError, f"{type(error).__name__}: {error}", transient=transient) from error


def _read_body(response: JsonMapping, write: Callable[[bytes], object], monitor: DownloadMonitor) -> None:
    expected, received = response["ContentLength"], 0
    body = response["Body"]
    try:
        with body as stream:
            while chunk := stream.read1(CHUNK_BYTES):
                received += len(chunk)
                monitor.received(len(chunk))
                write(chunk)
    finally:
        body.close()
    if received != expected:
        raise AttemptError(StorageError, f"body ended after {received} of {expected} bytes", transient=True)


def _client(read_timeout_s: float, unsigned: bool = False) -> Any:
    """The shared, thread-safe client of this process for an endpoint; making one is not, hence the lock."""
    try:
        from boto3.session import Session
        from botocore import UNSIGNED
        from botocore.config import Config
    except ImportError as error:
        raise ConfigError("s3:// needs boto3.\n  pip install boto3") from error

    endpoint = os.environ.get("S3_ENDPOINT_URL")
    key = (os.getpid(), endpoint, read_timeout_s, unsigned)  # a fork must not share its parent's sockets
    with _clients_lock:
        if key not in _clients:
            config = Config(
                connect_timeout=min(CONNECT_TIMEOUT_S, read_timeout_s),
                read_timeout=read_timeout_s,
                max_pool_connections=POOL_CONNECTIONS,
                retries={"total_max_attempts": 1, "mode": "standard"},  # retry.py's can be bounded and stopped
                signature_version=UNSIGNED if unsigned else None,
            )
            try:
                _clients[key] = Session().client("s3", config=config, endpoint_url=endpoint)
            except ValueError as error:
                raise ConfigError(f"S3_ENDPOINT_URL: {error}\n  Expected http://HOST:PORT or https://HOST.") from None
        return _clients[key]


def _requester_pays() -> set[str]:
    return {name.strip() for name in os.environ.get("MOSAICML_STREAMING_AWS_REQUESTER_PAYS", "").split(",")} - {""}


def _classified(error: Any) -> AttemptError:
    code = str(error.response.get("Error", {}).get("Code", ""))
    status = str(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", ""))
    if status == "412":  # IfMatch: another ETag
        return replaced()
    reason = f"HTTP {status} {code}".strip()
    if code in NOT_FOUND or status == "404":
        return AttemptError(NotFound, reason, transient=False)
    if code in DENIED or status in DENIED:
        return AttemptError(AccessDenied, reason, transient=False)
    if code in THROTTLED or status in THROTTLED:
        return AttemptError(Throttled, reason, transient=True)
    return AttemptError(StorageError, reason, transient=code in TRANSIENT or status.startswith("5"))
