"""Orders to a run while it goes: taken at a stated step, recorded, kept over kills, refused with the reason."""

import json
import os
import signal
import threading
from pathlib import Path

import numpy as np
import pytest

from ado_stream.cli.main import main
from ado_stream.errors import DataError
from ado_stream.record import read_run
from ado_stream.train.run_config import load_config
from ado_stream.train.run_control import FOLDER, list_orders, read_answer, submit
from ado_stream.train.train_step import TrainStep
from ado_stream.train.trainer import run_training
from tests.train import ledger_run
from tests.train.run_helpers import SimulatedCrash, changed, checkpoint_tensors, crash_at, untimed_lines
from tests.train.test_train_torchrun import (  # noqa: F401 - fixtures
    NUM_STEPS,
    TORCHRUN,
    alive,
    assert_equal_runs,
    last_step,
    launch,
    rank_pid,
    written,
)
from tests.waiting import wait_until


def give(run_dir: str | Path, step: int, order: str) -> None:
    """The order as one that an earlier attempt of the run took at `step`: every attempt takes it there."""
    path = submit(Path(run_dir), order.split())
    answer = {"step": step, "drawn_from": step + 3}  # the settings' mixture_lag is 2
    path.with_name(path.name.replace(".order.", ".answer.")).write_text(json.dumps(answer))


def call_in_update(monkeypatch, step: int, call) -> None:
    """Calls `call` in the update of `step`, counted from 0 in this process."""
    update, calls = TrainStep.update, []

    def updating(self, *arguments):
        calls.append(None)
        if len(calls) == step + 1:
            call()
        return update(self, *arguments)

    monkeypatch.setattr(TrainStep, "update", updating)


def mixtures(run_dir: str | Path) -> list[list[float]]:
    return [line["mixture"] for line in read_run(run_dir)[1]["step"]]


def order_events(run_dir: str | Path) -> list[tuple[int, dict]]:
    return [(each["step"], each["detail"]) for each in read_run(run_dir)[1]["event"] if each["name"] == "control"]


def test_an_order_is_drawn_a_lag_later_and_recorded(finished: Path, settings: dict, monkeypatch, tmp_path, capsys):
    """The answer names the step; up to it the batches are those of a run without orders."""
    run = changed(settings, run_dir=str(tmp_path / "ordered"))
    call_in_update(monkeypatch, 3, lambda: submit(Path(run["run_dir"]), ["pin", "hard=0.5"]))
    run_training(load_config(run))
    assert order_events(run["run_dir"]) == [(3, {"order": "pin hard=0.5", "drawn_from": 6})]
    assert "order: pin hard=0.5; drawn from step 6 on" in capsys.readouterr().out
    hard = read_run(run["run_dir"])[0]["domains"].index("hard")
    free, ordered = np.array(mixtures(settings["run_dir"])), np.array(mixtures(run["run_dir"]))
    np.testing.assert_array_equal(ordered[:6], free[:6])
    assert (ordered[6:, hard] == 0.5).all()
    assert (free[6:, hard] != 0.5).all()
    np.testing.assert_allclose(ordered.sum(axis=1), 1.0, rtol=1e-12)
    assert main(["control", run["run_dir"]]) == 0
    assert capsys.readouterr().out.split("\n")[1].split() == ["pin", "hard=0.5", "drawn", "from", "step", "6"]


@pytest.mark.parametrize("step", [5, 2])
def test_a_crash_and_a_resume_change_nothing_under_orders(settings: dict, tmp_path, monkeypatch, step):
    """An order after the checkpoint to resume from is taken again at its step; one before it is in the checkpoint."""
    whole, broken = (changed(settings, run_dir=str(tmp_path / name)) for name in ("whole", "broken"))
    give(whole["run_dir"], step, "pin hard=0.5")
    run_training(load_config(whole))
    with monkeypatch.context() as patch:
        crash_at(patch, 7)  # resumed at 4
        call_in_update(patch, step, lambda: submit(Path(broken["run_dir"]), ["pin", "hard=0.5"]))
        with pytest.raises(SimulatedCrash):
            run_training(load_config(broken))
    assert run_training(load_config(broken)).step == 12
    for kind in ("step", "fit", "eval"):
        assert untimed_lines(broken["run_dir"], kind) == untimed_lines(whole["run_dir"], kind)
    assert checkpoint_tensors(broken["run_dir"], 12) == checkpoint_tensors(whole["run_dir"], 12)
    assert order_events(broken["run_dir"]) == order_events(whole["run_dir"]) != []


def test_the_command_waits_for_the_answer(settings: dict, monkeypatch, capsys):
    """From another thread while the run goes: one order that is possible, one that is not."""
    codes = []

    def order(*words: str):
        thread = threading.Thread(target=lambda: codes.append(main(["control", settings["run_dir"], *words])))
        thread.start()
        wait_until(lambda: len(list_orders(Path(settings["run_dir"]))) == len(started) + 1)
        started.append(thread)

    started: list[threading.Thread] = []
    update, calls = TrainStep.update, []

    def updating(self, *arguments):
        calls.append(None)
        if len(calls) == 3:
            order("bound", "hard=0.3:0.4")
        if len(calls) == 5:
            order("bound", "easy=0.7:0.8")
        return update(self, *arguments)

    monkeypatch.setattr(TrainStep, "update", updating)
    run_training(load_config(settings))
    for thread in started:
        thread.join()
    shown = capsys.readouterr()
    assert codes == [0, 0] or codes == [0, 1]
    assert "in force; drawn from step 5 on" in shown.out


@pytest.mark.parametrize("answer", [{}, {"step": 3}, {"drawn_from": 5}])
def test_an_answer_that_is_neither_a_refusal_nor_a_step_is_damage(tmp_path: Path, answer: dict):
    order = submit(tmp_path, ["pin", "hard=0.5"])
    order.with_name(order.name.replace("order", "answer")).write_text(json.dumps(answer))
    with pytest.raises(DataError, match=r"answer.json: neither a refusal nor a step"):
        read_answer(order)


def test_an_impossible_order_is_refused_by_the_run(settings: dict, monkeypatch):
    run_dir = Path(settings["run_dir"])
    call_in_update(monkeypatch, 3, lambda: [submit(run_dir, ["pin", word]) for word in ("hard=0.6", "easy=0.6", "x=1")])
    run_training(load_config(settings))
    answers = [read_answer(path) for path in list_orders(run_dir)]
    assert answers[0] == {"step": 3, "drawn_from": 6}
    assert "the lower bounds would sum to 1.2; no mixture has them" in answers[1]["refused"]
    assert "no domain 'x'" in answers[2]["refused"]
    assert len(order_events(run_dir)) == 1


def test_a_damaged_order_is_refused_and_the_run_goes_on(settings: dict):
    folder = Path(settings["run_dir"]) / FOLDER
    folder.mkdir(parents=True)
    for number, text in enumerate(("{", '{"words": []}', '{"words": "pin"}', '{"words": ["pin", 3]}')):
        (folder / f"{number}.order.json").write_text(text)
    run_training(load_config(settings))
    assert all("refused" in read_answer(path) for path in list_orders(Path(settings["run_dir"])))
    assert len(mixtures(settings["run_dir"])) == 12


def test_orders_to_a_run_that_does_not_go(finished: Path, settings: dict, tmp_path, monkeypatch, capsys):
    """A finished one refuses, a stopped one takes the order when it is resumed, one without a record is not there."""
    assert main(["control", str(finished), "freeze"]) == 1
    assert "has ended at step 12" in capsys.readouterr().err
    assert main(["control", str(finished), "pin", "hrad=0.2"]) == 1
    assert "no domain 'hrad' (did you mean 'hard'?)" in capsys.readouterr().err
    assert main(["control", str(tmp_path), "freeze"]) == 1
    assert "no run record here" in capsys.readouterr().err
    stopped = changed(settings, run_dir=str(tmp_path / "stopped"))
    with monkeypatch.context() as patch:
        call_in_update(patch, 4, lambda: os.kill(os.getpid(), signal.SIGTERM))
        run_training(load_config(stopped))
    assert main(["control", stopped["run_dir"], "policy", "uniform"]) == 0
    assert "is stopped at step 5; it takes the order when it is resumed" in capsys.readouterr().out
    run_training(load_config(stopped))
    assert order_events(stopped["run_dir"]) == [(5, {"order": "policy uniform", "drawn_from": 8})]
    np.testing.assert_allclose(mixtures(stopped["run_dir"])[8:], 1 / 3, rtol=1e-15)


def test_an_order_to_a_killed_run_is_kept(settings: dict, monkeypatch, capsys):
    with monkeypatch.context() as patch:
        crash_at(patch, 2)
        with pytest.raises(SimulatedCrash):
            run_training(load_config(settings))
    assert main(["control", settings["run_dir"], "freeze", "--wait", "0"]) == 1
    assert "no answer within 0 s; is it running? The order is taken when it runs again." in capsys.readouterr().err
    run_training(load_config(settings))
    assert order_events(settings["run_dir"]) == [(0, {"order": "freeze", "drawn_from": 3})]


def test_a_run_begun_anew_does_not_take_the_orders_of_the_old_one(finished: Path, settings: dict):
    give(finished, 3, "pin hard=0.5")
    before = mixtures(finished)
    run_training(load_config(settings), resume="none")
    assert mixtures(finished) == before
    assert Path(finished, f"abandoned_0_{FOLDER}").is_dir()


@pytest.mark.slow
def test_two_ranks_of_torchrun_that_are_killed_under_an_order(written, launch, children):  # noqa: F811
    """All ranks draw the order from the same step on, and again after kill -9 of both before the next checkpoint."""
    file, name = written("ordered")
    folder, run_dir = Path(name), Path(name) / "run"
    command = [*TORCHRUN, "-m", "tests.train.ledger_run", file, name]
    launcher = launch(*command)
    wait_until(lambda: (folder / "pid.1").exists() and last_step(folder) >= 8)
    assert main(["control", str(run_dir), "pin", "hard=0.5"]) == 0
    (path,) = list_orders(run_dir)
    answer = read_answer(path)
    wait_until(lambda: last_step(folder) >= answer["drawn_from"])
    pids = [rank_pid(folder, rank) for rank in (0, 1)]
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    launcher.wait(120)
    wait_until(lambda: not any(map(alive, pids)))
    assert last_step(folder) < NUM_STEPS - 1
    assert launch(*command).wait(120) == 0

    reference_file, reference = written("reference")
    give(Path(reference) / "run", answer["step"], "pin hard=0.5")
    children.run(ledger_run.main, reference_file, reference, num_ranks=2)
    assert_equal_runs(Path(reference), folder)
    hard = read_run(run_dir)[0]["domains"].index("hard")
    shares = np.array(mixtures(run_dir))[:, hard]
    assert (shares[answer["drawn_from"] :] == 0.5).all()
    assert (shares[: answer["drawn_from"]] != 0.5).all()
