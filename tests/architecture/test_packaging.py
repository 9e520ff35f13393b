"""What a public project has: the version in one place, metadata, licence, and hooks that run what `make check` runs."""

import re
import tomllib
from pathlib import Path

import yaml

import ado_stream

ROOT = Path(__file__).resolve().parents[2]
METADATA = tomllib.loads((ROOT / "pyproject.toml").read_text())


def test_the_version_stands_in_one_place():
    assert METADATA["project"]["dynamic"] == ["version"]
    assert METADATA["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "ado_stream.__version__"}
    assert "version" not in METADATA["project"]
    assert re.search(rf"^## \[{re.escape(ado_stream.__version__)}\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)


def test_the_licence_is_the_one_that_is_named():
    assert METADATA["project"]["license"] == "Apache-2.0"
    assert all((ROOT / name).is_file() for name in METADATA["project"]["license-files"])
    text = (ROOT / "LICENSE").read_text()
    assert "Apache License" in text
    assert "Version 2.0, January 2004" in text


def test_the_licences_of_the_sample_of_text_are_there():
    folder = ROOT / "tests" / "data" / "corpus"
    named = set(re.findall(r"`LICENSES/(\S+\.\w+)`", (folder / "README.md").read_text()))
    kept = {path.name for path in (folder / "LICENSES").iterdir()}
    assert named <= kept
    assert all(name in kept for name in ("CPython-PSF-2.0.txt", "curl-COPYING.txt", "redis-BSD-3-Clause.txt"))


def test_hooks_run_what_make_check_runs():
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    assert [repository["repo"] for repository in hooks] == ["local"]  # no network beyond PyPI
    run = {hook["entry"].split(" --")[0] for hook in hooks[0]["hooks"]}
    checks = re.search(r"^check:\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert checks
    assert run == {re.sub(r" (--check )?\.$", "", line.strip()) for line in checks[1].splitlines()}


def test_the_workflow_calls_the_ci_script():
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())
    steps = workflow["jobs"]["checks-and-tests"]["steps"]
    assert [step["run"] for step in steps if "run" in step] == [".ci/run"]
    assert (ROOT / ".ci" / "run").stat().st_mode & 0o111


def test_everything_that_the_tests_need_is_in_the_test_extra():
    extras = METADATA["project"]["optional-dependencies"]
    names = {re.split(r"[>=\[; ]", requirement)[0] for requirement in extras["test"]}
    names.add("datasets")  # lm-eval brings it; named beside that, pip 23 searches old versions for minutes
    for extra, requirements in extras.items():
        assert {re.split(r"[>=\[; ]", requirement)[0] for requirement in requirements} <= names, extra
