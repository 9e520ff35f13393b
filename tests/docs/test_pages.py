"""Every code block of the documents runs, and every command that they show is one."""

import argparse
import importlib
import re
import runpy
import shutil
import socket
import sys
from pathlib import Path

import pytest

import ado_stream
from ado_stream.record import read_run
from ado_stream.train.run_config import load_config
from tests.docs.pages import CODE, ROOT, blocks, commands, run_page, shown_commands

DOCS = sorted((ROOT / "docs").glob("*.md"))
AS_THEMSELVES = "s3_two_nodes.md"  # a new user's way from text to a report: nothing stands in for a command
RUN_ELSEWHERE = (
    "trainers",
    "formats",
    "prepare_cluster",
)  # need packages that the tests lack, files or a cluster: beside the adapters, tests/corpus, prepare/test_ray.py
PAGES = [page for page in DOCS if any(block.language in CODE for block in blocks(page))]
TRAIN_TOO = ("documents", "gpu_box", "stages")  # as fim does, which runs by default
RUN_HERE = [
    pytest.param(page, marks=[pytest.mark.slow] * (page.stem in TRAIN_TOO), id=page.name)
    for page in PAGES
    if page.name != AS_THEMSELVES and page.stem not in RUN_ELSEWHERE
]


@pytest.fixture
def folder(tmp_path, real_corpus):
    """A folder with data/*.jsonl.zst, records {"text": ..., "meta": {"pile_set_name": ...}}."""
    place = tmp_path / "user"
    (place / "data").mkdir(parents=True)
    for name in ("train-000", "val"):
        shutil.copy(real_corpus / f"{name}.jsonl.zst", place / "data")
    return place


@pytest.mark.parametrize("page", RUN_HERE)
def test_the_code_of_a_page_runs(page, folder, tmp_path, children, s3_client):
    with commands(children, tmp_path / "stand-ins") as environment:
        run_page(page, folder, environment, {})


@pytest.mark.slow
def test_from_a_folder_of_text_to_a_report_of_two_nodes_and_a_bucket(folder, tmp_path):
    """What the page does, as its reader would: moto's server, two torchruns, the report."""
    ports = []
    for _ in range(2):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            ports.append(str(free.getsockname()[1]))
    paths = ":".join(str(ROOT / part) for part in (".", "kernels", "model"))
    environment = {
        "PATH": f"{Path(sys.executable).parent}:/usr/local/bin:/usr/bin:/bin",
        "PYTHONPATH": paths,
        "OMP_NUM_THREADS": "1",
        "HOME": str(tmp_path),
    }
    page = ROOT / "docs" / AS_THEMSELVES
    output = run_page(page, folder, environment, {":5000": f":{ports[0]}", "5000 ": f"{ports[0]} ", "29500": ports[1]})
    run, lines = read_run(folder / "runs" / "two-nodes")
    assert (run["world_size"], run["canonical_nodes"], run["policy"]) == (2, 2, "ado")
    assert len(lines["step"]) == run["steps"]
    assert lines["step"][-1]["mixture"] != pytest.approx(lines["step"][0]["mixture"], abs=1e-3)
    caches = [{path.name for path in (folder / "cache" / node).rglob("*.mds*")} for node in ("node0", "node1")]
    assert all(caches), "each node has a cache of its own"
    (report,) = re.findall(r"^report: (.+\.html)$", output, re.MULTILINE)
    assert "two-nodes" in Path(report).read_text()


def test_every_block_names_a_language_that_is_run_or_is_none():
    for page in DOCS:
        for block in blocks(page):
            assert block.language in (*CODE, "text", "json") or block.language.startswith("{"), (page.name, block)


@pytest.mark.parametrize("page", [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *DOCS], ids=lambda page: page.name)
def test_every_command_that_is_shown_parses(page):
    for _, verb, *words in shown_commands(page):
        module = importlib.import_module(f"ado_stream.cli.{verb}")
        parser = argparse.ArgumentParser(exit_on_error=False)
        module.add_arguments(parser)
        parser.parse_intermixed_args(words)


def test_every_config_that_is_shown_is_one(tmp_path):
    pages = [ROOT / "README.md", *(page for page in PAGES if page.stem != "formats")]  # formats.md has a corpus.yaml
    configs = [block for page in pages for block in blocks(page) if block.language == "yaml"]
    assert len(configs) >= 3
    for number, block in enumerate(configs):
        path = tmp_path / f"{number}.yaml"
        path.write_text(block.text)
        load_config(path, [])


def test_every_page_is_in_the_table_of_contents():
    index = (ROOT / "docs" / "index.md").read_text()
    listed = re.findall(r"^(\w+)\*?$", index, re.MULTILINE)
    for page in DOCS:
        assert page.stem == "index" or any(page.stem.startswith(name) for name in listed), page.name


def test_every_public_name_is_in_the_reference():
    text = (ROOT / "docs" / "api.md").read_text()
    named = set(re.findall(r"^\.\. auto\w+:: (?:[\w.]+\.)?(\w+)$", text, re.MULTILINE))
    assert set(ado_stream.__all__) - {"__version__"} <= named


def test_the_picture_of_the_house_is_that_of_the_contracts():
    house = runpy.run_path(str(ROOT / "docs" / "house.py"))
    for theme in ("light", "dark"):
        assert house["draw"](theme) == (ROOT / "docs" / f"house_{theme}.svg").read_text(), "run docs/house.py"
