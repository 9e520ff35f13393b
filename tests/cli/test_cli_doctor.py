"""`ado-stream doctor`: complete, honest about what is missing, silent about secrets."""

import json
import sys

import pytest

from ado_stream.cli import doctor
from ado_stream.cli.main import main


def findings_of(capsys, *arguments):
    code = main(["doctor", "--json", *arguments])
    answer = json.loads(capsys.readouterr().out)
    return code, {finding["name"]: finding for finding in answer["findings"]}, answer


def test_everything_needed_is_here(capsys):
    code, findings, answer = findings_of(capsys)
    assert code == 0
    assert answer["ok"] is True
    assert {"python", "torch", "numba", "triton", "/dev/shm", "open files", "s3://", "gs://"} <= set(findings)
    assert all(finding["status"] != "fail" for finding in findings.values())


def test_missing_package_fails_with_the_command_that_helps(capsys, monkeypatch):
    real = doctor._version
    monkeypatch.setattr(doctor, "_version", lambda name: None if name == "zstandard" else real(name))
    code, findings, _ = findings_of(capsys)
    assert code == 1
    assert findings["zstandard"]["status"] == "fail"
    assert "pip install 'zstandard>=" in findings["zstandard"]["advice"]


def test_old_package_fails(capsys, monkeypatch):
    real = doctor._version
    monkeypatch.setattr(doctor, "_version", lambda name: "2.1.0" if name == "torch" else real(name))
    code, findings, _ = findings_of(capsys)
    assert code == 1
    assert "older than" in findings["torch"]["value"]


def test_credentials_are_found_and_never_shown(capsys, monkeypatch):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIA-this-must-not-appear")
    assert main(["doctor"]) == 0
    assert "must-not-appear" not in capsys.readouterr().out
    _, findings, answer = findings_of(capsys)
    assert findings["s3://"]["status"] == "ok"
    assert "AWS_ACCESS_KEY_ID" in findings["s3://"]["value"]
    assert "must-not-appear" not in json.dumps(answer)


def test_few_file_descriptors_get_advice(capsys, monkeypatch):
    monkeypatch.setattr(doctor.resource, "getrlimit", lambda which: (256, 1024))
    code, findings, _ = findings_of(capsys)
    assert code == 0
    assert findings["open files"]["status"] == "warn"
    assert "ulimit -n 1024" in findings["open files"]["advice"]


def test_broken_numba_is_a_finding_not_a_crash(capsys, monkeypatch):
    def broken():
        raise RuntimeError("no compiler today")

    monkeypatch.setattr(doctor, "_try_numba", broken)
    code, findings, _ = findings_of(capsys)
    assert code == 1
    assert "no compiler today" in findings["numba"]["value"]


def test_broken_torch_is_a_finding_not_a_crash(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    code, findings, _ = findings_of(capsys)
    assert code == 1
    assert findings["GPU"]["value"].startswith("torch cannot be imported: ")
    assert "open files" in findings  # the other checks still run


def test_a_path_that_looks_like_markup_is_shown_as_it_is(capsys):
    doctor._show([doctor.Finding("stores", "[/a]", doctor.FAIL, "[bold]", "try [/b]")])
    printed = capsys.readouterr().out
    assert all(text in printed for text in ("[/a]", "[bold]", "try [/b]"))


def test_a_cache_that_is_not_there_yet_is_no_error(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "not" / "yet"))
    _, findings, _ = findings_of(capsys)
    assert findings["disk, cache"]["value"].endswith(f"free at {tmp_path / 'not' / 'yet'}")


def test_url_without_a_corpus_fails(capsys, tmp_path):
    code, findings, _ = findings_of(capsys, "--url", str(tmp_path))
    assert code == 1
    assert findings[str(tmp_path)]["value"] == "NotFound"


@pytest.mark.parametrize(
    ("version", "least", "expected"),
    [("2.14.1+cu130", "2.8", True), ("2.8.0", "2.14", False), ("0.60", "0.60", True), ("26.0.1", "14", True)],
)
def test_versions_compare_as_numbers(version, least, expected):
    assert doctor.version_at_least(version, least) is expected
