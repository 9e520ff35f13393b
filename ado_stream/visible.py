"""Text of others as a terminal or a page may show it, without credentials; the only printing of this package.

Characters that control a terminal or are invisible are escaped: control characters but tab and line end, marks of
direction, zero-width characters other than those that join letters and emoji, halves of surrogate pairs, tags.
"""

import json
import logging
import os
import re
import sys
from typing import IO

from ado_stream.redact import redact

_INVISIBLE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\xad\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb"
    "\ud800-\udfff\U000e0000-\U000e007f]"
)


def visible(text: str) -> str:
    r"""`text` with invisible characters escaped, as \x1b, and without credentials in URLs."""
    return _INVISIBLE.sub(lambda found: found.group().encode("unicode_escape").decode(), redact(text))


def show(text: str, error: bool = False) -> None:
    """Prints `text`, as `visible` gives it, on standard output or standard error, at once.

    Nothing any more once the reader of the pipe behind it has closed it: `train | head` ends no run.
    """
    stream = sys.stderr if error else sys.stdout
    try:
        print(visible(text), file=stream, flush=True)  # noqa: T201
    except BrokenPipeError:
        discard(stream)


def discard(stream: IO[str]) -> None:
    """Sends what `stream` holds and will get nowhere: Python would try to write it at exit and report the error."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def show_json(value: object) -> None:
    """Prints `value` as JSON on one line of standard output.

    Escapes of JSON spell out what cannot be seen, so that whoever reads the JSON has all of every text.
    """
    text = json.dumps(value, ensure_ascii=False)
    print(_INVISIBLE.sub(lambda found: json.dumps(found.group())[1:-1], text), flush=True)  # noqa: T201


class VisibleFormatter(logging.Formatter):
    """Log lines as `visible` gives them."""

    def format(self, record: logging.LogRecord) -> str:
        """The line of `record`."""
        return visible(super().format(record))
