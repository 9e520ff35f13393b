"""Signals: all ranks stop at the same step. Under torchrun: test_train_torchrun.py."""

import signal

import torch

from ado_stream.train.distributed import DistributedContext
from ado_stream.train.stop_request import StopRequest


def test_a_stop_is_agreed_on_whatever_the_default_device(process_group):
    """Two calls: the flag is sent in one and read in the next. The group has one rank, which stands for both."""
    torch.set_default_device("meta")
    try:
        with StopRequest(DistributedContext(0, 2, torch.device("cpu"))) as stop:
            signal.raise_signal(signal.SIGTERM)
            assert [stop.agreed(), stop.agreed(), stop.agreed()] == [False, True, True]
    finally:
        torch.set_default_device(None)
