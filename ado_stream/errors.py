"""The exception types that users see, and nothing else.

Every message says what failed and where, what was got and what was expected, and what to do; three lines at most.
The command line prints the message alone and exits 1; a program may catch `AdoStreamError` for all of them. Messages
hold no credentials.

    AdoStreamError
      ConfigError       a setting cannot work; nothing was started
      DataError         input text or shards are not what they should be
        ShardCorrupt      a shard's bytes do not match its index, after every retry
        IndexInvalid      an index.json or corpus.json cannot be understood
      StorageError      a remote or the local disk failed, after every retry
        NotFound, AccessDenied, Throttled, CacheFull
      ResumeError       a saved state does not fit the data or settings
      PolicyError       a policy was called out of order or with impossible input
      CheckpointError   a checkpoint is missing, torn or of another model
"""

from ado_stream.redact import redact


class AdoStreamError(Exception):
    """Base of all errors raised on purpose by ado-stream."""

    def __init__(self, message: str = "") -> None:
        super().__init__(redact(message))


class ConfigError(AdoStreamError):
    """A setting that cannot work; raised before anything is started."""


class DataError(AdoStreamError):
    """Input text or shards that are not what they should be."""


class ShardCorrupt(DataError):
    """A shard whose bytes do not match its index after every retry."""


class IndexInvalid(DataError):
    """An index.json or corpus.json that cannot be understood."""


class StorageError(AdoStreamError):
    """A remote or the local disk failed after every retry."""


class NotFound(StorageError):
    """The object or file does not exist."""


class AccessDenied(StorageError):
    """The store refused the credentials."""


class Throttled(StorageError):
    """The store kept refusing for overload until the deadline."""


class CacheFull(StorageError):
    """The local cache has no room and nothing left to evict."""


class ResumeError(AdoStreamError):
    """A saved state does not fit the data or settings at hand."""


class PolicyError(AdoStreamError):
    """A policy was called out of order or with impossible input."""


class CheckpointError(AdoStreamError):
    """A checkpoint is missing, torn or of another model."""
