"""Every operation refuses tensors of another device or of a dtype that it does not compute with."""

import re

import pytest
import torch

from ado_kernels import domain_loss, linear_cross_entropy, rms_norm, rms_norm_rope, swiglu

IDS = torch.zeros(6, dtype=torch.int64)
CALLS = {
    "rms_norm": (rms_norm, {"x": torch.ones(6, 8), "weight": torch.ones(8), "residual": torch.ones(6, 8)}),
    "rms_norm_rope": (
        rms_norm_rope,
        {"x": torch.ones(1, 6, 1, 8), "weight": torch.ones(8), "cos": torch.ones(6, 4), "sin": torch.ones(6, 4)},
    ),
    "swiglu": (swiglu, {"gate": torch.ones(6, 8), "up": torch.ones(6, 8)}),
    "domain_loss": (domain_loss, {"token_losses": torch.ones(6), "domain_ids": IDS, "num_domains": 2}),
    "linear_cross_entropy": (
        linear_cross_entropy,
        {"hidden": torch.ones(6, 8), "weight": torch.ones(9, 8), "targets": IDS, "domain_ids": IDS, "num_domains": 2},
    ),
}
OPERANDS = [
    (op, name) for op, (_, inputs) in CALLS.items() for name, value in inputs.items() if isinstance(value, torch.Tensor)
]


def call(op, **changed):
    function, inputs = CALLS[op]
    return function(**{**inputs, **changed})


@pytest.mark.parametrize(("op", "name"), OPERANDS)
def test_a_tensor_of_another_device_is_refused(op, name):
    call(op)
    elsewhere = CALLS[op][1][name].to("meta")
    with pytest.raises(ValueError, match=f"^{op}: all tensors must be on one device, but .* is on (cpu|meta)"):
        call(op, **{name: elsewhere})


@pytest.mark.parametrize(("op", "name"), OPERANDS)
@pytest.mark.parametrize("dtype", [torch.complex64, torch.bool, torch.float8_e4m3fn, "other"])
def test_a_dtype_of_another_kind_is_refused(op, name, dtype):
    value = CALLS[op][1][name]
    if dtype == "other":
        dtype = torch.int32 if value.is_floating_point() else torch.float32
    wrong = torch.zeros(value.shape, dtype=torch.uint8).view(torch.float8_e4m3fn) if dtype.itemsize == 1 else value
    with pytest.raises(ValueError, match=re.escape(f"{op}: {name} must be ") + f".*got {dtype}"):
        call(op, **{name: wrong if wrong.dtype == dtype else value.to(dtype)})


@pytest.mark.parametrize(("op", "name"), OPERANDS)
def test_forward_mode_raises_instead_of_dropping_the_derivative(op, name):
    value = CALLS[op][1][name]
    if not value.is_floating_point():
        return
    if op == "domain_loss":  # its results carry no derivative of any mode
        _, tangents = torch.func.jvp(lambda x: call(op, **{name: x})[0], (value,), (value,))
        assert not tangents.any()
        return
    with pytest.raises(RuntimeError, match=f"^{op} has no forward-mode derivative; use {op}_reference"):
        torch.func.jvp(lambda x: call(op, **{name: x}), (value,), (value,))
