"""Whole runs on several ranks: as alone in batches and losses, checkpoints for any world, one stop."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ado_stream.record import read_run

SCRIPT = Path(__file__).parent / "train_on_ranks.py"


@pytest.fixture
def written(settings: dict, tmp_path: Path):
    """Writes the settings with some keys replaced as JSON, for a run directory of that name."""

    def write(name: str, **train: object) -> Path:
        path = tmp_path / f"{name}.json"
        changed = {**settings, "run_dir": str(tmp_path / name), "train": {**settings["train"], **train}}
        changed["checkpoint"] = {"every_steps": 4, "keep": 3}
        path.write_text(json.dumps(changed))
        return path

    return write


def compare(one: list[dict], other: list[dict]) -> None:
    """Equal draws; losses within 1e-5, a hundred float32 roundings of a sum in another order.

    ADO's laws, fitted to a handful of steps here, magnify those roundings in the mixture a thousandfold.
    """
    assert [line["step"] for line in one] == [line["step"] for line in other]
    for mine, theirs in zip(one, other, strict=True):
        assert mine["samples"] == theirs["samples"]
        assert mine["domain_tokens"] == theirs["domain_tokens"]
        assert mine["mixture"] == pytest.approx(theirs["mixture"], abs=1e-3)
        assert mine["loss"] == pytest.approx(theirs["loss"], abs=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(("num_ranks", "strategy"), [(2, "ddp"), (2, "fsdp"), (4, "ddp")])
def test_several_ranks_train_as_one(ranks, written, num_ranks: int, strategy: str):
    alone = ranks(1, SCRIPT, written("alone", steps=20), "none")
    many = ranks(num_ranks, SCRIPT, written("many", steps=20, strategy=strategy), "none")
    assert len(alone["steps"]) == 20
    compare(alone["steps"], many["steps"])


@pytest.mark.slow
def test_a_run_moves_from_one_world_to_another(ranks, written, tmp_path: Path):
    """One rank, then two with FSDP, then two with DDP; the oracle never moved."""
    whole = ranks(1, SCRIPT, written("whole"), "auto")
    written("moved")
    for num_ranks, strategy, newest in ((1, "ddp", 4), (2, "fsdp", 8), (2, "ddp", 12)):
        found = ranks(num_ranks, SCRIPT, written("moved", strategy=strategy), "auto")
        checkpoints = sorted((tmp_path / "moved" / "checkpoints").glob("step_*"))
        compare(whole["steps"], found["steps"])
        for path in checkpoints:  # pretend that the run ended after `newest`
            if int(path.name.removeprefix("step_")) > newest:
                shutil.rmtree(path)


@pytest.mark.fault
def test_sigterm_to_torchrun_stops_all_ranks_at_one_step_with_a_checkpoint(written, tmp_path: Path):
    """The ranks exit 0 after saving; torchrun itself returns 1, as it does after any SIGTERM."""
    settings = written("stopped", steps=100_000)
    root = Path(__file__).parents[2]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = os.pathsep.join(str(root / part) for part in (".", "kernels", "model"))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    out = tmp_path / "out.json"
    launcher = subprocess.Popen([*command, str(SCRIPT), str(settings), "none", str(out)], env=environment)
    record = tmp_path / "stopped" / "record.jsonl"
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and (not record.exists() or record.read_bytes().count(b'"kind":"step"') < 5):
        time.sleep(0.1)
    launcher.send_signal(signal.SIGTERM)
    launcher.wait(60)
    lines = read_run(tmp_path / "stopped")[1]
    (stop,) = [event for event in lines["event"] if event["name"] == "stop"]
    assert lines["step"][-1]["step"] + 1 == stop["step"]
    assert (tmp_path / "stopped" / "checkpoints" / f"step_{stop['step']:08d}" / "COMMIT.json").exists()
