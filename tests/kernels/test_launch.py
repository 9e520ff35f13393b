"""The launch table: what is read is checked."""

import pytest

from ado_kernels import rms_norm, rms_norm_rope
from ado_kernels.ops import launch_table
from ado_kernels.ops.launch import Launch, entry, launch, read_table, using
from ado_kernels.ops.linear_cross_entropy.gpu import chunk_class


def test_a_row_for_an_architecture_comes_first(monkeypatch):
    rows = {("swiglu", 0, ""): {}, ("swiglu", 0, "sm_90"): {"warps": 8}}
    monkeypatch.setattr("ado_kernels.ops.launch._table", read_table(rows))
    assert entry("swiglu", 0, "sm_90") == Launch(warps=8)
    assert entry("swiglu", 0, "sm_100") == launch("swiglu") == Launch()


def test_widths_are_rounded_up_and_the_widest_is_named():
    assert launch("rms_norm", 33) == entry("rms_norm", 64)
    assert launch("rms_norm", 4097) == entry("rms_norm", 8192)
    with pytest.raises(ValueError, match="no launch entry for width 32768; the widest is 16384"):
        launch("rms_norm", 16385)


@pytest.mark.parametrize("function", [rms_norm, rms_norm_rope])
def test_the_widest_row_of_a_gpu_is_documented(function):
    widest = max(width for op, width, _ in launch_table.TABLE if op == function.__name__)
    assert f"at most {widest:,} on a GPU" in function.__doc__


@pytest.mark.parametrize("width", [768, 2048])
def test_few_large_chunks_of_logits(width):
    """3 or 4 at 16,384 rows: each after the first reads and writes the float32 gradient of the weight once more."""
    rows = entry("linear_cross_entropy", chunk_class(width)).rows
    assert -(-16384 // rows) in (3, 4)


def test_changes_end_with_the_body():
    before = launch("swiglu")
    with using("swiglu", warps=16):
        assert launch("swiglu").warps == 16
    assert launch("swiglu") == before
    with pytest.raises(TypeError, match="wraps"), using("swiglu", wraps=16):
        pass


COMMON = {("rms_norm_backward", 64, ""): {"rows": 16, "programs": 528}}


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ({("swiglu", 0, ""): {"warp": 4}}, "unexpected keyword argument 'warp'"),
        ({("swiglu", 0, ""): {"warps": 3}}, "out of range"),
        ({("rms_norm", 96, ""): {}}, "size class 96"),
        ({("swiglu", 0, "sm_90"): {}}, "must come first"),
        ({("swiglu", 0, ""): {"method": "exponentials"}}, "other operations none"),
        ({("linear_cross_entropy", 0, ""): {"method": "fast"}}, "method 'fast'"),
        ({("linear_cross_entropy", 0, ""): {"method": "exponentials"}}, "sm_90 or later"),
        (COMMON | {("rms_norm_backward", 64, "sm_90"): {"rows": 8, "programs": 264}}, r"\['rows', 'programs'\] decide"),
    ],
)
def test_a_wrong_row_is_named(rows, message):
    with pytest.raises(ValueError, match=f"launch table, row .*{message}"):
        read_table(rows)


def test_what_may_differ_by_architecture():
    read_table(COMMON | {("rms_norm_backward", 64, "sm_90"): {"rows": 16, "programs": 528, "stages": 2}})
    rows = {("linear_cross_entropy", 0, ""): {"method": "softmax_pass"}}
    read_table(rows | {("linear_cross_entropy", 0, "sm_100"): {"method": "exponentials", "rows": 8192}})
