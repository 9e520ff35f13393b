"""The kernel benchmark keeps to its time and to its word: nothing starts when time is up, every record is printed."""

import json
import time

import pytest
import torch

import benchmarks.common
import benchmarks.kernels.__main__ as kernels
from benchmarks.kernels.harness import Alarm, Bench
from benchmarks.kernels.rope import H200_RATES, step_share


def records(capsys):
    lines = capsys.readouterr().out.splitlines()
    return [json.loads(line) for line in lines if line.startswith('{"section"')]


def test_nothing_starts_when_time_is_up(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(benchmarks.common, "RESULTS", tmp_path)
    monkeypatch.setattr(kernels, "RESULTS", tmp_path)
    monkeypatch.setattr("sys.argv", ["kernels", "--smoke", "--budget-s", "-1"])
    assert kernels.main() == 0
    printed = records(capsys)
    assert {record["section"] for record in printed} == set(kernels.SECTIONS)
    assert all(record["skipped"] == "out of time" for record in printed)
    (written,) = tmp_path.glob("*.json")
    assert json.loads(written.read_text())["records"] == printed


def test_a_case_out_of_time_or_failing_is_recorded_and_the_next_one_runs(capsys):
    bench = Bench(torch.device("cpu"), smoke=True, deadline=time.monotonic() + 60)
    builders = {"ours": lambda: lambda: None, "absent": lambda: __import__("no_such_package")}
    bench.compare("section", "case", builders, floor_ms=1.0)
    ours, absent = records(capsys)
    assert ours["times_ours"] == 1.0
    assert absent["failed"].startswith("ModuleNotFoundError")
    bench.deadline = 0.0
    bench.compare("section", "case", builders, floor_ms=1.0)
    assert [record["skipped"] for record in records(capsys)] == ["out of time"] * 2


def test_a_compilation_that_takes_too_long_is_cut():
    start = time.monotonic()
    with pytest.raises(TimeoutError, match="not ready after 1 s"), Alarm(1):
        time.sleep(30)
    assert time.monotonic() - start < 10


def test_the_count_behind_fusing_norm_and_rope():
    """By hand, 124M: 2 x 4 x 768 elements of 2 bytes in 12 layers; matmuls 855 MFLOP and 1.07 MB a token."""
    share = step_share(*H200_RATES)
    assert share["saved_bytes_per_token"] == 8 * 768 * 2 * 12
    floor_s = 854_779_392 / 790e12 + 12 * 2 * (18 * 768 + 16 * 768 + 8 * 2048) / 4.3e12
    assert abs(share["share_of_floor_frac"] - 147_456 / 4.3e12 / floor_s) < 1e-6
