"""Stores, and proxies on the way, that answer as no standard allows: right bytes, or one line that says why not."""

import gc
import gzip
import random
import re
import resource
import threading
import time
from contextlib import suppress
from dataclasses import replace
from functools import partial

import pytest

import ado_stream as ado
from ado_stream.errors import AdoStreamError, DataError, NotFound, StorageError
from ado_stream.storage import s3
from ado_stream.storage.download import download_bytes, download_part, list_objects, object_status
from ado_stream.storage.retry import RetryPolicy, StoppedError
from tests.storage.scripted_server import scripted
from tests.waiting import wait_until

# Of sockets that botocore and http.client leave to the collector when a head means nothing.
pytestmark = pytest.mark.filterwarnings("ignore:Exception ignored in. <socket:pytest.PytestUnraisableExceptionWarning")
CONTENT = random.Random(3).randbytes(50_000)
PART = range(1000, 3000)
QUICK = RetryPolicy(attempts=2, base_delay_s=0.001, total_deadline_s=20.0, read_timeout_s=1.0)


@pytest.fixture(scope="module")
def only_server():
    """One for all tests: S3's client takes half a second for each."""
    with scripted(lambda request: None) as server:
        yield server
    wait_until(lambda: all(thread.name != "ado-download" for thread in threading.enumerate()))
    gc.collect()


@pytest.fixture
def server(only_server):
    only_server.asked.clear()
    return only_server


@pytest.fixture(params=["s3", "http"])
def url(request, monkeypatch, server):
    """The one object of the server, for S3's client or another."""
    for name, value in (("ACCESS_KEY_ID", "k"), ("SECRET_ACCESS_KEY", "s"), ("DEFAULT_REGION", "eu-west-1")):
        monkeypatch.setenv(f"AWS_{name}", value)

    monkeypatch.setenv("S3_ENDPOINT_URL", server.url)
    return "s3://bucket/web.bin" if request.param == "s3" else f"{server.url}/bucket/web.bin"


def read_part(url, version=None, retry=QUICK):
    version = version or object_status(url, retry).version
    return download_part(url, PART.start, PART.stop, version, retry)


def another_range(request):
    if request.range:
        request.answer(206, CONTENT[5000:7000], Content_Range=f"bytes 5000-6999/{len(CONTENT)}", ETag='"1"')
    else:
        request.serve(CONTENT)


def no_content_range(request):
    if request.range:
        request.answer(206, CONTENT[5000:7000], ETag='"1"')
    else:
        request.serve(CONTENT)


def no_ranges(request):
    request.answer(200, CONTENT, ETag='"1"')


def encoded(request):
    """As a proxy that compresses whatever it passes on."""
    if request.range:
        begin, end = request.range
        span = f"bytes {begin}-{end - 1}/{len(CONTENT)}"
        request.answer(206, gzip.compress(bytes(9)), Content_Encoding="gzip", Content_Range=span, ETag='"1"')
    else:
        request.serve(CONTENT)


@pytest.mark.parametrize("answer", [another_range, no_content_range, no_ranges, encoded])
def test_bytes_that_were_not_asked_for_are_never_taken_for_those_that_were(server, url, answer):
    server.answer = answer
    with pytest.raises(StorageError, match=r"web\.bin: .*(asked for|Encoding|bytes)"):
        read_part(url)


def test_an_answer_with_all_of_a_file_is_good_for_a_range_that_is_all_of_it(server, url):
    server.answer = no_ranges
    assert download_part(url, 0, len(CONTENT), object_status(url, QUICK).version, QUICK) == CONTENT


def test_a_body_without_end_in_place_of_a_range_costs_no_memory(server, url):
    def endless(request):
        if request.command == "HEAD":
            request.serve(CONTENT)
            return
        request.answer(200, Content_Length=str(1 << 40), ETag='"1"')
        for _ in range(600):  # MiB
            request.wfile.write(bytes(1 << 20))

    server.answer = endless
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(StorageError, match="asked for bytes 1000-2999, got the whole file"):
        read_part(url)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200 << 10  # of 600 MiB; S3's client: 60


def test_a_tag_that_changes_between_two_answers_is_a_file_that_was_replaced(server, url):
    numbers = iter(range(1000))
    server.answer = lambda request: request.serve(CONTENT, ETag=f'"{next(numbers)}"')
    version = object_status(url, QUICK).version
    with pytest.raises(DataError, match="replaced or changed since it was opened"):
        read_part(url, version)


def test_a_tag_that_comes_back_after_another_does_not_hide_the_other_ones_bytes(server, url):
    """HEAD always answers with the first: the status after the read is that of before."""

    def answer(request):
        request.serve(CONTENT, ETag='"1"' if request.command == "HEAD" else '"2"')

    server.answer = answer
    with pytest.raises(DataError, match="replaced or changed since it was opened"):
        read_part(url)


def test_a_store_without_tags_is_known_by_its_times(server, url):
    times = ["Fri, 02 Jan 2026 00:00:00 GMT"]
    server.answer = lambda request: request.serve(CONTENT, ETag="", Last_Modified=times[0])
    version = object_status(url, QUICK).version
    assert read_part(url, version) == CONTENT[PART.start : PART.stop]
    times[0] = "Fri, 02 Jan 2026 00:00:01 GMT"
    with pytest.raises(DataError, match="replaced or changed since it was opened"):
        read_part(url, version)


def not_modified(request):
    request.answer(304)


def redirected_to_itself(request):
    request.answer(307, Location=request.path)


def moved_to_itself(request):
    request.answer(301, Location=request.path)


def without_a_length(request):
    request.serve(CONTENT, Content_Length="")


def of_no_length(request):
    request.answer(200, Content_Length="abc", ETag='"1"')


def of_negative_length(request):
    request.answer(200, Content_Length="-5", ETag='"1"')


def nonsense(request):
    request.wfile.write(b"\x00\xff nothing that HTTP knows\r\n\r\n")
    request.close_connection = True


@pytest.mark.parametrize(
    "answer",
    [
        not_modified,
        redirected_to_itself,
        moved_to_itself,
        without_a_length,
        of_no_length,
        of_negative_length,
        nonsense,
    ],
)
def test_an_answer_that_means_nothing_is_a_typed_error_that_names_the_object(server, url, answer):
    server.answer = answer
    calls = [partial(read_part, url, "5-1"), *([partial(download_bytes, url, QUICK)] if url[:2] == "s3" else [])]
    for call in calls:
        with pytest.raises(AdoStreamError, match=f"^{re.escape(url)}: [^\n]+(\n[^\n]+)?$"):
            call()
    with suppress(AdoStreamError):
        assert object_status(url, QUICK).num_bytes == 0


def test_a_redirect_to_another_host_is_followed_by_others_than_s3(server):
    server.answer = lambda request: request.serve(CONTENT)
    with scripted(lambda request: request.answer(302, Location=f"{server.url}{request.path}")) as front:
        assert read_part(f"{front.url}/web.bin") == CONTENT[PART.start : PART.stop]
    assert set(server.asked) == {"HEAD /web.bin", "GET /web.bin"}


@pytest.mark.parametrize("part_of", ["headers", "list"])
@pytest.mark.deadline
def test_an_answer_that_drips_before_its_body_meets_the_deadline(server, url, part_of):
    """Each byte is within the read timeout; S3's client has no other."""

    def drip(request):
        request.close_connection = True
        if part_of == "list":
            request.answer(200, Content_Length="100000")
        else:
            request.wfile.write(b"HTTP/1.1 200 OK\r\nX-A: ")
        while not server.released.wait(0.1):
            request.wfile.write(b" ")

    bounds = RetryPolicy(attempts=3, total_deadline_s=1.0, read_timeout_s=0.5)
    server.answer = drip
    started = time.monotonic()
    with pytest.raises(StorageError, match="web.bin"):
        list_objects(url, ".bin", bounds) if part_of == "list" else object_status(url, bounds)
    assert time.monotonic() - started < 1.0 + 0.5 + 3.0  # the deadline, a read timeout, a busy machine


def test_an_answer_that_comes_when_nobody_waits_any_more_is_closed(monkeypatch):
    asked, stop, answered, closed = (threading.Event() for _ in range(4))

    class Body:
        close = staticmethod(closed.set)

    def late(*_):
        asked.set()
        assert answered.wait(60)
        return {"Body": Body}

    monkeypatch.setattr(s3, "_response", late)
    threading.Thread(target=lambda: (asked.wait(60), stop.set())).start()
    with pytest.raises(StoppedError):
        download_bytes("s3://bucket/web.bin", replace(QUICK, stop=stop))
    assert not closed.is_set()
    answered.set()
    assert closed.wait(60)


def test_a_connection_that_dies_between_two_requests_is_made_again(server, url):
    def answer(request):
        request.serve(CONTENT)
        request.close_connection = True  # without a word: the answer promised to keep it

    server.answer = answer
    for _ in range(4):
        assert read_part(url) == CONTENT[PART.start : PART.stop]


def test_a_web_page_is_no_file_of_tokens(server, tmp_path):
    """What a login or a server of folders sends with status 200."""
    server.answer = lambda request: request.answer(200, b"<html>log in</html>" * 99, Content_Type="text/html")
    domain = ado.Domain("web", f"{server.url}/web.npy", str(tmp_path), format="npy", token_dtype="uint16")
    with pytest.raises(NotFound, match=r"web\.npy: .*web page|neither that file nor a folder"):
        ado.AdaptiveStreamingDataset([domain], 4, seq_len=15, retry=QUICK)


def test_a_folder_that_a_web_server_lists_is_a_folder_of_files(server, tmp_path):
    def answer(request):
        if request.path.endswith(".npy"):
            request.serve(CONTENT)
        else:
            request.answer(200, b'<a href="1.npy">1.npy</a> <a href="2.npy">2.npy</a>', Content_Type="text/html")

    server.answer = answer
    assert list(list_objects(f"{server.url}/web", ".npy", QUICK)) == ["1.npy", "2.npy"]
    domain = ado.Domain("web", f"{server.url}/web", str(tmp_path), format="npy", token_dtype="uint16")
    data = ado.AdaptiveStreamingDataset([domain], 4, seq_len=15, retry=QUICK, mixture_lag=None)
    assert data.num_samples.tolist() == [2 * ((len(CONTENT) // 2 - 1) // 15)]
    next(iter(data))
    data.close()


def test_the_environments_proxy_is_asked_and_no_proxy_spares_it(monkeypatch):
    for name in ("no_proxy", "NO_PROXY", "http_proxy", "HTTP_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with scripted(lambda request: request.serve(CONTENT)) as proxy:
        monkeypatch.setenv("HTTP_PROXY", proxy.url)
        monkeypatch.setenv("http_proxy", proxy.url)
        assert read_part("http://store.invalid/web.bin") == CONTENT[PART.start : PART.stop]
        assert set(proxy.asked) == {"HEAD http://store.invalid/web.bin", "GET http://store.invalid/web.bin"}
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        with scripted(lambda request: request.serve(CONTENT)) as store:
            assert read_part(f"{store.url}/web.bin") == CONTENT[PART.start : PART.stop]
            assert store.asked
        assert not any("127.0.0.1" in each for each in proxy.asked)
