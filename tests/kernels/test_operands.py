"""Every operation refuses what is no dense tensor of its device and dtypes, and derivatives that it does not have."""

import re

import pytest
import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import distribute_tensor

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


def differentiated(function, value):
    return torch.func.grad(lambda x: function(x).sum())(value)


def differentiated_row_by_row(function, value):
    return torch.vmap(torch.func.grad(lambda x: function(x).sum()))(value[None])


def differentiated_twice(function, value):
    return torch.func.hessian(function)(value)


@pytest.mark.parametrize("transform", [differentiated, differentiated_row_by_row, differentiated_twice])
@pytest.mark.parametrize(("op", "name"), OPERANDS)
def test_reverse_mode_of_torch_func_is_refused_with_what_to_use(op, name, transform):
    """torch alone speaks of a method of an autograd.Function that no user has written."""
    value = CALLS[op][1][name]
    if not value.is_floating_point() or op == "domain_loss":
        return

    def function(x):
        found = call(op, **{name: x})
        return found[0] if isinstance(found, tuple) else found

    with pytest.raises(RuntimeError, match=f"^{op} has no (derivative by torch.func|forward-mode .*); use "):
        transform(function, value)


def test_results_that_are_not_differentiated_may_be_computed_within_torch_func():
    """The transform is around the call, but what the operation gets does not depend on what is differentiated."""
    gradient = torch.func.grad(lambda x: x.sum() * call("rms_norm")[0].sum() + x.square().sum())(torch.ones(3))
    assert torch.equal(gradient, call("rms_norm")[0].sum() + torch.full((3,), 2.0))


def jagged(value):
    return torch.nested.nested_tensor([value, value], layout=torch.jagged)


def sharded(value):
    return distribute_tensor(value, init_device_mesh("cpu", (1,)))


LAYOUTS = [
    (jagged, r"a NestedTensor \(nested\)"),
    (lambda value: torch.nested.nested_tensor([value, value], layout=torch.strided), r"a Tensor \(nested\)"),
    (torch.Tensor.to_sparse, r"a Tensor \(torch.sparse_coo\)"),
    (sharded, r"a DTensor \(torch.strided\)"),
]


@pytest.mark.parametrize(("op", "name"), OPERANDS)
@pytest.mark.parametrize(("change", "found"), LAYOUTS, ids=["jagged", "nested", "sparse", "sharded"])
@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_a_tensor_that_is_not_dense_and_local_is_refused(op, name, change, found, process_group):
    value = CALLS[op][1][name]
    with pytest.raises(ValueError, match=f"^{op}: {name} must be a dense local tensor, got {found}"):
        call(op, **{name: change(value)})


@pytest.mark.parametrize(("op", "name"), OPERANDS)
@pytest.mark.parametrize("wrong", [None, [1.0, 2.0], "x"])
def test_what_is_no_tensor_is_named(op, name, wrong):
    if wrong is None and name in ("weight", "residual") and op == "rms_norm":  # may be left out
        return
    with pytest.raises(ValueError, match=f"^{op}: {name} must be a tensor, got {type(wrong).__name__}"):
        call(op, **{name: wrong})


@pytest.mark.parametrize("op", ["rms_norm", "rms_norm_rope", "swiglu"])
def test_a_second_derivative_names_what_has_one(op):
    """Of functions of torch.autograd, too, which differentiate twice of themselves."""
    name = next(iter(CALLS[op][1]))

    def total(x):
        found = call(op, **{name: x})
        return (found[0] if isinstance(found, tuple) else found).square().sum()

    value = CALLS[op][1][name]
    with pytest.raises(RuntimeError, match=f"^{op} has no second derivative; use {op}_reference"):
        torch.autograd.functional.hvp(total, value, value)
