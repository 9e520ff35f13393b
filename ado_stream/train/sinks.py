"""TensorBoard and Weights & Biases, when asked; a resumed run goes on under the id it had."""

from pathlib import Path
from typing import Any

from ado_stream.errors import ConfigError
from ado_stream.train.config import LogSection
from ado_stream.train.steplog import Sink


class TensorBoardSink:
    """Event files in RUN/tensorboard."""

    def __init__(self, run_dir: Path, first_step: int):
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise _missing("log.tensorboard", "tensorboard") from None
        self._writer = SummaryWriter(str(run_dir / "tensorboard"), purge_step=first_step)

    def scalars(self, step: int, values: dict[str, float]) -> None:
        """Adds one point to every curve."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Writes what is still in memory."""
        self._writer.close()


class WandbSink:
    """A run at Weights & Biases with this run's id; its curves go over "step", since a step's numbers come one late."""

    def __init__(self, run_dir: Path, run_id: str, config: dict[str, Any]):
        try:
            import wandb
        except ImportError:
            raise _missing("log.wandb", "wandb") from None
        self._run = wandb.init(id=run_id, dir=str(run_dir), config=config, resume="allow", project="ado-stream")
        self._run.define_metric("*", step_metric="step")

    def scalars(self, step: int, values: dict[str, float]) -> None:
        """Adds one point to every curve."""
        self._run.log({"step": step, **values})

    def close(self) -> None:
        """Ends the upload."""
        self._run.finish()


def make_sinks(options: LogSection, run_dir: Path, run_id: str, first_step: int, config: dict[str, Any]) -> list[Sink]:
    """The sinks that the config asks for. Raises ConfigError with the command that installs a missing package."""
    sinks: list[Sink] = []
    if options.tensorboard:
        sinks.append(TensorBoardSink(run_dir, first_step))
    if options.wandb:
        sinks.append(WandbSink(run_dir, run_id, config))
    return sinks


def _missing(key: str, extra: str) -> ConfigError:
    return ConfigError(f"'{key}' needs the package {extra}: pip install 'ado-stream[{extra}]', or set {key}=false.")
