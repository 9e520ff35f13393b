"""`python -m benchmarks` lists every benchmark with its question."""

import ast
from pathlib import Path

import pytest

from benchmarks import __main__ as benchmarks

FILES = sorted(Path(benchmarks.__file__).parent.glob("bench_*.py"))


def test_every_benchmark_is_listed_with_its_question(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["benchmarks"])
    assert benchmarks.main() == 0
    lines = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    questions = {path.stem.removeprefix("bench_"): ast.get_docstring(ast.parse(path.read_text())) for path in FILES}
    assert lines.keys() == questions.keys() | {"kernels"}
    for name, question in questions.items():
        assert lines[name] == question.splitlines()[0]
    assert lines["kernels"].startswith("How fast and how right the kernels are")


def test_those_named_run_and_a_failure_is_reported(monkeypatch, capsys):
    class Done:
        def __init__(self, command, check, env):
            ran.append(command[2:])
            quick.append(env.get("BENCHMARKS_QUICK"))
            self.returncode = int("fit" in command[2])

    ran: list[list[str]] = []
    quick: list[str | None] = []
    monkeypatch.setattr(benchmarks.subprocess, "run", Done)
    monkeypatch.setattr("sys.argv", ["benchmarks", "kernels", "fit", "train"])
    assert benchmarks.main() == 1
    assert ran == [["benchmarks.kernels"], ["benchmarks.bench_fit"], ["benchmarks.bench_train"]]
    assert "failed: fit" in capsys.readouterr().err
    monkeypatch.setattr("sys.argv", ["benchmarks", "train", "--device", "cpu"])
    assert benchmarks.main() == 0
    assert ran[-1] == ["benchmarks.bench_train", "--device", "cpu"]
    monkeypatch.setattr("sys.argv", ["benchmarks", "--quick", "fit"])
    assert benchmarks.main() == 1
    assert (ran[-1], quick) == (["benchmarks.bench_fit"], [None] * 4 + ["1"])
    monkeypatch.setattr("sys.argv", ["benchmarks", "fitt"])
    with pytest.raises(SystemExit):
        benchmarks.main()
    assert "no benchmark fitt; there are cache_limit, documents, domain_loss, fit," in capsys.readouterr().err
