"""Parts on any workers make the corpus of a local run, to the byte, whatever is killed, lost or run twice.

Here the workers are threads in place of a cluster; test_ray.py has a real one. The oracle is the local run.
"""

import dataclasses
import errno
import json
import os
import shutil

import numpy as np
import pytest

from ado_stream.corpus.mds import ShardFormat
from ado_stream.errors import AdoStreamError, ConfigError, DataError, StorageError
from ado_stream.prepare import packing, parts
from ado_stream.prepare.coordinator import prepare
from ado_stream.prepare.parts import TokenStream
from ado_stream.prepare.prepare_config import PrepareConfig
from ado_stream.prepare.prepare_worker import read_range
from ado_stream.prepare.spool import Spool
from tests.prepare.conftest import Threads


@pytest.fixture(autouse=True)
def small(monkeypatch, threads):
    """Threads as the cluster; many parts, pieces, ranges and shards."""
    monkeypatch.setattr("ado_stream.prepare.documents.PIECE_BYTES", 20_000)
    monkeypatch.setattr("ado_stream.prepare.line_blocks._READ_BYTES", 4_000)
    monkeypatch.setattr(parts, "_LEAST_PARTS", 5)
    monkeypatch.setattr(parts, "_GROUP_BYTES", 30_000)
    monkeypatch.setattr(parts, "_SEARCH_BYTES", 200)


@pytest.fixture(scope="module")
def files(pile, tmp_path_factory, write_jsonl):
    """Eight files of sizes that differ, one without a document, with empty documents and unreadable lines."""
    folder, documents = tmp_path_factory.mktemp("files"), pile[1]
    cuts = [0, 150, 160, 161, 161, 400, 401, 580, 600]
    paths = [
        write_jsonl(folder / f"{n}.jsonl", documents[begin:end])
        for n, (begin, end) in enumerate(zip(cuts, cuts[1:], strict=False))
    ]
    for path in paths[1:6:2]:
        with open(path, "a") as file:
            file.write('{"text": "", "meta": {"pile_set_name": "Code"}}\n{"text": 3}\n')
    with open(paths[5], "a") as file:
        file.write('{"text": "twice", "meta": {"pile_set_name": "Books"}}\n')
    return paths


def _config(files, out, **settings):
    defaults = {"seq_len": 64, "domain_key": "meta.pile_set_name", "shard_bytes": 1 << 13, "skip_errors": True}
    return PrepareConfig(tuple(map(str, files)), str(out), **{**defaults, "workers": 1, **settings})


SETTINGS = {
    "bytes": {},
    "bpe, by hash": {"tokenizer": "bpe:400", "val_frac": 0.2},
    "best-fit": {"packing": "best-fit"},
    "best-fit bpe": {"packing": "best-fit", "tokenizer": "bpe:400", "shard_bytes": 1 << 14},
    "val, duplicates dropped": {"val": True, "drop_duplicates_of_val": True},
    "val, duplicates counted": {"val": True},
}


@pytest.mark.parametrize("name", SETTINGS)
def test_the_corpus_is_that_of_a_local_run_to_the_byte(files, pile, tmp_path, tree_hashes, write_jsonl, name):
    settings = dict(SETTINGS[name])
    if settings.pop("val", False):
        val = write_jsonl(tmp_path / "val.jsonl", [*pile[1][5:50:9], {**pile[1][0], "text": "only here"}])
        settings["val"] = (str(val),)
    for executor in ("local", "ray"):
        prepare(_config(files, tmp_path / executor, executor=executor, **settings))
    local, ray = tree_hashes(tmp_path / "local"), tree_hashes(tmp_path / "ray")
    assert ray == local
    assert len(local) > 20
    manifest = json.loads((tmp_path / "ray/corpus.json").read_bytes())
    assert manifest["refused"]["empty document"] == 3
    assert manifest["refused"]["no text"] == 3
    assert not (tmp_path / "ray/.prepare").exists()


def test_relative_paths_are_those_of_the_command(files, tmp_path, tree_hashes, monkeypatch):
    """Workers of a cluster run in other folders."""
    monkeypatch.chdir(tmp_path)
    for number, path in enumerate(files):
        shutil.copy(path, f"{number}.jsonl")
    names = [f"{number}.jsonl" for number in range(len(files))]
    prepare(_config(names, "local"))
    tokenise = parts.tokenise_part

    def elsewhere(worker, part):
        assert worker.work.is_absolute()
        assert all(os.path.isabs(file.path) for file in part.files)
        return tokenise(worker, part)

    monkeypatch.setattr(parts, "tokenise_part", elsewhere)
    prepare(_config(names, "ray", executor="ray"))
    assert tree_hashes("ray") == tree_hashes("local")


class _Killed(BaseException):
    pass


@pytest.mark.slow
def test_killed_before_any_change_of_the_disk_it_ends_the_same(files, tmp_path, tree_hashes, monkeypatch):
    """The n-th file that appears does not: the run ends there, and the next one goes on."""
    files = files[3:]
    for how in ("join", "best-fit"):
        prepare(_config(files, tmp_path / "clean", packing=how))
        clean, ends = tree_hashes(tmp_path / "clean"), 0
        shutil.rmtree(tmp_path / "clean")
        while True:
            left = [ends]

            def dying(*arguments, left=left, replaced=os.replace):
                left[0] -= 1
                if left[0] < 0:
                    raise _Killed
                return replaced(*arguments)

            config = _config(files, tmp_path / "out", packing=how, executor="ray")
            with monkeypatch.context() as patch:
                patch.setattr(os, "replace", dying)
                try:
                    prepare(config)
                    break
                except _Killed:
                    pass
            prepare(config)
            assert tree_hashes(tmp_path / "out") == clean, (how, ends)
            shutil.rmtree(tmp_path / "out")
            ends += 11
        assert ends > 60
        shutil.rmtree(tmp_path / "out")


def test_what_is_done_is_not_done_again(files, tmp_path, tree_hashes, monkeypatch):
    tokenised, written, tokenise, write = [], [], parts.tokenise_part, parts.write_shards

    def count_part(worker, part):
        tokenised.append(part.tokens.name)
        return tokenise(worker, part)

    def count_shards(worker, jobs):
        if fail and len(written) >= 20:
            raise OSError(errno.ENOSPC, "No space left on device", str(jobs[0][1].out_path))
        written.extend((key, job.shard) for key, job in jobs)
        return write(worker, jobs)

    monkeypatch.setattr(parts, "tokenise_part", count_part)
    monkeypatch.setattr(parts, "write_shards", count_shards)
    monkeypatch.setattr(packing, "_SHARDS_AT_ONCE", 3)
    config, fail = _config(files, tmp_path / "out", executor="ray"), True
    with pytest.raises(StorageError, match=r"No space left on device.\n  Finished work is kept"):
        prepare(config)
    list_of_shards = tmp_path / "out/.prepare/parts/published.jsonl"
    num_listed = list_of_shards.read_bytes().count(b"\n")
    assert 10 < num_listed <= 26
    with open(list_of_shards, "ab") as file:
        file.write(b'["Books", "train", 9999, {"samp')  # a kill in the middle of a line
    next((tmp_path / "out/.prepare/corpus").rglob("*.mds.zstd")).unlink()  # by a cleaner of old files
    fail = False
    prepare(config)
    assert len(tokenised) == len(set(tokenised)) > 4
    shards = list((tmp_path / "out").rglob("*.mds.zstd"))
    assert len(set(written)) == len(shards)
    assert len(written) <= len(shards) + 27 - num_listed
    prepare(_config(files, tmp_path / "local"))
    assert tree_hashes(tmp_path / "out") == tree_hashes(tmp_path / "local")


def test_two_tasks_of_one_part_or_shard_at_once_do_no_harm(files, tmp_path, tree_hashes, monkeypatch, threads):
    """A task runs again while a node that was taken for dead goes on with it."""
    submit, others = threads.submit, []

    def twice(pool, *arguments):
        others.append(submit(pool, *arguments))
        return submit(pool, *arguments)

    prepare(_config(files, tmp_path / "local"))
    monkeypatch.setattr(threads, "submit", twice)
    prepare(_config(files, tmp_path / "ray", executor="ray"))
    assert [other.exception() for other in others] == [None] * len(others)
    assert tree_hashes(tmp_path / "ray") == tree_hashes(tmp_path / "local")


def test_an_unreadable_record_stops_and_skipping_goes_on_from_there(files, tmp_path, tree_hashes):
    config = _config(files, tmp_path / "out", executor="ray", skip_errors=False)
    with pytest.raises(DataError, match=r"\.jsonl:\d+: no text"):
        prepare(config)
    prepare(dataclasses.replace(config, skip_errors=True))
    prepare(_config(files, tmp_path / "local"))
    assert tree_hashes(tmp_path / "out") == tree_hashes(tmp_path / "local")


@pytest.fixture(scope="module")
def unfinished(files, tmp_path_factory):
    """A folder whose parts are complete and whose shards are not, and its config."""
    config = _config(files, tmp_path_factory.mktemp("unfinished") / "out", executor="ray")

    def fail(self):
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ado_stream.prepare.ray_executor.RayExecutor", Threads)
        patch.setattr(parts, "_LEAST_PARTS", 5)
        patch.setattr(parts.PartPacker, "finish", fail)
        with pytest.raises(KeyboardInterrupt):
            prepare(config)
    return config


@pytest.mark.parametrize("damage", [lambda data: data[:-5], lambda data: b"", lambda data: b"\xff\0[{" * 10])
@pytest.mark.parametrize("name", ["*.json", "*.tokens", "published.jsonl"])
def test_damaged_parts_are_named(unfinished, tmp_path, name, damage):
    shutil.copytree(unfinished.out, tmp_path / "out")
    folder = tmp_path / "out/.prepare/parts"
    path = next(folder.glob(name), folder / name)
    path.write_bytes(damage(path.read_bytes()) if path.exists() else b"[\xff\n")
    with pytest.raises(AdoStreamError, match=rf"{path.with_suffix('')}.*(?s:.*)([Rr]emove)"):
        prepare(dataclasses.replace(unfinished, out=str(tmp_path / "out")))


def test_unfinished_parts_of_other_settings_are_not_thrown_away(unfinished, tmp_path):
    shutil.copytree(unfinished.out, tmp_path / "out")
    for executor in ("ray", "local"):
        config = dataclasses.replace(unfinished, out=str(tmp_path / "out"), seq_len=32, executor=executor)
        with pytest.raises(
            ConfigError, match=r"an unfinished run over other input or settings; changed since: seq_len\."
        ):
            prepare(config)


def test_a_local_run_finishes_what_a_cluster_began(unfinished, files, tmp_path, tree_hashes):
    shutil.copytree(unfinished.out, tmp_path / "out")
    prepare(dataclasses.replace(unfinished, out=str(tmp_path / "out"), executor="local"))
    prepare(_config(files, tmp_path / "local"))
    assert tree_hashes(tmp_path / "out") == tree_hashes(tmp_path / "local")


@pytest.mark.slow
def test_a_bucket_gets_the_same_corpus(files, tmp_path, tree_hashes, s3_client, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    s3_client.create_bucket(Bucket="parted")
    prepare(_config(files, "s3://parted/corpus", executor="ray", shard_bytes=1 << 17))
    prepare(_config(files, tmp_path / "local", shard_bytes=1 << 17))
    for entry in s3_client.list_objects_v2(Bucket="parted")["Contents"]:
        path = tmp_path / "copy" / entry["Key"]
        path.parent.mkdir(parents=True, exist_ok=True)
        s3_client.download_file("parted", entry["Key"], str(path))
    assert tree_hashes(tmp_path / "copy/corpus") == tree_hashes(tmp_path / "local")


@pytest.mark.parametrize("end_id", [None, 0])
def test_a_stream_is_cut_where_a_spool_is(tmp_path, end_id):
    """Against Spool, which gets the same tokens one block after the other."""
    draw = np.random.default_rng(3)
    shard_format = ShardFormat(9, "uint16", 1 << 8)
    for trial in range(20):
        documents = [np.append(draw.integers(1, 99, size), 0) for size in draw.integers(1, 300, draw.integers(0, 40))]
        spool, stream, path = Spool(tmp_path / f"{trial}", shard_format, end_id=end_id), TokenStream(), None
        for number, document in enumerate(documents):
            data = document.astype("uint16").tobytes()
            spool.append(1, 1, data)
            spool.flush()
            if number % 7 == 0:
                path = tmp_path / f"{trial}-{number}.tokens"
                path.write_bytes(b"xy")
            with open(path, "ab") as file:
                stream.append((path, file.tell(), file.tell() + len(data)))
                file.write(data)
        found = [b"".join(read_range(*source) for source in stream.cut(*place))
                 for place in stream.shards(shard_format, end_id)]  # fmt: skip
        num_shards = spool.state.shard + (spool.whole_bytes(spool.state.shard) > 0)
        assert found == [spool.path(n).read_bytes()[: spool.whole_bytes(n)] for n in range(num_shards)]


@pytest.mark.parametrize("wrong", ["dask", "ray://", "ray://head", "ray:head:1"])
def test_executors_that_cannot_be(wrong):
    with pytest.raises(ConfigError, match=r"expected local, ray, or ray://HOST:PORT"):
        PrepareConfig(("in",), "out", executor=wrong)


def test_what_the_nodes_do_not_see_is_refused_before_any_text_is_read(files, tmp_path, monkeypatch):
    asked = []

    def check_shared(_, paths):
        asked.extend(paths)
        raise ConfigError(f"{paths[0]}: not there on the Ray node n7.")

    monkeypatch.setattr(Threads, "check_shared", check_shared)
    with pytest.raises(ConfigError, match="not there on the Ray node n7"):
        prepare(_config(files, tmp_path / "out", executor="ray"))
    assert [path.name for path in asked] == ["plan", "0.jsonl"]


@pytest.mark.parametrize(
    "change",
    [
        {"tokens_bytes": "x"},
        {"splits": [["a", "train", 1, 1, [[0, 1 << 40]]]]},
        {"splits": [["a", "../x", 1, 1, []]]},
        {"splits": []},
        {"refused": [{}]},
        {"repeated": ["x"]},
    ],
)
def test_a_table_that_fits_no_tokens_is_named(unfinished, tmp_path, change):
    shutil.copytree(unfinished.out, tmp_path / "out")
    path = max((tmp_path / "out/.prepare/parts").glob("*.json"), key=lambda each: each.stat().st_size)
    path.write_text(json.dumps({**json.loads(path.read_bytes()), **change}))
    with pytest.raises(StorageError, match=rf"{path}: damaged: {path.name}"):
        prepare(dataclasses.replace(unfinished, out=str(tmp_path / "out")))
