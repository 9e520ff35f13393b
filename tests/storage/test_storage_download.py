"""One object to one file: local remotes, remotes through Streaming's downloaders, errors by type."""

import errno
import os
import random
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import xxhash

from ado_stream.durable import DiskError
from ado_stream.errors import AccessDenied, ConfigError, NotFound, StorageError, Throttled
from ado_stream.storage import download as download_module
from ado_stream.storage import s3
from ado_stream.storage.download import download, list_objects, local_path
from ado_stream.storage.retry import RetryPolicy, StoppedError
from ado_stream.storage.verify import ContentError

CONTENT = random.Random(0).randbytes(3_000_000)
QUICK = RetryPolicy(attempts=3, base_delay_s=0.001, total_deadline_s=20.0)


@pytest.fixture
def source(tmp_path) -> Path:
    """A file of CONTENT with awkward characters in its name."""
    path = tmp_path / "remote dir" / "shard 100%.mds"
    path.parent.mkdir()
    path.write_bytes(CONTENT)
    return path


@pytest.fixture
def foreign(monkeypatch):
    """Replaces Streaming's downloader by `behave(local_path)`; returns a list of the calls' remotes."""
    calls = []

    def install(behave):
        class Downloader:
            def download(self, remote, local, timeout):
                calls.append(remote)
                behave(Path(local))

        monkeypatch.setattr(download_module, "_streaming_downloader", lambda url: Downloader())
        return calls

    return install


def only_file(folder):
    """The files under `folder`."""
    return [path for path in folder.rglob("*") if path.is_file()]


def test_a_local_path_and_a_file_url_are_copied(source, tmp_path):
    for number, url in enumerate([str(source), source.as_uri()]):
        target = tmp_path / "cache" / f"{number}.mds"
        hashes = {"xxh64": xxhash.xxh64_hexdigest(CONTENT)}
        got = download(url, target, expected_bytes=len(CONTENT), hashes=hashes)
        assert (got.num_bytes, got.attempts) == (len(CONTENT), 1)
        assert target.read_bytes() == CONTENT
    assert len(only_file(tmp_path / "cache")) == 2


def test_a_folder_is_listed_with_its_links_each_folder_once(tmp_path):
    (tmp_path / "root" / "a").mkdir(parents=True)
    (tmp_path / "beside").mkdir()
    for name in ("root/a/1.npy", "beside/2.npy", "root/3.npy", "root/other"):
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "root" / "link").symlink_to(tmp_path / "beside")
    (tmp_path / "root" / "Loop").symlink_to(tmp_path / "root")
    (tmp_path / "root" / "again").symlink_to(tmp_path / "root" / "a")
    assert list(list_objects(str(tmp_path / "root"), ".npy")) == ["3.npy", "a/1.npy", "link/2.npy"]
    for name in ("nowhere", "root/3.npy"):
        assert list_objects(str(tmp_path / name), ".npy") == {}


def test_a_folder_that_cannot_be_read_is_not_left_out(tmp_path, monkeypatch):
    (tmp_path / "closed").mkdir()
    scan = os.scandir

    def refuse(path):  # for root nothing is closed
        if str(path).endswith("closed"):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(AccessDenied):
        list_objects(str(tmp_path), ".npy")


def test_schemes_are_told_apart():
    assert local_path("/data/a b") == Path("/data/a b")
    assert local_path("relative/c:d") == Path("relative/c:d")
    assert local_path("file:///data/a%20b") == Path("/data/a b")
    for url in ("s3://b/k", "gs://b/k", "hf://datasets/x", "dbfs:/Volumes/x", "azure-dl://b/k"):
        assert local_path(url) is None


def test_wrong_content_raises_and_leaves_the_destination_alone(source, tmp_path):
    target = tmp_path / "cache" / "shard.mds"
    target.parent.mkdir()
    target.write_bytes(b"before")
    with pytest.raises(ContentError, match="xxh64"):
        download(str(source), target, hashes={"xxh64": "00"})
    for expected_bytes in (len(CONTENT) - 1, len(CONTENT) + 1):
        with pytest.raises(ContentError, match="size"):
            download(str(source), target, expected_bytes=expected_bytes)
    assert target.read_bytes() == b"before"
    assert only_file(tmp_path / "cache") == [target]


def test_a_missing_local_remote_is_not_found(tmp_path):
    with pytest.raises(NotFound, match=r"nowhere: No such file or directory \(1 attempt in 0.0 s\)"):
        download(str(tmp_path / "nowhere"), tmp_path / "cache" / "x", retry=QUICK)
    assert only_file(tmp_path) == []


def test_a_folder_as_remote_is_a_storage_error_at_once(tmp_path):
    with pytest.raises(StorageError, match="1 attempt"):
        download(str(tmp_path), tmp_path / "cache" / "x", retry=QUICK)


def test_a_destination_that_cannot_be_written_is_a_disk_error(source, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DiskError, match="File exists|Not a directory"):
        download(str(source), tmp_path / "file" / "x", retry=QUICK)


def test_other_schemes_go_through_streamings_downloader(foreign, tmp_path):
    calls = foreign(lambda path: path.write_bytes(CONTENT))
    target = tmp_path / "x.mds"
    got = download("gs://b/x.mds", target, hashes={"xxh64": xxhash.xxh64_hexdigest(CONTENT)})
    assert (calls, got.attempts, target.read_bytes()) == (["gs://b/x.mds"], 1, CONTENT)
    assert only_file(tmp_path) == [target]


class CloudError(Exception):
    """An error as the cloud clients raise them: with a status somewhere."""

    def __init__(self, **attributes):
        super().__init__("injected")
        self.__dict__.update(attributes)


class Response:
    """What requests-like clients hang on an error."""

    status_code = 403


@pytest.mark.parametrize(
    ("error", "expected", "attempts"),
    [
        (CloudError(code=404), NotFound, 1),  # google.api_core
        (CloudError(status_code=403), AccessDenied, 1),  # azure.core
        (CloudError(status=429), Throttled, 3),  # oci
        (CloudError(response=Response()), AccessDenied, 1),  # huggingface_hub
        (CloudError(status_code=500), StorageError, 3),
        (CloudError(status_code=416), StorageError, 1),
        (ConnectionResetError("reset"), StorageError, 3),
        (FileNotFoundError("gone"), NotFound, 1),
        (PermissionError("no"), AccessDenied, 1),
    ],
)
def test_errors_of_the_clouds_become_ours(foreign, tmp_path, error, expected, attempts):
    def fail(path):
        path.with_suffix(".tmp").write_bytes(b"half")
        raise error

    calls = foreign(fail)
    with pytest.raises(expected, match="gs://b/x") as caught:
        download("gs://b/x", tmp_path / "x", retry=QUICK)
    assert type(caught.value) is expected
    assert len(calls) == attempts


def test_a_downloader_that_writes_nothing_is_tried_again(foreign, tmp_path):
    calls = foreign(lambda path: None)
    with pytest.raises(StorageError, match="without a file"):
        download("gs://b/x", tmp_path / "x", retry=QUICK)
    assert len(calls) == 3


@pytest.mark.deadline
def test_a_downloader_that_hangs_meets_the_deadline_and_stop(foreign, tmp_path):
    released = threading.Event()
    foreign(lambda path: released.wait(30))
    started = time.monotonic()
    with pytest.raises(StorageError, match="deadline"):
        download("gs://b/x", tmp_path / "x", retry=RetryPolicy(total_deadline_s=0.3))
    stop = threading.Event()
    stop.set()
    with pytest.raises(StoppedError):
        download("gs://b/x", tmp_path / "x", retry=RetryPolicy(stop=stop))
    assert time.monotonic() - started < 5.0
    released.set()


@pytest.mark.parametrize("url", ["ftp://host/x", "s3:/bucket/x", "gs:///x", "GS://bucket/x"])
def test_an_unknown_scheme_is_a_config_error(tmp_path, url):
    with pytest.raises(ConfigError, match="unknown kind of remote"):
        download(url, tmp_path / "x", retry=QUICK)


def test_importing_storage_costs_no_cloud_client():
    heavy = ("streaming", "torch", "boto3", "botocore")
    code = f"import sys, ado_stream.storage.node_cache; print([name for name in {heavy} if name in sys.modules])"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


@pytest.mark.deadline
@pytest.mark.parametrize("endpoint", ["http://store.invalid:9000", None])
def test_a_host_that_does_not_resolve_is_named_within_the_deadline(tmp_path, monkeypatch, endpoint):
    def unknown(*_, **__):
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    for name, value in (
        ("AWS_ACCESS_KEY_ID", "k"),
        ("AWS_SECRET_ACCESS_KEY", "s"),
        ("AWS_DEFAULT_REGION", "eu-west-1"),
    ):
        monkeypatch.setenv(name, value)
    if endpoint:
        monkeypatch.setenv("S3_ENDPOINT_URL", endpoint)
    else:
        monkeypatch.delenv("S3_ENDPOINT_URL", raising=False)
    s3._client(1.0)  # imports boto3
    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    retry = RetryPolicy(attempts=10_000, total_deadline_s=1.0, read_timeout_s=1.0, base_delay_s=0.1, max_delay_s=0.2)
    started = time.monotonic()
    host = r"store\.invalid" if endpoint else r"bucket\.s3[a-z0-9.-]*\.amazonaws\.com"
    with pytest.raises(StorageError, match=rf"s3://bucket/a\.mds: .*{host}.* attempts in "):
        download("s3://bucket/a.mds", tmp_path / "a.mds", retry=retry)
    assert time.monotonic() - started < 5.0
    assert only_file(tmp_path) == []
