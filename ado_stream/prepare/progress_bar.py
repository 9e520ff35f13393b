"""A progress bar on standard error: share of the input read, MB/s of text, time left."""

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn


class ProgressBar:
    """One bar per stage; its share counts bytes of the input files on disk, its MB/s bytes of text."""

    def __init__(self, shown: bool):
        self._text_bytes = 0
        self._task: TaskID | None = None
        self._bar = Progress(
            TextColumn("{task.description:<18}"),
            BarColumn(),
            TextColumn("{task.percentage:>3.0f} %"),
            TextColumn("{task.fields[rate]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            disable=not shown,
        )

    def start(self, stage: str, source_bytes: int) -> None:
        """Begins a stage that reads `source_bytes` of input."""
        self._text_bytes = 0
        if self._task is not None:
            self._bar.update(self._task, completed=self._bar.tasks[-1].total)
        self._task = self._bar.add_task(stage, total=max(1, source_bytes), rate="")

    def advance(self, source_bytes: int, text_bytes: int) -> None:
        """Counts input that has been processed."""
        assert self._task is not None
        self._text_bytes += text_bytes
        elapsed_s = self._bar.tasks[-1].elapsed or 0.0
        rate = f"{self._text_bytes / 1e6 / elapsed_s:.1f} MB/s" if elapsed_s and self._text_bytes else ""
        self._bar.update(self._task, advance=source_bytes, rate=rate)

    def __enter__(self) -> "ProgressBar":
        if not self._bar.disable:
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if not self._bar.disable:
            self._bar.stop()
