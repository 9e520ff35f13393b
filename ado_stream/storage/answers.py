"""What the answer of a store to a request for a range must say to be believed.

Invariant: bytes are taken for those of a range only where the answer says so itself. Servers, and proxies and caches on
the way, may know no ranges, or send another one than asked for; no index has a hash of a file of tokens.
"""

from ado_stream.errors import DataError, StorageError
from ado_stream.storage.retry import AttemptError


def check_range(asked: range, content_range: str, num_bytes: int | None) -> None:
    """Raises AttemptError unless an answer with this Content-Range holds the bytes `asked`.

    num_bytes: of an answer without one, "", which is the whole object.
    """
    is_whole = not content_range and asked.start == 0 and num_bytes == asked.stop
    if not is_whole and not content_range.startswith(f"bytes {asked.start}-{asked.stop - 1}/"):
        got = f"{content_range!r:.60}" if content_range else "the whole file: a server or proxy that knows no ranges"
        raise AttemptError(
            StorageError, f"asked for bytes {asked.start}-{asked.stop - 1}, got {got}", transient=bool(content_range)
        )


def replaced() -> AttemptError:
    """The failure of a read of part of an object that was replaced after its index was opened."""
    return AttemptError(DataError, "the file was replaced or changed since it was opened", transient=False)
