"""The example in each verb's --help works as it stands, in a folder with text, a config and recorded losses."""

import subprocess
import sys

import pytest

from ado_stream.cli import main as cli
from tests.cli.conftest import run_example

QUICK = [verb for verb in cli.VERBS if verb not in ("demo", "prepare")]


@pytest.mark.parametrize("verb", [verb for verb in QUICK if verb != "train"])
def test_the_example_of_a_verb_works(prepared, verb, monkeypatch, capsys):
    monkeypatch.chdir(prepared)
    code = run_example(verb)
    shown = capsys.readouterr()
    assert code == 0, shown.err
    assert shown.out
    with pytest.raises(SystemExit):
        cli.main([verb, "--help"])
    assert f"example: ado-stream {verb} {cli.VERBS[verb][1]}".strip() in " ".join(capsys.readouterr().out.split())


@pytest.mark.slow
def test_the_example_of_the_demo_works(folder, monkeypatch):
    monkeypatch.chdir(folder)
    assert run_example("demo") == 0


def test_bash_completes_verbs_and_options(tmp_path, capsys):
    assert cli.main(["completion", "bash"]) == 0
    (tmp_path / "script").write_text(capsys.readouterr().out)
    ask = (
        "source {}; COMP_WORDS=({}); COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1)); "
        '$(complete -p ado-stream | sed "s/.*-F \\([^ ]*\\).*/\\1/"); echo "${{COMPREPLY[@]}}"'
    )
    for words, expected in (("ado-stream trai", "train"), ("ado-stream train --dr", "--dry-run")):
        command = ask.format(tmp_path / "script", words)
        done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=60)
        assert done.stdout.split() == [expected], done.stderr
    assert cli.main(["completion", "zsh"]) == 0
    assert capsys.readouterr().out.startswith("#compdef ado-stream")


def test_completion_names_the_package_that_it_needs(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "shtab", None)
    assert cli.main(["completion", "bash"]) == 1
    assert "pip install 'ado-stream[completion]'" in capsys.readouterr().err
