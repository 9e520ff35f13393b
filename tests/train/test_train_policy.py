"""A run records what its policy did, and the policy of the record, replayed, does it again."""

import json

import numpy as np
import pytest

from ado_stream.cli.main import main
from ado_stream.errors import ConfigError
from ado_stream.policy import scaling_laws
from ado_stream.record import read_run
from ado_stream.report.report_page import write_report
from ado_stream.train.run_config import load_config
from ado_stream.train.trainer import run_training
from tests.train import losses_on_ranks

EASY = {"min_points": 1, "start_step": 2, "ignore_steps": 0, "interval": 2}
READY = {"ignore_steps": 0, "start_step": 2, "dead_zone": 1.0, "confidence": 0.0}  # moves at every difference


def also(name, option, **options):
    """A case of `make test-all`."""
    return pytest.param({"name": name, "options": options}, [option], marks=pytest.mark.slow)


@pytest.mark.parametrize(
    ("policy", "mean_options"),
    [
        ({"name": "unimax", "options": {"max_epochs": 0.1}}, ["max_epochs=0.2"]),
        ({"name": "target", "options": {**READY, "laws": "validation"}}, ["dead_zone=50"]),
        also("target", "dead_zone=50", **READY),
        also("target", "weights=uniform", weights="val"),
        also("ado", "units=reference", **EASY, units="vocabulary"),
        also("temperature", "tau=1.0", tau=3.0),
        also("odm", "mixture_lag=0"),
        also("schedule", "mixture_lag=0", knots=[[0, [1, 1, 1]], [12, [1, 2, 9]]]),
        (
            {
                "name": "ado",
                "options": {**EASY, "fit": {"every": 1}},
                "guards": [
                    {"name": "floor", "minimum": 0.2},
                    {"name": "freeze", "from_step": 9},
                    {"name": "repetition", "max_epochs": 0.4},
                ],
            },
            ["floor=0.3"],
        ),
    ],
    ids=lambda value: value["name"] if isinstance(value, dict) else "",
)
def test_a_runs_own_policy_replayed_gives_its_mixtures_to_the_bit(settings, policy, mean_options, capsys):
    """Sizes, budget, lag and guards included; with one option changed the mixtures differ."""
    longer = {**settings["train"], "steps": 20}  # than `target` needs validations
    run_training(load_config({**settings, "train": longer, "policy": policy, "evaluate": {"every_steps": 1}}))
    recorded = [line["mixture"] for line in read_run(settings["run_dir"])[1]["step"]]
    replay = ["replay", settings["run_dir"], "--policy", policy["name"], "--json"]
    for more, same in (([], True), (["--option", *mean_options], False)):
        capsys.readouterr()
        assert main([*replay, *more]) == 0
        found = json.loads(capsys.readouterr().out)
        assert np.array_equal(found["mixture"], recorded) == same


def test_what_target_moved_is_in_the_record_and_the_report(settings, tmp_path):
    run_training(load_config({**settings, "policy": {"name": "target", "options": READY}}))
    about, lines = read_run(settings["run_dir"])
    moved = lines["health"][-1]["health"]["moved"]
    assert moved
    assert set(moved) <= set(about["domains"])
    assert len(lines["fit"][-1]["n"]) == len(about["domains"])
    page = write_report([settings["run_dir"]], tmp_path / "report").read_text()
    assert "Moved by the policy" in page
    assert "None was moved" not in page
    texts = [line["detail"]["text"] for line in lines["event"] if line["name"] == "policy"]
    assert texts
    assert all(any(f"target: {name} " in text for name in moved) or "full share" in text for text in texts)
    assert all(each["why"] in page for each in moved.values())


def test_laws_of_validations_that_never_come_are_refused(settings):
    policy = {"name": "target", "options": {"laws": "validation"}}
    with pytest.raises(ConfigError, match="Set evaluate.every_steps"):
        run_training(load_config({**settings, "policy": policy, "evaluate": {"every_steps": 0}}))


def test_a_refit_that_fails_leaves_a_health_line_and_no_law(settings, monkeypatch):
    kernel, calls = scaling_laws.scaling_law_fit, []

    def fails_once(*arguments):
        calls.append(None)
        if len(calls) == 2:
            raise RuntimeError("can't start new thread")
        return kernel(*arguments)

    monkeypatch.setattr(scaling_laws, "scaling_law_fit", fails_once)
    guards = [{"name": "floor", "minimum": 0.05}]
    run_training(load_config({**settings, "policy": {"name": "ado", "options": EASY, "guards": guards}}))
    run, lines = read_run(settings["run_dir"])
    assert run["floor"] == 0.05
    assert [line["step"] for line in lines["health"]] == [2, 4, 6, 8, 10]
    assert [line["health"]["failed_refits"] for line in lines["health"]] == [0, 1, 1, 1, 1]
    assert [line["step"] for line in lines["fit"]] == [2, 6, 8, 10]
    assert {len(line["health"]["held_laws"]) for line in lines["health"]} == {3}
    for fit in lines["fit"]:
        assert fit["num_points"] == [fit["step"] + 1] * 3  # every step of so short a run, none of them ignored
        assert all(scale is not None for scale in fit["residual_scale"])
        assert np.shape(fit["at_bound"]) == (3, 3)


def test_health_lines_continue_after_a_resume(settings):
    """The step after the checkpoint has no refit: the previous refit's line is not written again."""
    config = load_config({**settings, "policy": {"name": "ado", "options": {**EASY, "interval": 3}}})
    run_training(config)
    whole = read_run(settings["run_dir"])[1]["health"]
    assert [line["step"] for line in whole] == [3, 6, 9]
    run_training(config, resume=f"{settings['run_dir']}/checkpoints/step_00000008")
    assert read_run(settings["run_dir"])[1]["health"] == whole


def test_losses_observed_by_ranks_in_any_order_give_every_rank_the_same_mixture_to_the_bit(ranks, tiny_corpus):
    """The sums round. Two addends have one sum in either order, so two ranks may exchange their losses; with four the
    order changes the last bits, and rank 0's sum decides for all."""
    by_order = []
    for num_ranks, order in ((2, [0, 1, 2, 3]), (2, [2, 3, 0, 1]), (4, [3, 1, 0, 2])):
        mixtures = ranks(num_ranks, losses_on_ranks.main, str(tiny_corpus), order)
        assert len(mixtures) == num_ranks
        assert all(one == mixtures[0] for one in mixtures)
        assert len(set(mixtures[0])) > 20, "a constant mixture would agree trivially"
        by_order.append(mixtures[0])
    assert by_order[0] == by_order[1]
