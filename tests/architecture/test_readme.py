"""The README's code runs, its commands parse, and every test that it names exists."""

import importlib
import re
import shlex
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


@pytest.fixture
def small_corpus(prepare_texts, tmp_path, monkeypatch):
    """A corpus of two domains, in the folder `corpus` of the current directory."""
    words = {"a": "alpha beta ", "b": "one two three "}
    texts = {f"{name}/{n}.txt": word * (300 + n) for name, word in words.items() for n in range(6)}
    monkeypatch.chdir(tmp_path)
    return prepare_texts(tmp_path, texts, "--seq-len", "32")


def test_the_python_runs_as_it_stands(small_corpus):
    (code,) = blocks("python")
    names: dict[str, object] = {}
    exec(compile(code, "README.md", "exec"), names)
    assert names["batch"]["step"] == 19
    assert names["policy"].step == 20


def test_the_config_is_a_config(tmp_path):
    from ado_stream.train.config import load_config

    (text,) = blocks("yaml")
    path = tmp_path / "config.yaml"
    path.write_text(text)
    assert load_config(path, []).policy.name == "target"


def test_every_test_and_file_that_is_named_exists():
    for name in re.findall(r"`((?:tests/[\w/]+/)?test_\w+\.py)(?:::(test_\w+))?`", README):
        path, function = name
        found = list(ROOT.glob(path)) or list(ROOT.glob(f"tests/*/{path}"))
        assert found, path
        assert not function or f"def {function}(" in found[0].read_text(), f"{path}::{function}"
    for name in re.findall(r"`(benchmarks\.\w+)`|python -m (benchmarks\.\w+)", README):
        module = next(filter(None, name))
        assert (ROOT / (module.replace(".", "/") + ".py")).exists() or (ROOT / module.replace(".", "/")).is_dir(), (
            module
        )


def test_every_command_that_is_shown_parses():
    import argparse

    commands = [line.split("#")[0].strip() for line in re.findall(r"^    (ado-stream .*)$", README, re.MULTILINE)]
    commands = [part.strip().rstrip("\\") for command in commands for part in command.split(";")]
    assert len(commands) > 5
    for command in commands:
        _, verb, *words = shlex.split(command)
        module = importlib.import_module(f"ado_stream.cli.{verb}")
        parser = argparse.ArgumentParser()
        module.add_arguments(parser)
        parser.parse_known_args([*words, "--out", "x"] if verb == "prepare" else words)


def test_it_is_short():
    assert README.count("\n") <= 250


def test_every_benchmark_that_is_named_exists():
    from benchmarks.__main__ import modules

    named = set(re.findall(r"python -m benchmarks (\w+)", README))
    assert named
    assert named <= modules().keys()
