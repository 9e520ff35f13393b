"""The kernels on a real GPU: shapes, dtypes, layouts, bits, CUDA graphs (linear_cross_entropy: test_gpu_loss.py).

Oracle: the plain reference in float64 on the same rounded inputs. Outputs are rounded once from float32, so each is
within half a unit of itself; where a sum with a residual was rounded before, within three halves of the largest.
Outputs start as NaN between guards that must stay (conftest.poisoned).
"""

import pytest
import torch
from torch.library import opcheck

from ado_kernels import domain_loss, linear_cross_entropy, rms_norm, rms_norm_rope, swiglu
from ado_kernels.ops.domain_loss import domain_loss_reference
from ado_kernels.ops.rms_norm import rms_norm_reference
from ado_kernels.ops.rms_norm_rope import rms_norm_rope_reference
from ado_kernels.ops.swiglu import swiglu_reference
from tests.kernels.conftest import Guards
from tests.kernels.devices import DEVICE, ON_GPU, ROUNDING, assert_close, draw, each, gpu_only, run, wide

pytestmark = [pytest.mark.gpu] if ON_GPU else []
poisoned = pytest.mark.usefixtures("poisoned")
dtypes = pytest.mark.parametrize("dtype", list(ROUNDING))


def test_a_write_past_an_end_is_seen():
    guards = Guards()
    tensor = guards.around(torch.empty)(3, 4, device=DEVICE)
    assert tensor.isnan().all()
    guards.check()
    tensor.as_strided((13,), (1,))[12] = 1.0
    with pytest.raises(AssertionError, match="out of bounds"):
        guards.check()


def norm_of(norm, has_weight):
    """`norm` of (x, weight, residual) or fewer of these."""
    if has_weight:
        return lambda x, weight, *residual: norm(x, weight, 1e-6, *residual)
    return lambda x, *residual: norm(x, None, 1e-6, *residual)


@poisoned
@dtypes
@each("width", [33, 64, 512, 768, 2048, 4096, 5120, 8192, 16384], [33, 64])
@each("num_rows", [0, 1, 7, 4099], [0, 7])
@pytest.mark.parametrize("has_weight", [True, False])
@pytest.mark.parametrize("has_residual", [False, True])
def test_rms_norm(dtype, width, num_rows, has_weight, has_residual):
    inputs = [draw(num_rows, width, dtype=dtype)]
    inputs += [draw(width, dtype=dtype)] * has_weight + [draw(num_rows, width, dtype=dtype)] * has_residual
    seeds = [draw(num_rows, width, dtype=dtype) for _ in range(1 + has_residual)]
    ours = run(norm_of(rms_norm, has_weight), inputs, len(inputs), seeds)
    expected = run(norm_of(rms_norm_reference, has_weight), wide(inputs), len(inputs), seeds)
    rounding = ROUNDING[dtype]
    assert_close(ours, expected, *((3 * rounding, 3 * rounding) if has_residual else (rounding,)))


def views(dtype):
    """Of one memory: columns cut off at an odd place, every third row, transposed, rows that start 2 bytes too late."""
    base = draw(192, 2052, dtype=dtype)
    return {
        "sliced": base[:64, 1:2049],
        "every third row": base[::3, :2048],
        "transposed": base.t()[:64, :],
        "misaligned": base.flatten()[1 : 1 + 64 * 512].view(64, 512),
    }


@poisoned
@dtypes
@pytest.mark.parametrize("view", views(torch.float32))
@pytest.mark.parametrize("has_residual", [False, True])
def test_rms_norm_of_views_forward_and_backward(dtype, view, has_residual):
    inputs = [views(dtype)[view] for _ in range(1 + has_residual)]
    seeds = [views(dtype)[view] for _ in range(1 + has_residual)]
    inputs.insert(1, draw(inputs[0].shape[1], dtype=dtype))
    ours = run(norm_of(rms_norm, True), inputs, len(inputs), seeds)
    expected = run(norm_of(rms_norm_reference, True), wide(inputs), len(inputs), seeds)
    rounding = ROUNDING[dtype]
    assert_close(ours, expected, *((3 * rounding, 3 * rounding) if has_residual else (rounding,)))


def test_an_expanded_gradient():
    """A sum's backward pass gives a gradient of one number with strides of 0."""
    inputs, seeds = [draw(33, 768), draw(768)], [draw(1, 1).expand(33, 768)]
    ours = run(norm_of(rms_norm, True), inputs, 2, seeds)
    assert_close(ours, run(norm_of(rms_norm_reference, True), wide(inputs), 2, seeds), 1e-5)
    inputs = [draw(33, 768), draw(33, 768)]
    assert_close(run(swiglu, inputs, 2, seeds), run(swiglu_reference, wide(inputs), 2, seeds), 1e-5)


@poisoned
@dtypes
@each(
    "shape",
    [(1, 1, 1, 2), (3, 1023, 12, 64), (2, 129, 5, 96), (1, 77, 3, 256), (2, 0, 3, 64)],
    [(1, 1, 1, 2), (2, 29, 5, 96), (2, 0, 3, 64)],
)
@pytest.mark.parametrize("heads_first", [False, True])
def test_rms_norm_rope(dtype, shape, heads_first):
    memory = (shape[0], shape[2], shape[1], shape[3]) if heads_first else shape
    x, dy = (draw(*memory, dtype=dtype) for _ in range(2))
    if heads_first:
        x, dy = x.transpose(1, 2), dy.transpose(1, 2)
    inputs = [x, draw(shape[-1], dtype=dtype)]
    angle = torch.rand(shape[1], shape[-1] // 2, device=DEVICE) * 100

    def call(function):
        return lambda x, weight: function(x, weight, angle.cos(), angle.sin())

    ours, expected = (
        run(call(rms_norm_rope), inputs, 2, [dy]),
        run(call(rms_norm_rope_reference), wide(inputs), 2, [dy]),
    )
    assert_close(ours, expected, ROUNDING[dtype])


@poisoned
@dtypes
@each("shape", [(1,), (7, 5632), (3, 2051), (5632 * 7 + 3,), (0, 64)], [(1,), (3, 2051), (0, 64)])
def test_swiglu(dtype, shape):
    inputs, seeds = [draw(*shape, dtype=dtype) for _ in range(2)], [draw(*shape, dtype=dtype)]
    ours, expected = run(swiglu, inputs, 2, seeds), run(swiglu_reference, wide(inputs), 2, seeds)
    assert_close(ours, expected, ROUNDING[dtype])


@poisoned
@dtypes
@pytest.mark.parametrize("view", views(torch.float32))
def test_swiglu_of_views_forward_and_backward(dtype, view):
    inputs, seeds = [views(dtype)[view] for _ in range(2)], [views(dtype)[view]]
    ours, expected = run(swiglu, inputs, 2, seeds), run(swiglu_reference, wide(inputs), 2, seeds)
    assert_close(ours, expected, ROUNDING[dtype])


@dtypes
@each("width", [344, 2051, 5632], [344, 2051])
def test_swiglu_of_a_fused_projection(dtype, width):
    """The leaf is the projection: its gradient is put together from both halves'."""
    inputs, seeds = [draw(37, 2 * width, dtype=dtype)], [draw(37, width, dtype=dtype)]
    ours = run(lambda both: swiglu(*both.chunk(2, dim=-1)), inputs, 1, seeds)
    expected = run(lambda both: swiglu_reference(*both.chunk(2, dim=-1)), wide(inputs), 1, seeds)
    assert_close(ours, expected, ROUNDING[dtype])


@pytest.mark.gpu(memory_gb=20)
def test_rms_norm_rope_beyond_int32():
    """The last rows of 2^25 and some equal those rows alone, forward and backward."""
    num_rows, width = 2**25 + 64, 64
    x = torch.empty(1, num_rows, 1, width, device="cuda", dtype=torch.bfloat16).normal_()
    weight, angle = draw(width), torch.linspace(0, 3, 32, device="cuda")
    found = []
    for part in (x, x[:, -64:].clone()):
        tables = angle.expand(part.shape[1], 32)
        leaf = part.requires_grad_()
        y = rms_norm_rope(leaf, weight, tables.cos(), tables.sin())
        y.backward(leaf.detach())
        found.append((y.detach()[:, -64:].clone(), leaf.grad[:, -64:].clone()))
        del y, tables
    assert all(torch.equal(*pair) for pair in zip(*found, strict=True))


@pytest.mark.gpu(memory_gb=15)
def test_swiglu_beyond_int32():
    size = 2**31 + 4096
    gate = torch.ones(size, device="cuda", dtype=torch.bfloat16)
    assert swiglu(gate, gate)[-4096:].float().mean().item() == pytest.approx(0.7311, rel=2**-8)


@poisoned
@pytest.mark.parametrize("num_domains", [1, 22, 512, 4096])
@each("num_tokens", [0, 1, 16384, 1_000_003], [0, 1, 4099])
@pytest.mark.parametrize("tokens_per_id", [1, 7])
def test_domain_loss(num_domains, num_tokens, tokens_per_id):
    """Float64 sums in another order, hence 1e-11; ids one a token or one a sequence, -1 for no domain."""
    losses = torch.rand(num_tokens * tokens_per_id, device=DEVICE)
    ids = torch.randint(-1, num_domains, (num_tokens,), device=DEVICE)
    sums, counts = domain_loss(losses, ids, num_domains)
    plain = domain_loss_reference if losses.numel() * num_domains < 2**26 else domain_loss
    known_sums, known_counts = plain(losses.cpu(), ids.cpu(), num_domains)
    torch.testing.assert_close(sums.cpu(), known_sums, rtol=1e-11, atol=0)
    assert torch.equal(counts.cpu(), known_counts)


def step(hidden, weight, gain, targets, ids):
    """Every operation, forward and backward."""
    normed, total = rms_norm(hidden, gain, 1e-6, hidden)
    angle = torch.linspace(0, 3, 32, device=hidden.device).expand(len(hidden), 32)
    turned = rms_norm_rope(normed.view(1, len(hidden), -1, 64), gain[:64], angle.cos(), angle.sin()).view(hidden.shape)
    loss, sums, counts = linear_cross_entropy(swiglu(turned, total), weight, targets, ids, 22, z_loss=1e-4)
    return loss, sums, counts, *torch.autograd.grad(loss, (hidden, weight, gain))


def step_inputs(device=DEVICE):
    num_rows, vocabulary, width = (4099, 5000, 512) if ON_GPU else (67, 130, 64)
    shapes = (num_rows, width), (vocabulary, width), (width,)
    leaves = [torch.randn(*shape, device=device).bfloat16().requires_grad_() for shape in shapes]
    targets = torch.randint(0, vocabulary, (num_rows,), device=device)
    return *leaves, targets, torch.randint(0, 22, (num_rows,), device=device)


def test_three_runs_give_the_same_bits():
    inputs = step_inputs()
    runs = [step(*inputs) for _ in range(3)]
    for other in runs[1:]:
        assert all(torch.equal(one, two) for one, two in zip(runs[0], other, strict=True))


@gpu_only
def test_a_cuda_graph_captures_forward_and_backward_and_replays_on_new_inputs():
    held, fresh = step_inputs(), step_inputs()
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        step(*held)
        expected = step(*fresh)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step(*held)
    with torch.no_grad():
        for tensor, new in zip(held, fresh, strict=True):
            tensor.copy_(new)
    graph.replay()
    torch.cuda.synchronize()
    assert all(torch.equal(one, two) for one, two in zip(expected, captured, strict=True))


@pytest.mark.gpu(count=2)
def test_tensors_of_another_device_than_the_current_one():
    inputs = step_inputs("cuda:1")
    there = [tensor.detach().to("cuda:0").requires_grad_(tensor.requires_grad) for tensor in inputs]
    one, other = step(*inputs), step(*there)
    assert all(tensor.device.index == 1 for tensor in one)
    assert all(torch.equal(a.cpu(), b.cpu()) for a, b in zip(one, other, strict=True))


@gpu_only
def test_compiles_with_inductor_without_a_break():
    def forward(hidden, weight, gain, targets, ids):
        normed, total = rms_norm(hidden, gain, 1e-6, hidden)
        return linear_cross_entropy(swiglu(normed, total), weight, targets, ids, 22)[0]

    inputs = step_inputs()
    compiled = torch.compile(forward, fullgraph=True)
    assert_close([compiled(*inputs)], [forward(*inputs)], 1e-6)


@gpu_only
def test_opcheck_on_cuda():
    operations = torch.ops.ado_kernels
    hidden, weight = draw(6, 64, dtype=torch.bfloat16), draw(50, 64)
    targets, ids = torch.tensor([3, 0, -100, 49, 7, 7], device="cuda"), torch.tensor([0, 2, 1], device="cuda")
    leaves = hidden.requires_grad_(), weight.requires_grad_()
    opcheck(operations.rms_norm, (leaves[0], None, None, 1e-6))
    opcheck(operations.swiglu, (leaves[0], leaves[0].detach()))
    opcheck(operations.domain_loss, (torch.rand(6, device="cuda"), ids, 4))
    opcheck(operations.linear_cross_entropy, (*leaves, targets, ids, 4, -100, 0.0, True, True, torch.bfloat16))
