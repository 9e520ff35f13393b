"""`prepare --executor ray` on a cluster of two nodes: a local run's corpus, whoever is killed in between."""

import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from ado_stream.errors import AdoStreamError, ConfigError, DataError
from ado_stream.prepare.ray_executor import RayExecutor
from ado_stream.prepare.worker_pool import worker_result
from tests.docs.pages import ROOT, run_page
from tests.waiting import wait_until

pytestmark = pytest.mark.slow  # a cluster takes ten seconds to start
COMMAND = [
    *(sys.executable, "-m", "ado_stream.cli", "prepare", "--domain-key", "meta.pile_set_name", "--seq-len", "64"),
    *("--shard-mb", "0.05", "--tokenizer", "bpe:300", "--val-fraction", "0.1"),
]


@pytest.fixture(scope="module")
def cluster():
    """Two nodes of one core; children of this process find them by RAY_ADDRESS."""
    from ray.cluster_utils import Cluster

    node = {"num_cpus": 1, "object_store_memory": 80_000_000}
    paths = os.pathsep.join(str(Path(__file__).parents[2] / part) for part in (".", "kernels", "model"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", paths)
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        nodes = Cluster(initialize_head=True, head_node_args=node)
        nodes.add_node(**node)
        patch.setenv("RAY_ADDRESS", nodes.address)
        yield nodes
        nodes.shutdown()


def test_the_code_of_its_page_runs(cluster, real_corpus, tmp_path):
    (tmp_path / "bin").mkdir()
    command = tmp_path / "bin/ado-stream"
    command.write_text(f'#!/bin/sh\nexec {sys.executable} -m ado_stream.cli "$@"\n')
    command.chmod(0o755)
    shutil.copytree(real_corpus, tmp_path / "data")
    path = f"{command.parent}{os.pathsep}{os.environ['PATH']}"
    output = run_page(ROOT / "docs/prepare_cluster.md", tmp_path, {"PATH": path}, {})
    assert "written to corpus" in output


def test_a_client_server_serves_as_the_cluster_does(cluster, real_corpus, tmp_path, tree_hashes):
    """`--executor ray://HOST:PORT`, with the server that `ray start --ray-client-server-port` runs on a head."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = [sys.executable, "-m", "ray.util.client.server", "--address", cluster.address]
    server += ["--host", "127.0.0.1", "--port", str(port), "--mode", "proxy"]
    # The server starts a process for each client, by a fork in which gRPC's own handlers may end the child before it
    # executes anything; Ray then leaves the client waiting. It also gives up on a process that takes half a minute.
    patient = dict.fromkeys(("RAY_CLIENT_SERVER_CHECK_CHANNEL_TIMEOUT_S", "TIMEOUT_FOR_SPECIFIC_SERVER_S"), "100")
    environment = {**os.environ, **patient, "GRPC_ENABLE_FORK_SUPPORT": "0"}
    process = subprocess.Popen(server, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment)
    try:
        wait_until(lambda: _answers(port))
        for name, executor in (("ray", f"ray://127.0.0.1:{port}"), ("here", "local")):
            command = [*COMMAND, real_corpus / "train-000.jsonl.zst", "--executor", executor, "--out", tmp_path / name]
            subprocess.run(list(map(str, command)), check=True, timeout=120)
    finally:
        process.terminate()
        process.wait(30)
    assert tree_hashes(tmp_path / "ray") == tree_hashes(tmp_path / "here")


def _answers(port):
    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
    except OSError:
        return False
    return True


@pytest.fixture(scope="module")
def text(pile, tmp_path_factory, write_jsonl):
    """A folder of 24 files."""
    folder = tmp_path_factory.mktemp("text")
    for number in range(24):
        documents = [{**each, "text": f"{number} {each['text']}"} for each in pile[1][: 20 + 25 * number]]
        write_jsonl(folder / f"{number:02}.jsonl.zst", documents)
    return folder


def _kill_worker(folder):
    """Kills a task in the middle of a part: one with a file below `folder` open; whether there was one."""
    for process in Path("/proc").glob("[0-9]*"):
        try:
            files = [os.readlink(descriptor) for descriptor in (process / "fd").iterdir()]
            title = (process / "cmdline").read_bytes()
        except OSError:
            continue
        if title.startswith(b"ray::") and any(file.startswith(str(folder)) for file in files):
            os.kill(int(process.name), signal.SIGKILL)
            return True
    return False


def test_two_nodes_make_a_local_run_s_corpus_whoever_is_killed(cluster, text, tmp_path, tree_hashes):
    """A worker, then the driver, then a node with all of its workers."""
    subprocess.run(
        [*COMMAND, str(text), "--out", str(tmp_path / "local")], check=True, capture_output=True, timeout=200
    )
    out = tmp_path / "ray"
    parts = out / ".prepare/parts"
    command = [*COMMAND, str(text), "--executor", "ray", "--out", str(out), "--json"]

    def begin():
        return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)

    def tables(least):
        wait_until(lambda: len(list(parts.glob("*.json"))) >= least)

    driver = begin()
    tables(1)
    wait_until(lambda: _kill_worker(parts))
    tables(5)
    driver.kill()
    driver.communicate()
    done = {path.name: path.stat().st_mtime_ns for path in parts.glob("*.json")}
    assert len(done) >= 5
    driver = begin()
    tables(len(done) + 3)
    assert {name: (parts / name).stat().st_mtime_ns for name in done} == done
    cluster.remove_node(next(node for node in cluster.list_all_nodes() if node is not cluster.head_node))
    _, errors = driver.communicate(timeout=200)
    assert driver.returncode == 0, errors
    assert tree_hashes(out) == tree_hashes(tmp_path / "local")
    assert len(tree_hashes(out)) > 30
    assert sorted(os.listdir(out)) == sorted(os.listdir(tmp_path / "local"))


def _raise(error):
    raise error


def test_errors_of_tasks_are_those_of_calls_and_what_a_node_does_not_see_is_named(cluster, tmp_path):
    with RayExecutor("ray") as executor:
        assert executor.num_workers == len(cluster.list_all_nodes())
        assert executor.submit(divmod, 7, 2).result(60) == (3, 1)
        with pytest.raises(DataError, match="^a.jsonl:3: no text$"):
            executor.submit(_raise, DataError("a.jsonl:3: no text")).result(60)
        with pytest.raises(AdoStreamError, match=r"a worker process died"):
            worker_result(executor.submit(os._exit, 1))
        executor.check_shared([tmp_path])
        with pytest.raises(ConfigError, match=rf"{tmp_path}/nowhere: not there on the Ray node"):
            executor.check_shared([tmp_path, tmp_path / "nowhere"])
