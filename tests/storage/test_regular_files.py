"""What is opened for reading: a FIFO, a socket or a device, of which a read may not end, is refused at once."""

import os
import socket

import pytest

from ado_stream.errors import StorageError
from ado_stream.regular_files import open_regular, read_regular
from ado_stream.storage.download import download_bytes, object_status

pytestmark = pytest.mark.timeout(60)  # where the protection is gone they do not end


def _fifo(path):
    os.mkfifo(path)


def _socket(path):
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))


def _endless(path):
    path.symlink_to("/dev/zero")


def _circle(path):
    path.symlink_to(path)


def _link_to_a_fifo(path):
    os.mkfifo(path.with_name("other"))
    path.symlink_to("other")


SPECIAL = [_fifo, _socket, _endless, _circle, _link_to_a_fifo]


@pytest.fixture(params=SPECIAL)
def special(request, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path.joinpath("file").relative_to(tmp_path)  # the path of a socket is short
    request.param(path)
    return path


def test_a_special_file_is_not_opened(special):
    for mode in ("rb", "ab"):
        with pytest.raises(OSError, match="not a regular file|No such device|Too many levels"):
            open_regular(special, mode)


@pytest.mark.parametrize("read", [download_bytes, object_status])
def test_a_special_file_at_a_local_remote_fails_at_its_first_attempt(special, read):
    with pytest.raises(StorageError, match=r"file: .*\(1 attempt in "):
        read(str(special))


def test_a_link_to_a_file_is_followed(tmp_path):
    (tmp_path / "file").write_bytes(b"text")
    (tmp_path / "link").symlink_to("file")
    assert read_regular(tmp_path / "link") == b"text"


def test_a_sparse_file_is_too_large_to_be_parsed(tmp_path):
    with (tmp_path / "file").open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(OSError, match="too large for such a file"):
        read_regular(tmp_path / "file")


def test_a_pipe_is_read_where_a_command_may_stand_for_a_file(tmp_path):
    reader, writer = os.pipe()
    os.write(writer, b"steps: 3")
    os.close(writer)
    assert read_regular(f"/dev/fd/{reader}", pipe=True) == b"steps: 3"
    os.close(reader)
    os.mkfifo(tmp_path / "fifo")
    assert read_regular(tmp_path / "fifo", pipe=True) == b""  # nobody writes to it
