"""A progress bar on standard error: share of the input read, MB/s of text, time left."""

from types import TracebackType
from typing import Any


class Progress:
    """Shows nothing when not wanted. Bytes are those of the input files on disk; MB/s is of text."""

    def __init__(self, shown: bool):
        self._bar: Any = None
        self._text_bytes = 0
        if shown:
            from rich.console import Console
            from rich.progress import BarColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
            from rich.progress import Progress as Bar

            self._bar = Bar(
                TextColumn("{task.description:<18}"),
                BarColumn(),
                TextColumn("{task.percentage:>3.0f} %"),
                TextColumn("{task.fields[rate]}"),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
                console=Console(stderr=True),
            )
        self._task: Any = None

    def start(self, what: str, source_bytes: int) -> None:
        """Begins a stage that reads `source_bytes` of input."""
        self._text_bytes = 0
        if self._bar is not None:
            if self._task is not None:
                self._bar.update(self._task, completed=self._bar.tasks[-1].total)
            self._task = self._bar.add_task(what, total=max(1, source_bytes), rate="")

    def advance(self, source_bytes: int, text_bytes: int) -> None:
        """Counts input that is through."""
        self._text_bytes += text_bytes
        if self._bar is not None:
            elapsed_s = self._bar.tasks[-1].elapsed or 0.0
            rate = f"{self._text_bytes / 1e6 / elapsed_s:.1f} MB/s" if elapsed_s and self._text_bytes else ""
            self._bar.update(self._task, advance=source_bytes, rate=rate)

    def __enter__(self) -> "Progress":
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(self, *error: type[BaseException] | BaseException | TracebackType | None) -> None:
        if self._bar is not None:
            self._bar.stop()
