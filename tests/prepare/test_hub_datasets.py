"""Data sets that the datasets library reads give the corpus of their rows as JSON lines, with all promises of prepare.

The hub cannot be reached: folders stand in for it, by the same call of the library.
"""

import dataclasses
import json
import logging
import shutil

import datasets
import pytest

from ado_stream.errors import ConfigError, DataError, StorageError
from ado_stream.prepare import hub_datasets
from ado_stream.prepare.coordinator import prepare
from ado_stream.prepare.hub_datasets import DataSet, find_shards
from ado_stream.prepare.input_files import find_input_files
from ado_stream.prepare.packing import Packer
from ado_stream.prepare.prepare_config import PrepareConfig
from ado_stream.prepare.record_errors import RecordErrors

CARD = """---
configs:
- config_name: all
  default: true
  data_files:
  - {split: train, path: train-*.ENDING}
  - {split: validation, path: held.ENDING}
- config_name: few
  data_files:
  - {split: other, path: train-1.ENDING}
---
"""


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Many pieces and a commit after each."""
    monkeypatch.setattr("ado_stream.prepare.documents.PIECE_BYTES", 20_000)
    monkeypatch.setattr(hub_datasets, "_ROWS_AT_ONCE", 16)
    monkeypatch.setattr("ado_stream.prepare.packing._COMMIT_EVERY_S", 0.0)


@pytest.fixture(scope="module")
def rows(pile):
    """Documents, one of them empty, with columns that are not read."""
    return [{**each, "n": n, "text": each["text"] if n != 77 else ""} for n, each in enumerate(pile[1])]


@pytest.fixture(scope="module", params=["parquet", "jsonl", "saved"])
def folder(request, rows, tmp_path_factory):
    """A data set of three training shards, of a kind of file with a card, or as save_to_disk writes it."""
    place = tmp_path_factory.mktemp("data") / "tiny"
    every = datasets.Dataset.from_list(rows)
    if request.param == "saved":
        few = {"train": every.select(range(500)), "validation": every.select(range(500, 600))}
        saved = datasets.DatasetDict(**few, other=every.select(range(200, 250)))
        saved.save_to_disk(place, num_shards={"train": 3, "validation": 3, "other": 1})
        return place
    place.mkdir()
    (place / "README.md").write_text(CARD.replace("ENDING", request.param))
    parts = {"train-0": (0, 200), "train-1": (200, 250), "train-2": (250, 500), "held": (500, 600)}
    for name, (begin, end) in parts.items():
        write = every.select(range(begin, end))
        (write.to_parquet if request.param == "parquet" else write.to_json)(place / f"{name}.{request.param}")
    return place


@pytest.fixture(scope="module")
def carded(rows, tmp_path_factory):
    """A data set of three shards with a card."""
    place = tmp_path_factory.mktemp("carded") / "tiny"
    place.mkdir()
    (place / "README.md").write_text(CARD.replace("ENDING", "parquet"))
    for name in ("train-0", "train-1", "train-2", "held"):
        datasets.Dataset.from_list(rows[:20]).to_parquet(place / f"{name}.parquet")
    return place


def _config(given, out, **settings):
    defaults = {"seq_len": 64, "domain_key": "meta.pile_set_name", "shard_bytes": 1 << 14, "workers": 1}
    return PrepareConfig((str(given),), str(out), **{**defaults, **settings})


def _assert_equal(tree_hashes, found, expected):
    """All but `source`, which names the input."""
    hashes, manifests = [tree_hashes(place) for place in (found, expected)], []
    for place, each in zip((found, expected), hashes, strict=True):
        del each["corpus.json"]
        manifests.append(json.loads((place / "corpus.json").read_bytes()) | {"source": ""})
    assert hashes[0] == hashes[1]
    assert manifests[0] == manifests[1]


@pytest.mark.parametrize(
    "settings",
    [
        {"val": True},
        {"tokenizer": "bpe:400", "val_frac": 0.2, "executor": "ray"},
        pytest.param({"val": True, "workers": 2}, marks=pytest.mark.slow),
    ],
    ids=["val", "parts", "processes"],
)
def test_the_corpus_is_that_of_the_rows(folder, rows, tmp_path, tree_hashes, write_jsonl, settings, threads):
    lines = [write_jsonl(tmp_path / name, part) for name, part in (("a.jsonl", rows[:500]), ("val.jsonl", rows[500:]))]
    for out, given, val in (("hf", f"hf:{folder}", f"hf:{folder}"), ("lines", lines[0], lines[1])):
        held_out = {"val": (str(val),)} if settings.get("val") else {}
        prepare(_config(given, tmp_path / out, **{**settings, **held_out}))
    _assert_equal(tree_hashes, tmp_path / "hf", tmp_path / "lines")
    assert json.loads((tmp_path / "hf/corpus.json").read_bytes())["refused"] == {"empty document": 1}


def test_any_split_of_any_configuration_is_a_domain(folder, rows, tmp_path, tree_hashes, write_jsonl):
    config = "" if (folder / "dataset_dict.json").exists() else "few"
    prepare(_config(f"hf:{folder}:{config}:other", tmp_path / "hf", domain_key=None))
    lines = write_jsonl(tmp_path / f"tiny{'-few' if config else ''}.jsonl", rows[200:250])
    prepare(_config(lines, tmp_path / "lines", domain_key=None))
    _assert_equal(tree_hashes, tmp_path / "hf", tmp_path / "lines")


def test_a_killed_run_goes_on_and_does_nothing_twice(folder, tmp_path, tree_hashes, monkeypatch):
    config = _config(f"hf:{folder}", tmp_path / "out", tokenizer="bpe:300")
    prepare(dataclasses.replace(config, out=str(tmp_path / "clean")))
    taken, add = [], Packer.add

    def stop_later(packer, result):
        if stop and len(taken) == 7:
            raise KeyboardInterrupt
        taken.append(result)
        add(packer, result)

    monkeypatch.setattr(Packer, "add", stop_later)
    stop = True
    with pytest.raises(KeyboardInterrupt):
        prepare(config)
    stop, taken[:] = False, []
    prepare(config)
    assert tree_hashes(tmp_path / "out") == tree_hashes(tmp_path / "clean")
    whole = len(taken) + 7
    taken.clear()
    prepare(dataclasses.replace(config, out=str(tmp_path / "again")))
    assert len(taken) == whole > 10


def test_other_content_is_another_corpus(folder, rows, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "copy" / "tiny")
    prepare(_config(f"hf:{copy}", tmp_path / "out"))
    before = {shard.shard: stamp for shard, _, stamp in find_shards(f"hf:{copy}", "train")}
    prepare(_config(f"hf:{copy}", tmp_path / "out"))  # the same: nothing to do
    if (copy / "dataset_dict.json").exists():
        shutil.rmtree(copy)
        datasets.DatasetDict(train=datasets.Dataset.from_list(rows[1:])).save_to_disk(copy)
    else:
        path = next(copy.glob("train-1.*"))
        path.write_bytes(path.read_bytes())  # of another time
    assert set(before.values()).isdisjoint(stamp for _, _, stamp in find_shards(f"hf:{copy}", "train"))
    with pytest.raises(ConfigError, match="a corpus of other input or settings"):
        prepare(_config(f"hf:{copy}", tmp_path / "out"))


def test_a_missing_key_is_named_with_the_keys_that_are_there(folder, tmp_path):
    config = _config(f"hf:{folder}", tmp_path / "out", text_key="body")
    with pytest.raises(DataError, match=r"#00000: row 0: no text under key 'body'; keys: .*text"):
        prepare(config)
    with pytest.raises(DataError, match=r"no domain under key 'meta.set'.*keys: .*n"):
        prepare(dataclasses.replace(config, text_key="text", domain_key="meta.set"))


def test_a_bad_row_stops_or_is_counted(rows, tmp_path):
    bad = [dict(row) for row in rows[:30]]
    bad[11]["text"] = None
    datasets.Dataset.from_list(bad).save_to_disk(tmp_path / "bad")
    config = _config(f"hf:{tmp_path}/bad", tmp_path / "out")
    with pytest.raises(DataError, match=r"bad::train#00000: row 11: no text under key 'text': found null"):
        prepare(config)
    prepare(dataclasses.replace(config, skip_errors=True))
    manifest = json.loads((tmp_path / "out/corpus.json").read_bytes())
    assert manifest["refused"] == {"no text": 1}
    assert sum(domain["documents"] for domain in manifest["domains"].values()) == 29


@pytest.mark.parametrize("ending", ["parquet", "jsonl"])
def test_a_damaged_shard_stops_or_its_rest_is_counted(rows, tmp_path, ending):
    place = tmp_path / "cut"
    place.mkdir()
    (place / "README.md").write_text(
        "---\nconfigs: [{config_name: a, data_files: '*.ENDING'}]\n---\n".replace("ENDING", ending)
    )
    every = datasets.Dataset.from_list(rows[:400])
    for number in range(2):
        part = every.select(range(200 * number, 200 * number + 200))
        (part.to_parquet if ending == "parquet" else part.to_json)(place / f"{number}.{ending}", batch_size=50)
    data = bytearray((place / "1.parquet" if ending == "parquet" else place / "1.jsonl").read_bytes())
    middle = len(data) // 2
    data[middle : middle + 400] = b"\xff" * 400
    (place / f"1.{ending}").write_bytes(data)
    config = _config(f"hf:{place}", tmp_path / "out")
    with pytest.raises(DataError, match=r"cut::train#00001: row \d+ or after: (?s:.*)The file is damaged"):
        prepare(config)
    prepare(dataclasses.replace(config, skip_errors=True))
    manifest = json.loads((tmp_path / "out/corpus.json").read_bytes())
    assert manifest["refused"] == {"empty document": 1, "file damaged, its rest left out": 1}
    assert 199 <= sum(domain["documents"] for domain in manifest["domains"].values()) < 400


def test_what_is_not_there_is_named(folder, tmp_path):
    named = f"hf:{folder}"
    for given, message in (
        (f"{named}::nope", "nope"),
        (f"{named}:nope", "nope|no configurations"),
        (f"hf:{tmp_path}/nowhere", "no such folder"),
        ("hf:", "expected hf:NAME"),
        ("hf:a:b:c:d", "expected hf:NAME"),
    ):
        with pytest.raises(ConfigError, match=message):
            prepare(_config(given, tmp_path / "out"))
    with pytest.raises(ConfigError, match="is inside the input"):
        _config(named, folder / "out")
    with pytest.raises(ConfigError, match="given twice"):
        prepare(dataclasses.replace(_config(named, tmp_path / "out"), inputs=(named, f"{named}::train")))


def test_a_folder_that_is_gone_is_no_name_of_the_hub(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    with pytest.raises(ConfigError, match=r"hf:data/wiki: no such folder, though data is one.*@REVISION"):
        DataSet.parse("hf:data/wiki")
    assert not DataSet.parse("hf:data/wiki@main").is_local
    assert not DataSet.parse("hf:other/wiki").is_local


def test_a_name_of_the_hub_is_pinned_to_the_revision_that_was_found(carded, monkeypatch):
    """load_dataset_builder gets name, configuration and revision; readers get the commit of the first look."""
    asked, load = [], datasets.load_dataset_builder

    def stand_in(name, config=None, revision=None):
        asked.append((name, config, revision))
        builder = load(str(carded))
        builder.config.data_files["train"].origin_metadata = [("owner/tiny", "c0ffee")] * 3
        return builder

    monkeypatch.setattr(datasets, "load_dataset_builder", stand_in)
    shards = list(find_shards("hf:owner/tiny@main:all", "train"))
    assert asked == [("owner/tiny", "all", "main")]
    assert [str(shard) for shard, _, _ in shards] == [f"hf:owner/tiny@c0ffee:all:train#{n:05}" for n in range(3)]
    shards = list(find_shards("hf:owner/tiny", "train"))
    assert str(shards[1][0]) == "hf:owner/tiny@c0ffee::train#00001"
    assert DataSet.parse(str(shards[1][0])) == shards[1][0]
    assert shards[1][0].domain == "tiny"


@pytest.mark.parametrize("split", ["train+validation", "all"])
def test_several_splits_are_not_one(carded, split):
    """Their files would not be recognised: those of validation would be trained on beside --val."""
    with pytest.raises(ConfigError, match="more than one split. Give each as an input; there are: train, validation"):
        list(find_shards(f"hf:{carded}:all:{split}", "train"))


def test_a_file_of_the_hub_is_the_same_in_every_configuration(carded, monkeypatch):
    opened = hub_datasets._open

    def stand_in(data_set):
        here = opened(dataclasses.replace(data_set, name=str(carded)))
        return dataclasses.replace(here, files=[f"hf://{file}" for file in here.files])

    stand_in.cache_clear = opened.cache_clear
    monkeypatch.setattr(hub_datasets, "_open", stand_in)
    with pytest.raises(ConfigError, match="files of it are given as --val too"):
        find_input_files(["hf:some/name:all"], "train", False, ["hf:some/name:few:other"])
    with pytest.raises(ConfigError, match=r"given twice \(as hf:some/name:all:train\)"):
        find_input_files(["hf:some/name:all", "hf:some/name:few:other"], "train", False)


def test_the_hubs_own_notes_on_its_retries_are_not_printed(monkeypatch):
    """They are pages long."""
    log, printed = logging.getLogger("huggingface_hub.utils._http"), []

    def fail(*arguments, **options):
        printed.append(log.isEnabledFor(logging.ERROR))
        raise OSError("no network")

    monkeypatch.setattr(datasets, "load_dataset_builder", fail)
    with pytest.raises(StorageError, match="cannot be opened: no network"):
        list(find_shards("hf:some/name", "train"))
    assert printed == [False]
    assert log.isEnabledFor(logging.ERROR)


def test_a_network_that_fails_is_no_damage(carded, tmp_path, monkeypatch):
    """Skipping must not take what was not fetched for damaged text."""

    def unreachable(*arguments, **options):
        raise ConnectionError("Couldn't reach the Hub")

    opened = hub_datasets._open(DataSet.parse(f"hf:{carded}"))
    failing = dataclasses.replace(opened, rows=opened.rows.map(unreachable))
    with monkeypatch.context() as patch:
        patch.setattr(datasets, "load_dataset_builder", unreachable)
        with pytest.raises(StorageError, match=r"hf:owner/tiny::train: cannot be opened: Couldn't reach the Hub\.\n"):
            prepare(_config("hf:owner/tiny", tmp_path / "out"))
    monkeypatch.setattr(hub_datasets, "_open", lambda data_set: failing)
    blocks = hub_datasets.record_blocks("hf:owner/tiny::train#0", 1, 1, ["text"], RecordErrors(skip=True))
    with pytest.raises(StorageError, match=r"row 0 or after: Couldn't reach the Hub\.\n  Finished work is kept"):
        list(blocks)
