"""Held-out text is not trained on: by the file, whatever its path, and by the text of a document."""

import json
import os

import datasets
import numpy as np
import pytest

from ado_stream.cli.main import main
from ado_stream.corpus.checker import CorpusChecker
from ado_stream.errors import ConfigError
from ado_stream.prepare.coordinator import prepare
from ado_stream.prepare.input_files import find_input_files
from ado_stream.prepare.prepare_config import PrepareConfig


def _write(path, texts):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps({"text": text, "set": "d"}) + "\n" for text in texts))
    return path


TRAIN = [f"training text {n} " * 5 for n in range(40)]
VAL = [f"held-out text {n} " * 5 for n in range(20)]


@pytest.fixture
def data(tmp_path):
    _write(tmp_path / "data/train.jsonl", TRAIN)
    _write(tmp_path / "data/val.jsonl", VAL)
    return tmp_path / "data"


def _config(inputs, out, val, **settings):
    defaults = {"seq_len": 31, "domain_key": "set", "workers": 1, "shard_bytes": 1 << 13}
    return PrepareConfig(tuple(map(str, inputs)), str(out), val=tuple(map(str, val)), **{**defaults, **settings})


def _text(out, split):
    checker = CorpusChecker(out)
    tokens = np.concatenate([checker.shard("d", split, entry) for entry in checker.index("d", split)]).ravel()
    return bytes(tokens[tokens < 256].astype(np.uint8)).decode()


def _spellings(data):
    link = data.parent / "link.jsonl"
    link.symlink_to(data / "val.jsonl")
    hard = data.parent / "hard.jsonl"
    os.link(data / "val.jsonl", hard)
    folder = data.parent / "folder"
    folder.symlink_to(data)
    return {
        "the path": ([data / "train.jsonl", data / "val.jsonl"], [data / "val.jsonl"]),
        "a folder": ([data], [data / "val.jsonl"]),
        "a link to the file": ([data], [link]),
        "a link to the folder": ([data], [folder / "val.jsonl"]),
        "a hard link": ([data], [hard]),
        "dots": ([data], [data / ".." / "data" / "val.jsonl"]),
        "the link as input": ([data / "train.jsonl", link], [data / "val.jsonl"]),
    }


def test_a_validation_file_is_left_out_of_training_however_it_is_spelled(data, tmp_path, caplog):
    for name, (inputs, val) in _spellings(data).items():
        out = tmp_path / "out" / name
        caplog.clear()
        prepare(_config(inputs, out, val))
        assert "held-out" not in _text(out, "train"), name
        assert "training" not in _text(out, "val"), name
        assert json.loads((out / "corpus.json").read_bytes())["domains"]["d"]["splits"]["val"]["documents"] == 20
        assert "left out: 1 x file of --val, left out of training" in caplog.text, name


def test_a_domain_of_validation_files_alone_is_refused_before_any_work(data, tmp_path):
    """As in `prepare data/*.jsonl --val data/val.jsonl`, where each file is a domain."""
    with pytest.raises(
        ConfigError, match=r"val\.jsonl: its domain 'val' has validation documents only.*\n.*--domain-key"
    ):
        prepare(_config(data.iterdir(), tmp_path / "out", [data / "val.jsonl"], domain_key=None))
    assert not (tmp_path / "out").exists()


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A data set as save_to_disk writes it, of two files a split."""
    place = tmp_path_factory.mktemp("saved") / "tiny"
    parts = {name: datasets.Dataset.from_dict({"text": some}) for name, some in (("train", TRAIN), ("other", VAL))}
    datasets.DatasetDict(parts).save_to_disk(place, num_shards={"train": 2, "other": 2})
    return place


def test_a_saved_data_set_and_its_files_are_the_same_text_by_any_path(saved, tmp_path):
    link = tmp_path / "link"
    link.symlink_to(saved)
    files = sorted((saved / "other").glob("*.arrow"))
    for inputs, val in (
        ([saved / "train", saved / "other"], [f"hf:{saved}::other"]),
        ([f"hf:{saved}", f"hf:{saved}::other"], files),
        ([f"hf:{saved}", f"hf:{link}::other"], [f"hf:{saved}::other"]),
    ):
        found = find_input_files(inputs, "train", False, val)
        assert {"other" in file.path for file in found.files if file.split == "train"} == {False}
        assert found.left_out["file of --val, left out of training"] == 2
    with pytest.raises(ConfigError, match=r"::other: files of it are given as --val too"):
        find_input_files([f"hf:{saved}", f"hf:{saved}::other"], "train", False, files[:1])
    for twice in ([f"hf:{saved}", f"hf:{link}"], [f"hf:{saved}", saved / "train"], [f"hf:{saved}", f"hf:{saved}"]):
        with pytest.raises(ConfigError, match="given twice"):
            find_input_files(twice, "train", False)


@pytest.mark.parametrize("name", ["a.jsonl.zst", "a.jsonl.gz", "a.jsonl.ZST", "a.json.gz", "a.parquet", "a.ARROW"])
@pytest.mark.parametrize("held_out", [True, False])
def test_what_differs_in_its_ending_alone_is_refused_as_a_copy(tmp_path, name, held_out):
    """`zstd a.jsonl`, `gunzip -k` and what converts a file leave both."""
    for each in ("a.jsonl", name, "b.jsonl.gz", "a.txt"):
        (tmp_path / "x" / each).parent.mkdir(exist_ok=True)
        (tmp_path / "x" / each).write_text("x")
    val = [tmp_path / "x/a.jsonl"] if held_out else []
    with pytest.raises(ConfigError, match=r"differs from .* in its ending alone.*\n.*rename"):
        find_input_files([tmp_path / "x"], "train", False, val)
    (tmp_path / "x/a.jsonl").rename(tmp_path / "x/a.json")
    for given in (tmp_path / "x/a.json", tmp_path / "x/a.JSON"):
        (tmp_path / "x/a.json").replace(given)
        with pytest.raises(ConfigError, match=r"in its ending alone"):
            find_input_files([tmp_path / "x", given], "train", False)
    assert len(find_input_files([tmp_path / "x"], "train", False).files) == 3


def test_text_that_is_named_as_held_out_and_trained_on_is_named(data, tmp_path):
    notes = find_input_files([data], "train", True).notes
    assert notes == [f"trained on, though named as held-out text is: {data}/val.jsonl; if they are, give them as --val"]
    assert find_input_files([data], "train", False, [data / "val.jsonl"]).notes == []
    _write(tmp_path / "test" / "val" / "train.jsonl", TRAIN)
    assert (
        find_input_files([tmp_path / "test" / "val"], "train", True).notes == []
    )  # the names that are given are meant


def test_nothing_left_to_train_on_is_refused(data, tmp_path):
    with pytest.raises(ConfigError, match="nothing is left to train on"):
        prepare(_config([data / "val.jsonl"], tmp_path / "out", [data / "val.jsonl"]))


@pytest.mark.parametrize("workers", [1, 2])
def test_validation_documents_with_a_training_text_are_counted_and_their_copies_can_be_dropped(
    tmp_path, workers, capsys
):
    train = _write(tmp_path / "train.jsonl", [*TRAIN, VAL[3], VAL[3], VAL[7]])
    val = _write(tmp_path / "val.jsonl", [*VAL, VAL[3]])
    prepare(_config([train], tmp_path / "kept", [val], workers=workers))
    manifest = json.loads((tmp_path / "kept/corpus.json").read_bytes())
    assert manifest["val_in_train"] == 3  # texts 3, twice, and 7
    assert manifest["domains"]["d"]["splits"]["train"]["documents"] == 43
    assert main(["info", str(tmp_path / "kept")]) == 0
    assert "3 validation documents have exactly the text of a training document" in capsys.readouterr().out

    prepare(_config([train], tmp_path / "dropped", [val], workers=workers, drop_duplicates_of_val=True))
    manifest = json.loads((tmp_path / "dropped/corpus.json").read_bytes())
    assert "val_in_train" not in manifest
    assert manifest["domains"]["d"]["splits"]["train"]["documents"] == 40
    assert manifest["domains"]["d"]["splits"]["val"]["documents"] == 21
    assert manifest["refused"] == {"training document with the text of a validation document": 3}
    assert "held-out" not in _text(tmp_path / "dropped", "train")


def test_without_copies_the_corpus_is_the_same_with_and_without_dropping(data, tmp_path, tree_hashes):
    for name, drop in (("kept", False), ("dropped", True)):
        prepare(_config([data], tmp_path / name, [data / "val.jsonl"], drop_duplicates_of_val=drop))
    kept, dropped = tree_hashes(tmp_path / "kept"), tree_hashes(tmp_path / "dropped")
    assert kept.pop("corpus.json") != dropped.pop("corpus.json")  # `source` names the option
    assert kept == dropped


def test_a_dropped_document_trains_no_tokenizer(tmp_path):
    secret = "xylophonic " * 400
    train = _write(tmp_path / "train.jsonl", [*TRAIN, secret])
    val = _write(tmp_path / "val.jsonl", [*VAL, secret])
    for name, drop in (("kept", False), ("dropped", True)):
        prepare(_config([train], tmp_path / name, [val], tokenizer="bpe:280", drop_duplicates_of_val=drop))
    assert "xyl" in (tmp_path / "kept/tokenizer.json").read_text()
    assert "xyl" not in (tmp_path / "dropped/tokenizer.json").read_text()


def test_dropping_needs_validation_files(tmp_path):
    with pytest.raises(ConfigError, match="no validation files"):
        _config(["in"], tmp_path, [], drop_duplicates_of_val=True)
