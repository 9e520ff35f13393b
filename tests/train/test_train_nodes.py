"""Two nodes (network namespaces with a torchrun each) between which the network link is cut."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.train import ledger_run
from tests.train.network import NETWORK, NODES, STORE, inside, ip
from tests.waiting import wait_until

pytestmark = pytest.mark.fault
ROOT = Path(__file__).parents[2]
NUM_STEPS = 40
TIMEOUT_S = 8.0  # of every wait between ranks
ADDRESS, PORT = f"{NETWORK}.2", "29512"


@pytest.fixture
def launch(settings: dict, tmp_path: Path, nodes) -> Iterator[Callable[..., list[subprocess.Popen]]]:
    """Starts one torchrun per node, as on two machines; kills them at the end."""
    launched: list[subprocess.Popen] = []

    def start() -> list[subprocess.Popen]:
        changed = {**settings, "checkpoint": {"every_steps": 0}, "evaluate": {"every_steps": 0}}
        changed["train"] = {**settings["train"], "steps": NUM_STEPS, "collective_timeout_s": TIMEOUT_S}
        (tmp_path / "settings.json").write_text(json.dumps(changed))
        environment = {**os.environ, "GLOO_SOCKET_IFNAME": "eth0"}
        environment["PYTHONPATH"] = os.pathsep.join(str(ROOT / part) for part in (".", "kernels", "model"))
        for number, node in enumerate(NODES):
            launcher = [sys.executable, "-m", "torch.distributed.run", "--nnodes=2", "--nproc-per-node=1"]
            rendezvous = [f"--node-rank={number}", f"--master-addr={ADDRESS}", f"--master-port={PORT}"]
            program = ["-m", "tests.train.ledger_run", str(tmp_path / "settings.json"), str(tmp_path)]
            launched.append(inside(node, *launcher, *rendezvous, *program, env=environment, cwd=ROOT))
        return launched

    yield start
    for process in launched:
        process.kill()
        process.wait()


def wait_for_step(folder: Path, step: int) -> None:
    """Returns when both ranks have read the rows of `step`."""
    wait_until(lambda: min(ledger_run.last_step(folder, rank) for rank in (0, 1)) >= step)


def link(state: str) -> None:
    """Sets the second node's port at the switch "up" or "down"."""
    ip("-n", STORE, "link", "set", "port1", state)


def test_a_link_that_is_down_for_three_seconds_changes_nothing(launch, children, settings: dict, tmp_path: Path):
    launched = launch()
    wait_for_step(tmp_path, 10)
    link("down")
    time.sleep(3.0)
    last_steps = [ledger_run.last_step(tmp_path, rank) for rank in (0, 1)]
    link("up")
    assert [process.wait(60) for process in launched] == [0, 0]
    assert max(last_steps) < NUM_STEPS - 1  # the link was down during training
    reference = tmp_path / "reference"
    reference.mkdir()
    changed = {**json.loads((tmp_path / "settings.json").read_text()), "run_dir": str(reference / "run")}
    (reference / "settings.json").write_text(json.dumps(changed))
    children.run(ledger_run.main, str(reference / "settings.json"), str(reference), num_ranks=2)
    assert ledger_run.read_ledger(tmp_path) == ledger_run.read_ledger(reference)


@pytest.mark.deadline
def test_a_link_that_stays_down_ends_all_ranks_within_the_timeout(launch, tmp_path: Path):
    launched = launch()
    wait_for_step(tmp_path, 10)
    pids = [int((tmp_path / f"pid.{rank}").read_text()) for rank in (0, 1)]
    link("down")
    cut = time.monotonic()
    wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids))
    # The exit of two interpreters on a busy machine; without the group's timeout a wait takes gloo's 30 minutes.
    assert time.monotonic() - cut < TIMEOUT_S + 30.0
    assert all(process.wait(60) != 0 for process in launched)
