"""Fixtures that several rooms share: the checkout, golden records, real text, a small corpus in The Pile's format."""

import hashlib
import importlib.util
import json
import os
import random
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zstandard
from hypothesis import HealthCheck, settings

from ado_kernels.numba_cache import compile_in_background
from tests.browser import find_browser
from tests.train.child_processes import ChildProcesses

pytest_plugins = ["tests.deadlines"]

ROOT = Path(__file__).resolve().parents[1]

# Of models this small a second thread makes no step shorter. It waits for its next loop by spinning, and where another
# process has its core the first waits for it: a step then takes ten times the time, most of it spinning.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")  # the default; Triton 3.9 warns when it is unset

# The same examples in every run: what CI says can be repeated. HYPOTHESIS=random looks further, as tests/fuzz does.
# No limit of 200 ms an example and none on drawing it: a busy machine is no failure.
settings.register_profile(
    "tests",
    derandomize=os.environ.get("HYPOTHESIS") != "random",
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
settings.load_profile("tests")


def pytest_sessionstart(session):
    """Compiles the Numba kernels beside the collection and the first tests: a minute, the first time in a checkout."""
    if not session.config.option.collectonly:
        import numba  # noqa: F401 - in this thread, not in two at once

        for group in ("ops", "fit"):
            compile_in_background(group)


LEFT_OUT = pytest.StashKey[dict[str, int]]()


def pytest_collection_modifyitems(config, items):
    """Leaves out tests by what they need: `gpu(count=1, memory_gb=0)`, `privileged`, `browser`, `package(name)`.

    No test skips itself.
    """
    import torch

    num_gpus, privileged = torch.cuda.device_count(), _may_mount()
    kept, left_out = [], {"gpu": [], "privileged": [], "browser": [], "package": []}
    for item in items:
        gpu, package = item.get_closest_marker("gpu"), item.get_closest_marker("package")
        if package and importlib.util.find_spec(package.args[0]) is None:
            left_out["package"].append(item)
        elif gpu and not _has_gpu(num_gpus, **gpu.kwargs):
            left_out["gpu"].append(item)
        elif not privileged and (item.get_closest_marker("privileged") or PRIVILEGED & set(item.fixturenames)):
            left_out["privileged"].append(item)
        elif item.get_closest_marker("browser") and find_browser() is None:
            left_out["browser"].append(item)
        else:
            kept.append(item)
    items[:] = kept
    for some in left_out.values():
        config.hook.pytest_deselected(items=some)
    config.stash[LEFT_OUT] = {need: len(some) for need, some in left_out.items() if some}
    if hasattr(config, "workeroutput"):  # of several processes: to the one that prints
        config.workeroutput["left out"] = config.stash[LEFT_OUT]


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node, error):
    node.config.stash[LEFT_OUT] = getattr(node, "workeroutput", {}).get("left out", {})


@pytest.hookimpl(trylast=True)
def pytest_terminal_summary(terminalreporter, config):
    """One line a kind of test that is left out here."""
    needs = {
        "gpu": "more CUDA GPUs, or more of their memory free",
        "privileged": "the right to mount and to make network namespaces (root)",
        "browser": "Chromium on the PATH",
        "package": "trainers that are not installed (CONTRIBUTING.md)",
    }
    for need, number in config.stash.get(LEFT_OUT, {}).items():
        terminalreporter.line(f"left out: {number} tests that need {needs[need]}")


def _has_gpu(num_gpus: int, count: int = 1, memory_gb: float = 0) -> bool:
    import torch

    return num_gpus >= count and (not memory_gb or torch.cuda.mem_get_info()[0] >= 1e9 * memory_gb)


PRIVILEGED = {"small_disk", "nodes"}  # fixtures that mount a file system or make network namespaces


def _may_mount() -> bool:
    try:
        return subprocess.run(["unshare", "--mount", "--net", "true"], capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        return False


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the checkout."""
    return ROOT


@pytest.fixture(scope="session")
def golden() -> Path:
    """What the public reference computed: see the README in the folder."""
    return ROOT / "tests" / "golden"


@pytest.fixture(scope="session")
def real_corpus() -> Path:
    """1.7 MB of real text of six domains in The Pile's format, and their manifest."""
    return ROOT / "tests" / "data" / "corpus"


@pytest.fixture(scope="session")
def children(tmp_path_factory):
    """Starts child processes in milliseconds (tests/train/child_processes.py)."""
    processes = ChildProcesses(tmp_path_factory.mktemp("children"))
    yield processes
    processes.close()


@pytest.fixture(scope="session")
def ranks(children: ChildProcesses, tmp_path_factory) -> Callable[..., Any]:
    """Runs `function(*arguments, OUT)` on `num_ranks` CPU ranks and returns the JSON that it wrote to OUT."""

    def run(num_ranks: int, function: Callable[..., None], *arguments: Any) -> Any:
        out = tmp_path_factory.mktemp("ranks") / "out.json"
        children.run(function, *arguments, str(out), num_ranks=num_ranks)
        return json.loads(out.read_text())

    return run


@pytest.fixture
def process_group():
    """A group of this process alone."""
    import torch.distributed as dist

    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


DOMAINS = {"Books": 9, "Wikipedia (en)": 5, "Code": 3}


def make_documents(num_documents: int, seed: int) -> list[dict]:
    """Documents of all domains, mixed, 1 to 400 words each."""
    draw = random.Random(seed)
    words = ["ä", "the", "of", "zürich", "12", "\n", "東京", "return", "(x)", "…"]
    documents = []
    for _ in range(num_documents):
        domain = draw.choices(list(DOMAINS), list(DOMAINS.values()))[0]
        text = " ".join(draw.choices(words, k=draw.randint(1, 400))) + f" {draw.random()}"
        documents.append({"text": text, "meta": {"pile_set_name": domain}})
    return documents


def _write_jsonl(path: Path, documents: list[dict]) -> Path:
    """One JSON object a line; compressed when the name says so."""
    data = b"".join(json.dumps(document).encode() + b"\n" for document in documents)
    path.write_bytes(zstandard.compress(data) if path.suffix == ".zst" else data)
    return path


@pytest.fixture(scope="session")
def pile(tmp_path_factory):
    """(files, documents in their order)"""
    folder = tmp_path_factory.mktemp("pile")
    documents = make_documents(600, seed=1)
    names = ["0.jsonl.zst", "1.jsonl", "2.jsonl.zst"]
    files = [_write_jsonl(folder / name, documents[n * 200 : (n + 1) * 200]) for n, name in enumerate(names)]
    return [str(file) for file in files], documents


@pytest.fixture(scope="session")
def write_jsonl():
    """A function: writes documents to a path and returns the path."""
    return _write_jsonl


@pytest.fixture(scope="session")
def tiny_corpus(tmp_path_factory) -> Path:
    """Three domains of different size and difficulty, tokenised as bytes, sequences of 32; each has validation text."""
    from ado_stream.prepare.coordinator import prepare
    from ado_stream.prepare.prepare_config import PrepareConfig

    folder = tmp_path_factory.mktemp("tiny")
    for domain, num_documents, vocabulary in (("easy", 60, 4), ("medium", 120, 40), ("hard", 30, 400)):
        generator = np.random.default_rng(vocabulary)
        for part, num in (("train", num_documents), ("val", 10)):
            lines = [
                json.dumps({"text": " ".join(f"w{word}" for word in generator.integers(vocabulary, size=60))})
                for _ in range(num)
            ]
            place = folder / part / domain
            place.mkdir(parents=True)
            (place / "text.jsonl").write_text("\n".join(lines) + "\n")
    config = PrepareConfig(
        inputs=(str(folder / "train"),), val=(str(folder / "val"),), out=str(folder / "corpus"), seq_len=32, workers=1
    )
    return Path(prepare(config))


@pytest.fixture(scope="session")
def s3_server():
    """moto's S3, in this process; (host, port)."""
    import logging

    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    yield server.get_host_and_port()
    server.stop()


@pytest.fixture
def s3_client(s3_server, monkeypatch):
    """boto3's client of that server, which the environment names for this process and its children."""
    import boto3

    host, port = s3_server
    for name, value in {
        "S3_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("AWS_PROFILE", raising=False)
    client = boto3.client("s3", endpoint_url=os.environ["S3_ENDPOINT_URL"])
    yield client
    client.close()


@pytest.fixture(scope="session")
def prepare_texts():
    """A function: writes {name: text} below FOLDER/in, prepares them as FOLDER/corpus, returns that."""
    from ado_stream.cli.main import main

    def prepare(folder: Path, texts: dict[str, str], *options: str) -> Path:
        for name, text in texts.items():
            path = folder / "in" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        where = [str(folder / "in"), "--out", str(folder / "corpus")]
        assert main(["prepare", *where, "--workers", "1", "--json", *options]) == 0
        return folder / "corpus"

    return prepare


@pytest.fixture(scope="session")
def tree_hashes():
    """A function: {relative path: sha256} of all files below a folder."""

    def hashes(folder) -> dict[str, str]:
        folder = Path(folder)
        return {
            str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in sorted(folder.rglob("*"))
            if path.is_file()
        }

    return hashes
