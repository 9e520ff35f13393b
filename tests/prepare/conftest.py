"""A folder in which permissions hold; threads in place of a cluster."""

import os
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest


class Threads(ThreadPoolExecutor):
    """Stands in for a Ray cluster of two."""

    num_workers = 2

    def __init__(self, address):
        super().__init__(2)

    def check_shared(self, paths):
        assert all(path.exists() for path in paths)


@pytest.fixture
def threads(monkeypatch):
    """Their class, which `--executor ray` then takes."""
    monkeypatch.setattr("ado_stream.prepare.ray_executor.RayExecutor", Threads)
    return Threads


@pytest.fixture
def unprivileged_folder():
    """A folder of this user's, for whom permissions hold: root becomes nobody until the test ends."""
    user = os.geteuid()
    os.seteuid(user or 65534)
    try:
        with tempfile.TemporaryDirectory(dir="/tmp") as folder:
            yield Path(folder)
    finally:
        os.seteuid(user)
