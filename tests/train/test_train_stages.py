"""Runs in stages: the same as one resumed by hand with other settings, and the same after a stop anywhere."""

import json
import math
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import torch

from ado_stream.cli.main import main
from ado_stream.errors import ConfigError, ResumeError
from ado_stream.evaluate.trained_run import open_run
from ado_stream.record import read_run
from ado_stream.report.report_tables import fact_table
from ado_stream.report.run_data import load_runs
from ado_stream.train import trainer as trainer_module
from ado_stream.train.components import build_components
from ado_stream.train.distributed import DistributedContext
from ado_stream.train.dry_run import plan_run
from ado_stream.train.run_config import load_config, save_config
from ado_stream.train.stages import run_stages, stage_at
from ado_stream.train.train_step import LearningRateSchedule, TrainStep
from ado_stream.train.trainer import run_training
from tests.train import ledger_run
from tests.train.run_helpers import SimulatedCrash, changed, checkpoint_tensors, crash_at, untimed_lines

CPU = DistributedContext(0, 1, torch.device("cpu"))
SEQ_LEN = 32  # of the corpus
FIXED = {"hard": 3, "medium": 0, "easy": 1}
STAGES = [
    {"steps": 5, "seq_len": 16, "global_batch_size": 16},
    {"steps": 4, "global_batch_size": 12, "mixture": FIXED, "learning_rate_end": 2e-3},
    {"steps": 5, "seq_len": 64, "global_batch_size": 4, "micro_batch_size": 2},
]


@pytest.fixture
def staged(settings: dict) -> dict:
    """Twelve steps of ADO in three stages: of halves, of samples, and of two samples a row."""
    train = {key: value for key, value in settings["train"].items() if key != "steps"}
    return {**settings, "stages": STAGES, "train": {**train, "learning_rate": 1e-2, "warmup_steps": 2}}


@pytest.fixture(scope="module")
def whole_once(tiny_corpus: Path, tmp_path_factory) -> Path:
    """The directory of a finished run of `staged`; not to be changed."""
    from ado_model import PRESETS
    from tests.train.conftest import _settings
    from tests.train.tiny_model import TINY_MODEL

    settings = _settings(tiny_corpus, tmp_path_factory.mktemp("staged") / "run")
    settings["train"] = {"device": "cpu", "learning_rate": 1e-2, "warmup_steps": 2}
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(PRESETS, "tiny", TINY_MODEL)
        run_training(load_config({**settings, "stages": STAGES}))
    return Path(settings["run_dir"])


def assert_equal_runs(run_dir: str | Path, expected: Path, step: int = 14) -> None:
    for kind in ("step", "fit", "eval"):
        assert untimed_lines(run_dir, kind) == untimed_lines(expected, kind)
    assert checkpoint_tensors(run_dir, step) == checkpoint_tensors(expected, step)


def test_stages_equal_a_run_that_is_resumed_by_hand(settings: dict, tmp_path: Path, monkeypatch):
    """Two plain configs in turn, of which the second has another batch and rows twice as long."""
    stages = [{"steps": 5}, {"steps": 7, "global_batch_size": 4, "seq_len": 64}]
    staged = {**settings, "stages": stages, "run_dir": str(tmp_path / "staged")}
    staged["train"] = {"device": "cpu"}
    run_training(load_config(staged))
    first = changed(settings, checkpoint={"every_steps": 5})
    with monkeypatch.context() as patch:
        crash_at(patch, 5)
        with pytest.raises(SimulatedCrash):
            run_training(load_config(first))
    second = changed(settings, data={"global_batch_size": 4, "seq_len": 64})
    assert run_training(load_config(second)).step == 12
    assert_equal_runs(second["run_dir"], tmp_path / "staged", 12)
    resume = next(event for event in read_run(second["run_dir"])[1]["event"] if event["name"] == "resume")
    assert resume["detail"]["changes"] == {
        "data.global_batch_size": [8, 4],
        "data.seq_len": [None, 64],
        "checkpoint.every_steps": [5, 4],
    }
    assert open_run(second["run_dir"]).model.config.context_length == 64


@pytest.mark.parametrize("num_updates", [5, *(pytest.param(num, marks=pytest.mark.slow) for num in (2, 12))])
def test_a_crash_in_any_stage_and_at_its_first_step_changes_nothing(staged, whole_once, num_updates, monkeypatch):
    with monkeypatch.context() as patch:
        crash_at(patch, num_updates)
        with pytest.raises(SimulatedCrash):
            run_training(load_config(staged))
    result = run_training(load_config(staged))
    assert (result.step, result.stopped) == (14, False)
    assert_equal_runs(staged["run_dir"], whole_once)
    assert run_training(load_config(staged)).step == 14  # nothing is left to do


def test_a_crash_between_two_stages_changes_nothing(staged: dict, whole_once: Path, monkeypatch):
    def crashing(*_):
        raise SimulatedCrash

    with monkeypatch.context() as patch:
        patch.setattr(trainer_module, "find_resume_point", crashing)
        with pytest.raises(SimulatedCrash):
            run_training(load_config(staged))
    assert read_run(staged["run_dir"])[1]["step"][-1]["step"] == 4
    run_training(load_config(staged))
    assert_equal_runs(staged["run_dir"], whole_once)


def test_a_stop_in_a_stages_last_step_is_not_lost(staged: dict, whole_once: Path, monkeypatch):
    update, calls = TrainStep.update, []

    def signalling(self, *arguments):
        calls.append(None)
        if len(calls) == 5:
            signal.raise_signal(signal.SIGTERM)
        return update(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(TrainStep, "update", signalling)
        result = run_training(load_config(staged))
    assert (result.step, result.stopped) == (5, True)
    run_training(load_config(staged))
    assert_equal_runs(staged["run_dir"], whole_once)


def test_a_stage_has_its_batch_its_mixture_and_its_learning_rate(whole_once: Path):
    run, lines = read_run(whole_once)
    steps = lines["step"]
    assert [sum(line["samples"]) for line in steps] == [8] * 5 + [12] * 4 + [8] * 5
    assert [sum(line["domain_tokens"]) for line in steps] == [8 * SEQ_LEN] * 5 + [12 * SEQ_LEN] * 4 + [8 * SEQ_LEN] * 5
    fixed = [FIXED[name] / 4 for name in run["domains"]]
    assert [line["mixture"] == fixed for line in steps] == [False] * 5 + [True] * 4 + [False] * 5
    assert steps[9]["mixture"] != steps[4]["mixture"]  # the policy learnt underneath
    rates = [line["lr"] for line in steps]
    assert rates[:3] == [5e-3, 1e-2, 1e-2]
    first = [2e-3 + 8e-3 * 0.5 * (1 + math.cos(math.pi * step / 6)) for step in range(7)]  # from the 2nd to the 8th
    then = [1e-3 + 1e-3 * 0.5 * (1 + math.cos(math.pi * step / 5)) for step in range(1, 6)]
    np.testing.assert_allclose(rates[2:], first + then, rtol=1e-12)
    begun = [(event["step"], event["detail"]["number"]) for event in lines["event"] if event["name"] == "stage"]
    assert begun == [(0, 1), (5, 2), (9, 3)]
    assert [stage["step_samples"] for stage in run["stages"]] == [8, 12, 8]
    assert (run["seq_len"], run["batch_seq_len"], run["global_batch_size"]) == (SEQ_LEN, 64, 4)


@pytest.mark.slow
def test_ranks_read_the_rows_of_one_in_every_stage(staged: dict, children, tmp_path: Path):
    """Two ranks, and four from within the second stage on; against one rank without a stop."""
    plain = changed(staged, policy={"name": "natural", "options": {}})
    for name, attempts in {"one": [(1, STAGES)], "more": [(2, STAGES[:2]), (4, STAGES)]}.items():
        (tmp_path / name).mkdir()
        run_dir, path = tmp_path / f"run {name}", tmp_path / f"{name}.json"
        for num_ranks, stages in attempts:
            path.write_text(json.dumps({**plain, "run_dir": str(run_dir), "stages": stages}))
            children.run(ledger_run.main, str(path), str(tmp_path / name), num_ranks=num_ranks)
            if num_ranks == 2:  # back to that of step 8
                shutil.rmtree(run_dir / "checkpoints" / "step_00000009")
    one, more = (ledger_run.read_ledger(tmp_path / name) for name in ("one", "more"))
    assert one == more
    assert [sum(step == each for step, _ in one) for each in range(14)] == [16] * 5 + [12] * 4 + [4] * 5


def test_a_run_without_stages_is_one(settings: dict):
    (stage,) = run_stages(load_config(settings))
    assert (stage.number, stage.begin, stage.end, stage.config) == (1, 0, 12, load_config(settings))


def test_the_first_stages_mixture_is_drawn_from_the_first_step_on(settings: dict):
    stages = [{"steps": 4, "mixture": "uniform"}, {"steps": 2}]
    run_training(load_config({**settings, "stages": stages, "train": {"device": "cpu"}}))
    mixtures = [line["mixture"] for line in read_run(settings["run_dir"])[1]["step"]]
    assert [mixture == [1 / 3] * 3 for mixture in mixtures] == [True] * 4 + [False] * 2


@pytest.mark.slow
def test_stages_may_be_given_to_a_run_that_has_begun_and_be_others_at_a_resume(staged: dict, settings: dict, capsys):
    """What was drawn stays; from the resume on the new list counts, and says what it changed."""
    plain = changed(settings, train={"steps": 6})
    run_training(load_config(plain))
    capsys.readouterr()
    assert run_training(load_config(staged)).step == 14  # in the middle of its second stage
    assert "  data.global_batch_size" in capsys.readouterr().out
    lines = read_run(staged["run_dir"])[1]
    assert [sum(line["samples"]) for line in lines["step"]] == [8] * 6 + [12] * 3 + [8] * 5
    longer = {**staged, "stages": [*STAGES[:2], {**STAGES[2], "global_batch_size": 8}, {"steps": 1}]}
    assert (
        run_training(load_config(longer), resume=Path(staged["run_dir"]) / "checkpoints" / "step_00000012").step == 15
    )
    lines = read_run(staged["run_dir"])[1]
    assert [sum(line["samples"]) for line in lines["step"]] == [8] * 6 + [12] * 3 + [8] * 3 + [16] * 2 + [8]
    changes = [event["detail"]["changes"] for event in lines["event"] if event["name"] == "resume"]
    assert changes[-2]["stages.2.global_batch_size"] == [4, 8]
    drawn = json.loads((Path(staged["run_dir"]) / "checkpoints" / "step_00000015" / "state.json").read_text())["drawn"]
    assert list(drawn.values()) == np.sum([line["samples"] for line in lines["step"]], axis=0).tolist()


@pytest.mark.parametrize(
    ("stages", "text"),
    [
        ([{"steps": 3, "sequence": 4}], r"unknown 'stages\[0\].sequence'; known here: steps, global_batch_size"),
        ([{"seq_len": 4}], "steps"),
        ([{"steps": 3}, {"steps": 0}], r"'stages\[1\].steps' is 0; allowed: 1 or more"),
        ([3], r"'stages\[0\]' is a section with the keys steps"),
        ({"steps": 3}, "'stages' is {'steps': 3}; give a list"),
        ([{"steps": 3, "global_batch_size": "many"}], "global_batch_size"),
        ([{"steps": 3}], "'train.steps' is 12, the stages have 3; leave it out"),
    ],
)
def test_stages_that_are_none_are_refused(settings: dict, stages, text):
    with pytest.raises(ConfigError, match=text):
        load_config({**settings, "stages": stages})


@pytest.mark.parametrize(
    ("stage", "changes", "text"),
    [
        ({"seq_len": 20}, {}, "sequences of 20 tokens from samples of 32: .* nearest: 16"),
        ({"seq_len": 64}, {"model": {"attention": "document"}}, "rows of 2 samples: 'model.attention' is document"),
        (
            {"seq_len": 64},
            {"model": {"context_length": 32}},
            "'model.context_length' is 32, the longest sequences have 64",
        ),
        ({"global_batch_size": 3}, {"data": {"canonical_nodes": 2}}, "not a multiple of canonical_nodes 2"),
        ({"mixture": "ado"}, {}, r"mixture of a stage: 'ado'; expected .* What learns from losses has to see them"),
        ({"mixture": {"hard": 1}}, {}, "fixed weights"),
        ({"mixture": 3}, {}, "mixture of a stage: 3; expected"),
        ({"learning_rate_end": 1e-3}, {"train": {"device": "cpu", "warmup_steps": 4}}, "the warm-up is 4 steps long"),
    ],
)
def test_what_cannot_work_in_a_stage_is_refused_before_the_first_step(staged: dict, stage, changes, text):
    """Of a later stage too: a run of weeks must not fail at its end."""
    plain = changed(staged, policy={"name": "natural", "options": {}}, **changes)
    config = load_config({**plain, "stages": [{"steps": 4, **stage}, {"steps": 10}]})
    with pytest.raises(ConfigError, match="(?s)" + text):
        build_components(run_stages(config)[0].config, CPU)
    later = load_config({**plain, "stages": [{"steps": 1}, {"steps": 3, **stage}, {"steps": 10}]})
    with pytest.raises(ConfigError, match="(?s)" + text):
        run_training(later)
    assert not (Path(staged["run_dir"]) / "record.jsonl").exists()


def test_parts_of_samples_keep_attention_within_documents(staged: dict):
    config = load_config({**changed(staged, model={"attention": "document"}), "stages": STAGES[:2]})
    assert build_components(run_stages(config)[0].config, CPU).model.end_token is not None


def test_another_model_is_still_refused(staged: dict):
    plain = changed(staged, policy={"name": "natural", "options": {}})
    run_training(load_config({**plain, "stages": [{"steps": 3, "seq_len": 64, "global_batch_size": 4}]}))
    with pytest.raises(ResumeError, match="context_length 64 saved, 32 now"):
        run_training(load_config({**plain, "stages": [{"steps": 4}]}))


def test_a_config_with_stages_is_read_back_as_it_is(staged: dict, tmp_path: Path):
    config = load_config(staged)
    save_config(config, tmp_path / "config.yaml")
    assert load_config(tmp_path / "config.yaml") == config
    assert (config.train.steps, stage_at(config, 9).number, stage_at(config, 99).number) == (14, 3, 3)


def test_a_rate_that_ends_a_stage_begins_the_next(settings: dict):
    """Against points of the curve: knots, and half way between them."""
    schedule = LearningRateSchedule(1.0, 2, 43, 0.1, [(13, 0.6), (33, 0.6)])
    found = [schedule(step) for step in (0, 1, 2, 7, 12, 20, 32, 37, 42, 50)]
    np.testing.assert_allclose(found, [0.5, 1, 1, 0.8, 0.6, 0.6, 0.6, 0.35, 0.1, 0.1], rtol=1e-12)
    plain = LearningRateSchedule(3e-4, 2, 43, 0.1)
    same = LearningRateSchedule(3e-4, 2, 43, 0.5, [(43, 0.1)])
    assert [plain(step) for step in range(43)] == [same(step) for step in range(43)]


def test_a_plan_adds_the_stages_up(staged: dict):
    plan = plan_run(load_config(staged), CPU)
    assert "tokens per step   256, then 384, then 256; 4,096 in all" in plan


def test_a_step_of_any_stage_is_drawn_again(whole_once: Path, capsys):
    """`preview` compares what it draws with what was recorded, and fails where they differ."""
    for step, rows in ((3, 16), (7, 12), (11, 4)):
        assert main(["preview", str(whole_once), "--step", str(step), "--json"]) == 0
        shown = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        assert [sample["slot"] for sample in shown] == list(range(rows))


def test_a_report_counts_samples_over_all_stages(whole_once: Path):
    (run,) = load_runs([whole_once])
    assert run.counts_SK[:, 0].tolist() == np.cumsum([8] * 5 + [12] * 4 + [8] * 5).tolist()
    facts = dict(fact_table([run])[1])
    assert facts["batch"] == "16 samples × 16 tokens, then 12 samples × 32 tokens, then 4 samples × 64 tokens"
    assert main(["replay", str(whole_once), "--policy", "unimax", "--json"]) == 0
