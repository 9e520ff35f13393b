"""The plan of a run states what the run would do, from the corpus and the config alone."""

import numpy as np
import pytest

from ado_stream.errors import ConfigError
from ado_stream.train.assemble import make_schedule, parse_bytes
from ado_stream.train.config import load_config
from ado_stream.train.plan import plan_run, plan_text


def test_plan_counts_tokens_epochs_and_repeats(settings: dict):
    settings["policy"]["prior"] = {"easy": 2.0, "medium": 1.0, "hard": 1.0}
    plan = plan_run(load_config(settings))
    assert plan.tokens_per_step == 8 * 32
    assert plan.total_tokens == 12 * 8 * 32
    prior = dict(zip(plan.names, plan.prior_K, strict=True))
    assert prior == {"easy": 0.5, "medium": 0.25, "hard": 0.25}
    # a domain is through after (its samples) / (its samples a step); and epochs = steps / that
    np.testing.assert_allclose(plan.epochs_K * plan.repeats_after_K, 12)
    text = plan_text(plan)
    assert f"{plan.parameters:,}" in text
    assert all(name in text for name in plan.names)


def test_plan_refuses_what_the_run_would_refuse(settings: dict):
    settings["policy"]["options"]["start_step"] = 100
    with pytest.raises(ConfigError, match="start"):
        plan_run(load_config(settings))


def test_the_default_learning_rate_follows_gpt3(settings: dict):
    config = load_config(settings, ["train.steps=1000"])
    assert make_schedule(config, 768).peak == pytest.approx(6e-4, rel=0.01)
    assert make_schedule(config, 2048).peak == pytest.approx(2e-4, rel=0.15)
    assert make_schedule(config, 768).warmup_steps == 100


@pytest.mark.parametrize(
    ("text", "num"),
    [(None, None), ("800", 800), ("50gb", 50 * 10**9), ("1.5 TB", 1_500_000_000_000), ("2 mb", 2_000_000)],
)
def test_bytes_are_read(text: str | None, num: int | None):
    assert parse_bytes(text) == num
