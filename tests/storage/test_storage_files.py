"""Files that are complete or absent, and the lock of an object."""

import errno
import fcntl
import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import pytest

from ado_stream.durable import write_durably
from ado_stream.errors import StorageError
from ado_stream.storage.complete_file import (
    CompleteFile,
    quarantine,
    remove_free_leftovers,
    remove_leftovers,
    temporary_path,
)
from ado_stream.storage.object_locks import lock_if_free, lock_path, object_lock
from ado_stream.storage.retry import Deadline, StoppedError
from ado_stream.storage.verify import ContentError


def test_nothing_is_visible_before_commit_and_nothing_temporary_after(tmp_path):
    target = tmp_path / "a" / "shard.mds"
    with CompleteFile(target, 6, {}) as file:
        file.write(b"abc")
        assert not target.exists()
        assert file.temporary.stat().st_size == 6  # reserved: peers that count the disk see it
        file.write(b"def")
        file.commit()
        assert target.read_bytes() == b"abcdef"
    assert not file.temporary.exists()


def test_a_restart_forgets_what_was_written(tmp_path):
    target = tmp_path / "shard.mds"
    with CompleteFile(target, None, {}) as file:
        file.write(b"a long first attempt")
        file.restart()
        file.write(b"short")
        file.commit()
    assert target.read_bytes() == b"short"


def test_an_exception_leaves_neither_file(tmp_path):
    target = tmp_path / "shard.mds"
    with suppress(ZeroDivisionError), CompleteFile(target, 3, {}) as file:
        file.write(b"abc")
        raise ZeroDivisionError
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_two_hosts_without_common_locks_never_name_each_others_bytes(tmp_path, monkeypatch):
    """In containers all processes may have one number. Without hashes nothing but the size would be checked."""
    monkeypatch.setattr(os, "getpid", lambda: 1)
    monkeypatch.setattr(threading, "get_native_id", lambda: 1)
    target, content = tmp_path / "shard.mds", b"abcdef"
    with CompleteFile(target, 6, {}) as first, CompleteFile(target, 6, {}) as second:
        first.write(content[:3])
        second.write(content[:2])
        first.write(content[3:])
        first.commit()
        assert target.read_bytes() == content
        second.write(content[2:])
        assert target.read_bytes() == content
        second.commit()
    assert target.read_bytes() == content
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [target]


def test_too_few_bytes_are_not_committed(tmp_path):
    with CompleteFile(tmp_path / "shard.mds", 3, {}) as file:
        file.write(b"ab")
        with pytest.raises(ContentError):
            file.commit()
    assert not (tmp_path / "shard.mds").exists()


def test_leftovers_of_one_object_are_removed_and_others_stay(tmp_path):
    folder = tmp_path / ".ado-tmp"
    folder.mkdir()
    for name in ("shard.00001.mds.7-8", "shard.00001.mds.zstd.7-8", "shard.00010.mds.7-8"):
        (folder / name).touch()
    remove_leftovers(tmp_path / "shard.00001.mds")
    assert [path.name for path in folder.iterdir()] == ["shard.00010.mds.7-8"]
    remove_leftovers(tmp_path / "nowhere" / "shard.00001.mds")


@pytest.mark.parametrize("name", ["a.mds.7-8", "a.mds.zstd.7-8", "a.mds.7-8.3", "a.mds.7-0f"])
@pytest.mark.parametrize("age_s", [0, 50_000])
def test_only_leftovers_that_nobody_makes_are_swept_whatever_the_clock_says(tmp_path, name, age_s):
    folder = tmp_path / ".ado-tmp"
    folder.mkdir()
    (folder / name).touch()
    os.utime(folder / name, (time.time() - age_s,) * 2)
    with object_lock(tmp_path / "a.mds", Deadline(1)):
        remove_free_leftovers(tmp_path)
        assert [path.name for path in folder.iterdir()] == [name]
    remove_free_leftovers(tmp_path)
    assert list(folder.iterdir()) == []


def test_the_quarantine_keeps_the_newest_bad_file_only(tmp_path):
    for name in ("a.mds", "b.mds"):
        (tmp_path / name).write_text(name)
        quarantine(tmp_path / name)
    assert [path.name for path in tmp_path.iterdir()] == [".bad-b.mds"]


def test_a_compressed_file_shares_the_lock_of_its_raw_file(tmp_path):
    assert lock_path(tmp_path / "shard.00001.mds.zstd") == lock_path(tmp_path / "shard.00001.mds")
    assert lock_path(tmp_path / "shard.00001.mds") != lock_path(tmp_path / "shard.00002.mds")


def test_one_holder_at_a_time_among_threads(tmp_path):
    inside, most = [0], [0]

    def work():
        for _ in range(5):
            with object_lock(tmp_path / "shard.mds", Deadline(30)):
                inside[0] += 1
                most[0] = max(most[0], inside[0])
                time.sleep(0.001)
                inside[0] -= 1

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: work(), range(4)))
    assert most == [1]


def test_the_kernel_drops_the_lock_of_a_killed_process(tmp_path):
    target = tmp_path / "shard.mds"
    code = (
        "import sys, time; from pathlib import Path; from ado_stream.storage.object_locks import object_lock\n"
        "from ado_stream.storage.retry import Deadline\n"
        "with object_lock(Path(sys.argv[1]), Deadline(5)): print('held', flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(target)], stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with lock_if_free(lock_path(target)) as held:
            assert not held
        with pytest.raises(StorageError, match="another process held"), object_lock(target, Deadline(0.1)):
            pass
        holder.kill()
    with object_lock(target, Deadline(60)):
        pass


def test_a_wait_for_the_lock_can_be_given_up(tmp_path):
    stop = threading.Event()
    stop.set()
    with (
        object_lock(tmp_path / "shard.mds", Deadline(5)),
        pytest.raises(StoppedError, match="what waits"),
        object_lock(tmp_path / "shard.mds", Deadline(5, "what waits", stop)),
    ):
        pass


@pytest.fixture
def victim(tmp_path):
    """A file that somebody else wants to have overwritten."""
    path = tmp_path / "victim"
    path.write_text("precious")
    yield path
    assert path.read_text() == "precious"


def test_a_link_at_a_temporary_name_is_not_followed(tmp_path, victim):
    target = tmp_path / "shard.mds"
    temporary = temporary_path(target)
    temporary.parent.mkdir()
    temporary.symlink_to(victim)
    with CompleteFile(target, None, {}) as file:
        file.write(b"abc")
        file.commit()
    assert target.read_bytes() == b"abc"
    (tmp_path / ".report.json.tmp").symlink_to(victim)
    write_durably(tmp_path / "report.json", "{}")
    assert (tmp_path / "report.json").read_text() == "{}"
    assert not (tmp_path / "report.json").is_symlink()


def test_a_link_at_a_locks_name_is_not_opened(tmp_path, victim):
    lock_path(tmp_path / "shard.mds").parent.mkdir()
    lock_path(tmp_path / "shard.mds").symlink_to(victim)
    with pytest.raises(StorageError, match=r"shard\.mds\.lock: Too many levels of symbolic links"):
        object_lock(tmp_path / "shard.mds", Deadline(1)).__enter__()
    lock_path(tmp_path / "other.mds").symlink_to(tmp_path / "made")
    with pytest.raises(StorageError):
        lock_if_free(lock_path(tmp_path / "other.mds")).__enter__()
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize("name", [".ado-tmp", ".ado-locks"])
def test_a_link_in_place_of_a_folder_of_such_files_is_refused(tmp_path, name):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / name).symlink_to(tmp_path / "elsewhere")
    target = tmp_path / "shard.mds"
    opened = CompleteFile(target, None, {}) if name == ".ado-tmp" else object_lock(target, Deadline(1))
    with pytest.raises(StorageError, match="is a link or a file"):
        opened.__enter__()
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_another_users_folder_is_refused_and_ours_are_private(tmp_path, monkeypatch):
    target = tmp_path / "shard.mds"
    with CompleteFile(target, None, {}) as file:
        assert file.temporary.parent.stat().st_mode & 0o777 == 0o700
        assert file.temporary.stat().st_mode & 0o777 == 0o600
    with object_lock(target, Deadline(1)):
        assert lock_path(target).stat().st_mode & 0o777 == 0o600
    lstat = os.lstat

    def of_another(path, **options):
        status = lstat(path, **options)
        return os.stat_result([4711 if number == 4 else value for number, value in enumerate(status)])

    monkeypatch.setattr(os, "lstat", of_another)
    with pytest.raises(StorageError, match="belongs to another user"):
        CompleteFile(target, None, {}).__enter__()
    with pytest.raises(StorageError, match="belongs to another user"):
        object_lock(target, Deadline(1)).__enter__()


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EIO])
def test_a_file_system_without_locks_is_named_with_what_to_do(tmp_path, monkeypatch, number):
    def refuse(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refuse)
    for lock in (object_lock(tmp_path / "shard.mds", Deadline(1)), lock_if_free(lock_path(tmp_path / "shard.mds"))):
        with pytest.raises(StorageError, match=r"shard\.mds\.lock: .*\n  This file system has no working locks: use a"):
            lock.__enter__()
