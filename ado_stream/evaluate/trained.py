"""Opens what a run left: its config, its newest sound checkpoint, its model, and the corpora that fit it."""

import dataclasses
import os
from dataclasses import dataclass
from pathlib import Path

from ado_model import ModelConfig, Transformer
from ado_stream.corpus import Corpus
from ado_stream.errors import CheckpointError, ConfigError, NotFound
from ado_stream.train import commit
from ado_stream.train.assemble import open_split
from ado_stream.train.checkpoint import load_model, read_facts
from ado_stream.train.config import TrainConfig, load_config
from ado_stream.train.resume import CHECKPOINTS
from ado_stream.train.run import CONFIG_FILE


@dataclass(frozen=True)
class Trained:
    """A run's config, and its model after `step` finished steps, on the CPU in float32. tokenizer: its fingerprint."""

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
                f"{config.corpus}: its tokenizer, {corpus.tokenizer.name}, is not the one that the run learned with.\n"
                f"  Prepare it with --tokenizer and what the run's corpus {self.config.corpus} has."
            )
        if corpus.seq_len > self.model.config.context_length:
            raise ConfigError(
                f"{config.corpus}: sequences of {corpus.seq_len} tokens; the model's context is "
                f"{self.model.config.context_length}. Prepare it with --seq-len."
            )
        return corpus


def open_run(run_dir: str | os.PathLike[str]) -> Trained:
    """The newest complete checkpoint of a run. Raises NotFound (no run there), CheckpointError (none is sound)."""
    run_dir = Path(run_dir)
    if not (run_dir / CONFIG_FILE).is_file():
        raise NotFound(f"{run_dir}: no {CONFIG_FILE} here; name the run_dir of a training run.")
    directory, passed_over = commit.newest_sound(run_dir / CHECKPOINTS)
    if directory is None:
        why = "; ".join(passed_over) or "none was saved yet"
        raise CheckpointError(f"{run_dir}: no complete checkpoint: {why}.")
    facts = read_facts(directory)
    model = Transformer(ModelConfig(**facts["model"]))
    load_model(directory, model)
    config = load_config(run_dir / CONFIG_FILE)
    return Trained(config, model.eval(), int(facts["finished_steps"]), facts["tokenizer"])
