"""The example in each verb's --help works as it stands, in a folder with text, a config and recorded losses."""

import json
import random
import shlex
import subprocess
import sys

import pytest
import yaml

from ado_stream.cli import main as cli

SETTINGS = {
    "corpus": "corpus",
    "run_dir": "runs/unnamed",
    "model": {"preset": "nano"},
    "data": {"global_batch_size": 4},
    "policy": {"name": "natural"},
    "train": {"steps": 5, "device": "cpu"},
    "evaluate": {"max_samples_per_domain": 2},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """text/ of two domains, config.yaml, losses.csv; the examples run in it one after the other."""
    place = tmp_path_factory.mktemp("examples")
    words = random.Random(5).choices([f"word{n}" for n in range(200)], k=9000)
    for name, part in (("web", words[:6000]), ("code", words[6000:])):
        (place / "text" / name).mkdir(parents=True)
        lines = [json.dumps({"text": " ".join(part[at : at + 100])}) for at in range(0, len(part), 100)]
        (place / "text" / name / "part.jsonl").write_text("\n".join(lines) + "\n")
    (place / "config.yaml").write_text(yaml.safe_dump({**SETTINGS, "seed": 1}))
    rows = [f"{32 * n},{2 + 20 * (32 * n) ** -0.4}" for n in range(1, 60)]
    (place / "losses.csv").write_text("\n".join(["samples,web", *rows]) + "\n")
    return place


QUICK = [verb for verb in cli.VERBS if verb not in ("demo", "prepare")]


def run_example(verb):
    program, name, *arguments = shlex.split(cli.EXAMPLES[verb])
    assert (program, name) == ("ado-stream", verb)
    if ">" in arguments:
        arguments = arguments[: arguments.index(">")]
    return cli.main([verb, *arguments])


@pytest.fixture(scope="module")
def prepared(folder):
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert run_example("prepare") == 0
        assert run_example("train") == 0
    return folder


@pytest.mark.parametrize("verb", [verb for verb in QUICK if verb != "train"])
def test_the_example_of_a_verb_works(prepared, verb, monkeypatch, capsys):
    monkeypatch.chdir(prepared)
    code = run_example(verb)
    shown = capsys.readouterr()
    assert code == 0, shown.err
    assert shown.out
    with pytest.raises(SystemExit):
        cli.main([verb, "--help"])
    assert f"example: {cli.EXAMPLES[verb]}" in " ".join(capsys.readouterr().out.split())


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
    for words, expected in (("ado-stream tr", "train"), ("ado-stream train --dr", "--dry-run")):
        command = ask.format(tmp_path / "script", words)
        done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=60)
        assert done.stdout.split() == [expected], done.stderr
    assert cli.main(["completion", "zsh"]) == 0
    assert capsys.readouterr().out.startswith("#compdef ado-stream")


def test_completion_names_the_package_that_it_needs(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "shtab", None)
    assert cli.main(["completion", "bash"]) == 1
    assert "pip install 'ado-stream[completion]'" in capsys.readouterr().err


def test_training_says_what_it_does_before_it_imports_torch(prepared, monkeypatch):
    """Importing torch takes seconds on a busy machine."""
    code = (
        "import sys\nfrom ado_stream.cli.main import main\n"
        "class Seen(Exception): pass\n"
        "class Out:\n    def write(self, text):\n        raise Seen(text + str('torch' in sys.modules))\n"
        "    def flush(self): pass\n"
        "sys.stdout = Out()\n"
        "try:\n    main(['train', 'config.yaml'])\nexcept Seen as seen:\n    print(seen, file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=prepared, capture_output=True, text=True, timeout=120)
    assert done.stderr.splitlines()[-1].startswith("runs/unnamed: policy natural, 5 steps on corpusFalse")
