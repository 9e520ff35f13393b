"""The components of a run: settings that cannot work are refused, and defaults that follow from corpus and model."""

import pytest
import torch

from ado_stream.errors import ConfigError
from ado_stream.storage.retry import RetryPolicy
from ado_stream.train import components
from ado_stream.train.components import build_components, make_learning_rate_schedule, parse_bytes
from ado_stream.train.distributed import DistributedContext
from ado_stream.train.run_config import load_config
from ado_stream.train.trainer import run_training
from tests.train.hot_loop import ONE_CPU
from tests.train.run_helpers import changed


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"model": {"preset": "3B"}}, "'model.preset' is '3B'; choose one of micro, nano, 70M, 124M, 1.3B, tiny"),
        ({"model": {"context_length": 16}}, "prepare the corpus with --seq-len 16"),
        ({"model": {"vocab_size": 100}}, "the corpus has 257 tokens; raise it"),
        ({"policy": {"prior": {"easy": 1.0}}}, "differ in: hard, medium"),
        ({"policy": {"guards": [{"value": 1}]}}, "each guard needs a name"),
        ({"data": {"cache_limit": "much"}}, "'data.cache_limit' is 'much'; give bytes"),
        ({"train": {"device": "warp"}}, "device 'warp': use auto"),
        ({"data": {"cache_limit": "1.2.3gb"}}, "'data.cache_limit' is '1.2.3gb'; give bytes"),
        ({"data": {"cache_limit": "9" * 400}}, "'data.cache_limit' is inf; expected a finite number"),
    ],
)
def test_settings_that_cannot_work(settings: dict, section: dict, message: str):
    with pytest.raises(ConfigError) as caught:
        run_training(load_config(changed(settings, **section)))
    assert message in str(caught.value)


def test_batches_for_a_gpu_are_copied_there_from_page_locked_memory(settings: dict, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    for device in (torch.device("cpu"), torch.device("cuda")):
        loader = build_components(load_config(settings), DistributedContext(0, 1, device)).loader
        assert (loader._device, loader._pin_memory) == (device, device.type == "cuda")


def test_the_default_learning_rate_follows_gpt3(settings: dict):
    """6.0e-4 and 2.0e-4 in its table; the rule says 2.2e-4 for the second."""
    config = load_config(settings, ["train.steps=1000"])
    assert make_learning_rate_schedule(config, 768).peak == pytest.approx(6e-4, rel=0.01)
    assert make_learning_rate_schedule(config, 2048).peak == pytest.approx(2e-4, rel=0.15)
    assert make_learning_rate_schedule(config, 768).warmup_steps == 100


@pytest.mark.parametrize(
    ("text", "num"),
    [(None, None), ("800", 800), ("50gb", 50 * 10**9), ("1.5 TB", 1_500_000_000_000), ("2 mb", 2_000_000)],
)
def test_bytes_are_read(text: str | None, num: int | None):
    assert parse_bytes(text) == num


def test_data_options_reach_the_data_set_and_the_loader(settings: dict, monkeypatch):
    """Every value differs from its default; the calls are recorded instead of looked up in private attributes."""
    given = {
        "global_batch_size": 16,
        "canonical_nodes": 2,
        "mixture_lag": 3,
        "sampling": "multinomial",
        "shuffle": "py1s",
        "prefetch": 1,
        "io_threads": 2,
        "predownload": 64,
        "cache_limit": "1gb",
        "replication": 1,
        "token_column": "tokens",
        "token_dtype": "uint16",
        "timeout_s": 50.0,
        "retry": {"attempts": 2, "max_downloads": 1},
    }
    calls: dict[str, object] = {}

    def recorded(class_):
        def build(*arguments, **options):
            calls.update(options)
            return class_(*arguments, **options)

        return build

    for name in ("AdaptiveStreamingDataset", "AdaptiveLoader"):
        monkeypatch.setattr(components, name, recorded(getattr(components, name)))
    build_components(load_config(changed(settings, data=given)), ONE_CPU)
    assert calls.pop("timeout_s") == 600.0  # the loader's, which is train.collective_timeout_s
    expected = {**given, "cache_limit": 10**9, "retry": RetryPolicy(attempts=2, max_downloads=1)}
    assert {name: calls[name] for name in expected if name != "timeout_s"} == {
        name: value for name, value in expected.items() if name != "timeout_s"
    }
