"""A test that is marked `deadline` and fails is run once more, alone; what was, and why, is printed as a warning.

Such a test depends on the clock, and a busy machine may make it late. Every other test has one try. The reason of a
first failure travels in the reports: tests may run in other processes than the one that prints.
"""

import pytest
from _pytest.runner import runtestprotocol

_FAILED_FIRST = "failed first"


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
        item.user_properties.append((_FAILED_FIRST, reason.message if reason else failed[0].longreprtext))
        item._initrequest()  # fixtures anew
        reports = runtestprotocol(item, nextitem=nextitem, log=False)
    for report in reports:
        item.ihook.pytest_runtest_logreport(report=report)
    item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
    return True


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    reports = [report for some in terminalreporter.stats.values() for report in some]
    retried = {
        f"{report.nodeid}: {reason}"
        for report in reports
        for key, reason in getattr(report, "user_properties", ())
        if key == _FAILED_FIRST
    }
    if retried:
        terminalreporter.section("WARNING: run twice, since they missed a deadline or failed", yellow=True)
        for line in sorted(retried):
            terminalreporter.line(line, yellow=True)
