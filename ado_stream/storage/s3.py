"""One S3 request that is bounded in time: a body is read as it arrives.

Why not Streaming's S3Downloader: its boto3 transfer retries by itself three times, never retries a cut body without
starting over, and reads in chunks that a slow sender can delay without limit. Here botocore makes exactly one attempt
and `read1` returns what one recv returned, so that stalls and trickles are noticed; retries are in storage/retry.py.
Kept from Streaming: S3_ENDPOINT_URL, MOSAICML_STREAMING_AWS_REQUESTER_PAYS, the default session's credentials, and
unsigned access when there are none. A client of botocore reads some credentials once, those of a file for instance:
where a store refuses them and this machine has others by now, a new client asks again.
"""

import os
import threading
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

from ado_stream.errors import AccessDenied, AdoStreamError, ConfigError, NotFound, StorageError, Throttled
from ado_stream.storage.answers import check_range, replaced
from ado_stream.storage.object_spec import ObjectStatus
from ado_stream.storage.parallel_reads import watched
from ado_stream.storage.retry import AttemptError, DownloadMonitor, retry_after_s
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
REFUSED = DENIED | {"400"}  # the answer to HEAD has no body: of an expired token it says 400 alone
_ASK_ELSEWHERE = "(check S3_ENDPOINT_URL, the bucket's region, and proxies)"

_clients: dict[tuple[object, ...], "_Client"] = {}
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
    if_match = version if version and version.startswith('"') else None
    options = {"IfNoneMatch": unless, "IfMatch": if_match, "Range": part and f"bytes={part.start}-{part.stop - 1}"}

    def read(response: JsonMapping) -> str:
        try:
            if version and _version(response).removeprefix("W/") != version.removeprefix("W/"):
                raise replaced()
            length = _length(response)
            if part is not None:
                check_range(part, str(response.get("ContentRange", "")), length)
                if (encoding := response.get("ContentEncoding", "")) not in ("", "identity", "aws-chunked"):
                    raise AttemptError(
                        StorageError, f"stored with Content-Encoding {encoding}: upload it as it is", transient=False
                    )
                length = len(part)
            _read_body(response["Body"], length, write, monitor)
        finally:
            _close(response)
        return str(response.get("ETag", ""))

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
    prefix = _place(folder_url)[1].rstrip("/") + "/"
    return {key.removeprefix(prefix): status for key, status in found.items()}


def _status(entry: JsonMapping) -> ObjectStatus:
    """Of the answer to HEAD, or of an object in a list."""
    size = entry["Size"] if "Size" in entry else _length(entry)
    if size is None:
        raise AttemptError(StorageError, "the store does not say how large the object is", transient=False)
    return ObjectStatus(int(size), _version(entry))


def _version(entry: JsonMapping) -> str:
    """The ETag, or the time where the store gives none."""
    modified = entry.get("LastModified")
    return str(entry.get("ETag") or (f"{modified:%Y-%m-%dT%H:%M:%S}" if modified else ""))


def _length(response: JsonMapping) -> int | None:
    """The bytes that an answer claims; None where it names their end by other means."""
    length = response.get("ContentLength")
    is_chunked = "transfer-encoding" in response["ResponseMetadata"].get("HTTPHeaders", {})
    if (length is None and not (is_chunked or "Body" not in response)) or (length is not None and length < 0):
        raise AttemptError(StorageError, f"an answer with Content-Length {length}", transient=True)
    return length


def _place(url: str) -> tuple[str, str]:
    """Bucket and key. By hand: to urllib ? and # end a key, [ is an error, and line ends are nothing."""
    bucket, _, key = url.partition("://")[2].partition("/")
    return bucket, key.lstrip("/")


def _request(
    operation: str, url: str, monitor: DownloadMonitor, read: Callable[[JsonMapping], T], options: dict[str, str]
) -> T | None:
    """`read(response)`, which may still receive a body; None: not modified."""
    import urllib3.exceptions
    from botocore.exceptions import BotoCoreError, ClientError, ParamValidationError

    bucket, key = _place(url)
    place = {"Prefix": key.rstrip("/") + "/"} if operation == "list_objects_v2" else {"Key": key}
    request = {"Bucket": bucket, **place, **options}
    if bucket in _requester_pays():
        request["RequestPayer"] = "requester"

    def ask() -> JsonMapping:
        try:
            return _response(operation, request, monitor.policy.read_timeout_s)
        except (AdoStreamError, ClientError):
            raise
        except RecursionError as error:
            raise AttemptError(StorageError, f"redirects without end {_ASK_ELSEWHERE}", transient=False) from error
        except Exception as error:  # botocore fails in many ways at answers that S3 would not give
            transient = not isinstance(error, ParamValidationError)  # which no bucket can be called
            raise AttemptError(StorageError, _reason(error), transient=transient) from error

    try:
        return read(watched(ask, monitor.check, _close))
    except ClientError as error:
        if "IfNoneMatch" in options and "304" in _codes(error):  # the same ETag
            return None
        raise _classified(error) from error
    except (BotoCoreError, urllib3.exceptions.HTTPError, OSError) as error:
        raise AttemptError(StorageError, _reason(error), transient=True) from error


def _response(operation: str, request: JsonMapping, read_timeout_s: float) -> JsonMapping:
    """The answer to a signed request, or to an unsigned one where there are no credentials."""
    from botocore.exceptions import ClientError, NoCredentialsError

    unsigned = renewed = False
    while True:
        used = _client(read_timeout_s, unsigned)
        try:
            response: JsonMapping = getattr(used.client, operation)(**request)
            return response
        except NoCredentialsError:
            unsigned = True
        except ClientError as error:
            if renewed or not (REFUSED & _codes(error) and _forget_if_old(used)):
                raise
            unsigned, renewed = False, True


def _close(response: JsonMapping) -> None:
    if "Body" in response:
        response["Body"].close()


def _read_body(body: Any, num_bytes: int | None, write: Callable[[bytes], object], monitor: DownloadMonitor) -> None:
    received = 0
    with body as stream:
        while (chunk := stream.read1(CHUNK_BYTES)) and (num_bytes is None or received <= num_bytes):
            received += len(chunk)
            monitor.received(len(chunk))
            write(chunk)
    if num_bytes not in (None, received):
        raise AttemptError(StorageError, f"body ended after {received} of {num_bytes} bytes", transient=True)


class _Client(NamedTuple):
    """client: of boto3. credentials: that its session found; None: none."""

    client: Any
    credentials: Any


def _client(read_timeout_s: float, unsigned: bool = False) -> _Client:
    """The shared, thread-safe client of this process for an endpoint; making one is not, hence the lock."""
    try:
        from boto3.session import Session
        from botocore import UNSIGNED
        from botocore.config import Config
    except ImportError as error:
        raise ConfigError("s3:// needs boto3.\n  pip install boto3") from error

    endpoint = os.environ.get("S3_ENDPOINT_URL")
    theirs = os.environ.get("AWS_ENDPOINT_URL_S3"), os.environ.get("AWS_ENDPOINT_URL")
    key = (os.getpid(), endpoint, theirs, read_timeout_s, unsigned)  # a fork must not share its parent's sockets
    with _clients_lock:
        if key not in _clients:
            config = Config(
                connect_timeout=min(CONNECT_TIMEOUT_S, read_timeout_s),
                read_timeout=read_timeout_s,
                max_pool_connections=POOL_CONNECTIONS,
                retries={"total_max_attempts": 1, "mode": "standard"},  # retry.py's can be bounded and stopped
                signature_version=UNSIGNED if unsigned else None,
            )
            session = Session()
            try:
                _clients[key] = _Client(
                    session.client("s3", config=config, endpoint_url=endpoint), session.get_credentials()
                )
            except ValueError as error:
                raise ConfigError(f"S3_ENDPOINT_URL: {error}\n  Expected http://HOST:PORT or https://HOST.") from None
        return _clients[key]


def _forget_if_old(used: _Client) -> bool:
    """Whether this machine has other credentials by now; clients with those of `used` are then not shared any more."""
    from boto3.session import Session

    old = _frozen(used.credentials)
    if _frozen(Session().get_credentials()) == old:
        return False
    with _clients_lock:
        for key in [key for key, each in _clients.items() if _frozen(each.credentials) == old]:
            del _clients[key]
    return True


def _frozen(credentials: Any) -> Any:
    """The keys and token, which can be compared."""
    return credentials and credentials.get_frozen_credentials()


def _requester_pays() -> set[str]:
    return {name.strip() for name in os.environ.get("MOSAICML_STREAMING_AWS_REQUESTER_PAYS", "").split(",")} - {""}


def _reason(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())


def _codes(error: Any) -> set[str]:
    """S3's code of a failure, and the status of the answer."""
    answer = error.response
    return {str(answer.get("Error", {}).get("Code", "")), str(answer.get("ResponseMetadata", {}).get("HTTPStatusCode"))}


def _classified(error: Any) -> AttemptError:
    code = str(error.response.get("Error", {}).get("Code", ""))
    status = str(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", ""))
    if status == "412":  # IfMatch: another ETag
        return replaced()
    reason = f"HTTP {status} {code}".strip()
    for codes, kind in ((NOT_FOUND, NotFound), (DENIED, AccessDenied), (THROTTLED, Throttled)):
        if codes & {code, status}:
            return AttemptError(kind, reason, transient=kind is Throttled, wait_s=_wait_s(error))
    if status.startswith("3"):
        reason += f" {_ASK_ELSEWHERE}"
    transient = code in TRANSIENT or status.startswith("5")
    return AttemptError(StorageError, reason, transient=transient, wait_s=_wait_s(error))


def _wait_s(error: Any) -> float:
    return retry_after_s(error.response.get("ResponseMetadata", {}).get("HTTPHeaders"))
