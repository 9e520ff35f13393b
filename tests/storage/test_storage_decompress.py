"""Decompression against the codecs themselves, and against streams made to do harm."""

import bz2
import gzip
import resource
import tracemalloc

import pytest
import xxhash
import zstandard

from ado_stream.errors import IndexInvalid
from ado_stream.storage.decompress import decompress
from ado_stream.storage.object_spec import ObjectSpec
from ado_stream.storage.verify import ContentError

RAW = b"the quick brown fox " * 150_000  # 3 MB: several chunks
CODECS = {"zstd": zstandard.compress, "zstd:7": zstandard.compress, "gz": gzip.compress, "bz2:1": bz2.compress}


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


@pytest.mark.parametrize("compression", ["br", "snappy"])
def test_the_codecs_of_streaming_give_the_raw_bytes(tmp_path, compression):
    from streaming.base import compression as codec

    spec = make_spec(tmp_path, codec.compress(compression, RAW[:100_000]), compression, RAW[:100_000])
    decompress(spec)
    assert spec.raw.read_bytes() == RAW[:100_000]


def test_frames_in_a_row_are_one_stream(tmp_path):
    spec = make_spec(tmp_path, zstandard.compress(RAW[:1000]) + zstandard.compress(RAW[1000:]), "zstd")
    decompress(spec)
    assert spec.raw.read_bytes() == RAW


@pytest.mark.parametrize("compression", [*CODECS, "snappy", "br"])
@pytest.mark.parametrize("damage", ["cut", "garbage", "empty"])
def test_damaged_streams_are_mismatches_and_leave_nothing(tmp_path, compression, damage):
    whole = CODECS.get(compression, lambda raw: b"\xff" * 100)(RAW)
    stored = {"cut": whole[: len(whole) // 2], "garbage": b"no such stream", "empty": b""}[damage]
    spec = make_spec(tmp_path, stored, compression)
    with pytest.raises(ContentError):
        decompress(spec)
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == [spec.stored.name]


@pytest.mark.parametrize("compression", ["zstd", "gz", "bz2"])
def test_a_bomb_writes_no_more_than_the_index_says(tmp_path, compression):
    bomb = CODECS.get(compression, bz2.compress)(bytes(200 << 20))  # 200 MB of zeros in a few kB
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


def test_a_snappy_head_that_claims_more_than_the_index_says_is_refused_before_it_is_believed(tmp_path):
    spec = make_spec(tmp_path, b"\xff\xff\xff\xff\x0f" + bytes(20), "snappy")
    with pytest.raises(ContentError, match=r"raw size 4294967295 but index says"):
        decompress(spec)


def test_an_unknown_compression_is_index_invalid(tmp_path):
    with pytest.raises(IndexInvalid, match="lz77"):
        decompress(make_spec(tmp_path, b"", "lz77"))
