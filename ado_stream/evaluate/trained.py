"""Opens what a run left: its config, its newest sound checkpoint, its model."""

import os
from dataclasses import dataclass
from pathlib import Path

from ado_model import ModelConfig, Transformer
from ado_stream.errors import CheckpointError, NotFound
from ado_stream.train import commit
from ado_stream.train.checkpoint import load_facts, load_model
from ado_stream.train.config import TrainConfig, load_config
from ado_stream.train.run import CHECKPOINTS, CONFIG_FILE


@dataclass(frozen=True)
class Trained:
    """A run's config, and its model after `step` finished steps, on the CPU in float32."""

    config: TrainConfig
    model: Transformer
    step: int


def open_run(run_dir: str | os.PathLike[str]) -> Trained:
    """The newest complete checkpoint of a run. Raises NotFound (no run there), CheckpointError (none is sound)."""
    run_dir = Path(run_dir)
    if not (run_dir / CONFIG_FILE).is_file():
        raise NotFound(f"{run_dir}: no {CONFIG_FILE} here; name the run_dir of a training run.")
    directory, passed_over = commit.newest_sound(run_dir / CHECKPOINTS)
    if directory is None:
        why = "; ".join(passed_over) or "none was saved yet"
        raise CheckpointError(f"{run_dir}: no complete checkpoint: {why}.")
    facts = load_facts(directory)
    model = Transformer(ModelConfig(**facts["model"]))
    load_model(directory, model)
    return Trained(load_config(run_dir / CONFIG_FILE), model.eval(), int(facts["finished_steps"]))
