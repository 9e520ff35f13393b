"""`ado-stream prepare`: the whole way, one clear message for each thing that can be wrong, and the right exit code."""

import json
import subprocess
import sys

import pytest
import zstandard

from ado_stream.cli.main import main

LINE = {"text": "a text that is long enough for a sample or two " * 4, "meta": {"pile_set_name": "Wiki"}}


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "wiki.jsonl"
    path.write_text(json.dumps(LINE) + "\n")
    return path


def _prepare(*arguments):
    return main(["prepare", *map(str, arguments), "--workers", "1", "--seq-len", "32"])


def test_it_writes_a_corpus_and_shows_it(source, tmp_path, capsys):
    assert _prepare(source, "--out", tmp_path / "out", "--domain-key", "meta.pile_set_name") == 0
    shown = capsys.readouterr()
    assert "Wiki" in shown.out
    assert f"written to {tmp_path / 'out'}" in shown.out
    assert (tmp_path / "out/Wiki/train/index.json").exists()


def test_json_is_corpus_json(source, tmp_path, capsys):
    assert _prepare(source, "--out", tmp_path / "out", "--json") == 0
    shown = capsys.readouterr()
    assert json.loads(shown.out) == json.loads((tmp_path / "out/corpus.json").read_bytes())
    assert list(json.loads(shown.out)["domains"]) == ["wiki"]
    assert shown.err == ""


def test_folders_are_domains_and_val_is_apart(tmp_path, capsys):
    for name in ("in/code/a.txt", "in/code/b.txt", "in/law/a.txt", "val/code.txt"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("x" * 100)
    arguments = [tmp_path / "in", "--val", tmp_path / "val", "--out", tmp_path / "out", "--domain-from", "folder"]
    assert _prepare(*arguments, "--json") == 0
    domains = json.loads(capsys.readouterr().out)["domains"]
    assert {name: domain["documents"] for name, domain in domains.items()} == {"code": 3, "law": 1}
    assert domains["code"]["splits"]["val"]["documents"] == 1


def _missing(tmp_path):
    return tmp_path / "nowhere.jsonl", [], r"NotFound: .*nowhere.jsonl: no such file or folder"


def _corrupt(tmp_path):
    path = tmp_path / "cut.jsonl.zst"
    path.write_bytes(zstandard.compress(json.dumps(LINE).encode() * 1000)[:-9])
    return path, [], r"DataError: .*cut.jsonl.zst: corrupt zstd data after byte \d+"


def _textless(tmp_path):
    path = tmp_path / "textless.jsonl"
    path.write_text(json.dumps(LINE) + '\n{"meta": {"pile_set_name": "Wiki"}}\n')
    return path, [], r"DataError: .*textless.jsonl:2: no text under key 'text'; keys: meta"


def _empty_domain(tmp_path):
    (tmp_path / "in/full").mkdir(parents=True)
    (tmp_path / "in/full/a.txt").write_text("x" * 100)
    (tmp_path / "in/hollow.jsonl").write_text("")
    return tmp_path / "in", [], r"ConfigError: domain 'hollow' has no document"


def _no_key(tmp_path):
    path = tmp_path / "keyless.jsonl"
    path.write_text('{"text": "a"}\n')
    return path, ["--domain-key", "meta.source"], r"DataError: .*keyless.jsonl:1: no domain under key 'meta.source'"


@pytest.mark.parametrize("make", [_missing, _corrupt, _textless, _empty_domain, _no_key])
def test_what_is_wrong_is_one_clear_message_and_exit_1(tmp_path, capsys, make):
    import re

    source, options, message = make(tmp_path)
    assert _prepare(source, "--out", tmp_path / "out", *options, "--json") == 1
    shown = capsys.readouterr()
    assert re.match(message, shown.err)
    assert len(shown.err.splitlines()) <= 3
    assert "Traceback" not in shown.err
    assert shown.out == ""
    assert not (tmp_path / "out/corpus.json").exists()


def test_skipping_says_what_was_left_out(tmp_path, capsys):
    source, _, _ = _textless(tmp_path)
    assert _prepare(source, "--out", tmp_path / "out", "--on-error", "skip") == 0
    assert "left out: 1 x no text" in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments",
    [
        ["prepare"],
        ["prepare", "in.jsonl"],
        ["prepare", "in.jsonl", "--out", "o", "--seq-len", "many"],
        ["prepare", "in.jsonl", "--out", "o", "--val", "v", "--val-fraction", "0.1"],
        ["prepare", "in.jsonl", "--out", "o", "--on-error", "cry"],
    ],
)
def test_wrong_usage_is_exit_2(arguments, capsys):
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert "usage: ado-stream prepare" in capsys.readouterr().err


def test_neither_the_verb_nor_a_worker_pays_for_torch():
    check = "import sys, ado_stream.cli.prepare, ado_stream.prepare.prepare_worker; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", check], timeout=120, check=False).returncode == 0


def test_as_a_program_with_workers_the_exit_code_and_the_message_are_the_same(tmp_path):
    source, _, _ = _textless(tmp_path)
    command = [sys.executable, "-m", "ado_stream.cli", "prepare", source, "--out", tmp_path / "out", "--workers", "2"]
    run = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert run.returncode == 1
    assert "textless.jsonl:2: no text" in run.stderr
    assert "Traceback" not in run.stderr
