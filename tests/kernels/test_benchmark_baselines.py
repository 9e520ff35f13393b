"""What the kernels are compared with: given the same, as it is by default, static, and allowed to be absent."""

import enum
import re
import sys
import time
import types
from contextlib import nullcontext

import pytest
import torch

from ado_kernels import swiglu
from benchmarks.kernels import linear_cross_entropy as loss_section
from benchmarks.kernels import passes, rms_norm_rope
from benchmarks.kernels import rms_norm as norm_section
from benchmarks.kernels import swiglu as glu_section
from benchmarks.kernels.harness import Absent, Bench, Work
from benchmarks.kernels.linear_cross_entropy_baselines import implementations

CPU = torch.device("cpu")


@pytest.fixture
def bench():
    return Bench(CPU, smoke=True, deadline=time.monotonic() + 60)


def test_a_baseline_may_be_absent_or_fail_ours_may_not(bench):
    def fails():
        raise RuntimeError("illegal memory access")

    def lacks():
        raise Absent("this torch has no such function")

    builders = {"ours": lambda: lambda: None, "absent": lambda: __import__("no_such_package"), "lacks": lacks}
    builders["fails"] = fails
    bench.compare("section", "case", builders, Work(num_bytes=1.0))
    ours, absent, lacking, failing = bench.records
    assert ours["times_ours"] == 1.0
    assert absent["skipped"].startswith("ModuleNotFoundError")
    assert lacking["skipped"] == "Absent: this torch has no such function"
    assert failing["failed"] == "RuntimeError: illegal memory access"
    assert bench.failed == []
    bench.compare("section", "mine", {"ours": lacks}, Work(num_bytes=1.0))
    bench.compare("section", "other", {"ours": fails}, Work(num_bytes=1.0))
    bench.compare("section", "wrong", {"ours": lambda: lambda: None}, Work(), lambda result: {"wrong": True})
    assert bench.failed == ["section, mine, ours", "section, other, ours", "section, wrong, ours"]
    bench.deadline = 0.0
    bench.compare("section", "case", builders, Work(num_bytes=1.0))
    assert [record["skipped"] for record in bench.records[-4:]] == ["out of time"] * 4


def test_a_baseline_timed_later_is_compared_with_the_earlier_time_of_ours(bench, monkeypatch):
    monkeypatch.setattr(Bench, "time_ms", lambda self, call: call())
    bench.copy_bytes_per_s = 1.0
    bench.compare("section", "case", {"ours": lambda: lambda: 2.0}, Work(num_bytes=1.0))
    bench.compare("section", "case", {"later": lambda: lambda: 5.0}, Work(num_bytes=1.0))
    assert bench.find("section", "case", "later")["times_ours"] == 2.5
    bench.matmul_flop_per_s = 1e3
    bench.compare("section", "floors", {"ours": lambda: lambda: 4.0}, Work(num_flops=1.0, own_floor_ms=2.0))
    record = bench.find("section", "floors")
    assert (record["floor_ms"], record["share_of_floor"], record["share_of_own_floor"]) == (1.0, 0.25, 0.5)
    assert record["tflop_per_s"] == pytest.approx(1.0 / 4e-3 / 1e12)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # raised inside Dynamo
def test_every_compiled_case_has_static_shapes(monkeypatch):
    """On the meta device, at full size, with a backend that keeps what Dynamo gives it."""
    graphs = []

    def backend(module, inputs):
        held = [node.meta["example_value"] for node in module.graph.nodes if node.op == "placeholder"]
        graphs.append([tuple(value.shape) if isinstance(value, torch.Tensor) else value for value in held])
        return module.forward

    monkeypatch.setattr(Bench, "time_ms", lambda self, call: 1.0)
    monkeypatch.setattr(loss_section, "reference", lambda *_: None)
    monkeypatch.setattr(loss_section, "examined", lambda *_: {})
    bench = Bench(torch.device("meta"), smoke=False, deadline=float("inf"), backend=backend)
    for run in (norm_section.run_bars, norm_section.run_rest, glu_section.run_bars, glu_section.run_rest):
        run(bench)
    for run in (rms_norm_rope.run_rms_norm_rope, loss_section.run_bars, loss_section.run_rest):
        run(bench)
    cases = [record for record in bench.records if "compile" in record.get("implementation", "")]
    assert len(cases) > 40
    assert [record for record in cases if "ms" not in record] == []
    assert all(isinstance(size, int) for graph in graphs for shape in graph for size in shape)
    assert {(16384, 2048), (16384, 8192), (16384, 2 * 5632), (8192, 14336), (50304, 768)} <= {
        shape for graph in graphs for shape in graph
    }


def test_a_twentieth_shape_is_compiled_like_the_first():
    """Dynamo gives up on a function after eight compilations unless it is made to forget."""
    bench = Bench(CPU, smoke=True, deadline=0.0, backend="eager")
    for width in range(1, 21):
        assert bench.compiled(lambda x: x + 1.0)(torch.zeros(width)).shape == (width,)


def test_every_pass_gets_inputs_of_its_own_and_a_fused_input_one_gradient(bench):
    inputs = torch.randn(3, 8)
    before = inputs.clone()
    operation = passes.Operation("swiglu", "fused", (inputs,), (torch.ones(3, 4),), 1.0, 1.0)
    make = glu_section.implementations(bench, fused=True)["ours"]
    (both,) = operation.builder(make, "forward+backward")()()
    (again,) = operation.builder(make, "backward")()()
    expected = torch.autograd.grad(swiglu(*(leaf := before.requires_grad_()).chunk(2, -1)).sum(), leaf)[0]
    assert torch.equal(both, expected)
    assert torch.equal(again, expected)


class Overwrites(torch.autograd.Function):
    """Writes over its input, as Liger's SwiGLU does, and over dy, as its RMSNorm does."""

    @staticmethod
    def forward(ctx, x):
        x.detach().zero_()
        return x.detach() * 1.0

    @staticmethod
    def backward(ctx, dy):
        return dy.zero_()


@pytest.mark.parametrize("which", ["forward", "backward", "forward+backward"])
def test_what_one_implementation_overwrites_the_next_one_finds_as_it_was(which):
    inputs, grads = torch.randn(3, 8), torch.ones(3, 8)
    before = inputs.clone()
    operation = passes.Operation("swiglu", "in place", (inputs,), (grads,), 1.0, 1.0)
    operation.builder(lambda: Overwrites.apply, which)()()
    assert torch.equal(inputs, before)
    assert torch.equal(grads, torch.ones(3, 8))


def test_liger_is_timed_as_it_is_by_default(monkeypatch):
    """Only what names the operation is passed: 0.8.5 with in_place=False fills dx with zeros before it writes it."""
    given = []

    def module(name, attribute):
        function = type("Function", (), {"apply": staticmethod(lambda *arguments: given.append(arguments))})
        monkeypatch.setitem(sys.modules, name, types.SimpleNamespace(**{attribute: function}))

    for package in ("liger_kernel", "liger_kernel.ops"):
        monkeypatch.setitem(sys.modules, package, types.SimpleNamespace())
    module("liger_kernel.ops.rms_norm", "LigerRMSNormFunction")
    module("liger_kernel.ops.fused_add_rms_norm", "LigerFusedAddRMSNormFunction")
    bench = Bench(CPU, smoke=True, deadline=0.0)
    norm_section.norms(bench, 8)["Liger"]()("x", "weight")
    norm_section.add_norms(bench, 8)["Liger"]()("x", "residual", "weight")
    assert given == [("x", "weight", 1e-6), ("x", "residual", "weight", 1e-6)]


def test_torch_before_2_13_lacks_its_own_fused_loss(bench, monkeypatch):
    """Absent, so that the bars on it are not measured; it has not failed."""
    monkeypatch.delattr(torch.nn, "LinearCrossEntropyOptions", raising=False)
    makes = implementations(bench)
    for name in ("F.linear_cross_entropy", "F.linear_cross_entropy by 4096"):
        with pytest.raises(Absent, match=f"torch {re.escape(torch.__version__)} has no F.linear_cross_entropy"):
            makes[name]()


@pytest.mark.parametrize(("known", "absent"), [({"CCE", "TORCH_COMPILE"}, True), ({"CCE", "CCE_KAHAN_FULL_C"}, False)])
def test_a_preset_that_this_cut_cross_entropy_does_not_know_is_absent(bench, monkeypatch, known, absent):
    """25.1.1, the one on PyPI, knows only the first two."""
    package = types.ModuleType("cut_cross_entropy")
    package.LinearCrossEntropyImpl = enum.Enum("LinearCrossEntropyImpl", sorted(known))
    package.linear_cross_entropy = lambda *_, impl: impl
    monkeypatch.setitem(sys.modules, "cut_cross_entropy", package)
    makes = implementations(bench)
    assert makes["CCE"]()(0, 0, 0, 0) == "cce"
    with pytest.raises(Absent, match="no cce_kahan_full_c") if absent else nullcontext():
        assert makes["CCE, cce_kahan_full_c"]()(0, 0, 0, 0) == "cce_kahan_full_c"
