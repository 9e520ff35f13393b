"""Training from a corpus.yaml of files of tokens and prepared shards: exact after a crash, and on two ranks."""

import json
from pathlib import Path

import numpy as np
import pytest
import yaml

from ado_stream.cli.main import main
from ado_stream.record import read_run
from ado_stream.stream import flat_index
from tests.stream.flat_data import make_documents, write_megatron, write_raw
from tests.train import ledger_run
from tests.train.run_helpers import changed, checkpoint_tensors, interrupt, untimed_lines

END = 256


def documents(number: int, count: int) -> list[np.ndarray]:
    """Documents of the byte tokenizer."""
    return [np.append(32 + tokens[:-1] % 90, END) for tokens in make_documents(number, count)]


@pytest.fixture
def listed(settings: dict, tiny_corpus: Path, tmp_path: Path, monkeypatch) -> dict:
    """`settings` of a run on a corpus.yaml."""
    monkeypatch.setattr(flat_index, "SHARD_BYTES", 2000)
    write_megatron(tmp_path / "data" / "web", documents(0, 200))
    write_megatron(tmp_path / "data" / "web_val", documents(1, 20))
    write_raw(tmp_path / "data" / "code" / "0.npy", np.concatenate(documents(2, 150)))
    content = {
        "seq_len": 32,
        "tokenizer": "bytes",
        "domains": {
            "web": {"format": "megatron", "path": "data/web", "val": "data/web_val"},
            "code": {"format": "npy", "path": "data/code", "token_dtype": "uint16"},
            "easy": {"path": f"{tiny_corpus}/easy/train", "val": f"{tiny_corpus}/easy/val"},
        },
    }
    (tmp_path / "corpus.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    return {**settings, "corpus": str(tmp_path / "corpus.yaml")}


def train(settings: dict, path: Path) -> None:
    path.write_text(json.dumps(settings))
    assert main(["train", str(path)]) == 0


def test_a_crash_changes_nothing_and_every_verb_of_a_run_works(listed, tmp_path, monkeypatch, capsys):
    whole = changed(listed, run_dir=str(tmp_path / "whole"))
    train(whole, tmp_path / "whole.json")
    interrupt(listed, monkeypatch)
    train(listed, tmp_path / "resumed.json")
    assert untimed_lines(listed["run_dir"]) == untimed_lines(whole["run_dir"])
    assert checkpoint_tensors(listed["run_dir"], 12) == checkpoint_tensors(whole["run_dir"], 12)
    metadata, lines = read_run(whole["run_dir"])
    assert list(metadata["corpus"]["domains"]) == ["web", "code", "easy"]
    losses = lines["eval"][-1]["domain_loss"]
    assert [loss is None for loss in losses] == [False, True, False]  # code has no validation text
    capsys.readouterr()
    assert main(["preview", whole["run_dir"], "--step", "3", "--json"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 8
    assert main(["train", str(tmp_path / "whole.json"), "--dry-run"]) == 0
    assert main(["info", listed["corpus"], "--policy", "natural", "--steps", "10"]) == 0


@pytest.mark.slow
def test_two_ranks_read_what_one_reads(listed, children, tmp_path):
    found = []
    for num_ranks in (1, 2):
        given = changed(listed, run_dir=str(tmp_path / f"run{num_ranks}"), policy={"name": "natural", "options": {}})
        (tmp_path / f"{num_ranks}.json").write_text(json.dumps(given))
        (tmp_path / f"ledger{num_ranks}").mkdir()
        children.run(
            ledger_run.main,
            str(tmp_path / f"{num_ranks}.json"),
            str(tmp_path / f"ledger{num_ranks}"),
            num_ranks=num_ranks,
        )
        found.append(ledger_run.read_ledger(tmp_path / f"ledger{num_ranks}"))
    assert found[0] == found[1]
    assert len(found[0]) == 12 * 8
