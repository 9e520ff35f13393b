"""What a type checker sees of the public interface: no name is Any, and a script that uses all of it is `--strict`."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import ado_stream

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = Path(__file__).with_name("typed_user.py")


def test_type_checkers_and_python_see_the_same_names():
    """The imports under TYPE_CHECKING are the table of names that are loaded on first use."""
    tree = ast.parse((ROOT / "ado_stream" / "__init__.py").read_text())
    (block, *_) = [node for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"]
    seen = {alias.name: node.module for node in block.body for alias in node.names}
    assert seen == ado_stream._HOME
    assert set(ado_stream.__all__) == {*seen, "__version__"}


def test_the_script_uses_every_public_name():
    text = SCRIPT.read_text()
    missing = [name for name in ado_stream.__all__ if not re.search(rf"\bado\.{name}\b", text)]
    assert missing == []


@pytest.mark.slow
@pytest.mark.timeout(1800)  # torch is read by mypy: a minute the first time, more on a busy machine
def test_the_public_interface_is_typed(tmp_path):
    script = tmp_path / "typed_user.py"
    reveals = "".join(f"reveal_type(ado.{name})\n" for name in ado_stream.__all__)
    script.write_text(f"{SCRIPT.read_text()}\n{reveals}ado.nonsense\n")
    # The project's configuration is strict, and with it what `make check` has read is cached.
    command = [sys.executable, "-m", "mypy", "--config-file", "pyproject.toml", "--no-pretty", script]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    errors = [line for line in done.stdout.splitlines() if ": error:" in line]
    assert len(errors) == 1, done.stdout + done.stderr  # and that one shows that a name that is not there is seen
    assert 'has no attribute "nonsense"' in errors[0]
    types = re.findall(r'Revealed type is "(.*)"', done.stdout)
    assert len(types) == len(ado_stream.__all__)
    assert [found for found in types if found == "Any" or re.search(r"-> Any\b", found)] == []
