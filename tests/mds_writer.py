"""Streaming's MDSWriter, without the second that it sleeps at its end while its threads have something left to do."""

import time

from streaming import MDSWriter
from streaming.base.format.base import writer

__all__ = ["MDSWriter"]
writer.sleep = lambda _: time.sleep(0.002)
