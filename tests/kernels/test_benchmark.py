"""The kernel benchmark keeps its word: in time, every record printed, static baselines, and wrong results fail it."""

import importlib.util
import json
import math
import sys
import time

import numba
import numpy as np
import pytest
import torch

import benchmarks.common
import benchmarks.kernels.__main__ as kernels
from ado_kernels import rms_norm, swiglu
from benchmarks.kernels import bars, checks, overhead, rms_norm_rope, summary
from benchmarks.kernels import domain_loss as domain_section
from benchmarks.kernels import fit as fit_section
from benchmarks.kernels import linear_cross_entropy as loss_section
from benchmarks.kernels.harness import Bench, Work

CPU = torch.device("cpu")


@pytest.fixture
def bench():
    return Bench(CPU, smoke=True, deadline=time.monotonic() + 60)


def records(capsys):
    lines = capsys.readouterr().out.splitlines()
    return [json.loads(line) for line in lines if line.startswith('{"section"')]


def run_main(monkeypatch, tmp_path, *arguments):
    monkeypatch.setattr(benchmarks.common, "RESULTS", tmp_path)
    monkeypatch.setattr(kernels, "RESULTS", tmp_path)
    monkeypatch.setattr("sys.argv", ["kernels", "--smoke", *arguments])
    return kernels.main()


def test_nothing_starts_when_time_is_up(monkeypatch, tmp_path, capsys):
    assert run_main(monkeypatch, tmp_path, "--budget-s", "-1") == 0
    printed = records(capsys)
    assert [record["section"] for record in printed] == [name for name, _ in kernels.SECTIONS]
    assert all(record["skipped"] == "out of time" for record in printed)
    (written,) = tmp_path.glob("*.json")
    assert json.loads(written.read_text())["records"] == printed


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # raised inside Dynamo
def test_a_smoke_run_is_complete_and_right(monkeypatch, tmp_path, capsys):
    """Every section runs; of baselines only those that are not installed are missing; picture and file are there."""
    assert run_main(monkeypatch, tmp_path) == 0
    *lines, total = capsys.readouterr().out.splitlines()
    printed = [json.loads(line) for line in lines if line.startswith('{"section"')]
    assert [record for record in printed if "failed" in record] == []
    skipped = {record["skipped"] for record in printed if "skipped" in record} - {"needs a CUDA GPU"}
    assert all(text.startswith(("ModuleNotFoundError", "Absent")) for text in skipped)
    assert [record for record in printed if "share_of_own_floor" in record]
    assert total.endswith("bars met, 0 missed, 55 not measured")
    pictures = [path.name for path in tmp_path.glob("kernels-cpu-*-rms_norm.png")]
    assert len(pictures) == (importlib.util.find_spec("matplotlib") is not None)
    (written,) = tmp_path.glob("*.json")
    assert json.loads(written.read_text())["records"] == printed


def test_what_fails_is_the_exit_code_and_stands_in_the_file_and_the_table(monkeypatch, tmp_path, capsys):
    def broken(bench):
        raise RuntimeError("no such kernel")

    def wrong(bench):
        bench.failed.append("rms_norm is off")

    def fine(bench):
        bench.emit("swiglu", "ran all the same")

    monkeypatch.setattr(kernels, "SECTIONS", (("device", broken), ("checks", wrong), ("swiglu", fine)))
    assert run_main(monkeypatch, tmp_path) == 1
    output = capsys.readouterr().out
    assert "ran all the same" in output
    assert output.endswith("FAILED: device: the section broke\nFAILED: rms_norm is off\n")
    (written,) = tmp_path.glob("*.json")
    assert json.loads(written.read_text())["failed"] == ["device: the section broke", "rms_norm is off"]


def test_a_picture_that_fails_costs_neither_a_figure_nor_the_exit_code(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(kernels, "SECTIONS", (("swiglu", lambda bench: bench.emit("swiglu", "ran")),))
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert run_main(monkeypatch, tmp_path) == 0
    printed = capsys.readouterr()
    assert printed.err.splitlines()[-1].startswith("not drawn: ModuleNotFoundError")
    assert printed.out.endswith("not measured\n")
    assert len([*tmp_path.glob("*.json")]) == 1


def test_without_a_ceiling_there_is_no_share_and_a_bar_on_it_is_not_measured(bench):
    assert bench.floor_ms(Work(num_bytes=1.0)) is None
    bench.copy_bytes_per_s = 1e3
    assert bench.floor_ms(Work(num_bytes=1.0)) == 1.0
    assert bench.floor_ms(Work(num_bytes=1.0, num_flops=1.0)) is None
    bench.compare("linear_cross_entropy", bars.LOSS_768, {"ours": lambda: lambda: None}, Work(num_flops=1.0))
    assert "share_of_floor" not in bench.records[-1]
    nan = {"section": "rms_norm forward", "case": bars.NORM_2048, "implementation": "ours", "share_of_floor": math.nan}
    absent = {"section": "swiglu forward", "case": bars.GLU, "implementation": "Liger", "skipped": "no such module"}
    judged = bars.verdicts([*bench.records, nan, absent])
    assert {(bar["value"], bar["met"]) for bar in judged} == {(None, None)}
    assert [bar["reason"] for bar in judged if bar["reason"]] == ["no such module"]
    *_, total, reason = summary.table(bench.records, judged, []).splitlines()
    assert total == f"0 bars met, 0 missed, {len(judged)} not measured"
    assert reason == "not measured, 1: no such module"


def test_the_cost_of_domains_says_which_case_it_lacks(bench, monkeypatch):
    def refuses(*_):
        raise RuntimeError("no such kernel")

    monkeypatch.setattr(domain_section, "domain_loss", refuses)
    domain_section.run_cost(bench)
    record = bench.records[-1]
    assert (record["section"], record["implementation"]) == ("cost of domains", "ours")
    assert record["skipped"] == "domain_loss N=512 K=22: RuntimeError: no such kernel"
    assert bench.failed == ["domain_loss, N=512 K=22, ours"]


def test_the_checks_pass(bench):
    checks.run_checks(bench)
    assert bench.failed == []
    assert {record["case"].split()[-1] for record in bench.records} == {"float32", "bfloat16"}


class Broken(torch.autograd.Function):
    """linear_cross_entropy's weight gradient, wrong by half wherever a word is no target."""

    @staticmethod
    def forward(ctx, weight):
        return weight.clone()

    @staticmethod
    def backward(ctx, dweight):
        dweight = dweight.clone()
        dweight[len(dweight) // 2 :] *= 0.5
        return dweight


def slightly_off(gate, up):
    return swiglu(gate, up) * 1.02


def different_every_time(x, weight, *others):
    y = rms_norm(x, weight, *others)
    return y if others else y * (1.0 + 1e-6 * torch.rand(()))


def half_a_softmax(hidden, weight, *others):
    return LOSS(hidden, Broken.apply(weight), *others)


LOSS = checks.linear_cross_entropy
BREAKS = {
    "swiglu": (slightly_off, "out is off"),
    "rms_norm": (different_every_time, "bits differ between runs"),
    "linear_cross_entropy": (half_a_softmax, "dweight of other words is off by 5.0e-01"),
}


@pytest.mark.parametrize("name", BREAKS)
def test_a_broken_operation_fails_the_checks(bench, monkeypatch, name):
    function, message = BREAKS[name]
    monkeypatch.setattr(checks, name, function)
    checks.run_checks(bench)
    assert [what for what in bench.failed if name in what and message in what]
    assert [name in record["case"] for record in bench.records if record["wrong"]] == [True] * len(bench.failed)


def test_an_operation_that_cannot_be_captured_fails_the_checks_and_the_others_are_checked(bench, monkeypatch):
    def refuse(self, call):
        if len(bench.records) == 0:
            raise RuntimeError("operation not permitted when stream is capturing")
        return captured(self, call)

    captured = Bench.captured
    monkeypatch.setattr(Bench, "captured", refuse)
    checks.run_checks(bench)
    (failed,) = bench.failed
    assert failed.endswith("rms_norm float32: RuntimeError: operation not permitted when stream is capturing")
    assert len(bench.records) == 12


def test_a_graph_that_replays_old_values_fails_the_checks(bench, monkeypatch):
    monkeypatch.setattr(Bench, "captured", lambda self, call: (call(), lambda: None))
    checks.run_checks(bench)
    assert len(bench.failed) == len(bench.records)
    assert all("of a graph's replay is off" in what for what in bench.failed)


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


def test_fits_are_compared_where_f_is_negative_and_judged(bench):
    def result(*objective):
        return type("Result", (), {"objective": np.array(objective)})

    np.testing.assert_allclose(fit_section.above(result(-0.0009, 0.1), result(-0.0008, 0.1)), [-0.5, 0.0])
    np.testing.assert_allclose(fit_section.above(result(-0.0007, 0.1), result(-0.0008, 0.1)), [0.5, 0.0])
    within = np.zeros(100)
    within[3] = 1.0
    fit_section.judge(bench, "K=100", within)
    assert bench.failed == []
    within[4] = np.nan
    fit_section.judge(bench, "K=100", within)
    assert bench.failed == ["fit, K=100: Triton's F is within 1e-06 of Numba's in 98.0% of domains"]


def test_the_fit_on_one_thread_leaves_the_number_as_it_was():
    before = numba.config.NUMBA_NUM_THREADS
    with fit_section.one_thread():
        assert numba.config.NUMBA_NUM_THREADS == 1
    assert before == numba.config.NUMBA_NUM_THREADS


def test_bars_are_judged_and_the_table_shows_them():
    known = {(bar.section, bar.case) for bar in bars.BARS}
    assert len(bars.BARS) == 14 + 3 * 8 + 2 * 2 + 5 * 2 + 1 + 2
    assert ("add_rms_norm backward", "16384x4096 bfloat16") in known
    case = {"section": "rms_norm forward", "case": "16384x2048 bfloat16"}
    ours = {**case, "implementation": "ours", "ms": 0.05, "graph_ms": 0.033, "share_of_floor": 0.95, "times_ours": 1.0}
    liger = {**case, "implementation": "Liger", "ms": 0.05, "share_of_floor": 0.9, "times_ours": 0.97}
    cost = {"section": "cost of domains", "case": bars.LOSS_768, "implementation": "ours", "ms": 0.03}
    cost["share_of_linear_cross_entropy"] = 0.004
    judged = bars.verdicts([ours, liger, cost])
    verdict = {(v["section"], v["implementation"], v["field"]): v["met"] for v in judged if v["met"] is not None}
    assert verdict == {
        ("rms_norm forward", "ours", "share_of_floor"): True,
        ("rms_norm forward", "Liger", "times_ours"): False,
        ("cost of domains", "ours", "share_of_linear_cross_entropy"): True,
    }
    _, norm, domains, total = summary.table([ours, liger, cost], judged, []).splitlines()
    assert " ".join(norm.split()) == "rms_norm forward 16384x2048 bfloat16 33.0 us 0.95 0.90 yes Liger 0.97(0.98 !)"
    assert domains.endswith("share of linear cross entropy 0.00(0.01)")
    assert total == f"2 bars met, 1 missed, {len(judged) - 3} not measured"


@pytest.mark.parametrize("breaks", [False, True])
def test_a_model_that_is_not_one_graph_fails_the_run(bench, monkeypatch, breaks):
    """The break stands first, with no operation of a graph before it: torch._dynamo.explain may not count it."""

    class Model(torch.nn.Module):
        def loss(self, *_):
            if breaks:
                torch._dynamo.graph_break()
            return (torch.ones(1),)

    monkeypatch.setattr(overhead, "Transformer", lambda config: Model())
    overhead._one_graph(bench)
    (record,) = bench.records
    assert record["fullgraph"] != breaks
    assert ("failed" in record) == breaks
    assert bench.failed == ["torch.compile, loss of a 2-layer model: not one graph"] * breaks


def test_the_count_behind_fusing_norm_and_rope():
    """By hand, 124M: 2 x 4 x 768 elements of 2 bytes in 12 layers; matmuls 855 MFLOP and 1.07 MB a token."""
    share = rms_norm_rope.step_share(*rms_norm_rope.H200_RATES)
    assert share["saved_bytes_per_token"] == 8 * 768 * 2 * 12
    floor_s = 854_779_392 / 790e12 + 12 * 2 * (18 * 768 + 16 * 768 + 8 * 2048) / 4.3e12
    assert abs(share["share_of_floor_frac"] - 147_456 / 4.3e12 / floor_s) < 1e-6
