"""Tokens in place: Megatron's .bin and .idx and OLMo's .npy read as NumPy and Megatron's own reader read them."""

import os
import re
import struct
from pathlib import Path

import fsspec
import numpy as np
import pytest

import ado_stream as ado
from ado_stream.storage import node_cache
from ado_stream.storage.retry import RetryPolicy
from ado_stream.stream import flat_index, open_indexes
from ado_stream.stream.flat_files import document_ends
from ado_stream.stream.sample_reader import SampleReader
from tests.stream.flat_data import END, index_bytes, make_documents, samples_of, write_megatron, write_raw
from tests.stream.helpers import ledger, run

T = 15


def read_all(domain: ado.Domain, seq_len: int = T) -> np.ndarray:
    """Every sample of the domain, by number."""
    reader = SampleReader(domain, seq_len=seq_len)
    return reader.read(np.arange(reader.num_samples))


def megatron(prefix: Path, **options) -> ado.Domain:
    return ado.Domain("m", local=str(prefix), format="megatron", **options)


def npy(path: Path, token_dtype: str | None = "uint16") -> ado.Domain:
    return ado.Domain("n", local=str(path), format="npy", token_dtype=token_dtype)


def dataset(*domains: ado.Domain, **options) -> ado.AdaptiveStreamingDataset:
    return ado.AdaptiveStreamingDataset(domains, 8, seed=3, seq_len=T, **options)


def fingerprints(data: ado.AdaptiveStreamingDataset) -> dict[str, str]:
    return {name: saved["fingerprint"] for name, saved in data.state_dict()["domains"].items()}


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    """Files of a few kilobytes in several shards."""
    monkeypatch.setattr(flat_index, "SHARD_BYTES", 1000)


@pytest.mark.parametrize("dtype", ["uint16", "int32"])
def test_what_megatrons_own_reader_read_is_what_is_read(golden, dtype):
    """The files were written and read by megatron-core 0.16.1 (tests/golden/README.md); some documents have two
    sequences."""
    theirs = np.load(golden / "megatron" / f"{dtype}_read.npz")
    prefix = golden / "megatron" / dtype
    np.testing.assert_array_equal(read_all(megatron(prefix)), samples_of(theirs["tokens"], T))
    ends = np.cumsum(theirs["lengths"])[theirs["bounds"][1:] - 1]
    np.testing.assert_array_equal(document_ends(prefix.with_suffix(".idx")), ends)
    assert index_bytes(theirs["lengths"], dtype, theirs["bounds"].tolist()) == prefix.with_suffix(".idx").read_bytes()


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int32", "uint32", "int64"])
def test_numpy_reads_the_same_tokens(tmp_path, dtype):
    tokens = np.random.default_rng(5).integers(0, np.iinfo(dtype).max, 4001, dtype)
    raw = write_raw(tmp_path / "raw" / "part-0.npy", tokens, dtype)
    theirs = samples_of(np.memmap(raw, dtype).astype(np.int64), T)
    np.testing.assert_array_equal(read_all(npy(raw, dtype)), theirs)
    np.save(tmp_path / "headed.npy", tokens)
    np.testing.assert_array_equal(read_all(npy(tmp_path / "headed.npy", None)), theirs)
    np.testing.assert_array_equal(read_all(npy(raw.rename(tmp_path / "no_ending"), dtype)), theirs)
    np.save(tmp_path / "rows.npy", tokens[:4000].reshape(40, 100))
    np.testing.assert_array_equal(read_all(npy(tmp_path / "rows.npy", None)), samples_of(tokens[:4000], T))


def test_a_folder_is_its_files_in_the_order_of_their_paths_and_no_sample_spans_two(tmp_path):
    tokens = {name: np.concatenate(make_documents(number)) for number, name in enumerate(("b/1", "a", "b/0"))}
    for name, values in tokens.items():
        write_raw(tmp_path / "npy" / f"{name}.npy", values)
        write_megatron(tmp_path / "megatron" / name, [values])
    write_raw(tmp_path / "npy" / "short.npy", tokens["a"][:T])  # less than a sample
    expected = np.concatenate([samples_of(tokens[name], T) for name in ("a", "b/0", "b/1")])
    np.testing.assert_array_equal(read_all(npy(tmp_path / "npy")), expected)
    np.testing.assert_array_equal(read_all(megatron(tmp_path / "megatron")), expected)


def test_every_token_but_the_first_is_a_target_once():
    """The cut itself: stride T, one token shared, what does not fill a last sample dropped."""
    tokens = np.arange(T * 7 + 5)
    targets = samples_of(tokens, T)[:, 1:].ravel()
    np.testing.assert_array_equal(targets, np.arange(1, T * 7 + 1))


@pytest.mark.parametrize("prefetch", [0, 4])
def test_batches_are_the_samples_that_their_ids_name_beside_mds(tmp_path, prefetch):
    from tests.stream.helpers import write_domain

    tokens = write_megatron(tmp_path / "m", make_documents(1))
    other = np.concatenate(make_documents(2, vocab_size=60000))
    write_domain(tmp_path / "mds", 9, 60)
    mds = ado.Domain("mds", local=str(tmp_path / "mds"))
    data = dataset(megatron(tmp_path / "m"), npy(write_raw(tmp_path / "o.npy", other, "uint32"), "uint32"), mds)
    rows = np.concatenate([samples_of(tokens, T), samples_of(other, T), read_all(mds)])
    data.start(prefetch, io_threads=prefetch)
    for batch in run(data, 30):
        np.testing.assert_array_equal(batch["tokens"], rows[data.sample_ids(batch["step"])])


def test_in_place_or_from_a_remote_the_batches_and_the_state_are_the_same(tmp_path):
    """A remote that is a path is read by ranges into blocks, as an object store is."""
    prefix = tmp_path / "m"
    write_megatron(prefix, make_documents(1))
    local = dataset(megatron(prefix))
    remote = dataset(ado.Domain("m", str(prefix), str(tmp_path / "cache"), format="megatron"))
    assert fingerprints(local) == fingerprints(remote)
    first = run(local, 20)
    assert ledger(first) == ledger(run(remote, 20))
    again = dataset(megatron(prefix))
    again.load_state_dict(remote.state_dict())
    assert ledger(run(again, 5)) == ledger(run(local, 5))
    assert len(list((tmp_path / "cache").rglob("*.tokens"))) > 3


def test_any_file_system_of_fsspec_serves_with_its_folders(tmp_path):
    """Its own file system in memory, which has times and no tags, in place of a bucket."""
    files = fsspec.filesystem("memory")
    for number in range(3):
        write_megatron(tmp_path / "m" / str(number), make_documents(number))
        write_raw(tmp_path / "n" / f"{number}.npy", np.concatenate(make_documents(number)))
    for path in tmp_path.rglob("*.*"):
        files.pipe(f"/flat/{path.relative_to(tmp_path)}", path.read_bytes())
    local = dataset(megatron(tmp_path / "m"), npy(tmp_path / "n"))
    remote = dataset(
        ado.Domain("m", "memory://flat/m", str(tmp_path / "cache_m"), format="megatron"),
        ado.Domain("n", "memory://flat/n/", str(tmp_path / "cache_n"), format="npy", token_dtype="uint16"),
    )
    assert fingerprints(local) == fingerprints(remote)
    state = remote.state_dict()
    assert ledger(run(remote, 20)) == ledger(run(local, 20))
    files.pipe("/flat/n/1.npy", bytes((tmp_path / "n/1.npy").stat().st_size))
    again = ado.Domain("n", "memory://flat/n", str(tmp_path / "cache_n"), format="npy", token_dtype="uint16")
    with pytest.raises(ado.ResumeError, match="domain 'n'.*other times or tags"):
        dataset(ado.Domain("m", "memory://flat/m", str(tmp_path / "c"), format="megatron"), again).load_state_dict(
            state
        )


@pytest.mark.parametrize("kind", ["npy", "megatron"])
def test_a_file_of_equal_size_and_time_does_not_fit_the_state(tmp_path, kind):
    """As `cp -p` of files of an archive leaves them."""
    if kind == "npy":
        path = write_raw(tmp_path / "n.npy", np.concatenate(make_documents(0)))
        domain = npy(path)
    else:
        write_megatron(tmp_path / "m", make_documents(0))
        path, domain = tmp_path / "m.bin", megatron(tmp_path / "m")
    os.utime(path, (0, 0))
    before = dataset(domain)
    before.load_state_dict(before.state_dict())
    path.write_bytes(path.read_bytes()[::-1])
    os.utime(path, (0, 0))
    with pytest.raises(ado.ResumeError, match="other times or tags"):
        dataset(domain).load_state_dict(before.state_dict())


@pytest.mark.parametrize("sent", [10_000, 10])
def test_a_store_that_sends_other_than_the_range_is_refused(tmp_path, monkeypatch, sent):
    store = fsspec.filesystem("memory")
    store.pipe("/ranges.npy", bytes(range(1, 101)) * 20)
    domain = ado.Domain("n", "memory://ranges.npy", str(tmp_path), format="npy", token_dtype="uint16")
    monkeypatch.setattr(type(store), "cat_file", lambda *_: bytes(sent))
    with pytest.raises(ado.StorageError, match=rf"{sent} bytes came for a range of \d+ \(2 attempt"):
        dataset(domain, retry=RetryPolicy(attempts=2))


@pytest.mark.parametrize("damage", ["flip", "cut"])
def test_a_damaged_block_of_the_cache_is_fetched_anew(tmp_path, monkeypatch, damage):
    path = write_raw(tmp_path / "o.npy", np.concatenate(make_documents(1)))
    domain = ado.Domain("n", str(path), str(tmp_path / "cache"), format="npy", token_dtype="uint16")
    expected = ledger(run(dataset(domain), 20))

    def spoil():
        for block in (tmp_path / "cache").rglob("*.tokens"):
            content = bytearray(block.read_bytes())
            content[100] ^= 1
            block.write_bytes(bytes(content[: len(content) // 2] if damage == "cut" else content))

    spoil()
    again = dataset(domain)
    assert ledger(run(again, 20)) == expected
    assert again.statistics()["cache"]["refetches"] > 0
    if damage == "flip":  # the sibling: without the check of the seal the flipped bits are served
        monkeypatch.setattr(node_cache, "check_sealed", lambda *_: None)
        spoil()
        assert ledger(run(dataset(domain), 20)) != expected


def test_only_the_blocks_that_are_needed_are_read(tmp_path):
    path = write_raw(tmp_path / "o.npy", np.arange(20_000) % 500)
    domain = ado.Domain("n", str(path), str(tmp_path / "cache"), format="npy", token_dtype="uint16")
    reader = SampleReader(domain, seq_len=T)
    reader.read(np.arange(3))
    (block,) = (tmp_path / "cache").rglob("*.tokens")
    assert block.stat().st_size == 33 * 30 + 2 + 8  # 33 rows of 30 bytes fit into 1,000; the last token; the seal


def replace_tokens(path: Path) -> None:
    """Other tokens in the file, of the same size."""
    content = bytearray(path.read_bytes())
    content[:2000] = bytes(2000)
    os.utime(path, ns=(1, 1))
    path.write_bytes(bytes(content))


@pytest.mark.parametrize("cached", [False, True], ids=["in place", "cached"])
def test_files_that_change_under_a_run_or_its_state_are_an_error(tmp_path, monkeypatch, cached):
    prefix = tmp_path / "m"
    write_megatron(prefix, make_documents(1))
    remote, local = (str(prefix), str(tmp_path / "cache")) if cached else (None, str(prefix))
    domain = ado.Domain("m", remote, local, format="megatron")
    data = dataset(domain)
    data.start(0, 0)
    data.next_batch()
    state = data.state_dict()
    replace_tokens(Path(f"{prefix}.bin"))
    with pytest.raises(ado.DataError, match="replaced or changed since it was opened"):
        run(data, 40, mixture=None)
    new = dataset(domain)
    with pytest.raises(ado.ResumeError, match="other times or tags"):
        new.load_state_dict(state)
    # The sibling: without versions the state would load.
    monkeypatch.setattr(flat_index.FlatContent, "versions", "")
    dataset(domain).load_state_dict({**state, "domains": {"m": {**state["domains"]["m"], "versions": ""}}})


def test_another_seq_len_or_other_tokens_are_another_domain(tmp_path):
    tokens = np.concatenate(make_documents(1))
    path = write_raw(tmp_path / "o.npy", tokens)
    state = dataset(npy(path)).state_dict()
    other = ado.AdaptiveStreamingDataset([npy(path)], 8, seed=3, seq_len=T + 1)
    with pytest.raises(ado.ResumeError, match="domain 'n'"):
        other.load_state_dict(state)


def test_positions_are_those_of_the_index(tmp_path):
    """The end token says what the .idx says: place of every token in its document, or from the sample's start."""
    documents = make_documents(4)
    write_megatron(tmp_path / "m", documents)
    starts = np.concatenate([[0], document_ends(tmp_path / "m.idx")])
    data = dataset(megatron(tmp_path / "m"), positions=True, end_token=END)
    for batch in run(data, 10):
        for number, place in zip(data.sample_ids(batch["step"]), batch["positions"].numpy(), strict=True):
            token_T = number * T + np.arange(T)
            document_T = starts[np.searchsorted(starts, token_T, side="right") - 1]
            np.testing.assert_array_equal(place, token_T - np.maximum(document_T, number * T))


def test_a_token_beyond_the_vocabulary_is_named(tmp_path):
    tokens = np.concatenate(make_documents(1))
    tokens[1000] = 499
    domain = npy(write_raw(tmp_path / "o.npy", tokens))
    reader = SampleReader(domain, vocab_size=499, seq_len=T)
    with pytest.raises(ado.DataError, match=r"domain 'n' o.npy from byte \d+, row \d+ \(id 66\): token 499 outside"):
        reader.read(np.arange(60, 70))


def damaged_megatron(tmp_path: Path, change) -> ado.Domain:
    write_megatron(tmp_path / "m", make_documents(1, 20))
    change(tmp_path / "m.bin", tmp_path / "m.idx")
    return megatron(tmp_path / "m")


def put(path: Path, at: int, data: bytes) -> None:
    content = bytearray(path.read_bytes())
    content[at : at + len(data)] = data
    path.write_bytes(bytes(content))


MEGATRON = {
    r"begins with b'MMIDIDY.*not an index of Megatron's": lambda b, i: put(i, 6, b"Y"),
    r"version 2, tokens of type 8": lambda b, i: put(i, 9, b"\2"),
    r"version 1, tokens of type 7.*an integer type": lambda b, i: put(i, 17, b"\7"),
    r"20 sequences and 21 bounds of documents take 442": lambda b, i: i.write_bytes(i.read_bytes()[:-8]),
    r"\d+ sequences and 21 bounds": lambda b, i: put(i, 18, struct.pack("<Q", 1 << 60)),
    r"a sequence of -1 tokens from byte \d+": lambda b, i: put(i, 34 + 4 * 3, struct.pack("<i", -1)),
    r"from byte 1000000, where \d+ is next": lambda b, i: put(i, 34 + 4 * 20 + 8 * 5, struct.pack("<q", 1000000)),
    r"in a .bin of \d+ bytes.*The .bin is cut": lambda b, i: b.write_bytes(b.read_bytes()[:-2]),
    r"but the .bin has \d+ bytes": lambda b, i: b.write_bytes(b.read_bytes() + b"\0"),
    r"0 sequences.*or has no documents": lambda b, i: i.write_bytes(index_bytes([])),
    r"documents do not run from sequence 0 to 20": lambda b, i: put(i, 34 + 12 * 20, struct.pack("<q", 1)),
    r"documents do not run": lambda b, i: put(i, 34 + 12 * 20 + 8, struct.pack("<q", 19)),
    r"m.idx: no such file": lambda b, i: i.unlink(),
    r"m.bin: no such file": lambda b, i: b.unlink(),
    r"neither .*m.bin and .idx nor a folder": lambda b, i: (b.unlink(), i.unlink()),
}


@pytest.mark.parametrize("message", MEGATRON)
def test_a_damaged_megatron_file_is_named(tmp_path, message):
    domain = damaged_megatron(tmp_path, MEGATRON[message])
    with pytest.raises((ado.IndexInvalid, ado.NotFound)) as caught:
        dataset(domain)
    assert re.search(message, str(caught.value).replace("\n", " "))
    assert len(str(caught.value).splitlines()) <= 3


def saved(array: np.ndarray):
    def write(path: Path) -> None:
        np.save(path, array)

    return write


NPY = {
    r"not whole tokens of uint16": lambda p: p.write_bytes(b"\1" * 4001),
    r"Give their type: token_dtype='uint16'": None,
    r"no file has the 16 tokens of a sample; the longest has 15": lambda p: write_raw(p, np.arange(T)),
    r"<f8, shape \(100,\); expected integers": saved(np.ones(100)),
    r">u2, shape": saved(np.ones(100, ">u2")),
    r"\|O, shape": saved(np.array([1, "x"] * 20, object)),
    r"row by row": saved(np.ones((10, 10), np.uint16, order="F")),
    r"its header says 100": lambda p: (np.save(p, np.ones(100, np.uint16)), p.write_bytes(p.read_bytes()[:-20])),
    r"no header of NumPy's": lambda p: p.write_bytes(b"\x93NUMPY\x01\x00\x10\x00" + b"{'descr': foo()}" * 100),
    r"holds tokens of uint32; token_dtype is uint16": saved(np.ones(100, np.uint32)),
}


@pytest.mark.parametrize("message", NPY)
def test_a_damaged_npy_file_is_named(tmp_path, message):
    write = NPY[message] or (lambda path: write_raw(path, np.arange(100)))
    write(tmp_path / "o.npy")
    with pytest.raises((ado.IndexInvalid, ado.ConfigError)) as caught:
        dataset(npy(tmp_path / "o.npy", "uint16" if NPY[message] else None))
    assert re.search(message, str(caught.value).replace("\n", " "))


def test_any_damage_of_an_index_or_a_header_is_a_typed_error(tmp_path):
    """Three hundred random changes of .idx and of NumPy's header: what still opens reads within the files."""
    write_megatron(tmp_path / "m", make_documents(1, 20))
    np.save(tmp_path / "o.npy", np.arange(300, dtype=np.uint16))
    rng = np.random.default_rng(0)
    refused = 0
    for path, domain in ((tmp_path / "m.idx", megatron(tmp_path / "m")), (tmp_path / "o.npy", npy(tmp_path / "o.npy"))):
        whole = path.read_bytes()
        for _ in range(150):
            content = bytearray(whole)
            for at in rng.integers(0, min(len(content), 500), rng.integers(1, 4)):
                content[at] = rng.integers(0, 256)
            path.write_bytes(bytes(content[: rng.integers(0, len(content))] if rng.random() < 0.2 else content))
            try:
                read_all(domain)
            except (ado.ConfigError, ado.DataError, ado.NotFound):
                refused += 1
    assert refused > 150


def test_settings_that_cannot_work_are_refused(tmp_path):
    path = write_raw(tmp_path / "o.npy", np.arange(100))
    with pytest.raises(ado.ConfigError, match="format 'npy' holds tokens, not samples. Give seq_len="):
        ado.AdaptiveStreamingDataset([npy(path)], 8)
    with pytest.raises(ado.ConfigError, match="format is 'bin'; expected one of mds, megatron, npy"):
        ado.Domain("x", local="x", format="bin")
    for url in ("gs://b/x.npy", "gsx://b/x.npy"):  # its client is not installed; no such scheme
        with pytest.raises(ado.ConfigError, match="read by ranges, here through fsspec: .*\n  Install the client"):
            dataset(ado.Domain("x", url, str(tmp_path / "c"), format="npy", token_dtype="uint16"))
    with pytest.raises(ado.ConfigError, match="no local folder"):
        ado.Domain("x", "s3://b/x.npy", format="npy")
    from tests.stream.helpers import write_domain

    write_domain(tmp_path / "mds", 9, 60)
    with pytest.raises(ado.ConfigError, match="samples of 16 tokens; seq_len 20 needs 21"):
        ado.AdaptiveStreamingDataset([ado.Domain("x", local=str(tmp_path / "mds"))], 8, seq_len=20)


def test_the_files_of_a_remote_are_looked_at_once_a_node(tmp_path, monkeypatch):
    for number in range(5):
        write_raw(tmp_path / "npy" / f"{number}.npy", np.concatenate(make_documents(number)))
    domain = ado.Domain("n", str(tmp_path / "npy"), str(tmp_path / "cache"), format="npy", token_dtype="uint16")
    first = dataset(domain)
    monkeypatch.setattr(open_indexes.FlatPlace, "read", lambda *_: pytest.fail("parsed again"))
    assert fingerprints(dataset(domain)) == fingerprints(first)
    monkeypatch.undo()
    monkeypatch.setattr(flat_index, "SHARD_BYTES", 1000)
    write_raw(tmp_path / "npy" / "5.npy", np.concatenate(make_documents(6)))
    assert dataset(domain).num_samples > first.num_samples
