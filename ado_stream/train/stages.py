"""The stages of a run: which settings hold from which step to which.

A run goes from stage to stage as from a stop to a resume: each ends with a checkpoint, and the next one begins from it
with its own settings. So it is the same whether it was interrupted, and where.
"""

import dataclasses
from dataclasses import dataclass

from ado_stream.policy.base_policy import PlannedStage
from ado_stream.stream.batch_draw import DrawSettings
from ado_stream.stream.batch_rows import with_rows_of
from ado_stream.train.run_config import StageSection, TrainConfig


@dataclass(frozen=True)
class Stage:
    """Steps `begin` to `end` of a run, `end` not included. number: from 1. config: the run's, with `section` in it."""

    number: int
    begin: int
    end: int
    section: StageSection
    config: TrainConfig

    @property
    def num_steps(self) -> int:
        """Steps of this stage."""
        return self.end - self.begin


def run_stages(config: TrainConfig) -> list[Stage]:
    """The stages of a config that `load_config` made; one for all steps where it has none."""
    data, train = config.data, config.train
    whole = StageSection(train.steps, data.global_batch_size, data.seq_len, train.micro_batch_size)
    stages: list[Stage] = []
    for number, section in enumerate(config.stages or [whole], 1):
        assert section.global_batch_size is not None, "filled in by load_config"
        data = dataclasses.replace(data, global_batch_size=section.global_batch_size, seq_len=section.seq_len)
        train = dataclasses.replace(train, micro_batch_size=section.micro_batch_size)
        begin, now = stages[-1].end if stages else 0, dataclasses.replace(config, data=data, train=train)
        stages.append(Stage(number, begin, begin + section.steps, section, now))
    return stages


def stage_at(config: TrainConfig, step: int) -> Stage:
    """The stage that `step` belongs to, or the last one."""
    stages = run_stages(config)
    return next((stage for stage in stages if step < stage.end), stages[-1])


def planned_stages(config: TrainConfig, seq_len: int) -> list[PlannedStage]:
    """What the stages draw, in samples of `seq_len` tokens."""
    planned = []
    for stage in run_stages(config):
        data = stage.config.data
        rows = DrawSettings(data.global_batch_size, data.canonical_nodes, config.seed, data.sampling)
        draw = with_rows_of(data.seq_len or seq_len, seq_len, rows)
        planned.append(PlannedStage(stage.num_steps, draw.num_samples, stage.section.mixture))
    return planned
