"""An operation's GPU side is loaded when it is first called, and runs on its tensors' device."""

import sys
from contextlib import contextmanager
from types import SimpleNamespace

import torch

from ado_kernels.ops.registration import register


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

    stub = SimpleNamespace(
        register_fake=lambda function: None,
        register_kernel=registered.setdefault,
    )
    monkeypatch.setattr(torch.cuda, "device_of", device_of)
    monkeypatch.setattr(torch.library, "custom_op", lambda *_, **__: stub)
    register("stub", operation, operation, "an_operation.call")
    monkeypatch.setitem(sys.modules, "ado_kernels.ops.an_operation.gpu", SimpleNamespace(call=operation))
    tensor = torch.zeros(3)
    assert registered["cuda"](tensor, 5) == (tensor, 5)
    assert current == []
