"""A run that is killed goes on, and ends with the same files to the byte; no process and no working file is left."""

import dataclasses
import itertools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ado_stream.errors import AdoStreamError, StorageError
from ado_stream.prepare.coordinator import prepare
from ado_stream.prepare.packing import Packer
from ado_stream.prepare.prepare_config import PrepareConfig
from ado_stream.prepare.spool import SpoolState

COMMAND = [sys.executable, "-m", "ado_stream.cli", "prepare", "--domain-key", "meta.pile_set_name", "--seq-len", "64"]


@pytest.mark.slow
@pytest.mark.parametrize("how", ["join", "best-fit"])
def test_killed_before_any_change_of_the_disk_it_ends_the_same(tmp_path, pile, write_jsonl, how):
    source = write_jsonl(tmp_path / "in.jsonl.zst", pile[1][:80])
    script = Path(__file__).with_name("killed_prepare.py")
    run = subprocess.run([sys.executable, script, source, tmp_path, how], capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr
    ends = json.loads(run.stdout)
    assert len(ends) > 40
    assert len({end for _, end in ends}) == 1, ends


def _cut_small_pieces(patch):
    patch.setattr("ado_stream.prepare.documents.PIECE_BYTES", 20_000)
    patch.setattr("ado_stream.prepare.line_blocks._READ_BYTES", 4_000)


@pytest.fixture(scope="module")
def unfinished(pile, tmp_path_factory):
    """A folder `out` that a run left in its middle, and the config of the run."""
    folder = tmp_path_factory.mktemp("unfinished")
    config = PrepareConfig(
        (pile[0][1],), str(folder / "out"), seq_len=64, domain_key="meta.pile_set_name", tokenizer="bpe:300",
        val=(pile[0][0],), shard_bytes=1 << 13, workers=1,
    )  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        _cut_small_pieces(patch)
        patch.setattr("ado_stream.prepare.packing._COMMIT_EVERY_S", 0.0)
        add, blocks = Packer.add, itertools.count()

        def stop_later(packer, result):
            if next(blocks) == 5:
                raise KeyboardInterrupt
            add(packer, result)

        patch.setattr(Packer, "add", stop_later)
        with pytest.raises(KeyboardInterrupt):
            prepare(config)
    return folder / "out", config


@pytest.mark.parametrize("damage", [lambda data: data[:-5], lambda data: b"", lambda data: b"\xff\0[{" * 10])
@pytest.mark.parametrize(
    "name", ["journal.json", "published.jsonl", "val_hashes.npy", "plan", "tokenizer/tokenizer.json"]
)
def test_a_damaged_working_folder_is_named(unfinished, tmp_path, name, damage, monkeypatch):
    _cut_small_pieces(monkeypatch)
    out, config = unfinished
    copy = shutil.copytree(out, tmp_path / "out")
    path = next((copy / ".prepare").glob(name))
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(AdoStreamError, match=rf"{copy}/\.prepare(?s:.*)([Rr]emove (th|its)|Expected bytes)"):
        prepare(dataclasses.replace(config, out=str(copy)))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("repeated", ["x"]),
        ("repeated", [1 << 64]),
        ("spools", [["a", "train"]]),
        ("spools", [["a", 1, {}]]),
        ("spools", [["a", "../x", vars(SpoolState())]]),
        ("spools", [["a", "train", {"documents": 1}]]),
    ],
)
def test_a_journal_of_other_types_is_named(unfinished, tmp_path, key, value, monkeypatch):
    _cut_small_pieces(monkeypatch)
    out, config = unfinished
    copy = shutil.copytree(out, tmp_path / "out")
    path = copy / ".prepare/journal.json"
    path.write_text(json.dumps({**json.loads(path.read_bytes()), key: value}))
    with pytest.raises(StorageError, match=rf"{path}: damaged: journal\.json"):
        prepare(dataclasses.replace(config, out=str(copy)))


@pytest.mark.parametrize(("place", "value"), [(0, 3), (1, "../x"), (2, "x"), (3, {"samples": 1}), (3, [])])
def test_a_list_of_shards_of_other_types_is_named(unfinished, tmp_path, place, value, monkeypatch):
    _cut_small_pieces(monkeypatch)
    out, config = unfinished
    copy = shutil.copytree(out, tmp_path / "out")
    path, journal = copy / ".prepare/published.jsonl", copy / ".prepare/journal.json"
    first, *rest = map(json.loads, path.read_bytes().splitlines())
    first[place] = value
    path.write_text("".join(json.dumps(line) + "\n" for line in [first, *rest]))
    journal.write_text(json.dumps({**json.loads(journal.read_bytes()), "published_bytes": path.stat().st_size}))
    with pytest.raises(StorageError, match=rf"{path}: damaged: published\.jsonl"):
        prepare(dataclasses.replace(config, out=str(copy)))


@pytest.mark.parametrize("damage", ["removed", "cut"])
def test_a_finished_shard_that_is_gone_is_named(unfinished, tmp_path, damage, monkeypatch):
    """By a cleaner of old files; its tokens are not kept twice."""
    _cut_small_pieces(monkeypatch)
    out, config = unfinished
    copy = shutil.copytree(out, tmp_path / "out")
    path = next((copy / ".prepare" / "corpus").rglob("shard.00000.mds.zstd"))
    if damage == "removed":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(AdoStreamError, match=rf"{path}: not there as.*\n.*remove the working folder"):
        prepare(dataclasses.replace(config, out=str(copy)))


def _children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.mark.deadline
@pytest.mark.slow
def test_killed_with_its_workers_at_random_times_it_ends_the_same(tmp_path, pile, write_jsonl, tree_hashes):
    source = write_jsonl(
        tmp_path / "in.jsonl.zst", [{**d, "text": f"{n} {d['text']}"} for n in range(40) for d in pile[1]]
    )
    clean, out = tmp_path / "clean", tmp_path / "out"
    options = ["--tokenizer", "bpe:400", "--shard-mb", "0.25", "--workers", "2", str(source), "--out"]
    begun_s = time.monotonic()
    subprocess.run([*COMMAND, *options, str(clean)], check=True, capture_output=True, timeout=300)
    whole_s = time.monotonic() - begun_s
    draw = random.Random(5)
    for _ in range(6):
        process = subprocess.Popen([*COMMAND, *options, str(out)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(draw.uniform(0.1, 1.0) * whole_s)
        workers = _children(process.pid) if process.poll() is None else []
        process.send_signal(signal.SIGKILL)
        process.wait()
        deadline_s = time.monotonic() + 10
        while any(Path(f"/proc/{worker}").exists() for worker in workers):
            assert time.monotonic() < deadline_s, "a worker outlived its parent by ten seconds"
            time.sleep(0.05)
    subprocess.run([*COMMAND, *options, str(out)], check=True, capture_output=True, timeout=300)
    assert tree_hashes(out) == tree_hashes(clean)
    assert sorted(os.listdir(out)) == sorted(os.listdir(clean))
