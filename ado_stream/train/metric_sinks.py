"""TensorBoard and Weights & Biases as metric sinks; a resumed run continues its curves."""

import importlib
import os
from pathlib import Path

from ado_stream.errors import ConfigError
from ado_stream.redact import plain
from ado_stream.train.run_config import LogSection
from ado_stream.train.step_log import MetricSink
from ado_stream.value_types import JsonObject


class TensorBoardSink:
    """Event files in RUN/tensorboard."""

    def __init__(self, run_dir: Path, first_step: int):
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(run_dir / "tensorboard"), purge_step=first_step)

    def write_scalars(self, step: int, values: dict[str, float]) -> None:
        """Writes one point of every curve."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self, failed: bool) -> None:
        """Writes what is still buffered."""
        self._writer.close()


class WandbSink:
    """A Weights & Biases run with this run's id, in the project WANDB_PROJECT or "ado-stream".

    Its x axis is the metric "step": values are logged one step late, so W&B's own step counter would be off by one.
    """

    def __init__(self, run_dir: Path, run_id: str, config: JsonObject):
        import wandb

        project = os.environ.get("WANDB_PROJECT", "ado-stream")
        try:
            self._run = wandb.init(id=run_id, dir=str(run_dir), config=plain(config), resume="allow", project=project)
        except wandb.Error as error:  # no key, no network
            reason = str(error).partition("\n")[0].rstrip(".")
            raise ConfigError(
                f"'log.wandb': {reason}.\n  Run `wandb login`, set WANDB_MODE=offline, or set log.wandb=false."
            ) from error
        self._run.define_metric("*", step_metric="step")

    def write_scalars(self, step: int, values: dict[str, float]) -> None:
        """Writes one point of every curve."""
        self._run.log({"step": step, **values})

    def close(self, failed: bool) -> None:
        """Ends the run at Weights & Biases, as failed or finished."""
        self._run.finish(exit_code=int(failed))


def require_packages(options: LogSection) -> None:
    """Raises ConfigError, with the command that installs it, for a package that `make_sinks` would not find."""
    for extra, module in (("tensorboard", "torch.utils.tensorboard"), ("wandb", "wandb")):
        if getattr(options, extra):
            try:
                importlib.import_module(module)
            except ImportError:
                raise ConfigError(
                    f"'log.{extra}' needs the package {extra}: pip install 'ado-stream[{extra}]', or set "
                    f"log.{extra}=false."
                ) from None


def make_sinks(
    options: LogSection, run_dir: Path, run_id: str, first_step: int, config: JsonObject
) -> list[MetricSink]:
    """The sinks that are enabled in the config."""
    sinks: list[MetricSink] = []
    if options.tensorboard:
        sinks.append(TensorBoardSink(run_dir, first_step))
    if options.wandb:
        sinks.append(WandbSink(run_dir, run_id, config))
    return sinks
