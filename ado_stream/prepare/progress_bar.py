"""Progress on standard error: share of the input read, MB/s of text, time left.

A bar on a terminal; elsewhere, such as in a log file, a line when a stage begins and every ten seconds.
"""

import time

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from ado_stream.visible import show

_LINE_EVERY_S = 10.0


class ProgressBar:
    """One bar per stage; its share counts bytes of the input files on disk, its MB/s bytes of text."""

    def __init__(self, shown: bool):
        console = Console(stderr=True)
        self._lines = shown and not console.is_interactive
        self._next_line_s = 0.0
        self._text_bytes = 0
        self._task: TaskID | None = None
        self._bar = Progress(
            TextColumn("{task.description:<18}"),
            BarColumn(),
            TextColumn("{task.percentage:>3.0f} %"),
            TextColumn("{task.fields[rate]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=console,
            disable=not shown or self._lines,
        )

    def start(self, stage: str, source_bytes: int) -> None:
        """Begins a stage that reads `source_bytes` of input."""
        self._text_bytes = 0
        if self._task is not None:
            self._bar.update(self._task, completed=self._bar.tasks[-1].total)
        self._task = self._bar.add_task(stage, total=max(1, source_bytes), rate="")
        self._print_line()

    def advance(self, source_bytes: int, text_bytes: int) -> None:
        """Counts input that has been processed."""
        assert self._task is not None
        self._text_bytes += text_bytes
        elapsed_s = self._bar.tasks[-1].elapsed or 0.0
        rate = f"{self._text_bytes / 1e6 / elapsed_s:.1f} MB/s" if elapsed_s and self._text_bytes else ""
        self._bar.update(self._task, advance=source_bytes, rate=rate)
        if time.monotonic() >= self._next_line_s:
            self._print_line()

    def _print_line(self) -> None:
        if self._lines:
            task = self._bar.tasks[-1]
            line = f"{task.description}: {task.percentage:.0f} % {task.fields['rate']}"
            show(line.rstrip(), error=True)
            self._next_line_s = time.monotonic() + _LINE_EVERY_S

    def __enter__(self) -> "ProgressBar":
        if not self._bar.disable:
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if not self._bar.disable:
            self._bar.stop()
