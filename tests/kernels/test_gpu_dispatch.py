"""An operation's GPU side is loaded when it is first called, and runs on its tensors' device."""

import sys
from contextlib import contextmanager
from types import SimpleNamespace

import torch

from ado_kernels.ops.gpu_dispatch import register_gpu


def test_the_call_runs_with_the_tensors_device_current(monkeypatch):
    current, registered = [], {}

    @contextmanager
    def device_of(tensor):
        current.append(tensor)
        yield
        current.pop()

    def operation(*arguments):
        assert current == [arguments[0]]
        return arguments

    monkeypatch.setattr(torch.cuda, "device_of", device_of)
    monkeypatch.setitem(sys.modules, "an_operations_gpu_side", SimpleNamespace(call=operation))
    stub = SimpleNamespace(register_kernel=lambda device: lambda function: registered.setdefault(device, function))
    register_gpu(stub, "an_operations_gpu_side", "call")
    tensor = torch.zeros(3)
    assert registered["cuda"](tensor, 5) == (tensor, 5)
    assert current == []
