"""Decompression against the codecs themselves, and against streams made to do harm."""

import bz2
import gzip
import resource
import tracemalloc
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path

import brotli
import pytest
import snappy
import xxhash
import zstandard

from ado_stream.errors import IndexInvalid
from ado_stream.storage.decompress import decompress
from ado_stream.storage.object_spec import ObjectSpec
from ado_stream.storage.verify import ContentError

RAW = b"the quick brown fox " * 150_000  # 3 MB: several chunks
CODECS = {
    "zstd": zstandard.compress,
    "zstd:7": zstandard.compress,
    "gz": gzip.compress,
    "bz2": bz2.compress,
    "br": brotli.compress,
    "br:5": brotli.compress,
    "snappy": snappy.compress,
}

BOMBS = {"br": partial(brotli.compress, quality=1)}  # the best takes seconds


def make_spec(tmp_path, stored, compression, raw=RAW):
    """A spec for `stored` on disk that should give `raw`."""
    path = tmp_path / "shard.00000.mds.z"
    path.write_bytes(stored)
    return ObjectSpec(
        label="shard.00000.mds",
        remote=None,
        stored=path,
        raw=tmp_path / "shard.00000.mds",
        raw_bytes=len(raw),
        raw_hashes={"xxh64": xxhash.xxh64_hexdigest(raw)},
        compression=compression,
    )


@pytest.mark.parametrize("compression", CODECS)
def test_every_codec_gives_the_raw_bytes(tmp_path, compression):
    spec = make_spec(tmp_path, CODECS[compression](RAW), compression)
    decompress(spec)
    assert spec.raw.read_bytes() == RAW


@pytest.mark.parametrize("compression", ["zstd", "gz", "bz2", "br", "snappy"])
def test_bytes_after_the_end_of_a_stream_are_a_mismatch_or_have_no_effect(tmp_path, compression):
    spec = make_spec(tmp_path, CODECS[compression](RAW) + b"\1\2\3", compression)
    with nullcontext() if compression == "bz2" else pytest.raises(ContentError):  # as bzip2 itself takes them
        decompress(spec)


@pytest.mark.parametrize("compression", ["br", "snappy"])
def test_what_streaming_compressed_is_decompressed(tmp_path, compression):
    from streaming.base import compression as codec

    spec = make_spec(tmp_path, codec.compress(compression, RAW[:100_000]), compression, RAW[:100_000])
    decompress(spec)
    assert spec.raw.read_bytes() == RAW[:100_000]


def test_frames_in_a_row_are_one_stream(tmp_path):
    spec = make_spec(tmp_path, zstandard.compress(RAW[:1000]) + zstandard.compress(RAW[1000:]), "zstd")
    decompress(spec)
    assert spec.raw.read_bytes() == RAW


@pytest.mark.parametrize("compression", CODECS)
@pytest.mark.parametrize("damage", ["cut", "garbage", "empty"])
def test_damaged_streams_are_mismatches_and_leave_nothing(tmp_path, compression, damage):
    whole = CODECS[compression](RAW)
    stored = {"cut": whole[: len(whole) // 2], "garbage": b"no such stream", "empty": b""}[damage]
    spec = make_spec(tmp_path, stored, compression)
    with pytest.raises(ContentError):
        decompress(spec)
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == [spec.stored.name]


@pytest.mark.parametrize("compression", ["zstd", "gz", "bz2", "br"])
def test_a_bomb_writes_no_more_than_the_index_says(tmp_path, compression):
    bomb = BOMBS.get(compression, CODECS[compression])(bytes(200 << 20))  # of zeros, in a few kB
    spec = make_spec(tmp_path, bomb, compression, raw=bytes(1000))
    peak_before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    tracemalloc.start()
    with pytest.raises(ContentError, match="size over 1000"):
        decompress(spec)
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak_bytes < 8 << 20  # a few chunks of 1 MiB
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak_before < 64 << 10  # kB: what Python does not trace
    assert not spec.raw.exists()


def test_a_frame_that_asks_for_a_huge_window_is_refused(tmp_path):
    compressor = zstandard.ZstdCompressor(compression_params=zstandard.ZstdCompressionParameters(window_log=30))
    writer = compressor.compressobj()
    spec = make_spec(tmp_path, writer.compress(RAW) + writer.flush(), "zstd")
    with pytest.raises(ContentError, match=r"zstd .*memory"):
        decompress(spec)


@pytest.mark.parametrize("size", [3_000_000, 1 << 31, (1 << 32) - 1])
def test_a_snappy_head_that_claims_more_than_its_bytes_can_hold_is_refused_before_it_is_believed(tmp_path, size):
    varint = bytes((size >> 7 * place & 0x7F) | (0x80 if place < 4 else 0) for place in range(5))
    spec = make_spec(tmp_path, varint + bytes(20), "snappy", raw=RAW)
    with pytest.raises(ContentError, match=rf"raw size {size} but index says at most 550"):
        decompress(spec)


@pytest.mark.parametrize("where", ["the frame", "the index"])
def test_a_frame_that_claims_a_terabyte_costs_nothing(tmp_path, where):
    """In an address space of 256 MiB more than is in use."""
    frame = bytearray(zstandard.compress(bytes(1000)))
    assert frame[4] >> 6 == 1  # the frame says its size in two bytes from the sixth on
    claim = bytes([*frame[:4], frame[4] | 0xC0, *(1 << 40).to_bytes(8, "little"), *frame[7:]])
    spec = make_spec(tmp_path, claim if where == "the frame" else bytes(frame), "zstd", raw=bytes(1000))
    spec = replace(spec, raw_bytes=None if where == "the frame" else 1 << 40)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + (256 << 20), before[1]))
    try:
        with pytest.raises(ContentError):
            decompress(spec)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def test_an_unknown_compression_is_index_invalid(tmp_path):
    with pytest.raises(IndexInvalid, match="lz77"):
        decompress(make_spec(tmp_path, b"", "lz77"))
