"""The verbs train, eval and export: a run from a config file, its losses, its model; mistakes in one message."""

import json
from pathlib import Path

import pytest
import torch
import yaml

from ado_stream.cli import eval as eval_verb
from ado_stream.cli.main import main
from ado_stream.evaluate import tasks
from ado_stream.evaluate.trained_run import open_run
from ado_stream.train import trainer as trainer_module
from tests.rounding import perturb, rounding
from tests.train.child_processes import finish


@pytest.fixture
def config_file(settings: dict, tmp_path: Path) -> Path:
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(settings))
    return path


def test_train_then_eval(config_file: Path, settings: dict, capsys):
    assert main(["train", str(config_file), "train.steps=8"]) == 0
    assert f"done: step 8, {settings['run_dir']}" in capsys.readouterr().out
    assert main(["eval", settings["run_dir"], "--max-samples", "8", "--json", "--device", "cpu"]) == 0
    found = json.loads(capsys.readouterr().out)
    last = [json.loads(line) for line in (Path(settings["run_dir"]) / "record.jsonl").read_text().splitlines()]
    recorded = [line for line in last if line["kind"] == "eval"][-1]
    # the same model and samples, batched otherwise: float32 sums over the vocabulary in another order
    assert found["validation"]["loss"] == pytest.approx(recorded["loss"], rel=2 * rounding(320))
    assert set(found["validation"]["domains"]) == {"easy", "medium", "hard"}
    assert main(["eval", settings["run_dir"], "--max-samples", "2", "--device", "cpu"]) == 0
    assert "mean of domains" in capsys.readouterr().out


def print_losses(run_dir: str) -> None:
    """`ado-stream eval` on a rank."""
    assert main(["eval", run_dir, "--max-samples", "2", "--json", "--device", "cpu"]) == 0


def test_only_rank_0_prints(finished: Path, settings: dict, children, capsys):
    print_losses(settings["run_dir"])
    alone = json.loads(capsys.readouterr().out)
    printed = []
    for rank in children.start_ranks(2, print_losses, settings["run_dir"]):
        finish(rank)
        printed.append(rank.log.read_text())
    announced, answer = printed[0].splitlines()
    assert announced == f"evaluating {settings['run_dir']} ..."
    assert json.loads(answer)["validation"]["loss"] == pytest.approx(alone["validation"]["loss"])
    assert printed[1] == ""


def test_an_exported_run_is_loaded_by_transformers(finished: Path, settings: dict, tmp_path: Path):
    """With the logits of the checkpoint's model and the tokenizer of its corpus."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    assert main(["export", settings["run_dir"], "--out", str(tmp_path / "exported")]) == 0
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "exported").eval()
    encoded = AutoTokenizer.from_pretrained(tmp_path / "exported")("w1 w2 w30", return_tensors="pt")
    tokens = encoded["input_ids"]
    assert tokens.tolist() == [list(b"w1 w2 w30")]
    assert loaded.generate(**encoded, max_new_tokens=2).shape == (1, 11)
    with torch.no_grad():
        model = open_run(settings["run_dir"]).model
        expected, found = model(tokens), loaded(tokens).logits
        perturb(model, rounding(model.config.mlp_width))
        allowed = 2 * (model(tokens) - expected).abs().max().item()  # float32 on both sides
    torch.testing.assert_close(found, expected, rtol=0, atol=allowed)


def test_eval_takes_another_corpus_with_the_same_tokenizer(
    config_file: Path, settings: dict, tmp_path: Path, real_corpus: Path, capsys
):
    """Validation of real text in The Pile's format, of other domains than the run's."""
    assert main(["train", str(config_file), "train.steps=6"]) == 0
    sources, other = [str(path) for path in sorted(real_corpus.glob("train-*.jsonl.zst"))], str(tmp_path / "other")
    options = ["--domain-key", "meta.pile_set_name", "--tokenizer", "bytes", "--seq-len", "32", "--workers", "1"]
    assert main(["prepare", *sources, "--val", str(real_corpus / "val.jsonl.zst"), *options, "--out", other]) == 0
    capsys.readouterr()
    evaluate = ["eval", settings["run_dir"], "--corpus", other, "--max-samples", "4", "--device", "cpu"]
    assert main([*evaluate, "--json"]) == 0
    domains = json.loads(capsys.readouterr().out)["validation"]["domains"]
    assert set(domains) == set(json.loads((real_corpus / "manifest.json").read_text())["domains"])
    for name, each in domains.items():
        assert each["tokens"] == 4 * 32, name
        assert 4 < each["loss"] < 6.5, name  # after three steps still close to log 320 = 5.8


def test_another_tokenizer_is_refused(finished: Path, settings: dict, tmp_path: Path, capsys):
    """Its vocabulary fits the model, so without the check there would only be wrong losses."""
    text, val, other = tmp_path / "text.jsonl", tmp_path / "val" / "text.jsonl", str(tmp_path / "other")
    val.parent.mkdir()
    for path, words in ((text, "abcdef"), (val, "ghi")):
        path.write_text(
            "".join(json.dumps({"text": f"the {word} and the other {word} " * 40}) + "\n" for word in words)
        )
    options = ["--val", str(val), "--tokenizer", "bpe:270", "--seq-len", "32", "--workers", "1"]
    assert main(["prepare", str(text), *options, "--out", other]) == 0
    assert main(["eval", settings["run_dir"], "--corpus", other, "--device", "cpu"]) == 1
    assert f"{other}: its tokenizer, bpe:270, is not the one of the training run" in capsys.readouterr().err
    config = Path(settings["run_dir"]) / "config.yaml"
    config.write_text(config.read_text().replace(settings["corpus"], other))  # as if the corpus was prepared anew
    assert main(["export", settings["run_dir"], "--out", str(tmp_path / "exported")]) == 1
    assert "is not the one of the training run" in capsys.readouterr().err


def test_tasks_run_on_the_device_asked_for(finished: Path, settings: dict, monkeypatch, capsys):
    """On the first GPU if there is one; the harness and the GPU are replaced."""
    asked = []
    monkeypatch.setattr(tasks, "evaluate_tasks", lambda *arguments: asked.append(arguments[1:]) or {})
    monkeypatch.setattr(eval_verb, "_validate", lambda trained, args: {"loss": 0, "domain_average": 0, "domains": {}})
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    assert main(["eval", settings["run_dir"], "--tasks", "sciq", "--batch-size", "16"]) == 0
    assert main(["eval", settings["run_dir"], "--tasks", "sciq", "--device", "cpu"]) == 0
    assert asked == [(["sciq"], None, "cuda:0", 16), (["sciq"], None, "cpu", 8)]


def test_tasks_need_no_validation_text(
    prepare_texts, config_file: Path, settings: dict, tmp_path: Path, monkeypatch, capsys
):
    """Losses do, and so does a corpus that is named for them."""
    text = "".join(json.dumps({"text": f"the {word} and the other {word} " * 40}) + "\n" for word in "abcdef")
    corpus = str(prepare_texts(tmp_path, {"text.jsonl": text}, "--tokenizer", "bytes", "--seq-len", "32"))
    assert main(["train", str(config_file), f"corpus={corpus}", "train.steps=6"]) == 0
    monkeypatch.setattr(tasks, "evaluate_tasks", lambda *arguments: {"sciq": {"acc,none": 0.25}})
    capsys.readouterr()
    evaluate = ["eval", settings["run_dir"], "--device", "cpu"]
    assert main([*evaluate, "--tasks", "sciq", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"step": 6, "tasks": {"sciq": {"acc,none": 0.25}}}
    assert main([*evaluate, "--tasks", "sciq"]) == 0
    assert capsys.readouterr().out.split() == ["step", "6", "sciq", "acc,none", "0.2500"]
    for refused in (evaluate, [*evaluate, "--tasks", "sciq", "--corpus", corpus]):
        assert main(refused) == 1
        assert f"{corpus}: no sample in split 'val'" in capsys.readouterr().err


def test_options_may_stand_before_overrides(config_file: Path, settings: dict, capsys):
    assert main(["train", str(config_file), "--resume", "none", "train.steps=6", "--debug", "log.every_steps=1"]) == 0
    assert "done: step 6" in capsys.readouterr().out


def test_a_dry_run_on_several_ranks_prints_once(config_file: Path, monkeypatch, capsys):
    for name, value in {"WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    printed = []
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        assert main(["train", str(config_file), "--dry-run"]) == 0
        printed.append(capsys.readouterr().out)
    assert "memory, one rank" in printed[0]
    assert printed[1] == ""


def test_what_a_terminal_would_obey_is_spelled_out(settings: dict, tmp_path: Path, capsys):
    path = tmp_path / "named.yaml"
    path.write_text(json.dumps({**settings, "run_dir": f"{tmp_path}/\x1b[2J\u202e"}))
    assert main(["train", str(path), "--dry-run"]) == 0
    shown = capsys.readouterr().out
    assert "/\\x1b[2J\\u202e: policy" in shown
    assert "\x1b" not in shown


def test_dry_run_prints_the_plan_and_writes_nothing(config_file: Path, settings: dict, capsys):
    assert main(["train", str(config_file), "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert "parameters" in out
    assert "repeats after" in out
    assert not Path(settings["run_dir"]).exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "absent.yaml"], "NotFound: absent.yaml: no such config file."),
        (["train", "{config}", "train.leraning_rate=1"], "did you mean 'train.learning_rate'?"),
        (["train", "{config}", "--resume", "step_00000009"], "CheckpointError: step_00000009"),
        (["train", "."], "ConfigError: .: not a config file: Is a directory."),
        (["eval", "run", "--max-samples", "0"], "ConfigError: --max-samples is 0; expected a whole number, 1 or more"),
        (["eval", "run", "--batch-size", "0"], "ConfigError: --batch-size is 0; expected a whole number, 1 or more"),
        (
            ["eval", "run", "--tasks", "sciq", "--task-dir", "nowhere"],
            "ConfigError: --task-dir nowhere: no such folder.",
        ),
        (["eval", "run", "--device", "foo"], "ConfigError: device 'foo': use auto, cpu, cuda or cuda:N."),
        (["eval", "run", "--device", "cuda:0"], "ConfigError: device 'cuda:0': torch"),
        (["eval", "nowhere"], "NotFound: nowhere: no config.yaml here"),
        (["export", "nowhere", "--out", "x"], "NotFound: nowhere"),
    ],
)
def test_mistakes_give_one_message_and_exit_code_1(
    config_file: Path, arguments: list[str], message: str, monkeypatch, capsys
):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert main([each.format(config=config_file) for each in arguments]) == 1
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error


def test_tasks_without_the_harness_name_the_command(finished: Path, settings: dict, capsys, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "lm_eval", None)
    arguments = ["eval", settings["run_dir"], "--max-samples", "2", "--device", "cpu", "--tasks", "sciq"]
    assert main(arguments) == 1
    assert "pip install 'ado-stream[eval]'" in capsys.readouterr().err


def test_a_finished_run_that_is_run_again_says_so_and_does_nothing(
    config_file: Path, settings: dict, monkeypatch, capsys
):
    assert main(["train", str(config_file), "train.steps=8"]) == 0
    record = Path(settings["run_dir"]) / "record.jsonl"
    before = record.read_bytes()
    capsys.readouterr()
    with monkeypatch.context() as patch:
        patch.setattr(trainer_module, "Trainer", None)
        assert main(["train", str(config_file), "train.steps=8"]) == 0
    out = capsys.readouterr().out
    assert "all 8 steps are done; raise train.steps to continue, or start again: --resume none" in out
    assert record.read_bytes() == before
    assert main(["train", str(config_file), "train.steps=10"]) == 0
    checkpoint = Path(settings["run_dir"]) / "checkpoints" / "step_00000008"
    assert f"resuming from step 8: {checkpoint}" in (out := capsys.readouterr().out)
    assert "done: step 10" in out


def test_a_run_without_its_last_validation_is_not_done(config_file: Path, settings: dict, capsys):
    assert main(["train", str(config_file), "train.steps=8"]) == 0
    record = Path(settings["run_dir"]) / "record.jsonl"
    lines = record.read_text().splitlines()
    assert json.loads(lines[-1])["name"] == "done"
    record.write_text("\n".join(lines[:-2]) + "\n")  # as if it was killed before its validation was written
    assert main(["train", str(config_file), "train.steps=8"]) == 0
    assert "steps are done;" not in capsys.readouterr().out
    assert [json.loads(line)["kind"] for line in record.read_text().splitlines()[-2:]] == ["eval", "event"]


def test_training_names_domains_without_validation_text(config_file: Path, tmp_path: Path, capsys):
    train, val = tmp_path / "train", tmp_path / "val"
    for place, names in ((train, ("web", "code")), (val, ("web",))):
        for name in names:
            (place / name).mkdir(parents=True)
            (place / name / "text.txt").write_text(f"{place.name} {name} " * 60)
    options = ["--tokenizer", "bytes", "--seq-len", "32", "--workers", "1"]
    says = ("no validation text of code: no validation loss includes", "no validation text: no validation loss is")
    for number, more in enumerate((["--val", str(val)], [])):
        corpus = str(tmp_path / f"c{number}")
        assert main(["prepare", str(train), *options, *more, "--out", corpus]) == 0
        assert says[number] in capsys.readouterr().out
        arguments = [str(config_file), f"corpus={corpus}", f"run_dir={tmp_path / str(number)}", "train.steps=6"]
        assert main(["train", *arguments]) == 0
        assert says[number] in capsys.readouterr().out
        assert main(["train", *arguments, "--dry-run"]) == 0
        assert f"warning: {says[number]}" in capsys.readouterr().out
