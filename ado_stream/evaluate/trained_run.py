"""Opens a finished run: its config, the model of its newest valid checkpoint, and corpora that fit the model."""

import dataclasses
import os
from dataclasses import dataclass
from pathlib import Path

from ado_model import ModelConfig, Transformer
from ado_stream.corpus import Corpus
from ado_stream.errors import CheckpointError, ConfigError, NotFound
from ado_stream.train.checkpoint import ModelSizes, load_model, read_metadata
from ado_stream.train.checkpoint_commit import newest_valid
from ado_stream.train.components import open_split
from ado_stream.train.resume import CHECKPOINTS
from ado_stream.train.run_config import CONFIG_FILE, TrainConfig, load_config
from ado_stream.train.torch_defaults import torch_defaults


@dataclass(frozen=True)
class TrainedRun:
    """A run's config and its model after `step` finished steps, on the CPU in float32. tokenizer: its fingerprint."""

    config: TrainConfig
    model: Transformer
    step: int
    tokenizer: str

    def open_corpus(self, split: str, url: str | None = None) -> Corpus:
        """A split of the run's corpus, or of the one at `url`. Raises ConfigError when it does not fit the model."""
        config = dataclasses.replace(self.config, corpus=url or self.config.corpus)
        corpus = open_split(config, split)
        if corpus.tokenizer.fingerprint != self.tokenizer:
            raise ConfigError(
                f"{config.corpus}: its tokenizer, {corpus.tokenizer.name}, is not the one of the training run.\n"
                f"  Prepare it with the tokenizer of the run's corpus, {self.config.corpus}."
            )
        if corpus.seq_len > self.model.config.context_length:
            raise ConfigError(
                f"{config.corpus}: sequences of {corpus.seq_len} tokens; the model's context is "
                f"{self.model.config.context_length}. Prepare it with --seq-len."
            )
        return corpus


@torch_defaults()
def open_run(run_dir: str | os.PathLike[str]) -> TrainedRun:
    """Loads the newest valid checkpoint of a run. Raises NotFound (no run there), CheckpointError (none is valid)."""
    run_dir = Path(run_dir)
    if not (run_dir / CONFIG_FILE).is_file():
        raise NotFound(f"{run_dir}: no {CONFIG_FILE} here; name the run_dir of a training run.")
    directory, skipped = newest_valid(run_dir / CHECKPOINTS)
    if directory is None:
        why = "; ".join(skipped) or "none was saved yet"
        raise CheckpointError(f"{run_dir}: no valid checkpoint: {why}.")
    metadata = read_metadata(directory)
    model = _model(directory, metadata["model"])
    load_model(directory, model)
    config = load_config(run_dir / CONFIG_FILE)
    return TrainedRun(config, model.eval(), metadata["finished_steps"], metadata["tokenizer"])


def _model(directory: Path, sizes: ModelSizes) -> Transformer:
    """A model of these sizes. Raises CheckpointError when there is none, or one larger than what is saved of it."""
    saved_bytes = sum(path.stat().st_size for path in directory.glob("*.safetensors"))
    try:
        config = ModelConfig(**sizes)
        if 4 * config.num_parameters > saved_bytes:
            raise ValueError(f"{config.num_parameters:,} parameters, in {saved_bytes:,} bytes")
        return Transformer(config)
    except (TypeError, ValueError, OverflowError, RuntimeError) as error:  # RuntimeError: torch has no such memory
        raise CheckpointError(f"{directory}: no such model: {error}. Take another checkpoint.") from error
