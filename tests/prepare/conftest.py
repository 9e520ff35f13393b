"""A folder in which permissions hold."""

import os
import tempfile
from pathlib import Path

import pytest


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
