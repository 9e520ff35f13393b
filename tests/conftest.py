"""Fixtures that several rooms share."""

import os
from pathlib import Path

import pytest

from tests.deadlines import pytest_configure, pytest_runtest_protocol, pytest_terminal_summary  # noqa: F401

ROOT = Path(__file__).resolve().parents[1]

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")  # today's default said aloud: Triton 3.9 warns when it is unset


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the checkout."""
    return ROOT


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with golden records and a corpus beside the checkout; tests that need it are skipped without."""
    path = ROOT.parent / "shared"
    if not path.is_dir():
        pytest.skip("no ../shared beside the checkout")
    return path
