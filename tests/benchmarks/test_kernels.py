"""The kernel benchmark ends in time and prints every record; baselines may be absent; wrong results fail it."""

import json
import math
import time
import types

import numpy as np
import pytest
import torch

import benchmarks.common
import benchmarks.kernels.__main__ as kernels
from ado_kernels.ops.rms_norm import rms_norm_reference
from benchmarks.kernels import domain_loss, fit, harness, rms_norm, rms_norm_rope, table
from benchmarks.kernels import linear_cross_entropy as loss_section
from benchmarks.kernels.harness import Bench, time_limit


@pytest.fixture
def bench():
    return Bench(torch.device("cpu"), smoke=True, deadline=float("inf"), backend="eager")


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
    assert [record["section"] for record in records] == list(kernels.SECTIONS)
    assert all(record["skipped"] == "out of time" for record in records)
    assert written["records"] == records


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # raised inside Dynamo
def test_a_smoke_run_is_complete_and_right(monkeypatch, tmp_path, capsys):
    """Every section runs; of baselines only those that are not installed are missing."""
    code, lines, records, written = run_main(monkeypatch, tmp_path, capsys)
    assert code == 0
    assert [record for record in records if "failed" in record] == []
    skipped = {record["skipped"] for record in records if "skipped" in record}
    assert all(text.startswith(("ModuleNotFoundError", "ImportError")) for text in skipped)
    compared = [record for record in records if record.get("implementation") == "ours" and "wrong" in record]
    assert {record["section"].split()[0] for record in compared} == {
        "rms_norm", "add_rms_norm", "swiglu", "rms_norm_rope", "linear_cross_entropy", "linear_cross_entropy,",
        "domain_loss",
    }  # fmt: skip
    assert all(record["times_ours"] == 1.0 for record in compared)
    assert lines[-1].endswith(f"bars met, 0 missed, {len(table.BARS)} not measured")
    assert written["records"] == records


def test_what_fails_is_the_exit_code_and_stands_in_the_file_and_the_table(monkeypatch, tmp_path, capsys):
    def broken(bench):
        raise RuntimeError("no such kernel")

    sections = {"device": broken, "swiglu": lambda bench: bench.emit("swiglu", "ran all the same")}
    monkeypatch.setattr(kernels, "SECTIONS", sections)
    code, lines, records, written = run_main(monkeypatch, tmp_path, capsys)
    assert code == 1
    assert records[-1]["case"] == "ran all the same"
    assert lines[-1] == "FAILED: device: the section broke"
    assert written["failed"] == ["device: the section broke"]


def test_without_a_ceiling_there_is_no_share_and_a_bar_on_it_is_not_measured(bench):
    bench.compare("linear_cross_entropy", table.LOSS_768, {"ours": lambda: lambda: None}, num_flops=1.0)
    assert "share_of_floor" not in bench.records[-1]
    nan = {"section": "rms_norm forward", "case": table.NORM_2048, "implementation": "ours", "share_of_floor": math.nan}
    absent = {"section": "swiglu forward", "case": table.GLU, "implementation": "Liger", "skipped": "no such module"}
    judged = table.verdicts([*bench.records, nan, absent])
    assert {(bar["value"], bar["met"]) for bar in judged} == {(None, None)}
    *_, total, reason = table.table(bench.records, judged, []).splitlines()
    assert total == f"0 bars met, 0 missed, {len(judged)} not measured"
    assert reason == "not measured, 1: no such module"


def test_bars_are_judged_and_the_table_shows_them():
    assert len(table.BARS) == 14 + 3 * 8 + 2 * 2 + 5 * 2 + 1 + 2
    case = {"section": "rms_norm forward", "case": "16384x2048 bfloat16"}
    ours = {**case, "implementation": "ours", "ms": 0.033, "share_of_floor": 0.95, "times_ours": 1.0}
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


def test_the_share_of_the_domains_needs_both_times(bench):
    domain_loss.run(bench)
    assert bench.records[-1]["skipped"] == "needs the times of domain_loss and linear_cross_entropy"
    bench.emit("linear_cross_entropy", "N=512 V=2048 H=64", implementation="ours", ms=1e6)
    domain_loss.run(bench)
    assert bench.records[-1]["share_of_linear_cross_entropy"] == bench.records[-1]["ms"] / 1e6


@pytest.mark.parametrize("factor", [1.0, 1.02, math.nan])
def test_a_result_that_is_off_fails_the_run(bench, factor):
    makes = {"ours": lambda: lambda x, weight: rms_norm_reference(x, weight) * factor}
    rms_norm.norm(bench, 8, 64, torch.bfloat16, makes)
    names = [f"rms_norm {which}, 8x64 bfloat16" for which in ("forward", "backward", "forward+backward")]
    assert bench.failed == ([] if factor == 1.0 else names)


def test_a_loss_is_compared_with_plain_float64(bench):
    """The oracle, made a few rows at a time, is autograd's; a loss of which a part is missing is said to be wrong."""
    inputs = loss_section.draw(bench, loss_section.Shape(300, 8000, 16))
    expected = loss_section.reference(bench, inputs)
    wide = [tensor.detach().double().requires_grad_() for tensor in (inputs.hidden, inputs.weight)]
    plain = torch.nn.functional.cross_entropy(wide[0] @ wide[1].t(), inputs.targets)
    for ours, known in zip(expected, (plain, *torch.autograd.grad(plain, wide)), strict=True):
        torch.testing.assert_close(ours, known.detach(), rtol=1e-12, atol=1e-15)
    loss, dhidden, dweight = expected
    no_target = torch.ones(8000, dtype=torch.bool)
    no_target[inputs.targets] = False
    without_softmax = torch.where(no_target[:, None], 0.0, dweight)  # 2 % of the whole gradient's norm at most
    for broken in (
        expected,
        (loss + 0.01, *expected[1:]),
        (loss, dhidden * 1.06, dweight),
        (loss, dhidden, without_softmax),
    ):
        bench.compare(
            "loss", "8000 words", {"ours": lambda broken=broken: lambda: broken}, expected=lambda: expected,
            tolerances=loss_section.TOLERANCES,
        )  # fmt: skip
    assert [record["wrong"] for record in bench.records] == [False, True, True, True]


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


def test_a_baseline_may_be_absent_or_fail_ours_may_not(bench, monkeypatch):
    def fails():
        raise RuntimeError("illegal memory access")

    monkeypatch.setattr(Bench, "time", lambda self, call: {"ms": call()})
    bench.copy_bytes_per_s = bench.matmul_flop_per_s = 1.0
    builds = {"ours": lambda: lambda: 4.0, "absent": lambda: __import__("no_such_package"), "fails": fails}
    bench.compare("section", "case", builds, num_bytes=2e-3)
    ours, absent, failing = bench.records
    assert (ours["times_ours"], ours["floor_ms"], ours["share_of_floor"]) == (1.0, 2.0, 0.5)
    assert absent["skipped"].startswith("ModuleNotFoundError")
    assert failing["failed"] == "RuntimeError: illegal memory access"
    bench.compare("section", "case", {"later": lambda: lambda: 5.0})
    assert bench.records[-1]["times_ours"] == 1.25
    assert bench.failed == []
    bench.compare("section", "mine", {"ours": lambda: __import__("no_such_package")})
    bench.compare("section", "other", {"ours": fails})
    assert bench.failed == ["section, mine", "section, other"]
    bench.deadline = 0.0
    bench.compare("section", "case", builds)
    assert [record["skipped"] for record in bench.records[-3:]] == ["out of time"] * 3


def test_a_twentieth_shape_is_compiled_like_the_first(bench):
    """Dynamo gives up on a function after eight compilations unless it is made to forget."""
    for width in range(1, 21):
        assert bench.compiled(lambda x: x + 1.0)(torch.zeros(width)).shape == (width,)


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
    harness.one_pass(lambda: Overwrites.apply, which, (inputs,), (grads,))()
    assert torch.equal(inputs, before)
    assert torch.equal(grads, torch.ones(3, 8))


@pytest.mark.deadline
def test_a_compilation_that_takes_too_long_is_cut():
    start = time.monotonic()
    with pytest.raises(TimeoutError, match="not ready after 1 s"), time_limit(1):
        time.sleep(30)
    assert time.monotonic() - start < 10


def test_ratios_are_by_one_clock():
    graph, events = {"ms": 1.0, "events_ms": 3.0}, {"ms": 6.0, "events_ms": 6.0, "not_capturable": "synchronises"}
    assert harness._against(events, graph) == {"times_ours": 2.0}
    assert harness._against(graph, graph) == {"times_ours": 1.0}
