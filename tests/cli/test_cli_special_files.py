"""A FIFO in place of any file that a verb reads: one line and exit code 1, instead of waiting for its writer."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml

from ado_stream.cli.main import main
from ado_stream.train.run_control import read_answer, submit
from tests.stream.flat_data import make_documents, write_megatron
from tests.train.conftest import finished, finished_once, settings  # noqa: F401

pytestmark = pytest.mark.timeout(120)  # where the protection is gone they do not end

LIST = """
seq_len: 32
tokenizer: bytes
domains: {web: {format: megatron, path: web}, code: {format: npy, path: code.npy}}
"""


@pytest.fixture
def place(tmp_path, tiny_corpus, finished):  # noqa: F811
    """A folder with a corpus, a listed corpus, the finished run of `settings`, a config and losses."""
    shutil.copytree(tiny_corpus, tmp_path / "corpus")
    write_megatron(tmp_path / "web", make_documents(1, vocab_size=200))
    np.save(tmp_path / "code.npy", np.concatenate(make_documents(2, vocab_size=200)).astype(np.uint16))
    (tmp_path / "corpus.yaml").write_text(LIST)
    (tmp_path / "spec.yaml").write_text("steps: 3\n")
    (tmp_path / "losses.csv").write_text("step,a\n1,2\n")
    config = yaml.safe_load(Path(finished, "config.yaml").read_text())
    config |= {"corpus": "corpus", "run_dir": "run"}
    config["train"]["steps"] = 14
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    return tmp_path


def as_fifo(path: Path) -> None:
    path.unlink(missing_ok=True)
    os.mkfifo(path)


CASES = {
    "corpus/easy/train/index.json": ["lint", "corpus"],
    "corpus/easy/train/shard.00000.mds.zstd": ["lint", "corpus"],
    "corpus.yaml": ["info", "corpus.yaml"],
    "web.idx": ["info", "corpus.yaml"],
    "web.bin": ["lint", "corpus.yaml"],
    "code.npy": ["info", "corpus.yaml"],
    "config.yaml": ["train", "config.yaml", "--dry-run"],
    "spec.yaml": ["simulate", "spec.yaml"],
    "losses.csv": ["fit", "losses.csv"],
    "run/record.jsonl": ["replay", "run", "--policy", "natural"],
    "run/config.yaml": ["trace", "run", "--step", "3"],
    "run/control": ["control", "run", "release", "easy", "--wait", "0"],
}


@pytest.mark.parametrize("name", CASES)
def test_a_fifo_in_place_of_a_file_fails_in_one_line(place, monkeypatch, capsys, name):
    monkeypatch.chdir(place)
    if (place / name).is_dir():
        shutil.rmtree(place / name)
    as_fifo(place / name)
    assert main(CASES[name]) == 1
    assert capsys.readouterr().err.count("\n") <= 3


@pytest.mark.parametrize(
    "name",
    [
        "config.yaml",
        "checkpoints/step_00000012",
        "checkpoints/step_00000012/COMMIT.json",
        "checkpoints/step_00000012/state.json",
    ],
)
def test_a_run_goes_on_without_what_a_fifo_has_replaced(place, monkeypatch, capsys, name):
    monkeypatch.chdir(place)
    if (place / "run" / name).is_dir():
        shutil.rmtree(place / "run" / name)
    as_fifo(place / "run" / name)
    assert main(["train", "config.yaml"]) == 0
    assert "step 14" in capsys.readouterr().out


def test_an_order_that_is_a_fifo_is_refused(place, monkeypatch):
    monkeypatch.chdir(place)
    order = submit(Path("run"), ["release", "easy"])
    as_fifo(order)
    assert main(["train", "config.yaml"]) == 0
    answer = read_answer(order)
    assert answer is not None
    assert "not a regular file" in answer["refused"]
