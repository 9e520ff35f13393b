"""The tuner survives what cannot run, offers what the launcher takes, and never what decides bits."""

import pytest
import torch

from ado_kernels.ops import launch_table
from ado_kernels.ops.launch import SAME_BITS, launch, read_table
from benchmarks.kernels import linear_cross_entropy_baselines, tune
from benchmarks.kernels.harness import Bench

META = torch.device("meta")


@pytest.fixture
def bench(monkeypatch):
    """A bench whose calls return their own milliseconds."""
    monkeypatch.setattr(Bench, "time_ms", lambda self, call: call())
    return Bench(torch.device("cpu"), smoke=True, deadline=float("inf"))


def on(monkeypatch, architecture):
    monkeypatch.setattr(linear_cross_entropy_baselines, "device_architecture", lambda device: architecture)
    return list(tune.spaces(META))


def refuses(*warps):
    """A call that needs too much shared memory at these numbers of warps."""

    def call():
        if launch("swiglu").warps in warps:
            raise RuntimeError("out of resource: shared memory")
        return 1.0 / launch("swiglu").warps

    return call


def test_an_entry_that_cannot_run_here_is_replaced_and_the_tuner_goes_on(bench):
    spaces = [
        tune.Space("swiglu", 0, ({"warps": 2}, {"warps": 8}), lambda: refuses(4, 2)),
        tune.Space("swiglu", 64, ({"warps": 8},), lambda: refuses(4, 8)),
        tune.Space("rms_norm", 64, ({"warps": 8},), lambda: lambda: 1.0),
    ]
    assert tune.choose_all(bench, iter(spaces)) == {("swiglu", 0): {"warps": 8}}
    present, nothing, other = bench.records
    assert (present["ms"], present["best_ms"], present["candidates_ms"]) == (None, 0.125, [None, 0.125])
    assert (nothing["ms"], nothing["best_ms"], nothing["chosen"]) == (None, None, {})
    assert other["ms"] == 1.0


def test_a_call_that_cannot_be_built_is_no_end_either(bench):
    def build():
        raise RuntimeError("out of memory")

    assert tune.choose_all(bench, iter([tune.Space("swiglu", 0, ({"warps": 8},), build)])) == {}


@pytest.mark.parametrize(("architecture", "taken"), [("sm_80", False), ("sm_90", True), ("sm_100", True)])
def test_what_the_launcher_refuses_on_an_architecture_is_not_offered(monkeypatch, architecture, taken):
    spaces = on(monkeypatch, architecture)
    for space in spaces:
        for fields in space.candidates:
            read_table(tune.with_rows(launch_table.TABLE, architecture, {(space.op, space.key): fields}))
    offered = [fields["method"] for space in spaces for fields in space.candidates if "method" in fields]
    assert ("exponentials" in offered) == taken
    assert ("exponentials" in [space.op for space in spaces]) == taken
    assert "softmax_pass" in offered


def test_programs_and_what_groups_sums_over_rows_are_no_candidates(monkeypatch):
    spaces = on(monkeypatch, "sm_90")
    assert SAME_BITS
    for space in spaces:
        names = {name for fields in space.candidates for name in fields}
        assert "programs" not in names
        assert space.op not in SAME_BITS or names == {"stages"}
