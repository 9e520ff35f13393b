"""The kernel benchmark ends in time and prints every record; baselines may be absent; wrong results fail it."""

import enum
import json
import math
import sys
import time
import types
from contextlib import contextmanager, nullcontext

import numpy as np
import pytest
import torch

import benchmarks.common
import benchmarks.kernels.__main__ as kernels
from ado_kernels import swiglu
from ado_kernels.ops.rms_norm import rms_norm_reference
from benchmarks.kernels import ceilings, checks, domain_loss, fit, harness, passes, rms_norm, rms_norm_rope, table
from benchmarks.kernels import linear_cross_entropy as loss_section
from benchmarks.kernels import swiglu as glu_section
from benchmarks.kernels.harness import Bench, Work, time_limit

CPU = torch.device("cpu")


@pytest.fixture
def bench():
    return Bench(CPU, smoke=True, deadline=time.monotonic() + 60, backend="eager")


def run_main(monkeypatch, tmp_path, capsys, *arguments):
    """(exit code, printed lines, the records among them, the file written)."""
    monkeypatch.setattr(benchmarks.common, "RESULTS", tmp_path)
    monkeypatch.setattr("sys.argv", ["kernels", "--smoke", *arguments])
    code = kernels.main()
    lines = capsys.readouterr().out.splitlines()
    (written,) = tmp_path.glob("kernels-cpu-*.json")
    records = [json.loads(line) for line in lines if line.startswith('{"section"')]
    return code, lines, records, json.loads(written.read_text())


def test_nothing_starts_when_time_is_up(monkeypatch, tmp_path, capsys):
    code, _, records, written = run_main(monkeypatch, tmp_path, capsys, "--budget-s", "-1")
    assert code == 0
    assert [record["section"] for record in records] == [name for name, _ in kernels.SECTIONS]
    assert all(record["skipped"] == "out of time" for record in records)
    assert written["records"] == records


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # raised inside Dynamo
def test_a_smoke_run_is_complete_and_right(monkeypatch, tmp_path, capsys):
    """Every section runs; of baselines only those that are not installed are missing."""
    code, lines, records, written = run_main(monkeypatch, tmp_path, capsys)
    assert code == 0
    assert [record for record in records if "failed" in record] == []
    skipped = {record["skipped"] for record in records if "skipped" in record} - {"needs a CUDA GPU"}
    assert all(text.startswith(("ModuleNotFoundError", "ImportError")) for text in skipped)
    examined = [record for record in records if record.get("implementation") == "ours" and "wrong" in record]
    assert {record["section"].split()[0] for record in examined} == {
        "rms_norm", "add_rms_norm", "swiglu", "rms_norm_rope", "linear_cross_entropy", "linear_cross_entropy,",
        "domain_loss",
    }  # fmt: skip
    assert [record for record in records if "share_of_own_floor" in record]
    assert lines[-1].endswith(f"bars met, 0 missed, {len(table.BARS)} not measured")
    assert written["records"] == records


def test_what_fails_is_the_exit_code_and_stands_in_the_file_and_the_table(monkeypatch, tmp_path, capsys):
    def broken(bench):
        raise RuntimeError("no such kernel")

    sections = (
        ("device", broken),
        ("checks", lambda bench: bench.failed.append("rms_norm is off")),
        ("swiglu", lambda bench: bench.emit("swiglu", "ran all the same")),
    )
    monkeypatch.setattr(kernels, "SECTIONS", sections)
    code, lines, records, written = run_main(monkeypatch, tmp_path, capsys)
    assert code == 1
    assert records[-1]["case"] == "ran all the same"
    assert lines[-2:] == ["FAILED: device: the section broke", "FAILED: rms_norm is off"]
    assert written["failed"] == ["device: the section broke", "rms_norm is off"]


def test_without_a_ceiling_there_is_no_share_and_a_bar_on_it_is_not_measured(bench):
    assert bench.floor_ms(Work(num_bytes=1.0)) is None
    bench.copy_bytes_per_s = 1e3
    assert bench.floor_ms(Work(num_bytes=1.0)) == 1.0
    assert bench.floor_ms(Work(num_bytes=1.0, num_flops=1.0)) is None
    bench.compare("linear_cross_entropy", table.LOSS_768, {"ours": lambda: lambda: None}, Work(num_flops=1.0))
    assert "share_of_floor" not in bench.records[-1]
    nan = {"section": "rms_norm forward", "case": table.NORM_2048, "implementation": "ours", "share_of_floor": math.nan}
    absent = {"section": "swiglu forward", "case": table.GLU, "implementation": "Liger", "skipped": "no such module"}
    judged = table.verdicts([*bench.records, nan, absent])
    assert {(bar["value"], bar["met"]) for bar in judged} == {(None, None)}
    assert [bar["reason"] for bar in judged if bar["reason"]] == ["no such module"]
    *_, total, reason = table.table(bench.records, judged, []).splitlines()
    assert total == f"0 bars met, 0 missed, {len(judged)} not measured"
    assert reason == "not measured, 1: no such module"


def test_bars_are_judged_and_the_table_shows_them():
    known = {(bar.section, bar.case) for bar in table.BARS}
    assert len(table.BARS) == 14 + 3 * 8 + 2 * 2 + 5 * 2 + 1 + 2
    assert ("add_rms_norm backward", "16384x4096 bfloat16") in known
    case = {"section": "rms_norm forward", "case": "16384x2048 bfloat16"}
    ours = {**case, "implementation": "ours", "ms": 0.05, "graph_ms": 0.033, "share_of_floor": 0.95, "times_ours": 1.0}
    liger = {**case, "implementation": "Liger", "ms": 0.05, "share_of_floor": 0.9, "times_ours": 0.97}
    cost = {"section": "cost of domains", "case": table.LOSS_768, "implementation": "ours", "ms": 0.03}
    cost["share_of_linear_cross_entropy"] = 0.004
    judged = table.verdicts([ours, liger, cost])
    verdict = {(v["section"], v["implementation"], v["field"]): v["met"] for v in judged if v["met"] is not None}
    assert verdict == {
        ("rms_norm forward", "ours", "share_of_floor"): True,
        ("rms_norm forward", "Liger", "times_ours"): False,
        ("cost of domains", "ours", "share_of_linear_cross_entropy"): True,
    }
    _, norm, domains, total = table.table([ours, liger, cost], judged, []).splitlines()
    assert " ".join(norm.split()) == "rms_norm forward 16384x2048 bfloat16 33.0 us 0.95 0.90 yes Liger 0.97(0.98 !)"
    assert domains.endswith("share of linear cross entropy 0.00(0.01)")
    assert total == f"2 bars met, 1 missed, {len(judged) - 3} not measured"


def test_the_cost_of_domains_says_which_case_it_lacks(bench, monkeypatch):
    def refuses(*_):
        raise RuntimeError("no such kernel")

    monkeypatch.setattr(domain_loss, "domain_loss", refuses)
    domain_loss.run_cost(bench)
    record = bench.records[-1]
    assert (record["section"], record["implementation"]) == ("cost of domains", "ours")
    assert record["skipped"] == "domain_loss N=512 K=22: RuntimeError: no such kernel"
    assert bench.failed == ["domain_loss, N=512 K=22, ours"]


@pytest.mark.parametrize(
    ("what", "value", "last_line"), [("SELECTED", "no_such_test", "deselected"), ("BUDGET_S", 0.01, "not done after")]
)
def test_checks_that_do_not_pass_fail_the_run(bench, monkeypatch, what, value, last_line):
    """None that runs is none that passes. That the checks pass: the smoke run."""
    monkeypatch.setattr(checks, what, value)
    checks.run_checks(bench)
    (failed,) = bench.failed
    assert last_line in failed
    assert bench.records[-1]["wrong"]


@pytest.mark.parametrize("factor", [1.0, 1.02, math.nan])
def test_a_result_that_is_off_fails_the_run(bench, factor):
    case = rms_norm.norm(bench, 8, 64, torch.bfloat16)
    case.compare(bench, {"ours": lambda: lambda x, weight: rms_norm_reference(x, weight) * factor})
    names = [f"rms_norm {which}, 8x64 bfloat16, ours" for which in ("forward", "backward", "forward+backward")]
    assert bench.failed == ([] if factor == 1.0 else names)


def test_a_loss_is_examined_against_plain_float64(bench):
    """The oracle, made a few rows at a time, is autograd's; a loss of which a part is missing is said to be wrong."""
    inputs = loss_section.draw(bench, loss_section.Shape(300, 8000, 16))
    expected = loss_section.reference(bench, inputs)
    wide = [tensor.detach().double().requires_grad_() for tensor in (inputs.hidden, inputs.weight)]
    plain = torch.nn.functional.cross_entropy(wide[0] @ wide[1].t(), inputs.targets)
    for ours, known in zip(expected, (plain, *torch.autograd.grad(plain, wide)), strict=True):
        torch.testing.assert_close(ours, known.detach(), rtol=1e-12, atol=1e-15)
    loss, dhidden, dweight = expected
    assert not loss_section.examined(expected, expected, inputs.targets)["wrong"]
    elsewhere = torch.ones(8000, dtype=torch.bool)
    elsewhere[inputs.targets] = False
    without_softmax = torch.where(elsewhere[:, None], 0.0, dweight)
    assert loss_section.norm_error(without_softmax, dweight) < loss_section.GRADIENT_TOLERANCE  # one norm cannot tell
    for broken in ((loss + 0.01, dhidden, dweight), (loss, dhidden * 1.03, dweight), (loss, dhidden, without_softmax)):
        assert loss_section.examined(broken, expected, inputs.targets)["wrong"]
    assert loss_section.examined((loss + 0.01,), expected, inputs.targets)["wrong"]  # the loss alone


def test_fits_are_compared_where_f_is_negative_and_judged(bench):
    def result(*objective):
        return types.SimpleNamespace(objective=np.array(objective))

    np.testing.assert_allclose(fit.above(result(-0.0009, 0.1), result(-0.0008, 0.1)), [-0.5, 0.0])
    np.testing.assert_allclose(fit.above(result(-0.0007, 0.1), result(-0.0008, 0.1)), [0.5, 0.0])
    within = np.zeros(100)
    within[3] = 1.0
    fit.judge(bench, "K=100", within)
    assert bench.failed == []
    within[4] = np.nan
    fit.judge(bench, "K=100", within)
    assert bench.failed == ["fit, K=100: Triton's F is within 1e-06 of Numba's in 98.0% of domains"]


def test_the_count_behind_fusing_norm_and_rope():
    """By hand, 124M: 2 x 4 x 768 elements of 2 bytes in 12 layers; matmuls 855 MFLOP and 1.07 MB a token."""
    share = rms_norm_rope.step_share(*rms_norm_rope.H200_RATES)
    assert share["saved_bytes_per_token"] == 8 * 768 * 2 * 12
    floor_s = 854_779_392 / 790e12 + 12 * 2 * (18 * 768 + 16 * 768 + 8 * 2048) / 4.3e12
    assert abs(share["share_of_floor_frac"] - 147_456 / 4.3e12 / floor_s) < 1e-6


def test_a_baseline_may_be_absent_or_fail_ours_may_not(bench):
    def fails():
        raise RuntimeError("illegal memory access")

    def lacks():
        raise ImportError("this torch has no such function")

    builds = {"ours": lambda: lambda: None, "absent": lambda: __import__("no_such_package"), "lacks": lacks}
    builds["fails"] = fails
    bench.compare("section", "case", builds, Work(num_bytes=1.0))
    ours, absent, lacking, failing = bench.records
    assert ours["times_ours"] == 1.0
    assert absent["skipped"].startswith("ModuleNotFoundError")
    assert lacking["skipped"] == "ImportError: this torch has no such function"
    assert failing["failed"] == "RuntimeError: illegal memory access"
    assert bench.failed == []
    bench.compare("section", "mine", {"ours": lacks}, Work(num_bytes=1.0))
    bench.compare("section", "other", {"ours": fails}, Work(num_bytes=1.0))
    bench.compare("section", "wrong", {"ours": lambda: lambda: None}, Work(), lambda result: {"wrong": True})
    assert bench.failed == ["section, mine, ours", "section, other, ours", "section, wrong, ours"]
    bench.deadline = 0.0
    bench.compare("section", "case", builds, Work(num_bytes=1.0))
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
    monkeypatch.setattr(passes.Passes, "examined", lambda *_: {})
    monkeypatch.setattr(loss_section, "reference", lambda *_: None)
    monkeypatch.setattr(loss_section, "examined", lambda *_: {})
    bench = Bench(torch.device("meta"), smoke=False, deadline=float("inf"), backend=backend)
    for run in (rms_norm.run_bars, rms_norm.run_rest, glu_section.run_bars, glu_section.run_rest):
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


def test_a_twentieth_shape_is_compiled_like_the_first(bench):
    """Dynamo gives up on a function after eight compilations unless it is made to forget."""
    for width in range(1, 21):
        assert bench.compiled(lambda x: x + 1.0)(torch.zeros(width)).shape == (width,)


def test_a_fused_input_gets_one_gradient(bench):
    case = glu_section.glu(bench, (3, 4), fused=True)
    make = glu_section.implementations(bench, fused=True)["ours"]
    leaf = case.inputs[0].clone().requires_grad_()
    expected = torch.autograd.grad(swiglu(*leaf.chunk(2, -1)), leaf, case.grads)
    for which in ("forward+backward", "backward"):
        torch.testing.assert_close(case.build(make, which)(), expected, rtol=0, atol=0)


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
    case = passes.Passes("swiglu", "in place", (inputs,), (grads,), 1.0, 1.0, reference=torch.neg)
    case.build(lambda: Overwrites.apply, which)()
    assert torch.equal(inputs, before)
    assert torch.equal(grads, torch.ones(3, 8))


def test_liger_is_timed_as_it_is_by_default(bench, monkeypatch):
    """Only what names the operation is passed: 0.8.5 with in_place=False fills dx with zeros before it writes it."""
    given = []

    def module(name, attribute):
        function = type("Function", (), {"apply": staticmethod(lambda *arguments: given.append(arguments))})
        monkeypatch.setitem(sys.modules, name, types.SimpleNamespace(**{attribute: function}))

    for package in ("liger_kernel", "liger_kernel.ops"):
        monkeypatch.setitem(sys.modules, package, types.SimpleNamespace())
    module("liger_kernel.ops.rms_norm", "LigerRMSNormFunction")
    module("liger_kernel.ops.fused_add_rms_norm", "LigerFusedAddRMSNormFunction")
    rms_norm.norms(bench, 8)["Liger"]()("x", "weight")
    rms_norm.add_norms(bench, 8)["Liger"]()("x", "residual", "weight")
    assert given == [("x", "weight", 1e-6), ("x", "residual", "weight", 1e-6)]


@pytest.mark.parametrize("name", ["F.linear_cross_entropy", "F.linear_cross_entropy by 4096"])
def test_torch_before_2_13_lacks_its_own_fused_loss(bench, monkeypatch, name):
    """Absent, so that the bars on it are not measured; it has not failed."""
    monkeypatch.delattr(torch.nn, "LinearCrossEntropyOptions", raising=False)
    with pytest.raises(ImportError, match="has no F.linear_cross_entropy"):
        loss_section.implementations(bench)[name]()


@pytest.mark.parametrize(("known", "absent"), [({"CCE", "TORCH_COMPILE"}, True), ({"CCE", "CCE_KAHAN_FULL_C"}, False)])
def test_a_preset_that_this_cut_cross_entropy_does_not_know_is_absent(bench, monkeypatch, known, absent):
    """25.1.1, the one on PyPI, knows only the first two."""
    package = types.ModuleType("cut_cross_entropy")
    package.LinearCrossEntropyImpl = enum.Enum("LinearCrossEntropyImpl", sorted(known))
    package.linear_cross_entropy = lambda *_, impl: impl
    monkeypatch.setitem(sys.modules, "cut_cross_entropy", package)
    makes = loss_section.implementations(bench)
    assert makes["CCE"]()(0, 0, 0, 0) == "cce"
    with pytest.raises(ImportError, match="no cce_kahan_full_c") if absent else nullcontext():
        assert makes["CCE, cce_kahan_full_c"]()(0, 0, 0, 0) == "cce_kahan_full_c"


@pytest.mark.deadline
def test_a_compilation_that_takes_too_long_is_cut():
    start = time.monotonic()
    with pytest.raises(TimeoutError, match="not ready after 1 s"), time_limit(1):
        time.sleep(30)
    assert time.monotonic() - start < 10


def test_a_graph_of_flushed_calls_less_one_of_flushes_on_the_current_stream(monkeypatch):
    """Ten calls each after a read of four times the cache, no two in a row of the same memory, over and over."""
    done = []

    @contextmanager
    def graph(graph, stream):
        assert stream == "side"
        done.clear()
        yield

    class Part:
        def __init__(self, number, num_bytes):
            assert num_bytes == 4 * (1 << 20)
            self.sum = lambda: done.append(number)

    def ones(*shape, device):
        return [Part(number, 4 * shape[1]) for number in range(shape[0])]

    card = types.SimpleNamespace(L2_cache_size=1 << 20)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: card)
    monkeypatch.setattr(torch, "ones", ones)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: "side")
    monkeypatch.setattr(torch.cuda, "graph", graph)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: types.SimpleNamespace(replay=lambda: None))
    recorded = []
    monkeypatch.setattr(Bench, "time_ms", lambda self, call: recorded.append([*done]) or 0.01 * len(done))
    bench = Bench(torch.device("cuda"), smoke=False, deadline=0.0)
    assert bench.graph_ms(lambda: done.append("call"))["graph_ms"] == pytest.approx(0.01)
    flushed, flushes = recorded
    assert flushed[1::2] == ["call"] * 10
    assert flushed[::2] == flushes == [*range(5)] * 2


def test_failing_to_capture_is_said_and_ratios_are_by_one_clock(bench, monkeypatch):
    def synchronises(call):
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: types.SimpleNamespace(L2_cache_size=8))
    monkeypatch.setattr(bench, "captured", synchronises)
    assert bench.graph_ms(print) == {"not_capturable": "operation not permitted when stream is capturing"}
    slow, fast = {"ms": 3.0, "graph_ms": 2.0}, {"ms": 2.0, "graph_ms": 0.5}
    assert harness.judged_ms(slow) == 2.0
    assert harness._against(slow, fast) == {"times_ours": 4.0}
    assert harness._against({"ms": 3.0}, fast) == {"times_ours": 1.5}


def test_ceilings_are_judged_by_the_clock_of_what_they_judge(monkeypatch):
    """By graph, where every write is paid for: by events, a cache's worth of the copy's writes would not be."""
    monkeypatch.setattr(Bench, "time_ms", lambda self, call: 2.0)
    monkeypatch.setattr(Bench, "graph_ms", lambda self, call: {"graph_ms": 4.0})
    monkeypatch.setattr(Bench, "on_gpu", True)
    monkeypatch.setattr(Bench, "synchronize", lambda self: None)
    monkeypatch.setattr(ceilings, "own_rates", lambda *_: {})
    bench = Bench(CPU, smoke=True, deadline=0.0, backend="eager")
    ceilings.run_device(bench)
    assert bench.copy_bytes_per_s == 2e3 * 2 * (1 << 24) / 4.0
    assert bench.matmul_flop_per_s == 2e3 * 512**3 / 4.0
    assert bench.times(lambda: None, graph_below_ms=1.0) == {"ms": 2.0}


def test_a_compiler_that_does_not_start_costs_no_ceiling(bench, monkeypatch):
    def refuses(self, function):
        raise RuntimeError("no C compiler")

    monkeypatch.setattr(Bench, "compiled", refuses)
    ceilings.run_device(bench)
    assert bench.failed == []
    assert bench.floor_ms(Work(num_bytes=1.0, num_flops=1.0)) > 0
    (failed,) = [record for record in bench.records if "failed" in record]
    assert (failed["case"], failed["failed"]) == ("torch.compile starts", "RuntimeError: no C compiler")
    assert [name for name, _ in bench.own_flop_per_s] == ["logits", "dX", "dW"]


def test_ceilings_are_of_the_operands_as_they_lie(bench, monkeypatch):
    calls = []
    monkeypatch.setattr(torch, "mm", lambda a, b, **more: calls.append((a.shape, b.shape, a.stride(), b.stride())))
    ceilings.own_rates(bench, rows=4, width=8, vocabulary=16, dtype=torch.float32)
    assert list(dict.fromkeys(calls)) == [
        ((4, 8), (8, 16), (8, 1), (1, 8)),  # x W^T
        ((4, 16), (16, 8), (16, 1), (8, 1)),  # g W
        ((16, 4), (4, 8), (1, 16), (8, 1)),  # g^T x
    ]
    bench.own_flop_per_s = {("logits", 8): 1e3, ("dX", 8): 2e3, ("dW", 8): 4e3}
    assert ceilings.own_floor_ms(bench, ceilings.TRAINING, 1e3, 8) == pytest.approx(1e3 + 500 + 250)
    assert ceilings.own_floor_ms(bench, ceilings.FORWARD, 1e3, 64) is None
