"""The messages of the troubleshooting page are those of the code: `…` stands for what a message fills in."""

import ast
import re

from tests.docs.pages import ROOT


def texts(tree):
    """Every string of a module, with `…` for the values in f-strings."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value
        elif isinstance(node, ast.JoinedStr):
            yield "".join(part.value if isinstance(part, ast.Constant) else "…" for part in node.values)


def test_every_message_is_one_of_the_code():
    in_code = [text for path in (ROOT / "ado_stream").rglob("*.py") for text in texts(ast.parse(path.read_text()))]
    page = (ROOT / "docs" / "troubleshooting.md").read_text().split("## No error, but")[0]
    messages = re.findall(r"^\| `(.+?)` \|", page, re.MULTILINE)
    assert len(messages) > 25
    assert [message for message in messages if not any(message in text for text in in_code)] == []


def test_every_setting_that_is_advised_exists():
    from ado_stream.train.run_config import TrainConfig

    page = "".join((ROOT / "docs" / name).read_text() for name in ("troubleshooting.md", "storage.md", "nodes.md"))
    named = set(re.findall(r"`((?:data|train|checkpoint|evaluate|log|model)\.\w+)", page))
    assert len(named) > 8
    for name in named:
        section, key = name.split(".")
        assert hasattr(getattr(TrainConfig(), section), key), name
