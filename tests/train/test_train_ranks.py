"""Whole runs on several ranks: as alone in batches and losses, and a checkpoint of any world goes on in any other."""

import json
import shutil
from pathlib import Path

import pytest

from tests.train import checkpoints_on_ranks, train_on_ranks

WORLDS = [(1, "ddp"), (2, "ddp"), (2, "fsdp"), (4, "ddp"), (4, "fsdp")]


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
def test_several_ranks_train_as_one(ranks, written):
    alone = ranks(1, train_on_ranks.main, written("alone", steps=20), "none")
    assert len(alone["steps"]) == 20
    for num_ranks, strategy in WORLDS[1:]:
        many = ranks(num_ranks, train_on_ranks.main, written("many", steps=20, strategy=strategy), "none")
        compare(alone["steps"], many["steps"])


@pytest.mark.slow
def test_a_run_moves_from_one_world_to_another(ranks, written, tmp_path: Path):
    """Each goes on from the checkpoint that the one before left at `newest`; the oracle never moved."""
    whole = ranks(1, train_on_ranks.main, written("whole", steps=24), "auto")
    worlds = [(1, "ddp"), (4, "fsdp"), (2, "ddp"), (4, "ddp"), (2, "fsdp"), (1, "ddp")]
    for newest, (num_ranks, strategy) in zip(range(4, 28, 4), worlds, strict=True):
        found = ranks(num_ranks, train_on_ranks.main, written("moved", steps=24, strategy=strategy), "auto")
        compare(whole["steps"], found["steps"])
        for path in (tmp_path / "moved" / "checkpoints").glob("step_*"):  # as if the run had ended after `newest`
            if int(path.name.removeprefix("step_")) > newest:
                shutil.rmtree(path)


@pytest.mark.slow
def test_a_checkpoint_of_any_world_loads_on_any_other_to_the_bit(ranks, tmp_path: Path):
    for num_ranks, strategy in WORLDS:
        ranks(num_ranks, checkpoints_on_ranks.save, strategy, str(tmp_path / f"{num_ranks}-{strategy}"))
    for num_ranks, strategy in WORLDS:
        found = ranks(num_ranks, checkpoints_on_ranks.load, strategy, str(tmp_path))
        assert found == {f"{size}-{kind}": [] for size, kind in WORLDS}
