"""Sizes and hashes against hashlib, xxhash and Streaming's own `get_hash`."""

import hashlib

import pytest
import xxhash

from ado_stream.errors import IndexInvalid
from ado_stream.storage import verify
from ado_stream.storage.verify import CHUNK_BYTES, ContentError, Mismatch, Verifier, check_file, check_sealed

CONTENT = bytes(range(256)) * 8193  # a little over two chunks
assert CHUNK_BYTES * 2 < len(CONTENT) < CHUNK_BYTES * 3
ORACLES = {
    "xxh64": xxhash.xxh64_hexdigest(CONTENT),
    "xxh3_128": xxhash.xxh3_128_hexdigest(CONTENT),
    "xxh32": xxhash.xxh32_hexdigest(CONTENT),
    "sha256": hashlib.sha256(CONTENT).hexdigest(),
    "md5": hashlib.md5(CONTENT).hexdigest(),
}


@pytest.fixture
def path(tmp_path):
    """A file of CONTENT."""
    (tmp_path / "file").write_bytes(CONTENT)
    return tmp_path / "file"


@pytest.mark.parametrize("name", ORACLES)
def test_a_good_file_has_no_mismatch_and_a_flipped_bit_is_one(path, name):
    assert check_file(path, len(CONTENT), {name: ORACLES[name].upper()}) is None
    flipped = bytearray(CONTENT)
    flipped[len(CONTENT) // 2] ^= 1
    path.write_bytes(flipped)
    mismatch = check_file(path, len(CONTENT), {name: ORACLES[name]})
    assert mismatch is not None
    assert (mismatch.check, mismatch.expected) == (name, ORACLES[name])


def test_streaming_writes_the_same_digests():
    from streaming.base import hashing

    assert {name: hashing.get_hash(name, CONTENT) for name in ORACLES} == ORACLES


@pytest.mark.parametrize("allowed", [True, False])
def test_hashes_that_a_hardened_machine_allows_for_no_secrets_are_used_and_others_refused(path, monkeypatch, allowed):
    """As with FIPS, where OpenSSL refuses md5 unless it is said to protect nothing."""
    new = hashlib.new

    def hardened(name, data=b"", *, usedforsecurity=True):
        if usedforsecurity or not allowed:
            raise ValueError("[digital envelope routines] unsupported")
        return new(name, data)

    monkeypatch.setattr(verify.hashlib, "new", hardened)
    digest = hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()
    if allowed:
        assert check_file(path, None, {"md5": digest}) is None
    else:
        with pytest.raises(IndexInvalid, match="uses hash 'md5', which this Python does not support"):
            check_file(path, None, {"md5": digest})


def test_every_hash_of_the_index_counts(path):
    assert check_file(path, None, {**ORACLES, "sha256": "0" * 64}) == Mismatch("sha256", ORACLES["sha256"], "0" * 64)


def test_a_wrong_size_is_found_without_hashes(path):
    assert str(check_file(path, 3, {})) == f"size {len(CONTENT)} but index says 3"
    assert check_file(path, None, {}) is None


def test_a_sealed_file_of_another_size_or_content_is_a_mismatch(tmp_path):
    content, path = b"abc" * 400, tmp_path / "sealed"
    whole = content + xxhash.xxh64(content).digest()
    path.write_bytes(whole)
    assert check_sealed(path, len(content)) is None
    longer = content + b"d"
    path.write_bytes(longer + xxhash.xxh64(longer).digest())
    assert check_sealed(path, len(content)) == Mismatch("size", str(len(whole) + 1), str(len(whole)))
    path.write_bytes(whole[:-1])
    assert check_sealed(path, len(content)) == Mismatch("size", str(len(whole) - 1), str(len(whole)))
    path.write_bytes(b"x" + whole[1:])
    assert check_sealed(path, len(content)).check == "xxh64"


def test_a_file_that_is_not_there_is_not_found(tmp_path):
    with pytest.raises(FileNotFoundError):
        check_file(tmp_path / "nothing", 3, {})


def test_a_stream_that_is_too_long_ends_at_the_first_byte_too_many():
    verifier = Verifier(10, {})
    verifier.update(bytes(10))
    assert verifier.mismatch() is None
    with pytest.raises(ContentError, match="size over 10"):
        verifier.update(b"x")


def test_a_stream_that_is_too_short_is_a_mismatch():
    verifier = Verifier(10, {})
    verifier.update(bytes(9))
    assert verifier.mismatch() == Mismatch("size", "9", "10")


@pytest.mark.parametrize("name", ["crc99", "shake_128", "__class__", ""])
def test_an_unknown_hash_is_index_invalid(name):
    with pytest.raises(IndexInvalid, match="hash"):
        Verifier(None, {name: "00"})
