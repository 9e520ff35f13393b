"""Text of others as a terminal or a page may show it, without credentials; the only printing of this package.

Characters that control a terminal or are invisible are escaped: control characters but tab and line end, marks of
direction, zero-width characters and fillers other than those that join or vary letters and emoji, halves of surrogate
pairs, tags.
"""

import json
import logging
import os
import re
import sys
from typing import IO

from ado_stream.redact import plain, redact

_INVISIBLE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\xad\u061c\u115f\u1160\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\u3164"
    "\ud800-\udfff\ufeff\uffa0\ufff0-\ufffb\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff]"
)


def visible(text: str) -> str:
    r"""`text` with invisible characters escaped, as \x1b, and without credentials in URLs."""
    return _INVISIBLE.sub(lambda found: found.group().encode("unicode_escape").decode(), redact(text))


def one_line(text: str) -> str:
    """`text` as `visible` gives it, with its line ends and tabs escaped, too: for names."""
    return visible(text).replace("\n", "\\n").replace("\t", "\\t")


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


def show_json(value: object, **texts: str) -> None:
    """Prints `value` as JSON on one line of standard output, without credentials; with `texts`, as they are.

    Escapes of JSON spell out what cannot be seen, so that whoever reads the JSON has all of every text.
    """
    line = json.dumps({**plain(value), **texts} if texts else plain(value), ensure_ascii=False)
    print(_INVISIBLE.sub(lambda found: json.dumps(found.group())[1:-1], line), flush=True)  # noqa: T201


class VisibleFormatter(logging.Formatter):
    """Log lines as `visible` gives them."""

    def format(self, record: logging.LogRecord) -> str:
        """The line of `record`."""
        return visible(super().format(record))
