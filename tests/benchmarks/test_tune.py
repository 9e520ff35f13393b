"""The tuner survives what cannot run and never offers what decides bits; the launcher reads what it writes."""

import runpy
from pathlib import Path

import pytest
import torch

from ado_kernels.ops import launch_table
from ado_kernels.ops.launch import SAME_BITS, Launch, entry, launch
from benchmarks.kernels import tune
from benchmarks.kernels.harness import Bench


@pytest.fixture
def bench(monkeypatch):
    """A bench whose calls return their own milliseconds."""
    monkeypatch.setattr(Bench, "time", lambda self, call: {"ms": call()})
    return Bench(torch.device("cpu"), smoke=True, deadline=float("inf"))


def test_the_committed_table_is_what_the_tuner_would_write():
    assert tune.table_text(launch_table.TABLE) == Path(launch_table.__file__).read_text()


def test_what_decides_bits_is_no_candidate():
    offered = list(tune.spaces(torch.device("meta")))
    assert {op for op, *_ in offered} == {op for op, *_ in launch_table.TABLE}
    for op, key, candidates, _ in offered:
        names = {name for fields in candidates for name in fields}
        assert "programs" not in names
        assert op not in SAME_BITS or names == {"stages"}
        assert (op, key, "") in launch_table.TABLE


def test_the_fastest_rows_are_written_and_the_launcher_reads_them(bench, monkeypatch, tmp_path):
    def warps_cost():
        if launch("swiglu").warps != 8:  # the entry as it is among them
            raise RuntimeError("out of resource: shared memory")
        return 0.5

    def stages_cost():  # one percent faster: noise
        return 1.0 - 0.01 * (entry("rms_norm_backward", 64).stages == 4)

    def cannot_be_built():
        raise RuntimeError("out of memory")

    spaces = [
        ("swiglu", 0, ({"warps": 2}, {"warps": 8}), lambda: warps_cost),
        ("rms_norm_backward", 64, ({"stages": 4},), lambda: stages_cost),
        ("rms_norm", 64, ({"warps": 8},), cannot_be_built),
        ("linear_cross_entropy", 0, ({"rows": 2048},), lambda: lambda: entry("linear_cross_entropy", 0).rows / 4096),
    ]
    chosen = tune.choose_all(bench, spaces)
    assert chosen == {("swiglu", 0): {"warps": 8}, ("linear_cross_entropy", 0): {"rows": 2048}}
    assert bench.records[0]["candidates"] == [{"warps": 2, "ms": "inf"}, {"warps": 8, "ms": "0.5"}]
    path = tmp_path / "launch_table.py"
    path.write_text(tune.table_text(tune.with_rows(launch_table.TABLE, "sm_90", chosen)))
    table = {key: Launch(**fields) for key, fields in runpy.run_path(str(path))["TABLE"].items()}
    monkeypatch.setattr("ado_kernels.ops.launch._table", table)
    assert entry("swiglu", 0, "sm_90").warps == 8
    assert entry("swiglu", 0, "sm_100") == entry("swiglu", 0) == Launch()
    assert entry("linear_cross_entropy", 0, "sm_90") == Launch(rows=2048)


def test_the_tuner_stops_when_its_time_is_up(bench):
    bench.deadline = 0.0
    assert tune.choose_all(bench, [("swiglu", 0, (), lambda: None)]) == {}
    assert bench.records[-1]["skipped"] == "out of time"
