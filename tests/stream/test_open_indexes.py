"""Which shards a reader may find in a cache folder: those of its own data and no others (docs/faults.md J1, J2)."""

import json
import os
import shutil
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

import ado_stream as ado
from ado_stream.storage.node_cache import NodeCache
from ado_stream.stream import open_indexes as module
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


def test_a_file_put_in_place_of_a_verified_shard_is_not_mapped(tmp_path, monkeypatch):
    first, second = (remote_of(tmp_path, name, n) for n, name in ((1, "first"), (2, "second")))
    (index,) = module.open_indexes([ado.Domain("d", first, str(tmp_path / "cache"))], "tokens", None)
    spec, cache = index.spec(0), NodeCache()
    fetch, swaps = NodeCache.fetch, iter([True, True, False])

    def swapped_after(self, spec, stop=None):
        fetched = fetch(self, spec, stop)
        if next(swaps):
            os.replace(shutil.copy(Path(second) / spec.raw.name, tmp_path / "copy"), spec.raw)
        return fetched

    monkeypatch.setattr(NodeCache, "fetch", swapped_after)
    mapped, _ = cache.map(spec)
    assert bytes(mapped) == (Path(first) / spec.raw.name).read_bytes()


def test_what_is_parsed_is_what_was_downloaded(tmp_path, monkeypatch):
    """A job that writes another index.json at every path of the cache changes nothing: no index is read from there."""
    first, second = (remote_of(tmp_path, name, n) for n, name in ((1, "first"), (2, "second")))
    download_bytes = module.download_bytes

    def then_spoilt(url, retry=None):
        content = download_bytes(url, retry)
        (tmp_path / "cache").mkdir(exist_ok=True)
        shutil.copy(f"{second}/index.json", tmp_path / "cache")
        return content

    monkeypatch.setattr(module, "download_bytes", then_spoilt)
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
