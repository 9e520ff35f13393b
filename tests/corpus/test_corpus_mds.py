"""Shards are, byte for byte, those that streaming's own MDSWriter writes, and its reader reads them."""

import json

import numpy as np
import pytest
import zstandard

from ado_stream.corpus.mds import ShardFormat, compress_shard, decode_shard, encode_index, encode_shard, shard_entry

SIZE_LIMIT = 1 << 13
STREAMING_LEAKS = pytest.mark.filterwarnings(  # files it opens and leaves to the garbage collector
    "ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"
)


@pytest.fixture(scope="module", params=["uint16", "uint32"])
def written(request, tmp_path_factory):
    """(format, samples (N, T+1), folder of MDSWriter's data set)"""
    from tests.mds_writer import MDSWriter

    shard_format = ShardFormat(33, request.param, SIZE_LIMIT)
    samples = np.random.default_rng(0).integers(0, 60_000, (250, 33)).astype(request.param)
    folder = tmp_path_factory.mktemp("oracle") / request.param
    with MDSWriter(
        out=str(folder),
        columns={"tokens": shard_format.encoding},
        compression="zstd",
        hashes=["xxh64"],
        size_limit=SIZE_LIMIT,
    ) as writer:
        for sample in samples:
            writer.write({"tokens": sample})
    return shard_format, samples, folder


def _shards(shard_format, samples):
    for first in range(0, len(samples), shard_format.samples_per_shard):
        yield encode_shard(samples[first : first + shard_format.samples_per_shard].tobytes(), shard_format)


def test_raw_shards_equal_streamings_own(written):
    shard_format, samples, folder = written
    ours = list(_shards(shard_format, samples))
    theirs = [zstandard.decompress(path.read_bytes()) for path in sorted(folder.glob("shard.*.zstd"))]
    assert len(theirs) >= 3  # several shards, the last one not full
    assert ours == theirs


def test_index_equals_streamings_own(written):
    """All but the compressed sizes and hashes, which depend on the version of the zstd library."""
    shard_format, samples, folder = written
    entries = [
        shard_entry(n, raw, compress_shard(raw), shard_format) for n, raw in enumerate(_shards(shard_format, samples))
    ]
    ours, theirs = json.loads(encode_index(entries)), json.loads((folder / "index.json").read_bytes())
    for index in (ours, theirs):
        for shard in index["shards"]:
            del shard["zip_data"]["bytes"], shard["zip_data"]["hashes"]["xxh64"]
    assert ours == theirs


def test_index_bytes_equal_streamings_own(written):
    """Of the same entries, so that the key order and the spacing count."""
    theirs = (written[2] / "index.json").read_bytes()
    assert encode_index(json.loads(theirs)["shards"]) == theirs


@STREAMING_LEAKS
def test_streaming_reads_our_shards_with_validation(written, tmp_path):
    from streaming import StreamingDataset

    shard_format, samples, _ = written
    entries = []
    for number, raw in enumerate(_shards(shard_format, samples)):
        data = compress_shard(raw)
        entries.append(shard_entry(number, raw, data, shard_format))
        (tmp_path / entries[-1]["zip_data"]["basename"]).write_bytes(data)
    (tmp_path / "index.json").write_bytes(encode_index(entries))
    dataset = StreamingDataset(local=str(tmp_path), shuffle=False, batch_size=1, validate_hash="xxh64")
    read = np.stack([dataset[number]["tokens"] for number in range(len(samples))])
    assert read.dtype == samples.dtype
    assert np.array_equal(read, samples)


def test_decode_inverts_encode_and_refuses_the_rest():
    shard_format = ShardFormat(5, "uint16", SIZE_LIMIT)
    samples = np.arange(35, dtype=np.uint16).reshape(7, 5)
    raw = encode_shard(samples.tobytes(), shard_format)
    assert np.array_equal(decode_shard(raw, shard_format), samples)
    for damaged in (raw[:-1], raw + b"\0", b"", raw[:4] + b"\xff" + raw[5:], b"\xff\xff\xff\xff" + raw[4:]):
        with pytest.raises(ValueError, match="shard|offsets"):
            decode_shard(damaged, shard_format)
    with pytest.raises(ValueError, match="not a shard"):
        decode_shard(raw, ShardFormat(5, "uint32", SIZE_LIMIT))
