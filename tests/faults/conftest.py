"""Real parts for the fault tests: an S3 endpoint on the loopback, a proxy that spoils it, objects with known bytes."""

import os
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xxhash
import zstandard

from ado_stream.storage.object_spec import ObjectSpec
from ado_stream.storage.retry import RetryPolicy
from tests.faults.proxy import FaultProxy

BUCKET = "bucket"
# Short pauses, but a read timeout that a busy machine does not reach, since some tests count the GETs.
QUICK = RetryPolicy(attempts=8, total_deadline_s=60.0, read_timeout_s=20.0, base_delay_s=0.01, max_delay_s=0.05)


@dataclass(frozen=True)
class Shard:
    """One object in the bucket: raw and stored bytes, and what an index says about them."""

    key: str  # wiki/shard.00000.mds.zstd
    raw: bytes
    stored: bytes
    compression: str | None

    def spec(self, cache_dir: Path, hashes: bool = True) -> ObjectSpec:
        """The object as a cache under `cache_dir` sees it."""
        stored = cache_dir / self.key
        return ObjectSpec(
            label=f"shard {self.key}",
            remote=f"s3://{BUCKET}/{self.key}",
            stored=stored,
            raw=stored.with_suffix("") if self.compression else stored,
            stored_bytes=len(self.stored),
            raw_bytes=len(self.raw),
            stored_hashes=digest(self.stored) if hashes else {},
            raw_hashes=digest(self.raw) if hashes else {},
            compression=self.compression,
        )


def digest(content: bytes) -> dict[str, str]:
    """Hashes as an MDS index writes them."""
    return {"xxh64": xxhash.xxh64_hexdigest(content)}


def unfinished(folder: Path) -> list[Path]:
    """Temporary files under `folder`."""
    return [path for path in folder.rglob("*") if path.parent.name == ".ado-tmp"]


def damaged(content: bytes, how: str) -> bytes:
    """`content` with one bit flipped, cut at half, or zeroed."""
    half = len(content) // 2
    flipped = content[:half] + bytes([content[half] ^ 4]) + content[half + 1 :]
    return {"flip": flipped, "truncate": content[:half], "zero": bytes(len(content))}[how]


def s3_environment() -> dict[str, str]:
    """What names the store to a child process, which has the environment of the fork server."""
    return {name: value for name, value in os.environ.items() if name.startswith(("S3_", "AWS_"))}


def make_shard(number: int, num_bytes: int = 100_000, compression: str | None = "zstd", folder: str = "wiki") -> Shard:
    """Reproducible, incompressible content; every shard differs."""
    raw = np.random.default_rng(number).bytes(num_bytes)
    stored = zstandard.compress(raw) if compression else raw
    return Shard(f"{folder}/shard.{number:05d}.mds" + (".zstd" if compression else ""), raw, stored, compression)


@pytest.fixture
def proxy(s3_server: tuple[str, int], s3_client: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultProxy]:
    """The proxy, named by S3_ENDPOINT_URL for this process and its children."""
    faulty = FaultProxy(s3_server)
    monkeypatch.setenv("S3_ENDPOINT_URL", faulty.url)
    yield faulty
    faulty.close()


@pytest.fixture
def upload(s3_client: Any) -> Callable[[str, bytes | None], None]:
    """Puts bytes under a key, past the proxy; None deletes the key."""
    s3_client.create_bucket(Bucket=BUCKET)

    def put(key: str, content: bytes | None) -> None:
        if content is None:
            s3_client.delete_object(Bucket=BUCKET, Key=key)
        else:
            s3_client.put_object(Bucket=BUCKET, Key=key, Body=content)

    return put


@pytest.fixture
def shards(upload: Callable[[str, bytes | None], None]) -> list[Shard]:
    """Six shards of 100 kB in the bucket, every second one compressed."""
    made = [make_shard(number, compression="zstd" if number % 2 else None) for number in range(6)]
    for shard in made:
        upload(shard.key, shard.stored)
    return made


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[int], Path]]:
    """Mounts a tmpfs of so many bytes."""
    mounted: list[Path] = []

    def mount(num_bytes: int) -> Path:
        folder = tmp_path / f"disk{len(mounted)}"
        folder.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", f"size={num_bytes}", "tmpfs", str(folder)]
        subprocess.run(command, check=True)
        mounted.append(folder)
        return folder

    yield mount
    assert [left for folder in mounted for left in unfinished(folder)] == []
    for folder in mounted:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.fixture(autouse=True)
def nothing_left_behind(tmp_path: Path) -> Iterator[None]:
    """Every fault test ends with no temporary file in its folders."""
    yield
    assert unfinished(tmp_path) == []
