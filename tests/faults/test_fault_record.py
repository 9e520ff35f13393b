"""The run record on a full disk: a line is there whole or not at all, and what was written before stays readable."""

import pytest

from ado_stream.errors import StorageError
from ado_stream.record import RunRecord, read_lines

pytestmark = pytest.mark.fault


def test_a_line_that_does_not_fit_leaves_nothing_of_itself(small_disk):
    """Ten lines of 6,037 bytes fit on 16 pages of 4,096; of the eleventh only a part is written at first."""
    with RunRecord(small_disk(64 * 1024) / "run") as record:
        for step in range(10):
            record.write("step", step=step, text="x" * 6000)
        with pytest.raises(StorageError, match=r"record\.jsonl: a line cannot be written: No space left on device\."):
            record.write("step", step=10, text="x" * 6000)
        assert [line["step"] for line in read_lines(record.path)] == list(range(10))
        assert record.path.read_bytes().endswith(b"\n")
        record.write("event", step=10, name="stop")  # is short enough
        assert read_lines(record.path)[-1]["name"] == "stop"
