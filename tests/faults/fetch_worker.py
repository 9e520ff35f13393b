"""A job of its own for the fault tests: maps shards through a NodeCache and sends the crc32 of each."""

import zlib
from contextlib import nullcontext
from multiprocessing.connection import Connection

from ado_stream.storage import node_cache as cache_module
from ado_stream.storage import s3
from ado_stream.storage.node_cache import NodeCache
from ado_stream.storage.object_spec import ObjectSpec


def map_shards(
    connection: Connection, specs: list[ObjectSpec], limit_bytes: int | None = None, rounds: int = 1, lock: bool = True
) -> None:
    """Sends "ready", waits for an answer, then sends (name, crc32) of each shard. lock: False switches locks off."""
    if not lock:
        cache_module.object_lock = lambda *_: nullcontext()
    cache = NodeCache(limit_bytes=limit_bytes)
    s3._client(cache.retry.read_timeout_s)  # pays for the imports before "ready"
    connection.send("ready")
    connection.recv()
    for spec in specs * rounds:
        view, _ = cache.map(spec)
        connection.send((spec.stored.name, zlib.crc32(view)))
