"""The operations are good citizens of torch: opcheck, torch.compile, checkpointing, autocast, double backward use."""

import gc
import weakref

import pytest
import torch
from torch.library import opcheck
from torch.utils.checkpoint import checkpoint

from ado_kernels import linear_cross_entropy, rms_norm, rms_norm_rope, swiglu

# Importing a name registers its operations.
import ado_kernels.ops.domain_loss  # noqa: F401  isort: skip

OPS = torch.ops.ado_kernels
TARGETS = torch.tensor([3, 0, -100, 49, 7, 7])
IDS = torch.tensor([0, 2, 1])


def leaf(*shape):
    return torch.randn(*shape, requires_grad=True)


def samples():
    transposed = torch.randn(16, 6).t().requires_grad_()
    yield "rms_norm", OPS.rms_norm, (leaf(6, 16), None, leaf(16), 1e-6)
    yield "rms_norm 3-D, no weight", OPS.rms_norm, (leaf(2, 3, 16), None, None, 1e-6)
    yield "rms_norm transposed", OPS.rms_norm, (transposed, None, leaf(16), 1e-6)
    yield "rms_norm empty", OPS.rms_norm, (leaf(0, 16), None, leaf(16), 1e-6)
    yield "rms_norm bf16", OPS.rms_norm, (torch.randn(6, 16).bfloat16().requires_grad_(), None, leaf(16), 1e-6)
    yield "rms_norm with residual", OPS.rms_norm, (leaf(6, 16), leaf(6, 16), leaf(16), 1e-6)
    yield "rms_norm mixed", OPS.rms_norm, (torch.randn(6, 16).half().requires_grad_(), leaf(6, 16), None, 1e-6)
    yield (
        "rms_norm_backward",
        OPS.rms_norm_backward,
        (torch.randn(6, 16), None, torch.randn(6, 16), None, torch.rand(6)),
    )
    table = torch.rand(5, 4)
    yield "rms_norm_rope", OPS.rms_norm_rope, (leaf(2, 5, 3, 8), leaf(8), table, table, 1e-6)
    heads_first = torch.randn(2, 3, 5, 8).bfloat16().transpose(1, 2).requires_grad_()
    yield "rms_norm_rope transposed bf16", OPS.rms_norm_rope, (heads_first, leaf(8), table, table, 1e-6)
    inputs = (torch.randn(2, 5, 3, 8), torch.randn(2, 5, 3, 8), torch.randn(8), table, table, torch.rand(30))
    yield "rms_norm_rope_backward", OPS.rms_norm_rope_backward, inputs
    yield "swiglu", OPS.swiglu, (leaf(6, 16), leaf(6, 16))
    yield "swiglu halves", OPS.swiglu, torch.randn(6, 32).chunk(2, dim=-1)
    yield "swiglu_backward", OPS.swiglu_backward, tuple(torch.randn(6, 16) for _ in range(3))
    yield "domain_loss", OPS.domain_loss, (torch.randn(6), IDS, 4)
    options = (4, -100, 1e-2, True, True, torch.float32)
    yield "linear_cross_entropy", OPS.linear_cross_entropy, (leaf(6, 16), leaf(50, 16), TARGETS, IDS, *options)
    inputs = (leaf(6, 16).detach(), leaf(50, 16), TARGETS, IDS)
    yield "only the weight's gradient", OPS.linear_cross_entropy, (*inputs, 4, -100, 0.0, False, True, torch.float32)
    half = (torch.randn(6, 16).bfloat16().requires_grad_(), leaf(50, 16), TARGETS, IDS)
    yield "linear_cross_entropy autocast", OPS.linear_cross_entropy, (*half, 4, -100, 0.0, True, True, torch.bfloat16)
    scale = (torch.randn(5, 7), torch.tensor(2.0), torch.tensor(0.5, dtype=torch.float64), torch.bfloat16)
    yield "scale_gradient", OPS.scale_gradient, scale


@pytest.mark.parametrize(("op", "inputs"), [pytest.param(*sample[1:], id=sample[0]) for sample in samples()])
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # raised inside opcheck
def test_opcheck(op, inputs):
    # Schema, autograd registration, fake tensors, and AOT dispatch with dynamic shapes.
    assert set(opcheck(op, inputs).values()) == {"SUCCESS"}


def block(hidden, weight, gain):
    normed, total = rms_norm(hidden, gain, 1e-6, hidden)
    turned = rms_norm_rope(normed.view(2, 3, 2, 8), gain[:8], torch.eye(3, 4), torch.eye(3, 4)).view(6, 16)
    return linear_cross_entropy(swiglu(turned, total), weight, TARGETS, IDS, 4, z_loss=1e-3)


def gradients_of(function, inputs):
    loss, sums, counts = function(*inputs)
    return loss.detach(), sums, counts, *torch.autograd.grad(loss, inputs)


def assert_same_bits(ours, theirs):
    for one, other in zip(ours, theirs, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("dynamic", [False, True])
def test_compiles_without_a_break_to_the_same_bits(dynamic):
    inputs = leaf(6, 16), leaf(50, 16), leaf(16)
    compiled = torch.compile(block, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    assert_same_bits(gradients_of(compiled, inputs), gradients_of(block, inputs))


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing_recomputes_the_same_bits(reentrant):
    inputs = leaf(6, 16), leaf(50, 16), leaf(16)
    loss, *_ = checkpoint(block, *inputs, use_reentrant=reentrant)
    expected = gradients_of(block, inputs)[3:]
    loss.backward()
    assert_same_bits([tensor.grad for tensor in inputs], expected)


def test_backward_twice_gives_the_same_gradients():
    inputs = leaf(6, 16), leaf(50, 16), leaf(16)
    loss, *_ = block(*inputs)
    first = torch.autograd.grad(loss, inputs, retain_graph=True)
    assert_same_bits(first, torch.autograd.grad(loss, inputs))


def test_one_tensor_used_twice():
    x = leaf(6, 16)
    total = sum(part.sum() for part in (rms_norm(x), rms_norm(x, None, 1e-6, x)[0], swiglu(x, x)))
    ours = torch.autograd.grad(total, x)[0]
    y = x.detach().double().requires_grad_()
    norm = torch.nn.functional.rms_norm
    reference = norm(y, (16,), None, 1e-6).sum() + norm(2 * y, (16,), None, 1e-6).sum()
    reference = reference + (torch.nn.functional.silu(y) * y).sum()
    torch.testing.assert_close(ours.double(), torch.autograd.grad(reference, y)[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("compiled", [False, True])
def test_autocast_keeps_the_weight_gradient_in_float32(compiled):
    inputs = leaf(6, 16), leaf(50, 16), leaf(16)
    function = torch.compile(block, fullgraph=True, backend="aot_eager") if compiled else block
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss, *_ = function(*inputs)
    loss.backward()
    assert loss.dtype == torch.float32
    assert all(tensor.grad.dtype == torch.float32 for tensor in inputs)


def test_gradients_are_freed_without_the_garbage_collector():
    gc.collect()
    gc.disable()
    try:
        loss, *_ = linear_cross_entropy(leaf(6, 16), leaf(50, 16), TARGETS, IDS, 4)
        node = weakref.ref(loss.grad_fn)
        del loss
        assert node() is None
    finally:
        gc.enable()


def test_sums_cannot_be_differentiated():
    _, sums, _ = linear_cross_entropy(leaf(6, 16), leaf(50, 16), TARGETS, IDS, 4)
    with pytest.raises(RuntimeError, match="does not require grad"):
        sums.sum().backward()


def test_shapes_on_the_meta_device():
    hidden, weight = torch.empty(6, 16, device="meta"), torch.empty(50, 16, device="meta")
    loss, sums, counts = linear_cross_entropy(hidden, weight, TARGETS.to("meta"), IDS.to("meta"), 4)
    assert (loss.shape, sums.shape, counts.shape) == ((), (4,), (4,))


def operations():
    """Every operation by name, as a scalar of one leaf."""
    table = torch.rand(3, 4)
    yield "rms_norm", lambda x: rms_norm(x).square().sum()
    yield "add_rms_norm", lambda x: rms_norm(x, None, 1e-6, x)[0].square().sum()
    yield "rms_norm_rope", lambda x: rms_norm_rope(x.view(2, 3, 2, 8), torch.ones(8), table, table).square().sum()
    yield "swiglu", lambda x: swiglu(x, x).square().sum()
    yield "linear_cross_entropy", lambda x: linear_cross_entropy(x, torch.randn(50, 16), TARGETS, IDS, 4)[0]


@pytest.mark.parametrize("function", [pytest.param(function, id=name) for name, function in operations()])
def test_a_second_derivative_raises(function):
    """A gradient penalty: were the first gradient taken for a constant, the penalty would do nothing, in silence."""
    x = leaf(6, 16)

    def penalised():
        gradient = torch.autograd.grad(function(x), x, create_graph=True)[0]
        (function(x) + gradient.square().sum()).backward()

    with pytest.raises(RuntimeError, match="has no second derivative; use"):
        penalised()


def test_autocast_leaves_float64_alone():
    hidden, weight = leaf(6, 16).double(), leaf(50, 16).double()
    expected = linear_cross_entropy(hidden, weight, TARGETS, IDS, 4)[0]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = linear_cross_entropy(hidden, weight, TARGETS, IDS, 4)[0]
    assert loss.dtype == torch.float64
    assert torch.equal(loss, expected)
