"""The documents: what is cited exists, links resolve, sections and tests that are named are there."""

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def tracked(*patterns):
    """Paths of tracked files relative to the root; of files that git does not ignore where they are new."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "--", *patterns]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode == 0:
        return sorted({name for name in done.stdout.splitlines() if (ROOT / name).is_file()})
    return sorted(  # an unpacked archive has no git
        str(path.relative_to(ROOT))
        for pattern in patterns
        for path in ROOT.rglob(pattern)
        if path.is_file() and not any(part.startswith(".") or part == "build" for part in path.relative_to(ROOT).parts)
    )


MARKDOWN = [name for name in tracked("*.md") if "/LICENSES/" not in name]
TEXT = tracked("*.py", "*.toml", "*.sh", "*.yml", "*.yaml", "*.cff", "Makefile", "NOTICE") + MARKDOWN


def test_there_are_documents_and_files_to_check():
    assert {"README.md", "docs/design.md", "docs/math.md", "docs/faults.md", "tests/golden/README.md"} <= set(MARKDOWN)
    assert len(TEXT) > 200


def test_no_file_cites_a_document_that_is_not_here():
    """A document is cited by its path from the root or from the file, or by the end of its path."""
    known = tracked("*.md")
    missing = {
        f"{name}: {cited}"
        for name in TEXT
        for cited in re.findall(r"[\w./-]*\w\.md\b", (ROOT / name).read_text())
        if not any(("/" + path).endswith("/" + cited.lstrip("./")) for path in known)
    }
    assert missing == set()


@pytest.mark.parametrize("name", MARKDOWN)
def test_relative_links_resolve(name):
    for link in re.findall(r"\]\(([^)\s]+)\)", (ROOT / name).read_text()):
        if not re.match(r"[a-z]+://|#|mailto:", link):
            assert ((ROOT / name).parent / link.split("#")[0]).exists(), link


def test_sections_of_the_mathematics_that_are_cited_exist():
    sections = set(re.findall(r"^#+ (\d+a?)\.", (ROOT / "docs/math.md").read_text(), re.MULTILINE))
    cited = {
        section
        for name in TEXT
        for section in re.findall(r"docs/math\.md(?:\]\(\S+\))?,? section (\d+a?)", (ROOT / name).read_text())
    }
    assert cited
    assert cited <= sections


def test_rows_of_the_faults_that_are_cited_exist():
    rows = set(re.findall(r"^\| ([A-Z]\d) \|", (ROOT / "docs/faults.md").read_text(), re.MULTILINE))
    cited = {
        row
        for name in tracked("*.py")
        for line in re.findall(r"docs/faults\.md ([A-Z]\d.*)", (ROOT / name).read_text())
        for row in re.findall(r"\b([A-Z]\d)\b", line.split(":")[0].split(" at ")[0])
    }
    assert cited
    assert cited <= rows


def test_tests_and_modules_that_the_documents_name_exist():
    text = (ROOT / "docs/faults.md").read_text()
    named = set(re.findall(r"`([\w/]+\.py)`", text))
    assert len(named) > 10
    places = [ROOT / "tests", ROOT / "ado_stream", ROOT]
    assert [name for name in named if not any((place / name).is_file() for place in places)] == []
    run = re.findall(r"tests/[\w/]+(?:\.py)?", (ROOT / ".ci/portability").read_text())
    assert len(run) > 10
    assert [name for name in run if not (ROOT / name).exists()] == []


def test_no_test_skips_itself():
    """What a machine cannot run is left out by marker and counted (tests/conftest.py): a skip is silent."""
    for name in tracked("tests/*.py"):
        if name != "tests/architecture/test_docs.py":
            assert not re.search(r"pytest\.(skip|importorskip)\b|mark\.skip", (ROOT / name).read_text()), name
