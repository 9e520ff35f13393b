"""The kernels on a real GPU: shapes, dtypes, layouts, bits, CUDA graphs. Skipped without CUDA; not run elsewhere.

Oracle: the plain reference in float64 on the same rounded inputs. Tolerances: bf16 and fp16 results are rounded once
from float32 (2^-8, 2^-11, with room for a tie); float32 sums over D or V terms in lanes stay below 1e-5 of the largest
entry; weight gradients summed over N rows below 1e-4 of it. linear_cross_entropy rounds logits to bf16 before the
softmax: an absolute 2^-8 of the logits' range in each loss, hence 2 % on gradients there.
"""

import pytest
import torch
from torch.library import opcheck

from ado_kernels import domain_loss, linear_cross_entropy, rms_norm, rms_norm_rope, swiglu
from ado_kernels.ops.domain_loss import domain_loss_reference
from ado_kernels.ops.launch import METHODS, using
from ado_kernels.ops.linear_cross_entropy import linear_cross_entropy_reference
from ado_kernels.ops.rms_norm import rms_norm_reference
from ado_kernels.ops.rms_norm_rope import rms_norm_rope_reference
from ado_kernels.ops.swiglu import swiglu_reference

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU"),
]
poisoned = pytest.mark.usefixtures("poisoned")
# Tensor descriptors, hence exponentials, need sm_90.
METHODS_HERE = METHODS if torch.cuda.is_available() and torch.cuda.get_device_capability() >= (9, 0) else METHODS[:1]
ROUNDING = {torch.float32: 1e-5, torch.float16: 2**-10.5, torch.bfloat16: 2**-7.5}


def draw(*shape, dtype):
    return torch.randn(*shape, device="cuda").to(dtype)


def run(function, inputs, leaves, seeds=None):
    """Outputs, then gradients of the first `leaves` inputs."""
    inputs = [tensor.detach().requires_grad_(i < leaves) for i, tensor in enumerate(inputs)]
    outputs = function(*inputs)
    outputs = list(outputs) if isinstance(outputs, tuple) else [outputs]
    differentiable = [output for output in outputs if output.requires_grad]
    seeds = [seed.to(out.dtype) for seed, out in zip(seeds or [], differentiable, strict=False)] or None
    return [*outputs, *torch.autograd.grad(differentiable, inputs[:leaves], seeds)] if leaves else outputs


def wide(inputs):
    return [tensor.double() if tensor.is_floating_point() else tensor for tensor in inputs]


def assert_close(ours, expected, tolerance):
    for one, other in zip(ours, expected, strict=True):
        scale = other.detach().double().abs().max().item() if other.numel() else 0.0
        torch.testing.assert_close(
            one.detach().double(), other.detach().double(), rtol=tolerance, atol=tolerance * scale, equal_nan=True
        )


@poisoned
@pytest.mark.parametrize("dtype", list(ROUNDING))
@pytest.mark.parametrize("width", [33, 64, 512, 768, 2048, 4096, 5120, 8192, 16384])
@pytest.mark.parametrize("num_rows", [0, 1, 7, 4099])
@pytest.mark.parametrize("has_residual", [False, True])
def test_rms_norm(dtype, width, num_rows, has_residual):
    inputs = [draw(num_rows, width, dtype=dtype), draw(width, dtype=dtype)]
    inputs += [draw(num_rows, width, dtype=dtype)] if has_residual else []

    def call(norm):
        return lambda x, weight, *residual: norm(x, weight, 1e-6, *residual)

    seeds = [draw(num_rows, width, dtype=dtype) for _ in range(1 + has_residual)]
    ours = run(call(rms_norm), inputs, len(inputs), seeds)
    # The norm is of the sum as rounded: half a unit more than one rounding where a residual was added.
    assert_close(ours, run(call(rms_norm_reference), wide(inputs), len(inputs), seeds), 3 * ROUNDING[dtype])


def test_rms_norm_of_views_and_misaligned_memory():
    base = draw(65, 4099, dtype=torch.bfloat16)
    for x in (base[:, 1:2049], base[::3, :4096], base.t()[:64, :], base.flatten()[1 : 1 + 64 * 512].view(64, 512)):
        expected = rms_norm_reference(x.double())
        assert_close([rms_norm(x)], [expected], 2**-7.5)


@poisoned
@pytest.mark.parametrize("dtype", list(ROUNDING))
@pytest.mark.parametrize("shape", [(1, 1, 1, 2), (3, 1023, 12, 64), (2, 129, 5, 96), (1, 77, 3, 256), (2, 0, 3, 64)])
def test_rms_norm_rope(dtype, shape):
    inputs, seeds = [draw(*shape, dtype=dtype), draw(shape[-1], dtype=dtype)], [draw(*shape, dtype=dtype)]
    angle = torch.rand(shape[1], shape[-1] // 2, device="cuda") * 100

    def call(function):
        return lambda x, weight: function(x, weight, angle.cos(), angle.sin())

    ours = run(call(rms_norm_rope), inputs, 2, seeds)
    assert_close(ours, run(call(rms_norm_rope_reference), wide(inputs), 2, seeds), 2 * ROUNDING[dtype])


@poisoned
@pytest.mark.parametrize("dtype", list(ROUNDING))
@pytest.mark.parametrize("shape", [(1,), (7, 5632), (3, 2051), (0, 64)])
def test_swiglu(dtype, shape):
    inputs, seeds = [draw(*shape, dtype=dtype) for _ in range(2)], [draw(*shape, dtype=dtype)]
    assert_close(run(swiglu, inputs, 2, seeds), run(swiglu_reference, wide(inputs), 2, seeds), ROUNDING[dtype])


@pytest.mark.parametrize("width", [344, 2051, 5632])
def test_swiglu_of_a_fused_projection(width):
    fused = draw(37, 2 * width, dtype=torch.bfloat16)
    inputs = list(fused.chunk(2, dim=-1))
    ours = [swiglu(*inputs), *torch.ops.ado_kernels.swiglu_backward(inputs[0], *inputs)]
    assert_close(ours, run(swiglu_reference, wide(inputs), 2, [inputs[0].double()]), 2**-7.5)


def test_swiglu_beyond_int32():
    size = 2**31 + 4096
    if torch.cuda.mem_get_info()[0] < 7 * size:
        pytest.skip("needs 15 GB of free memory")
    gate = torch.ones(size, device="cuda", dtype=torch.bfloat16)
    assert swiglu(gate, gate)[-4096:].float().mean().item() == pytest.approx(0.7311, rel=2**-8)


@poisoned
@pytest.mark.parametrize("num_rows", [1, 127, 4096, 16384])
@pytest.mark.parametrize(("vocabulary", "width"), [(1000, 64), (50257, 64), (50304, 768)])
@pytest.mark.parametrize("ignored_frac", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("z_loss", [0.0, 1e-4])
@pytest.mark.parametrize("method", METHODS_HERE)
def test_linear_cross_entropy(num_rows, vocabulary, width, ignored_frac, z_loss, method):
    if num_rows * vocabulary > 2**28 and ignored_frac != 0.3:
        pytest.skip("the float64 oracle's full logits: once is enough")
    hidden, weight = draw(num_rows, width, dtype=torch.bfloat16), draw(vocabulary, width, dtype=torch.bfloat16) * 0.05
    targets = torch.randint(0, vocabulary, (num_rows,), device="cuda")
    targets[torch.rand(num_rows, device="cuda") < ignored_frac] = -100
    ids = torch.randint(-1, 22, (num_rows,), device="cuda")

    def call(function):
        return lambda h, w: function(h, w, targets, ids, 22, z_loss=z_loss)

    with using("linear_cross_entropy", method=method):
        ours = run(call(linear_cross_entropy), [hidden, weight], 2)
    expected = run(call(linear_cross_entropy_reference), wide([hidden, weight]), 2)
    assert_close(ours[:2], expected[:2], 2e-3)
    assert torch.equal(ours[2], expected[2])
    assert_close(ours[3:], expected[3:], 2e-2)


@pytest.mark.parametrize("method", METHODS_HERE)
def test_a_bad_target_makes_the_loss_nan_and_leaves_the_others_alone(method):
    hidden, weight = (draw(n, 64, dtype=torch.bfloat16).requires_grad_() for n in (8, 300))
    targets = torch.tensor([0, 1, 300, 3, -100, 5, 6, 7], device="cuda")
    with using("linear_cross_entropy", method=method):
        loss, sums, _ = linear_cross_entropy(hidden, weight, targets, torch.arange(8, device="cuda"), 8)
    loss.backward()
    assert loss.isnan()
    assert sums.isnan().tolist() == [i == 2 for i in range(8)]
    assert hidden.grad.isfinite().all()


@poisoned
@pytest.mark.parametrize("num_domains", [1, 22, 512, 4096])
@pytest.mark.parametrize("num_tokens", [0, 1, 16384, 1_000_003])
def test_domain_loss(num_domains, num_tokens):
    losses = torch.rand(num_tokens, device="cuda")
    ids = torch.randint(-2, num_domains + 2, (num_tokens,), device="cuda")
    ours, expected = domain_loss(losses, ids, num_domains), domain_loss(losses.cpu(), ids.cpu(), num_domains)
    torch.testing.assert_close(ours[0].cpu(), expected[0], rtol=1e-11, atol=0)
    assert torch.equal(ours[1].cpu(), expected[1])
    if num_tokens * num_domains < 2**24:
        torch.testing.assert_close(ours[0], domain_loss_reference(losses, ids, num_domains)[0], rtol=1e-11, atol=0)


def step(hidden, weight, gain, targets, ids):
    normed, total = rms_norm(hidden, gain, 1e-6, hidden)
    loss, sums, counts = linear_cross_entropy(swiglu(normed, total), weight, targets, ids, 22, z_loss=1e-4)
    return loss, sums, counts, *torch.autograd.grad(loss, (hidden, weight, gain))


@pytest.fixture
def inputs():
    leaves = [draw(*shape, dtype=torch.bfloat16).requires_grad_() for shape in ((4099, 512), (5000, 512), (512,))]
    return *leaves, torch.randint(0, 5000, (4099,), device="cuda"), torch.randint(0, 22, (4099,), device="cuda")


@pytest.mark.parametrize("method", METHODS_HERE)
def test_three_runs_give_the_same_bits(inputs, method):
    with using("linear_cross_entropy", method=method):
        runs = [step(*inputs) for _ in range(3)]
    for other in runs[1:]:
        assert all(torch.equal(one, two) for one, two in zip(runs[0], other, strict=True))


@pytest.mark.parametrize("method", METHODS_HERE)
def test_a_cuda_graph_captures_forward_and_backward(inputs, method):
    with using("linear_cross_entropy", method=method):
        _capture_and_replay(inputs)


def _capture_and_replay(inputs):
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        expected = step(*inputs)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step(*inputs)
    graph.replay()
    torch.cuda.synchronize()
    assert all(torch.equal(one, two) for one, two in zip(expected, captured, strict=True))


def test_compiles_with_inductor_without_a_break(inputs):
    def forward(hidden, weight, gain, targets, ids):
        normed, total = rms_norm(hidden, gain, 1e-6, hidden)
        return linear_cross_entropy(swiglu(normed, total), weight, targets, ids, 22)[0]

    compiled = torch.compile(forward, fullgraph=True)
    assert_close([compiled(*inputs)], [forward(*inputs)], 1e-6)


def test_opcheck_on_cuda():
    operations = torch.ops.ado_kernels
    hidden, weight = draw(6, 64, dtype=torch.bfloat16), draw(50, 64, dtype=torch.float32)
    targets, ids = torch.tensor([3, 0, -100, 49, 7, 7], device="cuda"), torch.tensor([0, 2, 1], device="cuda")
    leaves = hidden.requires_grad_(), weight.requires_grad_()
    opcheck(operations.rms_norm, (leaves[0], None, 1e-6))
    opcheck(operations.swiglu, (leaves[0], leaves[0].detach()))
    opcheck(operations.domain_loss, (torch.rand(6, device="cuda"), ids, 4))
    opcheck(operations.linear_cross_entropy, (*leaves, targets, ids, 4, -100, 0.0, True, True, torch.bfloat16))
