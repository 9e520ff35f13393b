"""Environments in which no process group can be created are refused with what to do."""

import pytest
import torch
import torch.distributed as dist

from ado_stream.errors import ConfigError
from ado_stream.train.distributed import detect_context, join_process_group


def test_rank_without_a_launcher_is_refused(monkeypatch):
    monkeypatch.setenv("RANK", "0")
    with pytest.raises(ConfigError, match="torchrun --nproc-per-node"):
        detect_context("cpu")


LAUNCHED = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_ADDR": "localhost", "MASTER_PORT": "29500"}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("RANK", "x"),
        ("RANK", "2"),
        ("RANK", "-1"),
        ("WORLD_SIZE", ""),
        ("WORLD_SIZE", "0"),
        ("LOCAL_RANK", "0.5"),
        ("MASTER_PORT", "port"),
        ("MASTER_PORT", "65536"),
    ],
)
def test_a_launchers_number_that_is_none_is_refused_by_its_name(monkeypatch, name, value):
    for variable, number in {**LAUNCHED, name: value}.items():
        monkeypatch.setenv(variable, number)
    expected = f"the environment variable {name} is '?{value}'?; expected a whole number"
    with pytest.raises(ConfigError, match=expected), join_process_group("cpu", timeout_s=5):
        pass


def test_more_ranks_than_gpus_are_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(ConfigError, match="local rank 2 needs GPU 2, this machine has 2"):
        detect_context("cuda")


def test_a_callers_process_group_needs_a_cpu_backend(process_group, monkeypatch):
    """A group of NCCL alone cannot be created here; the name of its backends is replaced."""
    with join_process_group("cpu") as context:
        assert (context.rank, context.size, context.device) == (0, 1, torch.device("cpu"))
    assert dist.is_initialized()
    monkeypatch.setattr(dist, "get_backend_config", lambda: "cuda:nccl")
    with pytest.raises(ConfigError, match="init_process_group\\('cpu:gloo,cuda:nccl'\\)"), join_process_group("cpu"):
        pass
