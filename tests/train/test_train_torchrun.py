"""docs/faults.md P1 and P2 under torchrun: ranks and launchers killed, runs asked to stop; nothing lost or doubled.

The reference is the ledger of two ranks that were left alone; its mixtures and final weights must come out to the bit.
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
from safetensors.torch import load_file

from ado_stream.record import read_run
from tests.train import ledgered
from tests.train.forked import finish

pytestmark = pytest.mark.fault
ROOT = Path(__file__).parents[2]
NUM_STEPS = 60
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


@pytest.fixture
def written(settings: dict, tmp_path: Path) -> Callable[..., tuple[str, str]]:
    """(settings file, folder) of a run of that name; the run's directory is FOLDER/run."""

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
def reference(forked, written) -> Path:
    """The folder of two ranks that nobody disturbed."""
    file, folder = written("reference")
    forked.run(ledgered.main, file, folder, num_ranks=2)
    return Path(folder)


@pytest.fixture
def launch() -> Iterator[Callable[..., subprocess.Popen]]:
    """Starts a launcher in a session of its own; kills what is left of it at the end."""
    launched: list[subprocess.Popen] = []

    def start(*command: str) -> subprocess.Popen:
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        environment["PYTHONPATH"] = os.pathsep.join(str(ROOT / part) for part in (".", "kernels", "model"))
        launched.append(subprocess.Popen(command, env=environment, cwd=ROOT, start_new_session=True))
        return launched[-1]

    yield start
    for process in launched:
        process.kill()
        process.wait()


def until(reached: Callable[[], bool], timeout_s: float = 120.0) -> None:
    """Returns once `reached` is true."""
    deadline = time.monotonic() + timeout_s
    while not reached():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.005)


def pid_of(folder: Path, rank: int) -> int:
    """The process of a rank of the newest attempt."""
    text = (folder / f"pid.{rank}").read_text()
    return int(text or 0)


def alive(pid: int) -> bool:
    """Whether a process runs; one that ended and was not waited for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def last_step(folder: Path) -> int:
    """The last step that both ranks have drawn."""
    return min(ledgered.last_step(folder, rank) for rank in (0, 1))


def equal_to(reference: Path, folder: Path) -> None:
    """Asserts the same rows, mixtures and weights, and a record with each step once."""
    assert ledgered.read_ledger(folder) == ledgered.read_ledger(reference)
    assert [line["step"] for line in read_run(folder / "run")[1]["step"]] == list(range(NUM_STEPS))
    assert final_tensors(folder) == final_tensors(reference)


def final_tensors(folder: Path) -> dict[str, list]:
    """Every tensor of the last checkpoint, exactly."""
    files = (folder / "run" / "checkpoints" / f"step_{NUM_STEPS:08d}").glob("*.safetensors")
    return {name: tensor.tolist() for file in files for name, tensor in load_file(file).items()}


def test_p1_ranks_and_launcher_killed(reference, written, launch):
    """kill -9 of rank 1, of all ranks, of the launcher, each at a random step; the last attempt goes to the end."""
    generator = random.Random(1)
    file, name = written("killed")
    folder = Path(name)
    command = [*TORCHRUN, "--max-restarts", "2", "-m", "tests.train.ledgered", file, name]
    launcher = launch(*command)
    pids: list[int] = []
    for victims in ([1], [0, 1], []):
        until(lambda seen=pids: (folder / "pid.1").exists() and pid_of(folder, 1) not in (0, *seen))
        begun = last_step(folder)
        wanted = begun + generator.randrange(6, 14)
        until(lambda wanted=wanted: last_step(folder) >= wanted)
        pids = [pid_of(folder, 0), pid_of(folder, 1)]
        for rank in victims:
            os.kill(pids[rank], signal.SIGKILL)
    launcher.kill()
    until(lambda: not any(map(alive, pids)), timeout_s=2.0)
    assert last_step(folder) < NUM_STEPS - 1
    assert launch(*command).wait(120) == 0
    equal_to(reference, folder)
    resumes = [event for event in read_run(folder / "run")[1]["event"] if event["name"] == "resume"]
    assert resumes


def test_p1_without_the_death_signal_ranks_outlive_their_launcher(written, launch):
    """The sibling: what PR_SET_PDEATHSIG prevents."""
    file, name = written("orphaned")
    folder = Path(name)
    launcher = launch(*TORCHRUN, "-m", "tests.train.ledgered", file, name, "orphans")
    until(lambda: last_step(folder) >= 5)
    launcher.kill()
    pids = [pid_of(folder, rank) for rank in (0, 1)]
    try:
        time.sleep(0.5)
        assert any(map(alive, pids))
    finally:
        for pid in filter(alive, pids):
            os.kill(pid, signal.SIGKILL)


@pytest.mark.deadline
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_p2_all_ranks_stop_at_one_step_save_and_exit_0(reference, written, launch, forked, number: signal.Signals):
    """SIGTERM to torchrun; Ctrl-C, which reaches its whole process group. torchrun itself returns 1 after either."""
    file, name = written("stopped")
    folder = Path(name)
    rank = [sys.executable, "-m", "tests.train.ledgered", file, name]
    wrapped = [sys.executable, str(ROOT / "tests" / "train" / "exit_code.py"), name, *rank]
    launcher = launch(*TORCHRUN, "--no-python", *wrapped)
    until(lambda: last_step(folder) >= 12)
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
    assert [ledgered.last_step(folder, each) + 1 for each in (0, 1)] == [stop, stop]
    assert lines["step"][-1]["step"] + 1 == stop
    marker = folder / "run" / "checkpoints" / f"step_{stop:08d}" / "COMMIT.json"
    assert 0 < marker.stat().st_mtime - asked < 5.0
    forked.run(ledgered.main, file, name, num_ranks=2)
    equal_to(reference, folder)


def test_p2_a_signal_to_one_rank_stops_all_of_them(reference, written, forked):
    """The sibling, each rank going by its own signal alone, would leave the others waiting for it."""
    file, name = written("asked", collective_timeout_s=20.0)
    folder = Path(name)
    ranks = forked.start_ranks(2, ledgered.main, file, name)
    until(lambda: last_step(folder) >= 12)
    ranks[1].terminate()
    for rank in ranks:
        finish(rank)
    assert ledgered.last_step(folder, 0) == ledgered.last_step(folder, 1) < NUM_STEPS - 1
    forked.run(ledgered.main, file, name, num_ranks=2)
    equal_to(reference, folder)
