"""Ranks and launchers killed, and runs stopped by signals, under a real torchrun: no row is lost or read twice.

The reference is two ranks that ran undisturbed; rows, mixtures and final weights must be equal to the bit.
"""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ado_stream.record import read_run
from tests.train import ledger_run
from tests.train.child_processes import finish
from tests.train.run_helpers import checkpoint_tensors
from tests.waiting import wait_until

pytestmark = pytest.mark.fault
ROOT = Path(__file__).parents[2]
NUM_STEPS = 60
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


@pytest.fixture
def written(settings: dict, tmp_path: Path) -> Callable[..., tuple[str, str]]:
    """Writes a config; returns (its file, folder) for a run of that name in FOLDER/run."""

    def write(name: str, **train: object) -> tuple[str, str]:
        folder = tmp_path / name
        folder.mkdir()
        changed = {**settings, "run_dir": str(folder / "run"), "checkpoint": {"every_steps": 5}}
        changed["train"] = {**settings["train"], "steps": NUM_STEPS, **train}
        changed["evaluate"] = {"every_steps": 0}
        (folder / "settings.json").write_text(json.dumps(changed))
        return str(folder / "settings.json"), str(folder)

    return write


@pytest.fixture
def reference(children, written) -> Path:
    """The folder of two ranks that ran undisturbed."""
    file, folder = written("reference")
    children.run(ledger_run.main, file, folder, num_ranks=2)
    return Path(folder)


@pytest.fixture
def launch() -> Iterator[Callable[..., subprocess.Popen]]:
    """Starts a launcher in a session of its own; kills it at the end."""
    launched: list[subprocess.Popen] = []

    def start(*command: str) -> subprocess.Popen:
        paths = os.pathsep.join(str(ROOT / part) for part in (".", "kernels", "model"))
        environment = {**os.environ, "PYTHONPATH": paths}
        launched.append(subprocess.Popen(command, env=environment, cwd=ROOT, start_new_session=True))
        return launched[-1]

    yield start
    for process in launched:
        process.kill()
        process.wait()


def rank_pid(folder: Path, rank: int) -> int:
    """The process of a rank of the newest attempt."""
    text = (folder / f"pid.{rank}").read_text()
    return int(text or 0)


def alive(pid: int) -> bool:
    """Whether a process runs; a zombie does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def last_step(folder: Path) -> int:
    """The last step that both ranks have drawn."""
    return min(ledger_run.last_step(folder, rank) for rank in (0, 1))


def assert_equal_runs(reference: Path, folder: Path) -> None:
    """Asserts the same rows, mixtures and weights, and a record with each step once."""
    assert ledger_run.read_ledger(folder) == ledger_run.read_ledger(reference)
    assert [line["step"] for line in read_run(folder / "run")[1]["step"]] == list(range(NUM_STEPS))
    assert checkpoint_tensors(folder / "run", NUM_STEPS) == checkpoint_tensors(reference / "run", NUM_STEPS)


def test_killed_ranks_and_launchers_change_nothing(reference, written, launch):
    """kill -9 of rank 1, of all ranks, of the launcher, each at a random step; the last attempt goes to the end."""
    generator = random.Random(1)
    file, name = written("killed")
    folder = Path(name)
    command = [*TORCHRUN, "--max-restarts", "2", "-m", "tests.train.ledger_run", file, name]
    launcher = launch(*command)
    pids: list[int] = []
    for victims in ([1], [0, 1], []):
        wait_until(lambda seen=pids: (folder / "pid.1").exists() and rank_pid(folder, 1) not in (0, *seen))
        begun = last_step(folder)
        wanted = begun + generator.randrange(6, 14)
        wait_until(lambda wanted=wanted: last_step(folder) >= wanted)
        pids = [rank_pid(folder, 0), rank_pid(folder, 1)]
        for rank in victims:
            os.kill(pids[rank], signal.SIGKILL)
    launcher.kill()
    wait_until(lambda: not any(map(alive, pids)))
    assert last_step(folder) < NUM_STEPS - 1
    assert launch(*command).wait(120) == 0
    assert_equal_runs(reference, folder)
    resumes = [event for event in read_run(folder / "run")[1]["event"] if event["name"] == "resume"]
    assert resumes


def test_without_the_death_signal_ranks_outlive_their_launcher(written, launch):
    """Negative control: what PR_SET_PDEATHSIG prevents."""
    file, name = written("orphaned")
    folder = Path(name)
    launcher = launch(*TORCHRUN, "-m", "tests.train.ledger_run", file, name, "orphans")
    wait_until(lambda: last_step(folder) >= 5)
    launcher.kill()
    launcher.wait()
    killed_at = last_step(folder)
    pids = [rank_pid(folder, rank) for rank in (0, 1)]
    try:
        wait_until(lambda: last_step(folder) > killed_at + 5)
    finally:
        for pid in filter(alive, pids):
            os.kill(pid, signal.SIGKILL)


@pytest.mark.deadline
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_all_ranks_at_one_step_with_exit_code_0(
    reference, written, launch, children, number: signal.Signals
):
    """SIGTERM to torchrun; SIGINT to its whole process group, as Ctrl-C. torchrun itself returns 1 after either."""
    file, name = written("stopped")
    folder = Path(name)
    rank = [sys.executable, "-m", "tests.train.ledger_run", file, name]
    wrapped = [sys.executable, str(ROOT / "tests" / "train" / "exit_code.py"), name, *rank]
    launcher = launch(*TORCHRUN, "--no-python", *wrapped)
    wait_until(lambda: last_step(folder) >= 12)
    asked = time.time()
    if number == signal.SIGINT:
        os.killpg(launcher.pid, number)
    else:
        launcher.send_signal(number)
    launcher.wait(60)
    assert [(folder / f"exit.{each}").read_text() for each in (0, 1)] == ["0", "0"]
    lines = read_run(folder / "run")[1]
    (stop,) = [event["step"] for event in lines["event"] if event["name"] == "stop"]
    assert stop < NUM_STEPS
    assert [ledger_run.last_step(folder, each) + 1 for each in (0, 1)] == [stop, stop]
    assert lines["step"][-1]["step"] + 1 == stop
    marker = folder / "run" / "checkpoints" / f"step_{stop:08d}" / "COMMIT.json"
    assert 0 < marker.stat().st_mtime - asked < 5.0
    children.run(ledger_run.main, file, name, num_ranks=2)
    assert_equal_runs(reference, folder)


def test_a_signal_to_one_rank_stops_all_of_them(reference, written, children):
    """If each rank went by its own signal only, the others would wait for it until the timeout."""
    file, name = written("asked", collective_timeout_s=20.0)
    folder = Path(name)
    ranks = children.start_ranks(2, ledger_run.main, file, name)
    wait_until(lambda: last_step(folder) >= 12)
    ranks[1].terminate()
    for rank in ranks:
        finish(rank)
    assert ledger_run.last_step(folder, 0) == ledger_run.last_step(folder, 1) < NUM_STEPS - 1
    children.run(ledger_run.main, file, name, num_ranks=2)
    assert_equal_runs(reference, folder)
