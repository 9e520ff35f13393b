"""Which shards a reader may find in a cache folder: those of its own data and no others (docs/faults.md J1, J2)."""

import functools
import gc
import hashlib
import json
import operator
import os
import queue
import re
import shutil
import threading
import tracemalloc
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import xxhash
import zstandard
from fsspec.implementations.local import LocalFileSystem
from hypothesis import given
from hypothesis import strategies as st

import ado_stream as ado
from ado_stream.durable import private_folder, write_durably
from ado_stream.errors import IndexInvalid
from ado_stream.storage import download as download_module
from ado_stream.storage import file_systems
from ado_stream.storage.node_cache import NodeCache
from ado_stream.storage.object_locks import object_lock
from ado_stream.storage.retry import Deadline, StoppedError
from ado_stream.stream import open_indexes as module
from ado_stream.stream.index_content import IndexContent, parse_index
from ado_stream.stream.mds_index import MdsIndex, make_index
from benchmarks.bench_stream_open import index_text
from tests.stream.helpers import SEQ_LEN, run, write_domain

pytestmark = pytest.mark.filterwarnings("ignore:.*the index holds no hashes:UserWarning")


def remote_of(tmp_path: Path, name: str, number: int, hashes=("xxh64",)) -> str:
    """A data set whose every token row begins with `number`; equal sizes for all numbers."""
    write_domain(tmp_path / name, number, 40, shard_bytes=1000, hashes=hashes)
    return str(tmp_path / name)


def dataset(remote: str, local: Path, **options) -> ado.AdaptiveStreamingDataset:
    return ado.AdaptiveStreamingDataset([ado.Domain("d", remote, str(local))], 4, mixture_lag=None, **options)


def numbers(data: ado.AdaptiveStreamingDataset, steps: int = 12) -> set[int]:
    """The first tokens of all rows: which data set was served."""
    return {int(row[0]) for batch in run(data, steps, mixture=None) for row in batch["tokens"]}


@pytest.mark.parametrize("hashes", [(), ("xxh64",)], ids=["bare", "hashed"])
def test_another_remote_with_the_same_cache_folder_is_another_data_set(tmp_path, hashes):
    first, second = (remote_of(tmp_path, name, n, hashes) for n, name in ((1, "first"), (2, "second")))
    data = dataset(first, tmp_path / "cache")
    assert numbers(data) == {1}
    state = data.state_dict()
    other = dataset(second, tmp_path / "cache")
    assert numbers(other) == {2}
    with pytest.raises(ado.ResumeError, match="domain 'd'"):
        other.load_state_dict(state)
    again = dataset(first, tmp_path / "cache")
    again.load_state_dict(state)
    assert again.step == 12


def test_data_without_hashes_replaced_at_their_remote_are_noticed(tmp_path, monkeypatch):
    remote, other = remote_of(tmp_path, "data", 1, ()), remote_of(tmp_path, "other", 2, ())
    data = dataset(remote, tmp_path / "cache")
    assert numbers(data) == {1}
    state = data.state_dict()
    for path in Path(other).glob("*.mds"):
        shutil.copy2(path, remote)
    assert (Path(other) / "index.json").read_bytes() == (Path(remote) / "index.json").read_bytes()
    new = dataset(remote, tmp_path / "cache")
    assert numbers(new) == {2}
    with pytest.raises(ado.ResumeError, match="no hashes"):
        new.load_state_dict(state)
    # The sibling: without the versions of shards the old tokens come from the cache, under a state that fits.
    monkeypatch.setattr(module, "object_version", lambda *_: None)
    blind = dataset(remote, tmp_path / "cache2")
    assert numbers(blind) == {2}
    for number, path in enumerate(sorted(Path(remote).glob("*.mds"))):
        write_domain(tmp_path / "third", 3, 40, shard_bytes=1000, hashes=()) if number == 0 else None
        shutil.copy2(tmp_path / "third" / path.name, path)
    assert numbers(dataset(remote, tmp_path / "cache2")) == {2}


def test_a_state_without_versions_still_loads(tmp_path):
    data = dataset(remote_of(tmp_path, "data", 1, ()), tmp_path / "cache")
    state = json.loads(json.dumps(data.state_dict()))
    assert state["domains"]["d"].pop("versions")
    data.load_state_dict(state)


def test_local_data_without_hashes_replaced_in_place_do_not_fit_the_state(tmp_path):
    local, other = remote_of(tmp_path, "data", 1, ()), remote_of(tmp_path, "other", 2, ())
    domain = ado.Domain("d", local=local)
    state = ado.AdaptiveStreamingDataset([domain], 4, mixture_lag=None).state_dict()
    for path in Path(other).glob("*.mds"):
        shutil.copy2(path, local)
    with pytest.raises(ado.ResumeError, match="no hashes"):
        ado.AdaptiveStreamingDataset([domain], 4, mixture_lag=None).load_state_dict(state)


def test_data_without_hashes_of_equal_sizes_and_times_do_not_fit_the_state(tmp_path):
    """As `cp -p`, or an archive whose files all have one time, leaves them."""
    local, other = remote_of(tmp_path, "data", 1, ()), remote_of(tmp_path, "other", 2, ())
    for path in (*Path(local).glob("*.mds"), *Path(other).glob("*.mds")):
        os.utime(path, (0, 0))
    copies = [{"local": local}, {"remote": local, "local": str(tmp_path / "cache")}]
    states = [opened_as(**each).state_dict() for each in copies]
    assert numbers(opened_as(**copies[1])) == {1}
    for path in Path(other).glob("*.mds"):
        shutil.copy2(path, local)
    for each, state in zip(copies, states, strict=True):
        with pytest.raises(ado.ResumeError, match="no hashes"):
            opened_as(**each).load_state_dict(state)
        assert numbers(opened_as(**each)) == {2}


def opened_as(**places) -> ado.AdaptiveStreamingDataset:
    return ado.AdaptiveStreamingDataset([ado.Domain("d", **places)], 4, mixture_lag=None)


def test_the_raw_files_that_streaming_leaves_of_compressed_shards_are_enough(tmp_path):
    remote = tmp_path / "data"
    write_domain(remote, 1, 40, shard_bytes=1000, hashes=(), compression="zstd")
    dataset(str(remote), tmp_path / "cache")
    for path in remote.glob("*.zstd"):
        path.with_suffix("").write_bytes(zstandard.ZstdDecompressor().decompress(path.read_bytes()))
        path.unlink()
    assert numbers(opened_as(local=str(remote))) == {1}


def test_data_without_hashes_replaced_on_the_hub_are_noticed(tmp_path, monkeypatch):
    """The hub's downloads are stood in for by copies, its listings by one of those files."""
    remote, other = remote_of(tmp_path, "data", 1, ()), remote_of(tmp_path, "other", 2, ())
    url = "hf://datasets/org/name"

    class Hub(LocalFileSystem):
        def info(self, path, **options):
            content = Path(path).read_bytes()
            return {"size": len(content), "type": "file", "oid": hashlib.sha256(content).hexdigest()}

    class Downloader:
        def download(self, place, local, timeout):
            shutil.copy(place.replace(url, remote), local)

    monkeypatch.setattr(file_systems, "_opened", lambda place: (Hub(), place.replace(url, remote)))
    monkeypatch.setattr(download_module, "_streaming_downloader", lambda _: Downloader())
    data = dataset(url, tmp_path / "cache")
    assert numbers(data) == {1}
    state = data.state_dict()
    for path in Path(other).glob("*.mds"):
        shutil.copy(path, remote)
    new = dataset(url, tmp_path / "cache")
    assert numbers(new) == {2}
    with pytest.raises(ado.ResumeError, match="no hashes"):
        new.load_state_dict(state)


def test_a_file_put_in_place_of_a_verified_shard_is_not_mapped(tmp_path, monkeypatch):
    first, second = (remote_of(tmp_path, name, n) for n, name in ((1, "first"), (2, "second")))
    (index,) = module.open_indexes([ado.Domain("d", first, str(tmp_path / "cache"))], "tokens", None)
    spec, cache = index.spec(0), NodeCache()
    fetch, swaps = NodeCache.fetch, iter([True, True, False])

    def swapped_after(self, spec, stop=None):
        fetched = fetch(self, spec, stop)
        if next(swaps):
            os.replace(shutil.copy(Path(second) / "shard.00000.mds", tmp_path / "copy"), spec.raw)
        return fetched

    monkeypatch.setattr(NodeCache, "fetch", swapped_after)
    mapped, _ = cache.map(spec)
    assert bytes(mapped) == (Path(first) / "shard.00000.mds").read_bytes()


def test_what_is_parsed_is_what_was_downloaded(tmp_path, monkeypatch):
    """A job that writes another index.json at every path of the cache changes nothing: no index is read from there."""
    first, second = (remote_of(tmp_path, name, n) for n, name in ((1, "first"), (2, "second")))
    download = module.download_if_changed

    def then_spoilt(url, tag, retry=None):
        found = download(url, tag, retry)
        (tmp_path / "cache").mkdir(exist_ok=True)
        shutil.copy(f"{second}/index.json", tmp_path / "cache")
        return found

    monkeypatch.setattr(module, "download_if_changed", then_spoilt)
    assert numbers(dataset(first, tmp_path / "cache")) == {1}


def test_jobs_of_two_corpora_that_reopen_all_the_time_read_their_own(tmp_path):
    remotes = {n: remote_of(tmp_path, f"r{n}", n) for n in (1, 2)}
    wrong, opened = [], []

    def job(number: int) -> None:
        for _ in range(15):
            data = dataset(remotes[number], tmp_path / "cache")
            found = numbers(data, steps=3)
            opened.append(number)
            if found != {number}:
                wrong.append((number, found))

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(job, (1, 2)))
    assert wrong == []
    assert len(opened) == 30


def test_a_folder_that_is_its_own_remote_is_read_in_place(tmp_path):
    remote = remote_of(tmp_path, "data", 1)
    (tmp_path / "link").symlink_to(remote)
    before = sorted(Path(remote).rglob("*"))
    assert numbers(dataset(remote, tmp_path / "link")) == {1}
    assert numbers(dataset(f"file://{remote}", Path(remote))) == {1}
    assert sorted(Path(remote).rglob("*")) == before


def test_a_warning_is_no_wrong_row(tmp_path):
    """Rows of data without hashes are those written, in the order of data with hashes."""
    rows = []
    for hashes in ((), ("xxh64",)):
        data = dataset(remote_of(tmp_path, f"h{len(hashes)}", 1, hashes), tmp_path / "cache")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            rows.append(np.concatenate([batch["tokens"].numpy() for batch in run(data, 10, mixture=None)]))
    assert np.array_equal(*rows)
    assert rows[0].shape == (40, SEQ_LEN + 1)


@pytest.fixture
def parsed(monkeypatch) -> list[str]:
    """The places of the indexes that were parsed."""
    places: list[str] = []
    parse = module.parse_index
    monkeypatch.setattr(
        module, "parse_index", lambda text, name, where: (places.append(where), parse(text, name, where))[1]
    )
    return places


def opened(remote: str, local: Path) -> MdsIndex:
    (index,) = module.open_indexes([ado.Domain("d", remote, str(local))], "tokens", None)
    return index


def is_same(one: MdsIndex, other: MdsIndex) -> bool:
    specs = [[index.spec(shard) for shard in range(index.samples_S.size)] for index in (one, other)]
    return specs[0] == specs[1] and (one.column, one.fingerprint, one.local) == (
        other.column,
        other.fingerprint,
        other.local,
    )


def test_an_index_is_parsed_by_one_process_of_a_node_and_later_while_it_is_the_same(tmp_path, parsed):
    remote = remote_of(tmp_path, "data", 1)
    with ThreadPoolExecutor(8) as ranks:
        indexes = list(ranks.map(lambda _: opened(remote, tmp_path / "cache"), range(8)))
    assert len(parsed) == 1
    assert all(is_same(indexes[0], index) for index in indexes)
    assert numbers(dataset(remote, tmp_path / "cache")) == {1}
    assert len(parsed) == 1
    shutil.rmtree(remote)
    replaced = remote_of(tmp_path, "data", 2)
    assert numbers(dataset(replaced, tmp_path / "cache")) == {2}
    assert len(parsed) == 2


def test_who_waits_for_an_index_reads_it_though_its_lock_is_held(tmp_path, parsed, monkeypatch):
    """Otherwise the ranks of a node read it one after the other, each after a pause."""
    remote = remote_of(tmp_path, "data", 1)
    first = opened(remote, tmp_path / "other")
    (made,) = (path for path in (tmp_path / "other" / ".ado-index").iterdir() if path.is_file())
    path = tmp_path / "cache" / ".ado-index" / made.name
    private_folder(path.parent)
    asks = threading.Event()

    def lock(*arguments, **options):
        asks.set()
        return object_lock(*arguments, **options)

    monkeypatch.setattr(module, "object_lock", lock)
    with ThreadPoolExecutor(1) as ranks, object_lock(path, Deadline(30.0, "the test")):
        waiting = ranks.submit(opened, remote, tmp_path / "cache")
        assert asks.wait(30.0)
        write_durably(path, made.read_bytes())
        assert waiting.result(10.0).fingerprint == first.fingerprint
    assert len(parsed) == 1


def test_what_processes_share_is_what_each_would_parse(tmp_path, parsed, monkeypatch):
    remote = remote_of(tmp_path, "data", 1)
    first, shared = opened(remote, tmp_path / "cache"), opened(remote, tmp_path / "cache")
    assert len(parsed) == 1
    monkeypatch.setattr(module, "_read_shared", lambda *_: None)
    assert is_same(first, shared)
    assert is_same(first, opened(remote, tmp_path / "cache"))
    assert len(parsed) == 2


@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "link", "folder"])
def test_a_shared_index_that_is_damaged_or_not_ours_is_not_read(tmp_path, parsed, damage):
    remote = remote_of(tmp_path, "data", 1)
    first = opened(remote, tmp_path / "cache")
    (path,) = (path for path in (tmp_path / "cache" / ".ado-index").iterdir() if path.is_file())
    content = path.read_bytes()
    if damage == "folder":
        path.unlink()
        path.mkdir()
    elif damage == "link":  # a folder that somebody else put in the place of ours
        path.parent.rename(tmp_path / "moved")
        path.parent.symlink_to(tmp_path / "moved")
    else:
        half = len(content) // 2
        flipped = content[:half] + bytes([content[half] ^ 1]) + content[half + 1 :]
        path.write_bytes({"flip": flipped, "cut": content[:half], "empty": b""}[damage])
    assert is_same(opened(remote, tmp_path / "cache"), first)
    assert len(parsed) == 2
    assert numbers(dataset(remote, tmp_path / "cache")) == {1}


def test_a_cache_folder_that_cannot_be_written_costs_the_sharing_alone(tmp_path, parsed):
    remote = remote_of(tmp_path, "data", 1)
    (tmp_path / "cache").write_text("a file where the folder should be")
    index = opened(remote, tmp_path / "cache")
    assert index.num_samples == 40
    with pytest.raises(ado.ConfigError, match="Choose a local folder"):
        dataset(remote, tmp_path / "cache")


def test_indexes_are_read_side_by_side(tmp_path, monkeypatch):
    """Each waits until all are being read: one after another, none would come."""
    barrier = threading.Barrier(8)
    download = module.download_if_changed

    def together(*arguments):
        barrier.wait(30.0)
        return download(*arguments)

    remotes = [remote_of(tmp_path, f"d{number}", number) for number in range(8)]
    monkeypatch.setattr(module, "download_if_changed", together)
    domains = [ado.Domain(f"d{number}", remote, str(tmp_path / "cache")) for number, remote in enumerate(remotes)]
    assert [index.name for index in module.open_indexes(domains, "tokens", None)] == [each.name for each in domains]


@pytest.mark.parametrize("damage", ["absent", "cut", "of another format"])
def test_the_first_bad_index_ends_the_reads_of_the_others(tmp_path, monkeypatch, damage):
    """The others' store never answers; two of their reads wait for a lock that a third holds."""
    bad = remote_of(tmp_path, "bad", 1)
    index = Path(bad) / "index.json"
    {"absent": index.unlink, "cut": lambda: os.truncate(index, 99)}.get(damage, lambda: index.write_text("{}"))()
    never_set, ended = threading.Event(), queue.SimpleQueue[str]()

    class Downloader:
        def download(self, remote, local, timeout):
            never_set.wait(60.0)

    def recorded(url, tag, retry=None):
        try:
            return download(url, tag, retry)
        except StoppedError:
            ended.put(url)
            raise

    download = module.download_if_changed
    monkeypatch.setattr(module, "download_if_changed", recorded)
    monkeypatch.setattr(download_module, "_streaming_downloader", lambda url: Downloader())
    domains = [ado.Domain(f"d{n}", f"gs://b/{n // 3}", str(tmp_path / f"cache{n // 3}")) for n in range(9)]
    domains.insert(4, ado.Domain("bad", bad, str(tmp_path / "cache")))
    with pytest.raises((ado.NotFound, IndexInvalid), match=re.escape(str(index))):
        module.open_indexes(domains, "tokens", None)
    waiting = {f"gs://b/{n}/index.json" for n in range(3)}
    try:
        while waiting:
            waiting.discard(ended.get(timeout=30.0))
    finally:
        never_set.set()


def test_an_index_keeps_few_bytes_a_shard():
    """tracemalloc counts NumPy's arrays; with two hashes a file. A thousand bytes and more as objects of Python."""
    text = index_text(4000)
    tracemalloc.start()
    try:
        index = make_index(parse_index(text, "d", "index.json"), "d", "s3://bucket/d", Path("/cache"))
        gc.collect()
        assert tracemalloc.get_traced_memory()[0] / 4000 < 200
    finally:
        tracemalloc.stop()
    spec = index.spec(3999)
    assert spec.remote == "s3://bucket/d/shard.03999.mds.zstd"
    assert spec.stored_hashes == {"sha1": f"{4000:040x}", "xxh64": f"{4000:016x}"}


@pytest.mark.parametrize(
    ("place", "value", "says"),
    [
        ((), [], "not an object"),
        (("format",), "json", "format 'json'"),
        (("samples",), True, "'samples' is True"),
        (("samples",), -1, "'samples' is -1"),
        (("compression",), 3, "without the name of its compression"),
        (("column_names",), ["tokens", "more"], "do not match"),
        (("raw_data",), None, "raw_data: not an object"),
        (("zip_data",), [], "zip_data: not an object"),
        (("raw_data", "bytes"), 2**33, "'bytes' is 8589934592"),
        (("zip_data", "bytes"), 1.5, "'bytes' is 1.5"),
        (("raw_data", "basename"), "../x", "basename '../x'"),
        (("zip_data", "basename"), "x" * 201, "basename of 201 bytes"),
        (("raw_data", "hashes"), ["xxh64"], "not an object of names and digests"),
        (("raw_data", "hashes"), {"xxh64": ""}, "not an object of names and digests"),
        (("zip_data", "hashes"), {"a b": "00"}, "not an object of names and digests"),
        (("zip_data", "hashes"), {"xxh64": 7}, "not an object of names and digests"),
    ],
)
def test_the_one_bad_shard_of_many_is_named(place, value, says):
    """All shards are checked at once."""
    index = json.loads(index_text(50))
    *parents, last = ("shards", 33, *place)
    functools.reduce(operator.getitem, parents, index)[last] = value
    with pytest.raises(IndexInvalid) as caught:
        parse_index(json.dumps(index).encode(), "d", "s3://bucket/index.json")
    assert str(caught.value).startswith("s3://bucket/index.json, shard 33: ")
    assert says in str(caught.value)
    assert gc.isenabled()


@pytest.mark.parametrize(
    "changes",
    [{"zip_data": None}, {"compression": "gz"}, {"column_sizes": [4]}, {"raw_data": {"hashes": {"bytes": "0"}}}],
)
def test_shards_that_do_not_go_together_are_refused(changes):
    index = json.loads(index_text(50))
    for key, value in changes.items():
        index["shards"][33][key] = index["shards"][33][key] | value if isinstance(value, dict) else value
    with pytest.raises(IndexInvalid, match=r"index.json(, shard 33)?: (shards with different|hashes of)"):
        parse_index(json.dumps(index).encode(), "d", "index.json")


@pytest.mark.parametrize("samples", [1 << 31, 1 << 32, 26])
def test_more_samples_than_a_shard_can_hold_are_refused(tmp_path, samples):
    remote_of(tmp_path, "data", 1)
    index = json.loads((tmp_path / "data" / "index.json").read_text())
    index["shards"][1]["samples"] = samples
    with pytest.raises(IndexInvalid, match=rf"shard 1: raw_data: \d+ bytes cannot hold {samples} samples"):
        parse_index(json.dumps(index).encode(), "d", "index.json")


def test_names_that_another_writer_gave_its_shards_are_cached_within_the_limit(tmp_path):
    """Names without the ending that Streaming's have, and names that differ in case alone."""
    remote = tmp_path / "data"
    write_domain(remote, 1, 200, shard_bytes=1000)
    index = json.loads((remote / "index.json").read_text())
    for number, shard in enumerate(index["shards"]):
        name = f"{'part' if number % 2 else 'PART'}{number // 2}"
        (remote / shard["raw_data"]["basename"]).rename(remote / name)
        shard["raw_data"]["basename"] = name
    (remote / "index.json").write_text(json.dumps(index))
    limit = 3 * max(shard["raw_data"]["bytes"] for shard in index["shards"])
    data = dataset(str(remote), tmp_path / "cache", cache_limit=limit)
    assert numbers(data, 100) == {1}
    assert data.statistics()["cache"]["evictions"] > 0
    cached = list((tmp_path / "cache").glob("*/*.mds"))
    assert 0 < sum(path.stat().st_size for path in cached) <= limit
    assert len({path.name.casefold() for path in cached}) == len(cached)


@given(
    hashes=st.lists(
        st.dictionaries(
            st.sampled_from(["sha1", "xxh64", "MD5", "blake2b"]), st.text("0123456789abcdefABCDEF", min_size=1)
        ),
        min_size=1,
        max_size=5,
    ),
    name=st.text(st.characters(exclude_categories=["Cs"], exclude_characters="/\\\0"), min_size=1, max_size=20),
    compressed=st.booleans(),
)
def test_specs_say_what_the_index_says(hashes, name, compressed):
    """Names and hashes go through the table unchanged, shards without some of the hashes among them."""
    names = [name if name in (".", "..") else f"{name}{shard}" for shard in range(len(hashes))]
    shards = [
        {
            "format": "mds",
            "samples": 3,
            "column_names": ["tokens"],
            "column_encodings": ["bytes"],
            "column_sizes": [None],
            "raw_data": {"basename": each, "bytes": 70, "hashes": own},
            **(
                {"compression": "gz", "zip_data": {"basename": f"{each}.gz", "bytes": 5, "hashes": own}}
                if compressed
                else {}
            ),
        }
        for each, own in zip(names, hashes, strict=True)
    ]
    text = json.dumps({"version": 2, "shards": shards}).encode()
    if name in (".", ".."):
        with pytest.raises(ado.IndexInvalid):
            parse_index(text, "d", "w")
        return
    content = IndexContent.decode(parse_index(text, "d", "w").encode())
    index, local = make_index(content, "d", "s3://b", Path("/c")), make_index(content, "d", None, Path("/c"))
    for shard, own in enumerate(hashes):
        spec, ending = index.spec(shard), ".gz" if compressed else ""
        assert (spec.raw_hashes, spec.stored_hashes) == (own, own)
        assert (spec.raw_bytes, spec.stored_bytes) == (70, 5 if compressed else 70)
        assert spec.remote == f"s3://b/{names[shard]}{ending}"
        assert (spec.raw, spec.stored) == tuple(Path(f"/c/{shard:08}.mds{end}") for end in ("", ending))
        in_place = local.spec(shard)
        assert (in_place.raw, in_place.stored) == tuple(Path("/c", f"{names[shard]}{end}") for end in ("", ending))
    assert content.has_hashes == all(hashes)
    rows = [[3, 70, sorted(own.items())] for own in hashes]
    assert index.fingerprint == xxhash.xxh3_128_hexdigest(json.dumps(rows).encode())
