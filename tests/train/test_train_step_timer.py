"""Seconds of one step by part: on a GPU those of the device, measured without waiting."""

import pytest
import torch

from ado_stream.train.step_timer import StepTimer

CPU, GPU = torch.device("cpu"), torch.device("cuda")


class FakeEvent:
    """torch.cuda.Event on a device whose clock a test sets; has no `synchronize`."""

    device_ms = 0.0

    def __init__(self, enable_timing: bool):
        assert enable_timing

    def record(self) -> None:
        self.at = FakeEvent.device_ms

    def elapsed_time(self, other: "FakeEvent") -> float:
        return other.at - self.at


def test_on_a_gpu_device_time_is_measured_and_launch_time_is_not(fake_clock, monkeypatch):
    monkeypatch.setattr(torch.cuda, "Event", FakeEvent)
    timer = StepTimer(GPU, checkpoint_s=2.0)
    with timer.host("data"):
        fake_clock.now += 0.5
    with timer.device("forward_backward"):
        fake_clock.now += 0.001
        FakeEvent.device_ms += 300.0
    with timer.device("optimizer"):
        fake_clock.now += 0.001
        FakeEvent.device_ms += 20.0
    with timer.host("policy"):
        fake_clock.now += 0.25
    found = timer.seconds(ended=timer.started + 1.0)
    expected = {"data": 0.5, "forward_backward": 0.3, "optimizer": 0.02, "policy": 0.25, "checkpoint": 2.0}
    assert found == pytest.approx({**expected, "total": 3.0})  # floating-point seconds around 100


def test_on_a_cpu_every_part_is_host_time(fake_clock):
    timer = StepTimer(CPU)
    with timer.device("forward_backward"):
        fake_clock.now += 0.5
    assert timer.seconds(fake_clock.now) == {"forward_backward": 0.5, "checkpoint": 0.0, "total": 0.5}
