"""Whole runs on several ranks: the batches and losses of one rank, and checkpoints that load on any number of ranks."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from ado_stream.record import read_run
from tests.train import checkpoint_on_ranks, ledger_run, train_on_ranks
from tests.train.child_processes import ChildProcesses

PLACEMENTS = [(1, "ddp"), (2, "ddp"), (2, "fsdp"), (4, "ddp"), (4, "fsdp")]


@pytest.fixture
def written(settings: dict, tmp_path: Path):
    """Writes the settings with some keys replaced as JSON, for a run directory of that name."""

    def write(name: str, **train: object) -> str:
        path = tmp_path / f"{name}.json"
        changed = {**settings, "run_dir": str(tmp_path / name), "train": {**settings["train"], **train}}
        changed["checkpoint"] = {"every_steps": 4, "keep": 6}
        path.write_text(json.dumps(changed))
        return str(path)

    return write


@pytest.fixture
def allowed(ranks, written) -> dict[str, float]:
    """How far rounding may move losses and mixtures of 24 steps: the most of three runs from perturbed weights.

    (tests/rounding.py.) ADO's laws, fitted to a handful of steps, amplify what it does to losses.
    """
    plain = ranks(1, train_on_ranks.main, written("plain", steps=24), "auto")["steps"]
    found = {"loss": 0.0, "mixture": 0.0}
    for seed in range(3):
        moved = ranks(1, train_on_ranks.perturbed, written(f"perturbed {seed}", steps=24), seed)["steps"]
        for one, other in zip(plain, moved, strict=True):
            for key in found:
                found[key] = max(found[key], np.abs(np.subtract(one[key], other[key])).max())
    return found


def assert_close_steps(one: list[dict], other: list[dict], allowed: dict[str, float]) -> None:
    """Equal draws, and losses and mixtures that differ by no more than is allowed."""
    assert [line["step"] for line in one] == [line["step"] for line in other]
    for mine, theirs in zip(one, other, strict=True):
        assert mine["samples"] == theirs["samples"]
        assert mine["domain_tokens"] == theirs["domain_tokens"]
        assert mine["mixture"] == pytest.approx(theirs["mixture"], abs=allowed["mixture"])
        assert mine["loss"] == pytest.approx(theirs["loss"], abs=allowed["loss"])


def rows(folder: Path) -> dict[tuple[int, int], str]:
    """(step, slot) -> domain and checksum of the tokens, of all ranks together."""
    return {key: row.rpartition(" ")[0] for key, row in ledger_run.read_ledger(folder).items()}


@pytest.mark.slow
def test_several_ranks_train_as_one(children: ChildProcesses, written, allowed: dict[str, float], tmp_path: Path):
    """Row by row, although ADO decides by losses that ranks add up in another order."""
    found = {}
    for num_ranks, strategy in PLACEMENTS:
        name = f"{num_ranks}-{strategy}"
        (tmp_path / f"ledger {name}").mkdir()
        settings = written(name, steps=20, strategy=strategy)
        children.run(ledger_run.main, settings, str(tmp_path / f"ledger {name}"), num_ranks=num_ranks)
        found[name] = read_run(tmp_path / name)[1]["step"], rows(tmp_path / f"ledger {name}")
    one_rank_steps, one_rank_rows = found.pop("1-ddp")
    assert one_rank_rows.keys() == {(step, slot) for step in range(20) for slot in range(8)}
    assert len({line["mixture"][0] for line in one_rank_steps}) > 5  # ADO changed it
    for many_steps, many_rows in found.values():
        assert many_rows == one_rank_rows
        assert_close_steps(one_rank_steps, many_steps, allowed)


@pytest.mark.slow
def test_a_run_resumes_on_another_number_of_ranks(ranks, written, allowed: dict[str, float], tmp_path: Path):
    """Each resumes from the previous one's checkpoint of `newest`; the oracle runs on one rank throughout."""
    whole = ranks(1, train_on_ranks.main, written("whole", steps=24), "auto")
    placements = [(1, "ddp"), (4, "fsdp"), (2, "ddp"), (4, "ddp"), (2, "fsdp"), (1, "ddp")]
    for newest, (num_ranks, strategy) in zip(range(4, 28, 4), placements, strict=True):
        found = ranks(num_ranks, train_on_ranks.main, written("moved", steps=24, strategy=strategy), "auto")
        assert_close_steps(whole["steps"], found["steps"], allowed)
        for path in (tmp_path / "moved" / "checkpoints").glob("step_*"):  # as if the run had stopped at `newest`
            if int(path.name.removeprefix("step_")) > newest:
                shutil.rmtree(path)


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_a_loss_that_is_nan_on_one_rank_skips_the_step_on_all(ranks, written, strategy: str, tmp_path: Path):
    """The run ends at its last step; the step counts for no domain, and every later loss and mixture is finite."""
    settings = written("poisoned", steps=12, strategy=strategy)
    found = ranks(2, train_on_ranks.poisoned, settings, 5)
    assert not found["stopped"]
    assert [line["step"] for line in found["steps"]] == list(range(12))
    assert [line["step"] for line in found["steps"] if line["loss"] is None or np.isnan(line["loss"])] == [5]
    assert np.isfinite([line["mixture"] for line in found["steps"]]).all()
    events = read_run(tmp_path / "poisoned")[1]["event"]
    assert [event["step"] for event in events if event["name"] == "skip"] == [5]


@pytest.mark.slow
def test_a_checkpoint_loads_to_the_bit_on_any_number_of_ranks(ranks, tmp_path: Path):
    for num_ranks, strategy in PLACEMENTS:
        ranks(num_ranks, checkpoint_on_ranks.save, strategy, str(tmp_path / f"{num_ranks}-{strategy}"))
    for num_ranks, strategy in PLACEMENTS:
        found = ranks(num_ranks, checkpoint_on_ranks.load, strategy, str(tmp_path))
        assert found == {f"{size}-{kind}": [] for size, kind in PLACEMENTS}
