"""Reading against MosaicML's own reader, for every way in which tokens are written."""

import json

import numpy as np
import pytest

import ado_stream as ado
from ado_stream.stream.sample_reader import SampleReader
from tests.stream.helpers import write_domain

ENCODINGS = {
    "ndarray:uint16:33": np.uint16,
    "ndarray:uint16": np.uint16,
    "ndarray:int32:33": np.int32,
    "bytes": np.int64,
}
OTHERS = {"before": "str", "number": "int", "tokens": None, "after": "str"}


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("alone", [True, False])
@pytest.mark.parametrize("compression", [None, "zstd:3", "gz"])
def test_rows_are_those_of_streamings_reader(tmp_path, encoding, alone, compression):
    from streaming import StreamingDataset

    from tests.mds_writer import MDSWriter

    rng = np.random.default_rng(0)
    columns = {"tokens": encoding} if alone else {**OTHERS, "tokens": encoding}
    dtype = ENCODINGS[encoding]
    with MDSWriter(
        out=str(tmp_path), columns=columns, size_limit=2000, hashes=["sha1", "xxh64"], compression=compression
    ) as writer:
        for number in range(100):
            tokens = rng.integers(0, 60000, 33).astype(dtype)
            sample = {"tokens": tokens.tobytes() if encoding == "bytes" else tokens}
            if not alone:
                sample |= {"before": "x" * (number % 7), "number": number, "after": "y" * (number % 3)}
            writer.write(sample)
    ours = SampleReader(ado.Domain("web", local=str(tmp_path)))
    order = rng.permutation(100)
    tokens = ours.read(order)
    theirs = StreamingDataset(local=str(tmp_path), shuffle=False, batch_size=1)
    for row, number in zip(tokens, order, strict=True):
        expected = theirs[int(number)]["tokens"]
        expected = np.frombuffer(expected, np.int64) if encoding == "bytes" else expected
        assert np.array_equal(row, expected)
    assert ours.num_samples == 100
    assert ours.row_tokens == 33
    with pytest.raises(IndexError):
        ours.read(np.array([100]))


def test_rows_of_different_length_are_refused(tmp_path):
    from tests.mds_writer import MDSWriter

    with MDSWriter(out=str(tmp_path), columns={"tokens": "ndarray:uint16"}, hashes=["xxh64"]) as writer:
        for length in (10, 10, 11):
            writer.write({"tokens": np.ones(length, np.uint16)})
    with pytest.raises(ado.DataError, match="row 2 holds 11 tokens, row 0 holds 10"):
        SampleReader(ado.Domain("web", local=str(tmp_path))).read(np.array([0]))


@pytest.mark.parametrize("encoding", ["ndarray:uint16:2,9", "ndarray:uint16"])
def test_tokens_of_two_dimensions_are_refused_and_not_joined(tmp_path, encoding):
    from tests.mds_writer import MDSWriter

    with MDSWriter(out=str(tmp_path), columns={"tokens": encoding}, hashes=["xxh64"]) as writer:
        for _ in range(3):
            writer.write({"tokens": np.ones((2, 9), np.uint16)})
    with pytest.raises(ado.AdoStreamError, match="expected one"):
        SampleReader(ado.Domain("web", local=str(tmp_path))).read(np.array([0]))


def test_a_columns_size_and_encoding_must_agree(tmp_path):
    write_domain(tmp_path, 1, 3)
    index = json.loads((tmp_path / "index.json").read_text())
    for shard in index["shards"]:
        shard["column_sizes"] = [30]
    (tmp_path / "index.json").write_text(json.dumps(index))
    with pytest.raises(ado.IndexInvalid, match="column 'tokens' of 30 bytes does not hold 16 uint16 tokens"):
        SampleReader(ado.Domain("web", local=str(tmp_path)))
