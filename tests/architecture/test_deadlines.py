"""Tests of deadlines have a second try, which is announced; others have none."""

import subprocess
import sys

import pytest

TESTS = '''
import pytest

tries = {"late": 0, "wrong": 0, "never": 0}

@pytest.fixture
def count(request):
    """Made anew for each try."""
    tries[request.param] += 1
    return tries[request.param]

@pytest.mark.deadline
@pytest.mark.parametrize("count", ["late"], indirect=True)
def test_late_once(count):
    assert count == 2, "took 9 s"

@pytest.mark.deadline
@pytest.mark.parametrize("count", ["never"], indirect=True)
def test_never_in_time(count):
    assert count == 3

@pytest.mark.parametrize("count", ["wrong"], indirect=True)
def test_wrong_once(count):
    assert count == 2
'''


@pytest.mark.parametrize("processes", ["0", "1"])
def test_deadline_tests_alone_are_run_once_more_and_named(tmp_path, repository, processes):
    (tmp_path / "test_tries.py").write_text(TESTS)
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers = deadline: of the clock\naddopts = -p no:cacheprovider\n")
    command = [sys.executable, "-m", "pytest", "-p", "tests.deadlines", "-n", processes, str(tmp_path)]
    done = subprocess.run(command, cwd=repository, capture_output=True, text=True, check=False)
    warned = done.stdout.partition("WARNING: run twice")[2].partition("short test summary")[0]
    assert "test_late_once[late]: AssertionError: took 9 s" in warned
    assert "test_never_in_time[never]: " in warned
    assert "test_wrong_once" not in warned
    assert "2 failed, 1 passed" in done.stdout
    assert done.returncode == 1
