"""Runs the code of a page of the documents, block by block in their order, in an empty folder with text in data/.

A block that begins with `# NAME.py` or `# NAME.yaml` is a file of that name. The others are one bash script, in which
blocks of Python are programs. Commands of this project run in children of the tests' fork server, or as themselves.
"""

import json
import os
import re
import runpy
import shlex
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from tests.train.child_processes import ChildProcesses

ROOT = Path(__file__).parents[2]
CODE = ("python", "bash", "yaml")
TIMEOUT_S = 240
# What stands in for `ado-stream`, `python` and `torchrun`: sends the command, prints the answer.
CLIENT = f"""#!{sys.executable} -SE
import json, os, socket, sys
with socket.create_connection(("127.0.0.1", int(os.environ["COMMANDS_PORT"]))) as server:
    server.sendall(json.dumps([os.path.basename(sys.argv[0]), sys.argv[1:], os.getcwd(), dict(os.environ)]).encode())
    server.shutdown(socket.SHUT_WR)
    code, text = json.loads(b"".join(iter(lambda: server.recv(65536), b"")))
print(text, end="")
sys.exit(code)
"""


class Block(NamedTuple):
    """A fenced block of a page."""

    language: str
    text: str


def blocks(page: Path) -> list[Block]:
    """All fenced blocks of a page."""
    return [
        Block(*found) for found in re.findall(r"^```([^\n]*)\n(.*?)^```$", page.read_text(), re.DOTALL | re.MULTILINE)
    ]


def run_page(page: Path, folder: Path, environment: dict[str, str], replace: dict[str, str]) -> str:
    """The output of a page's code, run in `folder`. replace: parts of the text, such as port numbers."""
    script = ["set -euo pipefail"]
    for language, text in (block for block in blocks(page) if block.language in CODE):
        for old, new in replace.items():
            text = text.replace(old, new)
        if language == "bash":
            script.append(text)
            continue
        named = re.match(r"# ([\w./-]+\.(?:py|yaml))\n", text)
        name = named[1] if named else "page.py"
        script.append(f"cat > {name} <<'END_OF_FILE'\n{text}END_OF_FILE")
        if name == "page.py":
            assert language == "python", f"{page.name}: a file of {language} needs a name in its first line"
            script.append("python page.py")
    done = subprocess.run(
        ["bash", "-c", "\n".join(script)],
        cwd=folder,
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=TIMEOUT_S,
    )
    assert done.returncode == 0, f"{page.name}: exit code {done.returncode}\n{done.stdout[-6000:]}"
    return done.stdout


@contextmanager
def commands(children: ChildProcesses, folder: Path) -> Iterator[dict[str, str]]:
    """The environment in which `ado-stream`, `python FILE` and `torchrun FILE` start in milliseconds."""
    bin_folder = folder / "bin"
    bin_folder.mkdir(parents=True)
    for name in ("ado-stream", "python", "torchrun"):
        (bin_folder / name).write_text(CLIENT)
        (bin_folder / name).chmod(0o755)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=_serve, args=(listener, children), daemon=True).start()
        port = str(listener.getsockname()[1])
        yield {"PATH": f"{bin_folder}{os.pathsep}{os.environ['PATH']}", "COMMANDS_PORT": port}
        listener.shutdown(socket.SHUT_RDWR)  # ends accept


def _serve(listener: socket.socket, children: ChildProcesses) -> None:
    """Answers one command after the other until `listener` is closed."""
    while True:
        try:
            connection, _ = listener.accept()
        except OSError:
            return
        with connection:
            with connection.makefile("rb") as request:
                answer = _answer(children, *json.load(request))
            connection.sendall(json.dumps(answer).encode())


def _answer(children: ChildProcesses, name: str, arguments: list[str], cwd: str, environment: dict[str, str]):
    """(exit code, output) of a command."""
    num_ranks = 1
    if name == "torchrun":
        option, number, *arguments = arguments
        assert option == "--nproc-per-node", option
        num_ranks = int(number)
    function, words = (run_verb, arguments) if name == "ado-stream" else (run_file, arguments)
    if num_ranks == 1:
        started = [children.start(function, cwd, words, **environment)]
    else:
        started = children.start_ranks(num_ranks, function, cwd, words)
    for child in started:
        child.join(TIMEOUT_S)
    return max(abs(child.exitcode or 0) for child in started), started[0].log.read_text()


def run_verb(cwd: str, arguments: list[str]) -> None:
    """`ado-stream ARGUMENTS`, in a process of its own."""
    from ado_stream.cli.main import main

    os.chdir(cwd)
    sys.path[:0] = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    sys.exit(main(arguments))


def run_file(cwd: str, arguments: list[str]) -> None:
    """`python FILE ARGUMENTS`, in a process of its own."""
    os.chdir(cwd)
    sys.argv = arguments
    sys.path.insert(0, str(Path(arguments[0]).parent.resolve()))
    runpy.run_path(arguments[0], run_name="__main__")


def shown_commands(page: Path) -> list[list[str]]:
    """The words of every `ado-stream ...` line in a page's blocks, fenced or indented; pipes and redirections cut."""
    text = page.read_text().replace("\\\n", " ")
    lines = re.findall(r"^(?:    )?(ado-stream .*)$", text, re.MULTILINE)
    parts = [part for line in lines for part in re.split(r"[;|>]|&&", line.split(" #")[0])]
    return [shlex.split(part) for part in parts if part.strip().startswith("ado-stream ")]
