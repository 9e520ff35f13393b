"""`report --follow`: the page in a browser changes while a run trains, and is served to this machine alone."""

import http.client
import threading
from pathlib import Path

import pytest

from ado_stream.record import FILE_NAME
from ado_stream.report.live_server import LiveReport, LiveServer
from tests.browser import open_browser
from tests.train import ledger_run
from tests.train.run_helpers import changed
from tests.waiting import wait_until

STEPS = "document.querySelector('main p').textContent.match(/([0-9,]+) steps/)[1].replace(',', '') * 1"


@pytest.fixture
def serve():
    """Serves runs; returns the server. Ended at the end."""
    stop, threads = threading.Event(), []

    def start(*run_dirs):
        report = LiveReport(run_dirs)
        report.draw()
        server = LiveServer(report)
        threads.append(threading.Thread(target=server.serve, args=(stop,)))
        threads[-1].start()
        return server

    yield start
    stop.set()
    for thread in threads:
        thread.join()


@pytest.mark.slow
@pytest.mark.browser
def test_the_page_changes_while_a_run_trains(settings: dict, tmp_path: Path, children, serve):
    import json

    run = changed(settings, train={"steps": 100_000}, evaluate={"every_steps": 0}, checkpoint={"every_steps": 0})
    (tmp_path / "settings.json").write_text(json.dumps(run))
    training = children.start(ledger_run.main, str(tmp_path / "settings.json"), str(tmp_path))
    try:
        wait_until(lambda: ledger_run.last_step(tmp_path, 0) > 5 and Path(run["run_dir"], FILE_NAME).exists())
        server = serve(Path(run["run_dir"]))
        with open_browser(tmp_path / "profile") as page:
            page.open(server.url)
            shown = page.run(STEPS)
            for _ in range(2):
                page.wait_for(f"{STEPS} > {shown}")
                shown = page.run(STEPS)
            page.click('.domains button[data-d="1"]')
            page.wait_for(f"{STEPS} > {shown}")
            assert page.run("document.querySelectorAll('figure svg').length") > 2
            faded = "getComputedStyle(document.querySelector('#s-Mixture-over-time svg [data-d=\"0\"]')).opacity"
            assert float(page.run(faded)) == 0.07  # still alone in the new page
            assert page.errors == []
            assert {url.split("/")[2] for url in page.requests} == {server.url.split("/")[2]}
        assert shown <= ledger_run.last_step(tmp_path, 0)
    finally:
        training.kill()


def test_only_this_machine_is_served(finished: Path, serve):
    """A page of another site whose name resolves to 127.0.0.1 sends its own Host."""
    server = serve(Path(finished))
    host = server.url.split("/")[2]
    port = host.split(":")[1]
    answers = {}
    for name in (host, f"localhost:{port}", "example.com", f"example.com:{port}", "127.0.0.1"):
        connection = http.client.HTTPConnection(host, timeout=60)
        connection.request("GET", "/", headers={"Host": name})
        answer = connection.getresponse()
        answers[name] = answer.status, b"What to do now" in answer.read()
        connection.close()
    assert answers.pop(host) == answers.pop(f"localhost:{port}") == (200, True)
    assert set(answers.values()) == {(403, False)}
