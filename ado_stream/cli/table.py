"""Tables on standard output as plain text: columns as wide as their widest cell, nothing cut, wrapped or interpreted.

A name such as "[web]" stays what it is, and a number is whole in a narrow window and through a pipe.
"""

from collections.abc import Sequence


def table_text(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """The lines of a table without a last line break: first column to the left, the others to the right."""
    lines = [header, *rows]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join([first.ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(rest, widths[1:], strict=True))])
        for first, *rest in lines
    )
