"""Text from outside made safe for a terminal or a page, without credentials.

Characters that control a terminal or are invisible are escaped: control characters but tab and line end, marks of
direction, zero-width characters other than those that join letters and emoji, halves of surrogate pairs, tags.
"""

import json
import re

from ado_stream.redact import redact

_INVISIBLE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\xad\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb"
    "\ud800-\udfff\U000e0000-\U000e007f]"
)


def visible(text: str) -> str:
    r"""`text` with invisible characters escaped, as \x1b, and without credentials in URLs."""
    return _INVISIBLE.sub(lambda found: found.group().encode("unicode_escape").decode(), redact(text))


def visible_json(value: object) -> str:
    """`value` as JSON on one line, with invisible characters escaped as JSON does."""
    text = json.dumps(value, ensure_ascii=False)
    return _INVISIBLE.sub(lambda found: json.dumps(found.group())[1:-1], text)
