"""What a run resumes from: a named checkpoint, a copied run directory, a checkpoint of other domains."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from ado_stream.cli.main import main
from ado_stream.errors import CheckpointError, ResumeError
from ado_stream.evaluate.trained_run import open_run
from ado_stream.record import read_run
from ado_stream.train.resume import find_resume_point
from ado_stream.train.run_config import load_config
from ado_stream.train.trainer import run_training
from tests.train.others_files import run_verbs
from tests.train.run_helpers import changed, checkpoint_tensors, interrupt, untimed_lines


def test_an_explicit_checkpoint_must_be_valid(tmp_path: Path):
    incomplete = tmp_path / "step_00000003"
    incomplete.mkdir()
    with pytest.raises(CheckpointError, match="COMMIT.json is missing; the save did not finish"):
        find_resume_point(tmp_path / "new", str(incomplete))


def test_what_resume_names_must_be_a_checkpoint(tmp_path: Path):
    """A folder of checkpoints is refused: the user must say which one is meant."""
    folders = {
        "absent": "no such directory. Name a checkpoint, such as RUN/checkpoints/step_00000300, or auto.",
        "run": f"contains checkpoints, is not one. Name one of them, such as {tmp_path}/run/checkpoints/step_00000008.",
        "run/checkpoints": f"contains checkpoints, is not one. Name one of them, such as {tmp_path}/run/checkpoints/",
        "empty": "not a checkpoint directory; expected a name such as step_00000300.",
    }
    for name in ("run/checkpoints/step_00000004", "run/checkpoints/step_00000008", "empty"):
        (tmp_path / name).mkdir(parents=True)
    for name, message in folders.items():
        with pytest.raises(CheckpointError) as caught:
            find_resume_point(tmp_path / "new", str(tmp_path / name))
        assert str(caught.value).startswith(f"{tmp_path / name}: {message}")


def test_a_run_directory_may_be_copied_and_resumed_there(
    finished_once: Path, settings: dict, tmp_path: Path, monkeypatch
):
    """Equal to the bit to the uninterrupted run, with the id of the first; the original is unchanged."""
    interrupt(settings, monkeypatch)
    original, copy = Path(settings["run_dir"]), tmp_path / "another disk" / "run"
    before = {path: path.stat().st_mtime_ns for path in original.rglob("*")}
    shutil.copytree(original, copy)
    (copy.parent / "copied.yaml").write_text(json.dumps(changed(settings, run_dir=str(copy))))
    assert main(["train", str(copy.parent / "copied.yaml")]) == 0
    assert untimed_lines(copy) == untimed_lines(finished_once)
    assert checkpoint_tensors(copy, 12) == checkpoint_tensors(finished_once, 12)
    assert read_run(copy)[0]["run_id"] == read_run(original)[0]["run_id"]
    assert {path: path.stat().st_mtime_ns for path in original.rglob("*")} == before
    shutil.rmtree(original)
    assert open_run(copy).step == 12
    assert main(["export", str(copy), "--out", str(tmp_path / "exported")]) == 0


@pytest.mark.slow
def test_a_run_that_belongs_to_another_user_is_read_and_never_written(
    finished_once: Path, settings: dict, tmp_path: Path, children
):
    """Copied elsewhere, its files those of nobody, as is a corpus that has moved."""
    run, corpus, config = tmp_path / "theirs" / "run", tmp_path / "theirs" / "corpus", tmp_path / "config.yaml"
    shutil.copytree(finished_once, run)
    shutil.copytree(settings["corpus"], corpus)
    (run / "config.yaml").write_text(json.dumps(changed(settings, corpus=str(corpus), run_dir=str(run))))
    for path in (run.parent, *run.parent.rglob("*")):
        path.chmod(0o555 if path.is_dir() else 0o444)
        if os.geteuid() == 0:
            os.chown(path, 65534, 65534)
    more = {"corpus": str(corpus), "train": {"steps": 14}}
    config.write_text(json.dumps(changed(settings, **more, run_dir=str(run))))
    mine, checkpoint = tmp_path / "mine", run / "checkpoints" / "step_00000012"
    work = [
        ["report", str(run), "--out", str(tmp_path / "page")],
        ["replay", str(run), "--policy", "target"],
        ["preview", str(run), "--step", "3"],
        ["eval", str(run), "--max-samples", "2"],
        ["export", str(run), "--out", str(tmp_path / "exported")],
        ["train", str(config), f"run_dir={mine}", "--resume", str(checkpoint)],
    ]
    refused = {
        ("report", str(run)): "Name another folder with --out",
        ("train", str(config)): "Choose another one; --resume takes a checkpoint",
        ("control", str(run), "freeze"): "",
    }
    out = tmp_path / "out.json"
    children.run(run_verbs, [*work, *map(list, refused)], str(out))
    found = json.loads(out.read_text())
    assert [code for code, _ in found] == [0] * len(work) + [1] * len(refused), found
    for (_, error), advice in zip(found[len(work) :], refused.values(), strict=True):
        assert advice in error
        assert error.count("\n") <= 4
        assert "Traceback" not in error
    assert read_run(mine)[1]["step"][-1]["step"] == 13


def test_a_corpus_that_has_moved_since_is_named_with_the_key(finished: Path, settings: dict, tmp_path: Path, capsys):
    (Path(finished) / "config.yaml").write_text(json.dumps(changed(settings, corpus=str(tmp_path / "gone"))))
    for command in (["preview", str(finished), "--step", "3"], ["export", str(finished), "--out", str(tmp_path / "x")]):
        assert main(command) == 1
        error = capsys.readouterr().err
        assert f"{tmp_path}/gone/corpus.json: no such file" in error
        assert "'corpus' in the run's config" in error


@pytest.fixture
def other_domains(tiny_corpus: Path, tmp_path: Path) -> Path:
    """The tiny corpus without "hard" and with "new"."""
    texts = tmp_path / "texts"
    for part in ("train", "val"):
        for domain, source in (("easy", "easy"), ("medium", "medium"), ("new", "hard")):
            shutil.copytree(tiny_corpus.parent / part / source, texts / part / domain)
    options = ["--val", str(texts / "val"), "--seq-len", "32", "--workers", "1", "--out", str(tmp_path / "other")]
    assert main(["prepare", str(texts / "train"), *options]) == 0
    return tmp_path / "other"


def test_a_run_resumes_with_other_domains(settings: dict, other_domains: Path, tmp_path: Path, monkeypatch, capsys):
    """From another run's checkpoint, by the training command: kept domains go on where they were."""
    checkpoint = interrupt(settings, monkeypatch)
    drawn = json.loads((checkpoint / "state.json").read_text())["drawn"]
    new = changed(settings, corpus=str(other_domains), run_dir=str(tmp_path / "new"), train={"steps": 16})
    (tmp_path / "new.yaml").write_text(json.dumps(new))
    capsys.readouterr()
    assert main(["train", str(tmp_path / "new.yaml"), "--resume", str(checkpoint)]) == 0
    shown = capsys.readouterr().out
    assert "domains retired" in shown
    assert "domains added" in shown
    run, lines = read_run(new["run_dir"])
    assert run["domains"] == ["easy", "medium", "new"]
    assert [line["step"] for line in lines["step"]] == list(range(8, 16))
    samples = np.array([line["samples"] for line in lines["step"]])
    assert (samples.sum(axis=0) > 0).all()  # the new domain, too
    final = json.loads((Path(new["run_dir"]) / "checkpoints" / "step_00000016" / "state.json").read_text())["drawn"]
    expected = {name: drawn.get(name, 0) + int(n) for name, n in zip(run["domains"], samples.sum(axis=0), strict=True)}
    assert final == expected
    assert main(["report", new["run_dir"]]) == 0


def test_a_run_does_not_continue_its_record_with_other_domains(settings: dict, other_domains: Path, monkeypatch):
    """Its lines are lists in the order of the record's domains."""
    interrupt(settings, monkeypatch)
    with pytest.raises(ResumeError, match="other domains"):
        run_training(load_config(changed(settings, corpus=str(other_domains))))
