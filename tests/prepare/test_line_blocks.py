"""Lines come out as they went in, from every kind of file, and damage is named with its place."""

import gzip
import random

import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ado_stream.errors import DataError
from ado_stream.prepare import line_blocks as module
from ado_stream.prepare.line_blocks import line_blocks

_random = random.Random(0)
TEXT = b"".join(b"%d %s\n" % (n, _random.randbytes(n % 57).hex().encode()) for n in range(4000))
PACKED = ["a.jsonl.gz", "a.jsonl.zst"]


def _pack(name: str, data: bytes) -> bytes:
    if name.endswith(".gz"):
        return gzip.compress(data)
    if name.endswith(".zst"):
        return zstandard.ZstdCompressor(write_checksum=True).compress(data)
    return data


@pytest.mark.parametrize("name", ["a.jsonl", *PACKED])
@pytest.mark.parametrize("ending", [b"", b"no newline at the end"])
def test_blocks_are_the_file_in_whole_lines(tmp_path, monkeypatch, name, ending):
    monkeypatch.setattr(module, "_READ_BYTES", 4096)
    path = tmp_path / name
    path.write_bytes(_pack(name, TEXT + ending))
    blocks = list(line_blocks(str(path), 10_000))
    assert b"".join(block.data for block in blocks) == TEXT + ending
    assert len(blocks) > 1
    line = 1
    for block in blocks:
        assert block.first_line == line
        line += block.data.count(b"\n")
        assert block.data.endswith(b"\n") or block is blocks[-1]
    assert sum(block.source_bytes for block in blocks) == path.stat().st_size


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.binary(max_size=300), block=st.integers(1, 50), read=st.integers(1, 20))
def test_any_bytes_any_block_any_read_size(tmp_path, monkeypatch, data, block, read):
    monkeypatch.setattr(module, "_READ_BYTES", read)
    path = tmp_path / "any.jsonl"
    path.write_bytes(data)
    blocks = list(line_blocks(str(path), block))
    assert b"".join(part.data for part in blocks) == data
    assert all(part.data.endswith(b"\n") for part in blocks[:-1])


def test_several_zstd_frames_are_one_file(tmp_path):
    path = tmp_path / "frames.jsonl.zst"
    path.write_bytes(b"".join(_pack(".zst", part) for part in (TEXT[:5000], b"", TEXT[5000:])))
    assert b"".join(block.data for block in line_blocks(str(path), 10_000)) == TEXT


@pytest.mark.parametrize("name", PACKED)
@pytest.mark.parametrize("keep_frac", [0.01, 0.5, 0.999])
def test_a_file_cut_short_is_an_error(tmp_path, name, keep_frac):
    packed = _pack(name, TEXT)
    path = tmp_path / name
    path.write_bytes(packed[: int(len(packed) * keep_frac)])
    with pytest.raises(DataError, match=rf"{name}: corrupt (gzip|zstd) data before byte"):
        list(line_blocks(str(path), 10_000))


@pytest.mark.parametrize("name", PACKED)
def test_a_flipped_byte_is_an_error_with_its_position(tmp_path, name):
    packed = bytearray(_pack(name, TEXT))
    packed[len(packed) // 2] ^= 0xFF
    path = tmp_path / name
    path.write_bytes(packed)
    with pytest.raises(DataError, match=r"before byte [\d,]+ of the file, [\d,]+ bytes decompressed"):
        list(line_blocks(str(path), 10_000))


def test_bytes_that_are_no_zstd_at_all(tmp_path):
    path = tmp_path / "no.jsonl.zst"
    path.write_bytes(b'{"text": "plain"}\n')
    with pytest.raises(DataError, match="corrupt zstd"):
        list(line_blocks(str(path), 10_000))


def test_a_line_without_end_stops_before_memory_does(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "MAX_LINE_BYTES", 1 << 20)
    path = tmp_path / "long.jsonl.zst"
    path.write_bytes(_pack(".zst", b"short\n" + b"x" * (3 << 20)))
    with pytest.raises(DataError, match=r"long.jsonl.zst:2: line longer than 1 MiB"):
        list(line_blocks(str(path), 100_000))
