"""`ado-stream trace`: a recorded step is what the run trained on, whatever ranks, resumes and orders it had."""

import json
import shutil
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import yaml

from ado_stream.cli.main import main
from ado_stream.errors import ConfigError, ResumeError
from ado_stream.evaluate.recorded_step import Wanted, open_step
from ado_stream.prepare.coordinator import prepare
from ado_stream.prepare.prepare_config import PrepareConfig
from ado_stream.record import read_run
from ado_stream.train.run_config import load_config
from ado_stream.train.stages import stage_at
from ado_stream.train.trainer import Trainer, run_training
from tests.train import ledger_run
from tests.train.run_helpers import changed
from tests.train.test_train_control import give, order_events


def shown(capsys, *arguments: str) -> list[dict]:
    capsys.readouterr()
    assert main(["trace", *arguments, "--json"]) == 0
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def traced(run_dir: Path, step: int, num_rows: int = 8) -> list[str]:
    """The domain and checksum of every slot's tokens."""
    corpus, samples = open_step(run_dir, Wanted(step))
    assert [sample.slot for sample in samples] == list(range(num_rows))
    names = [domain.name for domain in corpus.domains]
    return [f"{names.index(sample.domain)} {zlib.crc32(sample.tokens.tobytes())}" for sample in samples]


@pytest.fixture(scope="module")
def run_with_ledger(tiny_corpus, tmp_path_factory, children) -> tuple[Path, dict]:
    """(a run of two ranks to step 6, then of one, under an order; {(step, slot): domain and checksum read})."""
    folder = tmp_path_factory.mktemp("run_with_ledger")
    settings = {
        "corpus": str(tiny_corpus),
        "run_dir": str(folder / "run"),
        "model": {"preset": "tiny"},
        "data": {"global_batch_size": 8, "canonical_nodes": 2, "prefetch": 2, "mixture_lag": 2},
        "policy": {"name": "ado", "options": {"start_step": 2, "ignore_steps": 0, "interval": 2}},
        "train": {"steps": 6, "device": "cpu"},
        "checkpoint": {"every_steps": 3},
        "evaluate": {"max_samples_per_domain": 2},
        "log": {"sample_losses": 3},
    }
    give(folder / "run", 4, "pin hard=0.5")
    first, second = folder / "first.json", folder / "second.json"
    first.write_text(json.dumps(settings))
    second.write_text(json.dumps(changed(settings, train={"steps": 12})))
    children.run(ledger_run.main, str(first), str(folder), num_ranks=2)
    children.run(ledger_run.main, str(second), str(folder))
    ledger = ledger_run.read_ledger(folder)
    return folder / "run", {key: row.rpartition(" ")[0] for key, row in ledger.items()}


@pytest.mark.parametrize("from_step_0", [False, True])
def test_every_step_is_the_one_that_was_read(run_with_ledger, tmp_path, from_step_0):
    """Under ADO's mixtures, an operator's order, a resume with other ranks; from a checkpoint or from step 0."""
    run_dir = shutil.copytree(run_with_ledger[0], tmp_path / "run")
    assert order_events(run_dir) == [(4, {"order": "pin hard=0.5", "drawn_from": 7})]
    mixtures = {tuple(line["mixture"]) for line in read_run(run_dir)[1]["step"]}
    assert len(mixtures) > 4
    if from_step_0:
        shutil.rmtree(run_dir / "checkpoints")
    for step in range(12):
        assert traced(run_dir, step) == [run_with_ledger[1][step, slot] for slot in range(8)]


@pytest.mark.parametrize("from_step_0", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_rows_of_stages_and_of_a_batch_that_changed_by_hand_are_those_that_were_read(
    tiny_corpus, tmp_path, children, from_step_0
):
    """Halves of samples, samples, two samples a row, on two ranks; then another batch, whose config takes the place."""
    settings = {
        "corpus": str(tiny_corpus),
        "run_dir": str(tmp_path / "run"),
        "model": {"preset": "tiny", "context_length": 64},
        "data": {"canonical_nodes": 2, "prefetch": 2, "mixture_lag": 2},
        "policy": {"name": "natural"},
        "train": {"device": "cpu"},
        "evaluate": {"max_samples_per_domain": 2},
        "log": {"sample_losses": 2},
    }
    rows = [16, 16, 8, 8, 4, 4, 24, 24]
    stages = [{"steps": 2, "seq_len": 16, "global_batch_size": 16}, {"steps": 2, "seq_len": 32, "global_batch_size": 8}]
    stages += [{"steps": 2, "seq_len": 64, "global_batch_size": 4}]
    data = {**settings["data"], "global_batch_size": 24}
    for name, given in (("first", {"stages": stages}), ("second", {"data": data, "train": {"steps": 8}})):
        path = tmp_path / f"{name}.json"
        path.write_text(json.dumps(changed(settings, **given)))
        children.run(ledger_run.main, str(path), str(tmp_path), num_ranks=2)
    if from_step_0:
        shutil.rmtree(tmp_path / "run" / "checkpoints")
    ledger = {key: row.rpartition(" ")[0] for key, row in ledger_run.read_ledger(tmp_path).items()}
    for step, num_rows in enumerate(rows):
        assert traced(tmp_path / "run", step, num_rows) == [ledger[step, slot] for slot in range(num_rows)]


def test_ranks_are_those_of_the_start_that_trained_the_step(run_with_ledger, tmp_path, capsys):
    run_dir = str(run_with_ledger[0])
    assert [sample["rank"] for sample in shown(capsys, run_dir, "--step", "5")] == [0] * 4 + [1] * 4
    assert {sample["rank"] for sample in shown(capsys, run_dir, "--step", "6")} == {0}
    some = shown(capsys, run_dir, "--step", "5", "--rank", "1")
    assert [sample["slot"] for sample in some] == [4, 5, 6, 7]
    assert main(["trace", run_dir, "--step", "5", "--rank", "2"]) == 1
    assert "--rank 2: of step 5 its ranks were 0, 1" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("start", "ranks"),
    [
        ({"world_size": 4, "replication": 2}, [0] * 4 + [2] * 4),  # the first of two that read the same
        ({"world_size": 8, "replication": 1}, list(range(8))),
        ({"first_step": None}, [None] * 8),  # of a record that does not say
    ],
)
def test_ranks_of_other_layouts(finished, settings, capsys, start, ranks):
    path = Path(finished) / "record.jsonl"
    first, *others = path.read_text().splitlines()
    line = {key: value for key, value in {**json.loads(first), **start}.items() if value is not None}
    path.write_text("\n".join([json.dumps(line), *others]) + "\n")
    assert [sample["rank"] for sample in shown(capsys, settings["run_dir"], "--step", "5")] == ranks


@pytest.mark.parametrize(
    ("kind", "forged", "says"),
    [
        ("run", {"world_size": 0}, "the record has 0 ranks that read 1 times the same"),
        ("run", {"replication": 0}, "the record has 1 ranks that read 0 times the same"),
        ("run", {"world_size": 3}, "global_batch_size 8 is not a multiple of ranks 3"),
        ("step", {"mixture": [1.0, "x", 0.0]}, "step 0 of its record: mixture 'x': expected a number"),
        ("step", {"mixture": None}, "step 0 of its record: mixture None: expected a list"),
        ("step", {"sample_losses": [[8, 2.5]]}, "step 0 of the record: 'sample_losses' are not of 8 slots"),
        ("step", {"sample_losses": [[1]]}, "step 0 of the record: 'sample_losses' are not of 8 slots"),
    ],
)
def test_a_forged_record_is_refused(finished, settings, capsys, kind, forged, says):
    path = Path(finished) / "record.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    next(line for line in lines if line["kind"] == kind).update(forged)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert main(["trace", settings["run_dir"], "--step", "0"]) == 1
    assert says in capsys.readouterr().err


def test_the_highest_losses_of_all_ranks_are_recorded(run_with_ledger, capsys):
    """Means of the domains' sums agree with them, and one slot's loss is never in another's place."""
    run_dir, _ = run_with_ledger
    for line in read_run(run_dir)[1]["step"]:
        kept = line["sample_losses"]
        assert len({slot for slot, _ in kept}) == len(kept) == 3
        assert [loss for _, loss in kept] == sorted((loss for _, loss in kept), reverse=True)
        assert kept[0][1] >= line["loss"] >= 0.3 * kept[0][1]
    samples = shown(capsys, str(run_dir), "--step", "4", "--highest", "2")
    assert [[sample["slot"], sample["loss"]] for sample in samples] == read_run(run_dir)[1]["step"][4]["sample_losses"][
        :2
    ]
    everything = shown(capsys, str(run_dir), "--step", "4")
    assert sum(sample["loss"] is not None for sample in everything) == 3


@pytest.mark.parametrize("num_ranks", [1, 2])
def test_recorded_losses_are_those_of_the_samples(settings, children, tmp_path, num_ranks):
    """Of step 0, by cross-entropy of the logits of the model as it begins; a loss for every slot."""
    settings = changed(
        settings, train={"steps": 1, "micro_batch_size": 3}, log={"sample_losses": 100},
        policy={"name": "natural", "options": {}},
    )  # fmt: skip
    (tmp_path / "settings.json").write_text(json.dumps(settings))
    children.run(ledger_run.main, str(tmp_path / "settings.json"), str(tmp_path), num_ranks=num_ranks)
    _, samples = open_step(Path(settings["run_dir"]), Wanted(0, highest=8))
    tokens = torch.from_numpy(np.stack([sample.tokens for sample in samples]))
    config = load_config(settings)
    with Trainer(config, stage_at(config, 0), ledger_context()) as trainer, torch.no_grad():
        logits = trainer._parallel.model(tokens[:, :-1])
    losses = F.cross_entropy(logits.transpose(1, 2), tokens[:, 1:], reduction="none").mean(dim=1)
    assert [sample.loss for sample in samples] == pytest.approx(losses.tolist(), rel=1e-5)
    assert sorted(sample.slot for sample in samples) == list(range(8))
    assert losses.unique().numel() > 4


def ledger_context():
    from ado_stream.train.distributed import DistributedContext

    return DistributedContext(0, 1, torch.device("cpu"))


def test_losses_that_were_not_recorded_are_said_to_be(finished, settings, capsys):
    assert {sample["loss"] for sample in shown(capsys, settings["run_dir"], "--step", "2")} == {None}
    assert main(["trace", settings["run_dir"], "--step", "2", "--highest", "3"]) == 1
    assert "step 2 has no losses of samples; they are recorded by log.sample_losses=N" in capsys.readouterr().err


def test_a_run_that_began_from_another_runs_checkpoint(finished, settings, tmp_path):
    """Its record begins at step 8: the checkpoint says where the data were. Without it the step is refused."""
    finished = Path(finished)
    branch = changed(settings, run_dir=str(tmp_path / "branch"), checkpoint={"every_steps": 0})
    run_training(load_config(branch), str(finished / "checkpoints" / "step_00000008"))
    assert [line["step"] for line in read_run(branch["run_dir"])[1]["step"]] == [8, 9, 10, 11]
    for step in (8, 10):
        assert traced(tmp_path / "branch", step) == traced(finished, step)
    shutil.rmtree(finished / "checkpoints" / "step_00000008")
    with pytest.raises(ConfigError, match=r"recorded steps 8 to 11; a step is drawn again from all before it"):
        open_step(tmp_path / "branch", Wanted(9))


def test_a_damaged_checkpoint_is_skipped(finished):
    finished = Path(finished)
    expected = traced(finished, 10)
    (finished / "checkpoints" / "step_00000008" / "state.json").write_text("{")
    assert traced(finished, 10) == expected


@pytest.mark.parametrize("with_checkpoints", [True, False])
@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"seed": 18}, "seed 17, now 18"),
        ({"corpus": "other"}, "fingerprint"),
        ({"data.canonical_nodes": 2}, "nodes 1, now 2"),
    ],
)
def test_another_corpus_or_seed_is_refused(finished, tmp_path, with_checkpoints, change, says):
    finished = Path(finished)
    (tmp_path / "text.txt").write_text("another text " * 100)
    prepare(PrepareConfig((str(tmp_path / "text.txt"),), str(tmp_path / "other"), seq_len=32, workers=1))
    config = yaml.safe_load((finished / "config.yaml").read_text())
    for key, value in change.items():
        section, _, name = key.rpartition(".")
        (config[section] if section else config)[name] = str(tmp_path / value) if key == "corpus" else value
    (finished / "config.yaml").write_text(yaml.safe_dump(config))
    if not with_checkpoints:
        shutil.rmtree(finished / "checkpoints")
    with pytest.raises((ConfigError, ResumeError), match=says):
        open_step(finished, Wanted(9))


def test_a_planted_document_is_found_by_the_spike_of_its_step(tmp_path, settings, capsys):
    """Noise among documents that repeat themselves: step, sample and the document's number in its file."""
    generator = np.random.default_rng(0)
    junk = "".join(map(chr, generator.integers(33, 126, size=300)))
    for name, num_documents, unit in (("code", 60, "abcd "), ("web", 60, "1234 ")):
        texts = [unit * int(times) for times in generator.integers(10, 30, num_documents)]
        if name == "code":
            texts[37] = junk
        lines = [json.dumps({"text": text, "set": name}) for text in texts]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    inputs = (str(tmp_path / "code.jsonl"), str(tmp_path / "web.jsonl"))
    corpus = prepare(
        PrepareConfig(inputs, str(tmp_path / "c"), seq_len=32, domain_key="set", workers=1, shard_bytes=4096)
    )
    run = changed(
        settings, corpus=str(corpus), seed=5, policy={"name": "natural", "options": {}},
        train={"steps": 100, "learning_rate": 0.02}, log={"sample_losses": 2},
    )  # fmt: skip
    run_training(load_config(run))
    run_dir = run["run_dir"]
    spikes = shown(capsys, run_dir, "--spikes")
    worst = max(spikes, key=lambda spike: spike["deviations"])
    assert worst["domain"] == "code"
    (sample,) = shown(capsys, run_dir, "--step", str(worst["step"]), "--highest", "1")
    assert sample["domain"] == "code"
    assert sample["documents"]["first"] <= 37 <= sample["documents"]["last"]
    assert any(junk[at : at + 20] in sample["text"] for at in range(280))
    assert main(["trace", run_dir, "--spikes"]) == 0
    out = capsys.readouterr().out
    assert f"what was in it: ado-stream trace {run_dir} --step {worst['step']}" in out
    assert main(["trace", run_dir, "--spikes", "--threshold", "1e9"]) == 0
    assert "none of 100 steps stood out by 1e+09 robust deviations" in capsys.readouterr().out
