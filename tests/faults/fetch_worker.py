"""A job of its own for the fault tests: maps shards through a NodeCache and prints the crc32 of each.

Reads one JSON object from stdin: `specs` (fields of ObjectSpec), `limit_bytes`, `rounds`, `lock` (False switches the
object lock off). Prints "ready", waits for one more line, then prints "NAME CRC32" per shard.
"""

import json
import sys
import zlib
from contextlib import nullcontext
from pathlib import Path

from ado_stream.storage import node_cache as cache_module
from ado_stream.storage import s3
from ado_stream.storage.node_cache import NodeCache
from ado_stream.storage.object_spec import ObjectSpec


def main() -> None:
    """Runs the job."""
    job = json.loads(sys.stdin.readline())
    if not job["lock"]:
        cache_module.object_lock = lambda *_: nullcontext()
    specs = [ObjectSpec(**{**spec, "stored": Path(spec["stored"]), "raw": Path(spec["raw"])}) for spec in job["specs"]]
    cache = NodeCache(limit_bytes=job["limit_bytes"])
    s3._client(cache.retry.read_timeout_s)  # pays for the imports before "ready"
    print("ready", flush=True)
    sys.stdin.readline()  # "go"
    for spec in specs * job["rounds"]:
        view, _ = cache.map(spec)
        print(spec.stored.name, zlib.crc32(view), flush=True)


if __name__ == "__main__":
    main()
