"""Lines come out as they went in, from every kind of file, and damage is named with its place."""

import gzip
import random
import zlib
from contextlib import suppress

import pytest
import xxhash
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from ado_stream.errors import DataError
from ado_stream.prepare import line_blocks as module
from ado_stream.prepare.line_blocks import line_blocks
from ado_stream.prepare.record_errors import RecordErrors

_random = random.Random(0)
TEXT = b"".join(b"%d %s\n" % (n, _random.randbytes(n % 57).hex().encode()) for n in range(4000))
PACKED = ["a.jsonl.gz", "a.jsonl.zst"]
STOP = RecordErrors(skip=False)


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
    blocks = list(line_blocks(str(path), 10_000, STOP))
    assert b"".join(block.data for block in blocks) == TEXT + ending
    assert len(blocks) > 1
    line = 1
    for block in blocks:
        assert block.first_line == line
        line += block.data.count(b"\n")
        assert block.data.endswith(b"\n") or block is blocks[-1]
    assert sum(block.source_bytes for block in blocks) == path.stat().st_size


@settings(max_examples=40)
@given(data=st.binary(max_size=300), block=st.integers(1, 50), read=st.integers(1, 20))
def test_any_bytes_any_block_any_read_size(tmp_path, monkeypatch, data, block, read):
    monkeypatch.setattr(module, "_READ_BYTES", read)
    path = tmp_path / "any.jsonl"
    path.write_bytes(data)
    blocks = list(line_blocks(str(path), block, STOP))
    assert b"".join(part.data for part in blocks) == data
    assert all(part.data.endswith(b"\n") for part in blocks[:-1])


def test_several_zstd_frames_are_one_file(tmp_path):
    path = tmp_path / "frames.jsonl.zst"
    path.write_bytes(b"".join(_pack(".zst", part) for part in (TEXT[:5000], b"", TEXT[5000:])))
    assert b"".join(block.data for block in line_blocks(str(path), 10_000, STOP)) == TEXT


@pytest.mark.parametrize("name", PACKED)
@pytest.mark.parametrize("keep_frac", [0.01, 0.5, 0.999])
def test_a_file_cut_short_is_an_error(tmp_path, name, keep_frac):
    packed = _pack(name, TEXT)
    path = tmp_path / name
    path.write_bytes(packed[: int(len(packed) * keep_frac)])
    with pytest.raises(DataError, match=rf"{name}: corrupt (gzip|zstd) data after byte"):
        list(line_blocks(str(path), 10_000, STOP))


@pytest.mark.parametrize("name", PACKED)
def test_a_flipped_byte_is_an_error_with_its_position(tmp_path, name):
    packed = bytearray(_pack(name, TEXT))
    packed[len(packed) // 2] ^= 0xFF
    path = tmp_path / name
    path.write_bytes(packed)
    with pytest.raises(DataError, match=r"after byte [\d,]+ of the file, [\d,]+ bytes decompressed"):
        list(line_blocks(str(path), 10_000, STOP))


def test_bytes_that_are_no_zstd_at_all(tmp_path):
    path = tmp_path / "no.jsonl.zst"
    path.write_bytes(b'{"text": "plain"}\n')
    with pytest.raises(DataError, match="corrupt zstd"):
        list(line_blocks(str(path), 10_000, STOP))


def test_a_line_without_end_stops_before_memory_does(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "MAX_LINE_BYTES", 1 << 20)
    path = tmp_path / "long.jsonl.zst"
    path.write_bytes(_pack(".zst", b"short\n" + b"x" * (3 << 20)))
    with pytest.raises(DataError, match=r"long.jsonl.zst:2: line longer than 1 MiB"):
        list(line_blocks(str(path), 100_000, STOP))


@pytest.mark.parametrize("name", PACKED)
def test_a_compressed_file_without_a_byte_is_damaged(tmp_path, name):
    (tmp_path / name).write_bytes(b"")
    with pytest.raises(DataError, match=rf"{name}: .* the file is empty"):
        list(line_blocks(str(tmp_path / name), 10_000, STOP))


@pytest.mark.parametrize("padding", [b"\0" * 10, b"\0" * (1 << 17)])
def test_members_of_gzip_may_be_followed_by_zeros(tmp_path, padding):
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress(TEXT[:5000]) + padding + gzip.compress(TEXT[5000:]) + padding)
    assert b"".join(block.data for block in line_blocks(str(path), 10_000, STOP)) == TEXT


def _skipping(path, block_bytes=10_000):
    errors = RecordErrors(skip=True)
    return b"".join(block.data for block in line_blocks(str(path), block_bytes, errors)), errors


@pytest.mark.parametrize("level", [0, 6])
@pytest.mark.parametrize("cut", [1, 8, 9, 1000, 40_000])
def test_all_whole_lines_before_the_end_of_a_cut_gzip_are_kept(tmp_path, level, cut):
    """The oracle: what zlib gives for the same bytes at once."""
    packed = gzip.compress(TEXT, level)[:-cut]
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(packed)
    data, errors = _skipping(path)
    plain = zlib.decompressobj(31).decompress(packed)
    assert data == plain[: plain.rfind(b"\n") + 1]
    assert len(data) > 10_000
    assert errors.counts == {"file damaged, its rest left out": 1}


@pytest.mark.parametrize("cut", [1, 4, 5000, 70_000])
def test_the_bytes_that_a_cut_zstd_loses_are_counted(tmp_path, cut):
    """A block is lost whole. The oracle: the shortest part of the file that gives as much; a feed may end later."""
    text = b"".join(b"%x\n" % xxhash.xxh3_128_intdigest(b"%d" % number) for number in range(12_000))
    packed = zstandard.ZstdCompressor(write_checksum=True).compress(text)[:-cut]
    path = tmp_path / "a.jsonl.zst"
    path.write_bytes(packed)
    data, errors = _skipping(path)
    plain = zstandard.ZstdDecompressor().decompressobj().decompress(packed)
    frame, end = zstandard.ZstdDecompressor().decompressobj(), 0
    for place in range(len(packed)):
        if frame.decompress(packed[place : place + 1]):
            end = place + 1
    unended = len(plain) - len(data)
    assert data == plain[: plain.rfind(b"\n") + 1]
    counted = errors.num_bytes["file damaged, its rest left out"]
    assert len(packed) - end - 4096 < counted - unended <= len(packed) - end


@pytest.mark.parametrize("name", PACKED)
@pytest.mark.parametrize("at_frac", [0.3, 0.9, 1.0])
def test_what_comes_before_a_flipped_byte_is_kept(tmp_path, name, at_frac):
    first = _pack(name, TEXT)
    packed = bytearray(first + _pack(name, TEXT))
    at = len(first) + int((len(first) - 1) * at_frac)
    packed[at] ^= 0xFF
    path = tmp_path / name
    path.write_bytes(packed)
    data, errors = _skipping(path)
    assert data.startswith(TEXT)
    lines = data[len(TEXT) :].splitlines(keepends=True)
    good = sum(line == expected for line, expected in zip(lines, TEXT.splitlines(keepends=True), strict=False))
    # a zstd block holds 128 KiB and cannot be read in part; gzip is read to the damage, a checksum comes last
    frac = at_frac if name.endswith(".gz") or at_frac == 1.0 else max(0.0, at_frac - 0.6)
    assert good >= int(0.9 * frac * 4000)
    assert errors.counts == {"file damaged, its rest left out": 1}
    assert 0 < errors.num_bytes["file damaged, its rest left out"] < len(first) + len(TEXT)


@pytest.mark.parametrize("name", ["a.jsonl", *PACKED])
@pytest.mark.parametrize("where", ["first", "middle", "last", "last without newline", "two"])
def test_a_line_too_long_is_left_out_alone(tmp_path, monkeypatch, name, where):
    monkeypatch.setattr(module, "MAX_LINE_BYTES", 1 << 20)
    lines = [b"line %d" % number for number in range(200)]
    long = b"x" * (3 << 20)
    places = {"first": [0], "middle": [100], "last": [200], "last without newline": [200], "two": [50, 51]}[where]
    expected = b"".join(line + b"\n" for line in lines)
    for place in places:
        lines.insert(place, long)
    data = b"\n".join(lines) + (b"" if where.endswith("newline") else b"\n")
    path = tmp_path / name
    path.write_bytes(_pack(name, data))
    errors = RecordErrors(skip=True)
    blocks = list(line_blocks(str(path), 1000, errors))
    assert b"".join(block.data for block in blocks) == expected
    assert errors.counts == {"line longer than 1 MiB": len(places)}
    assert errors.num_bytes == {"line longer than 1 MiB": len(places) * len(long)}
    for block in blocks:  # the numbers of the lines are those of the file
        assert block.data.splitlines()[0] == lines[block.first_line - 1]
    with pytest.raises(DataError, match=rf"{name}:{places[0] + 1}: line longer"):
        list(line_blocks(str(path), 1000, STOP))


@settings(max_examples=150)
@given(name=st.sampled_from(["a.jsonl", *PACKED]), cut=st.integers(0, 3000), flips=st.lists(st.integers(0, 3000)))
def test_any_damage_is_ours_to_report(tmp_path, name, cut, flips):
    packed = bytearray(_pack(name, TEXT[:6000]))
    for at in flips:
        packed[at % len(packed)] ^= 1 << at % 8
    path = tmp_path / name
    path.write_bytes(packed[: len(packed) - cut % len(packed)])
    _skipping(path)
    with suppress(DataError):
        list(line_blocks(str(path), 1000, STOP))
