"""A test that is marked `deadline` and fails is run once more, alone; what was, and why, is printed as a warning.

Such a test depends on the clock, and a busy machine may make it late. Every other test has one try.
"""

import pytest
from _pytest.runner import runtestprotocol

_RETRIED = pytest.StashKey[list[str]]()


def pytest_configure(config: pytest.Config) -> None:
    config.stash[_RETRIED] = []


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item, nextitem: pytest.Item | None) -> bool | None:
    """Runs a `deadline` test, twice if need be, and reports the last try only; leaves the others to pytest."""
    if item.get_closest_marker("deadline") is None:
        return None
    item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
    reports = runtestprotocol(item, nextitem=nextitem, log=False)
    failed = [report for report in reports if report.failed]
    if failed:
        reason = getattr(failed[0].longrepr, "reprcrash", None)
        item.config.stash[_RETRIED].append(f"{item.nodeid}: {reason.message if reason else failed[0].longreprtext}")
        item._initrequest()  # fixtures anew
        reports = runtestprotocol(item, nextitem=nextitem, log=False)
    for report in reports:
        item.ihook.pytest_runtest_logreport(report=report)
    item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
    return True


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if retried := config.stash[_RETRIED]:
        terminalreporter.section("WARNING: run twice, since they missed a deadline or failed", yellow=True)
        for line in retried:
            terminalreporter.line(line, yellow=True)
